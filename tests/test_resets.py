"""What a fresh slot is: whole states that step as new ones do, and rows that may share a step count with older ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from optstate.errors import RegistryError
from optstate.optimizers.registry import by_class, by_name, known_names
from optstate.optimizers.resets import REFERENCE_ROWS, Copy, Fill, Remove, fresh, fresh_group, row_fresh, together
from optstate.optimizers.spec import OptimizerSpec, SlotSpec
from optstate.optimizers.updates import UPDATES, fresh_update, next_update

SHAPES = ((4, 3), (5,))


def built(cls, shapes=SHAPES, seed=0, **options):
    """An optimizer over parameters with reproducible values."""
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes[:1] if cls is torch.optim.Muon else shapes
    return cls([torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes], **options)


def step(optimizer, seed):
    """One step on gradients that the seed decides, sparse where the class wants them so."""
    generator = torch.Generator().manual_seed(1000 + seed)
    parameters = optimizer.param_groups[0]["params"]
    gradients = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]

    def closure():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else gradient.clone()
        return torch.tensor(float(seed))

    closure()
    optimizer.step(closure)


def weights(optimizer):
    return [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]


def reset(optimizer, keys=None):
    """Make slots fresh, in place as far as possible; the storages that stayed."""
    (group,), spec, kept = optimizer.param_groups, by_class(type(optimizer)), {}
    for parameter in group["params"]:
        entry = optimizer.state[parameter]
        for key in [key for key in entry if keys is None or key in keys]:
            start = fresh(spec, key, group, optimizer.defaults)
            if isinstance(start, Remove):
                del entry[key]
            elif not isinstance(entry[key], torch.Tensor):
                entry[key] = type(entry[key])(start.value)
            else:
                kept[key] = entry[key].data_ptr()
                entry[key].copy_(parameter.detach() if isinstance(start, Copy) else torch.tensor(start.value))
                assert entry[key].data_ptr() == kept[key]
    return kept


CASES = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "maximize": True, "foreach": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "fused": True}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "fused": True}),
    (torch.optim.Adam, {}),
    (torch.optim.Adam, {"amsgrad": True, "fused": True}),
    (torch.optim.Adam, {"lr": torch.tensor(0.1)}),
    (torch.optim.AdamW, {"amsgrad": True, "foreach": True}),
    (torch.optim.NAdam, {"momentum_decay": 0.1}),
    (torch.optim.RAdam, {}),
    (torch.optim.Adamax, {}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5, "lr_decay": 0.1}),
    (torch.optim.Adagrad, {"fused": True}),
    (torch.optim.Adadelta, {}),
    (torch.optim.RMSprop, {}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Rprop, {"lr": 0.02}),
    (torch.optim.Rprop, {"lr": torch.tensor(0.02)}),
    (torch.optim.ASGD, {"t0": 2, "lr": 0.1}),
    (torch.optim.SparseAdam, {}),
    (torch.optim.Adafactor, {}),
    (torch.optim.Muon, {}),
    (torch.optim.LBFGS, {}),
]


@pytest.mark.parametrize(("cls", "options"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_reset_state_steps_as_a_new_one(cls, options):
    """Five steps, a reset, and four more steps: bit for bit what a new optimizer does with those four."""
    trained, new = built(cls, **options), built(cls, **options)
    for seed in range(5):
        step(trained, seed)
    with torch.no_grad():
        for mine, other in zip(trained.param_groups[0]["params"], new.param_groups[0]["params"], strict=True):
            other.copy_(mine)
    reset(trained)
    for seed in range(5, 9):
        step(trained, seed)
        step(new, seed)
        assert all(map(torch.equal, weights(trained), weights(new)))


@pytest.mark.parametrize(
    ("cls", "keys"), [(torch.optim.Adam, ("exp_avg", "exp_avg_sq")), (torch.optim.NAdam, ("step",))]
)
def test_half_a_reset_is_none(cls, keys):
    """The comparison bites: what is left without its companions does not step as new."""
    trained, new = built(cls), built(cls)
    for seed in range(5):
        step(trained, seed)
    with torch.no_grad():
        for mine, other in zip(trained.param_groups[0]["params"], new.param_groups[0]["params"], strict=True):
            other.copy_(mine)
    reset(trained, keys)
    step(trained, 9)
    step(new, 9)
    assert not any(map(torch.equal, weights(trained), weights(new)))


def test_undamped_sum_is_zeroed_in_place():
    """SGD without dampening starts alike from zero and from nothing, so the buffer stays; damped it must go."""
    spec = by_class(torch.optim.SGD)
    assert fresh(spec, "momentum_buffer", {"dampening": 0}) == Fill(0.0)
    assert fresh(spec, "momentum_buffer", {}) == Fill(0.0)
    assert fresh(spec, "momentum_buffer", {"dampening": 0.5, "fused": None}) == Remove()
    assert fresh(spec, "momentum_buffer", {"dampening": 0.5, "fused": True}) == Remove(whole_group=True)
    for dampening, first in ((0.0, 1.0), (0.5, 0.5)):
        optimizer = built(torch.optim.SGD, shapes=((1,),), lr=1.0, momentum=0.9, dampening=dampening)
        step(optimizer, 0)
        (parameter,) = optimizer.param_groups[0]["params"]
        optimizer.state[parameter]["momentum_buffer"].zero_()
        parameter.data.zero_()
        parameter.grad = torch.ones(1)
        optimizer.step()
        assert parameter.item() == -first


def test_fused_sgd_wants_all_buffers_of_a_group_or_none():
    """What `whole_group` is for: a part of the buffers removed makes the next fused step fail."""
    optimizer = built(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.5, fused=True)
    step(optimizer, 0)
    del optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"]
    with pytest.raises((TypeError, RuntimeError)):
        step(optimizer, 1)


def test_values_from_the_constructor_ignore_the_group():
    """Adagrad fills its sums from the value it was built with; what a group says today is not asked."""
    spec = by_class(torch.optim.Adagrad)
    assert fresh(spec, "sum", {"initial_accumulator_value": 9.0}, {"initial_accumulator_value": 0.5}) == Fill(0.5)
    assert fresh(spec, "sum", {"initial_accumulator_value": 9.0}) == Fill(9.0), "a file has no defaults"
    rprop = by_class(torch.optim.Rprop)
    assert fresh(rprop, "step_size", {"lr": 0.2}, {"lr": 0.5}) == Fill(0.2), "made in the first step"


def test_unresolvable_reset_is_refused():
    """A value that nobody has is not made up."""
    with pytest.raises(RegistryError, match=r"(?s)a fresh step_size is lr, which is no number here.*found +nothing"):
        fresh(by_class(torch.optim.Rprop), "step_size", {})
    with pytest.raises(RegistryError, match=r"(?s)what a fresh mine\\x1b is, nobody said.*exp_avg"):
        fresh(by_class(torch.optim.Adam), "mine\x1b", {})


def test_companions_are_found_through_each_other():
    """A companion's companions come along, those that exist, in the order of the state."""
    adam = by_class(torch.optim.Adam)
    assert together(adam, ["exp_avg"], ["step", "exp_avg", "exp_avg_sq"]) == ("step", "exp_avg", "exp_avg_sq")
    rmsprop, slots = by_class(torch.optim.RMSprop), ["step", "square_avg", "momentum_buffer", "grad_avg"]
    assert together(rmsprop, ["grad_avg"], slots) == ("square_avg", "grad_avg")
    assert together(rmsprop, ["momentum_buffer"], slots) == ("momentum_buffer",)
    assert together(adam, ["mine"], ["mine", "step"]) == ("mine",), "what nobody described has no companions"
    chain = {
        key: SlotSpec(role="other", companions=companions)
        for key, companions in zip("abc", ("b", "c", ""), strict=True)
    }
    assert together(OptimizerSpec(name="Chain", slots=chain), ["a"], "cba") == ("c", "b", "a")


def test_group_that_counts_is_reset_with_its_parameters():
    """What stepping changes in the group starts as the optimizer was built with, or at 0 in its own type."""
    free = by_name("schedulefree.adamw_schedulefree.AdamWScheduleFree")
    group = {"lr": 0.1, "k": 300, "weight_sum": 7.5, "lr_max": 0.1, "train_mode": True}
    assert fresh_group(free, group, {"k": 0, "weight_sum": 0.0, "lr_max": -1.0}) == {
        "k": 0,
        "weight_sum": 0.0,
        "lr_max": -1.0,
    }
    (count,) = fresh_group(by_name("timm.optim.lamb.Lamb"), {"step": torch.tensor(5.0)}).values()
    assert torch.equal(count, torch.tensor(0.0))
    assert fresh_group(by_class(torch.optim.Adam), {"lr": 0.1}) == {}


# --- rows -------------------------------------------------------------------------------------------------------

ROWS, OTHERS = torch.tensor([1, 3]), torch.tensor([0, 2, 4])


def reset_rows(optimizer, rows=ROWS, others=OTHERS):
    """Make rows of every slot fresh."""
    (group,), spec = optimizer.param_groups, by_class(type(optimizer))
    for parameter in group["params"]:
        for key, value in optimizer.state[parameter].items():
            start = row_fresh(spec, key, value, rows, others, group, optimizer.defaults)
            if start is not None:
                new = parameter.detach()[rows] if isinstance(start, Copy) else start
                value[rows] = new.value if isinstance(new, Fill) else new


EXACT = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adadelta, {}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5}),
    (torch.optim.Rprop, {}),
]


@pytest.mark.parametrize(("cls", "options"), EXACT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_rows_without_a_step_count_are_exactly_fresh(cls, options):
    """Where the step count changes nothing, reset rows step as those of a new optimizer, and others as before."""
    trained, new, untouched = (built(cls, shapes=((5, 3),), **options) for _ in range(3))
    for seed in range(5):
        step(trained, seed)
        step(untouched, seed)
    for one, other in ((new, trained), (untouched, trained)):
        one.param_groups[0]["params"][0].data.copy_(weights(other)[0])
    reset_rows(trained)
    for seed in range(5, 9):
        for optimizer in (trained, new, untouched):
            step(optimizer, seed)
        assert torch.equal(weights(trained)[0][ROWS], weights(new)[0][ROWS])
        assert torch.equal(weights(trained)[0][OTHERS], weights(untouched)[0][OTHERS])


def aged(cls=torch.optim.Adam, steps=5000, scale=(1.0,) * 5, betas=(0.9, 0.999), **options):
    """An Adam of five rows after so many steps on a constant gradient, each row's of its own size."""
    parameter = torch.nn.Parameter(torch.zeros(5, 2, dtype=torch.float64))
    gradient = torch.tensor(scale, dtype=torch.float64)[:, None].expand(5, 2).contiguous()
    optimizer = cls([parameter], lr=1.0, betas=betas, eps=1e-30, **options)
    parameter.grad = gradient.clone()
    optimizer.step()
    entry = optimizer.state[parameter]
    entry["step"].fill_(steps)
    entry["exp_avg"].copy_(gradient * (1 - betas[0] ** steps))
    for key in entry.keys() & {"exp_avg_sq", "max_exp_avg_sq"}:
        entry[key].copy_(gradient**2 * (1 - betas[1] ** steps))
    return optimizer


def moves(optimizer, steps):
    """How far each step moves each row, in units of the learning rate."""
    (parameter,) = optimizer.param_groups[0]["params"]
    trace = []
    for _ in range(steps):
        parameter.data.zero_()
        optimizer.step()
        trace.append(-parameter.detach()[:, 0].clone())
    return torch.stack(trace)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}], ids=["Adam", "AMSGrad"])
def test_reset_rows_start_softly(options):
    """At t=5000, rows that join are moved by .100 first and never by more than 1; the other rows by exactly 1."""
    optimizer = aged(**options)
    reset_rows(optimizer)
    trace = moves(optimizer, 400)
    assert trace[:, OTHERS] == pytest.approx(torch.ones(400, 3), rel=1e-9)
    assert trace[0, ROWS] == pytest.approx([0.1, 0.1], rel=1e-6)
    assert trace[:, ROWS].max() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("age", "first"), [(1, 0.744), (10, 0.482), (100, 0.980), (1000, 2.515), (10_000, 3.162)])
def test_rows_at_zero_would_not(age, first):
    """The comparison bites: zero rows under a shared step count start up to 3.2 times too large, and rise to 6.5."""
    optimizer = aged(steps=age)
    (parameter,) = optimizer.param_groups[0]["params"]
    for key in ("exp_avg", "exp_avg_sq"):
        optimizer.state[parameter][key][ROWS] = 0.0
    trace = moves(optimizer, 20)
    assert trace[0, ROWS] == pytest.approx([first] * 2, abs=2e-3)
    if age == 10_000:
        assert trace[:, ROWS].max() == pytest.approx(6.57, abs=0.01)


@pytest.mark.parametrize("own", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("others", [0.01, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.NAdam, torch.optim.AdamW])
def test_no_row_is_moved_more_than_by_a_fresh_start(cls, own, others):
    """However small the other rows' gradients are: what a row has seen itself bounds its updates too."""
    options = {"weight_decay": 0.0} if cls is torch.optim.AdamW else {}
    optimizer = aged(cls, scale=(others, 1.0, others, 1.0, others), **options)
    reset_rows(optimizer)
    optimizer.param_groups[0]["params"][0].grad[ROWS] *= own
    largest = {torch.optim.NAdam: 1.06}.get(cls, 1.0)  # of a fresh NAdam
    assert moves(optimizer, 300)[:, ROWS].max() <= largest + 1e-6


def test_reference_may_be_too_large_and_not_too_small():
    """Why the larger of two is taken: a second moment a quarter of the true one gives 1.86, four times it .97 at most."""
    peaks = []
    for share in (0.25, 4.0):
        optimizer = aged()
        entry = optimizer.state[optimizer.param_groups[0]["params"][0]]
        entry["exp_avg"][ROWS], entry["exp_avg_sq"][ROWS] = 0.0, share * entry["exp_avg_sq"][ROWS]
        peaks.append(moves(optimizer, 200)[:, ROWS].max().item())
    assert peaks[0] == pytest.approx(1.86, abs=5e-3)
    assert peaks[1] < 0.97


def test_residue_at_a_zero_second_moment_moves_weights():
    """Why all moments of a row are reset together: m=1e-6 left at v=0 and no gradient is hundreds of steps at once."""
    spec, group = by_class(torch.optim.Adam), {"lr": 1.0, "betas": (0.9, 0.999), "eps": 1e-8}
    zero, residue = np.zeros(1), np.full(1, 1e-6)
    slots = {"step": 5000, "exp_avg": zero, "exp_avg_sq": zero}
    assert next_update(spec, slots, group, zero) == 0.0
    assert abs(next_update(spec, {**slots, "exp_avg": residue}, group, zero)) > 80


def row_value(name, key, value, rows=(1,), others=(0, 2), group=None):
    group = {"lr": 0.1, "betas": (0.9, 0.999), **(group or {})}
    return row_fresh(by_name(name), key, value, np.array(rows), np.array(others, dtype=int), group)


def test_rows_get_the_mean_of_the_others_column_by_column():
    """The same rule for arrays of a file and tensors of a live optimizer; what is not finite does not count."""
    value = np.array([[1.0, 4.0], [0.5, 9.0], [3.0, 0.0]])
    adam = "torch.optim.adam.Adam"
    assert row_value(adam, "exp_avg_sq", value).tolist() == [[2.0, 9.0]]
    rows = row_fresh(by_name(adam), "exp_avg_sq", torch.from_numpy(value), torch.tensor([1]), torch.tensor([0, 2]), {})
    assert rows.tolist() == [[2.0, 9.0]]
    broken = np.array([[1.0, np.nan], [np.nan, np.inf], [3.0, np.inf]])
    assert row_value(adam, "exp_avg_sq", broken).tolist() == [[2.0, 0.0]]
    assert row_value(adam, "exp_avg_sq", value, rows=(0, 1, 2), others=()).tolist() == value.tolist(), (
        "nothing to learn from"
    )
    assert row_value(adam, "exp_avg", value) == Fill(0.0)
    assert row_value(adam, "step", np.array(3.0)) is None


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("timm.optim.laprop.LaProp", "exp_avg_sq"),  # corrected by a sum of weights, one number for all rows
        ("timm.optim.adopt.Adopt", "exp_avg_sq"),  # never corrected, and not used in the first step of all
        ("timm.optim.adahessian.Adahessian", "exp_hessian_diag_sq"),
        ("sophia.SophiaG", "hessian"),
    ],
)
def test_rows_of_whatever_zero_would_mislead_get_the_mean(name, key):
    """What is corrected by something else than the count, or used in a way that is not known, starts from the others too."""
    assert row_value(name, key, np.array([[1.0], [0.5], [3.0]])).tolist() == [[2.0]]
    assert row_value("torch.optim.rmsprop.RMSprop", "square_avg", np.ones((3, 1))) == Fill(0.0)


def test_reference_of_a_large_table_is_an_even_sample():
    """A table of a million rows is not copied to reset one of them."""
    value = np.arange(3 * REFERENCE_ROWS, dtype=np.float64)[:, None]
    rows, others = np.array([0]), np.arange(1, len(value))
    sampled = row_fresh(by_name("torch.optim.adam.Adam"), "exp_avg_sq", value, rows, others, {"betas": (0.9, 0.99)})
    assert sampled.item() == pytest.approx(value[1:].mean(), rel=1e-3)


def test_rows_of_factored_moments():
    """Row statistics have rows, column statistics of a matrix have none, those of a kernel have."""
    matrix, kernel = np.ones((3, 1)), np.ones((3, 2, 1, 4))
    assert row_value("torch.optim.Adafactor", "row_var", matrix).tolist() == [[1.0]]
    assert row_value("torch.optim.Adafactor", "col_var", np.ones((1, 3))) is None
    assert row_value("torch.optim.Adafactor", "col_var", kernel).shape == (1, 2, 1, 4)
    assert row_value("transformers.optimization.Adafactor", "exp_avg_sq_col", np.ones(3)) is None


def test_rows_that_nobody_can_tell_are_refused():
    """A history over all parameters, or a moment in a subspace, has no rows of one parameter."""
    for name, key in (("torch.optim.lbfgs.LBFGS", "d"), ("galore_torch.adamw.AdamW", "exp_avg")):
        with pytest.raises(RegistryError, match=rf"(?s)which part of {key} belongs to which row.*reset the whole"):
            row_value(name, key, np.ones(9))


def test_damped_rows_are_filled():
    """Rows cannot be removed: zero starts a damped sum at (1-d) of a fresh start, which is no more."""
    sgd = "torch.optim.sgd.SGD"
    assert row_value(sgd, "momentum_buffer", np.ones((3, 1)), group={"momentum": 0.9, "dampening": 0.5}) == Fill(0.0)


# --- rows of data -----------------------------------------------------------------------------------------------

SPECS = [by_name(name) for name in known_names()]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)
def test_rows_say_what_resets_and_updates_need(spec):
    """Every described class is consistent: fresh values resolve, ages have a count to go by, rules exist."""
    counted = spec.group_step is not None or any(slot.role == "step" for slot in spec.slots.values())
    known = {*spec.hyperparameters, *spec.optional}
    for key, slot in spec.slots.items():
        if isinstance(slot.reset, str) and slot.reset not in ("parameter", "delete"):
            assert slot.reset in known
        assert isinstance(fresh(spec, key, dict.fromkeys(known, 0.5)), (Fill, Copy, Remove))
        debiased = slot.age in ("debiased", "weighted") or str(slot.convention).endswith("_debiased")
        assert counted or not debiased, f"{key} is judged by a step count that is not kept"
        assert slot.age is None or slot.convention is None or slot.age == "stored", (
            f"{key}: its convention says so already"
        )
        assert not slot.averages or slot.convention == "lr_in_buffer"
    ages = {slot.role: slot.age for slot in spec.slots.values() if slot.primary}
    if "max_second_moment" in ages and "second_moment" in ages:
        assert ages["max_second_moment"] == ages["second_moment"]
    assert spec.update is None or spec.update in UPDATES
    assert isinstance(spec.decoupled, bool) or spec.decoupled in (*known, "decouple", "weight_decouple", "decoupled_decay",
                                                                  "decoupled_weight_decay")  # fmt: skip


def test_fresh_update_reads_no_count_of_the_group():
    """A fresh start is the first step also where the group has counted thousands."""
    spec, gradient = by_name("timm.optim.adan.Adan"), np.ones(2)
    group = {"lr": 0.1, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "step": 5000}
    assert fresh_update(spec, group, gradient) == pytest.approx(np.full(2, -0.1), rel=1e-6)
