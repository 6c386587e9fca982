"""What the system is really asked: the same as the seam says, never a truncation, never a write under the final name."""

from __future__ import annotations

import ast
import errno
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.checkpoints import recovered

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, os, sys
from pathlib import Path
from optstate.errors import WriteFailed
from tests.checkpoints import write
from tests.torture.taps import CHANGES, Tapped

root, threads = Path(sys.argv[1]), int(sys.argv[2])
log = []
write(root / "ck", 1, tensors=100)
os.mkdir(root / "begin")
try:
    write(root / "ck", 2, Tapped(lambda number, what: log.append(what), threads=threads), tensors=100, replace=True)
except WriteFailed as error:
    log = [error.errno]
os.rmdir(root / "begin")
print(json.dumps([each for each in log if each in CHANGES or not isinstance(each, str)]))
"""

CALLS = {
    "mkdir": "make_directory",
    "openat": "create",
    "fallocate": "reserve",
    "pwrite64": "write",
    "rename": "rename",
    "unlink": "unlink",
    "rmdir": "unlink",
    "unlinkat": "unlink",
}
LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
UNFINISHED, RESUMED = " <unfinished ...>", re.compile(r"<\.\.\. \w+ resumed>")


def joined(lines):
    """Each call in one line, where it began: strace cuts those in two during which another thread did something."""
    begun: dict[str, int] = {}
    whole: list[str] = []
    for line in lines:
        thread = line.split(maxsplit=1)[0]
        if line.endswith(UNFINISHED):
            begun[thread] = len(whole)
            whole.append(line.removesuffix(UNFINISHED))
        elif RESUMED.search(line) and thread in begun:
            whole[begun.pop(thread)] += RESUMED.split(line, maxsplit=1)[1]
        else:
            whole.append(line)
    return whole


@pytest.fixture
def traced(tmp_path):
    """Run the program under strace: what it printed, and the calls of the save that are about the folder."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed, so what the system is asked cannot be seen")

    def run(*options, threads=0):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
        (tmp_path / "run").mkdir()
        output = tmp_path / "trace"
        command = [
            "strace",
            "-f",
            "-y",
            "-s",
            "0",
            "-o",
            output,
            *options,
            sys.executable,
            "-c",
            PROGRAM,
            tmp_path / "run",
        ]
        done = subprocess.run(
            [*map(str, command), str(threads)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if "ptrace" in done.stderr.lower() and done.returncode:
            pytest.skip("this system lets nobody trace a program")
        assert done.returncode == 0, done.stderr
        lines = joined(output.read_text(errors="replace").splitlines())
        begin, end = (next(number for number, line in enumerate(lines) if f"{call}(" in line and "/begin" in line) for call in ("mkdir", "rmdir"))  # fmt: skip
        found = [
            match for line in lines[begin + 1 : end] if str(tmp_path / "run") in line and (match := LINE.match(line))
        ]
        return done.stdout.strip(), [(each["call"], each["arguments"]) for each in found if int(each["result"]) >= 0]

    return run


TRACED = "trace=mkdir,openat,open,creat,truncate,ftruncate,fallocate,write,pwrite64,pwritev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [0, 2])
def test_system_calls_are_those_of_the_seam(threads, traced):
    """Nothing changes a file behind the seam's back, so what is tried there is what happens."""
    said, calls = traced("-e", TRACED, threads=threads)
    asked = []
    for call, arguments in calls:
        directory = call == "fsync" and not re.search(r"\.(safetensors|json)>", arguments)
        if call == "fsync":
            asked.append("sync_directory" if directory else "sync")
        elif call != "openat" or "O_CREAT" in arguments:
            asked.append(CALLS[call])
    logged = re.findall(r'"(\w+)"', said)
    assert Counter(asked) == Counter(logged)
    assert threads or asked == logged


@pytest.mark.slow
def test_nothing_is_truncated_or_written_in_place(traced, tmp_path):
    """A new file is made where none is, and bytes go into what has a temporary name only."""
    _, calls = traced("-e", TRACED)
    assert not any("O_TRUNC" in arguments or "truncate" in call for call, arguments in calls)
    assert all("O_EXCL" in arguments for call, arguments in calls if "O_CREAT" in arguments)
    written = [arguments for call, arguments in calls if call in ("pwrite64", "write", "fallocate")]
    assert len(written) > 3
    assert all("/.ck.tmp-" in arguments for arguments in written)
    assert recovered(tmp_path / "run" / "ck") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "code"),
    [("fsync", errno.EIO), ("pwrite64", errno.ENOSPC), ("rename", errno.EIO), ("fallocate", errno.ENOSPC)],
)
def test_system_calls_that_fail(call, code, traced, tmp_path):
    """The kernel itself is made to refuse, once the first checkpoint is there: errno is kept, and so is the checkpoint."""
    said, _ = traced("-e", TRACED, "-e", f"inject={call}:error={errno.errorcode[code]}:when={FIRST[call] + 1}")
    assert said == f"[{code}]"
    assert recovered(tmp_path / "run" / "ck") == 1
    assert os.listdir(tmp_path / "run") == ["ck"]


FIRST = {"fsync": 5, "pwrite64": 5, "rename": 1, "fallocate": 0}
"""How often the first save makes a call, whose buffers are larger, or a little more."""


# --- one seam -------------------------------------------------------------------------------------------------

CHANGES = {
    "os": {"open", "write", "pwrite", "rename", "replace", "remove", "unlink", "rmdir", "mkdir", "makedirs", "link", "symlink", "truncate", "fsync"},
    "shutil": {"rmtree", "move", "copy", "copyfile", "copytree"},
    "Path": {"write_bytes", "write_text", "touch", "mkdir", "rmdir", "unlink", "rename", "replace", "hardlink_to", "symlink_to", "open"},
}  # fmt: skip


def effects(source):
    """Every call in a module that may change a file, as `name, line`."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        owner, _, name = call.rpartition(".")
        if name in CHANGES.get(owner, ()) or (name in CHANGES["Path"] and is_path(owner)) or call == "open":
            yield call, node.lineno


def is_path(owner):
    """Whether the owner of a method reads like a path: `files.rename` is the seam, `text.replace` a string's."""
    return re.search(r"(^|[._])(path|folder|directory|target|source|temporary|parent)$", owner) is not None


@pytest.mark.parametrize("room", ["store", "resume"])
def test_everything_goes_by_one_seam(room):
    """Nothing that saves, keeps, converts or resumes touches files itself: `store/files.py` does."""
    wrong = [
        f"{path.name}:{line}: {call}"
        for path in sorted((ROOT / "src" / "optstate" / room).rglob("*.py"))
        if path.name != "files.py"
        for call, line in effects(path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


def test_the_seam_itself_is_seen():
    """The test above would see what goes another way."""
    found = {
        call for call, _ in effects((ROOT / "src" / "optstate" / "store" / "files.py").read_text(encoding="utf-8"))
    }
    assert {"os.open", "os.pwrite", "os.fsync", "shutil.rmtree", "path.mkdir", "source.rename"} <= found
