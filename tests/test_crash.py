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
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from optstate.errors import ReadError, TargetExists, WriteFailed
from optstate.store.files import RealFiles
from tests.checkpoints import recovered, write
from tests.disk import Disk, Step, crashes, plant

ROOT = Path(__file__).parents[1]
PATH = Path("run/ck")
OLD, NEW = 1, 2


def saved(*, replace, **options):
    """A disk on which step 1 is saved and, when asked, replaced by step 2; with the length of the log before that."""
    disk = Disk()
    if replace:
        write(PATH, OLD, disk, **options)
    before = len(disk.log)
    write(PATH, NEW, disk, replace=replace, **options)
    return disk, before


class Verdicts:
    """What can be read at the path in each tree that a power cut leaves; the same tree is looked at once."""

    def __init__(self, root):
        self.root = root
        self.known = {}

    def of(self, tree):
        key = tuple(sorted(tree.items()))
        if key not in self.known:
            plant(tree, self.root)
            self.known[key] = self.look()
            shutil.rmtree(self.root)
        return self.known[key]

    def look(self):
        try:
            return recovered(self.root / PATH)
        except (ReadError, AssertionError) as error:
            return f"{type(error).__name__}: {error}"


def violations(log, before, verdicts, *, replace, most=2):
    """Every crash state in which neither the old checkpoint nor the new one can be read, and how many were tried."""
    legal = {OLD, NEW} if replace else {None, NEW}
    wrong, tried = [], 0
    for end in range(before, len(log) + 1):
        allowed = {NEW} if end == len(log) else legal
        for tree in crashes(log, end, most):
            tried += 1
            verdict = verdicts.of(tree)
            if verdict not in allowed:
                wrong.append((end, verdict))
    return wrong, tried


@pytest.fixture
def verdicts(tmp_path):
    return Verdicts(tmp_path / "disk")


SIZES = [
    pytest.param({"tensors": 0}, 20, id="no tensor"),
    pytest.param({"tensors": 3}, 100, id="two files"),
    pytest.param({"tensors": 3, "header_limit": 1}, 300, id="six files"),
    pytest.param({"tensors": 200}, 300, id="two hundred tensors", marks=pytest.mark.whole),
]


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize(("options", "states"), SIZES)
def test_power_cut_at_any_step_leaves_old_or_new(options, states, replace, verdicts, whole):
    """After every step of a save, whatever of the unsynced changes is lost, torn or garbage: old or new, whole."""
    disk, before = saved(replace=replace, **options)
    wrong, tried = violations(disk.log, before, verdicts, replace=replace, most=4 if whole else 2)
    assert wrong == []
    assert tried > states
    assert {NEW, OLD if replace else None} == set(verdicts.known.values())


def without(what, which):
    """A broken protocol: the steps of one kind whose number (from the end when negative) is given never happened."""

    def broken(log, before):
        numbers = [number for number, step in enumerate(log) if number >= before and step.what == what]
        del log[numbers[which]]

    return broken


def old_removed_first(log, before):
    """A broken protocol: the old checkpoint goes before the new one is there."""
    removal = [step for step in log[before:] if step.what == "unlink"]
    rest = [step for step in log[before:] if step.what != "unlink"]
    aside = next(number for number, step in enumerate(rest) if step.what == "rename")
    log[before:] = [*rest[: aside + 1], *removal, *rest[aside + 1 :]]


def renamed_too_early(log, before):
    """A broken protocol: the new checkpoint gets its name before its files are synced."""
    number = max(number for number, step in enumerate(log) if step.what == "rename")
    commit = log.pop(number)
    first_sync = next(number for number, step in enumerate(log) if number >= before and step.what == "sync")
    log.insert(first_sync, commit)


BROKEN = {
    "first data file not synced": (without("sync", 0), False),
    "second data file not synced": (without("sync", 1), False),
    "manifest not synced": (without("sync", -1), False),
    "directory not synced": (without("sync directory", -2), False),
    "parent not synced": (without("sync directory", -1), False),
    "parent not synced when replacing": (without("sync directory", -1), True),
    "directory not synced when replacing": (without("sync directory", -2), True),
    "renamed too early": (renamed_too_early, False),
    "old one removed first": (old_removed_first, True),
}


@pytest.mark.parametrize(("broken", "replace"), BROKEN.values(), ids=BROKEN)
def test_every_step_of_the_protocol_is_needed(broken, replace, verdicts):
    """Take any sync away, or change the order, and the simulation finds a power cut that loses data."""
    disk, before = saved(replace=replace)
    log = list(disk.log)
    broken(log, before)
    wrong, _ = violations(log, before, verdicts, replace=replace)
    assert wrong


def test_after_a_power_cut_the_next_save_cleans_up(tmp_path):
    """Whatever a killed save left, the next one to the same name succeeds and leaves nothing but itself."""
    disk, before = saved(replace=True)
    seen = set()
    for end in range(before, len(disk.log) + 1):
        for tree in crashes(disk.log, end, most=1):
            if tuple(sorted(tree.items())) in seen:
                continue
            seen.add(tuple(sorted(tree.items())))
            plant(tree, tmp_path)
            write(tmp_path / PATH, 3, replace=True)
            assert recovered(tmp_path / PATH) == 3
            assert os.listdir(tmp_path / "run") == ["ck"]
            shutil.rmtree(tmp_path / "run")
    assert len(seen) > 30


# --- failing operations -------------------------------------------------------------------------------------

ERRORS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EINTR, errno.EROFS, errno.EACCES]


def failing(number, code, *, for_ever):
    """A fault at one call, or at that and all later ones."""

    def fault(call, what):
        hit = call >= number if for_ever else call == number
        return OSError(code, os.strerror(code)) if hit else None

    return fault


def attempts(code, *, for_ever, replace):
    """A save for each call that can fail, with the disk after it and what was raised; ends when nothing fails."""
    number = 0
    while True:
        disk = Disk()
        write(PATH, OLD, disk) if replace else disk.make_directory(Path("run"))
        disk.calls.clear()
        disk.fault = failing(number, code, for_ever=for_ever)
        try:
            write(PATH, NEW, disk, replace=replace)
            raised = None
        except WriteFailed as error:
            raised = error
        if len(disk.calls) <= number:
            return
        yield number, disk, raised
        number += 1


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("code", ERRORS, ids=errno.errorcode.get)
def test_one_failing_call_changes_nothing(code, replace, tmp_path):
    """Each call fails once: the old checkpoint is untouched, nothing is left behind, and errno is the system's."""
    outcomes: Counter[bool] = Counter()
    for number, disk, raised in attempts(code, for_ever=False, replace=replace):
        plant(disk.tree(), tmp_path / str(number))
        step = recovered(tmp_path / str(number) / PATH)
        others = sorted(set(os.listdir(tmp_path / str(number) / "run")) - {"ck"})
        if raised is None:  # only tidying up after the new one was safe can fail without failing the save
            assert step == NEW, disk.calls[number]
        else:
            assert (step, others) == (OLD if replace else None, []), disk.calls[number]
            assert raised.errno == code
            assert raised.filename
        outcomes[raised is None] += 1
        disk.fault = lambda number, what: None
        if raised is not None:
            write(PATH, NEW, disk, replace=replace)  # and once the fault is gone, it works
    assert outcomes[False] > 15


@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC], ids=errno.errorcode.get)
def test_failing_from_some_call_on_never_loses_the_old_one(code, replace, tmp_path):
    """The disk fails and stays so, clean-up included: old or new can be read, whole, and success is not claimed."""
    steps = []
    for number, disk, raised in attempts(code, for_ever=True, replace=replace):
        plant(disk.tree(), tmp_path / str(number))
        steps.append(recovered(tmp_path / str(number) / PATH) or 0)
        assert steps[-1] == NEW or raised is not None
    assert steps == sorted(steps)
    assert set(steps) == {OLD if replace else 0, NEW}


def test_a_failed_sync_is_not_repeated():
    """The system may report a failed sync once and forget it, so a second one would prove nothing."""
    for _, disk, raised in attempts(errno.EIO, for_ever=False, replace=False):
        if raised is None:
            continue
        synced = [path for what, path in disk.calls if what == "sync"]
        assert len(synced) == len(set(synced))


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

KILLED = """
import json, os, signal, sys
from pathlib import Path
from optstate.store.files import RealFiles
from tests.checkpoints import write

class Killing(RealFiles):
    def __init__(self, at):
        super().__init__()
        self.left = at

def counted(name):
    def call(self, *arguments):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return getattr(RealFiles, name)(self, *arguments)
    return call

for name in ("make_directory", "create", "write", "sync", "close", "sync_directory", "rename", "remove_tree", "lock"):
    setattr(Killing, name, counted(name))

survived = False
number = 0
while not survived:
    path = Path(sys.argv[1]) / str(number) / "ck"
    write(path, 1)
    child = os.fork()
    if child == 0:
        write(path, 2, Killing(number), replace=True)
        os._exit(0)
    survived = os.waitpid(child, 0)[1] == 0
    number += 1
print(number)
"""


def run(code, *arguments, **options):
    """Run code without torch in a process of its own, from where it finds this project."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60, **options)


def test_kill_at_any_call(tmp_path):
    """A process killed before each call on real files: old or new can be read, and the next save tidies up."""
    done = run(KILLED, tmp_path)
    assert done.returncode == 0, done.stderr
    number = int(done.stdout)
    assert number > 15
    steps: list[int | None] = []
    for folder in (tmp_path / str(each) for each in range(number)):
        steps.append(recovered(folder / "ck"))
        write(folder / "ck", 3, replace=True)
        assert recovered(folder / "ck") == 3
        assert os.listdir(folder) == ["ck"]
    commit = steps.index(NEW)
    assert set(steps[:commit]) == {OLD}
    assert set(steps[commit:]) == {NEW}


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


def test_manifest_is_written_last_and_everything_is_synced():
    """The order of steps: each file synced, the manifest after the data, then the directory, the name, its parent."""
    disk, before = saved(replace=False)
    whats = [step.what for step in disk.log[before:]]
    assert whats[-3:] == ["sync directory", "rename", "sync directory"]
    files = {step.inode: step.name for step in disk.log if isinstance(step, Step) and step.data == b"f"}
    synced = [files[step.target] for step in disk.log if step.what == "sync"]
    assert synced == ["weights.safetensors", "optimizer.safetensors", "manifest.json"]
