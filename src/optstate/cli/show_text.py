"""What `optstate show` prints for people."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from optstate.cli.terminal import quoted, terminal_width
from optstate.formats.checkpoint import Checkpoint
from optstate.state.table import ROWS, Measured, state_table
from optstate.state.tensors import nbytes
from optstate.text import count, listing, safe_text, size


def show_text(
    checkpoint: Checkpoint, names: Sequence[str] | None, measured: Measured, *, with_heads: bool, every_row: bool
) -> str:
    """The whole page: what was opened, the table of the given names (None: of all), and the heads of their slots.

    On a terminal the table has `ROWS` rows unless `every_row` is set; anywhere else it is complete.
    """
    parts = [_about(checkpoint)]
    if not checkpoint.state.optimizers:
        parts.append("no optimizer state: nothing here could restore a momentum")
    elif measured or not with_heads:
        limit = ROWS if sys.stdout.isatty() and not every_row else None
        parts.append(state_table(checkpoint.state, names, limit, measured).text(terminal_width()))
    if with_heads:
        parts += [str(checkpoint.state[name]) for name in names or ()]
    return "\n\n".join(parts)


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
    if checkpoint.path.is_dir() and not stats_shown:
        return f"{elided}optstate verify {quoted(checkpoint.path)}   is every byte as it was saved?"
    return f"{elided}{show} --values {quoted(with_slots)}   the first values of its slots"
