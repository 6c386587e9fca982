"""Every optimizer of another library than torch that is described, one table for each library."""

from __future__ import annotations

from optstate.optimizers.bitsandbytes import BITSANDBYTES
from optstate.optimizers.fastai import FASTAI
from optstate.optimizers.fused import FUSED
from optstate.optimizers.packages import PACKAGES
from optstate.optimizers.pytorch_optimizer import PYTORCH_OPTIMIZER
from optstate.optimizers.schedulefree import SCHEDULE_FREE
from optstate.optimizers.timm import TIMM
from optstate.optimizers.torchao import TORCHAO

THIRD_PARTY = (*FUSED, *BITSANDBYTES, *TORCHAO, *SCHEDULE_FREE, *PACKAGES, *TIMM, *PYTORCH_OPTIMIZER, *FASTAI)
"""In the order in which classes are named that a file cannot tell apart."""
