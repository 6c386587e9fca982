"""DeepSpeed's folders: genuine ones of two ranks against the running optimizer, and what is missing or wrong in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from optstate.errors import NotACheckpoint, Refused
from optstate.formats.opening import open_checkpoint
from optstate.state.tensors import is_tensor

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed (make rare)")


def run(folder, *arguments):
    """Train and save on two ranks, in processes of their own."""
    script = Path(__file__).parent / "rare" / "deepspeed_run.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(folder), *arguments], check=False, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def assert_true(checkpoint, truth, certainty):
    """Every slot that the running optimizer had, bit for bit, and no parameter more."""
    assert set(checkpoint.state) == set(truth)
    for name, slots in truth.items():
        assert checkpoint.state[name].facts.certainty == certainty
        for key, value in slots.items():
            found = checkpoint.state[name].slots[key].value
            assert is_tensor(found)
            assert np.array_equal(found.array(), value.float().numpy()), f"{name}/{key}"


RUNS = {
    "0": ("0", "AdamW"),
    "1": ("1", "AdamW", "frozen"),
    "2": ("2", "SGD"),
    "2 round robin": ("2", "AdamW", "robin"),
    "3": ("3", "AdamW", "frozen"),
    "3 in sub-groups": ("3", "SGD", "subgroups"),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder of a run, made once."""
    return cache(lambda name: run(tmp_path_factory.mktemp("deepspeed") / "ds", *RUNS[name]))


@needs_deepspeed
@pytest.mark.whole
@pytest.mark.parametrize("name", RUNS)
def test_genuine_folders(name, ran):
    """Each stage of ZeRO on two ranks: the flat vectors are cut back into the running optimizer's slots by name."""
    folder = ran(name)
    truth = torch.load(folder / "truth.pt")
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.step, checkpoint.unread, dict(checkpoint.unplaced)) == (3, (), {})
    assert checkpoint.format == ("DeepSpeed" if name == "0" else f"DeepSpeed ZeRO-{name[0]}")
    assert_true(checkpoint, truth, "file" if name in ("1", "2") else "rule")
    assert [group.hyperparameters["weight_decay"] for group in checkpoint.state.groups][-1] == 0.0
    shuffled = [clue.code for clue in checkpoint.clues if clue.code == "M206"]
    assert bool(shuffled) == (name == "2 round robin")


@needs_deepspeed
@pytest.mark.whole
@pytest.mark.parametrize("stage", ["1", "3"])
def test_genuine_universal_folders(stage, ran, tmp_path):
    """DeepSpeed's own converter: a folder for each parameter, whose name is the parameter's."""
    folder = ran(stage)
    truth = torch.load(folder / "truth.pt")
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    places = ["--input_folder", str(folder / "global_step3"), "--output_folder", str(tmp_path / "universal")]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    subprocess.run([*command, *places], check=True, capture_output=True, env=environment)
    for path in (tmp_path / "universal", tmp_path):
        checkpoint = open_checkpoint(path)
        assert (checkpoint.format, checkpoint.step, checkpoint.unread) == ("DeepSpeed Universal", 3, ())
        assert_true(checkpoint, truth, "file")
    (tmp_path / "universal" / "zero" / "0.weight" / "exp_avg.pt").unlink()
    assert "exp_avg" not in open_checkpoint(tmp_path / "universal").state["0.weight"].slots
    os.truncate(tmp_path / "universal" / "zero" / "0.weight" / "fp32.pt", 100)
    assert "0.weight/fp32.pt" in open_checkpoint(tmp_path / "universal").unread[0]


# --- the same layout made by hand, so that it is read where there is no DeepSpeed --------------------------

SHAPES: list[OrderedDict[str, tuple[int, ...]]] = [OrderedDict(a=(4, 3), b=(3,)), OrderedDict(c=(5,))]


def values(name, key):
    generator = torch.Generator().manual_seed(sum(map(ord, name + key)))
    return torch.randn(SHAPES[0].get(name) or SHAPES[1][name], generator=generator)


class _Fragment:
    """Stands for `deepspeed.utils.tensor_fragment.fragment_address`, whose attributes are all that a file has of it."""

    def __init__(self, start, numel):
        self.start, self.numel = start, numel


def forge(folder, *, stage=2, ranks=2, mapping=True, step=7):
    """A folder of `stage`, laid out as DeepSpeed's sources say; the vectors of a group are cut over `ranks`."""
    tag = folder / f"global_step{step}"
    tag.mkdir(parents=True)
    (folder / "latest").write_text(f"global_step{step}")
    shapes = [OrderedDict((name, torch.Size(shape)) for name, shape in group.items()) for group in SHAPES]
    about = {"module": {"a": values("a", "w").bfloat16()}, "param_shapes": shapes, "global_steps": step}
    cut = {key: [_cut(group, key, stage, ranks) for group in SHAPES] for key in ("fp32", "exp_avg", "exp_avg_sq")}
    for rank in range(ranks):
        states = {
            index: {"step": torch.tensor(7.0), **{key: cut[key][index][rank] for key in ("exp_avg", "exp_avg_sq")}}
            for index in range(2)
        }
        groups = [
            {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False, "params": [index]}
            for index in range(2)
        ]
        inner = {"state": states, "param_groups": groups}
        masters = [cut["fp32"][index][rank] for index in range(2)]
        node = {"zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks] * 2}
        if stage == 3:
            node |= {"optimizer_state_dict": inner, "fp32_flat_groups": masters}
            torch.save(about, tag / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        else:
            node |= {"base_optimizer_state": inner, "single_partition_of_fp32_groups": masters}
            if mapping:
                node["param_slice_mappings"] = [_places(group, rank, ranks) for group in SHAPES]
            torch.save(about, tag / "mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": node}, tag / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return folder


def _cut(group, key, stage, ranks):
    if stage == 3:
        pieces = [torch.nn.functional.pad(values(name, key).flatten(), (0, -values(name, key).numel() % ranks)) for name in group]  # fmt: skip
        return [torch.cat([piece.chunk(ranks)[rank] for piece in pieces]).clone() for rank in range(ranks)]
    flat = torch.cat([values(name, key).flatten() for name in group])
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % ranks))
    return [part.clone() for part in flat.chunk(ranks)]


def _places(group, rank, ranks):
    total = sum(values(name, "w").numel() for name in group)
    size, start, places = -(-total // ranks), 0, OrderedDict()
    for name in group:
        stop = start + values(name, "w").numel()
        first, last = max(start, rank * size), min(stop, (rank + 1) * size)
        if first < last:
            places[name] = _Fragment(first - rank * size, last - first)
        start = stop
    return places


def truth():
    return {
        name: {key: values(name, key) for key in ("fp32", "exp_avg", "exp_avg_sq")}
        for group in SHAPES
        for name in group
    }


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("mapping", [True, False])
def test_layout_from_source(stage, ranks, mapping, tmp_path):
    """Any number of ranks, parameters that straddle two of them, and versions that wrote no mapping."""
    checkpoint = open_checkpoint(forge(tmp_path / "ds", stage=stage, ranks=ranks, mapping=mapping))
    assert_true(checkpoint, truth(), "file" if mapping and stage < 3 else "rule")
    assert (checkpoint.step, checkpoint.clues, checkpoint.unread) == (7, (), ())
    assert checkpoint.state["a"].momentum.key == "exp_avg"
    assert checkpoint.state["a"]["fp32"].role == "master_weights"
    assert [group.parameters for group in checkpoint.state.groups] == [("a", "b"), ("c",)]


def test_the_tag_itself_opens(tmp_path):
    """The folder of one step opens as the folder above it does."""
    folder = forge(tmp_path / "ds")
    assert list(open_checkpoint(folder / "global_step7").state) == ["a", "b", "c"]
    (folder / "latest").write_text("global_step8")
    with pytest.raises(NotACheckpoint, match="global_step8"):
        open_checkpoint(folder)


def test_a_missing_rank_is_told(tmp_path):
    """What the others hold is there, what it held raises when it is read, and the folder is never called whole."""
    folder = forge(tmp_path / "ds", ranks=2)
    (folder / "global_step7" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    checkpoint = open_checkpoint(folder)
    assert "1 file of 2" in checkpoint.unread[0]
    assert [clue.code for clue in checkpoint.clues] == ["M118"]
    value = checkpoint.state["a"]["exp_avg"].value
    with pytest.raises(Exception, match="a/exp_avg is not whole"):
        value.array()


def test_a_folder_without_optimizer_files_is_told(tmp_path):
    """The model's file alone: the optimizer was not copied with it."""
    folder = forge(tmp_path / "ds")
    for file in (folder / "global_step7").glob("*optim*"):
        file.unlink()
    assert [clue.code for clue in open_checkpoint(folder).clues] == ["M118"]


def test_a_mapping_that_lies_is_told(tmp_path):
    """The order of the shapes is how the vectors are laid out; a mapping that says otherwise is a finding."""
    folder = forge(tmp_path / "ds", ranks=1)
    file = folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    node = torch.load(file, weights_only=False)
    node["optimizer_state_dict"]["param_slice_mappings"][0] = OrderedDict(b=_Fragment(0, 3), a=_Fragment(3, 12))
    torch.save(node, file)
    checkpoint = open_checkpoint(folder)
    assert_true(checkpoint, truth(), "rule")
    assert [clue.code for clue in checkpoint.clues] == ["M206"]


def test_vectors_that_are_too_short_are_refused(tmp_path):
    """A vector that ends before its parameters do is of something else."""
    folder = forge(tmp_path / "ds", ranks=1)
    file = folder / "global_step7" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    node = torch.load(file, weights_only=False)
    node["optimizer_state_dict"]["base_optimizer_state"]["state"][0]["exp_avg"] = torch.zeros(14)
    torch.save(node, file)
    with pytest.raises(Refused, match="shorter than the parameters"):
        open_checkpoint(folder)


def test_shapes_that_do_not_fit_leave_vectors_unplaced(tmp_path):
    """State of which nobody says whose it is stays in sight, under its place in the files."""
    folder = forge(tmp_path / "ds", ranks=1)
    file = folder / "global_step7" / "mp_rank_00_model_states.pt"
    about = torch.load(file)
    torch.save({**about, "param_shapes": about["param_shapes"][:1]}, file)
    checkpoint = open_checkpoint(folder)
    assert list(checkpoint.state) == ["a", "b"]
    assert "rank 0.vector 1.exp_avg" in checkpoint.unplaced


def test_a_truncated_file_is_named(tmp_path):
    """Damage to one rank's file is an error that says which."""
    folder = forge(tmp_path / "ds")
    file = folder / "global_step7" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(Exception, match="zero_pp_rank_1"):
        open_checkpoint(folder)
    shutil.rmtree(folder)
