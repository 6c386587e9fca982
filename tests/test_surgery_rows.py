"""Rows through surgery: what stays keeps its bits, and new rows are moved by no more than a fresh start moves them."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import EditError
from optstate.optimizers.mapped_slots import mapped
from optstate.optimizers.registry import by_class, by_name, known_names
from optstate.optimizers.row_map import NEW, RowMap
from optstate.optimizers.updates import elementwise
from tests.test_growth import CLASSES, Run, gradients, start_of

T = torch.optim
AGES = (1, 100, 5000)
FILLS = ("zero", "mean", "copy", "tensor")
STEPS = 400
MOMENTS = [case for case in CLASSES if case[0] not in (T.Muon, T.Adafactor)]
CASES = [(*case, age, fill) for case, age, fill in product(MOMENTS, AGES, FILLS)]
EVERY = 17  # of the cases, where not all are run
OLD, ALL, COLUMNS = 5, 8, 4


class Patient(nn.Module):
    """One parameter that does not move, so that each step shows its update."""

    def __init__(self, cls, options, start):
        super().__init__()
        self.xyz = nn.Parameter(start.clone())
        self.optimizer = cls([self.xyz], **options)

    def update(self, gradient):
        """The change that one step with this gradient makes."""
        before = self.xyz.detach().clone()
        self.xyz.grad = gradient.to_sparse() if isinstance(self.optimizer, T.SparseAdam) else gradient.clone()
        self.optimizer.step()
        moved = self.xyz.detach() - before
        with torch.no_grad():
            self.xyz.copy_(before)
        return moved

    @property
    def state(self):
        return optstate.attach(self.optimizer, self)

    @property
    def slots(self):
        return self.optimizer.state[self.xyz]


def aged(cls, options, age, kind="constant"):
    """A patient after some steps, and the gradients to come for all rows that it will have."""
    stream = gradients(kind, (OLD, COLUMNS), (ALL, COLUMNS), seed=age)
    patient = Patient(cls, options, start_of((ALL, COLUMNS))[:OLD])
    for _ in range(age):
        patient.update(next(stream)[:OLD])
    return patient, stream


def grow(patient, fill):
    """Three rows more, which are like the first three."""
    tensor = torch.full((ALL - OLD, COLUMNS), 100.0, dtype=torch.float64)
    with patient.state.surgery() as cut:
        rows = start_of((ALL, COLUMNS))[OLD:]
        cut.grow("xyz", rows=rows, fill=tensor if fill == "tensor" else fill, like=[0, 1, 2])
    return cut.change


@pytest.mark.slow
def test_new_rows_are_moved_by_no_more_than_a_fresh_start(whole):
    """With every fill, every optimizer, at t = 1, 100 and 5000, in the next step and over 400 (F51)."""
    for cls, options, age, fill in CASES if whole else CASES[::EVERY]:
        patient, stream = aged(cls, options, age)
        old, fresh = Run(cls, options, start_of((ALL, COLUMNS))[:OLD]), Run(cls, options, start_of((ALL, COLUMNS)))
        if patient.optimizer.state:
            old.optimizer.state[old.parameter] = {
                key: value.clone() if torch.is_tensor(value) else value for key, value in patient.slots.items()
            }
        if fill == "tensor" and not any(slot.role == "momentum" for slot in patient.state["xyz"].slots.values()):
            continue  # refused: see below
        grow(patient, fill)
        ours, theirs, usual = [], [], []
        for _ in range(STEPS):
            gradient = next(stream)
            ours.append(patient.update(gradient)[OLD:].abs().max().item())
            theirs.append(fresh.update(gradient)[OLD:].abs().max().item())
            usual.append(old.update(gradient[:OLD]).abs().max().item())
        case = (cls.__name__, options, age, fill)
        assert max(ours) <= max(*theirs, *usual) * (1 + 1e-9), case
        first = theirs[0] if cls is not T.RAdam else max(theirs)  # whose first updates are not divided by anything
        assert ours[0] <= first * (1 + 1e-6), case


def test_a_momentum_that_is_not_there_is_not_filled():
    """Given values for what the optimizer does not keep are refused; a word that asks for nothing passes."""
    for cls, options in ((T.Adagrad, {}), (T.Rprop, {}), (T.ASGD, {})):
        patient, _ = aged(cls, options, 2)
        with pytest.raises(EditError, match="there is no momentum to fill"):
            grow(patient, "tensor")
        grow(patient, "mean")


def test_slots_in_codes_are_refused():
    """A block of codes spans rows, so none of them can be cut out."""
    patient, _ = aged(T.Adam, {}, 2)
    patient.slots["exp_avg_sq"] = torch.zeros(OLD, COLUMNS, dtype=torch.uint8)
    with pytest.raises(EditError, match="xyz/exp_avg_sq is stored in codes"), patient.state.surgery() as cut:
        cut.keep_rows("xyz", [0])


@pytest.mark.parametrize("fill", FILLS)
def test_adams_new_rows_after_5000_steps(fill):
    """F51: the first update of a new row is a tenth of the usual without a momentum, none is above it, others stay exact."""
    patient = Patient(T.Adam, {"lr": 1.0, "eps": 1e-30}, torch.zeros(4, 1, dtype=torch.float64))
    patient.slots.update(
        step=torch.tensor(5000.0),
        exp_avg=torch.full((4, 1), 1 - 0.9**5000, dtype=torch.float64),
        exp_avg_sq=torch.full((4, 1), 1 - 0.999**5000, dtype=torch.float64),
    )
    given = {"tensor": torch.full((1, 1), 50.0)}.get(fill, fill)
    with patient.state.surgery() as cut:
        cut.grow("xyz", rows=torch.zeros(1, 1, dtype=torch.float64), fill=given, like=[0])
    moved = -torch.stack([patient.update(torch.ones(5, 1, dtype=torch.float64)) for _ in range(400)])
    assert moved[0, 4].item() == pytest.approx(0.1 if fill == "zero" else 1.0, rel=1e-5)
    assert moved[:, 4].max() <= 1 + 1e-9
    assert torch.allclose(moved[:, :4], torch.ones(1, dtype=torch.float64), rtol=1e-9)
    _, after, fresh = cut.change.entries[0].effect
    assert after <= fresh * (1 + 1e-9)


@pytest.mark.parametrize(
    ("t", "first", "peak"),
    [
        (1, 1.0, 1.0),
        (10, 0.484, 1.11),
        (100, 0.976, 2.14),
        (1000, 2.515, 5.24),
        (5000, 3.1516, 6.55),
        (10_000, 3.162, 6.57),
    ],
)
def test_zero_rows_written_by_hand_break_the_bound(t, first, peak):
    """F52: what people write, torch.cat with zeros before step t, moves new rows up to 6.55 times too far."""
    patient = Patient(T.Adam, {"lr": 1.0, "eps": 1e-30}, torch.zeros(2, 1, dtype=torch.float64))
    corrected = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    patient.slots.update(
        step=torch.tensor(t - 1.0),
        exp_avg=corrected * (1 - 0.9 ** (t - 1)),
        exp_avg_sq=corrected * (1 - 0.999 ** (t - 1)),
    )
    moved = -torch.stack([patient.update(torch.ones(2, 1, dtype=torch.float64)) for _ in range(400)])
    assert moved[0, 1].item() == pytest.approx(first, abs=0.0006)
    assert moved[:, 1].max().item() == pytest.approx(peak, abs=0.01)


def test_like_says_how_large_gradients_will_be():
    """Rows that are split because their gradients are large get a second moment for these: the mean would be too small."""
    found = {}
    for like in (None, [0]):
        patient = Patient(T.Adam, {"lr": 1.0, "eps": 1e-30}, torch.zeros(4, 1, dtype=torch.float64))
        sizes = torch.tensor([[10.0], [0.1], [0.1], [0.1]], dtype=torch.float64)
        for _ in range(1000):
            patient.update(sizes)
        with patient.state.surgery() as cut:
            cut.grow("xyz", rows=torch.zeros(1, 1, dtype=torch.float64), like=like)
        gradient = torch.cat([sizes, sizes[:1]])
        found[like is None] = max(-patient.update(gradient)[4].item() for _ in range(400))
    assert found[False] <= 1 + 1e-9
    assert found[True] > 1.5  # without a word about them they count as large as the others


# --- what stays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "options"), CLASSES)
def test_kept_rows_go_on_to_the_bit(cls, options):
    """F57: rows that stay, in any order, have the same bits in weights and slots, and take the very same steps."""
    patient, stream = aged(cls, options, 7, "random")
    twin, _ = aged(cls, options, 7, "random")
    before = {key: value.clone() for key, value in patient.slots.items() if torch.is_tensor(value)}
    order = torch.tensor([3, 0, 4])
    with patient.state.surgery() as cut:
        cut.keep_rows("xyz", order)
    assert torch.equal(patient.xyz, twin.xyz[order])
    spec = by_class(cls)
    for key, value in before.items():
        if spec.slots[key].shape == "parameter":
            assert torch.equal(patient.slots[key], value[order])
        elif spec.slots[key].shape == "scalar":
            assert torch.equal(patient.slots[key], value)
    gradient = next(stream)[:OLD]
    ours, theirs = patient.update(gradient[order]), twin.update(gradient)[order]
    assert ours.isfinite().all()
    if elementwise(spec):
        assert torch.equal(ours, theirs)


def test_factors_of_kept_rows_stay_true():
    """Adafactor's estimate row·column/mean of every element that is kept is what it was, whichever rows they are."""
    patient, _ = aged(T.Adafactor, {}, 9, "random")

    def estimate():
        row, column = patient.slots["row_var"], patient.slots["col_var"]
        return row * column / row.mean(0, keepdim=True)

    before = estimate()
    with patient.state.surgery() as cut:
        cut.keep_rows("xyz", [4, 1, 2])
    assert torch.allclose(estimate(), before[[4, 1, 2]], rtol=1e-12)
    with patient.state.surgery() as cut:
        cut.keep_rows("xyz", [True, False, True, True], dim=1)
    assert torch.allclose(estimate(), before[[4, 1, 2]][:, [0, 2, 3]], rtol=1e-12)
    with patient.state.surgery() as cut:
        cut.grow("xyz", rows=torch.zeros(2, 3, dtype=torch.float64))
    assert patient.slots["row_var"].shape == (5, 1)
    assert torch.allclose(patient.slots["row_var"][3:], patient.slots["row_var"][:3].mean(0))
    assert patient.update(torch.ones(5, 3, dtype=torch.float64)).isfinite().all()


def test_factored_slots_have_no_copies_of_rows():
    """A factor is a mean over a whole dimension, so a copy of a row would change it for all: refused, with the reason."""
    patient, _ = aged(T.Adafactor, {}, 3)
    with pytest.raises(EditError, match="is a mean over a whole dimension"), patient.state.surgery() as cut:
        cut.tile("xyz", 2)


def test_complex_rows():
    """Of complex parameters each component has its own second moment, and the bound holds for each."""
    patient = Patient(T.Adam, {"lr": 1.0, "eps": 1e-30}, torch.zeros(3, dtype=torch.complex128))
    gradient = torch.tensor([1 + 4j, 2 + 8j, 3 + 12j], dtype=torch.complex128)
    for _ in range(300):
        patient.update(gradient)
    with patient.state.surgery() as cut:
        cut.grow("xyz", rows=torch.zeros(1, dtype=torch.complex128), fill="mean")
    assert patient.slots["exp_avg_sq"][3].item() == patient.slots["exp_avg_sq"][:3].mean().item()
    moved = torch.view_as_real(patient.update(torch.cat([gradient, gradient[1:2]])))
    assert moved.abs().max() <= 1 + 1e-9


def test_sixteen_bits_stay_sixteen_bits():
    """Slots in bfloat16 keep their type; what new rows get is computed in float32."""
    patient = Patient(T.Adam, {"lr": 0.1}, torch.zeros(300, 2, dtype=torch.bfloat16))
    for _ in range(3):
        patient.update(torch.ones(300, 2, dtype=torch.bfloat16))
    with patient.state.surgery() as cut:
        cut.grow("xyz", rows=torch.zeros(4, 2, dtype=torch.bfloat16), fill="mean")
    assert patient.slots["exp_avg_sq"].dtype == torch.bfloat16
    assert torch.equal(patient.slots["exp_avg_sq"][300:], patient.slots["exp_avg_sq"][:4])


# --- copies ---------------------------------------------------------------------------------------------------------


def test_split_units_compute_what_they_did_and_get_their_share_of_the_gradient():
    """F58: a tanh net of which a unit is split computes the same, and state is what autograd and Adam would have made."""
    shares = (0.25, 0.75)
    torch.manual_seed(0)
    data = torch.randn(16, 3, dtype=torch.float64)

    def net():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    def backward(model):
        model.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        return loss.item()

    model, still = net(), net()
    optimizer = T.Adam(model.parameters(), lr=0.0)  # weights that stand still: the same gradients at every step
    for _ in range(5):
        backward(model)
        optimizer.step()
    state = optstate.attach(optimizer, model)
    with state.surgery() as cut:
        cut.split("0.*", [2], shares)
        cut.split("2.weight", [2], shares, dim=1, outgoing=True)
    assert backward(model) == pytest.approx(backward(still), rel=1e-14)
    incoming, outgoing = model[0].weight.grad, model[2].weight.grad
    assert torch.allclose(incoming[4] / incoming[2], torch.tensor(3.0, dtype=torch.float64))
    assert torch.allclose(outgoing[:, 4], outgoing[:, 2])
    fresh = T.Adam(model.parameters(), lr=0.0)
    for _ in range(5):
        backward(model)
        fresh.step()
    for parameter in model.parameters():
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.allclose(optimizer.state[parameter][key], fresh.state[parameter][key], rtol=1e-12)


def test_copies_of_tiled_rows_move_as_what_they_are_copies_of():
    """F61: each copy has the weights, the state and the gradient of its row, to the bit."""
    patient, stream = aged(T.AdamW, {}, 5, "random")
    patient.xyz.grad = next(stream)[:OLD]
    with patient.state.surgery() as cut:
        cut.tile("xyz", 3)
    for tensor in (patient.xyz, patient.xyz.grad, patient.slots["exp_avg"], patient.slots["exp_avg_sq"]):
        assert torch.equal(tensor[:OLD], tensor[OLD : 2 * OLD])
        assert torch.equal(tensor[:OLD], tensor[2 * OLD :])
    moved = patient.update(next(stream)[:OLD].repeat(3, 1))
    assert torch.equal(moved[:OLD], moved[2 * OLD :])


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "message"),
    [
        (lambda cut: cut.keep_rows("xyz", [True] * 4), "the mask does not fit xyz"),
        (lambda cut: cut.keep_rows("xyz", torch.ones(5, 4, dtype=torch.bool)), "the mask does not fit xyz"),
        (lambda cut: cut.keep_rows("xyz", torch.ones(5)), "these are no rows of xyz"),
        (lambda cut: cut.keep_rows("xyz", torch.tensor([1, 0, 1, 1, 0], dtype=torch.uint8)), "would be kept twice"),
        (lambda cut: cut.keep_rows("xyz", "all"), "these are no rows of xyz"),
        (lambda cut: cut.keep_rows("xyz", slice(None, None, -1)), "these are no rows of xyz"),
        (lambda cut: cut.keep_rows("xyz", [0, 5]), "xyz has no row 5"),
        (lambda cut: cut.keep_rows("xyz", [0, -6]), "xyz has no row -6"),
        (lambda cut: cut.keep_rows("xyz", [1, 1]), "would be kept twice"),
        (lambda cut: cut.keep_rows("xyz", []), "no row of xyz would be left"),
        (lambda cut: cut.keep_rows("xyz", [False] * 5), "no row of xyz would be left"),
        (lambda cut: cut.keep_rows("xyz", [0], dim=2), "xyz has no dimension 2"),
        (lambda cut: cut.keep_rows("xyz", [0], dim="0"), "xyz has no dimension 0"),
        (lambda cut: cut.keep_rows("xzy", [0]), "'xzy' matches nothing"),
        (lambda cut: cut.grow("xyz"), "by what is xyz to grow"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 3)), "this does not fit in the place of xyz"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4).float()), "this cannot take the place of xyz"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4).requires_grad_() * 2), "this cannot take the place of xyz"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4).to("meta")), "this cannot take the place of xyz"),
        (lambda cut: cut.grow("xyz", rows=[[1.0] * 4]), "this is no tensor"),
        (lambda cut: cut.grow("xyz", rows=rows(0, 4)), "xyz would not grow"),
        (lambda cut: cut.grow("xyz", nn.Parameter(rows(4, 4))), "xyz would not grow"),
        (lambda cut: cut.grow("xyz", rows(6, 4), rows=rows(1, 4)), "by what is xyz to grow"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4), like=[0]), "like says for each new row"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4), fill="copy"), "a copy of which row's momentum"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4), fill="one"), "fill is a word or a tensor"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4), fill=rows(2, 3)), "this is no momentum for the new rows"),
        (lambda cut: cut.grow("xyz", rows=rows(2, 4), fill=rows(2, 4) * float("nan")), "this is no momentum"),
        (lambda cut: cut.tile("xyz", 1), "xyz is tiled two times or more"),
        (lambda cut: cut.tile("xyz", 2.0), "xyz is tiled two times or more"),
        (lambda cut: cut.split("xyz", [0], (0.5, 0.6)), "share what goes through it"),
        (lambda cut: cut.split("xyz", [0], (1.0,)), "share what goes through it"),
        (lambda cut: cut.replace("xyz"), "by what is xyz to be replaced"),
        (lambda cut: cut.replace("xyz", nn.Parameter(rows(3, 4))), "xyz has another shape"),
        (lambda cut: cut.replace("xyz", nn.Parameter(rows(3, 4)), map=[0, 1]), "the map of xyz says"),
        (lambda cut: cut.replace("xyz", nn.Parameter(rows(3, 4)), map=[0, 1, 5]), "the map of xyz says"),
        (lambda cut: cut.replace("xyz", nn.Parameter(rows(3, 4)), map=lambda key, old: old), "the map makes no slot"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(verb, message):
    """Masks and indices of another length or kind, shapes, types and devices that do not fit: told, and nothing changed."""
    patient, _ = aged(T.AdamW, {}, 3)
    before = {key: value.clone() for key, value in patient.slots.items()}
    parameter, state = patient.xyz, patient.state
    with pytest.raises(optstate.OptstateError, match=message), state.surgery() as cut:
        verb(cut)
    assert patient.xyz is parameter
    assert all(torch.equal(patient.slots[key], value) for key, value in before.items())
    assert len(state.journal) == 0


def rows(*shape):
    return torch.zeros(shape, dtype=torch.float64)


@pytest.mark.parametrize("name", known_names())
def test_every_row_of_the_registry_has_an_answer(name):
    """For each described class rows can be kept and added, or it is said why not: never a state that is half right."""
    spec = by_name(name)
    shapes = {"squeezed row": (20,), "squeezed column": (18,), "row": (20, 1), "column": (1, 18), "parameter": (20, 18)}
    entry = {
        key: torch.ones(shapes.get(slot.shape, ()))
        for key, slot in spec.slots.items()
        if slot.when not in ("vector", "sometimes")
    }
    group = dict.fromkeys((*spec.hyperparameters, *spec.optional), 0.5) | {
        "betas": (0.9, 0.99, 0.999),
        "etas": (0.5, 1.2),
        "step_sizes": (1e-6, 50),
    }
    rows = RowMap(20, torch.tensor([*range(3, 20), NEW, NEW, NEW, NEW, NEW]))
    if any(slot.shape in ("flat", "list") or slot.when == "sometimes" for slot in spec.slots.values()):
        with suppress(EditError):
            mapped(spec, entry, (20, 18), rows, group, torch.zeros(22, 18))
        return
    start = mapped(spec, entry, (20, 18), rows, group, torch.zeros(22, 18))
    for key, value in start.slots.items():
        slot = spec.slots[key]
        counted = slot.role in ("second_moment", "max_second_moment", "factored_row", "factored_column")
        if counted and (slot.age is not None or spec.update is None):
            assert (value > 0).all(), key
        if slot.shape == "parameter":
            assert value.shape == (22, 18)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "schedulefree", "bitsandbytes", "torchao"])
def test_other_libraries_rows_are_as_safe(library):
    """In each real class new rows are moved no further than by a fresh start or than the old ones, or it is refused."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    program = [sys.executable, "-m", "tests.cut_rows", library]
    shown = subprocess.run(program, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    for row, found in json.loads(shown.splitlines()[-1]).items():
        assert all(isinstance(each, str) or each <= 1 + 1e-4 for each in found), (row, found)
