"""Carrying verbs out: each chunk is kept, measured, written to and measured again while the processor has it at hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from optstate.live.backup import Buffers, apart, flat
from optstate.live.batch import Batch
from optstate.live.deeds import Deed, Mark
from optstate.live.effect import Touched, picked, sample
from optstate.live.fence import cross
from optstate.live.measuring import square
from optstate.live.readout import Readout
from optstate.live.rows import Rows
from optstate.live.transaction import Transaction
from optstate.live.verbs import Work, Write, pieces


class Writer:
    """Writes for one edit, and remembers what was there before.

    Without `backup` it keeps a small sample only, from which the effect is told and nothing can be put back.
    """

    def __init__(self, buffers: Buffers, *, backup: bool, norms: bool) -> None:
        self.transaction = Transaction(buffers)
        self.readout = Readout()
        self.seen: dict[int, int] = {}
        """id of each tensor that was written to → its version before."""
        self.rewritten: list[tuple[torch.optim.Optimizer, torch.Tensor, str]] = []
        """Parameters whose entry got another key or number."""
        self.regrouped = False
        """Whether anything was done to param groups."""
        self._backup = backup
        self._norms = norms
        self._entries: dict[int, Mapping[str, Any]] = {}
        self._samples: dict[int, torch.Tensor] = {}

    def do(self, work: Work, deed: Deed) -> None:
        """Carry one work out."""
        cross()
        batch = work.batch
        for key, value in work.hyperparameters.items():
            self.transaction.hyperparameter(batch.place.group, key, value)
            self.regrouped = True
        if work.rewrite is not None:
            self._rewrite(batch, work.rewrite)
            deed.slots += len(batch.names)
        if work.write is not None:
            for chunk in batch.chunks():
                deed.marks.append(self._write(work.write, batch, chunk, deed))
            deed.slots += len(batch.names)

    def take_samples(self, touched: Touched) -> None:
        """Keep a sample of what is about to be written to, where no backup is kept."""
        if self._backup:
            return
        for number in picked(touched):
            entry = touched.place.optimizer.state.get(touched.parameters[number], {})
            for value in entry.values():
                if isinstance(value, torch.Tensor) and value.layout is torch.strided and id(value) not in self.seen:
                    self._samples.setdefault(id(value), sample(value))

    def before(self, optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, Any]:
        """A parameter's slots as they were: tensors from the backup, or as samples."""
        entry = self._entries.get(id(parameter), optimizer.state.get(parameter, {}))
        return {key: self._old(value) for key, value in entry.items()}

    def _old(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or id(value) not in self.seen:
            return value
        return self._samples[id(value)] if id(value) in self._samples else self.transaction.backup.of(value)

    def _rewrite(self, batch: Batch, rewrite: Callable[[dict[str, Any], int], None]) -> None:
        optimizer = batch.place.optimizer
        for number, parameter in enumerate(batch.parameters):
            self.transaction.before_entry(optimizer, parameter)
            self.rewritten.append((optimizer, parameter, batch.names[number]))
            entry = optimizer.state[parameter]
            self._entries.setdefault(id(parameter), dict(entry))
            rewrite(entry, number)
            if not entry:
                del optimizer.state[parameter]

    def _write(self, write: Write, batch: Batch, chunk: range, deed: Deed) -> Mark:
        tensors: list[torch.Tensor] = batch.values[chunk.start : chunk.stop]
        kept = self._keep(tensors)
        if deed.verb.joined and deed.rows is None and len(tensors) > 1:
            parts = [flat(tensors) if kept is None else kept.clone()]
        else:
            parts = pieces(batch, chunk, deed.rows)
        old = kept
        if deed.rows is not None:
            old = flat(parts).clone()
        before = None
        if self._norms:
            before = self.readout.ask(square(flat(parts) if old is None else old))
        write(batch, chunk, parts)
        if deed.rows is not None:
            _put_rows(batch, chunk, parts, deed.rows)
        elif len(parts) < len(tensors):
            torch._foreach_copy_(tensors, list(apart(parts[0], tensors)))
        new = flat(parts)
        mark = Mark(batch, chunk, lambda: old, lambda: new, before)
        deed.elements += new.numel()
        mark.measure(self.readout, new, norms=self._norms)
        return mark

    def _keep(self, tensors: list[torch.Tensor]) -> torch.Tensor | None:
        """Back up what is not yet; returns the elements where all of them were backed up just now."""
        ids = list(map(id, tensors))
        known = not self.seen.keys().isdisjoint(ids)
        now = zip(ids, [tensor._version for tensor in tensors], strict=True)
        self.seen.update(now if not known else [(each, version) for each, version in now if each not in self.seen])
        if not self._backup:
            return None
        if not known:
            return self.transaction.backup.keep(tensors)
        self.transaction.before_write(tensors)
        return None


def _put_rows(batch: Batch, chunk: range, parts: list[torch.Tensor], rows: Rows) -> None:
    for number, part in zip(chunk, parts, strict=True):
        tensor = batch.values[number]
        tensor.index_copy_(0, rows.of(tensor, batch.path(number)), part)
