"""`optstate edit`: the verbs of a live state on a checkpoint, into another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any

import click

from optstate.cli.model_option import built, model_option, named_by
from optstate.cli.terminal import Progressing, debug_option, hint, json_option, quoted, say, say_error, say_json
from optstate.errors import EditRefused, NothingSelected, Unsaveable
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.state.roles import ROLES
from optstate.store.convert import TARGETS, Target
from optstate.store.edit import FileEdit, FileTarget, Options
from optstate.text import count, safe_text

REFUSED = 1
SCHEMA = "optstate.edit/1"
MOST_ROWS = 1 << 26


def _no_option(_: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """What an option got, unless that is the next option, as where its slot was forgotten."""
    taken = next((value for value in values if value.startswith("-")), None)
    if taken is not None:
        wants = param.make_metavar(_)
        raise click.UsageError(f"{param.opts[0]} wants {wants}, and {safe_text(taken, 60)} came next")
    return values


@click.command(
    epilog="""\b
SLOT is a role (momentum, second_moment, step, ...) or a key of the optimizer
(exp_avg). Several verbs act in the order in which they are listed here.
PATTERN is a glob in which * crosses dots (encoder.*.weight), a prefix with a dot
at its end (encoder.), or a regular expression after re: (re:.*[0-9]).

\b
Exit codes:
  0  written, or with --dry-run: it would be
  1  refused: values or the next update would be wrong, or B cannot hold all of A
  2  A cannot be read, B cannot be written, or the command line is wrong

\b
Examples:
  optstate edit runs/a/step-420 --select 'layers.3.*' --zero momentum -o runs/b/step-420
  optstate edit checkpoint.pt --reset all --dry-run
  optstate edit checkpoint.pt --scale momentum=0.5 --clip-norm momentum=1 -o new.pt
  optstate edit runs/a/step-420 --select embed.weight --rows 3,17,40:64 --reset all -o fixed
  optstate edit runs/a/step-420 --lerp momentum=0.5 --towards runs/b/step-420 -o mixed"""
)
@click.argument("source", metavar="A", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", metavar="B", type=click.Path(path_type=Path), help="Where the outcome goes.")
@click.option("--select", "patterns", multiple=True, metavar="PATTERN", help="Only these parameters; may be repeated.")
@click.option("--exclude", "excluded", multiple=True, metavar="PATTERN", help="Not these; may be repeated.")
@click.option("--rows", metavar="ROWS", help="Only these rows of each: numbers and ranges, 3,17,40:64.")
@click.option(
    "--reset",
    multiple=True,
    metavar="SLOT",
    callback=_no_option,
    help="As if fresh, with all that belongs to it; `all` for every slot.",
)
@click.option("--keep", multiple=True, metavar="SLOT", callback=_no_option, help="What --reset leaves as it is.")
@click.option("--set", "set_to", multiple=True, metavar="SLOT=NUMBER", callback=_no_option, help="Replace every value.")
@click.option(
    "--lerp", multiple=True, metavar="SLOT=WEIGHT", callback=_no_option, help="Go part of the way to --towards."
)
@click.option("--towards", metavar="C", type=click.Path(path_type=Path), help="Another checkpoint, for --lerp.")
@click.option("--zero", multiple=True, metavar="SLOT", callback=_no_option, help="Make zero.")
@click.option("--scale", multiple=True, metavar="SLOT=FACTOR", callback=_no_option, help="Multiply.")
@click.option(
    "--clamp",
    multiple=True,
    metavar="SLOT=MIN:MAX",
    callback=_no_option,
    help="Limit every element; either may be left out.",
)
@click.option(
    "--clip-norm",
    multiple=True,
    metavar="SLOT=NORM",
    callback=_no_option,
    help="Scale down to an L2 norm of all that is selected.",
)
@click.option("--per-parameter", is_flag=True, help="With --clip-norm: of each parameter.")
@click.option("--note", default="", help="Why, for the journal.")
@click.option("--dry-run", is_flag=True, help="Write nothing, show what would change.")
@click.option("--force", is_flag=True, help="Write although the next update would be too large.")
@click.option("--replace", is_flag=True, help="Replace a checkpoint that is at B.")
@click.option("--to", type=click.Choice(TARGETS), help="The format of B; by default what its suffix says.")
@click.option("--partial", is_flag=True, help="Write although parts of A have no place in B, or cannot be read.")
@model_option
@json_option
@debug_option
def command(*, source: Path, target: Path | None, factory: str | None, as_json: bool, **given: Any) -> int:
    """Edit optimizer state of the checkpoint A, of any format that `optstate show` opens, and write the outcome as B.

    A is never changed. All that no verb touches is copied bit for bit. Neither torch nor any code of A is needed or
    run; --model runs yours, to name parameters where A has no names.
    """
    checkpoint = open_checkpoint(source)
    if factory is not None:
        checkpoint = named_by(checkpoint, built(factory))
    verbs = list(_verbs(given))
    if not verbs:
        raise click.UsageError("there is no verb: name one, such as --zero momentum")
    with Progressing("reading") as progress:
        edit = FileEdit(checkpoint, target, _options(given), progress.at)
        try:
            with edit:
                chosen = _chosen(edit, checkpoint, given)
                for slot, act in verbs:
                    act(_slot(chosen, slot))
        except (EditRefused, Unsaveable) as error:
            say_error(error, None)
            if as_json:
                _tell(edit, source, target, as_json=True)
            return REFUSED
    _tell(edit, source, target, as_json=as_json)
    return REFUSED if edit.change.refusals else 0


def _options(given: dict[str, Any]) -> Options:
    to: Target | None = given["to"]
    return Options(given["note"], given["dry_run"], given["force"], to, given["partial"], given["replace"])


# --- what the command line means ----------------------------------------------------------------------------

Verb = tuple[str | None, methodcaller]
"""A slot, None for all, and what is called on it."""


def _verbs(given: dict[str, Any]) -> Iterator[Verb]:
    """Each verb asked for, in the order of the options."""
    towards, each = given["towards"], given["per_parameter"]
    if bool(given["lerp"]) != (towards is not None):
        raise click.UsageError("--lerp and --towards belong together: --lerp momentum=0.5 --towards C")
    if given["keep"] and not given["reset"]:
        raise click.UsageError("--keep belongs to --reset")
    for slot in given["reset"]:
        yield None if slot == "all" else slot, methodcaller("reset_", given["keep"])
    for slot, number in _numbers("--set", given["set_to"]):
        yield slot, methodcaller("set_", number)
    for slot, number in _numbers("--lerp", given["lerp"]):
        yield slot, methodcaller("lerp_", towards, number)
    for slot in given["zero"]:
        yield slot, methodcaller("zero_")
    for slot, number in _numbers("--scale", given["scale"]):
        yield slot, methodcaller("scale_", number)
    for slot, low, high in _ranges(given["clamp"]):
        yield slot, methodcaller("clamp_", low, high)
    for slot, number in _numbers("--clip-norm", given["clip_norm"]):
        yield slot, methodcaller("clip_norm_", number, per_parameter=each)


def _slot(target: FileTarget, slot: str | None) -> FileTarget:
    if slot is None:
        return target
    return target.role(slot) if slot in ROLES else target[slot]


def _numbers(option: str, given: Sequence[str]) -> Iterator[tuple[str, float]]:
    for text in given:
        slot, equals, number = text.partition("=")
        if not slot or not equals:
            raise click.UsageError(f"{option} wants SLOT=NUMBER, such as momentum=0.5, and got {safe_text(text, 60)!r}")
        yield slot, _number(option, number)


def _ranges(given: Sequence[str]) -> Iterator[tuple[str, float | None, float | None]]:
    for text in given:
        slot, equals, ends = text.partition("=")
        low, colon, high = ends.partition(":")
        if not slot or not equals or not colon:
            raise click.UsageError(
                f"--clamp wants SLOT=MIN:MAX, such as momentum=-1:1, and got {safe_text(text, 60)!r}"
            )
        yield slot, *(_number("--clamp", end) if end else None for end in (low, high))  # type: ignore[misc]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{option}: {safe_text(text, 40)!r} is not a number") from None


def _rows(text: str) -> list[int]:
    try:
        parts = [part.partition(":") for part in text.split(",")]
        ranges = [range(int(first), int(last) if colon else int(first) + 1) for first, colon, last in parts]
    except ValueError:
        raise click.UsageError(
            f"--rows wants numbers and ranges, such as 3,17,40:64, and got {safe_text(text, 60)!r}"
        ) from None
    if sum(map(len, ranges)) > MOST_ROWS:
        raise click.UsageError(f"--rows {safe_text(text, 60)} is more than {MOST_ROWS:,} rows")
    return [row for each in ranges for row in each]


def _chosen(edit: FileEdit, checkpoint: Checkpoint, given: dict[str, Any]) -> FileTarget:
    """What --select, --exclude and --rows mean; what they do not match is explained in terms of the command line."""
    try:
        chosen = edit.choose(given["patterns"] or ("*",), given["excluded"])
    except NothingSelected as error:
        error.where = safe_text(checkpoint.path)
        nameless = any(checkpoint.state[name].facts.certainty == "position" for name in checkpoint.state)
        error.todo = (
            "--model FILE:FUNCTION gives the names of the program; '#0', '#1', ... are the positions"
            if nameless
            else f"`optstate show {quoted(checkpoint.path)}` lists every name"
        )
        raise
    return chosen if given["rows"] is None else chosen.rows(_rows(given["rows"]))


# --- what is said -------------------------------------------------------------------------------------------


def _tell(edit: FileEdit, source: Path, target: Path | None, *, as_json: bool) -> None:
    done = edit.conversion
    if as_json:
        say_json(
            {
                "schema": SCHEMA,
                "source": safe_text(source),
                "target": None if done is None else safe_text(done.path),
                "to": None if done is None else done.to,
                "made": edit.change.made,
                "changes": [entry.document() for entry in edit.change.entries],
                "refusals": list(edit.change.refusals),
                "notes": list(edit.change.notes),
                "tensors": None if done is None else done.tensors,
                "bytes": None if done is None else done.nbytes,
                "untouched": edit.untouched,
                "same_digests": edit.same_digests,
                "left_out": [] if done is None else list(done.left_out),
                "changed": [] if done is None else list(done.changed),
            }
        )
        return
    lines = [str(edit.change)]
    if done is not None:
        lines += ["", str(done), f"  untouched {_untouched(edit)}"]
    say("\n".join(lines))
    if done is not None and target is not None:
        hint(f"optstate diff {quoted(source)} {quoted(target)}   holds them against each other")


def _untouched(edit: FileEdit) -> str:
    others = count(edit.untouched, "other tensor")
    if edit.same_digests is None:
        return f"{others}, bit for bit"
    return f"{others}, {edit.same_digests:,} of them with the digest that they had"
