"""The probe: it agrees with the registry on every torch optimizer, catches wrong descriptions, disturbs nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from math import inf

import numpy as np
import pytest
import torch
from torch import optim
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import optstate
from optstate.errors import ProbeError
from optstate.optimizers.measured import MeasuredSlot
from optstate.optimizers.probe_report import ProbeReport
from optstate.optimizers.registry import by_class
from optstate.optimizers.spec import OptimizerSpec, SlotSpec

EXPORTED = [
    cls
    for cls in vars(optim).values()
    if isinstance(cls, type) and issubclass(cls, optim.Optimizer) and cls is not optim.Optimizer
]
# Each class as it comes, and in every way of configuring it that changes what it keeps.
CASES = [
    *((cls, {}) for cls in EXPORTED),
    (optim.SGD, {"momentum": 0.9}),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (optim.SGD, {"momentum": 0.9, "dampening": 0.9}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (optim.SGD, {"momentum": 0.9, "maximize": True, "weight_decay": 0.1}),
    (optim.SGD, {"momentum": 0.9, "foreach": True, "nesterov": True}),
    (optim.SGD, {"momentum": 0.9, "fused": True}),
    (optim.SGD, {"momentum": 0.9, "lr": 0.0}),
    (optim.Adam, {"amsgrad": True}),
    (optim.Adam, {"maximize": True, "amsgrad": True}),
    (optim.Adam, {"weight_decay": 0.1}),
    (optim.Adam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    (optim.Adam, {"betas": (0.5, 0.75)}),
    (optim.Adam, {"betas": (0.0, 0.9)}),
    (optim.Adam, {"lr": torch.tensor(0.1), "betas": (torch.tensor(0.5), torch.tensor(0.75))}),
    (optim.Adam, {"fused": True, "amsgrad": True}),
    (optim.Adam, {"foreach": True}),
    (optim.AdamW, {"weight_decay": 0.0, "amsgrad": True}),
    (optim.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1, "maximize": True}),
    (optim.RAdam, {"betas": (0.9, 0.5), "maximize": True}),
    (optim.Adamax, {"maximize": True, "weight_decay": 0.1}),
    (optim.Adagrad, {"initial_accumulator_value": 0.5, "lr_decay": 0.1}),
    (optim.Adagrad, {"fused": True, "weight_decay": 0.1}),
    (optim.Adadelta, {"lr": 0.1, "weight_decay": 0.1}),
    (optim.RMSprop, {"momentum": 0.9}),
    (optim.RMSprop, {"centered": True, "maximize": True}),
    (optim.RMSprop, {"momentum": 0.5, "centered": True, "weight_decay": 0.1}),
    (optim.Rprop, {"lr": 0.1, "maximize": True}),
    (optim.ASGD, {"t0": 1, "lr": 1.0}),
    (optim.ASGD, {"lambd": 0.0, "maximize": True, "weight_decay": 0.1}),
    (optim.SparseAdam, {"maximize": True}),
    (optim.Adafactor, {"maximize": True, "weight_decay": 0.1}),
    (optim.Muon, {"nesterov": False, "momentum": 0.5}),
    (optim.Muon, {"momentum": 0.0}),
    (optim.LBFGS, {"line_search_fn": "strong_wolfe"}),
    (optim.LBFGS, {"max_iter": 1}),
]


def show(value):
    """A readable test id."""
    if isinstance(value, dict):
        return ",".join(f"{key}={item}" for key, item in value.items()) or "default"
    return getattr(value, "__name__", None)


def described(cls) -> OptimizerSpec:
    """The registry's row of a class."""
    spec = by_class(cls)
    assert spec is not None
    return spec


_REPORTS: dict[str, ProbeReport] = {}


def probed(cls, options) -> ProbeReport:
    """The report of a case, measured once."""
    case = f"{cls.__name__}({show(options)})"
    if case not in _REPORTS:
        _REPORTS[case] = optstate.probe(cls, **options)
    return _REPORTS[case]


# --- the registry against the real classes --------------------------------------------------------------


@pytest.mark.parametrize(("cls", "options"), CASES, ids=show)
def test_registry_agrees_with_the_class(cls, options):
    """What the table says of an optimizer is what the optimizer does."""
    assert probed(cls, options).differences(described(cls)) == []


@pytest.mark.parametrize(("cls", "options"), CASES, ids=show)
def test_suggestion_agrees_with_the_report(cls, options):
    """What a report suggests is consistent, and is what was measured."""
    report = probed(cls, options)
    assert report.differences(report.suggestion()) == []


@pytest.mark.parametrize(
    ("cls", "options", "roles"),
    [
        (optim.SGD, {"momentum": 0.9}, {"momentum_buffer": ("momentum", "accumulate", "gradient", "momentum")}),
        (
            optim.AdamW,
            {"amsgrad": True},
            {
                "step": ("step", None, None, None),
                "exp_avg": ("momentum", "ema_debiased", "gradient", "betas[0]"),
                "exp_avg_sq": ("second_moment", None, None, "betas[1]"),
                "max_exp_avg_sq": ("max_second_moment", None, None, None),
            },
        ),
        (
            optim.RMSprop,
            {"momentum": 0.9},
            {
                "step": ("step", None, None, None),
                "square_avg": ("second_moment", None, None, "alpha"),
                "momentum_buffer": ("momentum", "accumulate", "preconditioned", "momentum"),
            },
        ),
        (
            optim.Adamax,
            {},
            {
                "step": ("step", None, None, None),
                "exp_avg": ("momentum", "ema_debiased", "gradient", "betas[0]"),
                "exp_inf": ("infinity_norm", None, None, "betas[1]"),
            },
        ),
        (
            optim.Rprop,
            {},
            {
                "step": ("step", None, None, None),
                "prev": ("previous_gradient", None, None, None),
                "step_size": ("step_size", None, None, None),
            },
        ),
        (
            optim.Adafactor,
            {},
            {
                "step": ("step", None, None, None),
                "variance": ("second_moment", None, None, None),
                "row_var": ("factored_row", None, None, None),
                "col_var": ("factored_column", None, None, None),
            },
        ),
        (optim.Muon, {}, {"momentum_buffer": ("momentum", "ema", "gradient", "momentum")}),
    ],
    ids=show,
)
def test_suggestion_finds_what_is_known(cls, options, roles):
    """A class that nobody described would be described as the table describes it."""
    slots = probed(cls, options).suggestion().slots
    assert {key: (slot.role, slot.convention, slot.of, slot.coefficient) for key, slot in slots.items()} == roles


@pytest.mark.parametrize(
    ("cls", "options", "key", "wrong", "complaint"),
    [
        (
            optim.Adam,
            {},
            "exp_avg",
            {"role": "second_moment", "primary": False},
            "role described as second_moment, measured momentum",
        ),
        (optim.Adam, {}, "exp_avg_sq", {"role": "infinity_norm"}, "role described as infinity_norm, measured second"),
        (
            optim.Adam,
            {"amsgrad": True},
            "max_exp_avg_sq",
            {"role": "second_moment", "primary": False},
            "measured max_second",
        ),
        (optim.Adagrad, {}, "sum", {"role": "max_second_moment"}, "measured second_moment"),
        (
            optim.NAdam,
            {},
            "mu_product",
            {"role": "momentum", "primary": False},
            "role described as momentum, measured other",
        ),
        (optim.SGD, {"momentum": 0.9}, "momentum_buffer", {"convention": "ema"}, "a steady gain of 1, measured 10"),
        (optim.SGD, {"momentum": 0.9}, "momentum_buffer", {"convention": "lr_in_buffer"}, "measured lr_degree 0"),
        (optim.SGD, {"momentum": 0.9}, "momentum_buffer", {"of": "preconditioned"}, "measured gradient_degree 1"),
        (optim.Muon, {}, "momentum_buffer", {"convention": "accumulate"}, "a steady gain of 20, measured 1"),
        (optim.Adam, {}, "exp_avg", {"convention": "ema"}, "the update debiases it"),
        (
            optim.RMSprop,
            {"momentum": 0.9},
            "momentum_buffer",
            {"convention": "accumulate_debiased"},
            "does not debias it",
        ),
        (optim.RMSprop, {"momentum": 0.9}, "momentum_buffer", {"convention": "ema"}, "a steady gain of 1, measured 10"),
        (optim.Adam, {}, "exp_avg", {"gradient_degree": 2}, "gradient_degree described as 2, measured 1"),
        (optim.Adam, {}, "exp_avg_sq", {"gradient_degree": None}, "gradient_degree described as None, measured 2"),
        (optim.Rprop, {}, "step_size", {"lr_degree": 0}, "lr_degree described as 0, measured 1"),
        (optim.ASGD, {}, "ax", {"gradient_degree": 1}, "gradient_degree described as 1, measured no power"),
        (optim.Adam, {}, "exp_avg", {"coefficient": "betas[1]"}, "betas[1] = 0.999, measured a decay of 0.9, betas[0]"),
        (optim.RMSprop, {"momentum": 0.9}, "square_avg", {"coefficient": "momentum"}, "a decay of 0.99, alpha"),
        (optim.NAdam, {}, "mu_product", {"reset": 0.0}, "fresh value described as 0.0, measured 1.0"),
        (optim.Rprop, {}, "step_size", {"reset": 0.0}, "fresh value described as 0.0, measured 0.01"),
        (
            optim.Adagrad,
            {"initial_accumulator_value": 0.5},
            "sum",
            {"reset": 0.0},
            "fresh value described as 0.0, measured 0.5",
        ),
        (optim.ASGD, {}, "ax", {"reset": 0.0}, "fresh value described as 0.0, measured parameter"),
        (optim.SGD, {"momentum": 0.9}, "momentum_buffer", {"reset": 0.0}, "described as 0.0, measured delete"),
        (optim.Adam, {}, "exp_avg", {"reset": "delete"}, "fresh value described as delete, measured 0.0"),
        (optim.Adam, {}, "exp_avg", {"dtype": "gradient"}, "dtype described as gradient, measured parameter"),
        (optim.Muon, {}, "momentum_buffer", {"dtype": "parameter"}, "dtype described as parameter, measured gradient"),
        (optim.Adam, {}, "step", {"dtype": "parameter"}, "dtype described as parameter, measured scalar"),
        (optim.SparseAdam, {}, "step", {"dtype": "scalar"}, "dtype described as scalar, measured python"),
        (optim.Adafactor, {}, "row_var", {"shape": "column"}, "shape described as column, measured row"),
        (
            optim.Adafactor,
            {},
            "row_var",
            {"when": None},
            "described for 1-d, 2-d, 3-d, 4-d parameters, kept for 2-d, 3-d, 4-d",
        ),
        (optim.Adafactor, {}, "variance", {"when": "matrix"}, "described for 2-d, 3-d, 4-d parameters, kept for 1-d"),
        (
            optim.Adagrad,
            {},
            "sum",
            {"created": "first gradient"},
            "created described as first gradient, measured constructor",
        ),
        (
            optim.Adam,
            {},
            "exp_avg",
            {"created": "constructor"},
            "created described as constructor, measured first gradient",
        ),
        (
            optim.Adam,
            {"amsgrad": True},
            "max_exp_avg_sq",
            {"when": "maximize"},
            "described for no parameter, kept for 1-d",
        ),
        (optim.Adam, {}, "max_exp_avg_sq", {"when": None}, "described, but not kept"),
        (optim.LBFGS, {}, "d", {"shape": "parameter"}, "shape described as parameter, measured flat"),
    ],
    ids=show,
)
def test_wrong_description_is_caught(cls, options, key, wrong, complaint):
    """One wrong word in a row is found, in that slot and in no other."""
    spec = described(cls)
    broken = replace(spec, slots={**spec.slots, key: replace(spec.slots[key], **wrong)})
    lines = probed(cls, options).differences(broken)
    assert all(line.startswith(f"{key}: ") for line in lines)
    assert [line for line in lines if complaint in line] != [], lines


def test_missing_slot_is_caught():
    """A slot that the description leaves out is named."""
    spec = described(optim.Muon)
    assert optstate.probe(optim.Muon).differences(replace(spec, slots={})) == [
        "momentum_buffer: kept, but not described"
    ]


# --- what is measured -----------------------------------------------------------------------------------


def test_gains():
    """Steady values under a constant gradient: accumulation grows tenfold, an average to one, a sum without end."""
    assert probed(optim.SGD, {"momentum": 0.9}).slots["momentum_buffer"].gain == 10.0
    assert probed(optim.SGD, {"momentum": 0.9, "dampening": 0.5}).slots["momentum_buffer"].gain == 5.0
    assert probed(optim.SGD, {"momentum": 0.9, "maximize": True}).slots["momentum_buffer"].gain == -10.0
    assert probed(optim.Adam, {}).slots["exp_avg"].gain == 1.0
    assert probed(optim.Adam, {}).slots["exp_avg_sq"].gain == 1.0
    assert probed(optim.Adagrad, {}).slots["sum"].gain == inf


def test_gain_is_what_a_long_run_reaches():
    """The limit is extrapolated from few steps; walking all the way gives the same."""
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = optim.RMSprop([parameter], lr=0.0, alpha=0.9, momentum=0.75)
    for _ in range(400):
        parameter.grad = torch.full_like(parameter, 2.0**40)
        optimizer.step()
    reached = optimizer.state[parameter]["momentum_buffer"].mean().item()
    assert optstate.probe(optim.RMSprop, alpha=0.9, momentum=0.75).slots["momentum_buffer"].gain == pytest.approx(
        reached, rel=1e-6
    )


def test_measured_slot_of_adafactor():
    """Which parameters have a slot, in which shape, is seen from vectors, matrices and kernels."""
    slots = optstate.probe(optim.Adafactor).slots
    assert (slots["row_var"].ranks, slots["row_var"].shape) == ((2, 3, 4), "row")
    assert (slots["col_var"].ranks, slots["col_var"].shape) == ((2, 3, 4), "column")
    assert (slots["variance"].ranks, slots["variance"].shape) == ((1,), "parameter")
    assert slots["variance"].decay is None, "its decay changes from step to step"


def test_matrices_only():
    """A class that insists on matrices is probed on matrices."""
    assert optstate.probe(optim.Muon).ranks == (2,)


def test_sparse_gradients_only():
    """A class that refuses dense gradients is given sparse ones."""
    report = optstate.probe(optim.SparseAdam)
    assert report.gradients == "sparse"
    assert report.slots["exp_avg"].convention(report.hyperparameters) == "ema_debiased"


def test_closure_only():
    """Of a class that evaluates a closure the structure is learned, and the report says that this is all."""
    report = optstate.probe(optim.LBFGS)
    assert report.gradients == "closure"
    assert {key: slot.shape for key, slot in report.slots.items()}["old_dirs"] == "list"
    assert report.slots["d"].gradient_degree is None
    assert "only the structure of its state was measured" in str(report)


@pytest.mark.parametrize(
    ("default", "cls"),
    [(torch.float64, optim.Adam), (torch.float64, optim.ASGD), (torch.bfloat16, optim.NAdam)],
    ids=str,
)
def test_default_dtype_changes_no_verdict(default, cls):
    """Whatever torch's default dtype is, the same is learned of a class, and it stays the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert optstate.probe(cls).differences(described(cls)) == []
        assert torch.get_default_dtype() == default
    finally:
        torch.set_default_dtype(before)


# --- classes that nobody described ------------------------------------------------------------------------


class Made(optim.Optimizer):
    """A base for optimizers of other libraries: one slot update per parameter, in `advance`."""

    def __init__(self, params, lr=0.1, betas=(0.9, 0.99), **rest):
        super().__init__(params, {"lr": lr, "betas": betas, "made": True, **rest})

    @torch.no_grad()
    def step(self, closure=None):
        """Let each parameter with a gradient advance."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.advance(parameter, self.state[parameter], group, *group["betas"])

    def advance(self, p, state, group, beta1, beta2):
        """Update one parameter."""
        raise NotImplementedError


class Lion(Made):
    """Its buffer decays with the second beta, its update is a sign."""

    def advance(self, p, state, group, beta1, beta2):
        m = state.setdefault("exp_avg", torch.zeros_like(p))
        p.add_(m.lerp(p.grad, 1 - beta1).sign(), alpha=-group["lr"])
        m.lerp_(p.grad, 1 - beta2)


class LrInBuffer(Made):
    """Velocity as Keras keeps it."""

    def advance(self, p, state, group, beta1, beta2):
        u = state.setdefault("velocity", torch.zeros_like(p))
        p.add_(u.mul_(beta1).sub_(p.grad, alpha=group["lr"]))


class Debiased(Made):
    """A sum that the update debiases, with a Python count and an entry assigned as a whole."""

    def advance(self, p, state, group, beta1, beta2):
        if not state:
            self.state[p] = state = {"t": 0, "m": torch.zeros_like(p)}
        state["t"] += 1
        p.sub_(state["m"].mul_(beta1).add_(p.grad) / (1 - beta1 ** state["t"]), alpha=group["lr"])


class Iterate(Made):
    """A second iterate beside the weights, and state in the group."""

    def advance(self, p, state, group, beta1, beta2):
        z = state.setdefault("z", p.clone())
        z.sub_(p.grad, alpha=group["lr"])
        group["k"] = group.get("k", 0) + 1
        p.lerp_(z, 1 / group["k"])


class Cascade(Made):
    """A filter behind a filter: neither a sum nor an average of the gradient."""

    def advance(self, p, state, group, beta1, beta2):
        slow = state.setdefault("slow", torch.zeros_like(p)).lerp_(p.grad, 1 - beta2)
        fast = state.setdefault("fast", torch.zeros_like(p)).lerp_(p.grad + 2 * slow, 1 - beta1)
        p.sub_(fast, alpha=group["lr"])


class Special(Made):
    """Slots that fit no role: a list of matrices, a mask, text, and one that appears late."""

    def advance(self, p, state, group, beta1, beta2):
        state.setdefault("factors", [torch.eye(size, dtype=p.dtype) for size in p.shape])
        state.setdefault("mask", p > 0)
        state.setdefault("note", "hello")
        if "seen" in state:
            state["late"] = torch.full((2,), 0.5)
        state["seen"] = None


def suggested(cls, **options) -> dict[str, SlotSpec]:
    """The slots that a probe suggests for a class."""
    return dict(optstate.probe(cls, **options).suggestion().slots)


def test_average_behind_a_sign():
    """The coefficient is the one that the buffer decays with, whatever the update uses."""
    assert suggested(Lion)["exp_avg"] == SlotSpec(
        role="momentum", convention="ema", of="gradient", coefficient="betas[1]", gradient_degree=1
    )


def test_learning_rate_in_the_buffer():
    """A buffer that scales with the learning rate is told from one that does not."""
    slot = suggested(LrInBuffer)["velocity"]
    assert (slot.convention, slot.gradient_degree, slot.lr_degree) == ("lr_in_buffer", 1, 1)


def test_debiased_sum():
    """Accumulation and debiasing are told apart, also where an entry is made in one piece."""
    slots = suggested(Debiased)
    assert slots["m"].convention == "accumulate_debiased"
    assert (slots["t"].role, slots["t"].dtype) == ("step", "python")


def test_weights_in_state():
    """A copy of the parameter is never taken for a moment; state in the group is reported."""
    report = optstate.probe(Iterate)
    assert report.suggestion().slots["z"].role == "averaged_weights"
    assert report.suggestion().slots["z"].reset == "parameter"
    assert report.group_state == ("k",)


def test_filter_that_fits_no_convention():
    """A gain that no convention explains leads to no convention."""
    report = optstate.probe(Cascade)
    assert report.slots["fast"].gain == pytest.approx(3.0)
    assert report.suggestion().slots["fast"].convention is None
    assert report.suggestion().slots["slow"].convention == "ema"


def test_slots_that_fit_no_role():
    """Lists, masks and text are reported, and nothing is claimed of them."""
    report = optstate.probe(Special)
    assert {key: slot.role for key, slot in report.suggestion().slots.items()} == dict.fromkeys(
        ("factors", "mask", "note", "late"), "other"
    )
    assert report.slots["factors"].shape == "list"
    assert report.slots["late"].created == "after first step"


def test_registration_can_be_pasted():
    """The suggested text is Python, and running it registers the suggestion."""
    report = optstate.probe(Lion)
    assert by_class(Lion) is None
    exec(report.registration(), {"optstate": optstate})
    assert by_class(Lion) == report.suggestion()
    assert report.registration() == (
        "optstate.register(\n"
        f"    '{Lion.__module__}.Lion',\n"
        "    {\n"
        "        'exp_avg': optstate.SlotSpec(role='momentum', convention='ema', of='gradient', "
        "coefficient='betas[1]', gradient_degree=1),\n"
        "    },\n"
        "    hyperparameters=('lr', 'betas', 'made'),\n"
        ")"
    )


def test_registration_of_unusual_state_can_be_pasted():
    """An infinite fresh value, state over all parameters, and a key with a quote in it are Python as well."""

    class Unusual(Made):
        def advance(self, p, state, group, beta1, beta2):
            best = state.setdefault("it's the best", torch.full_like(p, inf))
            best.copy_(torch.minimum(best, p.grad.abs()))

    report = optstate.probe(Unusual)
    exec(report.registration(), {"optstate": optstate})
    assert by_class(Unusual) == report.suggestion()
    assert report.suggestion().slots["it's the best"].reset == inf
    assert "order_matters=True" in optstate.probe(optim.LBFGS).registration()


def test_training_mode_is_entered():
    """Optimizers that step in one mode only are put into it."""

    class Moody(Lion):
        training = False

        def train(self):
            self.training = True

        def advance(self, p, state, group, beta1, beta2):
            if not self.training:
                raise RuntimeError("not in train mode")
            super().advance(p, state, group, beta1, beta2)

    assert list(optstate.probe(Moody).slots) == ["exp_avg"]


def test_report_prints_as_a_table():
    """A report shows one row per slot, what was measured and what it suggests."""
    lines = str(optstate.probe(optim.AdamW, lr=0.01)).splitlines()
    assert lines[0] == "torch.optim.adamw.AdamW"
    assert lines[2] == "probed with dense gradients on 1-d, 2-d, 3-d, 4-d parameters"
    assert [line.split() for line in lines if line.startswith("exp_avg_sq")] == [
        [
            "exp_avg_sq",
            "all",
            "parameter",
            "parameter",
            "first",
            "gradient",
            "0",
            "≥0",
            "2",
            "0",
            "0.999",
            "1",
            "second_moment",
        ]
    ]
    assert "it keeps no state, configured as it is" in str(optstate.probe(optim.SGD))


def test_hostile_names_are_made_visible():
    """A slot key or an error of a foreign class cannot repaint the terminal."""

    class Hostile(Made):
        def advance(self, p, state, group, beta1, beta2):
            state.setdefault("m\x1b[2J", torch.zeros_like(p)).lerp_(p.grad, 0.1)
            if group.get("fail"):
                raise ValueError("no\x1b[2J")

    assert "\x1b" not in str(optstate.probe(Hostile))
    assert "\x1b" not in "".join(optstate.probe(Hostile).differences(OptimizerSpec(name="x", slots={})))
    with pytest.raises(ProbeError) as caught:
        optstate.probe(Hostile, fail=True)
    assert "\x1b" not in str(caught.value)


# --- what it cannot do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optstate.probe(dict), "(?s)only a class of optimizers.*the class dict"),
        (
            lambda: optstate.probe(optim.SGD([torch.ones(1)], lr=0.1)),
            r"(?s)only a class of optimizers.*a SGD.*probe\(type\(",
        ),
        (
            lambda: optstate.probe(optim.Adam, momentum=0.9),
            "(?s)Adam could not be probed.*unexpected keyword.*'momentum'",
        ),
        (lambda: optstate.probe(optim.SGD, lr=-1.0), "(?s)could not be probed.*Invalid learning rate: -1.0"),
        (lambda: optstate.probe(Made), "(?s)Made could not be probed.*NotImplementedError"),
        (lambda: optstate.probe(optim.Optimizer), "(?s)Optimizer could not be probed.*defaults"),
        (lambda: optstate.probe(optim.Adam, capturable=True), "(?s)could not be probed.*capturable"),
    ],
    ids=["no optimizer", "an instance", "unknown option", "bad option", "no step", "abstract", "needs a GPU"],
)
def test_failure_is_explained(call, message):
    """What cannot be probed is refused with the class's own reason and a way out."""
    with pytest.raises(ProbeError, match=message):
        call()


def test_failure_on_a_zero_gradient_is_explained():
    """A class that cannot take a zero gradient fails as a ProbeError, not in its own words alone."""

    class Divides(Made):
        def advance(self, p, state, group, beta1, beta2):
            state["norm"] = 1.0 / p.grad.norm().item()

    with pytest.raises(ProbeError, match="(?s)Divides could not be probed.*gradients of any size.*ZeroDivisionError"):
        optstate.probe(Divides)


# --- what it leaves alone ---------------------------------------------------------------------------------


class Noisy(Made):
    """It draws from every generator there is."""

    def advance(self, p, state, group, beta1, beta2):
        noise = torch.rand(()) + random.random() + np.random.rand()
        state.setdefault("m", torch.zeros_like(p)).lerp_(p.grad * (1 + noise), 0.5)


def test_random_generators_are_put_back():
    """A class that draws random numbers does so without consequence for anyone else."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    optstate.probe(Noisy)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert before[2][0] == after[2][0]
    assert np.array_equal(before[2][1], after[2][1])
    assert before[2][2:] == after[2][2:]


def test_chance_does_not_show():
    """Runs that are compared see the same random numbers, so that even a noisy class has its degrees."""
    torch.manual_seed(3)
    first = optstate.probe(Noisy)
    assert first == optstate.probe(Noisy)
    assert first.slots["m"].gradient_degree == 1


def test_class_is_not_patched_and_no_hook_runs():
    """The class keeps its own step, and hooks that a program registered for all optimizers see nothing."""

    class Plain(Lion):
        def step(self, closure=None):
            return super().step(closure)

    own, seen = Plain.step, []
    handles = [
        register_optimizer_step_pre_hook(lambda *_: seen.append("pre")),
        register_optimizer_step_post_hook(lambda *_: seen.append("post")),
    ]
    try:
        optstate.probe(Plain)
        optstate.probe(optim.SGD, momentum=0.9)
    finally:
        for handle in handles:
            handle.remove()
    assert Plain.step is own
    assert not hasattr(Plain.step, "hooked")
    assert seen == []


@pytest.mark.parametrize(
    "surroundings",
    [torch.no_grad, torch.inference_mode, torch.enable_grad, lambda: torch.device("meta")],
    ids=["no_grad", "inference_mode", "enable_grad", "meta device"],
)
def test_surroundings_do_not_matter(surroundings):
    """Gradient modes and default devices around the call change neither the result nor themselves."""
    with surroundings():
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_device()
        report = optstate.probe(optim.NAdam)
        assert modes == (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_device())
    assert report.differences(described(optim.NAdam)) == []


def test_sparse_checks_stay_as_they_were():
    """Probing with sparse gradients does not switch torch's checks of sparse tensors."""
    before = torch.sparse.check_sparse_tensor_invariants.is_enabled()
    optstate.probe(optim.SparseAdam)
    assert torch.sparse.check_sparse_tensor_invariants.is_enabled() == before


def test_same_report_every_time():
    """Nothing in a report depends on chance or on what was probed before."""
    first = optstate.probe(optim.Adam)
    optstate.probe(optim.SGD, momentum=0.9)
    torch.manual_seed(7)
    assert optstate.probe(optim.Adam) == first


def test_report_is_frozen():
    """A report cannot be changed after the fact."""
    report = optstate.probe(optim.Muon)
    with pytest.raises(AttributeError):
        report.name = "other"  # type: ignore[misc]  # on purpose
    with pytest.raises(TypeError, match="does not support item assignment"):
        report.slots["x"] = MeasuredSlot(ranks=(), shape=None, dtype=None, created="constructor")


def test_state_of_another_kind_is_taken():
    """A class that replaces the mapping of its state is probed all the same; first values are then not seen."""

    class OwnMapping(Lion):
        def __init__(self, params, **options):
            super().__init__(params, **options)
            plain: dict[torch.Tensor, dict[str, object]] = {
                parameter: {} for parameter in self.param_groups[0]["params"]
            }
            self.state = plain  # type: ignore[assignment]  # as some libraries do

    report = optstate.probe(OwnMapping)
    assert report.slots["exp_avg"].fresh is None
    assert report.slots["exp_avg"].gain == 1.0
