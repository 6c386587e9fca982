"""`optstate prove`: whether a resume of your training is exact, or the first difference and its cause."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from optstate.cli.terminal import debug_option, hint, json_option, quoted, say, say_json, tell
from optstate.errors import OptstateError
from optstate.text import safe_text

EXACT, NOT_EXACT, NOT_TRIED = 0, 1, 2


@click.command(
    epilog="""\b
Exit codes:
  0  exact: bit-identical to the last step that was tried
  1  not exact: the first difference and its cause are told
  2  it could not be tried to the end: the program fails, hangs, is another at each call,
     or does not compute the same twice

\b
FUNCTION takes nothing and returns optstate.Training(model, optimizer, train_step, ...).
SAVE and LOAD are functions of yours, called as save(training, path) and load(training, path).

\b
Examples:
  optstate prove train.py:build
  optstate prove train.py:build --before 20 --after 5 -o certificate.json
  optstate prove train.py:build --with torch
  optstate prove train.py:build --save train.py:save --load train.py:load"""
)
@click.argument("build", metavar="FILE:FUNCTION")
@click.option("--before", default=20, show_default=True, metavar="N", help="Steps before the save, at least 1.")
@click.option("--after", default=5, show_default=True, metavar="N", help="Steps after the restore, at least 3.")
@click.option("--save", metavar="FILE:FUNCTION", help="Your own way to save, put to the test.")
@click.option("--load", metavar="FILE:FUNCTION", help="Your own way to restore; both, or neither.")
@click.option(
    "--with",
    "using",
    type=click.Choice(["optstate", "torch"]),
    default="optstate",
    show_default=True,
    help="Without these: optstate.save and restore, or torch.save and load_state_dict.",
)
@click.option(
    "--timeout", default=300.0, show_default=True, metavar="SECONDS", help="How long a step may take before it hangs."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the certificate there.")
@json_option
@debug_option
def command(
    *,
    build: str,
    before: int,
    after: int,
    save: str | None,
    load: str | None,
    using: Any,
    timeout: float,
    output: Path | None,
    as_json: bool,
) -> int:
    """Prove that a training which is saved and restored in a fresh process goes on bit for bit.

    Runs your training in processes of its own: without interruption, once more with a save, and restored.
    The same in Python is `optstate.prove("train.py:build")`, and in pytest the fixture `resume_exact`.
    """
    from optstate.proof.prove import prove

    _check_output(output)
    tell(f"this runs {safe_text(build)} in processes of its own")
    proof = prove(build, before, after, save, load, using=using, timeout=timeout, progress=tell)
    document = proof.document()
    if output is not None:
        output.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    if as_json:
        say_json(document)
    else:
        say(proof.text())
        if proof.cause is not None and proof.cause.code is not None:
            hint(f"optstate explain {proof.cause.code}   the whole story of this fault")
        elif proof.exact and output is None:
            hint(f"optstate prove {quoted(build)} -o certificate.json   keeps it, with the digest of every step")
    return EXACT if proof.exact else NOT_EXACT if proof.difference is not None else NOT_TRIED


def _check_output(output: Path | None) -> None:
    """Whether the certificate can be written is asked before the minutes, not after."""
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise OptstateError(
            f"the certificate cannot be written to {safe_text(output)}",
            expected="a file in a folder that is there",
        )
