"""`diff`: what is different between two states, whoever wrote them; nothing is called the same that was not seen."""

from __future__ import annotations

import copy
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from math import inf, nan
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import optstate
from optstate.errors import NotACheckpoint, OptstateError
from optstate.formats.compare import compare
from optstate.formats.containers.unfolding import Elided
from optstate.formats.diff import differences
from optstate.formats.difference import KINDS, Side, side_of
from optstate.formats.matching import by_content
from optstate.live.tensors import HeldTensor
from optstate.state.stats import stats, stats_of
from optstate.state.tensors import BLOCK

NAMES = ("encoder", "head")


def training(names=NAMES, kind=torch.optim.AdamW, steps=2, seed=0, **options):
    """A small model and its optimizer after a few steps."""
    torch.manual_seed(seed)
    model = nn.ModuleDict({name: nn.Linear(4, 3) for name in names})
    optimizer = kind(model.parameters(), **{"lr": 0.01, **options})
    for step in range(steps):
        optimizer.zero_grad()
        sum(
            model[name](torch.full((2, 4), 1.0 + step + place)).pow(2).sum() for place, name in enumerate(names)
        ).backward()
        optimizer.step()
    return model, optimizer


def saved(path, model, optimizer, **more):
    """What most programs save."""
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), **more}, path)
    return path


@pytest.fixture(scope="module")
def content():
    """The dict that most programs save, as a value to be changed."""
    model, optimizer = training()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 2,
        "scheduler": {"last_epoch": 2, "milestones": (3, 4), "history": [0.1, 0.2]},
    }


@pytest.fixture
def held_against(content, tmp_path):
    """Saves the dict as it is and after a change, and compares the two."""

    def run(change, **options):
        other = copy.deepcopy(content)
        change(other)
        torch.save(content, tmp_path / "a.pt")
        torch.save(other, tmp_path / "b.pt")
        return optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt", **options)

    return run


def told(found):
    """Kind, name and key of each difference."""
    return [(each.kind, each.name, each.key) for each in found.differences]


# --- the same ---------------------------------------------------------------------------------------------


def test_one_state_is_the_same_in_every_form(tmp_path):
    """Files of both formats, the live optimizer, its snapshot and the by-name dict hold the same state."""
    model, optimizer = training()
    forms = [
        saved(tmp_path / "theirs.pt", model, optimizer),
        optstate.save(tmp_path / "ours", model=model, optimizer=optimizer),
        optstate.open(tmp_path / "theirs.pt"),
        optstate.attach(optimizer, model),
        optstate.attach(optimizer, model).snapshot(),
        optstate.named_state_dict(optimizer, model),
    ]
    for a in forms:
        for b in forms:
            found = optstate.diff(a, b)
            assert found.ok, found
            assert found.tensors >= 12


def test_comparing_changes_nothing():
    """A live optimizer is bit-identical after it was compared, and no entry appeared in its state."""
    model, optimizer = training(steps=0)
    before = copy.deepcopy(optimizer.state_dict())
    assert optstate.diff(optstate.attach(optimizer, model), optstate.attach(optimizer, model)).ok
    assert optimizer.state_dict() == before
    assert len(optimizer.state) == 0


def test_files_are_compared_without_torch(tmp_path):
    """Two files are compared where there is no torch at all."""
    path = saved(tmp_path / "a.pt", *training())
    code = f"import sys; sys.modules['torch'] = None\nimport optstate\nprint(optstate.diff({str(path)!r}, {str(path)!r}).ok)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")


SAME = {
    "tuple and list": lambda c: c["optimizer"]["param_groups"][0].update(betas=[0.9, 0.999]),
    "None and absent": lambda c: c["optimizer"]["param_groups"][0].pop("foreach"),
    "None for a slot": lambda c: c["optimizer"]["state"][0].update(max_exp_avg_sq=None),
    "integer and float of one value": lambda c: c["scheduler"].update(last_epoch=2.0),
    "other strides": lambda c: c["model"].update({"head.weight": c["model"]["head.weight"].t().contiguous().t()}),
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_means_the_same_is_no_difference(held_against, change):
    """What every optimizer treats alike is not reported."""
    assert held_against(change).ok


# --- different --------------------------------------------------------------------------------------------


def entry(content, index=0):
    """The slots of a parameter."""
    return content["optimizer"]["state"][index]


def group(content):
    """The only param group."""
    return content["optimizer"]["param_groups"][0]


def flip_zero(content, key, value):
    """Put a value into the first element of a slot."""
    entry(content)[key].view(-1)[0] = value


CHANGES = {
    "slot lost": (lambda c: entry(c).pop("exp_avg"), [("slot", "encoder.weight", "exp_avg")]),
    "slot of a new kind": (
        lambda c: entry(c).update(extra=torch.ones(2)),
        [("slot", "encoder.weight", "extra")],
    ),
    "parameter without state": (
        lambda c: c["optimizer"]["state"].pop(3),
        [("slot", "head.bias", key) for key in ("step", "exp_avg", "exp_avg_sq")],
    ),
    "shape of a slot": (
        lambda c: entry(c).update(exp_avg=torch.zeros(12)),
        [("shape", "encoder.weight", "exp_avg")],
    ),
    "type of a slot, values too": (
        lambda c: entry(c).update(exp_avg=entry(c)["exp_avg"].bfloat16()),
        [("dtype", "encoder.weight", "exp_avg"), ("values", "encoder.weight", "exp_avg")],
    ),
    "type of a slot, no value": (
        lambda c: entry(c).update(exp_avg_sq=entry(c)["exp_avg_sq"].double()),
        [("dtype", "encoder.weight", "exp_avg_sq")],
    ),
    "a number for a tensor": (lambda c: entry(c).update(step=2), [("dtype", "encoder.weight", "step")]),
    "step of a parameter": (
        lambda c: entry(c).update(step=torch.tensor(7.0)),
        [("step", "encoder.weight", "step")],
    ),
    "step of the run": (lambda c: c.update(step=3), [("step", "checkpoint", None)]),
    "one value": (lambda c: flip_zero(c, "exp_avg", 5.0), [("values", "encoder.weight", "exp_avg")]),
    "a weight": (lambda c: c["model"]["head.bias"].add_(1), [("values", "head.bias", None)]),
    "a weight lost": (lambda c: c["model"].pop("head.bias"), None),
    "hyperparameter": (lambda c: group(c).update(lr=0.5), [("hyperparameter", "group 0", "lr")]),
    "part of a hyperparameter": (
        lambda c: group(c).update(betas=(0.9, 0.99)),
        [("hyperparameter", "group 0", "betas[1]")],
    ),
    "True is not 1": (lambda c: group(c).update(maximize=0), [("hyperparameter", "group 0", "maximize")]),
    "object lost": (lambda c: c.pop("scheduler"), [("object", "scheduler", None)]),
    "part of an object": (
        lambda c: c["scheduler"].update(last_epoch=9, history=[0.1]),
        [("object", "scheduler", "last_epoch"), ("object", "scheduler", "history[1]")],
    ),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_each_difference_is_told_and_nothing_else(held_against, change, expected):
    """One change is one difference (or one of each kind), with its name and key."""
    found = held_against(change)
    assert not found.ok
    if expected is not None:
        assert told(found) == expected


def test_both_directions_tell_the_same(held_against, tmp_path):
    """What only a has in one direction, only b has in the other."""
    found = held_against(lambda c: (entry(c).pop("exp_avg"), c.pop("scheduler")))
    other = optstate.diff(tmp_path / "b.pt", tmp_path / "a.pt")
    assert told(found) == told(other)
    assert [(each.a, each.b) for each in found.differences] == [(each.b, each.a) for each in other.differences]


def test_lost_parameter_is_told_on_its_side(tmp_path):
    """A layer that one side does not have is named, with the side."""
    a = saved(tmp_path / "a.pt", *training(steps=1))
    b = saved(tmp_path / "b.pt", *training(("encoder",), steps=1))
    found = [each for each in optstate.diff(a, b).differences if each.kind in ("parameter", "weight")]
    assert [(each.kind, each.name, each.b) for each in found] == [
        ("parameter", "head.weight", None),
        ("parameter", "head.bias", None),
        ("weight", "head.weight", None),
        ("weight", "head.bias", None),
    ]


def test_another_optimizer_is_told(tmp_path):
    """Another class is a difference; one that the contents allow as well is none."""
    a = saved(tmp_path / "a.pt", *training(kind=torch.optim.Adagrad))
    b = saved(tmp_path / "b.pt", *training(kind=torch.optim.AdamW))
    kinds = {each.kind for each in optstate.diff(a, b, only="groups").differences}
    assert {"optimizer", "hyperparameter"} <= kinds


def test_gravest_first(held_against):
    """Differences come in the order of `KINDS`; values by their relative size; a value that is no number before all."""

    def change(c):
        group(c).update(lr=1.0)
        entry(c, 0)["exp_avg"].mul_(1.01)
        entry(c, 1)["exp_avg"].mul_(3)
        entry(c, 2)["exp_avg"][0, 0] = nan
        entry(c, 3).pop("exp_avg")
        c["step"] = 5

    found = held_against(change)
    assert told(found) == [
        ("slot", "head.bias", "exp_avg"),
        ("step", "checkpoint", None),
        ("values", "head.weight", "exp_avg"),
        ("values", "encoder.bias", "exp_avg"),
        ("values", "encoder.weight", "exp_avg"),
        ("hyperparameter", "group 0", "lr"),
    ]
    assert list(found.counts()) == [kind for kind in KINDS if kind in found.counts()]


@pytest.mark.parametrize(
    ("only", "kinds"), [("weights", {"values"}), ("slots", {"slot", "step"}), ("groups", {"hyperparameter"})]
)
def test_confined_to_a_part(held_against, only, kinds):
    """`only` reports its own part and no other."""

    def change(c):
        c["model"]["head.bias"].add_(1)
        entry(c).pop("exp_avg")
        entry(c)["step"].add_(1)
        group(c).update(lr=9.0)
        c["step"] = 8

    assert {each.kind for each in held_against(change, only=only).differences} == kinds


def test_unknown_part_is_refused(tmp_path):
    """A misspelt part is an error, not a comparison of nothing."""
    path = saved(tmp_path / "a.pt", *training())
    with pytest.raises(OptstateError, match="no such part"):
        optstate.diff(path, path, only="slot")


def test_what_is_no_state_is_refused(tmp_path):
    """Neither a missing file nor any other object is taken for an empty state."""
    path = saved(tmp_path / "a.pt", *training())
    with pytest.raises(NotACheckpoint):
        optstate.diff(path, tmp_path / "none.pt")
    with pytest.raises(OptstateError, match="nothing to compare"):
        optstate.diff(path, 3)


def test_headers_alone(held_against):
    """Without values, other shapes are found and other values are not."""
    assert held_against(lambda c: entry(c)["exp_avg"].add_(1), values=False).ok
    assert not held_against(lambda c: entry(c).update(exp_avg=torch.zeros(3)), values=False).ok


# --- names ------------------------------------------------------------------------------------------------


def test_renamed_parameter_is_recognised_by_content(tmp_path):
    """The same values under another name are a rename, not a loss: of the weight and of its slots."""
    model, optimizer = training()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "a.pt")
    content["model"] = {name.replace("head", "classifier"): value for name, value in content["model"].items()}
    torch.save(content, tmp_path / "b.pt")
    found = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert told(found) == [("renamed", "head.weight", None), ("renamed", "head.bias", None)]
    assert found.differences[0].b == "classifier.weight"


def test_a_name_that_is_nowhere_but_similar_content_is_no_rename(tmp_path):
    """One bit less than equal is another tensor."""
    model, optimizer = training()
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "a.pt")
    content["model"] = {name.replace("head", "classifier"): value.clone() for name, value in content["model"].items()}
    content["model"]["classifier.weight"][0, 0] += 1e-6
    content["optimizer"] = optimizer.state_dict()
    for slots in content["optimizer"]["state"].values():
        slots["exp_avg"] = slots["exp_avg"] + 1
        slots["exp_avg_sq"] = slots["exp_avg_sq"] + 1
    torch.save(content, tmp_path / "b.pt")
    found = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert ("parameter", "head.weight", None) in told(found)
    assert ("renamed", "head.bias", None) in told(found)


def held(*values, dtype=torch.float32):
    """A tensor in memory."""
    return HeldTensor(torch.tensor(values, dtype=dtype))


def test_content_that_is_not_unique_or_constant_tells_nothing():
    """Equal twins and constants, which all fresh state is, are never paired by content."""
    a = {"x": held(1, 2), "y": held(3, 4), "y2": held(3, 4), "zero": held(0, 0), "one": held(7)}
    b = {"p": held(1, 2), "q": held(3, 4), "q2": held(3, 4), "nought": held(0, 0), "single": held(7)}
    assert by_content(a, b) == {"x": "p"}


def test_content_of_another_type_or_shape_is_another():
    """The same bytes in another shape or type are not the same content."""
    wide = HeldTensor(torch.tensor([[1.0, 2.0]]))
    ints = HeldTensor(torch.tensor([1.0, 2.0]).view(torch.int32))
    assert by_content({"a": held(1, 2)}, {"b": wide, "c": ints}) == {}


def test_tensors_that_begin_alike_are_told_apart():
    """Where the first block does not tell, the whole tensor does."""
    base = torch.arange(BLOCK + 4.0)
    a, b = base.clone(), base.clone()
    b[-1] = -1
    pairs = by_content(
        {"a": HeldTensor(a), "b": HeldTensor(b)}, {"y": HeldTensor(b.clone()), "x": HeldTensor(a.clone())}
    )
    assert pairs == {"a": "x", "b": "y"}


def test_tied_weights_are_found_by_any_of_their_names(tmp_path):
    """A parameter that the other side calls by an alias is the same parameter."""
    model, optimizer = training()
    content = {"model": {**model.state_dict(), "tied": model["head"].weight.data}, "optimizer": optimizer.state_dict()}
    torch.save(content, tmp_path / "a.pt")
    content["model"] = {"tied": model["head"].weight.data, **model.state_dict()}
    torch.save(content, tmp_path / "b.pt")
    assert {each.kind for each in optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt").differences} <= {"order"}


def test_a_file_without_names_is_held_against_names_and_said_so(tmp_path):
    """Positions meet names by content, else by their place, and the note says which."""
    model, optimizer = training()
    torch.save(optimizer.state_dict(), tmp_path / "bare.pt")
    same = optstate.diff(optstate.attach(optimizer, model), tmp_path / "bare.pt")
    assert same.ok
    assert "recognised by content" in str(same)
    other = optstate.diff(optstate.attach(*reversed(training(seed=1))), tmp_path / "bare.pt")
    assert {each.kind for each in other.differences} == {"values"}
    assert "paired by position" in str(other)


def test_positions_are_held_against_positions_and_said_so(tmp_path):
    """Two files without names are compared position by position, and the note says so."""
    torch.save(training()[1].state_dict(), tmp_path / "a.pt")
    torch.save(training(seed=1)[1].state_dict(), tmp_path / "b.pt")
    found = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert {each.name for each in found.differences} == {"#0", "#1", "#2", "#3"}
    assert "same position" in str(found)


def test_positions_of_other_shapes_are_not_paired(tmp_path):
    """Where a shape contradicts the position, nothing is paired by it."""
    torch.save(training()[1].state_dict(), tmp_path / "bare.pt")
    other = nn.ModuleDict({name: nn.Linear(5, 3) for name in NAMES})
    adam = torch.optim.AdamW(other.parameters())
    other["head"](torch.ones(1, 5)).sum().backward()
    adam.step()
    found = optstate.diff(optstate.attach(adam, other), tmp_path / "bare.pt")
    assert sum(kind == "parameter" for kind, _, _ in told(found)) == 8


# --- groups -----------------------------------------------------------------------------------------------


def grouped(*groups, **options):
    """The state of an optimizer over these groups of names of one model."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(4, 3) for name in NAMES})
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD([{"params": [parameters[name] for name in names]} for names in groups], lr=0.1)
    return optstate.attach(optimizer, model)


EVERY = ("encoder.weight", "encoder.bias", "head.weight", "head.bias")


def test_moved_parameter():
    """A parameter in another group is named with both groups."""
    found = optstate.diff(grouped(EVERY[:2], EVERY[2:]), grouped(EVERY[:3], EVERY[3:]))
    assert [(each.kind, each.name, each.a, each.b) for each in found.differences] == [
        ("group", "head.weight", "group 1", "group 0")
    ]


def test_order_within_a_group():
    """Another order is a difference, because torch loads by position."""
    found = optstate.diff(grouped(EVERY), grouped(EVERY[::-1]))
    assert told(found) == [("order", "group 0", None)]


def test_group_that_is_gone():
    """A group that one side does not have is told, and so is where its parameters went."""
    found = optstate.diff(grouped(EVERY[:3], EVERY[3:]), grouped(EVERY))
    assert ("group", "head.bias", None) in told(found)


# --- values -----------------------------------------------------------------------------------------------


def change(a, b):
    """By how much two tensors differ."""
    return compare(HeldTensor(a), HeldTensor(b))


def test_equal_bits_are_the_same_whatever_they_mean():
    """NaN is the same as itself, payload and all."""
    strange = torch.tensor([nan, -inf, -0.0, 1e-45])
    assert change(strange, strange.clone()) is None


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0])),
        (torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32), torch.tensor([nan])),
        (torch.tensor([True]), torch.tensor([False])),
        (torch.tensor([2**62]), torch.tensor([2**62 + 1])),
        (torch.tensor([1 + 0j]), torch.tensor([complex(1, -0.0)])),
    ],
    ids=["sign of zero", "payload of NaN", "bool", "beyond float64", "complex zero"],
)
def test_one_bit_is_a_difference(a, b):
    """What arithmetic would call equal differs all the same."""
    found = change(a, b)
    assert found is not None
    assert found.differing == 1


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int32, torch.complex64]
)
def test_figures_are_those_of_numpy(dtype):
    """Over several blocks, with the first difference in the last one, the figures are those of all at once."""
    torch.manual_seed(0)
    a = (torch.randn(3 * BLOCK + 7) * 50).to(dtype)
    b = a.clone()
    b[-5:] = b[-5:] * 2 + 1
    found = change(a, b)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x, y = a.to(wide).numpy(), b.to(wide).numpy()
    parts = (lambda values: values.view(np.float64)) if dtype.is_complex else (lambda values: values)
    assert (found.elements, found.differing) == (a.numel(), int((x != y).sum()))
    assert found.max_abs == np.abs(parts(x) - parts(y)).max()
    assert found.relative == pytest.approx(np.linalg.norm(x - y) / max(np.linalg.norm(x), np.linalg.norm(y)), rel=1e-12)
    expected = parts(x) @ parts(y) / (np.linalg.norm(x) * np.linalg.norm(y))
    assert found.cosine == pytest.approx(expected, rel=1e-12)


def test_values_that_are_no_numbers_are_counted_and_left_out_of_the_figures():
    """NaN and infinities of each side are counted; the figures are of what is finite in both."""
    found = change(torch.tensor([1.0, nan, 3.0, 4.0]), torch.tensor([1.0, 2.0, inf, 6.0]))
    assert (found.differing, found.nonfinite, found.max_abs) == (3, (1, 1), 2.0)


def test_tiny_and_huge_values_keep_their_figures():
    """Second moments of 1e-30 neither underflow, nor do squares of 1e30 overflow."""
    for scale in (1e-30, 1e30):
        found = change(torch.tensor([1.0, 2.0]) * scale, torch.tensor([1.0, 3.0]) * scale)
        assert found.relative == pytest.approx(1 / 10**0.5, rel=1e-6)


@given(st.binary(min_size=0, max_size=64), st.binary(min_size=0, max_size=64))
def test_same_if_and_only_if_the_bytes_are(a, b):
    """For any bits, of any float: None if and only if the bytes are equal."""
    length = min(len(a), len(b)) // 4 * 4
    for dtype in (torch.float32, torch.float16, torch.uint8):
        x, y = (torch.frombuffer(bytearray(raw[:length]) or bytearray(4), dtype=dtype) for raw in (a, b))
        assert (change(x, y) is None) == (a[:length] == b[:length] or not length)


def test_memory_is_bounded(tmp_path):
    """Comparing two large tensors takes the memory of a few blocks, not that of the tensors."""
    values = torch.arange(1 << 24, dtype=torch.float32)  # 67 MB
    torch.save({"model": {"w": values}}, tmp_path / "a.pt")
    values[-1] = 0
    torch.save({"model": {"w": values}}, tmp_path / "b.pt")
    optstate.diff(tmp_path / "a.pt", tmp_path / "a.pt")
    tracemalloc.start()
    found = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told(found) == [("values", "w", None)]
    assert peak < 8_000_000


def test_statistics_of_many_are_those_of_each():
    """Taken in several threads, statistics are the same and in order; what fails is raised at its turn."""
    refs = {index: HeldTensor(torch.randn(size)) for index, size in enumerate([3, 200_000, 0, 5, 300_001])}
    assert dict(stats_of(refs)) == {index: stats(ref) for index, ref in refs.items()}
    assert list(dict(stats_of(refs))) == list(refs)


# --- what cannot be read ----------------------------------------------------------------------------------


def damage(path, raw):
    """Flip a bit within these bytes of a file."""
    content = bytearray(path.read_bytes())
    place = content.find(raw)
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)


def test_damage_is_never_the_same(tmp_path):
    """Two equally damaged files are not the same: the tensor is named as unread."""
    model, optimizer = training()
    raw = model["head"].weight.detach().numpy().tobytes()
    for name in ("a.pt", "b.pt"):
        damage(saved(tmp_path / name, model, optimizer), raw)
    found = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert told(found) == [("unread", "head.weight", None)]
    assert "damaged" in str(found)


def test_part_that_was_not_read_is_a_difference(tmp_path):
    """A checkpoint of which a shard is missing is not the same as anything, itself included."""
    opened = replace(optstate.open(saved(tmp_path / "a.pt", *training())), unread=("shard 2: not there",))
    assert told(optstate.diff(opened, opened)) == [("unread", "shard 2: not there", None)] * 2


def test_unplaced_state_is_compared(tmp_path):
    """State that belongs to no parameter counts as well."""
    opened = optstate.open(saved(tmp_path / "a.pt", *training()))
    a, b = (replace(opened, unplaced={"state.9.exp_avg": held(*values)}) for values in ((1, 2), (1, 3)))
    assert told(optstate.diff(a, b)) == [("values", "state.9.exp_avg", None)]
    assert optstate.diff(a, a).ok


# --- saying it --------------------------------------------------------------------------------------------


def test_output_is_bounded_and_complete_on_request(tmp_path):
    """A thousand differences print as a screen, with their number; all of them where asked for."""
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(500)))
    a, b = (
        {name: value + index + shift for index, (name, value) in enumerate(model.state_dict().items())}
        for shift in (0, 1)
    )
    torch.save(a, tmp_path / "a.pt")
    torch.save(b, tmp_path / "b.pt")
    found = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt")
    assert len(found.differences) == 1000
    assert str(found).count("\n") < 30
    assert "1,000 tensors of other values" in str(found)
    assert "more lines" in str(found)
    assert "more lines" not in found.text(None)


def test_same_words_for_many_are_said_once(held_against):
    """A step that all parameters share is one line."""
    found = held_against(lambda c: [entry(c, index).update(step=torch.tensor(9.0)) for index in range(4)])
    assert len(found.differences) == 4
    assert str(found).count("2 → 9") == 1
    assert "and 1 more" in str(found)


def test_foreign_text_is_safe(tmp_path):
    """Escape codes in names, keys and values reach no terminal."""
    evil = "\x1b[2J\nx"
    torch.save({"model": {evil: torch.ones(2)}, evil: {evil: evil}}, tmp_path / "a.pt")
    torch.save({"model": {"y": torch.zeros(3)}, evil: {evil: "other"}}, tmp_path / "b.pt")
    text = optstate.diff(tmp_path / "a.pt", tmp_path / "b.pt").text(None)
    assert "\x1b" not in text
    assert "\nx" not in text


def test_objects_that_nobody_could_walk_are_unread():
    """What the reader could not unfold cannot be compared, and is not called the same."""
    state = optstate.attach(*reversed(training())).snapshot()
    elided: Any = Elided("a list that contains itself")
    side = Side("a", state, objects={"loop": elided})
    assert told(differences(side, side)) == [("unread", "loop", None)]


def test_objects_that_contain_themselves_end():
    """A value in memory may lead back to itself; comparing it ends."""
    state = optstate.attach(*reversed(training())).snapshot()
    loop: list[object] = [1]
    loop.append(loop)
    other: list[object] = [2]
    other.append(other)
    sides = [Side("a", state, objects={"loop": value}) for value in (loop, other)]
    assert told(differences(*sides)) == [("object", "loop", "[0]")]


def test_side_of_a_checkpoint_has_all_of_it(tmp_path):
    """Nothing that a checkpoint holds is left out of the comparison."""
    opened = optstate.open(saved(tmp_path / "a.pt", *training(), step=2))
    side = side_of(opened)
    assert (side.step, side.weights, side.objects) == (2, opened.weights, opened.objects)
