"""`torch.distributed.checkpoint` directories that one process writes: every form of keys, and what may be wrong with them."""

from __future__ import annotations

import io
import pickle
import shutil
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as torch_dcp_save

from optstate.errors import Damaged, Refused
from optstate.formats.opening import open_checkpoint
from optstate.state.absence import Absence
from tests.truth import assert_is

NO_GROUP = "torch.distributed is disabled"  # what DCP warns of where there is one process
pytestmark = pytest.mark.filterwarnings(f"ignore:{NO_GROUP}")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(7), nn.Linear(7, 2, bias=False))


class Net(nn.Module):
    """A model whose shapes are all different, with names that look like keys of an optimizer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.state = nn.ModuleDict({"param_groups": nn.Linear(4, 3)})
        self.exp_avg = nn.ModuleDict({"step": nn.Linear(3, 6, bias=False)})
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.exp_avg["step"](self.state["param_groups"](x)) * self.scale


def trained(make, model=None, steps=3):
    model = model or Net()
    optimizer = make(model)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return model, optimizer


def two_groups(model):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": rest, "weight_decay": 0.0}, {"params": matrices, "lr": 0.02}], amsgrad=True)


OPTIMIZERS = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "AdamW": two_groups,
    "NAdam": lambda m: torch.optim.NAdam(m.parameters()),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), momentum=0.9, centered=True),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters()),
    "named": lambda m: torch.optim.Adam(m.named_parameters(), lr=torch.tensor(0.01)),
}


def save(path, content, **options):
    torch_dcp_save(content, checkpoint_id=path, no_dist=True, **options)
    return path


def by_name(model, optimizer, *, flat):
    return get_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_by_name(name, flat, tmp_path):
    """State under names, nested or with one key for each value: every slot, group and value, whatever the names are."""
    model, optimizer = trained(OPTIMIZERS[name])
    weights, state = by_name(model, optimizer, flat=flat)
    checkpoint = open_checkpoint(save(tmp_path / "ck", {"model": weights, "optimizer": state, "step": 3}))
    assert_is(checkpoint, optimizer, model, certainty="file")
    assert (checkpoint.format, checkpoint.step, list(checkpoint.unread)) == ("torch DCP", 3, [])
    for key, weight in model.state_dict().items():
        assert checkpoint.weights[key].array().tobytes() == weight.numpy().tobytes()


@pytest.mark.parametrize("name", ["SGD", "NAdam", "named"])
def test_by_number(name, tmp_path):
    """The optimizer's own dict has numbers, which DCP turns into text: they are numbers again, named as in any file."""
    model, optimizer = trained(OPTIMIZERS[name])
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint = open_checkpoint(save(tmp_path / "ck", content))
    assert_is(checkpoint, optimizer, model, certainty="recorded" if name == "named" else "rule")
    assert list(checkpoint.unplaced) == []


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_optimizer_alone(flat, tmp_path):
    """An optimizer that was saved by itself, with nothing in front of its keys."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat))
    checkpoint = open_checkpoint(save(tmp_path / "ck", state))
    assert_is(checkpoint, optimizer, model, certainty="file")


PREFIXES = {
    "optim": lambda weights, state: {"model": weights, "optim": state},
    "optimizer_0": lambda weights, state: {"state_dict": weights, "optimizer_0": state},
    "app": lambda weights, state: {"app": {"model": weights, "optimizers": [state], "scheduler": {"last_epoch": 3}}},
    "Composer": lambda weights, state: {
        "state": {"model": weights, "optimizers": {"AdamW": state}, "run_name": "x"},
        "rng": [1],
    },
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flattened"])
def test_where_programs_put_it(prefix, flat, tmp_path):
    """Optimizer and model are found where programs put them, however deep, and the rest becomes objects."""
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    checkpoint = open_checkpoint(save(tmp_path / "ck", PREFIXES[prefix](*by_name(model, optimizer, flat=flat))))
    assert_is(checkpoint, optimizer, model, certainty="file")
    assert sorted(checkpoint.weights) == sorted(model.state_dict())
    if prefix == "app":
        assert checkpoint.objects["app"]["scheduler"] == {"last_epoch": 3}


def test_several_optimizers(tmp_path):
    """Two optimizers over one model keep apart, each under its own name."""
    model = Net()
    first, second = nn.ModuleList([model.state]), nn.ModuleList([model.exp_avg])
    optimizers = {
        "optim_g": torch.optim.SGD(first.parameters(), lr=0.1, momentum=0.9),
        "optim_d": torch.optim.AdamW(second.parameters()),
    }
    model(torch.randn(5, 4)).square().sum().backward()
    for optimizer in optimizers.values():
        optimizer.step()
    content = {"model": model.state_dict(), **{key: by_name(model, o, flat=True)[1] for key, o in optimizers.items()}}
    checkpoint = open_checkpoint(save(tmp_path / "ck", content))
    assert sorted(checkpoint.state.optimizers) == ["optim_d", "optim_g"]
    assert checkpoint.state["exp_avg.step.weight"].facts.optimizer == "optim_d"
    buffer = optimizers["optim_g"].state[model.state["param_groups"].weight]["momentum_buffer"]
    found = checkpoint.state["state.param_groups.weight"].momentum
    assert found.array().tobytes() == buffer.numpy().tobytes()


def test_torchtitan(tmp_path):
    """torchtitan's keys: the model without anything in front, a flattened optimizer, the step in `train_state` (layout from source)."""
    model, optimizer = trained(OPTIMIZERS["AdamW"], net_of_titan())
    weights, state = by_name(model, optimizer, flat=True)
    content = {
        **weights,
        "optimizer": state,
        "lr_scheduler": {"last_epoch": 3},
        "dataloader": {"dp_rank_0": b"abc"},
        "train_state": {"step": torch.tensor(3, dtype=torch.int32), "ntokens_seen": torch.tensor(99)},
    }
    checkpoint = open_checkpoint(save(tmp_path / "step-3", content))
    assert_is(checkpoint, optimizer, model, certainty="file")
    assert (checkpoint.format, checkpoint.step) == ("torchtitan", 3)
    assert sorted(checkpoint.weights) == sorted(model.state_dict())


def net_of_titan():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5, bias=False))


def test_model_alone(tmp_path):
    """A model without an optimizer: said so, with the program that is known to do it."""
    checkpoint = open_checkpoint(save(tmp_path / "step-9", net_of_titan().state_dict()))
    assert sorted(checkpoint.weights) == ["0.bias", "0.weight", "1.weight"]
    assert "no optimizer state in it" in checkpoint.notes
    (clue,) = checkpoint.clues
    assert (clue.code, "last_save_model_only" in clue.evidence) == ("M103", True)


def test_slot_before_name(tmp_path):
    """A writer that tells no paths and puts the slot before the name, as Megatron-core does (layout from source)."""
    content = {
        "model.decoder.w": torch.randn(4, 3),
        "optimizer.state.exp_avg.decoder.w": torch.randn(4, 3),
        "optimizer.state.exp_avg_sq.decoder.w": torch.rand(4, 3),
        "chained_1.optimizer.state.momentum_buffer.decoder.b": torch.randn(3),
    }
    planner = DefaultSavePlanner(flatten_state_dict=False)
    checkpoint = open_checkpoint(save(tmp_path / "ck", content, planner=planner))
    assert sorted(checkpoint.state) == ["decoder.b", "decoder.w"]
    slot = checkpoint.state["decoder.w"].slots["exp_avg"]
    assert slot.array().tobytes() == content["optimizer.state.exp_avg.decoder.w"].numpy().tobytes()
    assert checkpoint.state["decoder.w"].facts.certainty == "file"


def test_megatron(tmp_path):
    """A `torch_dist` folder of Megatron-core: named moments, options and step from `common.pt`, buckets under raw keys.

    The container is as its `dist_checkpointing.save` writes it; what is in it is a layout from source.
    """
    content = {
        "decoder.w": torch.randn(4, 3),
        "optimizer.state.exp_avg.decoder.w": torch.randn(4, 3),
        "optimizer.state.exp_avg_sq.decoder.w": torch.rand(4, 3),
        "optimizer.state.fp32_param.decoder.w": torch.rand(4, 3),
        "optimizer.distributed.dp_group_idx_0.gbuf_idx_0.dtype_(x).bucket_idx_0.exp_avg": torch.randn(16),
    }
    group = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "bias_correction": True, "step": 3, "wd_mult": 1.0}
    groups = [{**group, "weight_decay": 0.01}, {**group, "weight_decay": 0.0}]
    path = save(tmp_path / "iter_0000003", content, planner=DefaultSavePlanner(flatten_state_dict=False))
    torch.save({"iteration": 3, "optimizer": {"param_groups": groups}}, path / "common.pt")
    (path / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.step, list(checkpoint.weights)) == ("Megatron-core", 3, ["decoder.w"])
    parameter = checkpoint.state["decoder.w"]
    assert parameter.momentum.array().tobytes() == content["optimizer.state.exp_avg.decoder.w"].numpy().tobytes()
    assert checkpoint.state.groups[0].hyperparameters["lr"] == 0.1
    assert "weight_decay" not in checkpoint.state.groups[0].hyperparameters
    assert list(checkpoint.unplaced) == [key for key in content if "bucket" in key]
    assert any("flat buckets" in clue.evidence for clue in checkpoint.clues)


def test_never_stepped(tmp_path):
    """A fresh optimizer has groups and no state, in every form; what DCP makes up for it is shown as it is in the file."""
    model, optimizer = trained(OPTIMIZERS["AdamW"], steps=0)
    raw = open_checkpoint(save(tmp_path / "raw", {"model": model.state_dict(), "optimizer": optimizer.state_dict()}))
    assert len(raw.state) == 4
    assert all(not parameter.slots for parameter in raw.state.values())
    weights, state = by_name(model, optimizer, flat=False)
    made_up = open_checkpoint(save(tmp_path / "ck", {"model": weights, "optimizer": state}))
    for parameter in made_up.state.values():
        assert not parameter.momentum.array().any()
        assert parameter.step.item() == state["state"][parameter.facts.name]["step"].item()


def test_parameter_without_gradient(tmp_path):
    """A parameter that never got a gradient has no keys: it is there, without state, and why is told."""
    model, optimizer = trained(OPTIMIZERS["SGD"], steps=0)
    model.state["param_groups"].weight.grad = torch.ones(3, 4)
    optimizer.step()
    checkpoint = open_checkpoint(
        save(tmp_path / "ck", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    )
    assert checkpoint.state["scale"].absences["momentum"] is Absence.NO_GRADIENT
    assert checkpoint.state["state.param_groups.weight"].momentum is not None


def test_numbers_as_text_in_a_file(tmp_path):
    """Converted by torch to one file, numbers stay text beside `params` of numbers: the state is placed, and that is told."""
    model, optimizer = trained(OPTIMIZERS["SGD"])
    save(tmp_path / "ck", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp_to_torch_save(tmp_path / "ck", tmp_path / "one.pt")
    checkpoint = open_checkpoint(tmp_path / "one.pt")
    assert_is(checkpoint, optimizer, model, certainty="rule")
    assert any("text" in clue.evidence for clue in checkpoint.clues)


# --- what may be wrong ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A healthy directory with the optimizer by name, and the pair it was made of."""
    path = tmp_path_factory.mktemp("dcp") / "ck"
    model, optimizer = trained(OPTIMIZERS["AdamW"])
    weights, state = by_name(model, optimizer, flat=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", NO_GROUP)
        save(path, {"model": weights, "optimizer": state, "step": 3})
    return path


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it that a test may break."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edited(path, edit):
    """The directory with its metadata changed, by torch's own classes."""
    metadata = pickle.loads((path / ".metadata").read_bytes())
    edit(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))
    return path


WEIGHT = "model.state.param_groups.weight"
MOMENTUM = "optimizer.state.state.param_groups.weight.exp_avg"


def item(path, key):
    """Where an item is in the shard."""
    metadata = pickle.loads((path / ".metadata").read_bytes())
    (info,) = [info for index, info in metadata.storage_data.items() if index.fqn == key]
    return info


def test_flipped_bit_in_a_tensor(copy):
    """A flipped bit in a slot is found when it is read, and the key is named; everything else is read."""
    info = item(copy, MOMENTUM)
    raw = bytearray((copy / info.relative_path).read_bytes())
    values = torch.load(io.BytesIO(raw[info.offset : info.offset + info.length])).numpy().tobytes()
    raw[raw.index(values, info.offset)] ^= 1
    (copy / info.relative_path).write_bytes(raw)
    checkpoint = open_checkpoint(copy)
    parameter = checkpoint.state["state.param_groups.weight"]
    parameter.slots["exp_avg_sq"].array()
    with pytest.raises(Damaged, match=MOMENTUM):
        parameter.momentum.array()


def test_damaged_option(copy):
    """An option of a group that cannot be read is named; the groups and the state are there without it."""
    info = item(copy, "optimizer.param_groups.1.lr")
    raw = bytearray((copy / info.relative_path).read_bytes())
    raw[raw.index(b"PK\x07\x08", info.offset) - 3] ^= 1  # in its pickle
    (copy / info.relative_path).write_bytes(raw)
    checkpoint = open_checkpoint(copy)
    assert "optimizer.param_groups.1.lr" in " ".join(checkpoint.unread)
    assert "lr" not in checkpoint.state.groups[1].hyperparameters
    assert len(checkpoint.state) == 4


def test_truncated_shard(copy):
    """A shard that is cut short takes what was behind the cut, which is named before any value is read."""
    info = item(copy, MOMENTUM)
    shard = copy / info.relative_path
    shard.write_bytes(shard.read_bytes()[: info.offset + 10])
    checkpoint = open_checkpoint(copy)
    assert "__0_0.distcp ends too early" in " ".join(checkpoint.unread)
    assert any(clue.code == "M513" for clue in checkpoint.clues)
    with pytest.raises(Damaged, match="ends too early"):
        checkpoint.state["state.param_groups.weight"].momentum.array()


def test_every_truncation_of_the_metadata(whole, tmp_path):
    """Metadata that are cut short anywhere are damaged, never taken for fewer tensors."""
    raw = (whole / ".metadata").read_bytes()
    for length in range(1, len(raw), 97):
        path = tmp_path / str(length)
        path.mkdir()
        (path / ".metadata").write_bytes(raw[:length])
        with pytest.raises(Damaged):
            open_checkpoint(path)


def test_unfinished(copy):
    """Shards without `.metadata` are a save that did not finish, and it is said that another checkpoint is needed."""
    (copy / ".metadata").rename(copy / ".metadata.tmp")
    with pytest.raises(
        Damaged, match=r"did not finish[\s\S]*1 shard file and \.metadata\.tmp[\s\S]*earlier checkpoint"
    ):
        open_checkpoint(copy)
    (copy / ".metadata.tmp").unlink()
    with pytest.raises(Damaged, match=r"did not finish"):
        open_checkpoint(copy)


def test_later_save_did_not_finish(copy):
    """A `.metadata.tmp` beside `.metadata` says that a later save was cut short and may have replaced shards."""
    (copy / ".metadata.tmp").write_bytes(b"")
    assert [clue.code for clue in open_checkpoint(copy).clues] == ["M522"]


def test_coded_items(tmp_path):
    """Items that were compressed are named with their coding; shapes are known, values are refused."""

    class Deflate(StreamTransformExtension):
        @staticmethod
        def from_descriptor(version):
            return Deflate()

        @staticmethod
        def registry_name():
            return "stream.deflate"

        def get_descriptor(self):
            return f"{self.registry_name()}/1"

        def transform_to(self, output):
            class Writer:
                def __init__(self):
                    self.packer = zlib.compressobj()

                def write(self, data):
                    output.write(self.packer.compress(bytes(data)))
                    return len(data)

                def flush(self):
                    pass

                def close(self):
                    output.write(self.packer.flush())

            return Writer()

        def transform_from(self, source):
            return source

    model, optimizer = trained(OPTIMIZERS["AdamW"])
    weights, state = by_name(model, optimizer, flat=False)
    writer = FileSystemWriter(tmp_path / "ck", _extensions=[Deflate()])
    torch_dcp_save({"model": weights, "optimizer": state}, storage_writer=writer, no_dist=True)
    checkpoint = open_checkpoint(tmp_path / "ck")
    assert "coded as stream.deflate/1, which is not read" in " ".join(checkpoint.unread)
    assert not any(clue.code == "M513" for clue in checkpoint.clues)
    assert sorted(checkpoint.state) == sorted(dict(model.named_parameters()))
    with pytest.raises(Damaged, match="coded as"):
        checkpoint.state["scale"].slots["exp_avg"].array()


def test_item_that_is_another_tensor(copy):
    """An item whose tensor is not the one that the metadata describe is damaged."""

    def swap(metadata):
        by_key = {index.fqn: index for index in metadata.storage_data}
        one, other = by_key[WEIGHT], by_key["model.exp_avg.step.weight"]
        metadata.storage_data[one], metadata.storage_data[other] = (
            metadata.storage_data[other],
            metadata.storage_data[one],
        )

    checkpoint = open_checkpoint(edited(copy, swap))
    with pytest.raises(Damaged, match=r"is not what the metadata say[\s\S]*float32 \[3, 4\][\s\S]*float32 \[6, 3\]"):
        checkpoint.weights["state.param_groups.weight"].array()


def _chunk(metadata):
    return metadata.state_dict_metadata[WEIGHT].chunks[0]


def _cut(metadata, *starts):
    chunks = metadata.state_dict_metadata[WEIGHT].chunks
    index, info = next((index, info) for index, info in metadata.storage_data.items() if index.fqn == WEIGHT)
    del metadata.storage_data[index]
    chunks[:] = [type(chunks[0])(torch.Size([start, 0]), torch.Size([2, 4])) for start in starts]
    for start in starts:
        metadata.storage_data[type(index)(WEIGHT, torch.Size([start, 0]))] = info


CONTRADICTIONS = {
    "overlap": (lambda m: _cut(m, 0, 1), "on top of each other"),
    "outside": (lambda m: _cut(m, 0, 2), "a piece of shape"),
    "of another rank": (lambda m: setattr(_chunk(m), "sizes", torch.Size([3])), "a piece of shape"),
    "text for a size": (lambda m: setattr(_chunk(m), "sizes", "abc"), "sizes that are none"),
    "a million chunks": (
        lambda m: m.state_dict_metadata[WEIGHT].chunks.extend([_chunk(m)] * 1_000_000),
        "1,000,001 chunks",
    ),
    "no storage": (lambda m: setattr(m, "storage_data", None), "where dict is due"),
    "two values in one place": (lambda m: m.planner_data.update({WEIGHT: ("step",)}), "two values in one place"),
    "a value inside a value": (lambda m: m.planner_data.update({WEIGHT: ("step", "x")}), "two values in one place"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_metadata_that_contradict_themselves(name, copy):
    """Metadata that cannot be true are refused, with the key or what is wrong: nothing is guessed from them."""
    edit, message = CONTRADICTIONS[name]
    with pytest.raises(Refused, match=message):
        open_checkpoint(edited(copy, edit))


@pytest.mark.parametrize("file", ["../other.distcp", "/etc/passwd", "a/b", "..", ""])
def test_shard_elsewhere(file, copy):
    """A shard outside of the directory is refused before anything of it is looked at."""

    def lead_away(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = file

    with pytest.raises(Refused, match="leads elsewhere"):
        open_checkpoint(edited(copy, lead_away))


def test_hole(copy):
    """A chunk that no shard has is a hole: the tensor is shown, named as incomplete, and not read."""
    checkpoint = open_checkpoint(edited(copy, lambda m: _cut(m, 0)))
    assert f"parts that no shard has: {WEIGHT}" in checkpoint.unread
    with pytest.raises(Damaged, match=r"8 of 12 elements are there, and the one at \[2, 0\] is not"):
        checkpoint.weights["state.param_groups.weight"].array()


def test_shapes_that_nobody_has(copy):
    """A size that is only claimed takes no memory: it does not fit its chunks, and nothing is allocated for it."""
    huge = torch.Size([1 << 40, 1 << 20])
    checkpoint = open_checkpoint(edited(copy, lambda m: setattr(m.state_dict_metadata[WEIGHT], "size", huge)))
    assert "parts that no shard has" in " ".join(checkpoint.unread)


def test_links_to_elsewhere(copy, tmp_path):
    """A shard that is a link out of the directory is refused; one to a sibling is followed."""
    shard = copy / "__0_0.distcp"
    shard.rename(copy / "real.bin")
    shard.symlink_to("real.bin")
    assert open_checkpoint(copy).step == 3
    shard.unlink()
    (copy / "real.bin").rename(tmp_path / "outside.bin")
    shard.symlink_to(tmp_path / "outside.bin")
    with pytest.raises(Refused, match="symbolic link that leaves"):
        open_checkpoint(copy)
