"""Param groups and the optimizers they belong to, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Group:
    """A param group: its hyperparameters, and the names of its parameters in the optimizer's order.

    `index` counts within the optimizer. Tensors among the hyperparameters are references.

    >>> group = state.groups[0]
    >>> group.parameters[0], group.hyperparameters["betas"]
    ('0.weight', (0.9, 0.999))
    """

    optimizer: str
    index: int
    hyperparameters: Mapping[str, Any]
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OptimizerInfo:
    """One optimizer of a state.

    `name` is "" where a state has a single one. `class_name` is the qualified class, None where a file does
    not say and its contents fit no known class; `inferred` marks a class deduced from the contents, of which
    `class_name` then is the first and `alternatives` the others that fit as well. `known` says whether the
    registry describes the class. `ordered` is False where the source names parameters in an order of its own, so that
    their places in the groups are not those that the program gave them.

    >>> info = state.optimizers[""]
    >>> info.class_name, info.short_name, info.known
    ('torch.optim.adamw.AdamW', 'AdamW', True)
    """

    name: str
    class_name: str | None
    groups: tuple[Group, ...]
    known: bool
    inferred: bool = False
    alternatives: tuple[str, ...] = ()
    ordered: bool = True

    @property
    def short_name(self) -> str:
        """The class without its module, `?` after an inferred one; `unknown` where there is none."""
        if self.class_name is None:
            return "unknown"
        names = [name.rpartition(".")[2] for name in (self.class_name, *self.alternatives)]
        return " or ".join(names) + ("?" if self.inferred else "")
