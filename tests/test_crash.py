"""What a save promises when it is cut short: by a power cut, a full disk, a failing disk, a kill, an interrupt.

The rule is the same everywhere: until the save has returned, what was there before can still be read, bit for
bit; afterwards the new one can; and never anything else.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from optstate.errors import TargetExists, WriteFailed
from optstate.store.files import RealFiles
from tests.checkpoints import recovered, write
from tests.disk import Disk, plant

ROOT = Path(__file__).parents[1]
PATH = Path("run/ck")
OLD, NEW = 1, 2


# --- failing operations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [lambda call: 1, lambda call: 300], ids=["one byte", "300 bytes"])
def test_short_writes_are_continued(keep, tmp_path):
    """A system that takes only part of what it is given gets the rest later."""
    disk = Disk(lambda call, what: keep(call) if what == "write" else None)
    write(PATH, NEW, disk, tensors=1)
    plant(disk.tree(), tmp_path)
    assert recovered(tmp_path / PATH) == NEW


def test_a_write_that_takes_nothing_is_an_error():
    """A system that takes no byte and reports no error does not keep us waiting for ever."""
    disk = Disk(lambda call, what: 0 if what == "write" else None)
    with pytest.raises(WriteFailed, match="wrote nothing"):
        write(PATH, NEW, disk)
    assert disk.tree() == {"run/": b""}


def test_full_disk_says_how_much_is_missing():
    """The message has what is needed and what is free, and the file that did not fit."""
    disk = Disk(lambda call, what: OSError(errno.ENOSPC, "No space left on device") if what == "write" else None)
    with pytest.raises(WriteFailed, match="No space left") as caught:
        write(PATH, NEW, disk)
    assert "12.3 MB free" in caught.value.found
    assert "824 B of free space" in caught.value.expected
    assert caught.value.filename.endswith("weights.safetensors")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP], ids=errno.errorcode.get)
def test_file_system_without_directory_sync_is_told(code, tmp_path):
    """Network file systems that cannot sync a directory are used all the same, with a warning."""
    disk = Disk(lambda call, what: OSError(code, "no") if what == "sync_directory" else None)
    with pytest.warns(RuntimeWarning, match="cannot sync directories"):
        write(PATH, NEW, disk)
    plant(disk.tree(), tmp_path)
    assert recovered(tmp_path / PATH) == NEW


def interrupt(at, number, what):
    """Ctrl-C at one call."""
    if number == at:
        raise KeyboardInterrupt


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
def test_interrupt_at_any_call_cleans_up(replace, tmp_path):
    """Ctrl-C during a save stays Ctrl-C, and leaves the old checkpoint and nothing else."""
    at = 0
    while True:
        disk = Disk()
        write(PATH, OLD, disk) if replace else disk.make_directory(Path("run"))
        disk.calls.clear()
        disk.fault = partial(interrupt, at)
        try:
            write(PATH, NEW, disk, replace=replace)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
        if len(disk.calls) <= at:
            break
        plant(disk.tree(), tmp_path / str(at))
        step = recovered(tmp_path / str(at) / PATH)
        left = [name for name in os.listdir(tmp_path / str(at) / "run") if ".tmp-" in name]
        assert step in ({NEW, OLD} if replace else {NEW, None})
        assert not left or (step == NEW and not interrupted)
        at += 1
    assert at > 15


# --- real files ---------------------------------------------------------------------------------------------


def run(code, *arguments, **options):
    """Run code without torch in a process of its own, from where it finds this project."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60, **options)


def test_kill_between_the_renames_reads_the_old_one(tmp_path):
    """In the one instant in which the name itself is missing, the old checkpoint is found, and said to be it."""
    write(tmp_path / "ck", OLD)
    aside = tmp_path / f".ck.old-{RealFiles().boot}-01234567"
    (tmp_path / "ck").rename(aside)
    assert recovered(tmp_path / "ck") == OLD
    from optstate.formats.ours.directory import open_directory

    assert aside.name in open_directory(tmp_path / "ck").notes[0]
    write(tmp_path / "ck", NEW, replace=True)
    assert os.listdir(tmp_path) == ["ck"]
    assert recovered(tmp_path / "ck") == NEW


LIMITED = """
import json, resource, signal, sys
from pathlib import Path
from optstate.errors import WriteFailed
from tests.checkpoints import write

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write(Path(sys.argv[1]), 2, replace=True, tensors=20)
except WriteFailed as error:
    print(json.dumps([error.errno, str(error)]))
"""


def test_file_size_limit(tmp_path):
    """A real short write and a real refusal by the system: told with its errno, and undone."""
    write(tmp_path / "ck", OLD)
    done = run(LIMITED, tmp_path / "ck")
    assert done.returncode == 0, done.stderr
    code, message = json.loads(done.stdout)
    assert code == errno.EFBIG
    assert "ck was not saved: File too large" in message
    assert os.listdir(tmp_path) == ["ck"]
    assert recovered(tmp_path / "ck") == OLD


FULL = """
import json, os, sys
from pathlib import Path
from optstate.errors import WriteFailed
from tests.checkpoints import recovered, write

folder = Path(sys.argv[1])
write(folder / "ck", 1)
try:
    write(folder / "ck", 2, replace=True, tensors=5000)
except WriteFailed as error:
    print(json.dumps([error.errno, error.expected, error.found, os.listdir(folder), recovered(folder / "ck")]))
"""


def test_real_full_disk(tmp_path):
    """On a file system of 512 kB that is really full: ENOSPC, the numbers, and the old checkpoint."""
    mount = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=512k none "$1" && shift && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, tmp_path, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system of their own")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [*mount, tmp_path, sys.executable, "-c", FULL, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    code, expected, found, names, step = json.loads(done.stdout)
    assert (code, names, step) == (errno.ENOSPC, ["ck"], OLD)
    assert "MB of free space" in expected
    assert "kB free" in found


# --- leftovers and neighbours -------------------------------------------------------------------------------


@pytest.fixture
def leftover(tmp_path):
    """What a save to `ck` that was killed in this run of this machine leaves."""
    path = tmp_path / f".ck.tmp-{RealFiles().boot}-01234567"
    path.mkdir()
    (path / "weights.safetensors").write_bytes(b"half")
    return path


def test_leftover_of_a_dead_save_is_removed(leftover):
    """Its lock is free and this is still the same run of the same machine: nobody writes it any more."""
    write(leftover.parent / "ck", NEW)
    assert os.listdir(leftover.parent) == ["ck"]


def test_leftover_of_a_living_save_stays(leftover):
    """While another process holds the lock, its unfinished save is not touched."""
    lock = RealFiles().lock(leftover)
    code = "from optstate.store.files import RealFiles; from tests.checkpoints import write; from pathlib import Path; import sys; write(Path(sys.argv[1]), 2)"
    done = run(code, leftover.parent / "ck")
    RealFiles().close(lock)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(leftover.parent)) == [leftover.name, "ck"]


@pytest.mark.parametrize(("age", "stays"), [(3600, True), (90_000, False)], ids=["an hour", "a day"])
def test_leftover_of_another_machine_goes_after_a_day(leftover, age, stays):
    """A lock of another machine may not be seen here, so only time tells."""
    other = leftover.rename(leftover.with_name(".ck.tmp-ffffffff-01234567"))
    for path in (other / "weights.safetensors", other):
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
    write(other.parent / "ck", NEW)
    assert other.exists() is stays


def test_other_names_are_left_alone(tmp_path):
    """Only what a save to this very name can have left is touched."""
    boot = RealFiles().boot
    others = [f".ckx.tmp-{boot}-01234567", f".c.tmp-{boot}-01234567", f"ck.tmp-{boot}-01234567", ".ck.tmp-mine", ".ck"]
    for name in others:
        (tmp_path / name).mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / f".ck.tmp-{boot}-89abcdef").symlink_to(outside)
    write(tmp_path / "ck", NEW)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "outside", f".ck.tmp-{boot}-89abcdef", "ck"])


def test_two_saves_to_one_name(tmp_path):
    """The second to finish is refused, and the first one's checkpoint stays."""

    class Overtaken(RealFiles):
        def sync_directory(self, path):
            super().sync_directory(path)
            if ".tmp-" in path.name:
                write(tmp_path / "ck", OLD)

    with pytest.raises(TargetExists, match="exists already"):
        write(tmp_path / "ck", NEW, Overtaken())
    assert recovered(tmp_path / "ck") == OLD
    assert os.listdir(tmp_path) == ["ck"]
