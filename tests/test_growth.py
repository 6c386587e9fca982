"""State for another shape: what was saved stays to the bit, and new elements are moved by no more than a fresh start."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from optstate.errors import RestoreError
from optstate.optimizers.growth import resizable, resized
from optstate.optimizers.registry import by_class, by_name, known_names
from optstate.optimizers.resizing import misfit, padded, sliced
from optstate.optimizers.updates import elementwise

T = torch.optim
CLASSES = [
    (T.SGD, {"lr": 0.1}),
    (T.SGD, {"lr": 0.1, "momentum": 0.9}),
    (T.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    (T.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    (T.Adam, {}),
    (T.Adam, {"amsgrad": True, "betas": (0.95, 0.9999)}),
    (T.AdamW, {"betas": (0.9, 0.95)}),
    (T.NAdam, {}),
    (T.RAdam, {}),
    (T.Adamax, {}),
    (T.Adagrad, {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    (T.Adadelta, {}),
    (T.RMSprop, {}),
    (T.RMSprop, {"momentum": 0.9, "centered": True}),
    (T.Rprop, {}),
    (T.ASGD, {"t0": 2.0}),
    (T.SparseAdam, {}),
    (T.Adafactor, {}),
    (T.Muon, {}),
]
PADS = [((6,), (9,)), ((5, 4), (8, 4)), ((5, 4), (5, 6)), ((5, 4), (7, 6)), ((4, 3, 2, 2), (5, 4, 2, 3))]
CASES = [
    (cls, options, small, large, age)
    for (cls, options), (small, large), age in product(CLASSES, PADS, (1, 7, 400))
    if cls is not T.Muon or len(small) == 2
]
EVERY = 11  # of the cases, where not all are run


def corner(shape):
    return tuple(map(slice, shape))


class Run:
    """One optimizer over one parameter that does not move, so that each step shows its update."""

    def __init__(self, cls, options, start):
        self.start = start.clone()
        self.parameter = torch.nn.Parameter(start.clone())
        self.optimizer = cls([self.parameter], **options)
        self.spec = by_class(cls)
        getattr(self.optimizer, "train", lambda: None)()  # schedule-free ones start in neither of their two modes

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    @property
    def entry(self):
        return self.optimizer.state[self.parameter]

    def update(self, gradient):
        sparse = isinstance(self.optimizer, T.SparseAdam)
        self.parameter.grad = gradient.to_sparse() if sparse else gradient.clone()
        self.parameter.data.copy_(self.start)
        self.optimizer.step()
        return self.parameter.detach() - self.start

    def take(self, other, how):
        """The state of a run over another shape."""
        entry, old, new = copy.deepcopy(dict(other.entry)), tuple(other.start.shape), tuple(self.start.shape)
        defaults = self.optimizer.defaults
        self.optimizer.state[self.parameter] = resized(
            self.spec, entry, old, new, self.group, how, self.start, defaults
        )
        return self


def gradients(kind, small, large, seed):
    """Reproducible gradients, all of one size along the dimensions that grow and of other sizes along the others."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.ones(large, dtype=torch.float64)
    for axis, (old, new) in enumerate(zip(small, large, strict=True)):
        if old == new:
            shape = [new if each == axis else 1 for each in range(len(large))]
            size = size * torch.logspace(-0.5, 0.5, new, dtype=torch.float64).reshape(shape)
    signs = torch.randn(large, generator=generator, dtype=torch.float64).sign()
    while True:
        random = torch.randn(large, generator=generator, dtype=torch.float64)
        yield size * (signs if kind == "constant" else random)


@pytest.fixture
def cases(whole):
    return CASES if whole else CASES[::EVERY]


def start_of(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def trained(cls, options, small, large, age, kind):
    """A run over the small shape after some steps, and the gradients to come, of the large one."""
    stream = gradients(kind, small, large, seed=age)
    run = Run(cls, options, start_of(large)[corner(small)].contiguous())
    for _ in range(age):
        run.update(next(stream)[corner(small)].contiguous())
    return run, stream


# --- padding --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["constant", "random"])
def test_new_elements_are_moved_by_no_more_than_a_fresh_start(kind, cases):
    """Over 200 steps, with gradients as large as those that the state has seen; a zero state would move them 6.5 times as far."""
    for cls, options, small, large, age in cases:
        old, stream = trained(cls, options, small, large, age, kind)
        grown, fresh = (Run(cls, options, start_of(large)) for _ in range(2))
        grown.take(old, "pad")
        new = torch.ones(large, dtype=torch.bool)
        new[corner(small)] = False
        ours, theirs, usual = [], [], []
        for _ in range(200 if old.entry else 1):
            gradient = next(stream)
            ours.append(grown.update(gradient)[new].abs().max())
            theirs.append(fresh.update(gradient)[new].abs().max())
            usual.append(old.update(gradient[corner(small)].contiguous()).abs().max())
        bound = max(*theirs, *usual)
        assert all(map(torch.isfinite, ours))
        # Muon makes a matrix orthogonal as a whole; and which of random gradients meet decides by a few percent.
        slack = 1.4 if cls is T.Muon else 1.06 if kind == "random" else 1 + 1e-9
        assert max(ours) <= slack * bound, (cls, options, small, large, age)


def test_old_elements_are_updated_to_the_bit_as_before(cases):
    """Where each element's update depends on that element alone, growth of the rest changes no bit of it."""
    tried = 0
    for cls, options, small, large, age in cases:
        if not elementwise(by_class(cls)):
            continue
        old, stream = trained(cls, options, small, large, age, "random")
        grown = Run(cls, options, start_of(large)).take(old, "pad")
        for _ in range(5):
            gradient = next(stream)
            update = grown.update(gradient)[corner(small)]
            assert torch.equal(update, old.update(gradient[corner(small)].contiguous())), (
                cls,
                options,
                small,
                large,
                age,
            )
        tried += 1
    assert tried > 20


def test_saved_elements_keep_their_bits(cases):
    """Slots shaped as the parameter hold what was saved where it was, in dense memory; numbers for all stay."""
    for cls, options, small, large, age in cases:
        old, _ = trained(cls, options, small, large, age, "random")
        before = copy.deepcopy(dict(old.entry))
        grown = Run(cls, options, start_of(large)).take(old, "pad").entry
        assert list(grown) == list(before)
        for key, value in before.items():
            assert type(grown[key]) is type(value)
            slot = old.spec.slots[key]
            if slot.shape == "scalar":
                assert grown[key] == value
            elif slot.shape == "parameter":
                assert torch.equal(grown[key][corner(small)], value)
                assert grown[key].shape == large
                assert grown[key].is_contiguous()
                assert grown[key].dtype == value.dtype
        assert all(torch.equal(old.entry[key], before[key]) for key in before if torch.is_tensor(before[key]))


@pytest.mark.parametrize(("age", "peak"), [(1, 1.01), (10, 1.12), (100, 2.15), (1000, 5.24), (10_000, 6.57)])
def test_zero_with_the_count_kept_would_move_them_much_further(age, peak):
    """Why the second moment is not zero: the same new row, filled with zero, is moved 6.57 times too far."""
    spec, group = by_class(T.Adam), {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-30}
    entry = {
        "step": torch.tensor(float(age)),
        "exp_avg": torch.full((4,), 1 - 0.9**age, dtype=torch.float64),
        "exp_avg_sq": torch.full((4,), 1 - 0.999**age, dtype=torch.float64),
    }
    found = {}
    for rule in ("zero", "growth"):
        grown = resized(spec, copy.deepcopy(entry), (4,), (5,), group, "pad")
        if rule == "zero":
            grown["exp_avg_sq"][4] = 0.0
        run = Run(T.Adam, {"lr": 1.0, "eps": 1e-30}, torch.zeros(5, dtype=torch.float64))
        run.optimizer.state[run.parameter] = grown
        found[rule] = torch.stack([-run.update(torch.ones(5, dtype=torch.float64)) for _ in range(400)])
    assert found["zero"][:, 4].max().item() == pytest.approx(peak, abs=0.01)
    assert found["growth"][:, 4].max() <= 1 + 1e-9
    assert torch.allclose(found["growth"][:, :4], torch.ones(1, dtype=torch.float64), rtol=1e-9)
    if age == 10_000:
        assert found["growth"][0, 4].item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize(("share", "least", "most"), [(0.25, 1.855, 1.865), (1.0, 0.99, 1.0), (4.0, 0.5, 0.97)])
def test_a_reference_too_small_is_worse_than_one_too_large(share, least, most):
    """What the mean of the others is for gradients of other sizes: of a quarter of their square 1.86 times, of four times .97 at most."""
    spec, run = by_class(T.Adam), Run(T.Adam, {"lr": 1.0, "eps": 1e-30}, torch.zeros(2, dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    entry = {"step": torch.tensor(5000.0), "exp_avg": one, "exp_avg_sq": share * one}
    run.optimizer.state[run.parameter] = resized(spec, entry, (1,), (2,), run.group, "pad")
    moved = torch.stack([-run.update(torch.ones(2, dtype=torch.float64))[1] for _ in range(200)])
    assert least <= moved.max().item() <= most + 1e-9


def grown_adam(square, live, saved=None, **slots):
    square = np.asarray(square)
    entry = {"step": 500.0, "exp_avg": np.ones_like(square), "exp_avg_sq": square, **slots}
    return resized(by_name("torch.optim.adam.Adam"), entry, saved or square.shape, live, {"betas": (0.9, 0.999)}, "pad")


def test_reference_is_the_mean_in_line():
    """New rows get the mean of each column, new columns the mean of each row, and the corner the mean of those."""
    found = grown_adam([[1.0, 3.0], [5.0, 7.0]], (3, 3))
    assert found["exp_avg_sq"].tolist() == [[1.0, 3.0, 2.0], [5.0, 7.0, 6.0], [3.0, 5.0, 4.0]]
    assert found["exp_avg"].tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_line_that_has_seen_no_gradient_gets_the_mean_of_all():
    """Zero in a reference would be the very fault that it is there to prevent; what is not finite does not count."""
    assert grown_adam([[0.0, 2.0], [0.0, 4.0]], (3, 2))["exp_avg_sq"][2].tolist() == [1.5, 3.0]
    assert grown_adam([[np.nan, 2.0], [6.0, np.inf]], (3, 2))["exp_avg_sq"][2].tolist() == [6.0, 2.0]


def test_surprised_second_moments_see_their_mean_too():
    """AdaBelief's is of the distance from the mean: under a steady gradient it is near zero, and a new mean starts at zero."""
    spec, group = by_name("timm.optim.adabelief.AdaBelief"), {"betas": (0.9, 0.999)}
    entry = {"step": 500, "exp_avg": np.full(2, 3.0), "exp_avg_var": np.full(2, 1e-12)}
    found = resized(spec, entry, (2,), (3,), group, "pad")
    assert found["exp_avg_var"][2] == pytest.approx(9.0 * (1 - 0.999**500), rel=1e-9)
    assert found["exp_avg_var"][:2].tolist() == [1e-12, 1e-12]


def test_copies_of_the_weights_follow_them():
    """New elements of averaged weights are the weights there; without the weights there is nothing to copy."""
    spec, entry = by_class(T.ASGD), {"ax": torch.zeros(2, 2)}
    weights = torch.arange(6.0).reshape(3, 2)
    assert resized(spec, entry, (2, 2), (3, 2), {}, "pad", weights)["ax"].tolist() == [[0, 0], [0, 0], [4, 5]]
    with pytest.raises(RestoreError, match="ax starts as a copy of the weights"):
        resized(spec, entry, (2, 2), (3, 2), {}, "pad")


def test_complex_moments_grow():
    """A second moment of complex gradients holds two, one in each component, and each has its own mean."""
    square = torch.tensor([1 + 4j, 3 + 8j])
    entry = {"step": torch.tensor(9.0), "exp_avg": square, "exp_avg_sq": square}
    found = resized(by_class(T.Adam), entry, (2,), (3,), {"betas": (0.9, 0.999)}, "pad")
    assert found["exp_avg_sq"].tolist() == [1 + 4j, 3 + 8j, 2 + 6j]
    assert found["exp_avg"][2] == 0
    rprop = resized(by_class(T.Rprop), {"step_size": square}, (2,), (3,), {"lr": 0.5}, "pad")
    assert rprop["step_size"][2] == 0.5 + 0.5j


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor"])
def test_padded_vocabulary(optimizer):
    """An embedding of 50,257 rows becomes one of 50,304: old rows to the bit, new ones the mean, and the step goes on."""
    cls, old, new = getattr(T, optimizer), (50_257, 16), (50_304, 16)
    run = Run(cls, {}, torch.randn(old, generator=torch.Generator().manual_seed(0)))
    for seed in range(2):
        run.update(torch.randn(old, generator=torch.Generator().manual_seed(seed)))
    live = torch.randn(new, generator=torch.Generator().manual_seed(7))
    grown = Run(cls, {}, padded(run.start, live)).take(run, "pad")
    key, mean = ("exp_avg_sq", 0) if optimizer == "AdamW" else ("row_var", 0)
    value, before = grown.entry[key], run.entry[key]
    assert torch.equal(value[: old[0]], before)
    assert torch.allclose(value[old[0] :], before.mean(mean), rtol=0.05)
    if optimizer == "Adafactor":
        assert torch.equal(grown.entry["col_var"], run.entry["col_var"])
    gradient = torch.randn(new, generator=torch.Generator().manual_seed(9))
    ours, theirs = grown.update(gradient), run.update(gradient[: old[0]])
    assert (ours[old[0] :].abs().max() <= 1.02 * theirs.abs().max()).item()
    if optimizer == "AdamW":
        assert torch.equal(ours[: old[0]], theirs)
    else:
        assert torch.allclose(ours[: old[0]], theirs, rtol=1e-3, atol=1e-6)  # scaled by the root mean square of all


# --- slices ---------------------------------------------------------------------------------------------------


def test_slices_go_on_to_the_bit(cases):
    """The leading part of every slot, in memory of its own; where elements are apart, updates are those of the whole."""
    for cls, options, small, large, age in cases:
        old, stream = trained(cls, options, large, large, age, "random")
        cut = Run(cls, options, start_of(large)[corner(small)].contiguous()).take(old, "slice")
        for value in cut.entry.values():
            assert not torch.is_tensor(value) or value.untyped_storage().nbytes() == value.nbytes
        gradient = next(stream)
        ours, theirs = cut.update(gradient[corner(small)].contiguous()), old.update(gradient)[corner(small)]
        assert ours.isfinite().all()
        if elementwise(old.spec):
            assert torch.equal(ours, theirs), (cls, options, small, large, age)


# --- factored second moments ----------------------------------------------------------------------------------

FACTORED = ["torch.optim.Adafactor", "transformers.optimization.Adafactor", "came_pytorch.CAME.CAME"]


def factored(name, square):
    """The factors that an optimizer would keep of a second moment."""
    spec = by_name(name)
    means = {
        "row": square.mean(-1, keepdims=True),
        "column": square.mean(-2, keepdims=True),
        "squeezed row": square.mean(-1),
        "squeezed column": square.mean(-2),
    }
    return {key: means[slot.shape] for key, slot in spec.slots.items() if slot.shape in means}


def estimates(name, entry):
    """row·column / mean(row) for each pair of factors."""
    keys, squeezed = list(entry), name != "torch.optim.Adafactor"
    for row, column in zip(keys[::2], keys[1::2], strict=True):
        rows, columns = entry[row], entry[column]
        if squeezed:
            rows, columns = rows[..., None], columns[..., None, :]
        yield rows * columns / rows.mean(-2, keepdims=True)


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("live", [(6, 3, 5, 6), (4, 3, 7, 6), (4, 3, 5, 9), (5, 4, 7, 9)])
def test_padded_factors_are_those_of_the_padded_moment(name, live):
    """Means along one dimension, and padding by the mean along another, may be taken in either order."""
    square = np.random.default_rng(0).random((4, 3, 5, 6)) + 0.1
    whole = square
    for axis, size in enumerate(live):
        new = np.repeat(whole.mean(axis, keepdims=True), size - whole.shape[axis], axis)
        whole = np.concatenate([whole, new], axis)
    found = resized(by_name(name), factored(name, square), square.shape, live, {}, "pad")
    for key, value in factored(name, whole).items():
        assert found[key] == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", FACTORED)
@pytest.mark.parametrize("live", [(2, 3, 5, 6), (4, 3, 2, 6), (4, 3, 5, 3), (2, 1, 3, 4)])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_sliced_factors_estimate_as_before(name, live, library):
    """What the two factors say of every element that is kept does not change."""
    square = np.random.default_rng(0).random((4, 3, 5, 6)) + 0.1
    before = factored(name, square)
    entry = before if library == "numpy" else {key: torch.from_numpy(value) for key, value in before.items()}
    after = resized(by_name(name), entry, square.shape, live, {}, "slice")
    for old, new in zip(estimates(name, before), estimates(name, after), strict=True):
        assert np.asarray(new) == pytest.approx(old[corner(live)], rel=1e-12)


def test_sliced_factors_that_have_seen_nothing_stay_zero():
    """A mean of zero scales nothing, and makes no number that is none."""
    entry = {"row_var": np.zeros((4, 1)), "col_var": np.zeros((1, 6))}
    found = resized(by_name(FACTORED[0]), entry, (4, 6), (2, 3), {}, "slice")
    assert [value.tolist() for value in found.values()] == [[[0.0], [0.0]], [[0.0, 0.0, 0.0]]]


# --- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "keys", "shapes", "how", "why"),
    [
        (None, ["exp_avg"], ((4,), (5,)), "pad", "the optimizer is not described"),
        ("torch.optim.adam.Adam", ["mine\x1b"], ((4,), (5,)), "pad", r"nobody said what mine\x1b means"),
        ("torch.optim.adam.Adam", ["exp_avg"], ((4,), (3,)), "pad", "dimension 0 is 4 in the checkpoint and 3 live, which padding"),
        ("torch.optim.adam.Adam", ["exp_avg"], ((4, 2), (3, 3)), "slice", "dimension 1 is 2 in the checkpoint and 3 live, which slicing"),
        ("torch.optim.adam.Adam", ["exp_avg"], ((4, 2), (8,)), "pad", "differ in more than dimensions of size 1"),
        ("torch.optim.adam.Adam", ["exp_avg"], ((0, 2), (3, 2)), "pad", "a tensor without elements"),
        ("torch.optim.lbfgs.LBFGS", ["old_dirs"], ((4,), (5,)), "pad", "old_dirs has a layout of its own"),
        ("galore_torch.adamw.AdamW", ["step", "exp_avg"], ((4, 2), (5, 2)), "pad", "exp_avg has a layout of its own"),
        ("timm.optim.kron.Kron", ["momentum_buffer", "Q"], ((4, 2), (5, 2)), "pad", "Q has a layout of its own"),
        ("torch.optim.Adafactor", ["row_var", "col_var"], ((4, 1, 2), (4, 2)), "pad", "row_var depends on which dimensions"),
        ("torch.optim.Adafactor", ["variance"], ((4,), (4, 1)), "pad", "variance depends on which dimensions"),
        ("torch.optim.Adafactor", ["row_var"], ((4, 6), (4, 5)), "slice", "row_var is there without the factor"),
        ("timm.optim.adafactor.Adafactor", ["exp_avg_sq"], ((8, 8), (20, 20)), "pad", "whether exp_avg_sq is kept"),
        ("timm.optim.adafactor.Adafactor", ["exp_avg_sq_row", "exp_avg_sq_col"], ((20, 20), (8, 8)), "slice", "whether exp_avg_sq_row"),
        ("timm.optim.adafactor.Adafactor", ["exp_avg_sq_row", "exp_avg_sq_col"], ((20, 20, 3), (21, 20, 3)), "pad", "whether exp_avg"),
    ],
)  # fmt: skip
def test_what_cannot_be_resized_says_why(name, keys, shapes, how, why):
    """Asked while planning, without a value; and done all the same, it is an error with the same reason."""
    spec = None if name is None else by_name(name)
    saved, live = shapes
    found = resizable(spec, keys, saved, live, how)
    assert found is not None
    assert why in found
    with pytest.raises(RestoreError, match="cannot be resized"):
        resized(spec, dict.fromkeys(keys, np.ones(saved)), saved, live, {}, how)


@pytest.mark.parametrize(
    ("keys", "shapes", "how"),
    [
        (["exp_avg_sq_row", "exp_avg_sq_col"], ((20, 20), (21, 20)), "pad"),
        (["exp_avg_sq"], ((20, 8), (19, 8)), "slice"),
        (["exp_avg_sq"], ((20,), (30,)), "pad"),
    ],
)
def test_factored_by_size(keys, shapes, how):
    """A matrix that is factored stays so when it grows, and one that is not stays so when it shrinks."""
    saved, live = shapes
    assert resizable(by_name("timm.optim.adafactor.Adafactor"), keys, saved, live, how) is None


def test_slots_of_another_layout_are_not_taken_for_their_own():
    """A slot in a shape that its row does not say is refused before anything is made of it."""
    for value in (np.ones((4, 3)), 1.0):
        with pytest.raises(
            RestoreError, match=r"(?s)exp_avg is not shaped as torch.optim.adam.Adam keeps it.*\[4, 2\]"
        ):
            resized(by_name("torch.optim.adam.Adam"), {"exp_avg": value}, (4, 2), (5, 2), {}, "pad")


def test_where_only_ones_differ_every_element_stays():
    """Dimensions of size 1 come and go without a loss, whether padding or slicing was asked for."""
    entry = {"step": 3.0, "exp_avg": np.arange(6.0).reshape(2, 1, 3)}
    for how in ("pad", "slice"):
        found = resized(by_name("torch.optim.adam.Adam"), entry, (2, 1, 3), (1, 2, 3), {}, how)
        assert found["exp_avg"].tolist() == [[[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]]
    assert found["step"] == 3.0


# --- weights --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_weights_are_padded_and_sliced(make):
    """Saved elements in the corner and live ones elsewhere, in the live dtype and in new memory; or the leading part."""
    saved, live = make([[1.0, 2.0]]), make([[7.0, 7.0], [7.0, -0.0]])
    whole = padded(saved, live)
    assert whole.tolist() == [[1.0, 2.0], [7.0, -0.0]]
    assert str(whole[1, 1].item()) == "-0.0"
    assert live.tolist() == [[7.0, 7.0], [7.0, -0.0]]
    part = sliced(live, (1, 2))
    part[0, 0] = 0.0
    assert live[0, 0] == 7.0
    assert padded(make(3.0), make([0.0])).tolist() == [3.0]
    assert sliced(make([[3.0]]), ()).tolist() == 3.0


def test_weights_that_do_not_fit_are_refused():
    """No element is dropped by padding, and none is made up by slicing."""
    with pytest.raises(RestoreError, match="which padding does not make of it"):
        padded(np.ones(3), np.ones(2))
    with pytest.raises(RestoreError, match="which slicing does not make of it"):
        sliced(np.ones(2), (3,))
    assert misfit((3, 1), (1, 3), "pad") is None


# --- rows of data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", known_names())
def test_every_row_can_be_asked(name):
    """For each described class padding has an answer: a sentence, or an entry in which nothing is zero that divides."""
    spec = by_name(name)
    shape, live = (20, 18), (24, 19)
    squeezed = {"squeezed row": (20,), "squeezed column": (18,), "row": (20, 1), "column": (1, 18), "parameter": shape}
    entry = {
        key: np.ones(squeezed.get(slot.shape, ()))
        for key, slot in spec.slots.items()
        if slot.when not in ("vector", "sometimes")
    }
    group = dict.fromkeys((*spec.hyperparameters, *spec.optional), 0.5) | {"betas": (0.9, 0.99, 0.999)}
    why = resizable(spec, entry, shape, live, "pad")
    if why is not None:
        assert any(slot.shape in ("flat", "list") for slot in spec.slots.values())
        return
    grown = resized(spec, entry, shape, live, group, "pad", np.zeros(live))
    for key, value in grown.items():
        counted = spec.slots[key].role in ("second_moment", "max_second_moment", "factored_row", "factored_column")
        if counted and (spec.slots[key].age is not None or spec.update is None):
            assert (value > 0).all(), key


LAYOUTS_OF_THEIR_OWN = {"AdafactorBigVision", "AdEMAMix", "Kron", "LAMB", "LARS", "Prodigy"}


MOST = {"Muon": 1.4, "NvNovoGrad": 1.2}
"""Where an element does not decide alone how far it moves: it shares an orthogonal matrix, or one second moment."""


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("library", ["timm", "schedulefree", "bitsandbytes", "torchao"])
def test_other_libraries_grow_as_safely(library):
    """In each real class new elements are moved no further than by a fresh start or than the old ones, or it is refused."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    root = Path(__file__).parents[1]
    program = [sys.executable, "-m", "tests.grown_rows", library]
    shown = subprocess.run(program, cwd=root, capture_output=True, text=True, check=True).stdout
    for row, found in json.loads(shown.splitlines()[-1]).items():
        name, ratios = row.split()[0].rpartition(".")[2], [each for each in found if isinstance(each, float)]
        assert all(ratio <= MOST.get(name, 1.06) for ratio in ratios), (row, ratios)
        assert ratios or name in LAYOUTS_OF_THEIR_OWN, (row, found)
