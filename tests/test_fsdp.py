"""What FSDP programs write on several ranks: every slot comes back whole, by name, as the ranks had it together."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import optstate
from optstate.errors import Damaged
from optstate.formats.opening import open_checkpoint
from tests import ranks
from tests.truth import assert_is, same_bits

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent


def write(folder, kind):
    """Let two processes write everything of one kind."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", str(folder), kind, str(rank), str(port)],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )
        for rank in range(ranks.RANKS)
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What torch writes, once for all tests."""
    return write(tmp_path_factory.mktemp("ranks"), "torch")


def truth(written, name, make):
    return ranks.live(torch.load(written / f"{name}.truth"), make)


def assert_weights(checkpoint, model):
    """Every weight, bit for bit."""
    state = model.state_dict()
    assert sorted(checkpoint.weights) == sorted(state)
    for name, tensor in state.items():
        found = checkpoint.weights[name].array()
        assert (name, found.shape, found.tobytes()) == (name, tuple(tensor.shape), tensor.numpy().tobytes())


def assert_whole(path, written, name, make, certainty):
    checkpoint = open_checkpoint(path)
    optimizer, model = truth(written, name, make)
    assert_is(checkpoint, optimizer, model, certainty=certainty)
    assert_weights(checkpoint, model)
    assert list(checkpoint.unread) == []
    for parameter in checkpoint.state.values():
        for slot in parameter.slots.values():
            assert b"".join(block.tobytes() for block in slot.value.blocks()) == slot.array().tobytes()
    return checkpoint


SCENARIOS = {"fsdp2": ranks.adamw, "fsdp2sgd": ranks.momentum}


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("form", ["nested", "flattened", "alone"])
def test_fsdp2_directory(name, form, written):
    """FSDP2 saved by DCP, nested, flattened, or by ranks that did not talk to each other: names are in the file."""
    checkpoint = assert_whole(written / f"{name}.{form}", written, name, SCENARIOS[name], "file")
    assert checkpoint.format == "torch DCP"
    assert checkpoint.step == (None if form == "alone" else 3)
    if form == "alone":
        assert checkpoint.objects["rank"] == 0
        assert "2 ranks saved without the others" in " ".join(checkpoint.notes)


def test_fsdp2_raw_directory(written):
    """The optimizer's own dict saved by DCP has numbers for names; the model's order and every shape agree on them."""
    checkpoint = assert_whole(written / "fsdp2sgd.raw", written, "fsdp2sgd", ranks.momentum, "rule")
    assert any(clue.code == "M201" for clue in checkpoint.clues)


def test_cut_along_columns(written):
    """Tensors cut along their second dimension, as tensor parallelism does, are put together as well."""
    optimizer, model = truth(written, "columns", ranks.adamw)
    for place in ("columns.raw", "columns.ranks"):
        checkpoint = open_checkpoint(written / place)
        assert_weights(checkpoint, model)
        found = sorted(
            (slot.key, slot.array().tobytes()) for entry in checkpoint.state.values() for slot in entry.slots.values()
        )
        entries = optimizer.state_dict()["state"].values()
        assert found == sorted((key, value.numpy().tobytes()) for entry in entries for key, value in entry.items())


@pytest.mark.parametrize(("name", "make"), [("fsdp1", ranks.adamw), ("fsdp1flat", ranks.momentum)])
def test_fsdp1_sharded(name, make, written):
    """FSDP1's sharded dicts, by DCP or as a file of each rank for model and optimizer, are whole again, by name."""
    assert assert_whole(written / f"{name}.dcp", written, name, make, "file").format == "torch DCP"
    assert assert_whole(written / f"{name}.ranks", written, name, make, "file").format == "FSDP ranks"


@pytest.mark.parametrize(("name", "make"), [("fsdp1flat", ranks.momentum), ("fsdp2", ranks.adamw)])
def test_full_dict(name, make, written):
    """A full state dict is a file like any other, with names instead of numbers."""
    assert_whole(written / f"{name}.full.pt", written, name, make, "file")


def test_full_dict_with_one_buffer_for_all_slots(written):
    """FSDP1's full dict, made on the CPU, has one buffer for all slots: what is in the file is what is shown."""
    path = written / "fsdp1.full.pt"
    saved = torch.load(path)["optimizer"]["state"]
    entry = open_checkpoint(path).state["0.0.weight"].slots
    for key, value in saved["0.0.weight"].items():
        assert entry[key].array().tobytes() == value.numpy().tobytes()
    assert entry["exp_avg"].value.identity == entry["exp_avg_sq"].value.identity
    assert "M232" in [finding.code for finding in optstate.diagnose(path).findings]


def test_full_dict_from_the_wrong_rank(written):
    """A full state dict that another rank than the first saved is empty, and it is said that there is no state."""
    checkpoint = open_checkpoint(written / "fsdp2.full.pt.from_rank_1")
    assert len(checkpoint.state) == 0
    assert "optimizer is empty, not an optimizer's state_dict" in checkpoint.notes


def test_fsdp2_ranks(written):
    """A file of each rank with DTensors: the folder is read as one, by position in the model's order."""
    checkpoint = open_checkpoint(written / "fsdp2sgd.ranks")
    assert checkpoint.format == "FSDP ranks"
    optimizer, model = truth(written, "fsdp2sgd", ranks.momentum)
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert_weights(checkpoint, model)


def test_raw_runs_of_all_ranks(written):
    """FSDP1's classic mistake, `optimizer.state_dict()` on each rank: flat runs, which together are the whole state."""
    checkpoint = open_checkpoint(written / "fsdp1.runs")
    optimizer, model = truth(written, "fsdp1", ranks.adamw)
    saved = optimizer.state_dict()["state"]
    positions = {f"#{index}": index for index in saved}
    names = [name for group in _names(optimizer, model) for name in group]
    assert len(checkpoint.state) == len(saved)
    assert "whether there were more ranks the names of the files do not tell" in " ".join(checkpoint.notes)
    for name, parameter in checkpoint.state.items():
        index = positions[name] if name in positions else names.index(name)
        for key, slot in parameter.slots.items():
            assert (name, key, slot.array().tobytes()) == (name, key, saved[index][key].numpy().tobytes())
            assert slot.shape == tuple(saved[index][key].shape)


def _names(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def test_flat_parameters_of_all_ranks(written):
    """FSDP1 without original parameters keeps one flat vector: shown whole, by position, as nothing says where to cut."""
    checkpoint = open_checkpoint(written / "fsdp1flat.flat")
    ((name, parameter),) = checkpoint.state.items()
    assert (name, parameter.facts.certainty) == ("#0", "position")
    optimizer, _ = truth(written, "fsdp1flat", ranks.momentum)
    flat = np.concatenate([entry["momentum_buffer"].flatten() for entry in optimizer.state.values()])
    assert parameter.momentum.array()[: flat.size].tobytes() == flat.tobytes()
    assert parameter.momentum.shape[0] - flat.size < ranks.RANKS  # padding to a multiple of the ranks


def test_one_rank_alone(written):
    """The file of one rank shows what is where, says that it is a part, and refuses values that it does not have."""
    path = written / "fsdp1.ranks" / "optim_world_size_2_rank_1.pt"
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint.state) == sorted(dict(ranks.net().named_parameters()))
    weight = checkpoint.state["0.0.weight"]
    assert weight.momentum.shape == (3, 4)
    with pytest.raises(Damaged, match=r"0\.0\.weight/exp_avg is not whole: 4 of 12 elements"):
        weight.momentum.array()
    assert "parts of" in " ".join(checkpoint.unread)
    assert "optim_world_size_2_rank_0.pt" in " ".join(checkpoint.notes)


def test_raw_state_of_one_rank(written):
    """Raw state of one rank is told by its flat slots, with what to save instead."""
    checkpoint = open_checkpoint(written / "fsdp1flat.flat" / "optim_world_size_2_rank_0.pt")
    (clue,) = [clue for clue in checkpoint.clues if clue.code == "M203"]
    assert "flat" in clue.evidence
    assert "get_optimizer_state_dict" in clue.fix
    assert checkpoint.unread


def test_missing_rank(written, tmp_path):
    """Without the file of one rank its parts are missing: named, by count of the ranks; the others' are read."""
    shutil.copytree(written / "fsdp1.ranks", tmp_path / "ranks")
    (tmp_path / "ranks" / "optim_world_size_2_rank_1.pt").unlink()
    checkpoint = open_checkpoint(tmp_path / "ranks")
    assert "the file of optim for rank 1: missing" in checkpoint.unread
    with pytest.raises(Damaged, match="is not whole"):
        checkpoint.state["0.0.weight"].momentum.array()
    _, model = truth(written, "fsdp1", ranks.adamw)
    assert_weights(checkpoint, model)
    (tmp_path / "ranks" / "model_world_size_2_rank_0.pt").unlink()
    assert "the file of model for rank 0: missing" in open_checkpoint(tmp_path / "ranks").unread


def test_runs_with_a_missing_rank(written, tmp_path):
    """Flat runs are not joined when one is missing: nobody can say where it would belong."""
    shutil.copytree(written / "fsdp1flat.flat", tmp_path / "flat")
    (tmp_path / "flat" / "optim_world_size_2_rank_0.pt").unlink()
    checkpoint = open_checkpoint(tmp_path / "flat")
    assert "the file of optim for rank 0: missing" in checkpoint.unread
    assert any(clue.code == "M203" for clue in checkpoint.clues)


def test_missing_shard(written, tmp_path):
    """A shard of a DCP directory that is gone is named, with what it held; everything else is read."""
    shutil.copytree(written / "fsdp2.nested", tmp_path / "dcp")
    (tmp_path / "dcp" / "__0_0.distcp").unlink()
    checkpoint = open_checkpoint(tmp_path / "dcp")
    assert "__0_0.distcp is missing" in " ".join(checkpoint.unread)
    assert any(clue.code == "M513" and "__0_0.distcp" in clue.evidence for clue in checkpoint.clues)
    assert sorted(checkpoint.state) == sorted(dict(ranks.net().named_parameters()))
    with pytest.raises(Damaged, match=r"__0_0\.distcp is missing"):
        checkpoint.state["0.0.weight"].momentum.array()
    assert checkpoint.state["0.0.weight"].step.item() == 3


def test_missing_metadata_of_a_rank(written, tmp_path):
    """Where each rank has metadata of its own, those of one that is gone leave holes that are named."""
    shutil.copytree(written / "fsdp2.alone", tmp_path / "dcp")
    (tmp_path / "dcp" / "__1.metadata").unlink()
    checkpoint = open_checkpoint(tmp_path / "dcp")
    assert "parts that no shard has" in " ".join(checkpoint.unread)
    with pytest.raises(Damaged, match=r"is not whole: 8 of 12 elements are there, and the one at \[2, 0\] is not"):
        checkpoint.weights["0.0.weight"].array()


def test_no_shard_is_opened_without_need(written, tmp_path):
    """Names and shapes come from the metadata: a shard of nothing but zeros is noticed when its values are read."""
    shutil.copytree(written / "fsdp2.nested", tmp_path / "dcp")
    shard = tmp_path / "dcp" / "__0_0.distcp"
    shard.write_bytes(bytes(shard.stat().st_size))
    checkpoint = open_checkpoint(tmp_path / "dcp")
    assert checkpoint.state["0.0.weight"].momentum.shape == (3, 4)
    assert list(checkpoint.unread) == []
    with pytest.raises(Damaged):
        checkpoint.state["0.0.weight"].momentum.array()


def test_lightning_sharded(tmp_path):
    """Lightning's sharded directories, of its model-parallel and its FSDP strategy: names in the file, step from `meta.pt`."""
    pytest.importorskip("lightning", reason="Lightning writes them")
    write(tmp_path, "lightning")
    for name in ("parallel", "wrapped"):
        optimizer, model = truth(tmp_path, name, ranks.adamw)
        module = torch.nn.ModuleDict({"net": model})
        checkpoint = open_checkpoint(tmp_path / f"{name}.ckpt")
        assert (checkpoint.format, checkpoint.step) == ("PyTorch Lightning", 3)
        assert_is(checkpoint, optimizer, module, certainty="file")
        assert_weights(checkpoint, module)
        assert checkpoint.objects["epoch"] == 1
        assert list(checkpoint.unread) == []
    (tmp_path / "parallel.ckpt" / "meta.pt").write_bytes(b"PK\x03\x04")
    damaged = open_checkpoint(tmp_path / "parallel.ckpt")
    assert damaged.step is None
    assert "meta.pt" in " ".join(damaged.unread)


def test_accelerate_fsdp(tmp_path):
    """Accelerate's FSDP folders, with DCP directories inside or with a file for each rank, are whole, by name."""
    pytest.importorskip("accelerate", reason="Accelerate writes them")
    write(tmp_path, "accelerate")
    for name in ("accelerate", "accelerate_ranks"):
        optimizer, model = truth(tmp_path, "accelerate", ranks.momentum)
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.format == "Accelerate"
        assert_is(checkpoint, optimizer, model, certainty="file")
        assert_weights(checkpoint, model)
        assert (list(checkpoint.unread), list(checkpoint.clues)) == ([], [])
        assert "no optimizer state in it" not in checkpoint.notes


def test_without_torch(written):
    """A process that has no torch reads the same bytes."""
    script = (
        "import sys; sys.modules['torch'] = None; from optstate.formats.opening import open_checkpoint; "
        "found = open_checkpoint(sys.argv[1]); "
        "print({n: s.array().tobytes().hex() for n, p in found.state.items() for s in p.slots.values() if s.key == 'exp_avg'})"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script, str(written / "fsdp2.flattened")],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    state = torch.load(written / "fsdp2.truth")["state"]
    assert shown.strip() == str({n: state[n]["exp_avg"].numpy().tobytes().hex() for n in _in_order(shown, state)})


def _in_order(shown, state):
    return sorted(state, key=lambda name: shown.index(f"'{name}'"))


def test_the_comparison_bites(written):
    """Two slots that are swapped are not taken for the truth."""
    checkpoint = open_checkpoint(written / "fsdp2.nested")
    weight = checkpoint.state["0.0.weight"]
    assert not same_bits(weight.slots["exp_avg"].value, weight.slots["exp_avg_sq"].value)
