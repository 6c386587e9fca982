"""Random edits of random optimizers: all or nothing, and nothing but what was selected."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optstate
from optstate.errors import EditError, OptstateError
from tests.editing import OPTIMIZERS, everything, slots, train, trained

ROLES = ("momentum", "second_moment", "step", "max_second_moment", "previous_gradient", "averaged_weights", "step_size")
VERBS = {
    "scale": lambda target: target.scale_(0.5),
    "grow": lambda target: target.scale_(1e6),
    "turn": lambda target: target.scale_(-1.0),
    "zero": lambda target: target.zero_(),
    "clip": lambda target: target.clip_norm_(1e-3),
    "clip each": lambda target: target.clip_norm_(1e-3, per_parameter=True),
    "clamp": lambda target: target.clamp_(-1e-3, 1e-3),
    "set": lambda target: target.set_(0.25),
    "break": lambda target: target.set_(float("nan")),
    "own": lambda target: target.set_(lambda old: old * 0.5),
    "reset": lambda target: target.reset_(),
    "reset but step": lambda target: target.reset_(keep="step"),
}
commands = st.tuples(
    st.sampled_from(sorted(VERBS)),
    st.sampled_from(["*", "*.weight", "0.*", "0.weight"]),
    st.sampled_from([None, *ROLES]),
    st.sampled_from([None, [0], [1, 2], slice(0, 2), [True, False, True]]),
)


class Stop(Exception):
    """What goes wrong in the middle."""


def target(edit, pattern, role, rows):
    """What a command acts on."""
    found = edit.select(pattern)
    found = found if rows is None else found.rows(rows)
    return found if role is None else found.role(role)


def carry_out(edit, command):
    """One command; what it refuses is part of the game."""
    verb, *where = command
    VERBS[verb](target(edit, *where))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@given(orders=st.lists(commands, min_size=1, max_size=4), force=st.booleans())
def test_an_exception_leaves_every_bit(name, orders, force):
    """Whatever was done in an edit, an exception takes back: values, memory, keys, their order, groups, weights."""
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    before = everything(model, optimizer)

    def do():
        with state.edit(force=force) as edit:
            for order in orders:
                carry_out(edit, order)
            optimizer.param_groups[0]["lr"] = 7.0
            raise Stop

    with pytest.raises((Stop, OptstateError)):
        do()
    assert everything(model, optimizer) == before
    assert len(state.journal) == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@given(order=commands, force=st.booleans())
def test_a_verb_is_made_whole_or_not_at_all(name, order, force):
    """A verb that is refused changes no bit; one that is made changes only what was selected, and undo takes it back."""
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    before, old = everything(model, optimizer), slots(optimizer)
    try:
        with state.edit(force=force) as edit:
            carry_out(edit, order)
    except OptstateError:
        assert everything(model, optimizer) == before
        return
    chosen = state.select(order[1]).names
    changed = {place for place, value in slots(optimizer).items() if value != old.get(place)}
    changed |= old.keys() - slots(optimizer).keys()
    stepped = [
        n for n, p in model.named_parameters() if any(p is q for g in optimizer.param_groups for q in g["params"])
    ]
    assert {stepped[number] for number, _ in changed} <= set(chosen)
    state.undo()
    assert everything(model, optimizer) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.5])
def test_what_counts_stays_whole(value):
    """A step count that is a Python integer takes whole numbers only, and says so."""
    model, optimizer = trained("SparseAdam")
    state = optstate.attach(optimizer, model)
    before = everything(model, optimizer)
    with pytest.raises(EditError, match="/step counts"):
        state.select("*").step.set_(value)
    assert everything(model, optimizer) == before


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_dry_run_tells_and_changes_nothing(name):
    """A dry run of a full reset says how much it would touch, and every bit stays."""
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    before = everything(model, optimizer)
    with state.edit("what if", dry_run=True) as edit:
        edit.select("*").reset_()
    assert everything(model, optimizer) == before
    assert edit.change.entries[0].slots == len(slots(optimizer))
    assert not edit.change.made
    assert len(state.journal) == 0


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_a_reset_is_a_fresh_start(name):
    """After `reset_` of everything the next steps are those of an optimizer that never stepped, bit for bit."""
    model, optimizer = trained(name)
    twin = deepcopy(model)
    fresh = OPTIMIZERS[name](twin.parameters())
    optstate.attach(optimizer, model).select("*").reset_()
    train(model, optimizer, 3, seed=7)
    train(twin, fresh, 3, seed=7)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", sorted({*OPTIMIZERS} - {"LBFGS", "SGD dampened", "SGD fused"}))
def test_memory_stays_where_it_is(name):
    """An edit writes into the very tensors that the optimizer holds, so that compiled and captured steps stay valid.

    Left out are those whose fresh state has no such tensors.
    """
    model, optimizer = trained(name)
    state = optstate.attach(optimizer, model)
    tensors = {(n, k): s.tensor for n, p in state.items() for k, s in p.slots.items() if hasattr(s.value, "tensor")}
    addresses = {place: tensor.data_ptr() for place, tensor in tensors.items()}
    state.select("*").reset_()
    for (parameter, key), tensor in tensors.items():
        assert state[parameter][key].tensor is tensor
        assert tensor.data_ptr() == addresses[parameter, key]
