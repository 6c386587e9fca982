"""torchao: torch's Adam and AdamW with slots in blocks of 8 or 4 bits or fp8; see `torch_optim`.

Tensors of fewer than 4,096 elements are plain, of the parameter's type. A file tells these classes from torch's own
only by the quantised slots.
"""

from __future__ import annotations

from optstate.optimizers.kinds import ADAM, ADAM_GROUP
from optstate.optimizers.spec import OptimizerSpec

TORCHAO = tuple(
    OptimizerSpec(
        name=f"torchao.optim.adam.{name}{suffix}",
        aliases=(f"torchao.prototype.low_bit_optim.adam.{name}{suffix}",),
        hyperparameters=(*ADAM_GROUP, "amsgrad"),
        closed=True,
        stored_as=stored_as,
        update="adam",
        decoupled=name == "AdamW",
        slots=ADAM,
    )
    for suffix, stored_as in (("8bit", "8-bit"), ("4bit", "4-bit"), ("Fp8", "fp8"))
    for name in ("AdamW", "Adam")
)
