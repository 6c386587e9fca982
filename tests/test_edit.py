"""Edits of a running optimizer: verbs by name, all or nothing, logged, undoable."""

from __future__ import annotations

import gc
import weakref
from contextlib import suppress

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import EditError, EditRefused, MissingSlot, NoSuchParameter, NothingSelected, SelectionError
from tests.editing import everything, slots, train, trained


@pytest.fixture
def adam():
    """A model, its AdamW after four steps, and their state."""
    model, optimizer = trained("AdamW tensor lr")
    return model, optimizer, optstate.attach(optimizer, model)


def aged(optimizer, steps=2000.0):
    """Make an Adam look as if it had seen the gradient 1 for very long."""
    for entry in optimizer.state.values():
        entry["step"].fill_(steps)
        entry["exp_avg"].fill_(1 - 0.9**steps)
        entry["exp_avg_sq"].fill_(1 - 0.999**steps)


# --- what verbs do ------------------------------------------------------------------------------------------


def test_verbs_act_at_once_and_only_on_what_was_named(adam):
    """Inside the block the buffer has changed already; parameters that were not selected keep every bit."""
    _, optimizer, state = adam
    buffer, before = state["0.weight"].momentum.tensor, state["0.weight"].momentum.tensor.clone()
    others = {place: value for place, value in slots(optimizer).items() if place != (0, "exp_avg")}
    with state.edit() as edit:
        edit["0.weight"].momentum.scale_(0.5)
        assert torch.equal(buffer, before * 0.5)
    assert torch.equal(buffer, before * 0.5)
    assert {place: value for place, value in slots(optimizer).items() if place != (0, "exp_avg")} == others


VERBS = {
    "scale_": (lambda t: t.scale_(-0.5), lambda old: old * -0.5),
    "zero_": (lambda t: t.zero_(), torch.zeros_like),
    "clamp_": (lambda t: t.clamp_(-0.01, 0.02), lambda old: old.clamp(-0.01, 0.02)),
    "clamp_ below": (lambda t: t.clamp_(max=0.01), lambda old: old.clamp(max=0.01)),
    "set_ number": (lambda t: t.set_(0.001), lambda old: torch.full_like(old, 0.001)),
    "set_ callable": (lambda t: t.set_(lambda old: old.mul_(0.5)), lambda old: old * 0.5),
    "clip_norm_": (lambda t: t.clip_norm_(0.001), lambda old: old * (0.001 / old.double().norm())),
    "clip_norm_ unneeded": (lambda t: t.clip_norm_(1e6), lambda old: old),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_does_what_it_says(adam, verb):
    """Each verb on a momentum, against the same in torch."""
    _, _, state = adam
    slot = state["0.weight"].momentum
    do, expected = VERBS[verb]
    wanted = expected(slot.tensor.clone())
    do(slot)
    torch.testing.assert_close(slot.tensor, wanted, rtol=1e-6, atol=0)
    if "clip" not in verb:
        assert torch.equal(slot.tensor, wanted)


def test_clipping_is_of_all_together_or_of_each(adam):
    """The limit holds for the norm of the whole selection, or for each parameter's."""
    _, _, state = adam

    def norms():
        return [float(p.momentum.tensor.norm()) for p in state.values()]

    limit = max(norms()) / 2
    state.select("*").momentum.clip_norm_(limit, per_parameter=True)
    assert all(norm <= limit * (1 + 1e-6) for norm in norms())
    state.select("*").momentum.clip_norm_(limit / 2)
    assert sum(norm**2 for norm in norms()) ** 0.5 == pytest.approx(limit / 2, rel=1e-6)


def test_values_by_name(adam):
    """`set_` takes tensors by parameter name, which must be those selected."""
    _, _, state = adam
    new = {name: torch.full(state[name].facts.shape, 1e-3) for name in ("0.bias", "2.bias")}
    state.select("*.bias").momentum.set_(new)
    assert torch.equal(state["2.bias"].momentum.tensor, new["2.bias"])
    with pytest.raises(EditError, match="do not fit the selection"):
        state.select("*").momentum.set_(new)


@pytest.mark.parametrize(
    "rows",
    [
        [0, 2],
        [-6, 2],
        torch.tensor([2, 0, 0]),
        range(0, 3, 2),
        slice(0, 3, 2),
        [True, False, True, False, False, False],
    ],
    ids=str,
)
def test_rows(adam, rows):
    """Indices, negative ones, repeated ones, ranges, slices and masks mean the same rows."""
    _, _, state = adam
    slot = state["0.weight"].momentum
    wanted = slot.tensor.clone()
    wanted[[0, 2]] *= 0.5
    slot.rows(rows).scale_(0.5)
    assert torch.equal(slot.tensor, wanted)


def test_no_rows_are_no_change(adam):
    """An empty index touches nothing."""
    model, optimizer, state = adam
    before = everything(model, optimizer)
    state.select("*.weight").rows([]).reset_()
    assert everything(model, optimizer) == before


def test_lerp_goes_towards_another_state(adam, tmp_path):
    """Half of the way to a snapshot, an attached state, an opened checkpoint or its path, matched by name."""
    model, optimizer, state = adam
    old = state.snapshot()
    optstate.save(tmp_path / "old", model=model, optimizer=optimizer, step=4)
    for other in (old, optstate.open(tmp_path / "old"), tmp_path / "old", str(tmp_path / "old")):
        state["0.weight"].momentum.scale_(0.5)
        ours = state["0.weight"].momentum.tensor.clone()
        theirs = old["0.weight"].momentum.tensor
        state["0.weight"].momentum.lerp_(other, 0.25)
        torch.testing.assert_close(state["0.weight"].momentum.tensor, ours.lerp(theirs, 0.25), rtol=1e-6, atol=0)
        state["0.weight"].momentum.lerp_(other, 1.0)
        assert torch.equal(state["0.weight"].momentum.tensor, theirs)


def test_lerp_brings_an_average_to_this_optimizers_age():
    """Two states that have seen the same gradient mean the same m̂, whatever their step counts: nothing changes."""
    model, optimizer = trained("Adam")
    other_model, other = trained("Adam")
    for entries, steps in ((optimizer.state.values(), 5.0), (other.state.values(), 50.0)):
        for entry in entries:
            entry["step"].fill_(steps)
            entry["exp_avg"].fill_(1 - 0.9**steps)
            entry["exp_avg_sq"].fill_(1 - 0.999**steps)
    state = optstate.attach(optimizer, model)
    state.select("*").momentum.lerp_(optstate.attach(other, other_model), 0.5)
    state.select("*").second_moment.lerp_(optstate.attach(other, other_model), 0.5)
    for entry in optimizer.state.values():
        torch.testing.assert_close(entry["exp_avg"], torch.full_like(entry["exp_avg"], 1 - 0.9**5), rtol=1e-6, atol=0)
        torch.testing.assert_close(
            entry["exp_avg_sq"], torch.full_like(entry["exp_avg_sq"], 1 - 0.999**5), rtol=1e-5, atol=0
        )


# --- the transaction ----------------------------------------------------------------------------------------


def test_a_verb_outside_a_block_is_an_edit_of_its_own(adam):
    """It has an entry in the journal, and can be undone."""
    model, optimizer, state = adam
    before = everything(model, optimizer)
    state.select("*").momentum.scale_(0.5)
    entry = state.journal[-1]
    assert (entry.verb, dict(entry.arguments), entry.parameters, entry.slots, entry.step) == (
        "scale_", {"factor": 0.5}, 4, 4, 4,
    )  # fmt: skip
    norm, after = entry.norms["exp_avg"]
    assert after == pytest.approx(norm / 2, rel=1e-6)
    state.undo()
    assert everything(model, optimizer) == before
    assert state.journal[-1].undone


def test_undo_is_refused_once_something_else_wrote_there(adam):
    """After a step, what was before the edit would destroy what the step did."""
    model, optimizer, state = adam
    state.select("*").momentum.scale_(0.5)
    train(model, optimizer, 1)
    before = everything(model, optimizer)
    with pytest.raises(EditError, match="no longer be undone"):
        state.undo()
    assert everything(model, optimizer) == before


def test_undo_survives_an_edit_that_came_to_nothing(adam):
    """A dry run or a refused edit in between does not take the undo away."""
    model, optimizer, state = adam
    before = everything(model, optimizer)
    state.select("*").momentum.scale_(0.5)
    with state.edit(dry_run=True) as edit:
        edit.select("*").momentum.zero_()
    with pytest.raises(EditRefused):
        state.select("*").momentum.set_(float("inf"))
    state.undo()
    assert everything(model, optimizer) == before
    with pytest.raises(EditError, match="no edit to undo"):
        state.undo()


def test_without_backup_nothing_can_be_taken_back(adam):
    """The journal says so, undo says so, and a refused commit says that it stays."""
    _, _, state = adam
    with state.edit(backup=False, norms=False) as edit:
        edit.select("*").momentum.scale_(0.5)
    assert not state.journal[-1].backup
    assert state.journal[-1].norms is None
    with pytest.raises(EditError, match="no edit to undo"):
        state.undo()
    with pytest.raises(EditRefused, match="there is no backup"), state.edit(backup=False) as edit:
        edit["0.weight"].momentum.set_(float("nan"))
    with pytest.raises(EditError, match="needs a backup"):
        state.edit(backup=False, dry_run=True)


def test_a_verb_that_fails_half_way_dooms_the_edit(adam):
    """Whoever swallows the error of a verb does not get the other half."""
    model, optimizer, state = adam
    before = everything(model, optimizer)

    def second_fails(old, calls=[]):  # noqa: B006  # counts its calls
        calls.append(old)
        if len(calls) == 2:
            raise ValueError("enough")
        return old * 0.5

    def do():
        with state.edit() as edit, suppress(ValueError):
            edit.select("*").momentum.set_(second_fails)

    with pytest.raises(EditError, match="none of it was kept: enough"):
        do()
    assert everything(model, optimizer) == before


def test_hyperparameters_changed_in_the_block_are_put_back_too(adam):
    """Groups are part of what an exception takes back."""
    model, optimizer, state = adam
    before = everything(model, optimizer)

    def do():
        with state.edit() as edit:
            optimizer.param_groups[0]["weight_decay"] = 5.0
            edit.select("*").momentum.set_(float("nan"))

    with pytest.raises(EditRefused):
        do()
    assert everything(model, optimizer) == before


def test_edits_do_not_nest(adam):
    """A verb on the state inside an open edit is told where to go, also through another attachment."""
    model, optimizer, state = adam
    other = optstate.attach(optimizer, model)
    with state.edit() as edit:
        for outside in (state, other):
            with pytest.raises(EditError, match="open already"):
                outside.select("*").momentum.scale_(0.5)
        edit.select("*").momentum.scale_(0.5)
    with pytest.raises(EditError, match="not open"):
        edit.select("*").momentum.scale_(0.5)
    with pytest.raises(EditError, match="entered once"), edit:
        pass


def test_the_change_is_known_afterwards(adam):
    """`edit.change` prints what was done, and does not exist before."""
    _, _, state = adam
    with state.edit("why") as edit:
        edit.select("*.bias").momentum.zero_()
        with pytest.raises(EditError, match="when it is over"):
            edit.change  # noqa: B018  # looking is the test
    assert "zero_()" in str(edit.change)
    assert "<table>" in edit.change._repr_html_()
    assert edit.change.made


def test_regroup_is_an_edit(adam):
    """It is journalled, undone as one, and rolled back with the rest of its block."""
    model, optimizer, state = adam
    before = everything(model, optimizer)
    state.regroup({"*.bias": {"weight_decay": 0.0}}, note="no decay")
    assert (state.journal[-1].verb, state.journal[-1].note) == ("regroup", "no decay")
    state.undo()
    assert everything(model, optimizer) == before

    def do():
        with state.edit() as edit:
            edit.regroup({"*.bias": {"weight_decay": 0.0}})
            edit.select("*").momentum.set_(float("nan"))

    with pytest.raises(EditRefused):
        do()
    assert everything(model, optimizer) == before


def test_a_state_keeps_nothing_of_a_dropped_optimizer_alive():
    """When state, model and optimizer go, so do the buffers."""
    model, optimizer = trained("Adam")
    state = optstate.attach(optimizer, model)
    state.select("*").momentum.scale_(0.5)
    gone = weakref.ref(optimizer)
    del model, optimizer, state
    gc.collect()
    assert gone() is None


# --- the size of the next update ------------------------------------------------------------------------------


def test_a_second_moment_at_zero_is_refused(adam):
    """29 times, says the message, and what to do instead; nothing changed; `force` lets it pass and the journal says so."""
    model, optimizer, state = adam
    aged(optimizer)
    before = everything(model, optimizer)
    with pytest.raises(EditRefused, match="29.4 times") as refused:
        state.select("*").second_moment.zero_()
    assert "reset_()" in refused.value.todo
    assert everything(model, optimizer) == before
    with state.edit("on purpose", force=True) as edit:
        edit.select("*").second_moment.zero_()
    assert state.journal[-1].forced
    usual, after, fresh = edit.change.entries[0].effect
    assert after / usual == pytest.approx(29.41, rel=1e-3)
    assert fresh == pytest.approx(0.01)


def test_a_second_moment_at_zero_is_refused_where_no_gradient_comes(adam):
    """In a young state any gradient fills it at once, but a unit that is not active would move by momentum / epsilon."""
    model, optimizer, state = adam
    aged(optimizer, steps=2.0)
    before = everything(model, optimizer)
    with pytest.raises(EditRefused, match="times as large where no gradient comes"):
        state.select("*").second_moment.zero_()
    assert everything(model, optimizer) == before
    with state.edit(force=True) as edit:
        edit["0.weight"].second_moment.zero_()
    assert state.journal[-1].forced
    optimizer.zero_grad()
    model[0].weight.grad = torch.zeros_like(model[0].weight)
    old = model[0].weight.detach().clone()
    optimizer.step()
    assert (model[0].weight.detach() - old).abs().max() > 1000


@pytest.mark.parametrize(
    ("verb", "passes", "size"),
    [
        (lambda s: s.reset_(), True, 1.0),
        (lambda s: s.reset_(keep="step"), False, 2.941),
        (lambda s: s.momentum.zero_(), True, 0.1),
        (lambda s: s.step.set_(0), True, 0.34),
        (lambda s: s.momentum.scale_(2.0), True, 1.9),
        (lambda s: s.momentum.scale_(10.0), False, 9.1),
        (lambda s: s.rows([0]).reset_(), True, 1.0),
    ],
    ids=["reset", "reset but step", "momentum zero", "step zero", "doubled", "ten times", "rows"],
)
def test_the_update_is_predicted(adam, verb, passes, size):
    """The predicted next update is the one that the optimizer then makes, at its usual gradient."""
    model, optimizer, state = adam
    aged(optimizer)
    with state.edit(force=True) as edit:
        verb(edit.select("*"))
    assert edit.change.entries[0].effect[1] == pytest.approx(size * 0.01, rel=2e-3)
    assert edit.change.entries[0].forced is not passes
    optimizer.param_groups[0]["weight_decay"] = 0.0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = max(float((p.detach() - q).abs().max()) for p, q in zip(model.parameters(), before, strict=True))
    assert moved == pytest.approx(size * 0.01, rel=2e-3)


def test_one_bad_element_is_found_where_elements_are_treated_apart(adam):
    """Of what `set_` wrote, every element is looked at, not a sample."""
    _, optimizer, _ = adam
    large = nn.Linear(100, 100)
    optimizer = torch.optim.Adam(large.parameters())
    train_once(large, optimizer)
    aged(optimizer)
    state = optstate.attach(optimizer, large)

    def spoil(old):
        old[37, 41] = 0.0
        return old

    with pytest.raises(EditRefused, match="weight would be 29.4 times"):
        state["weight"].second_moment.set_(spoil)


def train_once(model, optimizer):
    """One step on ones."""
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()


def test_a_row_reset_with_the_step_kept_is_no_larger_than_a_fresh_start(adam):
    """F51: reset rows get no update above a fresh start's; zeroed by hand they would be refused."""
    _, optimizer, state = adam
    aged(optimizer, 5000.0)
    state["0.weight"].rows([0, 3]).reset_()
    assert torch.equal(state["0.weight"].second_moment.tensor[3], state["0.weight"].second_moment.tensor[1])
    assert not state["0.weight"].momentum.tensor[3].any()
    assert state["0.weight"].step.item() == 5000.0

    def do():
        with state.edit() as edit:
            edit["2.weight"].momentum.rows([0]).zero_()
            edit["2.weight"].second_moment.rows([0]).zero_()

    with pytest.raises(EditRefused, match="3.15 times"):
        do()


# --- bad input -------------------------------------------------------------------------------------------------

BAD = {
    "an unknown name": (lambda s: s["0.wieght"].reset_(), NoSuchParameter, "0.weight"),
    "an unknown pattern": (lambda s: s.select("layers.*").reset_(), NothingSelected, "matches nothing"),
    "an unknown key": (lambda s: s.select("*")["exp_av"].scale_(0.5), MissingSlot, "no slot 'exp_av'"),
    "an unknown role": (lambda s: s.select("*", role="momentun"), SelectionError, "did you mean 'momentum'"),
    "a role that it lacks": (lambda s: s.select("*").role("step_size").scale_(0.5), MissingSlot, "keeps none"),
    "a factor that is NaN": (lambda s: s.select("*").momentum.scale_(float("nan")), EditError, "not finite"),
    "a factor that is none": (lambda s: s.select("*").momentum.scale_("half"), EditError, "not a number"),
    "a negative second moment": (lambda s: s.select("*").second_moment.scale_(-1), EditError, "cannot become negative"),
    "a second moment set negative": (lambda s: s["0.bias"].second_moment.set_(-1.0), EditRefused, "0.bias/exp_avg_sq"),
    "NaN from a callable": (lambda s: s["0.bias"].momentum.set_(lambda old: old / 0), EditRefused, "holds"),
    "a mask of another length": (lambda s: s["0.weight"].rows([True]).reset_(), EditError, "6 values"),
    "a row that is not there": (lambda s: s["0.weight"].momentum.rows([6]).zero_(), EditError, "no row 6"),
    "rows that are none": (lambda s: s["0.weight"].momentum.rows("first").zero_(), EditError, "no rows of"),
    "rows of a number": (lambda s: s["0.weight"].step.rows([0]).set_(1), EditError, "no rows"),
    "a tensor of another shape": (lambda s: s["0.bias"].momentum.set_(torch.ones(5)), EditError, "another shape"),
    "complex numbers": (lambda s: s["0.bias"].momentum.set_(torch.ones(6) * 1j), EditError, "real numbers"),
    "no value at all": (lambda s: s["0.bias"].momentum.set_(object()), EditError, "cannot be set"),
    "a limit that is negative": (lambda s: s.select("*").momentum.clip_norm_(-1), EditError, "not negative"),
    "an empty range": (lambda s: s.select("*").momentum.clamp_(1, -1), EditError, "min above its max"),
    "no range": (lambda s: s.select("*").momentum.clamp_(), EditError, "neither min nor max"),
    "a weight above one": (lambda s: s.select("*").momentum.lerp_(s, 1.5), EditError, "between 0 and 1"),
    "no state": (lambda s: s.select("*").momentum.lerp_({}, 0.5), EditError, "no state to move towards"),
    "a step scaled": (lambda s: s.select("*").step.scale_(0.5), EditError, "it counts"),
    "a step that is negative": (lambda s: s.select("*").step.set_(-1), EditRefused, "step"),
    "no slot named": (lambda s: s.select("*").zero_(), EditError, "momentum.zero_"),
    "something unknown kept": (lambda s: s.select("*").reset_(keep="steps"), EditError, "did you mean 'step'"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_told_and_changes_nothing(adam, what):
    """Each mistake has an error of its own that names what and where; every bit of the state stays."""
    model, optimizer, state = adam
    before = everything(model, optimizer)
    do, error, message = BAD[what]
    with pytest.raises(error, match=message):
        do(state)
    assert everything(model, optimizer) == before
    assert len(state.journal) == 0


def test_a_replaced_parameter_is_told(adam):
    """A parameter replaced behind the optimizer's back is in no optimizer, and the error says so."""
    model, _, state = adam
    model[0].weight = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(NoSuchParameter, match="in no optimizer"):
        state["0.weight"].reset_()
    with pytest.raises(NoSuchParameter, match="in no optimizer"):
        state.select("0.weight").momentum.scale_(0.5)


def test_a_selection_made_before_the_replacement_is_told(adam):
    """The same for a selection that was made when all was well."""
    model, _, state = adam
    chosen = state.select("0.weight")
    model[0].weight = nn.Parameter(torch.zeros(6, 4))
    with pytest.raises(NoSuchParameter, match="in no optimizer"):
        chosen.momentum.scale_(0.5)


@pytest.mark.parametrize("register", ["register_step_pre_hook", "register_step_post_hook"])
def test_an_edit_inside_a_step_is_refused(adam, register):
    """A hook cannot edit; after the step, even one that raised, everybody can."""
    model, optimizer, state = adam
    getattr(optimizer, register)(lambda *_: state.select("*").momentum.scale_(0.5))
    with pytest.raises(EditError, match="in the middle of a step"):
        train(model, optimizer, 1)
    state.select("*").momentum.scale_(0.5)


def test_an_edit_inside_a_closure_is_refused():
    """A closure runs inside the step; an exception in it leaves no flag behind."""
    model, optimizer = trained("LBFGS")
    state = optstate.attach(optimizer, model)
    with pytest.raises(EditError, match="in the middle of a step"):
        optimizer.step(lambda: state.select("*").reset_())
    state.select("*").reset_()


def test_a_slot_replaced_in_the_block_is_told(adam):
    """A program that puts another tensor into the state during an edit does not get away with it."""
    _, optimizer, state = adam
    parameter = optimizer.param_groups[0]["params"][0]

    def do():
        with state.edit() as edit:
            edit["0.weight"].momentum.scale_(0.5)
            optimizer.state[parameter]["exp_avg"] = torch.zeros(6, 4)

    with pytest.raises(EditRefused, match="was replaced"):
        do()


def test_a_state_from_a_file_says_how_to_edit_it(adam, tmp_path):
    """A file is edited by writing a new one."""
    model, optimizer, _ = adam
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    with pytest.raises(EditError, match="optstate.edit"):
        optstate.open(tmp_path / "a").state.edit("x")
