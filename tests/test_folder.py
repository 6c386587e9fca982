"""A folder of checkpoints: the newest intact one is found whatever the names say, and is never lost.

The rule in every crash state: what was saved before can be read, whole; at least two are, once there were two; and what has
the name of a checkpoint is one, or is told to be damaged.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from optstate.errors import Damaged, InUse, NewerFormat, RestoreError, SaveError, WriteFailed
from optstate.formats.ours.directory import open_directory, read_brief, read_manifest
from optstate.formats.ours.manifest import Body
from optstate.formats.ours.verify import verify
from optstate.store.files import RealFiles
from optstate.store.folder import contents, damage, out_of_use
from optstate.store.keep import WHY, put_aside, remove, superfluous
from optstate.store.lock import LOCK, Lock
from optstate.store.shelf import Shelf
from optstate.store.writer import write_checkpoint
from tests.checkpoints import recovered, sample, write
from tests.disk import crashes, plant
from tests.mirror import Mirror

ROOT = Path(__file__).parents[1]


def shelf_in(path, files=None, *, keep=2, keep_every=None, strip=False, full=False):
    return Shelf(path, keep=keep, keep_every=keep_every, strip=strip, full=full, files=files or RealFiles())


def save(shelf, step, tensors=1):
    """What a checkpointer does, without torch."""
    shelf.open()
    body, payloads = sample(step, tensors)
    body = msgspec.structs.replace(body, run=shelf.run, lineage=shelf.lineage)
    path, mine = shelf.place(step)
    write_checkpoint(path, body, payloads, shelf.files, replace=mine)
    shelf.add(path, body.save_id)


def names(folder):
    return sorted(set(os.listdir(folder)) - {LOCK})


def flip(path, at):
    """Change one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


# --- which is the newest ------------------------------------------------------------------------------------


def test_newest_is_what_the_manifests_say(tmp_path):
    """Neither names, nor times of files, nor pointers count: the step in the manifest does."""
    for step, name in ((7, "step-1000"), (900, "best"), (30, "step-30")):
        write(tmp_path / name, step)
    os.utime(tmp_path / "step-30")
    (tmp_path / "latest").symlink_to("step-30")
    (tmp_path / "latest.txt").write_text("step-30")
    (tmp_path / "notes").mkdir()
    assert [(found.path.name, found.step) for found in contents(tmp_path)] == [
        ("best", 900), ("step-30", 30), ("step-1000", 7),
    ]  # fmt: skip


def test_folder_that_is_not_there_is_empty(tmp_path):
    """Looking makes nothing."""
    assert contents(tmp_path / "nowhere") == []
    assert out_of_use(tmp_path / "nowhere") == []
    assert names(tmp_path) == []


def test_links_are_not_followed(tmp_path):
    """A link is somebody else's way to a checkpoint: it is none of this folder."""
    write(tmp_path / "elsewhere" / "step-9", 9)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-9").symlink_to(tmp_path / "elsewhere" / "step-9")
    assert contents(tmp_path / "run") == []


def test_checkpoint_set_aside_by_a_killed_save_is_found(tmp_path):
    """In the one instant in which a checkpoint that is replaced has no name, it is still the newest."""
    write(tmp_path / "step-5", 5)
    (tmp_path / "step-5").rename(tmp_path / f".step-5.old-{RealFiles().boot}-01234567")
    (found,) = contents(tmp_path)
    assert (found.path, found.step, found.fault) == (tmp_path / "step-5", 5, None)


DAMAGES = {
    "a missing file": lambda path: (path / "weights.safetensors").unlink(),
    "an empty file": lambda path: (path / "weights.safetensors").write_bytes(b""),
    "a cut file": lambda path: os.truncate(path / "weights.safetensors", 100),
    "a changed header": lambda path: flip(path / "weights.safetensors", 20),
    "a changed manifest": lambda path: flip(path / "manifest.json", 300),
    "a changed first byte": lambda path: flip(path / "manifest.json", 0),
    "a cut manifest": lambda path: os.truncate(path / "manifest.json", 200),
    "an empty manifest": lambda path: (path / "manifest.json").write_bytes(b""),
    "a file of another save": lambda path: shutil.copy(path.parent / "step-1" / "weights.safetensors", path),
}


@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_seen_without_reading_values(harm, tmp_path):
    """Whatever is wrong with manifest, lengths or headers: it is damaged, in one line, and the older one is the newest."""
    for step in (1, 2):
        write(tmp_path / f"step-{step}", step)
    harm(tmp_path / "step-2")
    found = {each.path.name: each for each in contents(tmp_path)}
    assert found["step-1"].fault is None
    assert found["step-2"].fault
    assert "\n" not in str(found["step-2"])
    assert "step-2: damaged: " in str(found["step-2"])
    shelf = shelf_in(tmp_path)
    shelf.open()
    assert [each.step for each in shelf.known] == [1]


def test_what_cannot_be_judged_is_no_damage(tmp_path):
    """A newest checkpoint of a newer optstate is no reason to go back silently."""
    for step in (1, 2):
        write(tmp_path / f"step-{step}", step)
    manifest = tmp_path / "step-2" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"optstate/1", b"optstate/2"))
    with pytest.raises(NewerFormat):
        contents(tmp_path)
    told = contents(tmp_path, strict=False)
    assert str(told[0]).startswith("step-1: intact")
    assert "step-2: not read: " in str(told[1])
    assert "optstate/2" in str(told[1])
    shelf = shelf_in(tmp_path)
    for _ in range(2):
        with pytest.raises(NewerFormat):
            save(shelf, 3)
    assert names(tmp_path) == ["step-1", "step-2"]


def test_foreign_things_are_left_alone(tmp_path):
    """Files, folders and manifests of other programs are no checkpoints, and stay as they are."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "plots").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "a web app"}')
    before = names(tmp_path)
    shelf = shelf_in(tmp_path)
    for step in range(1, 6):
        save(shelf, step)
    assert names(tmp_path) == sorted([*before, "step-4", "step-5"])
    assert [each.step for each in contents(tmp_path)] == [5, 4]


@pytest.mark.parametrize("tensors", [0, 3])
def test_brief_says_what_the_manifest_says(tensors, tmp_path):
    """The quick look and the whole manifest agree."""
    write(tmp_path / "ck", 3, tensors=tensors)
    brief, body = read_brief(tmp_path / "ck"), read_manifest(tmp_path / "ck")
    for name in ("save_id", "created", "environment", "files", "step", "lineage", "run"):
        assert getattr(brief, name) == getattr(body, name)
    assert len(brief.optimizers) == len(body.optimizers)


def test_manifests_without_run_are_read():
    """A checkpoint that was saved before runs had names has none."""
    raw = msgspec.json.encode(sample(1)[0])
    assert b'"run"' not in raw
    assert msgspec.json.decode(raw, type=Body).run is None


# --- which stay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "keep", "every", "gone"),
    [
        ([], 2, None, set()),
        ([1, 2], 2, None, set()),
        ([3, 1, 2], 2, None, {1}),
        ([100, 200, 300, 400, 500], 2, 200, {100, 300}),
        ([0, 5, 10, 15], 2, 10, {5}),
        ([1, 2, 3], 5, None, set()),
    ],
)
def test_which_go(steps, keep, every, gone):
    """All but the newest, and those at the marks."""
    assert superfluous(steps, keep, every) == gone


def test_only_what_the_run_saved_goes(tmp_path):
    """Checkpoints saved by hand, of another run, or renamed stay for ever."""
    write(tmp_path / "step-1", 1)
    other = shelf_in(tmp_path)
    save(other, 2)
    other.close()
    shelf = shelf_in(tmp_path)
    for step in (3, 4, 5):
        save(shelf, step)
    (tmp_path / "step-4").rename(tmp_path / "best")
    for step in (6, 7, 8):
        save(shelf, step)
    assert names(tmp_path) == ["best", "step-1", "step-2", "step-7", "step-8"]


def test_what_somebody_else_put_in_its_place_stays(tmp_path):
    """A checkpoint that is not the one that was saved under that name is not removed."""
    shelf = shelf_in(tmp_path)
    for step in (1, 2):
        save(shelf, step)
    shutil.rmtree(tmp_path / "step-1")
    write(tmp_path / "step-1", 99)
    save(shelf, 3)
    assert recovered(tmp_path / "step-1") == 99


def test_a_link_in_its_place_is_not_followed(tmp_path):
    """Nothing outside the folder is removed by way of a link, looked at or slipped in later."""
    shelf = shelf_in(tmp_path / "run")
    for step in (1, 2):
        save(shelf, step)
    (tmp_path / "run" / "step-1").rename(tmp_path / "moved")
    (tmp_path / "run" / "step-1").symlink_to(tmp_path / "moved")
    save(shelf, 3)
    assert recovered(tmp_path / "moved") == 1
    remove(tmp_path / "run" / "step-1", RealFiles())
    assert recovered(tmp_path / "moved") == 1


def test_steps_only_go_up(tmp_path):
    """A step before the newest would be taken for an old one: it is refused, and nothing is written or removed."""
    shelf = shelf_in(tmp_path)
    save(shelf, 10)
    with pytest.raises(SaveError, match="step 5 was not saved") as caught:
        save(shelf, 5)
    assert caught.value.found == "step-10"
    assert names(tmp_path) == ["step-10"]


def test_one_that_does_not_read_back_lets_none_go(tmp_path):
    """What was written is read back first; where it is another, it is put aside, and the older ones stay."""

    class Careless(RealFiles):
        def sync_directory(self, path):
            super().sync_directory(path)
            if (path / "step-3").is_dir():
                flip(path / "step-3" / "weights.safetensors", -1 if self.deep else 20)

        deep = False

    for deep in (False, True):
        files = Careless()
        files.deep = deep
        folder = tmp_path / str(deep)
        shelf = shelf_in(folder, files, full=deep)
        for step in (1, 2):
            save(shelf, step)
        with pytest.raises(Damaged, match="reads back as something else") as caught:
            save(shelf, 3)
        assert caught.value.found
        assert names(folder) == ["step-1", "step-2", "step-3.damaged"]


def test_one_that_cannot_go_stays_and_is_told(tmp_path):
    """A removal that fails does not fail the save; the next save tries again."""

    class Once(RealFiles):
        refused = False

        def rename(self, source, target):
            if ".del-" in target.name and not self.refused:
                self.refused = True
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
            super().rename(source, target)

    shelf = shelf_in(tmp_path / "run", Once())
    for step in (1, 2):
        save(shelf, step)
    with pytest.warns(RuntimeWarning, match="step-1 was to go, and stays: .*Permission denied"):
        save(shelf, 3)
    save(shelf, 4)
    assert names(tmp_path / "run") == ["step-3", "step-4"]


# --- damaged ones -------------------------------------------------------------------------------------------


def test_put_aside_says_why(tmp_path):
    """A damaged checkpoint keeps its bytes, gets a name that nobody resumes from, and a file with the reason."""
    write(tmp_path / "step-5", 5)
    flip(tmp_path / "step-5" / "weights.safetensors", -1)
    first = put_aside(tmp_path / "step-5", str(verify(tmp_path / "step-5")), RealFiles())
    write(tmp_path / "step-5", 5)
    second = put_aside(tmp_path / "step-5", "again", RealFiles())
    assert (first.name, second.name) == ("step-5.damaged", "step-5.damaged-2")
    assert "layers.2.weight" in (first / WHY).read_text()
    assert contents(tmp_path) == []
    assert out_of_use(tmp_path) == ["step-5.damaged", "step-5.damaged-2"]
    assert not verify(first).ok


def test_a_run_never_starts_anew_by_itself(tmp_path):
    """Where checkpoints are and none is intact, that is told, each with its fault, until somebody decides."""
    write(tmp_path / "step-5", 5)
    os.truncate(tmp_path / "step-5" / "weights.safetensors", 10)
    shelf = shelf_in(tmp_path)
    shelf.open()
    with pytest.raises(RestoreError, match="not started anew") as caught:
        shelf.refuse_a_new_start(shelf.read())
    assert "step-5: damaged: " in caught.value.found
    put_aside(tmp_path / "step-5", "cut", RealFiles())
    with pytest.raises(RestoreError, match="not started anew") as caught:
        shelf.refuse_a_new_start(shelf.read())
    assert "step-5.damaged" in caught.value.found
    shutil.rmtree(tmp_path / "step-5.damaged")
    shelf.refuse_a_new_start(shelf.read())


# --- the lock -----------------------------------------------------------------------------------------------


def test_one_at_a_time(tmp_path):
    """A second one is refused, and told who has the folder; closing gives it back."""
    first = shelf_in(tmp_path)
    first.open()
    with pytest.raises(InUse, match="in use") as caught:
        shelf_in(tmp_path).open()
    assert f"process {os.getpid()} on " in caught.value.found
    assert "close() the other" in caught.value.todo
    first.close()
    shelf_in(tmp_path).open()


def test_a_child_does_not_hold_the_lock(tmp_path):
    """A worker that outlives the run does not keep the folder, nor does it give it away while the run lives."""
    lock = Lock(tmp_path, RealFiles())
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.close(done[1])
        os.read(done[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(InUse):
        Lock(tmp_path, RealFiles())
    lock.free()
    Lock(tmp_path, RealFiles()).free()
    for end in (*ready, *done):
        os.close(end)
    os.waitpid(child, 0)


def test_lock_is_given_back_while_a_forked_process_lives(tmp_path):
    """A worker that was forked off, as those of a loader are, neither keeps the folder nor gives it away."""
    shelf = shelf_in(tmp_path)
    shelf.open()
    end, other_end = os.pipe()
    done, other_done = os.pipe()
    child = os.fork()
    if child == 0:
        shelf.close()
        os.write(other_done, b"!")
        os.read(end, 1)
        os._exit(0)
    assert os.read(done, 1) == b"!"
    with pytest.raises(InUse):
        shelf_in(tmp_path).open()
    shelf.close()
    again = shelf_in(tmp_path)
    again.open()
    again.close()
    os.write(other_end, b"!")
    assert os.waitpid(child, 0)[1] == 0
    for each in (end, other_end, done, other_done):
        os.close(each)


def test_lock_is_given_back_with_the_object(tmp_path):
    """Whoever forgets to close it loses nothing when it is gone."""
    shelf = shelf_in(tmp_path)
    shelf.open()
    with pytest.raises(InUse):
        shelf_in(tmp_path).open()
    del shelf
    again = shelf_in(tmp_path)
    again.open()
    assert again.known == []
    again.close()


HOLDER = """
import os, sys
from pathlib import Path
from optstate.store.files import RealFiles
from optstate.store.lock import Lock
lock = Lock(Path(sys.argv[1]), RealFiles())
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_other_process_is_named(tmp_path):
    """The message names the process that has the folder; when that is killed, the folder is free."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as other:
        number = int(other.stdout.readline())
        with pytest.raises(InUse) as caught:
            Lock(tmp_path, RealFiles())
        assert caught.value.found.startswith(f"process {number} on ")
        assert "end that process" in caught.value.todo
        other.kill()
        other.wait()
    Lock(tmp_path, RealFiles()).free()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_file_system_without_locks_is_told(code, tmp_path):
    """Where nothing can be locked a warning says so, and the run goes on."""
    mirror = Mirror(tmp_path)
    mirror.disk.fault = lambda number, what: OSError(code, os.strerror(code)) if what == "hold" else None
    shelf = shelf_in(tmp_path / "run", mirror)
    with pytest.warns(RuntimeWarning, match="has no locks"):
        shelf.open()
    save(shelf, 1)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC], ids=errno.errorcode.get)
def test_folder_that_cannot_be_used(code, tmp_path):
    """A refusal of the system has its errno, and names the folder."""
    mirror = Mirror(tmp_path)
    mirror.disk.fault = lambda number, what: OSError(code, os.strerror(code)) if what == "hold" else None
    with pytest.raises(WriteFailed, match="run cannot be used") as caught:
        shelf_in(tmp_path / "run", mirror).open()
    assert caught.value.errno == code


def test_folder_that_is_a_file(tmp_path):
    """A file in the place of the folder is an error of the system, and stays."""
    (tmp_path / "run").write_text("mine")
    with pytest.raises(WriteFailed, match="cannot be used"):
        shelf_in(tmp_path / "run").open()
    assert (tmp_path / "run").read_text() == "mine"


# --- power cuts ---------------------------------------------------------------------------------------------


class Oracle:
    """What can be read in each tree that a power cut leaves; the same tree is looked at once."""

    def __init__(self, root):
        self.root = root
        self.known = {}

    def of(self, tree):
        key = tuple(sorted(tree.items()))
        if key not in self.known:
            plant(tree, self.root)
            self.known[key] = self.look(self.root / "run")
            shutil.rmtree(self.root)
        return self.known[key]

    def look(self, folder):
        """The steps that are whole, the newest first; those without optimizer; and what is damaged."""
        found = contents(folder)
        for each in found:
            if each.fault is None:
                assert damage(each.path) is None, each
                assert recovered(each.path) == each.step
        bare = [name for name in out_of_use(folder) if name.endswith(".weights") and verify(folder / name).ok]
        return (
            tuple(each.step for each in found if each.fault is None),
            tuple(int(name.split("-")[1].split(".")[0]) for name in bare),
            tuple(each.path.name for each in found if each.fault is not None),
        )


def trained(root, steps, **options):
    """A run that saved these steps on a recorded disk, with where each save began and the end."""
    mirror = Mirror(root)
    shelf = shelf_in(root / "run", mirror, **options)
    ends = []
    for step in steps:
        save(shelf, step)
        ends.append(len(mirror.disk.log))
    shelf.close()
    return mirror.disk.log, ends


def violations(log, ends, steps, oracle, *, strip=False, most=2):
    """Every crash state in which the rule does not hold, and how many were tried."""
    wrong, tried = [], 0
    for end in range(len(log) + 1):
        safe = [step for step, done in zip(steps, ends, strict=True) if end >= done]
        running = steps[len(safe)] if len(safe) < len(steps) else None
        for tree in crashes(log, end, most):
            tried += 1
            whole, bare, damaged = oracle.of(tree)
            newest = whole[0] if whole else None
            lost = strip and not {*safe} <= {*whole, *bare}
            if damaged or lost or newest not in {safe[-1] if safe else None, running} or len(whole) < min(2, len(safe)):
                wrong.append((end, whole, bare, damaged))
    return wrong, tried


STEPS = [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("strip", [False, True], ids=["removing", "stripping"])
def test_power_cut_at_any_step_of_a_run(strip, tmp_path, whole):
    """Whatever is lost, torn or garbage: the newest is the last that was saved or the one in flight, and two are whole."""
    log, ends = trained(tmp_path, STEPS, strip=strip)
    wrong, tried = violations(log, ends, STEPS, Oracle(tmp_path / "disk"), strip=strip, most=3 if whole else 2)
    assert wrong == []
    assert tried > 500


def without_rename(log):
    """A broken protocol: what goes is unlinked where it is."""
    del log[next(number for number, step in enumerate(log) if ".del-" in step.new_name)]


def without_sync_before_unlinking(log):
    """A broken protocol: the rename may be lost while the removal is not."""
    going = next(number for number, step in enumerate(log) if ".del-" in step.new_name)
    assert log[going + 1].what == "sync directory"
    del log[going + 1]


def removed_first(log):
    """A broken protocol: the old one goes before the new one has its name."""
    going = next(number for number, step in enumerate(log) if ".del-" in step.new_name)
    last = next(
        number for number in range(going, len(log)) if log[number].what == "unlink" and ".del-" in log[number].name
    )
    removal = log[going : last + 1]
    del log[going : last + 1]
    commit = max(number for number, step in enumerate(log[:going]) if step.what == "rename")
    log[commit:commit] = removal


def newest_goes(log):
    """A broken protocol: the wrong one goes."""
    number = next(number for number, step in enumerate(log) if ".del-" in step.new_name)
    newest = max(number for number, step in enumerate(log[:number]) if step.what == "rename")
    log[number] = log[number]._replace(name=log[newest].new_name)


def without_the_copy_in_place(log):
    """A broken protocol: the copy's name may be lost when its checkpoint is gone."""
    copied = next(number for number, step in enumerate(log) if step.new_name.endswith(".weights"))
    going = next(number for number, step in enumerate(log) if ".del-" in step.new_name)
    log.insert(copied, log.pop(going))


BROKEN = {
    "unlinked where it is": (without_rename, False),
    "rename not synced": (without_sync_before_unlinking, False),
    "old one removed first": (removed_first, False),
    "the newest goes": (newest_goes, False),
    "checkpoint gone before its copy is there": (without_the_copy_in_place, True),
}


@pytest.mark.parametrize(("broken", "strip"), BROKEN.values(), ids=BROKEN)
def test_every_step_of_letting_go_is_needed(broken, strip, tmp_path):
    """Take a step away, or change the order, and the simulation finds a power cut that loses a checkpoint."""
    log, ends = trained(tmp_path, STEPS[:3], strip=strip)
    log, before = list(log), len(log)
    broken(log)
    ends[-1] += len(log) - before
    wrong, _ = violations(log, ends, STEPS[:3], Oracle(tmp_path / "disk"), strip=strip, most=1)
    assert wrong


@pytest.mark.slow
def test_power_cut_while_a_damaged_one_is_put_aside(tmp_path):
    """The good one is there in every state, and the damaged one is never taken for good."""
    mirror = Mirror(tmp_path)
    shelf = shelf_in(tmp_path / "run", mirror)
    for step in (1, 2):
        save(shelf, step)
    raw = (tmp_path / "run" / "step-2" / "weights.safetensors").read_bytes()
    handle = next(inode for inode, content in mirror.disk.contents.items() if bytes(content) == raw)
    mirror.disk._put(handle, len(raw) - 1, bytes([raw[-1] ^ 1]))
    mirror.disk.log.append(mirror.disk.log[-1]._replace(what="sync", data=b"", offset=0))
    flip(tmp_path / "run" / "step-2" / "weights.safetensors", -1)
    before = len(mirror.disk.log)
    aside = put_aside(tmp_path / "run" / "step-2", "one bit", mirror)
    assert aside.name == "step-2.damaged"
    states = 0
    for end in range(before, len(mirror.disk.log) + 1):
        for tree in crashes(mirror.disk.log, end, most=2):
            states += 1
            plant(tree, tmp_path / "disk")
            folder = tmp_path / "disk" / "run"
            assert recovered(folder / "step-1") == 1
            good = [each.step for each in contents(folder) if damage(each.path) is None]
            assert good == [1]
            shutil.rmtree(tmp_path / "disk")
    assert states > 20


@pytest.mark.slow
@pytest.mark.parametrize("strip", [False, True], ids=["removing", "stripping"])
def test_after_any_power_cut_the_run_goes_on(strip, tmp_path, whole):
    """From every crash state the next process tidies up, goes on, and ends with the same folder as an unharmed run."""
    (tmp_path / "first").mkdir()
    log, _ = trained(tmp_path / "first", STEPS, strip=strip)
    trees = {tuple(sorted(tree.items())): tree for end in range(len(log) + 1) for tree in crashes(log, end, most=0)}
    assert len(trees) > 40
    for tree in list(trees.values())[:: 1 if whole else 5]:
        plant(tree, tmp_path / "disk")
        shelf = shelf_in(tmp_path / "disk" / "run", strip=strip)
        shelf.open()
        if shelf.known:
            shelf.goes_on_from(shelf.known[0])
        for step in range((shelf.known[0].step if shelf.known else 0) + 1, 6):
            save(shelf, step)
        shelf.close()
        stays = ["step-4", "step-5"]
        left = [name for name in names(tmp_path / "disk" / "run") if not name.endswith(".weights")]
        assert left == stays
        shutil.rmtree(tmp_path / "disk")


# --- lineage ------------------------------------------------------------------------------------------------


def test_lineage_grows_with_each_resume(tmp_path):
    """A manifest names the checkpoints that the run was resumed from, the oldest first, and the versions of each."""
    for life, step in enumerate((1, 2, 3)):
        shelf = shelf_in(tmp_path, keep=5)
        shelf.open()
        if life:
            shelf.goes_on_from(shelf.known[0])
        save(shelf, step)
        shelf.close()
    body = read_manifest(tmp_path / "step-3")
    assert [(entry.step, entry.save_id) for entry in body.lineage] == [(1, f"{1:032x}"), (2, f"{2:032x}")]
    assert body.lineage[0].environment == body.environment
    assert {read_manifest(tmp_path / f"step-{step}").run for step in (1, 2, 3)} == {body.run}
    assert open_directory(tmp_path / "step-3").step == 3
