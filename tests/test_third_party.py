"""Optimizers of other libraries: rows that hold against the classes, files that tell them, quantised slots that read."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from optstate.formats.containers.quantised import Blockwise
from optstate.formats.entries import entry_of
from optstate.formats.opening import open_checkpoint
from optstate.live.view import attach
from optstate.optimizers.interpret import explain_absences, interpret
from optstate.optimizers.registry import by_class, by_contents, by_name, known_names
from optstate.optimizers.third_party import THIRD_PARTY
from optstate.state.absence import Absence
from optstate.state.stats import stats
from tests.probed_rows import KNOWN_BETTER, ROWS

# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("library", ROWS)
def test_rows_hold_against_the_classes(library):
    """Each row says what the real class keeps, as a probe of it measures; and a file of the class is told as its own."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    root = Path(__file__).parents[1]
    program = [sys.executable, "-m", "tests.probed_rows", library]
    shown = subprocess.run(program, cwd=root, capture_output=True, text=True, check=True).stdout
    for row, lines in json.loads(shown.splitlines()[-1]).items():
        name = row.partition(" ")[0].rpartition(".")[2]
        assert (row, [line for line in lines if line not in KNOWN_BETTER.get(name, [])]) == (row, [])


@pytest.mark.parametrize("spec", THIRD_PARTY, ids=lambda spec: spec.name)
def test_companions_are_mutual(spec):
    """Two slots that are coherent only together say so on both sides."""
    for key, slot in spec.slots.items():
        assert all(key in spec.slots[companion].companions for companion in slot.companions)


def test_names_are_distinct():
    """A class has one row, by its name or as an alias."""
    names = [*known_names(), *(alias for spec in THIRD_PARTY for alias in spec.aliases)]
    assert len(names) == len(set(names))


# --- told by what a file holds ------------------------------------------------------------------------------

BETAS = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
TORCH = {
    "amsgrad": False,
    "foreach": None,
    "maximize": False,
    "capturable": False,
    "differentiable": False,
    "fused": None,
}
ADAM = ("step", "exp_avg", "exp_avg_sq")
SGD = {"lr": 0.1, "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False}
BNB_ADAMS = ["bitsandbytes.optim.adamw.AdamW", "bitsandbytes.optim.adam.Adam"]
FUSED_ADAMS = [
    f"{package}.fused_adam.FusedAdam" for package in ("apex.optimizers", "transformer_engine.pytorch.optimizers")
]
CONTENTS = {
    "torch Adam": ({**BETAS, **TORCH}, ADAM, ["torch.optim.adam.Adam", "torch.optim.adamw.AdamW"]),
    "torch Adam under a scheduler": (
        {**BETAS, **TORCH, "initial_lr": 0.1, "decoupled_weight_decay": False}, ADAM, ["torch.optim.adam.Adam"],
    ),
    "lion": ({"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}, ["exp_avg"], ["lion_pytorch.lion_pytorch.Lion"]),
    "something like lion": ({"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "cube": 1}, ["exp_avg"], []),
    "apex": ({**BETAS, "bias_correction": True, "step": 3}, ADAM[1:], FUSED_ADAMS),
    "deepspeed": ({**BETAS, "bias_correction": True}, ADAM, ["deepspeed.ops.adam.fused_adam.FusedAdam"]),
    "deepspeed on the CPU": (
        {**BETAS, "bias_correction": True, "amsgrad": False}, ADAM, ["deepspeed.ops.adam.cpu_adam.DeepSpeedCPUAdam"],
    ),
    "bitsandbytes AdamW": (BETAS, ["step", "state1", "state2", "absmax1", "qmap1"], BNB_ADAMS),
    "bitsandbytes LAMB": (BETAS, ["step", "state1", "state2", "unorm_vec"], ["bitsandbytes.optim.lamb.LAMB"]),
    "bitsandbytes Lion": (
        {**BETAS, "eps": 0.0}, ["step", "state1", "qmap1", "absmax1"], ["bitsandbytes.optim.lion.Lion"],
    ),
    "bitsandbytes SGD": ({**BETAS, "betas": (0.9, 0), "eps": 0.0}, ["step", "state1"], ["bitsandbytes.optim.sgd.SGD"]),
    "bitsandbytes LARS": (
        {**BETAS, "betas": (0.9, 0), "eps": 0.0}, ["step", "state1", "unorm_vec"], ["bitsandbytes.optim.lars.LARS"],
    ),
    "bitsandbytes RMSprop": ({**BETAS, "betas": (0.99, 0)}, ["step", "state1"], ["bitsandbytes.optim.rmsprop.RMSprop"]),
    "bitsandbytes Adagrad": ({**BETAS, "betas": (0.0, 0.0)}, ["step", "state1"], ["bitsandbytes.optim.adagrad.Adagrad"]),
    "torch SGD": ({**SGD, "maximize": False, "foreach": None}, ["momentum_buffer"], ["torch.optim.sgd.SGD"]),
    "some SGD": (
        SGD, ["momentum_buffer"],
        ["torch.optim.sgd.SGD", *(each.replace("adam", "sgd").replace("Adam", "SGD") for each in FUSED_ADAMS), "composer.optim.decoupled_weight_decay.DecoupledSGDW"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CONTENTS)
def test_told_by_contents(case):
    """Group and slots tell the class; what they leave open is named together, torch's own first."""
    group, keys, expected = CONTENTS[case]
    assert [spec.name for spec in by_contents(group, keys)] == expected


@pytest.mark.parametrize("prefix", ["8-bit", "4-bit", "fp8"])
def test_torchao_is_told_by_its_slots(prefix):
    """The same keys as torch's Adam; how the slots are stored tells the rest."""
    group = {key: value for key, value in {**BETAS, **TORCH}.items() if key in (*BETAS, "amsgrad")}
    found = by_contents(group, ADAM, {f"{prefix} blocks of 256", "float32"})
    assert {spec.name.rpartition(".")[2] for spec in found} == {
        f"{name}{'Fp8' if prefix == 'fp8' else prefix.replace('-', '')}" for name in ("AdamW", "Adam")
    }


def test_a_slot_of_the_users_own_hides_no_class():
    """One slot that a program added: the class is told all the same, and the stranger means nothing."""
    group = {**BETAS, **TORCH, "decoupled_weight_decay": True}
    (spec,) = by_contents(group, [*ADAM, "grad_noise"])
    assert spec.name == "torch.optim.adamw.AdamW"
    slots = interpret(spec, "w", dict.fromkeys([*ADAM, "grad_noise"], 1.0))
    assert {key: slot.role for key, slot in slots.items()}["grad_noise"] == "other"


@pytest.mark.parametrize(
    ("group", "keys"),
    [
        ({**BETAS, **TORCH, "noise": 0.1}, [*ADAM, "grad_noise"]),
        ({**BETAS, **TORCH}, ["step", "exp_avg", "hessian"]),
        ({**SGD, "momentum": 0}, ["velocity"]),
    ],
    ids=["and a key of its own", "and without a slot of the class", "and nothing else"],
)
def test_a_strange_slot_hides_the_class_where_more_is_strange(group, keys):
    """A class is not guessed where group or slots differ in more than one slot too many."""
    assert by_contents(group, keys) == ()


@pytest.mark.parametrize("key", ["step", "k"])
def test_step_in_the_group(key):
    """Where one count serves a whole group, the parameters' missing step has that for its reason."""
    names = {"step": "apex.optimizers.fused_adam.FusedAdam", "k": "schedulefree.sgd_schedulefree.SGDScheduleFree"}
    spec = by_name(names[key])
    assert spec.group_step == key
    absences = explain_absences(spec, {}, {key: 3}, 2, Absence.NOT_SAVED)
    assert absences["step"] is Absence.IN_GROUP


def test_aliases_lead_to_the_row():
    """Paged and 32-bit variants keep the same as the class they are variants of."""
    assert by_name("bitsandbytes.optim.adamw.PagedAdamW8bit") is by_name("bitsandbytes.optim.adamw.AdamW")
    assert by_name("bitsandbytes.optim.adam.Adam8bit") is by_name("bitsandbytes.optim.adam.Adam")


# --- files of the libraries -----------------------------------------------------------------------------------

SHAPES = {"long": (64, 96), "odd": (65, 67), "short": (96,)}


def stepped(cls, **options):
    """An optimizer after three steps over tensors of which two are long enough to be quantised."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES.values()]
    optimizer = cls(parameters, **{"lr": 0.01, **options})
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def saved(optimizer, path):
    """The file of an optimizer, opened."""
    torch.save(optimizer.state_dict(), path)
    return open_checkpoint(path)


def assert_values(ref, true):
    """A reference gives the values of a tensor bit for bit, whole and in blocks."""
    expected = true.numpy()
    for found in (ref.array(), np.concatenate(list(ref.blocks())).reshape(ref.shape)):
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert found.tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def torchao():
    optimizers = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    with torch.compiler.set_stance("force_eager"):  # its step compiles itself, which takes a compiler of C
        yield optimizers


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torchao's own, while it is imported and stepped
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam8bit"])
def test_torchao(name, torchao, tmp_path):
    """Slots of torchao read as it dequantises them, bit for bit, with codes and scales in reach."""
    optimizer = stepped(getattr(torchao, name))
    checkpoint = saved(optimizer, tmp_path / "ck.pt")
    (info,) = checkpoint.state.optimizers.values()
    assert f"torchao.optim.adam.{name}" in (info.class_name, *info.alternatives)
    for parameter, live in zip(checkpoint.state.values(), optimizer.param_groups[0]["params"], strict=True):
        for key, true in optimizer.state[live].items():
            slot = parameter.slots[key]
            if hasattr(true, "codes"):
                assert isinstance(slot.value, Blockwise)
                assert (
                    slot.dtype
                    == f"{ {'8': '8-bit', '4': '4-bit', 'p': 'fp8'}[name[-4] if name[-3:] == 'bit' else 'p'] } blocks of {true.block_size}"
                )
                assert_values(slot.value, true.dequantize().float())
                assert_values(slot.value.scale, true.scale)
            else:
                assert_values(slot.value, true)
    long, odd, short = checkpoint.state.values()
    assert (long.momentum.key, long.second_moment.key) == ("exp_avg", "exp_avg_sq")
    assert (long.facts.dtype, short.facts.dtype) == (None, "float32")
    assert isinstance(long.momentum.value, Blockwise)
    assert not isinstance(short.momentum.value, Blockwise)
    assert not isinstance(odd.momentum.value, Blockwise)  # whose number of elements is no multiple of a block


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own, while it is imported
@pytest.mark.parametrize(
    ("name", "options", "roles"),
    [
        ("AdamW8bit", {}, ("momentum", "second_moment")),
        ("PagedAdam8bit", {}, ("momentum", "second_moment")),
        ("Adam32bit", {}, ("momentum", "second_moment")),
        ("LAMB8bit", {}, ("momentum", "second_moment")),
        ("AdEMAMix8bit", {}, ("momentum", "second_moment")),
        ("Lion8bit", {}, ("momentum",)),
        ("SGD8bit", {"momentum": 0.9}, ("momentum",)),
        ("RMSprop8bit", {}, ("second_moment",)),
        ("Adagrad8bit", {}, ("second_moment",)),
    ],
)  # fmt: skip
def test_bitsandbytes(name, options, roles, tmp_path):
    """Codes of bitsandbytes read as it dequantises them, bit for bit; scales and map stay slots of their own."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    dequantize = bitsandbytes.functional.dequantize_blockwise
    optimizer = stepped(getattr(bitsandbytes.optim, name), **options)
    checkpoint = saved(optimizer, tmp_path / "ck.pt")
    for parameter, live in zip(checkpoint.state.values(), optimizer.param_groups[0]["params"], strict=True):
        entry = optimizer.state[live]
        assert sorted(parameter.slots) == sorted(entry)
        assert parameter.step.item() == entry["step"] == 3
        for part, role in enumerate(roles, 1):
            slot, true = parameter.slots[f"state{part}"], entry[f"state{part}"]
            assert slot.role == role
            if true.dtype is torch.uint8:
                scale, qmap = entry[f"absmax{part}"], entry[f"qmap{part}"]
                halves = zip(true, scale, strict=True) if scale.ndim == 2 else [(true, scale)]
                parts = [dequantize(each, absmax=own, code=qmap, blocksize=256) for each, own in halves]
                assert slot.dtype == "8-bit blocks of 256"
                assert_values(slot.value, torch.stack(parts) if scale.ndim == 2 else parts[0])
                assert parameter.slots[f"absmax{part}"].role == parameter.slots[f"qmap{part}"].role == "other"
            else:
                assert_values(slot.value, true)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize(
    "name", ["AdamW", "Adam", "Adam8bit", "LAMB", "AdEMAMix", "Lion", "SGD", "LARS", "RMSprop", "Adagrad"]
)
def test_weight_decay_of_bitsandbytes(name):
    """Without a gradient, decoupled decay shrinks the weights and leaves the slots; any other goes through the slots."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    cls = getattr(bitsandbytes.optim, name)
    options = {"momentum": 0.9} if name in ("SGD", "LARS") else {}
    parameter = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = cls([parameter], lr=0.1, weight_decay=0.5, **options)
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    entry = optimizer.state[parameter]
    untouched = not (entry["absmax1"] if "absmax1" in entry else entry["state1"]).any()
    assert untouched == by_class(cls).decoupled
    if untouched:
        assert torch.allclose(parameter, torch.tensor(0.95))


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_live_torchao(name, torchao):
    """A running optimizer with quantised slots can be looked at and kept: values are those that it dequantises."""
    optimizer = stepped(getattr(torchao, name))
    state = attach(optimizer, torch.nn.ParameterList(optimizer.param_groups[0]["params"]))
    true = optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"].dequantize().float()
    assert_values(state["0"].momentum.value, true)
    kept = state.snapshot()
    optimizer.step()
    assert_values(kept["0"].momentum.value, true)
    assert f"‖{true.norm():.3g}‖" in str(kept)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
def test_live_bitsandbytes():
    """Codes of a running optimizer are a momentum, and get no norm, which would be one of bytes."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    optimizer = stepped(bitsandbytes.optim.AdamW8bit)
    state = attach(optimizer, torch.nn.ParameterList(optimizer.param_groups[0]["params"]))
    coded, _, plain = str(state).splitlines()[3:6]
    assert ("state1" in coded, "‖" in coded, "‖" in plain) == (True, False, True)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # as above
def test_codes_that_share_their_map_are_reset():
    """All parameters of bitsandbytes read their codes by one map; a reset of all of them makes each worth zero."""
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    optimizer = stepped(bitsandbytes.optim.AdamW8bit)
    parameters = torch.nn.ParameterList(optimizer.param_groups[0]["params"])
    one, other, _ = (optimizer.state[parameter] for parameter in parameters)
    assert one["qmap1"] is other["qmap1"]
    attach(optimizer, parameters).select("*").reset_()
    for entry in map(optimizer.state.__getitem__, parameters):
        assert entry["step"] == 0
        assert not entry.get("absmax1", entry["state1"]).any()  # codes are worth nothing where their scales are 0


@pytest.mark.whole
@pytest.mark.slow
def test_schedulefree(tmp_path):
    """Its momentum lies between two sequences of weights: no slot is called one, and the group has the step."""
    schedulefree = pytest.importorskip("schedulefree", reason="schedulefree is not installed")
    parameter = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = schedulefree.AdamWScheduleFree([parameter])
    optimizer.train()
    parameter.grad = torch.ones(4, 3)
    optimizer.step()
    checkpoint = saved(optimizer, tmp_path / "ck.pt")
    (found,) = checkpoint.state.values()
    assert {key: slot.role for key, slot in found.slots.items()} == {
        "z": "averaged_weights",
        "exp_avg_sq": "second_moment",
    }
    assert found.absences == {"momentum": Absence.NOT_KEPT, "step": Absence.IN_GROUP}
    assert_values(found.slots["z"].value, optimizer.state[parameter]["z"])


# --- quantised slots without the libraries ----------------------------------------------------------------------


def coded(shape, block, levels=256):
    """Codes, scales, map and the values that they stand for."""
    generator = torch.Generator().manual_seed(1)
    elements = torch.Size(shape).numel()
    codes = torch.randint(levels, (elements,), generator=generator, dtype=torch.uint8)
    scale = torch.rand(-(-elements // block), generator=generator)
    qmap = torch.linspace(-1, 1, levels)
    values = qmap[codes.long()] * scale.repeat_interleave(block)[:elements]
    return codes.reshape(shape), scale, qmap, values.reshape(shape)


def test_bitsandbytes_entry_by_its_keys(tmp_path):
    """The three keys of a quantised slot are one slot with its scales, hidden one level deeper or not."""
    codes, scale, qmap, values = coded((100, 70), 256)
    inner = {"state1": codes, "absmax1": scale, "qmap1": qmap}
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 0.0, "weight_decay": 0, "params": [0, 1]}
    entries = {0: {"step": 3, **inner}, 1: {"step": 3, "__bnb_optimizer_quant_state__": inner}}
    torch.save({"state": entries, "param_groups": [group]}, tmp_path / "ck.pt")
    checkpoint = open_checkpoint(tmp_path / "ck.pt")
    for parameter in checkpoint.state.values():
        assert list(parameter.slots) == ["step", "state1", "absmax1", "qmap1"]
        assert parameter.facts.shape == (100, 70)
        assert_values(parameter.momentum.value, values)
        assert_values(parameter.momentum.value.codes, codes)
        assert stats(parameter.momentum.value).elements == 7000
    assert "(8-bit blocks of 256)" in str(checkpoint.state)


def test_codes_that_do_not_fit_their_scales_stay_codes(tmp_path):
    """Nothing is dequantised with scales that are too few: the slot is what the file says, bytes."""
    codes, scale, qmap, _ = coded((100, 70), 256)
    entry = entry_of({"state1": codes, "absmax1": scale[:-1], "qmap1": qmap})
    assert entry["state1"] is codes


def test_an_entry_that_hides_itself():
    """A forged entry that contains itself is looked into once."""
    entry: dict[str, object] = {"step": 1}
    entry["__bnb_optimizer_quant_state__"] = entry
    assert entry_of(entry) == {"step": 1}


@pytest.mark.parametrize("value", [None, {}], ids=["None", "empty dict"])
def test_key_without_value_is_no_slot(value, tmp_path):
    """What torch wrote for a momentum that is not kept, and what DCP leaves of one, is an absence with its reason."""
    group = {"lr": 0.1, "momentum": 0.0, "dampening": 0, "weight_decay": 0, "nesterov": False, "params": [0]}
    torch.save({"state": {0: {"momentum_buffer": value}}, "param_groups": [group]}, tmp_path / "ck.pt")
    (parameter,) = open_checkpoint(tmp_path / "ck.pt").state.values()
    assert parameter.slots == {}
    assert parameter.absences["momentum"] is Absence.COEFFICIENT_ZERO
