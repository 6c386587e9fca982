"""A model that changed since it was saved: each change with its counts of exact, changed and fresh slots."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import RestoreRefused
from optstate.resume.policy import Policy
from tests.programs import step
from tests.test_plan_names import Net, adamw, decisions, plan, restore, same_state, saved


class Language(nn.Module):
    """A small language model: embedding, an encoder layer, norm, and a head that may be tied to the embedding."""

    def __init__(self, seed=0, vocabulary=11, width=8, tied=True):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(vocabulary, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.norm(self.layer(self.embed(tokens))))


def train(model, optimizer, steps=3):
    """Steps on tokens drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = torch.randint(0, 11, (4, 6), generator=generator)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens).transpose(1, 2), tokens).backward()
        optimizer.step()
    optimizer.zero_grad()


def language(tmp_path, **arguments):
    """A trained one, its optimizer and its checkpoint."""
    model = Language(**arguments)
    optimizer = adamw(model)
    train(model, optimizer)
    return model, optimizer, optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=3)


def test_added_parameters(tmp_path):
    """A new layer starts fresh beside the old ones, and the next step moves all."""
    source = Net(encoder=2)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, encoder=3)
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(missing="fresh"))
    assert decisions(found) == ({"exact": 6, "fresh": 2}, {"exact": 18, "fresh": 2})
    step(fresh, 1)
    assert {int(entry["step"]) for entry in fresh.state.values()} == {4, 1}


def test_removed_parameters(tmp_path):
    """What is gone is left out by name, the rest is exact."""
    path, _ = saved(tmp_path, Net(encoder=3))
    model = Net(seed=1, encoder=2)
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(unexpected="leave"))
    assert decisions(found) == ({"exact": 6}, {"exact": 18})
    assert len(found.left_out) == 4


def test_frozen_parameters(tmp_path):
    """Frozen but still in the optimizer: all exact. Taken out of it: their state is left out."""
    source = Net(encoder=1)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, encoder=1)
    for parameter in model.encoder.parameters():
        parameter.requires_grad = False
    assert decisions(restore(path, model=model, optimizer=adamw(model)))[1] == {"exact": 12}
    alone = torch.optim.AdamW(model.head.parameters(), lr=1e-2)
    found = restore(path, model=model, optimizer=alone, policy=Policy(unexpected="leave"))
    assert decisions(found) == ({"exact": 4}, {"exact": 6})
    assert found.left_out == ["state of encoder.0.weight", "state of encoder.0.bias"]


def test_unfrozen_parameters(tmp_path):
    """A parameter that had no state yet: in the optimizer before, it is exactly as it was; new in it, it starts fresh."""
    source = Net(encoder=1)
    for parameter in source.encoder.parameters():
        parameter.requires_grad = False
    optimizer = adamw(source)
    source.head(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    path = optstate.save(tmp_path / "ck", model=source, optimizer=optimizer)
    model = Net(seed=1, encoder=1)
    found = restore(path, model=model, optimizer=adamw(model))
    assert found.exact
    assert decisions(found)[1] == {"exact": 6, "fresh": 2}
    alone = torch.optim.AdamW([each for each in source.parameters() if each.requires_grad], lr=1e-2)
    path, _ = saved(tmp_path, source, alone, "stepped")
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(missing="fresh"))
    assert not found.exact
    assert decisions(found)[1] == {"exact": 6, "fresh": 2}


def test_renamed_parameters(tmp_path):
    """One rule for a module, all slots with it."""
    path, _ = saved(tmp_path, Net(encoder=2))
    model = Net(seed=1, backbone=2)
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(rename={"encoder.": "backbone."}))
    assert decisions(found) == ({"renamed": 4, "exact": 2}, {"renamed": 12, "exact": 6})


def test_untied(tmp_path):
    """An embedding that was tied and is not: strictly a fault; allowed, both get the same weight and the same entry."""
    source, optimizer, path = language(tmp_path)
    model = Language(seed=1, tied=False)
    fresh = adamw(model)
    faults = plan(path, model=model, optimizer=fresh).faults
    assert any("are one tensor in the checkpoint (embed.weight) and two live" in fault for fault in faults)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(missing="fresh"))
    assert decisions(found)[1] == {"exact": 45, "renamed": 3}
    assert "a copy: one tensor in the checkpoint, embed.weight" in {item.reason for item in found.slots}
    old = optimizer.state[source.embed.weight]
    for weight in (model.embed.weight, model.head.weight):
        assert torch.equal(weight, source.embed.weight)
        assert all(torch.equal(fresh.state[weight][key], value) for key, value in old.items())
    mine, theirs = (fresh.state[each]["exp_avg"] for each in (model.embed.weight, model.head.weight))
    assert mine.data_ptr() != theirs.data_ptr()
    train(model, fresh, 1)


def test_tied(tmp_path):
    """Two weights that became one: equal bits are fine, else it is a fault, and a policy takes the first."""
    source, optimizer, path = language(tmp_path, tied=False)
    model = Language(seed=1)
    faults = plan(path, model=model, optimizer=adamw(model)).faults
    assert any("are one tensor live and differ in the checkpoint" in fault for fault in faults)
    assert any("have one state live and several in the checkpoint" in fault for fault in faults)
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(unexpected="leave"))
    assert decisions(found)[1] == {"exact": 45}
    assert found.left_out == ["weight head.weight", "state of head.weight"]
    assert torch.equal(fresh.state[model.embed.weight]["exp_avg"], optimizer.state[source.embed.weight]["exp_avg"])
    with torch.no_grad():
        source.head.weight.copy_(source.embed.weight)
        for key, value in optimizer.state[source.embed.weight].items():
            optimizer.state[source.head.weight][key].copy_(value)
    path = optstate.save(tmp_path / "equal", model=source, optimizer=optimizer)
    assert restore(path, model=model, optimizer=fresh).exact


def test_padded_vocabulary_with_tied_embedding(tmp_path):
    """More tokens: old rows come back bit for bit in weight and moments, new ones start safely, and training goes on."""
    source, optimizer, path = language(tmp_path)
    model = Language(seed=1, vocabulary=16)
    live, fresh = model.embed.weight.detach().clone(), adamw(model)
    with pytest.raises(RestoreRefused, match=r"embed.weight: shape \[11, 8\] in the checkpoint, \[16, 8\] live"):
        restore(path, model=model, optimizer=fresh)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(shape="pad"))
    assert decisions(found) == ({"resized": 1, "exact": 14}, {"exact": 43, "resized": 2})
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.embed.weight[:11], source.embed.weight)
    assert torch.equal(model.embed.weight[11:], live[11:])
    entry, old = fresh.state[model.embed.weight], optimizer.state[source.embed.weight]
    assert all(torch.equal(entry[key][:11], old[key]) for key in ("exp_avg", "exp_avg_sq"))
    assert not entry["exp_avg"][11:].any()
    assert entry["exp_avg_sq"][11:].all()
    before = model.embed.weight.detach().clone()
    train(model, fresh, 1)
    assert (model.embed.weight - before).abs().max() < 1.5e-2  # lr 1e-2: no update larger than a fresh start's


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it."""

    def __init__(self, base, rank=2):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def test_adapters_added(tmp_path):
    """Adapters start fresh, and the layers that they wrap, under new names, are found by rule."""
    source = Net(encoder=2)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, encoder=2)
    for place in range(2):
        model.encoder[place] = Adapted(model.encoder[place])  # type: ignore[assignment]
    policy = Policy(rename={"encoder.*.*": "encoder.*.base.*"}, missing="fresh")
    found = restore(path, model=model, optimizer=adamw(model), policy=policy)
    assert decisions(found) == ({"renamed": 4, "exact": 2, "fresh": 4}, {"renamed": 12, "exact": 6, "fresh": 4})
    adapters = torch.optim.AdamW([each for name, each in model.named_parameters() if ".base." not in name], lr=1e-2)
    policy = Policy(rename={"encoder.*.*": "encoder.*.base.*"}, missing="fresh", unexpected="leave")
    found = restore(path, model=model, optimizer=adapters, policy=policy)
    assert decisions(found)[1] == {"exact": 6, "fresh": 4}


def test_wrappers_on_and_off(tmp_path):
    """A compiled or parallel model saves and restores as the plain one does."""
    source = Net(encoder=1)
    optimizer = adamw(source)
    step(optimizer, 3)
    wrapped = torch.compile(source, backend="eager")
    path = optstate.save(tmp_path / "wrapped", model=wrapped, optimizer=optimizer)
    model = Net(seed=1, encoder=1)
    assert restore(path, model=model, optimizer=adamw(model)).exact
    again = torch.compile(Net(seed=2, encoder=1), backend="eager")
    found = restore(path, model=again, optimizer=adamw(again))
    assert decisions(found) == ({"exact": 4}, {"exact": 12})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_prefixes_that_a_file_has(tmp_path, prefix):
    """A file written from a wrapper's own state dict restores, by a rule where the names are not seen through."""
    source = Net(encoder=1)
    optimizer = torch.optim.AdamW([(prefix + name, each) for name, each in source.named_parameters()], lr=1e-2)
    step(optimizer, 3)
    weights = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({"model": weights, "optimizer": optimizer.state_dict()}, tmp_path / "ck.pt")
    model = Net(seed=1, encoder=1)
    fresh = adamw(model)
    opened = optstate.open(tmp_path / "ck.pt")
    rename = {prefix: ""} if any(name.startswith(prefix) for name in opened.weights) else {}
    found = restore(opened, model=model, optimizer=fresh, policy=Policy(rename=rename))
    assert sum(decisions(found)[1].values()) == 12
    assert found.exact
    for mine, theirs in zip(model.parameters(), source.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert torch.equal(fresh.state[mine]["exp_avg"], optimizer.state[theirs]["exp_avg"])


def test_another_order_and_another_split(tmp_path):
    """Parameters in another order, and one group that became two: each finds its own state."""
    source = Net(encoder=2)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, encoder=2)
    parts = [{"params": [each for each in reversed(list(model.parameters())) if each.dim() == size]} for size in (1, 2)]
    fresh = torch.optim.AdamW(parts, lr=1e-2)
    found = restore(path, model=model, optimizer=fresh)
    assert found.exact
    assert decisions(found) == ({"exact": 6}, {"exact": 18})
    names = {name: name for name, _ in model.named_parameters()}
    assert same_state(optstate.attach(fresh, model), optstate.attach(optimizer, source), names)


def test_another_task(tmp_path):
    """The preset for fine-tuning: the body comes back with its momentum, the head of another size starts fresh."""
    source = Net(encoder=2)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, head=7, encoder=2)
    fresh = adamw(model, lr=1e-4)
    found = restore(path, model=model, optimizer=fresh, policy=Policy.finetune())
    assert decisions(found) == ({"exact": 4, "fresh": 2}, {"exact": 12, "fresh": 2})
    assert fresh.param_groups[0]["lr"] == 1e-4
    assert torch.equal(
        fresh.state[model.encoder[0].weight]["exp_avg"], optimizer.state[source.encoder[0].weight]["exp_avg"]
    )
    step(fresh, 1)


def test_lbfgs_in_parts(tmp_path):
    """One history over all parameters is restored whole or not at all."""
    source = Net(encoder=1)
    optimizer = torch.optim.LBFGS(source.parameters(), max_iter=2)
    path, _ = saved(tmp_path, source, optimizer)
    fresh = torch.optim.LBFGS(source.parameters(), max_iter=2)
    assert restore(path, model=source, optimizer=fresh).exact
    found = plan(path, model=source, optimizer=fresh, policy=Policy(exclude=("head.",)))
    assert any("one history over all parameters: include all of them, or none" in fault for fault in found.faults)
    found = restore(path, model=source, optimizer=fresh, policy=Policy(slots="fresh"))
    assert not fresh.state
    assert decisions(found)[1] == {"fresh": 4}
