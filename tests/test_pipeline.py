"""Bytes on their way to files: whole and in order whatever the file system can do, and nothing synced after a failure."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
import torch
import xxhash

import optstate
from optstate.store.files import RealFiles
from optstate.store.pipeline import ALIGNMENT, BUFFERS, Pipeline
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
