"""`reset_` in a file: slots as if the optimizer had never stepped, with those that mean something only together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from math import prod
from typing import Any

from optstate.errors import EditError
from optstate.formats.containers.sparse import SparseRef
from optstate.optimizers.resets import REFERENCE_ROWS, Copy, Fill, Fresh, Remove, fresh, row_fresh, together
from optstate.optimizers.spec import OptimizerSpec
from optstate.state.roles import ROLES
from optstate.state.slot import Slot
from optstate.state.tensors import DTYPES, TensorRef, Value, is_tensor
from optstate.store.offline.draft import Aim, Draft, numbers
from optstate.store.offline.edited import EditedTensor, Filled, rows_only, widened
from optstate.store.offline.rows import chosen_rows
from optstate.store.offline.verbs import Touch, put
from optstate.text import listing, safe_text

REFERENCE = 1 << 20
"""Elements at most of which the mean is taken that reset rows get, so that a table of any width fits into memory."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Make slots as if fresh, all their companions too, except those that `keep` names by key or role."""

    keep: tuple[str, ...]
    name: str = "reset_"
    alike: bool = True

    @property
    def arguments(self) -> Mapping[str, Any]:
        """As the live verb's."""
        return {"keep": list(self.keep)} if self.keep else {}

    def act(self, draft: Draft, aim: Aim) -> Iterator[Touch]:
        """Refuses an optimizer that the registry does not know, and a part of what only means something whole."""
        _refuse_part(draft, aim)
        chosen = {name: self._keys(draft, name, keys, aim) for name, keys in draft.keys(aim)}
        self._check_kept(draft, aim)
        if aim.rows is None:
            self._reset_counts(draft, [name for name, keys in chosen.items() if keys])
        for name, keys in chosen.items():
            for key in keys:
                slot = replace(draft.state[name].slots[key], value=draft.entry(name)[key])
                yield from _whole(draft, slot, chosen) if aim.rows is None else _some(draft, slot, aim)

    def _keys(self, draft: Draft, name: str, keys: Sequence[str], aim: Aim) -> tuple[str, ...]:
        spec = _spec(draft, name)
        known = [key for key in keys if key in spec.slots] if aim.whole else keys
        present = tuple(draft.present(name))
        return tuple(key for key in together(spec, known, present) if not self._is_kept(spec, key))

    def _is_kept(self, spec: OptimizerSpec, key: str) -> bool:
        return key in self.keep or (key in spec.slots and spec.slots[key].role in self.keep)

    def _check_kept(self, draft: Draft, aim: Aim) -> None:
        keys = [key for name in aim.names for key in _spec(draft, name).slots] if self.keep else []
        for word in self.keep:
            if word not in keys and word not in ROLES:
                near = get_close_matches(word, [*keys, *ROLES], n=1)
                raise EditError(
                    f"there is nothing called {safe_text(word)!r} to keep",
                    expected=f"a role, or one of {listing(dict.fromkeys(keys), 8)}",
                    todo=f"did you mean {near[0]!r}?" if near else None,
                )

    def _reset_counts(self, draft: Draft, names: Sequence[str]) -> None:
        """A step that is counted for a whole group is reset with all of it, or not at all."""
        for name in names:
            facts, counted = draft.state[name].facts, _spec(draft, name).group_step
            if counted is None or counted not in draft.group(name) or {"step", counted} & set(self.keep):
                continue
            members = draft.state.optimizers[facts.optimizer].groups[facts.group].parameters
            if any(draft.state[each].slots and each not in names for each in members):
                raise EditError(
                    f"{safe_text(name)} shares its step count with parameters that are not reset",
                    found=f"{safe_text(counted)}={safe_text(draft.group(name)[counted])} in the param group",
                    todo='reset the whole group, or keep the step: reset_(keep="step")',
                )
            draft.groups.setdefault((facts.optimizer, facts.group), {})[counted] = 0


def reset(keep: str | Sequence[str]) -> Reset:
    """Make as if fresh."""
    return Reset((keep,) if isinstance(keep, str) else tuple(keep))


def _spec(draft: Draft, name: str) -> OptimizerSpec:
    spec = draft.spec(name)
    if spec is None:
        raise EditError(
            f"what a fresh state of {safe_text(name)} is, nobody said",
            found=f"an optimizer that is {safe_text(draft.state.optimizers[draft.state[name].facts.optimizer].short_name)}",
            todo="describe it with optstate.register(...), or edit slots by their key",
        )
    return spec


def _refuse_part(draft: Draft, aim: Aim) -> None:
    """Refuse some parameters of an optimizer whose state is laid out over all of them."""
    for name, info in draft.state.optimizers.items():
        every = [each for each in draft.state if draft.state[each].facts.optimizer == name]
        meant = set(every) & set(aim.names)
        if meant and len(meant) < len(every) and _spec(draft, every[0]).order_matters:
            raise EditError(
                f"the state of {safe_text(info.short_name)} is laid out over all its parameters",
                found=f"{len(meant)} of {len(every)} parameters",
                todo='select all of them: "*"',
            )


def _start(draft: Draft, slot: Slot) -> Fresh:
    return fresh(_spec(draft, slot.parameter), slot.key, numbers(draft.group(slot.parameter)))


def _whole(draft: Draft, slot: Slot, chosen: Mapping[str, Sequence[str]]) -> Iterator[Touch]:
    start = _start(draft, slot)
    if isinstance(start, Remove) and start.whole_group and not _whole_group(draft, slot, chosen):
        start = Fill(0.0)
    if isinstance(start, Remove):
        yield Touch(slot.parameter, slot.key, draft.entry(slot.parameter).pop(slot.key), None)
    else:
        yield put(draft, slot.parameter, slot.key, _filled(draft, slot, start))


def _whole_group(draft: Draft, slot: Slot, chosen: Mapping[str, Sequence[str]]) -> bool:
    facts = draft.state[slot.parameter].facts
    members = draft.state.optimizers[facts.optimizer].groups[facts.group].parameters
    return all(slot.key in chosen.get(each, ()) for each in members if slot.key in draft.state[each].slots)


def _filled(draft: Draft, slot: Slot, start: Fill | Copy) -> Value:
    value: Any = slot.value
    if isinstance(value, SparseRef) and start == Fill(0.0):
        return replace(value, values=Filled(value.values, 0.0))
    if not is_tensor(value):
        if isinstance(start, Fill) and isinstance(value, (int, float)):
            return type(value)(start.value)
        raise EditError(f"{slot.path} cannot be made fresh", found=f"a {type(value).__name__}")
    if value.dtype not in DTYPES or isinstance(value, SparseRef):
        raise EditError(
            f"{slot.path} cannot be made fresh in a file", found=f"values stored as {safe_text(value.dtype, 40)}"
        )
    return Filled(value, start.value) if isinstance(start, Fill) else EditedTensor(value, _other, _weight(draft, slot))


def _weight(draft: Draft, slot: Slot) -> TensorRef:
    weight = draft.weight(slot.parameter)
    if weight is None or weight.shape != slot.shape:
        raise EditError(
            f"a fresh {slot.path} is a copy of the weight, which is not in the file",
            todo="edit a checkpoint that has the weights, or the running optimizer",
        )
    return weight


def _other(_: Any, other: Any, __: int) -> Any:
    return other


# --- rows that share a step count --------------------------------------------------------------------------


def _some(draft: Draft, slot: Slot, aim: Aim) -> Iterator[Touch]:
    value: Any = slot.value
    spec = _spec(draft, slot.parameter)
    if not is_tensor(value) or spec.slots[slot.key].shape == "scalar":
        return  # one number for all rows stays
    if value.dtype not in DTYPES or isinstance(value, SparseRef):
        raise EditError(f"{slot.path} has no rows that could be reset apart", todo="reset the whole parameter")
    chosen = chosen_rows(aim.rows, value.shape, slot.path)
    new = _row_start(draft, slot, spec, chosen)
    if new is not None:
        width = prod(value.shape[1:])
        yield put(draft, slot.parameter, slot.key, _with_rows(draft, slot, new, chosen, width))


def _row_start(draft: Draft, slot: Slot, spec: OptimizerSpec, chosen: Any) -> Any:
    """What the rows get: of the others only as many are read as make a reference."""
    import numpy as np

    own, others = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    most = min(REFERENCE_ROWS, max(1, REFERENCE // prod(slot.value.shape[1:] or (1,))))  # type: ignore[union-attr]
    others = others[:: max(1, -(-len(others) // most))]
    picked = np.sort(np.concatenate([own, others]))
    rows, rest = np.searchsorted(picked, own), np.searchsorted(picked, others)
    return row_fresh(spec, slot.key, _gathered(slot.value, picked), rows, rest, numbers(draft.group(slot.parameter)))


def _gathered(value: Any, picked: Any) -> Any:
    """Some rows of a tensor, in rising order, in a type that numpy computes in; the rest is read and let go."""
    import numpy as np

    width = prod(value.shape[1:])
    wanted = np.zeros(value.shape[0], bool)
    wanted[picked] = True
    place, found = 0, []
    for block in value.blocks():
        found.append(widened(block)[wanted[(place + np.arange(block.size)) // max(width, 1)]])
        place += block.size
    return np.concatenate(found).reshape(len(picked), *value.shape[1:]) if found else np.empty((0, *value.shape[1:]))


def _with_rows(draft: Draft, slot: Slot, new: Any, chosen: Any, width: int) -> EditedTensor:
    value: Any = slot.value
    if isinstance(new, Fill):
        return EditedTensor(value, rows_only(lambda block, _, __: block * 0 + new.value, chosen, width))
    if isinstance(new, Copy):
        return EditedTensor(value, rows_only(_other, chosen, width), _weight(draft, slot))
    return EditedTensor(value, _placed(new.reshape(-1), chosen, width))


def _placed(values: Any, chosen: Any, width: int) -> Any:
    """A change that gives the chosen rows these values, which stand one row behind the other."""
    import numpy as np

    own = np.flatnonzero(chosen)

    def changed(block: Any, _: Any, place: int) -> Any:
        index = place + np.arange(block.size)
        row = index // width
        source = np.where(chosen[row], np.searchsorted(own, row) * width + index % width, 0)
        return np.where(chosen[row], values[source], block)

    return changed
