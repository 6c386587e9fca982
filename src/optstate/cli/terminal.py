"""What the commands say and where: data on standard output, hints, errors and progress on standard error."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import click

from optstate.errors import OptstateError
from optstate.text import safe_text

if TYPE_CHECKING:
    from rich.progress import Progress

debug_option = click.option("--debug", is_flag=True, expose_value=False, help="Print the traceback of an error.")
"""Accepted before and after the command; `main` reads it from the command line itself."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document; see docs/schema.")


def escape_what_cannot_be_encoded(*streams: IO[str]) -> None:
    """Write what a stream's encoding lacks as an escape, rather than fail."""
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def paints(stream: IO[str]) -> bool:
    """Whether a stream is a terminal that wants colour and cursor movement."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int | None:
    """Columns of the terminal that standard output is, None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def quoted(argument: object) -> str:
    """An argument as it can be pasted into a shell, and safe to print."""
    return shlex.quote(safe_text(argument))


def say(text: str) -> None:
    """The result, on standard output; on a terminal its first line is bold."""
    head, newline, rest = text.partition("\n")
    _write(sys.stdout, _styled(head, sys.stdout, bold=True) + newline + rest)


def say_json(document: Mapping[str, Any]) -> None:
    """A document on standard output, in ASCII: whatever a name holds, it is escaped. Indented only for people."""
    _write(sys.stdout, json.dumps(document, indent=1 if sys.stdout.isatty() else None, allow_nan=False))


def hint(text: str) -> None:
    """The next useful command, on standard error."""
    _write(sys.stderr, _styled(f"hint: {text}", sys.stderr, dim=True))


def tell(text: str) -> None:
    """What a command does that one would want to know, on standard error."""
    _write(sys.stderr, _styled(f"note: {text}", sys.stderr, dim=True))


def say_error(error: OptstateError, cause: BaseException | None) -> None:
    """The message of an error on standard error, after the traceback of `cause` if there is one, else after its notes."""
    before = "\n".join(getattr(error, "__notes__", ()))
    if cause is not None:
        import traceback

        before = "".join(traceback.format_exception(cause))
    if before:
        _write(sys.stderr, "\n".join(safe_text(line, 1000) for line in before.splitlines()))
    _write(sys.stderr, f"{_styled('error:', sys.stderr, bold=True, fg='red')} {error}")


def _styled(text: str, stream: IO[str], **style: Any) -> str:
    return click.style(text, **style) if paints(stream) else text


def _write(stream: IO[str], text: str) -> None:
    stream.write(text + "\n")
    stream.flush()


class Progressing:
    """A progress bar over bytes on standard error: only on a terminal, and only once `delay` seconds have passed.

    >>> with Progressing("reading") as progress:
    ...     progress.at(1_000_000, 2_000_000_000)
    """

    def __init__(self, label: str, delay: float = 1.0) -> None:
        self._label = label
        self._due = monotonic() + delay
        self._bar: Progress | None = None

    def at(self, done: int, total: int) -> None:
        """Say that `done` of `total` bytes are done."""
        if self._bar is None and paints(sys.stderr) and monotonic() >= self._due:
            self._bar = _bar(self._label, done, total)
        elif self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _bar(label: str, done: int, total: int) -> Progress:
    """A bar on the terminal whose first picture shows how far it is."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task(label, completed=done, total=total)
    bar.start()
    return bar
