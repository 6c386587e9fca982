"""Executed pages: the code of a Markdown page runs, and what it prints must be what the page shows.

    python tools/pages.py --check README.md docs/*.md     exit code 1 and a diff where a page is wrong
    python tools/pages.py --write README.md docs/*.md     put the real output in its place

In a page, in order, every block in one process and one fresh folder per page:

```python      runs, in one namespace; a `text` or `output` block that comes next is what it printed
```console     lines `$ command` (a trailing backslash continues), each followed by its output

A block of any other language is not run, but `bash` and `sh` must say why. An HTML comment directly above a
block says how it is special, one per line:

<!-- unstable: REGEX -->    whatever matches is not compared: a time, a size, a path
<!-- not run: REASON -->    the block is only shown
<!-- raises: NAME -->       the python block ends with this exception, which is printed as `NAME: message`
<!-- exit: CODE -->         the last command of the console block ends with this exit code instead of 0

A warning is printed as `Category: message`. Programs of the environment come first; 100 columns, no colour, one
thread.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO

RUN = ("python", "console")
OUTPUT = ("text", "output")
MUST_RUN = ("bash", "sh", "shell", "py", "pycon")  # a reader would take these for executed
FENCE = re.compile(r"(?P<indent>\s*)(?P<fence>`{3,})\s*(?P<language>[^\s`]*)[^`]*")
DIRECTIVE = re.compile(r"<!-- (unstable|not run|raises|exit): (.+) -->")


class PageError(Exception):
    """A page that cannot be read or run; the message starts with the line."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: `line` is its opening fence, counted from 1, and `directives` what stands above it."""

    language: str
    line: int
    body: tuple[str, ...]
    directives: tuple[tuple[str, str], ...] = ()

    @property
    def runs(self) -> bool:
        """Whether the block is executed."""
        return self.language in RUN and self.directive("not run") is None

    def directive(self, kind: str) -> str | None:
        """The first directive of a kind, or None."""
        return next((value for name, value in self.directives if name == kind), None)

    def masks(self) -> list[str]:
        """The expressions whose matches are not compared."""
        return [value for name, value in self.directives if name == "unstable"]


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a page shows something else than what happened: lines `start` to `stop` (from 0) are to become `actual`."""

    start: int
    stop: int
    actual: tuple[str, ...]
    diff: str


# --- reading a page -------------------------------------------------------------------------------


def parse(text: str) -> list[Block]:
    """The fenced blocks of a page. Raises `PageError` for one that would silently not be run."""
    blocks: list[Block] = []
    above: list[tuple[str, str]] = []
    lines = enumerate(text.split("\n"), start=1)
    for number, line in lines:
        fence = FENCE.fullmatch(line)
        directive = DIRECTIVE.fullmatch(line)
        if directive:
            above.append((directive[1], directive[2]))
        elif fence:
            body = _body(number, fence, lines)
            blocks.append(_checked(Block(fence["language"], number, body, tuple(above))))
            above = []
        elif above and line.strip():
            raise PageError(f"line {number}: `{above[-1][0]}` stands above text; it belongs directly above a block")
    return blocks


def _body(number: int, fence: re.Match[str], lines: Iterator[tuple[int, str]]) -> tuple[str, ...]:
    body = []
    for _, line in lines:
        if re.fullmatch(fence["indent"] + fence["fence"] + r"`*\s*", line):
            break
        body.append(line)
    else:
        raise PageError(f"line {number}: this block has no end")
    if fence["indent"] and fence["language"] in (*RUN, *OUTPUT):
        raise PageError(f"line {number}: an indented {fence['language']} block is not run; move it to the margin")
    return tuple(body)


def _checked(block: Block) -> Block:
    if block.language in MUST_RUN and block.directive("not run") is None:
        raise PageError(
            f"line {block.line}: a {block.language} block is not run; make it python or console, or say `not run: REASON`"
        )
    for mask in block.masks():
        try:
            re.compile(mask)
        except re.error as error:
            raise PageError(f"line {block.line}: unstable: {mask} is no regular expression: {error}") from None
    return block


def commands(block: Block) -> list[tuple[str, ...]]:
    """The commands of a console block, each as the lines that it is written in."""
    found: list[tuple[str, ...]] = []
    lines = iter(block.body)
    for line in lines:
        if line.startswith("$ "):
            command = [line]
            while command[-1].endswith("\\"):
                command.append(next(lines, ""))
            found.append(tuple(command))
        elif not found:
            raise PageError(f"line {block.line}: a console block starts with `$ command`")
    return found


# --- running a page: in a process of its own --------------------------------------------------------


class Capture:
    """Everything that this process and its children write to standard output, block by block."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        self._seen = 0
        os.dup2(self._file.fileno(), 1)

    def take(self) -> str:
        """What was written since the last call."""
        sys.stdout.flush()
        size = os.fstat(self._file.fileno()).st_size
        new = os.pread(self._file.fileno(), size - self._seen, self._seen)
        self._seen = size
        return new.decode(errors="replace")


def run_in_this_process(page: Path, results: Path) -> None:
    """Run the blocks of a page and append one line of JSON per block to `results`; stops at the first failure."""
    capture = Capture()
    main = ModuleType("__main__")  # classes that a page defines can be pickled, as in a script
    sys.modules["__main__"] = main
    sys.path[0] = str(Path.cwd())
    sys.argv = [page.name]
    warnings.showwarning = lambda message, category, *_rest, **_more: print(f"{category.__name__}: {message}")
    with results.open("a", encoding="utf-8") as out:
        for block in filter(lambda block: block.runs, parse(page.read_text(encoding="utf-8"))):
            try:
                text = _run_python(block, page, main, capture) if block.language == "python" else _run_console(block)
                out.write(json.dumps({"line": block.line, "output": text}) + "\n")
            except PageError as error:
                out.write(json.dumps({"line": block.line, "error": str(error)}) + "\n")
                return
            finally:
                out.flush()


def _run_python(block: Block, page: Path, main: ModuleType, capture: Capture) -> str:
    # Blank lines in front give every traceback the line numbers of the page itself.
    source = "\n" * block.line + "\n".join(block.body) + "\n"
    expected = block.directive("raises")
    try:
        exec(compile(source, str(page), "exec"), main.__dict__)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a page may raise anything
        name = type(error).__name__
        if name != expected:
            trace = error.__traceback__.tb_next if error.__traceback__ else None
            shown = "".join(traceback.format_exception(type(error), error, trace))
            raise PageError(f"line {block.line}: this block raises\n{shown}") from None
        print(f"{name}: {error}")
    else:
        if expected is not None:
            raise PageError(f"line {block.line}: this block raises no {expected}")
    return capture.take()


def _run_console(block: Block) -> str:
    every = commands(block)
    shown = []
    for command in every:
        script = "\n".join(command).removeprefix("$ ")
        done = subprocess.run(
            ["bash", "-c", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        output = done.stdout.decode(errors="replace")
        expected = int(block.directive("exit") or 0) if command is every[-1] else 0
        if done.returncode != expected:
            raise PageError(f"line {block.line}: `{script}` ended with {done.returncode}, not {expected}\n{output}")
        shown += [*command, *output.splitlines()]
    return "\n".join(shown)


# --- comparing and writing ---------------------------------------------------------------------------


def run(page: Path, blocks: Sequence[Block], timeout: float) -> dict[int, str]:
    """Run a page in a process and a folder of its own: what each block printed, by its line. Raises `PageError`."""
    with tempfile.TemporaryDirectory(prefix="page-") as folder:
        results, complaints, work = Path(folder, "results"), Path(folder, "stderr"), Path(folder, "work")
        work.mkdir()
        results.touch()
        with complaints.open("w") as stderr:
            code = _run_in_a_process(page, results, work, stderr, timeout)
        entries = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        said = complaints.read_text(encoding="utf-8", errors="replace")
    for entry in entries:
        if "error" in entry:
            raise PageError(entry["error"])
    outputs = {entry["line"]: entry["output"] for entry in entries}
    unfinished = [block for block in blocks if block.runs and block.line not in outputs]
    if unfinished or code != 0:
        where = f"line {unfinished[0].line}: " if unfinished else ""
        how = f"ended with {code}" if code is not None else f"did not end within {timeout:g} s"
        raise PageError(f"{where}the page's process {how}\n{said}")
    return outputs


def _run_in_a_process(page: Path, results: Path, work: Path, stderr: IO[str], timeout: float) -> int | None:
    """The exit code, or None when time was up. Nothing that the page started outlives it."""
    command = [sys.executable, "-u", str(Path(__file__).resolve()), "--run", str(page.resolve()), str(results)]
    process = subprocess.Popen(
        command,
        cwd=work,
        env=_environment(work),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(work: Path) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "PYTHONWARNINGS")}
    sources = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    return environment | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(str(Path(source).absolute()) for source in sources),
        "PYTHONUTF8": "1",
        "PWD": str(work),
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "OMP_NUM_THREADS": "1",  # what several threads sum up may differ in the last digit
        "MKL_NUM_THREADS": "1",
    }


def differences(name: str, blocks: Sequence[Block], outputs: dict[int, str]) -> list[Difference]:
    """Every place where the page shows something else than what was printed."""
    found = []
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if not block.runs:
            continue
        if block.language == "console":
            shown: Block | None = block
        else:
            shown = following if following is not None and following.language in OUTPUT else None
        if shown is not None and shown.directive("not run") is not None:
            continue
        difference = _compare(name, block, shown, outputs[block.line])
        if difference is not None:
            found.append(difference)
    return found


def _compare(name: str, block: Block, shown: Block | None, output: str) -> Difference | None:
    masks = [*block.masks(), *(shown.masks() if shown is not None else ())]
    actual = _trimmed(output.splitlines())
    expected = _trimmed(shown.body if shown is not None else ())
    left, right = _masked(expected, masks), _masked(actual, masks)
    if left == right:
        return None
    where = f"{name}:{(shown or block).line}"
    diff = "\n".join(difflib.unified_diff(left, right, f"{where} shown", f"{where} printed", lineterm=""))
    if shown is not None:
        return Difference(shown.line, shown.line + len(shown.body), tuple(actual), diff)
    end = block.line + len(block.body) + 1  # the line after its closing fence
    return Difference(end, end, ("", "```text", *actual, "```"), diff)


def _trimmed(lines: Sequence[str]) -> list[str]:
    return "\n".join(line.rstrip() for line in lines).strip("\n").splitlines()


def _masked(lines: Sequence[str], masks: Sequence[str]) -> list[str]:
    text = "\n".join(lines)
    for mask in masks:
        text = re.sub(mask, "<unstable>", text, flags=re.MULTILINE)
    return text.splitlines()


def rewritten(text: str, changes: Sequence[Difference]) -> str:
    """The text of a page with its outputs replaced."""
    lines = text.split("\n")
    for change in sorted(changes, key=lambda change: change.start, reverse=True):
        lines[change.start : change.stop] = change.actual
    return "\n".join(lines)


def process(page: Path, *, write: bool, timeout: float) -> list[str]:
    """Check a page, or bring it up to date: the complaints that remain."""
    text = page.read_text(encoding="utf-8")
    try:
        blocks = parse(text)
        changes = differences(str(page), blocks, run(page, blocks, timeout))
    except PageError as error:
        return [f"{page}: {error}"]
    if write and changes:
        page.write_text(rewritten(text, changes), encoding="utf-8")
        return []
    return [change.diff for change in changes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write pages; 0 when every page shows what happens, 1 when one does not, 2 for bad usage."""
    parser = argparse.ArgumentParser(
        prog="pages.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="compare, change nothing")
    action.add_argument("--write", action="store_true", help="put the real output in its place")
    action.add_argument("--run", action="store_true", help=argparse.SUPPRESS)  # how a page's own process is started
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="per page (default: 300)")
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    options = parser.parse_args(arguments)
    if options.run:
        run_in_this_process(*options.pages)
        return 0
    missing = [page for page in options.pages if not page.is_file()]
    if missing:
        parser.error(f"no such page: {', '.join(map(str, missing))}")
    failed = False
    for page in options.pages:
        complaints = process(page, write=options.write, timeout=options.timeout)
        failed = failed or bool(complaints)
        print("\n".join(complaints) if complaints else f"{page}: as shown", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
