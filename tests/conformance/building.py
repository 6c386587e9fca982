"""The training of a row, as a fresh process builds it."""

from __future__ import annotations

import random
import sys

import numpy as np
import torch

from optstate.proof.training import Training
from tests.conformance.programs import PLAIN
from tests.conformance.row import Row
from tests.conformance.special import SPECIAL
from tests.probed_rows import _reachable

PROGRAMS = {**PLAIN, **SPECIAL}


def build(row: Row, changed: bool = False) -> Training:
    """The same training each time; `changed` registers two layers in another order, as who tidies a program up would."""
    if row.library == "timm" and row.library not in sys.modules:
        _reachable(row.library)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    torch.set_num_threads(1)
    if row.program != "compiled":
        torch.compiler.set_stance("force_eager")  # some classes compile their steps, which takes minutes
    return PROGRAMS[row.program](row, changed)
