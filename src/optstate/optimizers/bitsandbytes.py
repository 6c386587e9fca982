"""bitsandbytes: every class keeps `state1` and perhaps `state2`, whose meaning is the class's; see `torch_optim`.

Tensors of fewer than 4,096 elements, and all in the 32-bit classes, are plain float32; the others are codes, which mean
nothing without the scales and the map beside them. Files name no class, so one row stands for all that keep the same.
"""

from __future__ import annotations

from dataclasses import replace

from optstate.optimizers.kinds import (
    ADAM_GROUP,
    DEBIASED_SQUARE,
    DIRECTION,
    INTEGER_COUNT,
    MEAN,
    OWN,
    PLAIN_MEAN,
    SQUARE,
    SUM,
    together,
)
from optstate.optimizers.spec import OptimizerSpec, SlotSpec

_CODED = replace(OWN, dtype="scalar", when="sometimes")
_NORM = replace(OWN, dtype="scalar", lr_degree=0)  # of the whole update, where its size is limited


def _slots(first: SlotSpec, second: SlotSpec | None = None, **more: SlotSpec) -> dict[str, SlotSpec]:
    moments = {"state1": first} if second is None else {"state1": first, "state2": second}
    coded = {f"{part}{key[-1]}": _CODED for key in moments for part in ("absmax", "qmap")}
    return together(
        step=INTEGER_COUNT, **{key: replace(slot, dtype="scalar") for key, slot in moments.items()}, **coded, **more
    )


def _classes(module: str, *names: str) -> tuple[str, ...]:
    return tuple(f"bitsandbytes.optim.{module}.{name}" for name in names)


def _widths(module: str, name: str) -> tuple[str, ...]:
    """The class of this name, and its variants by bits and by paging."""
    return _classes(module, *(f"{page}{name}{bits}" for page in ("", "Paged") for bits in ("", "8bit", "32bit")))


_MEAN, _SQUARE = replace(MEAN, coefficient="betas[0]"), replace(DEBIASED_SQUARE, coefficient="betas[1]")
_TWO = ("alpha", "t_alpha", "t_beta3")  # written since bitsandbytes 0.44, for all classes with two states


def _row(names: tuple[str, ...], slots: dict[str, SlotSpec], **more: object) -> OptimizerSpec:
    name, *aliases = names
    return OptimizerSpec(
        name=name, aliases=tuple(aliases), slots=slots, hyperparameters=ADAM_GROUP, closed=True, **more,  # type: ignore[arg-type]
    )  # fmt: skip


BITSANDBYTES = (
    *(
        _row(_widths(*names), _slots(_MEAN, _SQUARE), optional=_TWO, nonzero=("eps",), update="adam", decoupled=True)
        for names in (("adamw", "AdamW"), ("adam", "Adam"))
    ),
    _row(
        _classes("lamb", "LAMB", "LAMB8bit", "LAMB32bit"),
        _slots(_MEAN, _SQUARE, unorm_vec=replace(_NORM, gradient_degree=0)),
        optional=_TWO,
        decoupled=True,
    ),
    _row(
        _widths("ademamix", "AdEMAMix"),
        # The fast and the slow average, one behind the other along a dimension of their own.
        _slots(replace(DIRECTION, shape="list", gradient_degree=1), _SQUARE),
        optional=_TWO,
        nonzero=("alpha", "betas[2]"),
        decoupled=True,
    ),
    _row(
        _widths("lion", "Lion"),
        _slots(replace(PLAIN_MEAN, coefficient="betas[1]")),
        fixed={"eps": 0.0},
        nonzero=("betas[1]",),
        update="lion",
        decoupled=True,
    ),
    _row(
        _classes("sgd", "SGD", "SGD8bit", "SGD32bit"),
        _slots(replace(SUM, coefficient="betas[0]")),
        fixed={"eps": 0.0, "betas[1]": 0},
        nonzero=("betas[0]",),
        update="sgd",
    ),
    _row(
        _classes("lars", "LARS", "LARS8bit", "LARS32bit"),
        _slots(replace(SUM, coefficient="betas[0]"), unorm_vec=replace(_NORM, gradient_degree=1)),
        fixed={"eps": 0.0, "betas[1]": 0},
        nonzero=("betas[0]",),
    ),
    _row(
        _classes("rmsprop", "RMSprop", "RMSprop8bit", "RMSprop32bit"),
        _slots(replace(SQUARE, coefficient="betas[0]")),
        fixed={"betas[1]": 0},
        nonzero=("eps", "betas[0]"),
        update="rmsprop",
    ),
    _row(
        _classes("adagrad", "Adagrad", "Adagrad8bit", "Adagrad32bit"),
        _slots(SQUARE),
        fixed={"betas[0]": 0, "betas[1]": 0},
        nonzero=("eps",),
        update="adagrad",
    ),
)
