"""`optstate explain`: what a code of the doctor means."""

from __future__ import annotations

import click

from optstate.cli.doctor_json import explain_document
from optstate.cli.terminal import debug_option, hint, json_option, say, say_json, terminal_width
from optstate.doctor.catalogue.codes import CODES, find
from optstate.doctor.page import index, story


@click.command(
    epilog="""\b
Exit codes:
  0  explained
  2  there is no such code

\b
Examples:
  optstate explain M101
  optstate explain never-saved
  optstate explain --json | python -m json.tool"""
)
@click.argument("code", required=False)
@json_option
@debug_option
def command(*, code: str | None, as_json: bool) -> None:
    """Tell the whole story of a code: cause, effect, fix, and where people met it. Without CODE, list them all.

    CODE is a number such as M101, or its name, such as never-saved.
    """
    codes = list(CODES.values()) if code is None else [find(code)]
    if as_json:
        say_json(explain_document(codes))
    elif code is None:
        say(index(codes))
        hint("optstate explain M101   the whole story of one")
    else:
        say(story(codes[0], terminal_width()))
