"""What `optstate show` prints for people."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from optstate.cli.terminal import quoted, terminal_width
from optstate.formats.checkpoint import Checkpoint
from optstate.state.journal import journal_table
from optstate.state.table import ROWS, Measured, state_table
from optstate.state.tensors import Value, is_tensor, nbytes
from optstate.text import count, listing, safe_text, size

_UNPLACED = 20
"""Entries of no parameter that are listed unless every row is asked for."""


_JOURNAL = 10
"""Entries of the journal that are shown unless every row is asked for."""


def show_text(
    checkpoint: Checkpoint, names: Sequence[str] | None, measured: Measured, *, with_heads: bool, every_row: bool
) -> tuple[str, Sequence[str]]:
    """The whole page, and what could not be read of it.

    It has what was opened, the table of the given names (None: of all, with the journal), and the heads of their slots.
    On a terminal the table has `ROWS` rows unless `every_row` is set; anywhere else it is complete.
    """
    limit = ROWS if sys.stdout.isatty() and not every_row else None
    parts = [_about(checkpoint)]
    unread = list(checkpoint.unread)
    if not checkpoint.state.optimizers:
        parts.append("no optimizer state: nothing here could restore a momentum")
    elif measured or not with_heads:
        table = state_table(checkpoint.state, names, limit, measured)
        unread += table.unread
        parts.append(table.text(terminal_width()))
    if with_heads:
        parts += [str(checkpoint.state[name]) for name in names or ()]
    elif checkpoint.unplaced:
        parts.append(_unplaced(checkpoint.unplaced, _UNPLACED if limit else None))
    if names is None and checkpoint.journal:
        parts.append(journal_table(checkpoint.journal, _JOURNAL if limit else None).text())
    if unread:
        parts.append("\n".join(f"not read: {safe_text(each, 1000)}" for each in unread))
    return "\n\n".join(parts), unread


def _about(checkpoint: Checkpoint) -> str:
    """What was opened, what is in it besides, and what its reader has to say."""
    step = [] if checkpoint.step is None else [f"step {checkpoint.step:,}"]
    weights = f"{count(len(checkpoint.weights), 'weight')}, {size(sum(map(nbytes, checkpoint.weights.values())))}"
    objects = [f"objects: {listing(checkpoint.objects)}"] if checkpoint.objects else []
    return "\n".join(
        [
            " · ".join(
                [safe_text(checkpoint.path), safe_text(checkpoint.format), *step, size(bytes_on_disk(checkpoint.path))]
            ),
            " · ".join([weights, *objects]),
            *(f"note: {safe_text(note, 1000)}" for note in checkpoint.notes),
        ]
    )


def _unplaced(entries: Mapping[str, Value], limit: int | None) -> str:
    """State of no parameter, by its raw path in the file."""
    shown = [f"  {safe_text(path)}  {_briefly(value)}" for path, value in list(entries.items())[:limit]]
    hidden = [f"  … {len(entries) - len(shown):,} more"] if len(entries) > len(shown) else []
    return "\n".join(["state of no parameter that could be told:", *shown, *hidden])


def _briefly(value: Value) -> str:
    return f"{value.dtype} {list(value.shape)}" if is_tensor(value) else safe_text(value, 60)


def bytes_on_disk(path: Path) -> int:
    """The size of a file, or of all files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def next_command(checkpoint: Checkpoint, names: Sequence[str], *, values_shown: bool, stats_shown: bool) -> str:
    """What to type next."""
    show = f"optstate show {quoted(checkpoint.path)}"
    if not checkpoint.state.optimizers:
        return "resuming from this file starts every momentum from zero; look for one that the run saved to resume"
    if values_shown:
        return f"{show} --stats   norms, non-finite values and zeros"
    elided = f"{show} --all   every row\n      " if sys.stdout.isatty() and len(names) > ROWS else ""
    with_slots = next((name for name in names if checkpoint.state[name].slots), None)
    if with_slots is None:
        return f"{elided}{show} --json   the same for programs"
    if checkpoint.format.startswith("optstate/") and not stats_shown:
        return f"{elided}optstate verify {quoted(checkpoint.path)}   is every byte as it was saved?"
    return f"{elided}{show} --values {quoted(with_slots)}   the first values of its slots"


def where_to_look(checkpoint: Checkpoint) -> str:
    """The command that explains what the reader saw, with the codes."""
    codes = list(dict.fromkeys(clue.code for clue in checkpoint.clues))
    pinning = "; --model FILE:FUNCTION pins names" if "M201" in codes else ""
    return f"optstate doctor {quoted(checkpoint.path)}   {', '.join(codes)}{pinning}"
