"""What is different between two checkpoints or optimizer states, whoever wrote them, sorted by how much it matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf, prod
from typing import Any

from optstate.errors import OptstateError, ReadError
from optstate.formats.collecting import Found, Progress
from optstate.formats.diff_groups import compare_groups
from optstate.formats.diff_report import Diff
from optstate.formats.difference import KINDS, PARTS, Difference, Part, Side
from optstate.formats.matching import Matched, match_names, match_parameters, match_positions, match_weights
from optstate.state.optimizer_state import OptimizerState
from optstate.state.slot import Slot
from optstate.state.tensors import TensorRef, Value, is_tensor
from optstate.text import count, safe_text


def differences(
    a: Side, b: Side, only: Part | None = None, *, values: bool = True, progress: Progress | None = None
) -> Diff:
    """Compare two sides. `only` confines it to slots, weights or groups; without `values` only headers are read.

    Values are compared bit by bit first; where they differ, by how much is computed in the same pass. What cannot be
    read is a difference of kind `unread`: nothing is called the same that was not seen.
    """
    if only not in (None, *PARTS):
        raise OptstateError("there is no such part to compare", expected=", ".join(PARTS), found=safe_text(only, 40))
    found = Found()
    for line in a.unread:
        found.add(Difference("unread", safe_text(line), a="not read"))
    for line in b.unread:
        found.add(Difference("unread", safe_text(line), b="not read"))
    contents = values and only != "groups"
    weights = _weights(found, a, b, contents, reported=only in (None, "weights"))
    if only != "weights":
        parameters = _parameters(found, a, b, weights, contents)
        if only in (None, "slots"):
            _slots(found, a, b, parameters)
        if only in (None, "groups"):
            compare_groups(found, a.state, b.state, parameters)
    if only is None:
        _besides(found, a, b)
    if values:
        found.resolve(progress)
    every = sorted(found.differences, key=_gravity)
    return Diff(a, b, tuple(every), tuple(found.notes), found.tensors, found.nbytes, only, values)


def _gravity(difference: Difference) -> tuple[int, float]:
    change = difference.change
    relative = 0.0 if change is None else inf if change.relative is None or any(change.nonfinite) else change.relative
    return KINDS.index(difference.kind), -relative


# --- weights ----------------------------------------------------------------------------------------------


def _weights(found: Found, a: Side, b: Side, contents: bool, *, reported: bool) -> Matched:
    if a.weights is None or b.weights is None:
        if reported and (a.weights is None) != (b.weights is None):
            found.notes.append(f"weights were not compared: {a.label if a.weights is None else b.label} has none")
        return Matched()
    matched = match_names(
        {name: a.aliases.get(name, ()) for name in a.weights}, {name: b.aliases.get(name, ()) for name in b.weights}
    )
    if contents:
        match_weights(matched, a.weights, b.weights)
    if not reported:
        return matched
    for name in matched.left_a(a.weights):
        found.add(Difference("weight", name, a=_about(a.weights[name])))
    for name in matched.left_b(b.weights):
        found.add(Difference("weight", name, b=_about(b.weights[name])))
    for name, other in matched.pairs.items():
        if name in matched.renamed:
            found.add(Difference("renamed", name, a=name, b=other))
        found.tensor(a.weights[name], b.weights[other], Difference("values", name))
    return matched


def _about(ref: TensorRef) -> str:
    return f"{ref.dtype} {list(ref.shape)}"


# --- parameters and slots ---------------------------------------------------------------------------------


def _parameters(found: Found, a: Side, b: Side, weights: Matched, contents: bool) -> dict[str, str]:
    """The pairs of parameters, after telling those that have no partner."""
    matched = match_names(*({name: side.state[name].facts.aliases for name in side.state} for side in (a, b)))
    if contents:
        match_parameters(matched, a.state, b.state, {name: weights.pairs[name] for name in weights.renamed})
    match_positions(matched, a.state, b.state)
    for name in matched.left_a(a.state):
        found.add(Difference("parameter", name, a=_shape(a.state, name)))
    for name in matched.left_b(b.state):
        found.add(Difference("parameter", name, b=_shape(b.state, name)))
    told = {difference.name for difference in found.differences if difference.kind == "renamed"}
    nameless = {name for name in matched.renamed if _nameless(a, name) or _nameless(b, matched.pairs[name])}
    for name in matched.pairs:
        if name in matched.renamed - nameless - told:
            found.add(Difference("renamed", name, a=name, b=matched.pairs[name]))
    numbered = sum(_nameless(a, name) and name == other for name, other in matched.pairs.items())
    found.notes += [
        f"{count(number, 'parameter')} without a name on one side or both, {how}"
        for number, how in (
            (len(nameless), "recognised by content"),
            (matched.by_position, "paired by position, as nothing else tells"),
            (numbered, "held against the same position"),
        )
        if number
    ]
    return matched.pairs


def _nameless(side: Side, name: str) -> bool:
    return side.state[name].facts.certainty == "position"


def _shape(state: OptimizerState, name: str) -> str:
    facts = state[name].facts
    return f"{facts.dtype or '?'} {'?' if facts.shape is None else list(facts.shape)}"


def _slots(found: Found, a: Side, b: Side, pairs: Mapping[str, str]) -> None:
    for name, other in pairs.items():
        mine, theirs = a.state[name].slots, b.state[other].slots
        for key in {**mine, **theirs}:
            _slot(found, name, key, mine.get(key), theirs.get(key))
    for path in {**a.unplaced, **b.unplaced}:
        told = Difference("values", safe_text(path))
        found.tree(a.unplaced.get(path), b.unplaced.get(path), told)


def _slot(found: Found, name: str, key: str, a: Slot | None, b: Slot | None) -> None:
    x, y = (None if slot is None else slot.value for slot in (a, b))
    if x is None and y is None:
        return
    if x is None or y is None:
        found.add(Difference("slot", name, key, _kind_of(x), _kind_of(y)))
        return
    counts = "step" in {slot.role for slot in (a, b) if slot is not None}
    told = Difference("step" if counts else "values", name, key)
    one, other = _number(x), _number(y)
    if is_tensor(x) != is_tensor(y) and one is not None and other is not None:
        found.add(replace(told, kind="dtype", a=_kind_of(x), b=_kind_of(y)))
        x, y = one, other
    found.tree(x, y, told)


def _number(value: Value) -> Any:
    """The number that a value is or holds; None for anything else."""
    if is_tensor(value):
        try:
            return value.item() if prod(value.shape) == 1 else None
        except ReadError:
            return None
    return value if isinstance(value, (bool, int, float, complex)) else None


def _kind_of(value: Value) -> str | None:
    if value is None:
        return None
    return _about(value) if is_tensor(value) else type(value).__name__


# --- the rest ---------------------------------------------------------------------------------------------


def _besides(found: Found, a: Side, b: Side) -> None:
    if a.step != b.step and None not in (a.step, b.step):
        found.add(Difference("step", "checkpoint", None, a.step, b.step))
    if a.objects is None or b.objects is None:
        return
    for name in {**a.objects, **b.objects}:
        told = Difference("object", safe_text(name))
        found.tree(a.objects.get(name), b.objects.get(name), told)
