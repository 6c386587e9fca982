"""`reset_`: slots as if the optimizer had never stepped, together with those that mean something only with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch

from optstate.errors import EditError
from optstate.live.batch import Batch, Keys, KeysOf
from optstate.live.rows import Rows
from optstate.live.verbs import ALL, Choice, Verb, Work, Write
from optstate.optimizers.registry import qualified_name
from optstate.optimizers.resets import Copy, Fill, Fresh, Remove, fresh, fresh_group, row_fresh, together
from optstate.optimizers.spec import OptimizerSpec
from optstate.state.roles import ROLES
from optstate.text import listing, safe_text


def reset(keep: str | Sequence[str]) -> Reset:
    """Make slots as if fresh, all their companions too, except those that `keep` names by key or role."""
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    return Reset("reset_", {"keep": list(kept)} if kept else {}, _no_write, alike=True, kept=kept)


@dataclass(frozen=True, slots=True)
class Reset(Verb):
    """The verb `reset_`, whose slots and writes depend on the rows of the registry."""

    kept: tuple[str, ...] = ()

    def keys(self, choice: Choice) -> Keys:
        """The slots chosen with their companions, those of a kept role or key left out."""

        def keys(spec: OptimizerSpec | None) -> KeysOf:
            if spec is None:
                return list  # refused when it is known whose they are
            chosen, slots = choice.keys(spec), spec.slots

            def keys_of(entry: Mapping[str, Any]) -> list[str]:
                known = [key for key in chosen(entry) if key in slots or choice != ALL]
                keys = (key for key in together(spec, known, tuple(entry)) if key not in _CODES)
                return [key for key in keys if not self._is_kept(spec, key)]

            return keys_of

        return keys

    def _is_kept(self, spec: OptimizerSpec, key: str) -> bool:
        slot = spec.slots.get(key)
        return key in self.kept or (slot is not None and slot.role in self.kept)

    def works(self, batches: Sequence[Batch], rows: Rows | None) -> list[Work]:
        """Refuses an optimizer that the registry does not know, a part of what only means something whole."""
        self._check_kept(batches)
        found: list[Work] = []
        for batch in batches:
            if batch.place.spec is None:
                raise _unknown(batch)
            found += _whole(batch) if rows is None else _some(batch, rows)
        return found + ([] if rows is not None else self._counts(batches))

    def _counts(self, batches: Sequence[Batch]) -> list[Work]:
        """A step that is counted for a whole group is reset with all of it, or not at all."""
        groups: dict[int, list[Batch]] = {}
        for batch in batches:
            groups.setdefault(id(batch.place.group), []).append(batch)
        found = []
        for first, *others in groups.values():
            group, spec = first.place.group, first.place.spec
            counts = {} if spec is None else fresh_group(spec, group, first.place.optimizer.defaults)
            if not counts or {"step", *counts} & set(self.kept):
                continue
            names = {name for batch in (first, *others) for name in batch.names}
            if len(names) < _with_state(first):
                raise EditError(
                    f"{safe_text(first.names[0])} shares its step count with parameters that are not reset",
                    found=f"{', '.join(f'{key}={safe_text(group[key])}' for key in counts)} in the param group",
                    todo='reset the whole group, or say reset_(keep="step")',
                )
            found.append(Work(first, hyperparameters=counts))
        return found

    def _check_kept(self, batches: Sequence[Batch]) -> None:
        keys = {key for batch in batches if batch.place.spec for key in batch.place.spec.slots}
        for word in self.kept:
            if batches and word not in keys and word not in ROLES:
                near = get_close_matches(word, [*keys, *ROLES], n=1)
                raise EditError(
                    f"there is nothing called {safe_text(word)!r} to keep",
                    expected=f"a role, or one of {listing(sorted(keys), 8)}",
                    todo=f"did you mean {near[0]!r}?" if near else None,
                )


_CODES = frozenset({"absmax1", "absmax2", "qmap1", "qmap2"})
"""How bitsandbytes reads its codes: the scales are reset as what the codes are written with, the maps never change, and
all parameters share them."""


def _with_state(batch: Batch) -> int:
    """How many parameters of the group have any state."""
    return sum(bool(batch.place.optimizer.state.get(parameter)) for parameter in batch.place.group["params"])


def _no_write(_batch: Batch, _chunk: range, _tensors: list[torch.Tensor]) -> None:
    """Never called: each batch of a reset has a write of its own."""


def _unknown(batch: Batch) -> EditError:
    return EditError(
        f"what a fresh {batch.path()} is, nobody said",
        found=f"{safe_text(qualified_name(type(batch.place.optimizer)))} is not in the registry",
        todo="describe it with optstate.register(...), or edit slots by their key",
    )


def _fresh(batch: Batch) -> Fresh:
    spec = batch.place.spec
    if spec is None:
        raise _unknown(batch)
    return fresh(spec, batch.key, batch.place.group, batch.place.optimizer.defaults)


def _whole(batch: Batch) -> list[Work]:
    start = _fresh(batch)
    if isinstance(start, Remove) and start.whole_group and len(batch.names) < _with_state(batch):
        start = Fill(0.0)
    if isinstance(start, Remove):
        return [Work(batch, rewrite=lambda entry, _: entry.pop(batch.key, None))]
    if batch.form == "foreign" or (batch.form == "parts" and start != Fill(0.0)):
        raise EditError(f"{batch.path()} cannot be made fresh in place", found=f"a {type(batch.values[0]).__name__}")
    if batch.form == "number":
        return [Work(batch, rewrite=_number(batch.key, start))]
    return [Work(batch, _filling(start))]


def _number(key: str, start: Fresh) -> Callable[[dict[str, Any], int], None]:
    def rewrite(entry: dict[str, Any], _: int) -> None:
        entry[key] = type(entry[key])(start.value if isinstance(start, Fill) else 0)

    return rewrite


def _filling(start: Fill | Copy) -> Write:
    def write(batch: Batch, chunk: range, tensors: list[torch.Tensor]) -> None:
        if isinstance(start, Copy):
            torch._foreach_copy_(
                tensors, [parameter.detach() for parameter in batch.parameters[chunk.start : chunk.stop]]
            )
        elif start.value == 0.0:
            torch._foreach_zero_(tensors)
        else:
            for tensor in tensors:
                tensor.fill_(start.value)

    return write


def _some(batch: Batch, rows: Rows) -> list[Work]:
    """Rows get what a shared step count implies; one number for all rows stays."""
    slot, spec = batch.slot, batch.place.spec
    if slot is None or spec is None or batch.form == "number" or slot.shape == "scalar":
        return []
    if batch.form != "dense":
        raise EditError(f"{batch.path()} has no rows that could be reset apart", todo="reset the whole parameter")
    group, defaults = batch.place.group, batch.place.optimizer.defaults

    def start(number: int) -> Any:
        value, path = batch.values[number], batch.path(number)
        plain = torch.view_as_real(value) if value.is_complex() else value
        found = row_fresh(spec, batch.key, plain, rows.of(value, path), rows.rest(value, path), group, defaults)
        return torch.view_as_complex(found) if value.is_complex() and isinstance(found, torch.Tensor) else found

    def write(batch: Batch, chunk: range, tensors: list[torch.Tensor]) -> None:
        for number, piece in zip(chunk, tensors, strict=True):
            new = start(number)
            if isinstance(new, Fill):
                piece.fill_(new.value)
            elif isinstance(new, Copy):
                parameter = batch.parameters[number].detach()
                piece.copy_(parameter.index_select(0, rows.of(parameter, batch.path(number))))
            else:
                piece.copy_(new)

    return [] if start(0) is None else [Work(batch, write)]
