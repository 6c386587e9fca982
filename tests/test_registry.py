"""The registry: every torch optimizer is described, found by class and by contents, and resets to a fresh start."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import permutations
from math import inf

import pytest
import torch

from optstate.errors import RegistryError
from optstate.optimizers.registry import by_class, by_contents, by_name, known_names, qualified_name, register
from optstate.optimizers.spec import OptimizerSpec, SlotSpec, coefficient_value, number, steady_gain
from optstate.optimizers.torch_optim import TORCH_OPTIM

EXPORTED = [
    cls
    for cls in vars(torch.optim).values()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
]
MOMENTUM = SlotSpec(role="momentum", convention="ema", of="gradient", coefficient="betas[1]", gradient_degree=1)
IMPORTED = [pytest.param(cls, id=cls.__name__) for cls in EXPORTED]


def parameters(*shapes):
    """Parameters with reproducible values, none of them zero."""
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.nn.Parameter(torch.rand(shape, generator=generator) + 0.5) for shape in shapes]


def gradients(optimizer, seed):
    """A gradient for each parameter: sparse where the class wants it so."""
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient = torch.randn(parameter.shape, generator=generator)
            sparse = isinstance(optimizer, torch.optim.SparseAdam)
            parameter.grad = gradient.to_sparse() if sparse else gradient


def step(optimizer, seed):
    """One step on a gradient that the seed decides; a closure finds the same gradient each time."""

    def closure():
        gradients(optimizer, seed)
        return torch.tensor(float(seed))

    closure()
    optimizer.step(closure)


def built(cls, **options):
    """A tiny optimizer that the class accepts."""
    return cls(parameters((4, 3)) if cls is torch.optim.Muon else parameters((4, 3), (5,)), **options)


# --- what is described ------------------------------------------------------------------------------


def test_every_export_is_described():
    """An optimizer that a new torch exports is missing here until its row is written."""
    assert {qualified_name(cls) for cls in EXPORTED} == {spec.name for spec in TORCH_OPTIM}


@pytest.mark.parametrize("cls", IMPORTED)
def test_description_is_found_by_class(cls):
    """A class leads to its own row."""
    assert by_class(cls) is by_name(qualified_name(cls))
    assert qualified_name(cls) in known_names()


@pytest.mark.parametrize("cls", IMPORTED)
def test_hyperparameters_are_group_keys(cls):
    """What a row names as hyperparameter, condition, coefficient or fresh value is a key of the class's group."""
    spec, (group, *_) = by_class(cls), built(cls).param_groups
    named = set(spec.hyperparameters) | set(spec.fixed)
    for slot in spec.slots.values():
        named |= {slot.when, (slot.coefficient or "").partition("[")[0]} - {"matrix", "vector", None, ""}
        named |= {slot.reset} if isinstance(slot.reset, str) and slot.reset not in ("parameter", "delete") else set()
    assert named <= set(group)
    assert all(group[key] == value for key, value in spec.fixed.items())


@pytest.mark.parametrize("spec", TORCH_OPTIM, ids=lambda spec: spec.name)
def test_companions_are_mutual(spec):
    """Two slots that are coherent only together say so on both sides."""
    for key, slot in spec.slots.items():
        assert all(key in spec.slots[companion].companions for companion in slot.companions)


# --- reset values -----------------------------------------------------------------------------------

VARIANTS = [
    (torch.optim.SGD, {"momentum": 0.9, "dampening": 0.5}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.5, "lr_decay": 0.1}),
    (torch.optim.ASGD, {"t0": 2, "lr": 0.1}),
    *((cls, {}) for cls in EXPORTED),
]


def reset(optimizer, spec, only=None):
    """Set slots to what the description calls fresh; `only` some of them."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            entry = optimizer.state[parameter]
            for key in [key for key in entry if only is None or key in only]:
                fresh = spec.slots[key].reset
                if fresh == "delete":
                    del entry[key]
                elif fresh == "parameter":
                    entry[key].copy_(parameter.detach())
                elif isinstance(entry[key], torch.Tensor):
                    entry[key].fill_(group.get(fresh, fresh))
                else:
                    entry[key] = fresh


def updated(optimizer):
    """The parameters after one further step."""
    step(optimizer, seed=7)
    return [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]


def trained_and_new(cls, options):
    """An optimizer after five steps, and a new one over parameters of the same values."""
    trained, new = built(cls, **options), built(cls, **options)
    for seed in range(1, 6):
        step(trained, seed)
    with torch.no_grad():
        for old_group, new_group in zip(trained.param_groups, new.param_groups, strict=True):
            for old, fresh in zip(old_group["params"], new_group["params"], strict=True):
                fresh.copy_(old)
    return trained, new


def same(one, other):
    """Whether two lists of tensors agree bit for bit."""
    return all(torch.equal(left, right) for left, right in zip(one, other, strict=True))


@pytest.mark.parametrize(("cls", "options"), VARIANTS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_reset_values_are_a_fresh_start(cls, options):
    """An optimizer whose slots hold their reset values takes the very step that a new one takes."""
    trained, new = trained_and_new(cls, options)
    reset(trained, by_class(cls))
    assert same(updated(trained), updated(new))


@pytest.mark.parametrize(
    ("cls", "key", "wrong"),
    [
        (torch.optim.NAdam, "mu_product", 0.0),
        (torch.optim.ASGD, "eta", 0.0),
        (torch.optim.Rprop, "step_size", 0.0),
        (torch.optim.SGD, "momentum_buffer", 0.0),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_wrong_reset_value_is_no_fresh_start(cls, key, wrong):
    """The comparison bites: zero where the table says otherwise changes the next step."""
    options = {"momentum": 0.9, "dampening": 0.5} if cls is torch.optim.SGD else {}
    spec = by_class(cls)
    assert spec is not None
    broken = replace(spec, slots={**spec.slots, key: replace(spec.slots[key], reset=wrong)})
    trained, new = trained_and_new(cls, options)
    reset(trained, broken)
    assert not same(updated(trained), updated(new))


def test_companion_left_behind_is_no_fresh_start():
    """The comparison bites: Adam's moments at zero with the old step are not a fresh start."""
    trained, new = trained_and_new(torch.optim.Adam, {})
    reset(trained, by_class(torch.optim.Adam), only=("exp_avg", "exp_avg_sq"))
    assert not same(updated(trained), updated(new))


# --- types --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [torch.optim.SGD, torch.optim.Adam], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("default", [torch.float32, torch.float64], ids=str)
def test_scalars_follow_the_default_dtype(cls, default, restored_default_dtype):
    """`scalar` means torch's default dtype, whatever the parameters have."""
    torch.set_default_dtype(default)
    optimizer = cls([torch.nn.Parameter(torch.ones(3, dtype=torch.float16))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3, dtype=torch.float16)
    optimizer.step()
    for entry in optimizer.state.values():
        for key, value in entry.items():
            expected = {"scalar": default, "parameter": torch.float16}[by_class(cls).slots[key].dtype]
            assert value.dtype == expected


@pytest.fixture
def restored_default_dtype():
    """Put torch's default dtype back."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


# --- by class -------------------------------------------------------------------------------------------


def family():
    """A described class and three subclasses of it, none of which was ever instantiated."""

    class Base(torch.optim.Adam):
        @torch.no_grad()
        def step(self, closure=None):
            """Step as Adam does."""
            return torch.optim.Adam.step(self, closure)

    class Same(Base):
        pass

    class Other(Base):
        def step(self, closure=None):
            """Step in a way of its own."""
            return super().step(closure)

    class Keeps(Base):
        def _init_group(self, *args, **kwargs):
            return super()._init_group(*args, **kwargs)

    register(Base, {"exp_avg": MOMENTUM})
    return Base, Same, Other, Keeps


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_subclass_is_described_by_the_ancestor_whose_step_it_inherits(order):
    """Whichever class was instantiated first: torch wraps `step` on the class, and that changes nothing."""
    base, inheriting, own_step, own_state = family()
    built_first = [inheriting, own_step, base]
    for turn in (None, *order):
        if turn is not None:
            built_first[turn](parameters((2,)))
        assert by_class(inheriting) is by_class(base)
        assert by_class(base) is not None
        assert by_class(own_step) is None, "a step of its own may keep anything"
        assert by_class(own_state) is None, "state of its own may be anything"


def test_torch_subclass_with_a_row_of_its_own_is_not_its_base():
    """AdamW inherits Adam's step, and is still AdamW."""
    assert by_class(torch.optim.AdamW).name == "torch.optim.adamw.AdamW"


def test_class_without_described_ancestor_is_unknown():
    """Nothing is guessed from a name or from the mere base class."""

    class Adam(torch.optim.Optimizer):
        pass

    assert by_class(Adam) is None
    assert by_class(torch.optim.Optimizer) is None
    assert by_class(int) is None
    assert by_name(None) is None


# --- by contents ----------------------------------------------------------------------------------------


def contents(cls, steps=2, **options):
    """The first group and all slot keys of a state_dict."""
    optimizer = built(cls, **options)
    for seed in range(steps):
        step(optimizer, seed)
    saved = optimizer.state_dict()
    return saved["param_groups"][0], {key for entry in saved["state"].values() for key in entry}


def named(specs):
    """The short names of several descriptions."""
    return [spec.name.rpartition(".")[2] for spec in specs]


@pytest.mark.parametrize("cls", IMPORTED)
def test_class_is_found_by_what_a_file_holds(cls):
    """The state_dict of each class, after training, fits that class alone."""
    assert named(by_contents(*contents(cls))) == [cls.__name__]


@pytest.mark.parametrize("cls", IMPORTED)
def test_class_is_among_those_that_an_untrained_file_fits(cls):
    """Without a slot to see, the class is at least among the alternatives."""
    assert cls.__name__ in named(by_contents(*contents(cls, steps=0)))


def test_adam_and_adamw_of_old_files_are_both_named():
    """Before torch wrote `decoupled_weight_decay` nothing in a file tells the two apart."""
    group, keys = contents(torch.optim.AdamW)
    old = {key: value for key, value in group.items() if key != "decoupled_weight_decay"}
    assert named(by_contents(old, keys)) == ["Adam", "AdamW"]
    assert named(by_contents({**old, "decoupled_weight_decay": False}, keys)) == ["Adam"]


@pytest.mark.parametrize(
    ("group", "keys"),
    [
        ({}, ()),
        ({"lr": 0.1}, ("exp_avg",)),
        ({"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}, ("velocity",)),  # Lion's group
        # A fused Adam of another library: the same slots, but not torch's group.
        ({"lr": 0.1, "bias_correction": True, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}, ("step", "m")),
    ],
    ids=["nothing", "too little", "lion", "foreign slots"],
)
def test_unknown_contents_fit_nothing(group, keys):
    """A file that no described class writes is not forced into one."""
    assert by_contents(group, keys) == ()


def test_fused_adam_of_another_library_is_not_taken_for_radam():
    """Four group keys and three slots that many classes share are no evidence."""
    group = {"lr": 0.1, "bias_correction": True, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}
    assert "RAdam" not in named(by_contents(group, ("step", "exp_avg", "exp_avg_sq")))


# --- register -------------------------------------------------------------------------------------------


def test_registering_describes_a_class():
    """Five lines make an optimizer known, by class and by what a file of it holds."""

    class Lion(torch.optim.Optimizer):
        pass

    spec = register(
        Lion,
        {"exp_avg": MOMENTUM},
        hyperparameters=("lr", "betas", "weight_decay", "lion_only"),
    )
    assert by_class(Lion) is spec
    group = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0, "lion_only": 1}
    assert by_contents(group, ("exp_avg",)) == (spec,)


def test_registering_again_in_the_same_words_does_nothing():
    """A module that registers may be imported twice."""
    first = register("made_up.Twice", {"exp_avg": MOMENTUM}, hyperparameters=("twice_only",))
    assert register("made_up.Twice", {"exp_avg": MOMENTUM}, hyperparameters=("twice_only",)) is first


CONTRADICTIONS = {
    "a role that is none": (lambda: SlotSpec(role="velocity"), "role cannot be 'velocity'[^,]*\n.*one of momentum"),
    "a convention that is none": (
        lambda: SlotSpec(role="momentum", convention="sum", of="gradient"),
        "convention cannot be 'sum'",
    ),
    "a shape that is none": (lambda: SlotSpec(role="step", shape="()"), r"shape cannot be '\(\)'"),
    "a convention of nothing": (lambda: SlotSpec(role="momentum", convention="ema"), "what it is of, or neither"),
    "an element that is none": (
        lambda: replace(MOMENTUM, coefficient="betas[first]"),
        r"(?s)one element of it.*betas\[0\]",
    ),
    "companions that are not there": (
        lambda: register("made_up.A", {"m": replace(MOMENTUM, companions=("v",))}),
        "made_up.A: slot 'm' has companions that the optimizer does not keep",
    ),
    "two primary momenta": (
        lambda: register("made_up.B", {"m": MOMENTUM, "n": MOMENTUM}),
        "(?s)two primary slots of role momentum.*primary=False",
    ),
    "a slot that is a string": (
        lambda: register("made_up.C", dict.fromkeys("m", "momentum")),
        "(?s)not described by a SlotSpec.*str",
    ),
    "slots in a list": (lambda: register("made_up.D", [MOMENTUM]), "(?s)mapping of its slots.*a str and a list"),
    "an instance": (lambda: register(3, {"m": MOMENTUM}), "(?s)described by its class.*a int and a dict"),
    "other slots than before": (
        lambda: register("torch.optim.sgd.SGD", {"velocity": MOMENTUM}),
        "(?s)described already.*slots momentum_buffer.*slots velocity",
    ),
    "other words than before": (
        lambda: register("torch.optim.Muon", {"momentum_buffer": MOMENTUM}),
        "(?s)described already.*momentum_buffer: dtype=gradient.*momentum_buffer: dtype=parameter",
    ),
    "other hyperparameters than before": (
        lambda: register("torch.optim.Muon", by_name("torch.optim.Muon").slots),
        "(?s)described already.*hyperparameters=.*ns_steps.*hyperparameters=()",
    ),
    "an update by no rule": (
        lambda: register("made_up.E", {"m": MOMENTUM}, update="adma"),
        "(?s)made_up.E: no rule for updates is called 'adma'.*adam, .*unknown",
    ),
    "a name that draws on the terminal": (
        lambda: register("made_up.\x1b[2J", {"m": replace(MOMENTUM, companions=("v",))}),
        r"made_up\.\\x1b\[2J",
    ),
}


@pytest.mark.parametrize(("attempt", "message"), list(CONTRADICTIONS.values()), ids=list(CONTRADICTIONS))
def test_contradiction_is_refused(attempt, message):
    """What cannot be true is refused with what was expected and what was found; nothing is registered."""
    before = known_names()
    with pytest.raises(RegistryError, match=message):
        attempt()
    assert known_names() == before


def test_roles_without_accessor_may_repeat():
    """Several preconditioners are equals: none has to be the primary one."""
    spec = OptimizerSpec(name="made_up.K", slots={key: SlotSpec(role="preconditioner") for key in "LR"})
    assert set(spec.slots) == {"L", "R"}


# --- gains and coefficients ---------------------------------------------------------------------------

SUM = SlotSpec(role="momentum", convention="accumulate", of="gradient", coefficient="momentum")


@pytest.mark.parametrize(
    ("slot", "hyperparameters", "gain"),
    [
        (SUM, {"momentum": 0.75}, 4.0),
        (SUM, {"momentum": 0.75, "dampening": 0.5}, 2.0),
        (SUM, {"momentum": torch.tensor(0.75)}, 4.0),
        (SUM, {"momentum": 0.0}, 1.0),
        (SUM, {"momentum": 1.0}, inf),
        (SUM, {}, None),
        (replace(SUM, convention="accumulate_debiased"), {"momentum": 0.5}, 2.0),
        (replace(SUM, convention="ema"), {"momentum": 0.75}, 1.0),
        (replace(SUM, convention="ema_debiased"), {}, 1.0),
        (replace(SUM, convention="lr_in_buffer"), {"momentum": 0.75}, None),
        (SlotSpec(role="second_moment"), {"betas": (0.9, 0.99)}, None),
    ],
    ids=str,
)
def test_steady_gain(slot, hyperparameters, gain):
    """What a constant gradient of 1 accumulates to, in each convention."""
    assert steady_gain(slot, hyperparameters) == gain


def test_coefficient_value():
    """A coefficient is read by name, an index in brackets within a tuple or list."""
    group = {"momentum": 0.5, "betas": (0.9, 0.99)}
    assert coefficient_value("momentum", group) == 0.5
    assert coefficient_value("betas[1]", group) == 0.99
    assert coefficient_value("betas[2]", group) is None
    assert coefficient_value("alpha", group) is None
    assert coefficient_value("momentum[0]", group) is None


def test_number():
    """Numbers come plain or as scalar tensors; anything else is none."""
    assert number(torch.tensor(0.5)) == 0.5
    assert number((0.9, 0.99)) is None
    assert number(torch.ones(2)) is None
    assert number(None) is None


def test_slot_exists_as_its_condition_says():
    """Conditions are a hyperparameter, a matrix, a vector; what is not known counts as yes."""
    adafactor, sgd = by_class(torch.optim.Adafactor), by_class(torch.optim.SGD)
    assert [adafactor.slots["row_var"].exists({}, ndim) for ndim in (0, 1, 2, 4, None)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    assert [adafactor.slots["variance"].exists({}, ndim) for ndim in (0, 1, 2, None)] == [True, True, False, True]
    buffer = sgd.slots["momentum_buffer"]
    assert [buffer.exists(group, 2) for group in ({"momentum": 0}, {"momentum": 0.9}, {})] == [False, True, True]


def test_defaults_describe_nothing_special():
    """Every field but the role has a default, so that a row holds what is particular."""
    assert [field.name for field in fields(SlotSpec) if getattr(SlotSpec(role="other"), field.name) is None] == [
        "convention",
        "of",
        "when",
        "coefficient",
        "age",
    ]
