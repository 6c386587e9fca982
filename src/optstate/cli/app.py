"""The `optstate` program: finds the command, runs it, and turns whatever happens into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import click

from optstate.cli.terminal import debug_option, escape_what_cannot_be_encoded, say_error
from optstate.errors import OptstateError
from optstate.text import safe_text

COMMANDS = {
    "show": "Show what a checkpoint holds of an optimizer, by parameter name.",
    "doctor": "Say why momentum is missing, and what else is wrong, with a code, evidence and a fix for each finding.",
    "explain": "Tell the whole story of a code: cause, effect, fix, and where people met it.",
    "diff": "Show what is different between two checkpoints, the gravest first.",
    "plan": "Show what restoring CKPT into your program would do, by parameter and slot, without doing it.",
    "edit": "Edit optimizer state of the checkpoint A, of any format that `optstate show` opens, and write the outcome as B.",
    "convert": "Write the checkpoint A, of any format that `optstate show` opens, as B, every tensor bit for bit.",
    "verify": "Read every byte of a checkpoint and name each tensor that is damaged.",
    "prove": "Prove that a training which is saved and restored in a fresh process goes on bit for bit.",
    "strip": "Strip the optimizer from old checkpoints in DIR and below it, so that they take a third of the space.",
}
"""Each command with its first line of help, so that `optstate --help` imports none of them."""

UNREADABLE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count
READER_GONE = 141  # 128 + SIGPIPE


class _Commands(click.Group):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"optstate.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS:
            near = get_close_matches(args[0], COMMANDS, n=1)
            meant = f"did you mean `optstate {near[0]}`? " if near else ""
            raise OptstateError(
                f"there is no command {safe_text(args[0], 40)!r}",
                expected=f"one of {', '.join(COMMANDS)}",
                todo=f"{meant}`optstate --help` says what each does",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Exit codes:
  0  done, nothing found
  1  damage or differences found
  2  cannot be read, or the command line is wrong

\b
Examples:
  optstate show runs/a/step-420
  optstate show checkpoint.pt --select '*.weight' --stats
  optstate verify runs/a/step-420""",
)
@click.version_option(package_name="optstate", message="%(prog)s %(version)s")
@debug_option
def _optstate() -> None:
    """Optimizer state you can see and trust: momentum and its companions, by parameter name.

    Reads checkpoints of any program without torch and without executing anything in them. Data goes to
    standard output, hints and progress to standard error.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default the process's own) and return the exit code; no command is `--help`.

    0: done · 1: damage or differences found · 2: unreadable input, wrong usage, or a fault of optstate. Never
    raises; with `--debug` anywhere in `argv` the traceback of an error is printed before its message.

    >>> main(["--version"])
    optstate ...
    0
    """
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    escape_what_cannot_be_encoded(sys.stdout, sys.stderr)
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _stop_writing()
        return READER_GONE


def _run(arguments: list[str]) -> int:
    try:
        with _optstate.make_context("optstate", arguments.copy()) as context:
            return int(_optstate.invoke(context) or 0)
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where a fault of ours becomes a message
        say_error(_explained(error), error if "--debug" in arguments else None)
        return UNREADABLE


def _explained(error: Exception) -> OptstateError:
    """Any error in the one shape of message."""
    if isinstance(error, OptstateError):
        return error
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        return OptstateError(
            safe_text(error.format_message(), 300),
            todo=f"`{context.command_path if context else 'optstate'} --help` shows what can be given",
        )
    if isinstance(error, OSError):
        where = safe_text(error.filename) if error.filename is not None else None
        return OptstateError(f"the system refused: {safe_text(error.strerror or error)}", where=where)
    return OptstateError(
        "optstate failed: this is its fault, not that of the file or of the command",
        found=f"{type(error).__name__}: {safe_text(error)}",
        todo="run the same command with --debug and report what it prints",
    )


def _stop_writing() -> None:
    """Point both outputs nowhere, so that the interpreter's last flush does not fail as the write did."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
