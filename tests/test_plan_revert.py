"""Reverting a plan: everything as it was before it was applied, bit for bit, or named."""

from __future__ import annotations

import copy
from threading import Lock

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import RestoreError, RestoreFailed, StalePlan
from tests.test_restore import Counter, mlp

CLASSES = {
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr=0.1),
    "AdamW": lambda params: torch.optim.AdamW(params, lr=1e-2),
    "AdamW, fused, rate in a tensor": lambda params: torch.optim.AdamW(params, lr=torch.tensor(1e-2), fused=True),
    "LBFGS": lambda params: torch.optim.LBFGS(params, lr=0.1, max_iter=3),
    "NAdam": lambda params: torch.optim.NAdam(params, lr=1e-2),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
}


def step(model, optimizer, start=0, steps=3):
    """Some steps; through a closure, which LBFGS needs."""
    for number in range(start, start + steps):
        generator = torch.Generator().manual_seed(number)
        batch = torch.randn(5, 4, generator=generator)

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = model(batch).pow(2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)


def looks(model, optimizer, *objects):
    """All that a restore may change: bits, identities of tensors and dicts, keys and their order."""
    return {
        "weights": [(id(each), each.dtype, each.detach().clone()) for each in (*model.parameters(), *model.buffers())],
        "state": id(optimizer.state),
        "entries": [
            (id(parameter), id(entry), [(key, id(value), copy.deepcopy(value)) for key, value in entry.items()])
            for parameter, entry in optimizer.state.items()
        ],
        "groups": [
            (
                id(group),
                list(map(id, group["params"])),
                [(key, copy.deepcopy(group[key])) for key in group if key != "params"],
            )
            for group in optimizer.param_groups
        ],
        "objects": [copy.deepcopy(each.state_dict()) for each in objects],
    }


def same(one, other):
    """Whether two pictures are the same to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def checkpoint(folder, make, **objects):
    """A checkpoint of a run of that optimizer after three steps."""
    model = mlp()
    optimizer = make(model.parameters())
    step(model, optimizer)
    return optstate.save(folder / "ck", model=model, optimizer=optimizer, step=3, **objects)


@pytest.mark.parametrize("further", [0, 2], ids=["at once", "after two steps"])
@pytest.mark.parametrize("before", [0, 2], ids=["fresh", "stepped"])
@pytest.mark.parametrize("name", CLASSES)
def test_revert_puts_back_every_bit(tmp_path, name, before, further):
    """Weights, slots, their order and identity, hyperparameters: as they were, also after steps on the restored state."""
    path = checkpoint(tmp_path, CLASSES[name])
    model = mlp(seed=9)
    optimizer = CLASSES[name](model.parameters())
    step(model, optimizer, 10, before)
    was = looks(model, optimizer)
    plan = optstate.plan(path, model=model, optimizer=optimizer).apply()
    assert not same(was, looks(model, optimizer))
    step(model, optimizer, 20, further)
    assert plan.revert() is plan
    assert same(was, looks(model, optimizer))


def test_a_run_goes_on_as_if_nothing_had_been(tmp_path):
    """Steps after apply and revert are those of a run that never saw the checkpoint, bit for bit."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    models = [mlp(seed=9) for _ in range(2)]
    optimizers = [CLASSES["AdamW"](model.parameters()) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 10)
    plan = optstate.plan(path, model=models[0], optimizer=optimizers[0]).apply()
    step(models[0], optimizers[0], 20)
    plan.revert()
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 30)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_entries_that_a_restore_removed_come_back_in_their_place(tmp_path):
    """A checkpoint without any state removes entries; reverting puts each back where it was among the others."""
    path = optstate.save(tmp_path / "ck", model=(model := mlp()), optimizer=CLASSES["AdamW"](model.parameters()))
    optimizer = CLASSES["AdamW"](model.parameters())
    step(model, optimizer)
    was = looks(model, optimizer)
    plan = optstate.plan(path, model=model, optimizer=optimizer).apply()
    assert len(optimizer.state) == 0
    plan.revert()
    assert same(was, looks(model, optimizer))


def test_a_reverted_plan_can_be_applied_again(tmp_path):
    """Apply, look, revert, apply: each time the same."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    step(model, optimizer, 10)
    plan = optstate.plan(path, model=model, optimizer=optimizer).apply()
    restored = looks(model, optimizer)
    plan.revert().apply()
    assert same(restored["weights"], looks(model, optimizer)["weights"])
    assert [entry[2] for entry in restored["entries"]] != []
    for parameter, entry in optimizer.state.items():
        assert entry["step"] == 3.0, parameter.shape


def test_groups_that_overrides_split_are_one_again(tmp_path):
    """A plan that regroups gives the groups back as they were, the same dicts in the same order."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    was = looks(model, optimizer, scheduler)
    policy = optstate.Policy(overrides={"*.bias": {"weight_decay": 0.0}})
    plan = optstate.plan(path, model=model, optimizer=optimizer, policy=policy).apply()
    assert len(optimizer.param_groups) == 2
    plan.revert()
    assert same(was, looks(model, optimizer, scheduler))


def test_objects_come_back_too(tmp_path):
    """A scheduler and any other object that can be copied are as before."""
    model = mlp()
    optimizer = CLASSES["AdamW"](model.parameters())
    scheduler, counter = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5), Counter()
    step(model, optimizer)
    scheduler.step()
    path = optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler, counter=counter)
    step(model, optimizer)
    scheduler.step()
    counter.value = 7
    was = looks(model, optimizer, scheduler, counter)
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler, counter=counter).apply()
    assert counter.value == 1
    scheduler.step()
    plan.revert()
    assert counter.value == 7
    assert same(was, looks(model, optimizer, scheduler, counter))


class OneWay(Counter):
    """An object whose state cannot be copied, so that nobody can put it back."""

    def state_dict(self):
        return {"value": self.value, "lock": Lock()} if self.value != 1 else {"value": 1}


def test_what_cannot_be_put_back_was_named_and_is_named_again(tmp_path):
    """All else is reverted; the error names the object that the plan had named."""
    path = checkpoint(tmp_path, CLASSES["AdamW"], thing=OneWay())
    model, thing = mlp(seed=9), OneWay()
    thing.value = 5
    optimizer = CLASSES["AdamW"](model.parameters())
    was = looks(model, optimizer)
    plan = optstate.plan(path, model=model, optimizer=optimizer, thing=thing)
    assert "thing cannot be put back" in str(plan)
    plan.apply()
    with pytest.raises(RestoreFailed, match=r"not everything could be put back(.|\n)*thing"):
        plan.revert()
    assert same(was, looks(model, optimizer))
    assert thing.value == 1


def test_revert_before_apply_and_twice(tmp_path):
    """There is nothing to revert before a plan was applied, and nothing after it was reverted."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    plan = optstate.plan(path, model=model, optimizer=optimizer)
    with pytest.raises(RestoreError, match="nothing to revert"):
        plan.revert()
    plan.apply()
    with pytest.raises(StalePlan, match="applied already"):
        plan.apply()
    plan.revert()
    was = looks(model, optimizer)
    with pytest.raises(RestoreError, match="nothing to revert"):
        plan.revert()
    assert same(was, looks(model, optimizer))


def test_restore_keeps_nothing_to_revert_to(tmp_path):
    """`restore` and `apply(keep=False)` let go of what was there, and say so when it is asked for."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    plan = optstate.restore(path, model=model, optimizer=optimizer)
    with pytest.raises(RestoreError, match=r"nothing to revert to(.|\n)*apply\(\) keeps it"):
        plan.revert()


def rebuilt_groups(model, optimizer):
    optimizer.load_state_dict(optimizer.state_dict())


def grown(model, optimizer):
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


def replaced(model, optimizer):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


@pytest.mark.parametrize(
    ("change", "message"),
    [(rebuilt_groups, "the param groups are others"), (grown, "the param groups"), (replaced, "0.weight is another")],
)
def test_revert_after_the_program_was_rebuilt(tmp_path, change, message):
    """What was there has no place to go to any more: an error that says why, and nothing is changed."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    plan = optstate.plan(path, model=model, optimizer=optimizer).apply()
    change(model, optimizer)
    was = looks(model, optimizer)
    with pytest.raises(StalePlan, match=f"cannot be reverted: {message}"):
        plan.revert()
    assert same(was, looks(model, optimizer))


def test_weights_of_another_type_are_not_written_to(tmp_path):
    """A model that was cast since cannot hold the old bits: that weight is named, not rounded."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    plan = optstate.plan(path, model=model, optimizer=CLASSES["AdamW"](model.parameters())).apply()
    model.half()
    with pytest.raises(RestoreFailed, match=r"0\.weight \(RuntimeError: it is torch\.float16"):
        plan.revert()


def test_the_journal_tells_of_apply_and_revert(tmp_path):
    """The restore, and edits on what it made, stay as undone; edits from before it are as they were."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    step(model, optimizer, 10)
    state = optstate.attach(optimizer, model)
    state.select("*").momentum.scale_(0.5)
    plan = optstate.plan(path, model=model, optimizer=optimizer).apply()
    assert [(each.verb, each.undone) for each in state.journal] == [("scale_", True), ("restore", False)]
    state.select("*").momentum.scale_(0.25)
    plan.revert()
    assert [(each.verb, each.undone) for each in state.journal] == [
        ("scale_", False),
        ("restore", True),
        ("scale_", True),
        ("revert", False),
    ]


def test_what_is_kept_is_no_more_than_what_was_staged(tmp_path):
    """The old values lie in the memory of the new ones: reverting costs no second copy of either."""
    path = checkpoint(tmp_path, CLASSES["AdamW"])
    model = mlp(seed=9)
    optimizer = CLASSES["AdamW"](model.parameters())
    step(model, optimizer, 10)
    plan = optstate.plan(path, model=model, optimizer=optimizer).apply()
    kept = [
        cell.cell_contents
        for _, put_back in plan.applied.undo.steps
        for cell in put_back.__closure__ or ()
        if isinstance(cell.cell_contents, torch.Tensor)
    ]
    live = {
        id(each)
        for each in (*model.parameters(), *(slot for entry in optimizer.state.values() for slot in entry.values()))
    }
    restored = sum(tensor.nbytes for tensor in kept if id(tensor) in live)
    assert restored == sum(tensor.nbytes for tensor in kept if id(tensor) not in live) > 0
