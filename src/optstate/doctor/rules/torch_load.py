"""What torch does when an optimizer loads and steps, as data: read in its code, held against it by tests."""

from __future__ import annotations

from collections.abc import Mapping

from optstate.optimizers.spec import SlotSpec

_USUAL = frozenset({"foreach", "maximize", "differentiable"})
_CAPTURABLE = _USUAL | {"capturable"}
_ADAM = _CAPTURABLE | {"amsgrad", "fused", "decoupled_weight_decay"}

FILLED: Mapping[str, frozenset[str]] = {
    "torch.optim.sgd.SGD": _USUAL | {"nesterov", "fused"},
    "torch.optim.adam.Adam": _ADAM,
    "torch.optim.adamw.AdamW": _ADAM,
    "torch.optim.nadam.NAdam": _CAPTURABLE | {"decoupled_weight_decay"},
    "torch.optim.radam.RAdam": _CAPTURABLE | {"decoupled_weight_decay"},
    "torch.optim.adamax.Adamax": _CAPTURABLE,
    "torch.optim.adagrad.Adagrad": _USUAL | {"fused"},
    "torch.optim.adadelta.Adadelta": _CAPTURABLE,
    "torch.optim.rmsprop.RMSprop": _CAPTURABLE | {"momentum", "centered"},
    "torch.optim.rprop.Rprop": _CAPTURABLE,
    "torch.optim.asgd.ASGD": _CAPTURABLE,
    "torch.optim.Adafactor": frozenset({"foreach"}),
    "torch.optim.Muon": frozenset(),
    "torch.optim.sparse_adam.SparseAdam": frozenset(),
    "torch.optim.lbfgs.LBFGS": frozenset(),
}
"""Class → the group keys that loading puts in, as off or 0, where a file lacks them."""

_UNREAD: Mapping[str, frozenset[str]] = {
    "torch.optim.adagrad.Adagrad": frozenset({"initial_accumulator_value"}),
    "torch.optim.rprop.Rprop": frozenset({"lr"}),
    "torch.optim.sparse_adam.SparseAdam": frozenset({"maximize"}),
}


def unread(cls: str | None) -> frozenset[str]:
    """The group keys that a step of a class goes without.

    Loading puts `differentiable` among the defaults of any optimizer; those that read it from a group fill it in.
    """
    return _UNREAD.get(cls or "", frozenset()) | {"differentiable"}


_STEP = ("step",)
DEMANDED: Mapping[str, tuple[str, ...]] = {
    "torch.optim.adam.Adam": _STEP,
    "torch.optim.adamw.AdamW": _STEP,
    "torch.optim.nadam.NAdam": ("step", "mu_product"),
    "torch.optim.radam.RAdam": _STEP,
    "torch.optim.adamax.Adamax": _STEP,
    "torch.optim.adagrad.Adagrad": _STEP,
    "torch.optim.adadelta.Adadelta": _STEP,
    "torch.optim.rmsprop.RMSprop": _STEP,
    "torch.optim.rprop.Rprop": _STEP,
    "torch.optim.asgd.ASGD": ("step", "eta", "mu"),
    "torch.optim.Adafactor": _STEP,
}
"""Class → the slots that loading itself looks up in every entry that is not empty, after it has replaced the state."""

MENDED = frozenset({"torch.optim.sgd.SGD", "torch.optim.Muon"})
"""Classes whose step creates a slot that an entry lacks; all others take an entry for whole or for empty."""

COMPUTES_MIXED = frozenset(
    {
        "torch.optim.sgd.SGD",
        "torch.optim.adagrad.Adagrad",
        "torch.optim.adadelta.Adadelta",
        "torch.optim.rmsprop.RMSprop",
        "torch.optim.rprop.Rprop",
        "torch.optim.asgd.ASGD",
    }
)
"""Classes whose step accepts slots of another floating type than the parameter's, unless fused or centered."""


def due_shape(row: SlotSpec, parameter: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of a slot, by the rule by which the optimizer creates it; None where the rule says none."""
    if row.shape == "parameter":
        return parameter
    if row.shape == "scalar":
        return ()
    if row.shape == "row":
        return (*parameter[:-1], 1)
    return (*parameter[:-2], 1, *parameter[-1:]) if row.shape == "column" else None
