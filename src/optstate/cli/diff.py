"""`optstate diff`: what is different between two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optstate.cli.model_option import built, model_option, named_by
from optstate.cli.terminal import Progressing, debug_option, hint, json_option, quoted, say, say_json
from optstate.formats.diff import differences
from optstate.formats.diff_report import Diff
from optstate.formats.difference import PARTS, Difference, Part, Side, side_of
from optstate.formats.opening import open_checkpoint
from optstate.state.plain import plain
from optstate.text import safe_text

SCHEMA = "optstate.diff/1"
DIFFERENT = 1
ROWS = 40


@click.command(
    epilog="""\b
Exit codes, as those of diff(1):
  0  the same: all was read, and every bit of it is equal
  1  different, or a part of them could not be read
  2  one of them cannot be opened, or the command line is wrong

\b
Examples:
  optstate diff runs/a/step-400 runs/a/step-420
  optstate diff lightning.ckpt checkpoint-420/ --only slots
  optstate diff before.pt after.pt --headers
  optstate diff a.pt b.pt --json | python -m json.tool"""
)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--only", type=click.Choice(PARTS), help="Compare the optimizer's slots, the weights, or the groups alone."
)
@click.option("--headers", is_flag=True, help="Read no values: names, shapes, types and groups alone.")
@click.option("--all", "every_line", is_flag=True, help=f"Every difference, not only {ROWS} lines of them.")
@model_option
@json_option
@debug_option
def command(
    *, a: Path, b: Path, only: Part | None, headers: bool, every_line: bool, factory: str | None, as_json: bool
) -> int:
    """Show what is different between two checkpoints, the gravest first.

    A and B are files or directories of any format that `optstate show` opens, and need not be of the same one.
    Parameters are held against each other by name; one that was renamed is known by its content. Values are compared
    bit by bit, read in blocks and never held in memory as a whole.
    """
    one, other = open_checkpoint(a), open_checkpoint(b)
    if factory is not None:
        made = built(factory)
        one, other = named_by(one, made), named_by(other, made)
    with Progressing("comparing") as progress:
        found = differences(side_of(one), side_of(other), only, values=not headers, progress=progress.at)
    if as_json:
        say_json(diff_document(found))
    else:
        say(found.text(None if every_line else ROWS))
        _hint(found, a, b)
    return 0 if found.ok else DIFFERENT


def _hint(found: Diff, a: Path, b: Path) -> None:
    diff = f"optstate diff {quoted(a)} {quoted(b)}"
    if found.ok and not found.values:
        hint(f"{diff}   reads the values too")
    elif len(found.text(None)) > len(found.text(ROWS)):
        hint(f"{diff} --all   every difference")


def diff_document(found: Diff) -> dict[str, Any]:
    """A comparison in JSON's own types, as docs/schema says."""
    return {
        "schema": SCHEMA,
        "a": _side(found.a),
        "b": _side(found.b),
        "only": found.only,
        "values": found.values,
        "ok": found.ok,
        "tensors": found.tensors,
        "bytes": found.nbytes,
        "counts": found.counts(),
        "differences": [_difference(difference) for difference in found.differences],
        "notes": list(found.notes),
    }


def _side(side: Side) -> dict[str, Any]:
    return {
        "path": side.label,
        "format": side.format,
        "step": side.step,
        "parameters": len(side.state),
        "weights": None if side.weights is None else len(side.weights),
    }


def _difference(difference: Difference) -> dict[str, Any]:
    change = difference.change
    return {
        "kind": difference.kind,
        "name": difference.name,
        "key": difference.key,
        "a": _value(difference.a),
        "b": _value(difference.b),
        "change": None
        if change is None
        else {
            "elements": change.elements,
            "differing": change.differing,
            "max_abs": plain(change.max_abs),
            "relative": change.relative,
            "cosine": change.cosine,
            "nonfinite": list(change.nonfinite),
        },
    }


def _value(value: Any) -> Any:
    """What one side has; containers and records as text, for their parts are differences of their own."""
    return safe_text(value) if isinstance(value, dict) else plain(value)
