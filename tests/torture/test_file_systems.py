"""Real file systems: the disk of a machine that loses power, full ones, small ones, odd ones."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from optstate.errors import ReadError, WriteFailed
from optstate.store.folder import contents, damage
from tests.checkpoints import recovered, write
from tests.torture.counts import COUNTS

ROOT = Path(__file__).parents[2]


def python(code, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return [sys.executable, "-c", code, *map(str, arguments)], {"env": environment, "text": True, **options}


# --- ext4 on an image that is copied while it is in use -------------------------------------------------------

SAVING = """
import sys
from itertools import count
from pathlib import Path
from tests.torture.deeds import run
from optstate.store.files import RealFiles

sys.stdin.readline()
root = Path(sys.argv[1])
for step in count(1):
    run(step, strip=step % 2 == 0)(root, RealFiles())
    print(step, flush=True)
"""


@pytest.fixture
def small_disk(tmp_path):
    """A folder on an ext4 of its own, and a way to look at what its disk holds at this moment, as after a power cut."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mount", "umount", "mkfs.ext4"))):
        pytest.skip("mounting a disk of one's own takes root and mkfs.ext4")
    image, folder = tmp_path / "image", tmp_path / "disk"
    make_image(image, 16 << 20)
    folder.mkdir()
    with mounted(image, folder) as device:
        yield image, folder, device


def make_image(image, nbytes, *options):
    with image.open("wb") as file:
        file.truncate(nbytes)
    subprocess.run(["mkfs.ext4", "-q", "-F", *options, image], check=True, capture_output=True)


@contextmanager
def mounted(image, folder):
    done = subprocess.run(["mount", "-o", "loop", image, folder], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this system has no loop devices: {done.stderr.strip()}")
    source = next(
        line.split()[0] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == str(folder)
    )
    try:
        yield Path(source).name
    finally:
        subprocess.run(["umount", folder], check=True, capture_output=True)


def written(device):
    """How many writes a disk has completed."""
    return Path(f"/sys/block/{device}/stat").read_text().split()[4]


@pytest.mark.slow
def test_power_cuts_of_a_real_file_system(small_disk, tmp_path, whole):
    """What an ext4 had on its disk at random moments while a run saves: mounted anew, the last that was reported is there."""
    image, folder, device = small_disk
    chance, cuts, newest = random.Random(4), 0, []
    wanted = 100 if whole else COUNTS["moments at which a disk is copied"]
    command, options = python(SAVING, folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, **options) as saver:
        assert saver.stdin
        assert saver.stdout
        saver.stdin.write("\n")
        saver.stdin.flush()
        told = Told(saver.stdout.fileno())
        try:
            while cuts < wanted:
                time.sleep(chance.uniform(0.01, 0.06))
                # A process that is stopped finishes the call that it is in, and asks for nothing more.
                os.kill(saver.pid, signal.SIGSTOP)
                step = told.last()
                before = written(device)
                shutil.copyfile(image, tmp_path / "copy")
                still = written(device) == before
                os.kill(saver.pid, signal.SIGCONT)
                if still and step:  # else the kernel wrote something while it was copied
                    newest.append(after_power_cut(tmp_path / "copy", tmp_path / "seen", step))
                    cuts += 1
        finally:
            saver.kill()
    assert newest == sorted(newest)
    assert newest[-1] > newest[0]


class Told:
    """What a program has printed so far: numbers, each in a line."""

    def __init__(self, pipe):
        os.set_blocking(pipe, False)
        self.pipe, self.said = pipe, b""

    def last(self):
        """The last whole one; 0 when there is none yet."""
        with suppress(BlockingIOError):
            while more := os.read(self.pipe, 4096):
                self.said += more
        numbers = self.said.rpartition(b"\n")[0].split()
        return int(numbers[-1]) if numbers else 0


def after_power_cut(image, folder, told):
    """Mount what a disk had, which replays its journal, and hold it against what was reported; the newest step."""
    folder.mkdir(exist_ok=True)
    with mounted(image, folder):
        found = contents(folder / "run")
        assert all(each.fault is None and damage(each.path) is None for each in found), found
        assert [recovered(each.path) for each in found] == [each.step for each in found]
        assert found[0].step in (told, told + 1)
        assert len(found) >= min(2, told)
        return found[0].step


@pytest.mark.slow
def test_a_real_disk_that_is_full(tmp_path):
    """On an ext4 with no block left: ENOSPC with what is needed and what is free, the old one whole, and room makes it work."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("mount", "umount", "mkfs.ext4"))):
        pytest.skip("mounting a disk of one's own takes root and mkfs.ext4")
    make_image(tmp_path / "image", 2 << 20, "-m", "0", "-O", "^has_journal")
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(tmp_path / "image", folder):
        write(folder / "ck", 1)
        (folder / "filler").write_bytes(bytes(shutil.disk_usage(folder).free - 100_000))
        with pytest.raises(WriteFailed, match="No space left") as caught:
            write(folder / "ck", 2, replace=True, tensors=3_000)
        assert caught.value.errno == errno.ENOSPC
        assert "MB of free space" in caught.value.expected or "kB of free space" in caught.value.expected
        assert "free" in caught.value.found
        assert recovered(folder / "ck") == 1
        (folder / "filler").unlink()
        write(folder / "ck", 2, replace=True, tensors=30)
        assert recovered(folder / "ck") == 2
        assert sorted(os.listdir(folder)) == ["ck", "lost+found"]


CROWDED = """
import json, os, sys
from pathlib import Path
from optstate.errors import WriteFailed
from tests.checkpoints import recovered, write

folder = Path(sys.argv[1])
write(folder / "ck", 1)
for number in range(10_000):
    try:
        (folder / f"{number}").touch()
    except OSError:
        break
for spare in range(4):
    try:
        write(folder / "ck", 2, replace=True)
    except WriteFailed as error:
        print(json.dumps([error.errno, recovered(folder / "ck"), sorted(name for name in os.listdir(folder) if "ck" in name)]))
    os.unlink(folder / f"{number - 1 - spare}")
for name in os.listdir(folder):
    if name.isdigit():
        os.unlink(folder / name)
write(folder / "ck", 2, replace=True)
print(json.dumps([0, recovered(folder / "ck"), os.listdir(folder)]))
"""


@pytest.mark.slow
def test_no_inode_left(tmp_path):
    """A file system that takes no more files, however much room it has: told, nothing is left, and the old one is whole."""
    mount = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o nr_inodes=40 none "$1" && shift && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*mount, tmp_path, "true"], check=False).returncode:
        pytest.skip("this system lets nobody mount a small file system of their own")
    command, options = python(CROWDED, tmp_path)
    done = subprocess.run([*mount, tmp_path, *command], capture_output=True, check=False, timeout=60, **options)
    assert done.returncode == 0, done.stderr
    *failed, last = map(json.loads, done.stdout.splitlines())
    assert len(failed) >= 2
    assert all(each == [errno.ENOSPC, 1, ["ck"]] for each in failed)
    assert last == [0, 2, ["ck"]]


# --- odd places -----------------------------------------------------------------------------------------------

ODD = {
    "a newline": b"a\nb",
    "an escape sequence": b"\x1b[2J",
    "no Unicode": b"\xff\xfe",
    "a star and brackets": b"[*](a|b)",
    "only a dot in front": b".ck",
    "the longest name that has room beside it": b"x" * 232,
}


@pytest.mark.parametrize("name", ODD.values(), ids=ODD)
def test_odd_names(name, tmp_path):
    """Whatever a file system takes as a name: saved, replaced, read back, and a leftover of it is recognised."""
    path = tmp_path / os.fsdecode(name)
    write(path, 1)
    write(path, 2, replace=True)
    assert recovered(path) == 2
    assert os.listdir(os.fsencode(tmp_path)) == [name]


@pytest.mark.parametrize("length", [233, 255, 256, 300])
def test_names_that_are_too_long(length, tmp_path):
    """A name without room for a temporary one beside it is refused with the system's errno, and how long it may be."""
    with pytest.raises(WriteFailed, match="name too long") as caught:
        write(tmp_path / ("x" * length), 1)
    assert caught.value.errno == errno.ENAMETOOLONG
    assert "232 bytes" in caught.value.expected
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_are_those_that_the_user_asked_for(umask, tmp_path):
    """Files and folders get what the umask leaves, as any other that the program makes."""
    before = os.umask(umask)
    try:
        write(tmp_path / "ck", 1)
        (tmp_path / "own").touch()
        (tmp_path / "folder").mkdir()
    finally:
        os.umask(before)
    assert (tmp_path / "ck").stat().st_mode == (tmp_path / "folder").stat().st_mode
    for name in os.listdir(tmp_path / "ck"):
        assert (tmp_path / "ck" / name).stat().st_mode == (tmp_path / "own").stat().st_mode


def test_hard_links_to_an_old_one_keep_it(tmp_path):
    """Who links the files of a checkpoint to keep them has them for ever: nothing is written into a file that is there."""
    write(tmp_path / "ck", 1)
    shutil.copytree(tmp_path / "ck", tmp_path / "kept", copy_function=os.link)
    write(tmp_path / "ck", 2, replace=True)
    assert (recovered(tmp_path / "kept"), recovered(tmp_path / "ck")) == (1, 2)


def test_read_only_folder(tmp_path):
    """A folder that may not be written to: told with errno and path, and nothing changes."""
    if os.geteuid() == 0:
        with refusing(tmp_path):
            refused(tmp_path, errno.EPERM)
    else:
        tmp_path.chmod(0o500)
        refused(tmp_path, errno.EACCES)
        tmp_path.chmod(0o700)


@contextmanager
def refusing(folder):
    """A folder that even root may not write to, where the file system knows such a thing."""
    if (
        shutil.which("chattr") is None
        or subprocess.run(["chattr", "+i", folder], check=False, capture_output=True).returncode
    ):
        pytest.skip("root may write to any folder of this file system")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", folder], check=True)


def refused(folder, code):
    with pytest.raises(WriteFailed, match="was not saved") as caught:
        write(folder / "ck", 1)
    assert caught.value.errno == code
    assert str(folder) in str(caught.value)
    assert os.listdir(folder) == []


# --- several at once ------------------------------------------------------------------------------------------

REPLACING = """
import sys
from pathlib import Path
from tests.checkpoints import write
for step in range(1, int(sys.argv[2])):
    write(Path(sys.argv[1]) / "ck", step, replace=True)
"""


@pytest.mark.slow
def test_reading_while_it_is_replaced(tmp_path):
    """A reader of a checkpoint that is replaced again and again sees one of them, whole, or is told to look again."""
    write(tmp_path / "ck", 0)
    command, options = python(REPLACING, tmp_path, 150)
    read = told = 0
    with subprocess.Popen(command, **options) as saver:
        newest = 0
        while saver.poll() is None:
            try:
                step = recovered(tmp_path / "ck")
            except ReadError:
                told += 1
                continue
            if step is not None:  # None: it had no name at that moment, and what was set aside was gone a moment later
                assert step >= newest
                newest, read = step, read + 1
    assert saver.returncode == 0
    assert read > 20
    assert recovered(tmp_path / "ck") == 149


@pytest.mark.slow
def test_reading_what_is_removed(tmp_path):
    """Who opened a checkpoint reads on while it is replaced: the old files stay for those that have them open."""
    from optstate.formats.ours.directory import open_directory

    write(tmp_path / "ck", 1)
    opened = open_directory(tmp_path / "ck")
    write(tmp_path / "ck", 2, replace=True)
    values = opened.weights["layers.0.weight"].array()
    assert values.tolist() == [1.0] * 5
    assert recovered(tmp_path / "ck") == 2


RACING = """
import sys
from pathlib import Path
from optstate.errors import InUse
from optstate.store.files import RealFiles
from tests.torture.deeds import run

sys.stdin.readline()
done = refused = 0
while done < 12:
    try:
        run(*(int(sys.argv[2]) + 2 * done for _ in range(1)))(Path(sys.argv[1]), RealFiles())
    except InUse:
        refused += 1
    except Exception as error:
        if "later one" not in str(error):
            raise
    done += 1
print(done, refused)
"""


@pytest.mark.slow
def test_two_programs_that_save_and_prune_in_one_folder(tmp_path):
    """One at a time has the folder; whoever comes meanwhile is refused, and what lies there is whole throughout."""
    programs = []
    for number in (1, 2):
        command, options = python(RACING, tmp_path, number, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        programs.append(subprocess.Popen(command, **options))
    for program in programs:
        program.stdin.write("\n")
        program.stdin.flush()
    while any(program.poll() is None for program in programs):
        with suppress(ReadError):  # one that is removed while it is read
            for each in contents(tmp_path / "run"):
                assert each.fault is None or not each.path.exists() or damage(each.path) is None, each
    for program in programs:
        program.stdin.close()
        program.stdout.close()
        assert program.returncode == 0
    found = contents(tmp_path / "run")
    assert [damage(each.path) for each in found] == [None] * len(found)
    assert len(found) >= 2
