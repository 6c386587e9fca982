"""Random surgeries of random optimizers: as a model that was built that way, with its state mapped by hand."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import optstate
from optstate.errors import OptstateError
from tests.test_surgery import Stop, whole

T = torch.optim
OPTIMIZERS = {
    "SGD": lambda groups: T.SGD(groups, lr=0.1, momentum=0.9, dampening=0.5),
    "Adam": lambda groups: T.Adam(groups, lr=0.01, amsgrad=True),
    "AdamW": lambda groups: T.AdamW(groups, lr=0.01, fused=True),
    "NAdam": lambda groups: T.NAdam(groups, lr=0.01),
    "RMSprop": lambda groups: T.RMSprop(groups, lr=0.01, momentum=0.9, centered=True),
    "Adagrad": lambda groups: T.Adagrad(groups, lr=0.1, initial_accumulator_value=0.1),
    "ASGD": lambda groups: T.ASGD(groups, lr=0.01),
}
OF_OTHERS = ("exp_avg_sq", "max_exp_avg_sq")
"""Slots whose new rows are the mean of the others'."""

PLACES = ("a.weight", "a.bias", "b.weight", "b.bias")


def bag():
    """Parameters of several shapes in two modules; one of them has two names."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)}).double()
    model["b"].register_parameter("twin", model["a"].weight)
    return model


def backward(parameters, step):
    """A gradient for each parameter that is trained, which tells rows apart and depends on nothing but itself."""
    for parameter in parameters:
        parameter.grad = None
        if parameter.requires_grad:
            wave = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
            parameter.grad = parameter.detach() + (wave + step).sin()


@dataclass
class Mirror:
    """What everything is to be, worked out by hand: by name of each parameter its weights, slots, group, and whether it trains."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    slots: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    group: dict[str, int] = field(default_factory=dict)
    trained: dict[str, bool] = field(default_factory=dict)
    averages: dict[str, torch.Tensor] = field(default_factory=dict)
    twin: str | None = None
    """The parameter that `b.twin` is another name of."""

    def rows(self, name, change, fresh=None):
        """Change weights, average and slots of a parameter alike; `fresh` are new rows of the weights."""

        def changed(tensor, new):
            kept = change(tensor)
            return kept if fresh is None else torch.cat([kept, new])

        rows = None if fresh is None else len(fresh)
        self.weights[name] = changed(self.weights[name], fresh)
        self.averages[name] = changed(self.averages[name], fresh)
        for key, value in self.slots[name].items():
            if value.dim():
                new = None if rows is None else self.start(key, value, fresh)
                self.slots[name][key] = changed(value, new)

    def tables(self):
        """All that is by name."""
        return (self.weights, self.slots, self.group, self.trained, self.averages)

    def forget(self, name):
        for each in self.tables():
            del each[name]

    def start(self, key, value, fresh):
        if key == "ax":
            return fresh
        if key in OF_OTHERS:
            return value.mean(0, keepdim=True).expand(fresh.shape)
        return torch.full_like(fresh, 0.1 if key == "sum" else 0.0)


def mirror_of(model, optimizer, ema):
    found = Mirror(twin="a.weight")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            name = names[id(parameter)]
            found.weights[name] = parameter.detach().clone()
            found.slots[name] = {key: value.clone() for key, value in optimizer.state[parameter].items()}
            found.group[name], found.trained[name] = number, True
            found.averages[name] = ema[name].clone()
    return found


def keep(cut, mirror, name, seed):
    size = len(mirror.weights[name])
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: 1 + seed % size]
    cut.keep_rows(name, order)
    mirror.rows(name, lambda tensor: tensor[order])


def grow(cut, mirror, name, seed):
    fresh = drawn((1 + seed % 3, *mirror.weights[name].shape[1:]), seed)
    cut.grow(name, rows=fresh)
    mirror.rows(name, lambda tensor: tensor, fresh)


def tile(cut, mirror, name, _):
    cut.tile(name, 2)
    mirror.rows(name, lambda tensor: torch.cat([tensor, tensor]))


def replace(cut, mirror, name, seed):
    mirror.weights[name] = drawn(mirror.weights[name].shape, seed)
    cut.replace(name, nn.Parameter(mirror.weights[name].clone()))


def freeze(cut, mirror, name, _):
    cut.freeze(name)
    mirror.trained[name] = False


def unfreeze(cut, mirror, name, _):
    cut.unfreeze(name)
    mirror.trained[name] = True


def add(cut, mirror, name, seed):
    mirror.weights[name] = drawn((3, 2), seed)
    mirror.group[name], mirror.trained[name], mirror.slots[name] = seed % 2, True, {}
    mirror.averages[name] = mirror.weights[name].clone()
    cut.add(name, nn.Parameter(mirror.weights[name].clone()), group=seed % 2)


def remove(cut, mirror, name, _):
    cut.remove(name)
    mirror.forget(name)
    mirror.twin = None if mirror.twin == name else mirror.twin


def rename(cut, mirror, name, _):
    other = f"{name[0]}.{'weight' if name.endswith('extra') else 'extra'}"
    if other in mirror.weights or name.endswith("bias"):
        return False
    cut.rename(name, other)
    for each in mirror.tables():
        moved = {other if key == name else key: value for key, value in each.items()}
        each.clear()
        each.update(moved)
    mirror.twin = other if mirror.twin == name else mirror.twin
    return True


def untie(cut, mirror, *_):
    if mirror.twin is None:
        return False
    cut.untie("b.twin")
    for each in mirror.tables():
        each["b.twin"] = deepcopy(each[mirror.twin])
    mirror.twin = None
    return True


def tie(cut, mirror, name, _):
    if "b.twin" not in mirror.weights or mirror.weights[name].shape != mirror.weights["b.twin"].shape:
        return False
    cut.tie("b.twin", name)
    mirror.forget("b.twin")
    mirror.twin = name
    return True


VERBS = {each.__name__: each for each in (keep, grow, tile, replace, freeze, unfreeze, add, remove, rename, untie, tie)}
commands = st.tuples(
    st.sampled_from(sorted(VERBS)), st.sampled_from([*PLACES, "a.extra", "b.extra"]), st.integers(0, 2**16)
)


def drawn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def carry_out(cut, mirror, command):
    """One command on both sides; False where it makes no sense here."""
    verb, name, seed = command
    if (name in mirror.weights) == (verb == "add") or (verb == "tile" and len(mirror.weights[name]) > 20):
        return False
    return VERBS[verb](cut, mirror, name, seed) is not False


def begun(name):
    """A bag after some steps, averages by name, and a scheduler of torch."""
    model = bag()
    optimizer = OPTIMIZERS[name](
        [
            {"params": [(n, p) for n, p in model.named_parameters() if n.endswith("weight")]},
            {"params": [(n, p) for n, p in model.named_parameters() if n.endswith("bias")], "lr": 0.05},
        ]
    )
    ema = {n: p.detach() + 1 for n, p in model.named_parameters()}
    scheduler = T.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for step in range(3):
        backward(model.parameters(), step)
        optimizer.step()
    return model, optimizer, ema, scheduler


def built(name, mirror, groups):
    """The same, built that way: fresh parameters in groups, with the state that was mapped by hand."""
    parameters = {key: nn.Parameter(value.clone(), mirror.trained[key]) for key, value in mirror.weights.items()}
    optimizer = OPTIMIZERS[name](
        [
            {
                **{k: v for k, v in group.items() if k != "param_names"},
                "params": [parameters[key] for key in group["param_names"]],
            }
            for group in groups
        ]
    )
    for key, parameter in parameters.items():
        optimizer.state.pop(parameter, None)
        if mirror.slots[key]:
            optimizer.state[parameter] = {slot: value.clone() for slot, value in mirror.slots[key].items()}
        elif name == "Adagrad":
            optimizer.state[parameter] = {"step": torch.tensor(0.0), "sum": torch.full_like(parameter, 0.1)}
    return parameters, optimizer


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@given(orders=st.lists(commands, min_size=1, max_size=6))
def test_any_sequence_is_as_if_it_had_been_built_that_way(name, orders):
    """Names, groups, schedulers, slots and averages are what they are by hand, and training goes on to the same bits."""
    model, optimizer, ema, scheduler = begun(name)
    mirror = mirror_of(model, optimizer, ema)
    state = optstate.attach(optimizer, model)
    made = 0
    with state.surgery("any", ema=ema) as cut:
        for order in orders:
            made += carry_out(cut, mirror, order)
    assert len(state.journal) == made
    live = dict(model.named_parameters())
    assert set(live) == set(mirror.weights) == set(ema) == set(state)
    groups = [group["param_names"] for group in optimizer.param_groups]
    assert {key: number for number, names in enumerate(groups) for key in names} == mirror.group
    members = [[id(live[key]) for key in names] for names in groups]
    assert members == [[id(each) for each in group["params"]] for group in optimizer.param_groups]
    assert set(map(id, optimizer.state)) <= set(map(id, live.values()))
    assert len(scheduler.base_lrs) == len(optimizer.param_groups)
    for key, parameter in live.items():
        assert torch.equal(parameter, mirror.weights[key])
        assert torch.equal(ema[key], mirror.averages[key])
    # Adagrad's constructor would have made a state for what was added; its step asks for one.
    for parameter in live.values():
        if name == "Adagrad" and parameter not in optimizer.state:
            optimizer.state[parameter] = {"step": torch.tensor(0.0), "sum": torch.full_like(parameter, 0.1)}
    twins, twin = built(name, mirror, optimizer.param_groups)
    for step in range(3):
        backward(live.values(), step)
        backward(twins.values(), step)
        optimizer.step()
        twin.step()
        scheduler.step()
        for ours, theirs in zip(optimizer.param_groups, twin.param_groups, strict=True):
            theirs["lr"] = ours["lr"]
    for key, parameter in live.items():
        assert torch.equal(parameter, twins[key]), key
        assert optimizer.state.get(parameter, {}).keys() == twin.state.get(twins[key], {}).keys()
        for slot, value in optimizer.state.get(parameter, {}).items():
            assert torch.equal(value, twin.state[twins[key]][slot]), (key, slot)
    assert not [
        each
        for each in optstate.diagnose(optimizer, model=model, scheduler=scheduler)
        if each.about.severity == "error"
    ]


def go_wrong(state, ema, mirror, orders):
    with state.surgery(ema=ema) as cut:
        for order in orders:
            carry_out(cut, mirror, order)
        raise Stop


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Adam", "SGD"])
@given(orders=st.lists(commands, min_size=1, max_size=6), undo=st.booleans())
def test_any_sequence_is_taken_back_to_the_bit(name, orders, undo):
    """An exception, or undo afterwards: the very objects of before, with every bit."""
    model, optimizer, ema, _ = begun(name)
    before, averages = whole(model, optimizer), [(key, id(value)) for key, value in ema.items()]
    state, mirror = optstate.attach(optimizer, model), mirror_of(model, optimizer, ema)
    if undo:
        with state.surgery(ema=ema) as cut:
            made = sum(carry_out(cut, mirror, order) for order in orders)
        state.undo()
        assert sum(entry.undone for entry in state.journal) == made
    else:
        with pytest.raises((Stop, OptstateError)):
            go_wrong(state, ema, mirror, orders)
        assert len(state.journal) == 0
    assert whole(model, optimizer) == before
    assert [(key, id(value)) for key, value in ema.items()] == averages
