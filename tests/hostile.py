"""Hostile checkpoints, and the program that opens them with every door watched.

To add cases for a format: a file in `tests/hostile_cases` with a dict `CASES` (see `tests.forged.Cases`: name →
content, and what opening it gives), and its name in `FILES` here. The number in front of a name is that of the threat
in the project's list; what a case builds is small, whatever it claims.

`python -m tests.hostile FOLDER` opens each file and folder in FOLDER, reads what it holds and prints it, in a process
that may grow by `ALLOWANCE` bytes and run for `SECONDS`, and prints one JSON document: per case the outcome, seconds,
and what Python's audit hooks saw; then the pace of the machine.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import traceback
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from tests.forged import Cases, Member, archive, pickled, safetensors, stream, stream_storage, tensor, torch_file

FILES = ("pickles", "optimizers", "tensors", "values", "zips", "streams", "safetensors", "indexes", "names", "dcp")
CASES: Cases = {
    case: content for file in FILES for case, content in import_module(f"tests.hostile_cases.{file}").CASES.items()
}

ALLOWANCE = 1 << 29
SECONDS = 300

WARM: Cases = {
    "zip": (torch_file(pickled(tensor())), ""),
    "stream": (stream(pickled(tensor(stream_storage()))), ""),
    "pickle": (pickled(b"N"), ""),
    "safetensors": (safetensors(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4)), ""),
    "folder": ({"model.pt": torch_file(pickled(tensor()))}, ""),
    "bundle": (archive([Member("readme", b"")]), ""),
    "noise": (b"noise", ""),
}
"""What is opened before anybody watches: afterwards every module that reading needs is there."""

HARMLESS = {
    "open", "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe", "os.scandir",
    "os.listdir", "glob.glob", "pathlib.Path.glob", "pathlib.Path.rglob",
}  # fmt: skip
QUIET = ("gc.", "cpython.", "sys.", "weakref.", "builtins.id", "marshal.", "code.", "function.", "time.", "array.")


def watch(seen: list[str]) -> None:
    """Note down every event but opening for reading."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            if (mode and set(str(mode)) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                seen.append(f"open for writing {arguments[0]}")
        elif event not in HARMLESS and not event.startswith(QUIET):
            seen.append(f"{event} {arguments!r:.80}")

    sys.addaudithook(hook)


def fence(seconds: int) -> None:
    """From here on this process may grow by `ALLOWANCE` bytes, and compute for so long."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + ALLOWANCE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))


def pace() -> float:
    """How long a fixed piece of work takes, in seconds; what is slow here is slow because of the machine."""
    started = time.process_time()
    total = 0
    for index in range(1_000_000):
        total += index & 7
    return time.process_time() - started


def write(folder: Path, cases: Cases) -> dict[str, str]:
    """Write each case as a file or folder; returns the name that each has there, for its own would be no file name."""
    names = {case: f"{index:03}.{'pt' if isinstance(content, bytes) else 'd'}" for index, (case, (content, _)) in enumerate(cases.items())}  # fmt: skip
    for case, (content, _) in cases.items():
        place = folder / names[case]
        if isinstance(content, bytes):
            place.write_bytes(content)
            continue
        for name, raw in content.items():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(raw)
    return names


def exercise(path: Path) -> str:
    """Open what is there, print it in every way, and read what it holds: what came of it.

    The beginning says what: `opened` and what was said of it, or the class and message of our error, or `crashed`.
    """
    from optstate.errors import OptstateError
    from optstate.formats.opening import open_checkpoint

    try:
        checkpoint = open_checkpoint(path)
        shown = {key: node for key, node in checkpoint.objects.items() if type(node) is not list}
        outcome = f"opened {checkpoint.state} {shown} {' | '.join((*checkpoint.notes, *checkpoint.unread))}"
        _check_printable(*_pages(checkpoint), *checkpoint.notes, *checkpoint.unread)
        _read_values(checkpoint)
    except OptstateError as error:
        _check_printable(str(error))
        outcome = f"{type(error).__name__}: {error}"
    except MemoryError:
        outcome = "crashed: no memory left"
    except Exception:  # noqa: BLE001 - any other error is what the tests look for
        outcome = f"crashed {traceback.format_exc()}"
    return outcome.encode("utf-8", "backslashreplace").decode()


def _pages(checkpoint: Any) -> list[str]:
    from optstate.cli.show_json import show_document
    from optstate.cli.show_text import show_text

    names = list(checkpoint.state)[:50]
    text, _ = show_text(checkpoint, names, {}, with_heads=False, every_row=True)
    document = json.dumps(show_document(checkpoint, names, {}, with_heads=False), allow_nan=False)
    return [text, document]


def _check_printable(*texts: str) -> None:
    from optstate.text import safe_text

    for line in chain.from_iterable(text.split("\n") for text in texts):
        if not line.isascii() or not line.isprintable():
            assert safe_text(line, 10 * len(line) + 10) == line, f"printed raw: {line!r:.200}"


def _read_values(checkpoint: Any) -> None:
    """Read every tensor, as far as the file has it; a refusal is an answer."""
    from optstate.errors import OptstateError
    from optstate.state.tensors import is_tensor

    slots = (slot.value for parameter in checkpoint.state.values() for slot in parameter.slots.values())
    for value in filter(is_tensor, chain(slots, checkpoint.weights.values(), checkpoint.objects.values())):
        try:
            for _ in value.blocks():
                pass
            value.array()
        except OptstateError as error:
            _check_printable(str(error))


def main(folder: Path) -> None:
    warm = folder / "warm"
    warm.mkdir()
    for name in write(warm, WARM).values():
        exercise(warm / name)
    seen: list[str] = []
    watch(seen)
    fence(SECONDS)
    cases = {}
    for path in sorted(folder.glob("[0-9]*")):
        gc.collect()
        started, before = time.process_time(), len(seen)
        outcome = exercise(path)
        cases[path.name] = {
            "outcome": outcome,
            "seconds": time.process_time() - started,
            "events": seen[before:],
        }
    document = {"cases": cases, "pace": min(pace() for _ in range(3)), "torch": "torch" in sys.modules}
    sys.stdout.write(json.dumps(document))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
