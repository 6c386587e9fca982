"""`alignment`: does the momentum still fit the data? Measured at frozen weights, with advice that can be applied."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt
from typing import Any

import torch
from torch import nn

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.edit import Edit
from optstate.live.measuring import real
from optstate.live.readout import Readout
from optstate.live.sampling import look_at, plural, real_shape, whole_batches
from optstate.live.source import LiveSource
from optstate.live.view import checked_model, optimizers_by_name
from optstate.optimizers.aligning import Fit, Sample, fit, together
from optstate.optimizers.rebuilding import Direction, direction
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.policy import Policy
from optstate.resume.stride import stride
from optstate.state.collection import without_collection
from optstate.state.table import ROWS, Table
from optstate.text import listing, safe_text

SCHEMA = "optstate.alignment/1"
ALL = ""
"""The name of all parameters together, in a document."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """One parameter, or all together: how well momentum fits, and what to do about it.

    `fit` has the evidence, see `optstate.optimizers.aligning.Fit`; `step` is how many times as long the next step is as a fresh
    start's, NaN where no rule tells it; `factors` are what the advice multiplies slots by, those that change.
    """

    name: str
    fit: Fit
    step: float
    factors: Mapping[str, float]

    @property
    def advice(self) -> str:
        """What to do, in a few words."""
        its, told = self.fit, []
        if its.scale != 1.0:
            told.append(f"rescale: gradients are {its.scale:.3g} times as large")
        if 0.0 < its.factor < 1.0:
            told.append(f"decay momentum by {its.factor:.2g}")
        if its.second != 1.0:
            told.append(f"second moment times {its.second:.3g}")
        if its.action == "reset" or not told:
            told.insert(0, its.action)
        return ", ".join(told)

    def document(self) -> dict[str, Any]:
        """All of it in JSON's own types; None is what is not known."""
        its = self.fit
        return {
            "action": its.action,
            "cosine": _number(its.cosine),
            "ceiling": _number(its.ceiling),
            "spread": _number(its.spread),
            "squares": _number(its.squares),
            "squares_range": [_number(each) for each in its.squares_range],
            "step": _number(self.step),
            "factors": dict(self.factors),
        }


class Alignment:
    """What `alignment` found: it prints as a table, and its advice can be applied, to live state or in a restore.

    `overall` is all parameters together, `parameters` each by name, `left` those that were not judged, with the reason.

    >>> found = optstate.alignment(optimizer, model, closure, batches=4)
    >>> with state.edit("new data") as edit:
    ...     found.edit(edit)
    """

    def __init__(
        self, overall: Aligned, parameters: Mapping[str, Aligned], left: Mapping[str, str], batches: int
    ) -> None:
        self.overall = overall
        self.parameters = parameters
        self.left = left
        self.batches = batches

    def edit(self, edit: Edit, pattern: str = "*") -> None:
        """Follow the advice for the parameters that a pattern means, in an open edit; nothing is done where all fits.

        A momentum is multiplied by its factor, 0 for a reset, after which steps start short. To rescale, every slot gets
        the scale to the power with which it goes.
        """
        for name in edit.select(pattern).names:
            there = edit[name].slots
            for key, factor in self.parameters[name].factors.items() if name in self.parameters else ():
                if key in there:
                    edit[name][key].scale_(factor)

    def policy(self, **changes: Any) -> Policy:
        """The advice as a policy for a restore, which multiplies each momentum on its way in; `changes` as in `Policy`.

        Raises `EditError` where more is advised than to take momentum down, which a restore does not do.

        >>> optstate.alignment(optimizer, model, closure, batches=4).policy(missing="fresh").missing
        'fresh'
        """
        beyond = [name for name, each in self.parameters.items() if (each.fit.scale, each.fit.second) != (1.0, 1.0)]
        if beyond:
            raise EditError(
                "a restore can take momentum down, and this advice is to rescale",
                where=listing(beyond, 4),
                todo="restore as saved, then: with state.edit() as edit: alignment.edit(edit)",
            )
        scale = {_exactly(name): each.fit.factor for name, each in self.parameters.items() if each.fit.factor < 1.0}
        return Policy(**{"scale": scale or 1.0, **changes})

    def document(self) -> dict[str, Any]:
        """All of it in JSON's own types."""
        return {
            "schema": SCHEMA,
            "batches": self.batches,
            "overall": self.overall.document(),
            "parameters": {safe_text(name): each.document() for name, each in self.parameters.items()},
            "left": {safe_text(name): reason for name, reason in self.left.items()},
        }

    def table(self, limit: int | None = ROWS) -> Table:
        """One row for each parameter, at most `limit` of them (None: all), the first one for all together."""
        shown = list(self.parameters.values())[:limit]
        hidden = len(self.parameters) - len(shown)
        notes = [f"… {hidden:,} more parameters"] if hidden else []
        notes += [_PURE_NOISE] * (self.batches < 2)
        for reason in dict.fromkeys(self.left.values()):
            notes.append(f"{reason}: {listing([name for name, each in self.left.items() if each == reason])}")
        return Table(
            title=[f"alignment over {plural(self.batches)} at frozen weights", *_LEGEND],
            header=_HEADER,
            rows=[_cells(each) for each in (self.overall, *shown)],
            notes=notes,
            right=frozenset(_HEADER[1:-1]),
        )

    def __str__(self) -> str:
        return self.table().text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.table().html()


_HEADER = ("PARAMETER", "COSINE", "±", "CEILING", "SQUARES", "STEP", "ADVICE")
_LEGEND = (
    "cosine: of momentum and mean gradient; ± what chance makes of it; ceiling: of a perfect fit, for both are noisy",
    "squares: of gradients, over the second moment; step: over a fresh start's",
)
_PURE_NOISE = "one batch tells nothing of the noise in it: take more"


def _cells(each: Aligned) -> list[str]:
    its = each.fit
    numbers = (its.cosine, its.spread, its.ceiling, its.squares, each.step)
    return [safe_text(each.name) or "(all)", *map(_shown, numbers), each.advice]


def _shown(value: float) -> str:
    return f"{value:.2g}" if isfinite(value) else "–"


def _number(value: float) -> float | None:
    return value if isfinite(value) else None


def _exactly(name: str) -> str:
    """A pattern that means this name alone."""
    return name if re.fullmatch(r"\w+(\.\w+)*", name) else f"re:{re.escape(name)}"


# --- measuring ------------------------------------------------------------------------------------------------


@without_collection()
def alignment(
    optimizer: torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer],
    model: nn.Module,
    closure: Callable[[], Any],
    batches: int = 8,
) -> Alignment:
    """Whether momentum and second moments fit the gradients of the data at hand; weights, state and all else stay.

    closure
        Computes the loss of the next batch of that data and calls `backward()`, without a step; see `rebuild`, which
        takes the same one.
    batches
        How often it is called. Six are the least that tell a clear mean from noise.

    For each parameter and for all together: the cosine of momentum and mean gradient, what chance and noise make of it,
    squared gradients over the second moment, and the next step over a fresh start's; then advice: keep, decay by a factor,
    reset, rescale, or that it cannot be told. At frozen weights the momentum of a run that has settled points nowhere
    near the mean gradient, for it has averaged itself away along steep directions: ask about the old data as well, and
    compare.

    It takes about as long as the forward and backward passes, and as much memory as one slot of each parameter.

    Raises `EditError` for no batches, no momentum at all, and a closure that steps, writes weights, or leaves no finite
    gradient.

    >>> found = optstate.alignment(optimizer, model, closure, batches=4)
    >>> found.parameters["0.weight"].fit.action in ("keep", "decay", "reset", "rescale", "cannot be told")
    True
    """
    source = LiveSource(optimizers_by_name(optimizer), checked_model(model))
    traces, left = _traces(source)
    if not traces:
        raise EditError(
            "no parameter has a momentum that could be compared",
            found=listing(dict.fromkeys(left.values()), 4),
            todo="take a step or restore a checkpoint first; optstate.rebuild estimates what was lost",
        )

    def look(gradients: Mapping[str, torch.Tensor], squares: Mapping[str, float]) -> None:
        for name, trace in traces.items():
            if name in gradients:
                trace.add(gradients[name], squares[name])

    look_at(source, closure, whole_batches(batches), look)
    for name in [name for name, trace in traces.items() if not trace.batches]:
        del traces[name]
        left[name] = "no gradient in any batch"
    if not traces:
        raise EditError("no parameter that has a momentum got a gradient", where=listing(left, 4))
    samples = {name: trace.sample() for name, trace in traces.items()}
    lengths = {name: trace.lengths() for name, trace in traces.items()}
    found = {name: _aligned(name, samples[name], lengths[name], traces[name].spec) for name in traces}
    sums = [sum(pair) for pair in zip(*(each for each in lengths.values() if each), strict=True)]
    return Alignment(_aligned(ALL, together(samples.values()), sums, None), found, left, batches)


def _aligned(name: str, sample: Sample, lengths: Sequence[float], spec: OptimizerSpec | None) -> Aligned:
    its = fit(sample)
    step = sqrt(lengths[0] / lengths[1]) if lengths and lengths[1] else nan
    return Aligned(name, its, step, {} if spec is None else _factors(its, spec))


def _factors(its: Fit, spec: OptimizerSpec) -> dict[str, float]:
    """What each slot is multiplied by: as gradients grew (a slot of degree d by that to the d), then as the advice says."""
    found = {}
    for key, slot in spec.slots.items():
        factor = its.scale ** (slot.gradient_degree or 0)
        factor *= its.factor if slot.role == "momentum" and slot.primary else 1.0
        factor *= its.second if slot.role in ("second_moment", "max_second_moment") else 1.0
        if factor != 1.0:
            found[key] = factor
    return found


def _traces(source: LiveSource) -> tuple[dict[str, _Trace], dict[str, str]]:
    """What to follow of each parameter that has a momentum; why not, of the others."""
    found, left = {}, {}
    for bound in source.bind().parameters():
        optimizer = source.live_optimizers[bound.optimizer]
        group, spec = optimizer.param_groups[bound.group], by_class(type(optimizer))
        entry = optimizer.state.get(bound.tensor, {})  # .get: reading a missing one would create it
        slots = {key: value for key, value in entry.items() if spec is not None and key in spec.slots}
        plain = all(not isinstance(value, torch.Tensor) or _is_plain(value) for value in slots.values())
        with torch.no_grad():
            told = (
                direction(spec, {key: _wide(value) for key, value in slots.items()}, group) if spec and plain else None
            )
        if told is None or spec is None:
            left[bound.name] = (
                "its optimizer is not known" if spec is None else "no momentum" if plain else "kept in codes"
            )
        else:
            found[bound.name] = _Trace(bound, spec, group, entry, told)
    return found, left


def _is_plain(value: torch.Tensor) -> bool:
    return type(value) is torch.Tensor and value.layout is torch.strided


def _wide(value: Any) -> Any:
    """A slot as formulas take it: complex numbers as pairs, at least 32 bits wide, one number as a number."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.numel() == 1 and value.dim() == 0:
        return value.item()
    return real(value.detach().reshape(-1)).reshape(real_shape(value))


class _Trace:
    """Follows one parameter through the batches: one tensor, the sum of its gradients, and numbers of each batch."""

    def __init__(
        self, bound: Bound, spec: OptimizerSpec, group: Mapping[str, Any], entry: Mapping[str, Any], told: Direction
    ) -> None:
        self.spec = spec
        self._bound, self._group, self._entry = bound, group, entry
        self._momentum, self._factor = told.value.reshape(-1), told.factor
        self._second = None if told.square is None else float(told.square.sum())
        self._averaged = (1.0 + told.decay) / (1.0 - told.decay)
        self._readout = Readout()
        self._total = torch.empty(0)
        self._squares: list[float] = []

    def add(self, gradient: torch.Tensor, square: float) -> None:
        """Take the gradient of one more batch, and the sum of its squares."""
        flat = gradient.reshape(-1)
        along = torch.dot(self._momentum.to(flat.dtype), flat)
        onward = torch.dot(self._total, flat) if self._squares else torch.zeros_like(along)
        self._readout.ask(torch.stack([along, onward]))
        self._total = self._total.add_(flat) if self._squares else flat.clone()
        self._squares.append(square)

    @property
    def batches(self) -> int:
        """How many gradients it has seen."""
        return len(self._squares)

    def sample(self) -> Sample:
        """The numbers of all batches."""
        along, onward = map(list, zip(*self._readout.fetch(), strict=True))
        return Sample(
            momentum=float(torch.dot(self._momentum, self._momentum)) * self._factor**2,
            second=self._second,
            averaged=self._averaged,
            total=float(torch.dot(self._total, self._total)),
            squares=self._squares,
            along=[each * self._factor for each in along],
            onward=onward[1:],
        )

    def lengths(self) -> list[float]:
        """The sums of squares of the next update and of a fresh start's, for the mean gradient; [] where no rule tells."""
        parameter = self._bound.tensor.detach()
        gradient = (self._total / self.batches).reshape(real_shape(parameter))
        if self._group.get("maximize"):
            gradient = -gradient
        with torch.no_grad():
            found = stride(self.spec, self._entry, self._group, parameter, gradient)
        return [] if found is None else found.tolist()
