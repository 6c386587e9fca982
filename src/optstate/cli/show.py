"""`optstate show`: what a checkpoint holds of an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from optstate.cli.model_option import built, model_option, pinned
from optstate.cli.show_json import show_document
from optstate.cli.show_text import next_command, show_text, where_to_look
from optstate.cli.terminal import Progressing, debug_option, hint, json_option, quoted, say, say_json
from optstate.errors import NoSuchParameter, NothingSelected
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.state.collection import without_collection
from optstate.state.optimizer_state import OptimizerState
from optstate.state.stats import stats_of
from optstate.state.table import ROWS, Measured
from optstate.state.tensors import is_tensor, nbytes
from optstate.text import count, safe_text

PARTLY = 1


@click.command(
    epilog="""\b
PATTERN is a glob in which * crosses dots (encoder.*.weight), a prefix with a dot
at its end (encoder.), or a regular expression after re: (re:.*[0-9]).

\b
Exit codes:
  0  shown
  1  shown in part: what could not be read is listed
  2  it cannot be read, or the command line is wrong

\b
Examples:
  optstate show runs/a/step-420
  optstate show checkpoint.pt --select 'encoder.*' --exclude '*.bias'
  optstate show checkpoint.pt --stats
  optstate show checkpoint.pt --values encoder.0.weight
  optstate show checkpoint.pt --model train.py:build
  optstate show checkpoint.pt --json | python -m json.tool"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--select", "patterns", multiple=True, metavar="PATTERN", help="Only these parameters; may be repeated.")
@click.option("--exclude", "excluded", multiple=True, metavar="PATTERN", help="Not these; may be repeated.")
@click.option("--values", "named", multiple=True, metavar="NAME", help="The first values of each slot of a parameter.")
@click.option("--stats", "with_stats", is_flag=True, help="Read all values: norms, non-finite values, zeros.")
@click.option("--all", "every_row", is_flag=True, help=f"Every row, not only {ROWS}, on a terminal too.")
@model_option
@json_option
@debug_option
@without_collection()
def command(
    *,
    file: Path,
    patterns: Sequence[str],
    excluded: Sequence[str],
    named: Sequence[str],
    with_stats: bool,
    every_row: bool,
    factory: str | None,
    as_json: bool,
) -> int:
    """Show what a checkpoint holds of an optimizer, by parameter name.

    FILE is a checkpoint, a file or a folder, whatever program wrote it. Only its header is read, unless --stats
    or --values asks for more; nothing in it is executed. Where it has no names, --model names its parameters by those
    of your own program.
    """
    if named and (patterns or excluded):
        raise click.UsageError("--values names its parameters itself: leave out --select and --exclude")
    checkpoint = open_checkpoint(file)
    if factory is not None:
        checkpoint = pinned(checkpoint, built(factory))
    names = _chosen(checkpoint, named, patterns, excluded)
    # What --values shows is read to its end as well, for only then a checksum says whether it is what was saved.
    measured = _measure(checkpoint.state, names) if with_stats or named else {}
    if not with_stats:
        measured = {}
    if as_json:
        document = show_document(checkpoint, names, measured, with_heads=bool(named))
        say_json(document)
        return PARTLY if document["unread"] else 0
    every = not (named or patterns or excluded)
    page, unread = show_text(
        checkpoint, None if every else names, measured, with_heads=bool(named), every_row=every_row
    )
    say(page)
    if checkpoint.clues:
        hint(where_to_look(checkpoint))
    hint(next_command(checkpoint, names, values_shown=bool(named), stats_shown=with_stats))
    return PARTLY if unread else 0


def _chosen(
    checkpoint: Checkpoint, named: Sequence[str], patterns: Sequence[str], excluded: Sequence[str]
) -> list[str]:
    """The names that the options mean; what they do not match is explained in terms of the command line."""
    try:
        return _names(checkpoint.state, named, patterns, excluded)
    except (NoSuchParameter, NothingSelected) as error:
        error.where = safe_text(checkpoint.path)
        error.todo = f"`optstate show {quoted(checkpoint.path)}` lists every name"
        if not checkpoint.state.optimizers:
            error.found = f"{count(len(checkpoint.weights), 'weight')} and no optimizer state at all"
        raise


def _names(state: OptimizerState, named: Sequence[str], patterns: Sequence[str], excluded: Sequence[str]) -> list[str]:
    """Each option must mean at least one name; all but `named` keep the state's order."""
    if named:
        return [state[name].name for name in dict.fromkeys(named)]
    dropped = _matching(state, excluded)
    kept = [name for name in (_matching(state, patterns) if patterns else state) if name not in dropped]
    if dropped and not kept:
        raise NothingSelected("--exclude leaves nothing", found=f"{count(len(dropped), 'parameter')} excluded")
    return kept


def _matching(state: OptimizerState, patterns: Sequence[str]) -> dict[str, None]:
    """The names that match any of the patterns, in the state's order."""
    matching = {name for pattern in patterns for name in state.select(pattern).names}
    return {name: None for name in state if name in matching}


def _measure(state: OptimizerState, names: Sequence[str]) -> Measured:
    """The statistics of every tensor of these parameters, read one block at a time."""
    slots = [slot for name in names for slot in state[name].slots.values()]
    refs = {(slot.parameter, slot.key): slot.value for slot in slots if is_tensor(slot.value)}
    done, total = 0, sum(map(nbytes, refs.values()))
    measured = {}
    with Progressing("reading") as progress:
        for place, found in stats_of(refs):
            measured[place] = found
            done += nbytes(refs[place])
            progress.at(done, total)
    return measured
