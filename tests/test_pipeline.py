"""Bytes on their way to files: whole and in order whatever the file system can do, and nothing synced after a failure."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import xxhash

import optstate
from optstate.errors import WriteFailed
from optstate.store.files import RealFiles
from optstate.store.pipeline import ALIGNMENT, BUFFERS, Pipeline
from optstate.store.save import save_live
from tests.disk import Disk

SIZES = [0, 1, 511, 512, 8191, 8192, 8193, 12_288, 16_384, 50_001]


class Small(RealFiles):
    """The real file system, with buffers so small that a test fills many."""

    buffer = 2 * ALIGNMENT


class Failing(Small):
    """One on which the n-th write fails, in whatever thread it is made."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.writes, self.syncs, self.closed = number, 0, 0, 0

    def write(self, handle, data, offset):
        self.writes += 1
        if self.writes > self.number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(handle, data, offset)

    def sync(self, handle):
        self.syncs += 1
        super().sync(handle)

    def close(self, handle):
        self.closed += 1
        super().close(handle)


def written(files, root, sizes, piece):
    """Files of these sizes, each written in pieces; what they hold, what they should, and their digests."""
    contents = [os.urandom(size) for size in sizes]
    digests = [xxhash.xxh3_128() for _ in sizes]
    with Pipeline(files) as pipeline:
        for number, content in enumerate(contents):
            with pipeline.file(root / str(number), len(content)) as output:
                for start in range(0, len(content), piece):
                    output.write(content[start : start + piece], digests[number])
                assert output.position == len(content)
    assert [digest.digest() for digest in digests] == [xxhash.xxh3_128_digest(content) for content in contents]
    return contents


@pytest.mark.parametrize("piece", [1000, 4096, 100_000])
@pytest.mark.parametrize("make", [Small, RealFiles], ids=["many buffers", "one buffer"])
def test_files_hold_what_was_written(tmp_path, make, piece):
    """Any number of files of any size, written in pieces of any size, hold those bytes and no others."""
    contents = written(make(), tmp_path, SIZES, piece)
    assert [(tmp_path / str(number)).read_bytes() for number in range(len(SIZES))] == contents


def test_a_file_system_without_a_way_past_the_cache(tmp_path):
    """Where that is refused at once, everything goes through the cache."""

    class Plain(Small):
        def set_direct(self, handle, *, on):
            return False

    contents = written(Plain(), tmp_path, SIZES, 5000)
    assert [(tmp_path / str(number)).read_bytes() for number in range(len(SIZES))] == contents


def test_a_file_system_that_asks_for_more(tmp_path):
    """Where a write past the cache is refused because of its place or length, the rest goes through the cache."""

    class Demanding(Small):
        def __init__(self):
            super().__init__()
            self.on, self.refused = False, 0

        def set_direct(self, handle, *, on):
            self.on = on
            return on

        def write(self, handle, data, offset):
            if self.on:
                self.refused += 1
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return super().write(handle, data, offset)

    files = Demanding()
    contents = written(files, tmp_path, [50_001], 5000)
    assert (tmp_path / "0").read_bytes() == contents[0]
    assert files.refused >= 1


def test_a_system_without_these_calls(tmp_path, monkeypatch):
    """Where space cannot be set aside and nobody says what the file system is, everything goes through the cache."""
    monkeypatch.setattr("optstate.store.files._system", lambda *arguments: None)
    contents = written(Small(), tmp_path, SIZES, 5000)
    assert [(tmp_path / str(number)).read_bytes() for number in range(len(SIZES))] == contents


def chosen(directory):
    """Whether files in a directory are written past the page cache."""
    files = RealFiles()
    handle = files.create(directory / "probe")
    try:
        return files.set_direct(handle, on=True)
    finally:
        files.close(handle)
        (directory / "probe").unlink()


@pytest.mark.skipif(shutil.which("stat") is None or not hasattr(os, "O_DIRECT"), reason="no stat, or no O_DIRECT")
def test_the_file_system_decides_how_it_is_written(tmp_path):
    """Past the cache where that is the faster way; a memory file system, which would only pretend, through the cache."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    assert chosen(tmp_path) is (kind.strip() in ("ext2/ext3", "xfs", "btrfs", "f2fs", "overlayfs"))


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no /dev/shm")
def test_memory_is_written_through_the_cache():
    """A file system in memory takes the flag, and it would gain nothing."""
    directory = Path("/dev/shm") / f"optstate-{os.getpid()}"
    directory.mkdir()
    try:
        assert chosen(directory) is False
        contents = written(Small(), directory, SIZES, 5000)
        assert [(directory / str(number)).read_bytes() for number in range(len(SIZES))] == contents
    finally:
        shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount")
def test_file_systems_that_root_can_mount(tmp_path):
    """An overlay, as in a container, hands on to the disk beneath; one that can set no space aside takes what is written."""
    code = (
        "import os, sys; from pathlib import Path; from tests.test_pipeline import SIZES, Small, chosen, written\n"
        "root = Path(sys.argv[1]); contents = written(Small(), root, SIZES, 5000)\n"
        "assert [(root / str(n)).read_bytes() for n in range(len(SIZES))] == contents; print(chosen(root))"
    )
    lower, upper, work, merged, memory = (tmp_path / name for name in ("lower", "upper", "work", "merged", "memory"))
    for directory in (lower, upper, work, merged, memory):
        directory.mkdir()
    mounts = (
        f"mount -t overlay overlay -o lowerdir={lower},upperdir={upper},workdir={work} {merged} && "
        f"mount -t ramfs ramfs {memory} && echo mounted"
    )
    script = f'{mounts} && for root in {merged} {memory}; do "$0" -c "$1" $root || exit; done'
    command = ["unshare", "-m", "sh", "-c", script, sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.startswith("mounted"):
        pytest.skip(f"not mounted: {done.stderr.strip()}")
    assert done.stdout.split() == ["mounted", "True", "False"], done.stderr


class Late:
    """A digest before and after which a thread of the program gets to change the source."""

    def __init__(self, source):
        self.source, self.inner = source, xxhash.xxh3_128()

    def update(self, data):
        self.source[:] = os.urandom(len(self.source))
        self.inner.update(data)
        self.source[:] = os.urandom(len(self.source))


@pytest.mark.parametrize("size", [1000, 40_000, 3_000_000], ids=["small", "medium", "several pieces"])
def test_a_digest_is_of_what_was_written(tmp_path, size):
    """Whatever becomes of the source while it is saved, no file ever disagrees with its digest."""
    source = bytearray(os.urandom(size))
    digest = Late(source)
    with Pipeline(RealFiles()) as pipeline, pipeline.file(tmp_path / "a", size) as output:
        output.write(source, digest)
    assert digest.inner.digest() == xxhash.xxh3_128_digest((tmp_path / "a").read_bytes())


class Held(Small):
    """One on which nothing is written until it is let go."""

    def __init__(self):
        super().__init__()
        self.go = threading.Event()

    def write(self, handle, data, offset):
        assert self.go.wait(60)
        return super().write(handle, data, offset)


def test_a_pipeline_is_widened_while_somebody_waits(tmp_path):
    """With enough buffers everything is copied although nothing was written yet; with those of the beginning it would wait."""
    assert BUFFERS < 10
    files, content = Held(), os.urandom(10 * Small.buffer)
    pipeline, copied = Pipeline(files), threading.Event()

    def copy():
        with pipeline:
            with pipeline.file(tmp_path / "a", len(content)) as output:
                output.write(content)
            copied.set()

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        pipeline.widen(11 * Small.buffer)
        assert copied.wait(60)
    finally:
        files.go.set()
        thread.join()
    assert (tmp_path / "a").read_bytes() == content


def test_a_system_without_more_threads(tmp_path, monkeypatch):
    """Where none can be started the caller writes; nothing is lost but time."""

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    contents = written(Small(), tmp_path, SIZES, 5000)
    assert [(tmp_path / str(number)).read_bytes() for number in range(len(SIZES))] == contents


def test_an_interrupt_while_threads_start(tmp_path, monkeypatch):
    """Ctrl-C at the worst moment comes out, and leaves no thread that the program would wait for at its end."""
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Pipeline(Small()):
        pass
    assert threading.active_count() == before


@pytest.mark.slow
def test_a_save_that_outlives_the_program(tmp_path):
    """What a thread saves after the last line of the program is whole: no pool of threads refuses to work by then."""
    code = (
        "import sys, threading, torch, optstate\n"
        "from optstate.store.save import save\n"
        "model = torch.nn.ParameterList([torch.ones(10_000_000)])\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    save(sys.argv[1], model=model)\n"
        "threading.Thread(target=late).start()"
    )
    command = [sys.executable, "-c", code, tmp_path / "ck"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert optstate.verify(tmp_path / "ck").ok


@pytest.mark.parametrize("after", range(12))
def test_a_failed_write_comes_out_and_nothing_is_synced_after_it(tmp_path, after):
    """An error in a thread that writes is raised, with the file's name; every file is closed, and its own never synced."""
    files = Failing(after)

    def write():
        with Pipeline(files) as pipeline:
            for number in range(3):
                with pipeline.file(tmp_path / str(number)) as output:
                    for _ in range(5):
                        output.write(bytes(files.buffer))

    with pytest.raises(OSError, match="Input/output error") as caught:
        write()
    assert Path(caught.value.filename).parent == tmp_path
    assert files.syncs <= after // 5  # of the files that were whole by then
    assert files.closed == len(list(tmp_path.iterdir()))


def test_an_interrupt_stops_it(tmp_path):
    """What was not written yet is not written any more, and all is closed."""
    files = Failing(10**6)

    def write():
        with Pipeline(files) as pipeline, pipeline.file(tmp_path / "a") as output:
            output.write(bytes(100_000))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert (files.syncs, files.closed) == (0, 1)


def test_a_full_disk_says_so_first(tmp_path):
    """Space is set aside before anything is written, so a disk that is full costs no time, and nothing is left."""
    disk = Disk(lambda number, what: OSError(errno.ENOSPC, "No space left on device") if what == "reserve" else None)
    with pytest.raises(OSError, match="No space left") as caught, Pipeline(disk) as pipeline:
        pipeline.file(Path("big"), 1 << 20)
    assert caught.value.filename == "big"
    assert not any(what == "write" for what, _ in disk.calls)


def test_a_nearly_full_disk_says_so_before_anything_is_written():
    """Room for every file of a checkpoint is asked for first, so that the last of them does not fail after hours of writing."""
    reserved = []

    def fault(number, what):
        reserved.append(what)
        second = what == "reserve" and reserved.count("reserve") == 2
        return OSError(errno.ENOSPC, "No space left on device") if second else None

    disk, model = Disk(fault), torch.nn.Linear(100, 100)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(100)).sum().backward()
    optimizer.step()
    with pytest.raises(WriteFailed, match="No space left") as caught:
        save_live(Path("ck"), disk, model=model, optimizer=optimizer)
    assert "of free space" in caught.value.expected
    assert not any(what == "write" for what, _ in disk.calls)
    assert disk.tree() == {}


def test_a_large_checkpoint_is_whole(tmp_path):
    """One of several buffers, of tensors whose sizes fit none of them, reads back bit for bit."""
    torch.manual_seed(0)
    model = torch.nn.ParameterList([torch.randn(size) for size in (1, 4_194_304, 333, 5_000_001, 7, 10_001)])
    path = optstate.save(tmp_path / "ck", model=model)
    assert optstate.verify(path).ok
    weights = optstate.open(path).weights
    for name, parameter in model.named_parameters():
        assert weights[name].array().tobytes() == parameter.detach().numpy().tobytes()


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """A save takes a few buffers of memory, however large it is."""
    model = torch.nn.ParameterList([torch.ones(25_000_000) for _ in range(4)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optstate.save(tmp_path / "ck", model=model)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < BUFFERS * RealFiles.buffer + (40 << 20)
