"""`optstate doctor`: why is momentum missing, and what else is wrong with a checkpoint?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optstate.cli.doctor_json import doctor_document
from optstate.cli.model_option import built, model_option
from optstate.cli.terminal import Progressing, debug_option, hint, json_option, say, say_json, terminal_width
from optstate.doctor.case import Case
from optstate.doctor.catalogue.code import Severity
from optstate.doctor.diagnosis import Diagnosis
from optstate.doctor.engine import diagnose_case
from optstate.errors import OptstateError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.text import safe_text

FOUND = 1


@click.command(
    epilog="""\b
Marks: ✗ error, ! warning, i explanation of what is right, ✓ checked and nothing found,
? not looked at. `optstate explain CODE` tells the whole story of a code.

\b
Exit codes:
  0  nothing as grave as --fail-on was found, and every part was read
  1  something was found, or a part could not be read: then nothing is called clean
  2  the file cannot be read at all, or the command line is wrong
With --headers the values of tensors are left out because you asked: they do not
count as a part that could not be read, and the output says that they were left out.

\b
Examples:
  optstate doctor runs/a/step-420
  optstate doctor checkpoint.pt --headers
  optstate doctor runs/a/step-840 --against runs/a/step-420
  optstate doctor checkpoint.pt --model train.py:build
  optstate doctor checkpoint.pt --json --fail-on error"""
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="OTHER",
    help="An earlier or later checkpoint of the same run.",
)
@model_option
@click.option("--headers", is_flag=True, help="Read no values: fast on large files, and blind for bad numbers.")
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info"]),
    default="warning",
    show_default=True,
    help="What makes the exit code 1.",
)
@json_option
@debug_option
def command(
    *, file: Path, against: Path | None, factory: str | None, headers: bool, fail_on: Severity, as_json: bool
) -> int:
    """Say why momentum is missing, and what else is wrong, with a code, evidence and a fix for each finding.

    FILE is any checkpoint that `optstate show` opens. With --against, what changed between two checkpoints of a run is
    judged as well; with --model, what loading FILE into your program would do, without doing it.
    """
    checkpoint = open_checkpoint(file)
    other = None if against is None else open_checkpoint(against)
    with Progressing("reading") as progress:
        live = None if factory is None else _examined(factory)
        case = Case(checkpoint=checkpoint, other=other, live=live)
        diagnosis = diagnose_case(case, values=not headers, progress=progress.at)
    if as_json:
        say_json(doctor_document(diagnosis, checkpoint, other))
    else:
        say(diagnosis.text(terminal_width()))
        _next(diagnosis, checkpoint)
    return FOUND if diagnosis.uninspected or diagnosis.reaching(fail_on) else 0


def _examined(factory: str) -> Any:
    """The running program that the user's factory makes, looked at."""
    made = built(factory)
    if made.optimizer is None:
        raise OptstateError(
            "a diagnosis against a program needs its optimizer",
            where=safe_text(factory),
            expected="a factory that returns (model, optimizer)",
            found="a model alone",
        )
    from optstate.live.examine import examine

    return examine(made.optimizer, made.model, scheduler=made.scheduler)


def _next(diagnosis: Diagnosis, checkpoint: Checkpoint) -> None:
    """The next useful command."""
    if diagnosis.findings:
        hint(f"optstate explain {diagnosis.findings[0].code}   the whole story of a code")
    elif not diagnosis.uninspected and checkpoint.state.optimizers:
        hint("optstate doctor FILE --model train.py:build   what would happen when your program loads it")
