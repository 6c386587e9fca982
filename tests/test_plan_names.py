"""Names of a plan: renamed by rules or found by content, chosen or left alone, missing or unexpected."""

from __future__ import annotations

import io
from collections import Counter

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import PolicyError, RestoreRefused
from optstate.resume.decisions import Fate
from optstate.resume.fates import both
from optstate.resume.pairing import pair
from optstate.resume.policy import Policy
from optstate.resume.renaming import renamed, suggested
from tests.programs import step

plan, restore = optstate.plan, optstate.restore


class Net(nn.Module):
    """Modules under the names that are given; of one seed, one set of weights."""

    def __init__(self, seed=0, head=2, **parts):
        super().__init__()
        torch.manual_seed(seed)
        for name, layers in parts.items():
            self.add_module(name, nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers))))
        self.head = nn.Linear(4, head)


def saved(tmp_path, model, optimizer=None, name="ck"):
    """A checkpoint of a model whose optimizer has stepped three times, and the optimizer."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    step(optimizer, 3)
    return optstate.save(tmp_path / name, model=model, optimizer=optimizer, step=3), optimizer


def adamw(model, lr=1e-2):
    return torch.optim.AdamW(model.parameters(), lr=lr)


def decisions(found):
    """How many weights, and how many slots, have which decision."""
    weights = Counter(item.decision for item in found.weights)
    slots = Counter(item.decision for item in found.slots)
    return weights, slots


def bits(*things):
    """Everything that a restore could change, as bytes."""
    buffer = io.BytesIO()
    torch.save([thing.state_dict() for thing in things], buffer)
    return buffer.getvalue()


def same_state(mine, theirs, names):
    """Whether slots are bit for bit those of the other names: live name → name there."""
    return all(
        mine[name].slots.keys() == theirs[other].slots.keys()
        and all(torch.equal(slot.tensor, theirs[other][key].tensor) for key, slot in mine[name].slots.items())
        for name, other in names.items()
    )


# --- rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "name", "new"),
    [
        ({"a.weight": "b.weight"}, "a.weight", "b.weight"),
        ({"a.": "b."}, "a.0.weight", "b.0.weight"),
        ({"a.": ""}, "a.0.weight", "0.weight"),
        ({"": "model."}, "0.weight", "model.0.weight"),
        ({"blocks.*.attn.*": "layers.*.attention.*"}, "blocks.3.attn.q.weight", "layers.3.attention.q.weight"),
        ({"re:h\\.(\\d+)\\.(.*)": "layers.\\1.\\2"}, "h.12.mlp.bias", "layers.12.mlp.bias"),
    ],
)
def test_each_kind_of_rule(rules, name, new):
    """A name, a prefix, a glob and a regular expression rename as the policy's page says, and leave other names alone."""
    assert {
        key: value.name for key, value in renamed(rules, [name, "other"] if "" not in rules else [name]).items()
    } == {name: new}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"encdoer.": "backbone."}, r"'encdoer\.' means no saved name(.|\n)*did you mean 'encoder\.'"),
        ({"encoder.": "a.", "encoder.0.*": "b.*"}, r"two rules make different names of encoder\.0\.(weight|bias)"),
        ({"encoder.": "backbone"}, "the prefix 'encoder.' becomes 'backbone', which is none"),
        ({"re:encoder(.*)": "\\2"}, "no regular expression"),
        ({"re:encoder(": "x"}, "no regular expression"),
    ],
)
def test_rules_that_mean_nothing_or_clash(tmp_path, rules, message):
    """A rule is never skipped in silence: the error names it, and what was meant."""
    model = Net(encoder=2)
    path, optimizer = saved(tmp_path, model)
    before = bits(model, optimizer)
    with pytest.raises(PolicyError, match=message):
        plan(path, model=model, optimizer=optimizer, policy=Policy(rename=rules))
    assert bits(model, optimizer) == before


def test_two_saved_names_that_become_one(tmp_path):
    """Neither of them is dropped: the error names both."""
    path, _ = saved(tmp_path, Net(encoder=1, other=1))
    model = Net(seed=1, encoder=1)
    with pytest.raises(
        PolicyError, match=r"two saved names become encoder.0.weight(.|\n)*encoder.0.weight and other.0.weight"
    ):
        plan(path, model=model, optimizer=adamw(model), policy=Policy(rename={"other.": "encoder."}))


def test_names_that_change_places(tmp_path):
    """Rules apply to saved names at once, so two names can be swapped."""
    source = Net(a=1, b=1)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, a=1, b=1)
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(rename={"a.": "b.", "b.": "a."}))
    assert found.exact
    assert decisions(found) == ({"renamed": 4, "exact": 2}, {"renamed": 12, "exact": 6})
    assert torch.equal(model.a[0].weight, source.b[0].weight)
    live, old = optstate.attach(fresh, model), optstate.attach(optimizer, source)
    assert same_state(live, old, {"a.0.weight": "b.0.weight", "b.0.bias": "a.0.bias", "head.weight": "head.weight"})


@pytest.mark.parametrize(
    "rules", [{"encoder.": "backbone."}, {"encoder.*": "backbone.*"}, {"re:encoder\\.(.*)": "backbone.\\1"}]
)
def test_a_renamed_module_restores_bit_for_bit(tmp_path, rules):
    """Weights and slots follow the rule, nothing is lost, and the plan says by which rule."""
    source = Net(encoder=3)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, backbone=3)
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(rename=rules))
    assert found.exact
    assert decisions(found) == ({"renamed": 6, "exact": 2}, {"renamed": 18, "exact": 6})
    (rule, new), *_ = rules.items()
    assert {item.reason for item in found.slots if item.decision == "renamed"} == {f"renamed by {rule!r} → {new!r}"}
    assert {item.source for item in found.slots if item.parameter == "backbone.2.bias"} == {"encoder.2.bias"}
    names = {name.replace("encoder", "backbone"): name for name in optstate.attach(optimizer, source)}
    assert same_state(optstate.attach(fresh, model), optstate.attach(optimizer, source), names)


def test_a_fault_suggests_the_rule(tmp_path):
    """Whoever renamed a module reads the rule that puts it right."""
    path, _ = saved(tmp_path, Net(encoder=3))
    model = Net(seed=1, backbone=3)
    found = plan(path, model=model, optimizer=adamw(model))
    assert [fault for fault in found.faults if 'rename={"encoder.": "backbone."} would name 6 of them' in fault]
    assert suggested(["new.weight"], ["old.weight"]) == ""  # one name is no pattern
    assert suggested(["0.weight", "0.bias"], ["module.0.weight", "module.0.bias"]).startswith(
        '; rename={"module.": ""}'
    )


def test_rules_reach_aliases(tmp_path):
    """A tied weight is renamed by whichever of its names the rule means."""
    source = Net(encoder=1)
    source.tied = nn.Linear(4, 4)
    source.tied.weight = source.encoder[0].weight
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, encoder=1)
    model.proj = nn.Linear(4, 4)
    model.proj.weight = model.encoder[0].weight
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(rename={"tied.": "proj."}))
    assert found.exact
    assert torch.equal(model.proj.weight, source.encoder[0].weight)


# --- content -------------------------------------------------------------------------------------------------


def moved(source, model, names):
    """Give a model the weights of another, which it has under other names."""
    with torch.no_grad():
        theirs = source.state_dict()
        for name, tensor in model.state_dict().items():
            tensor.copy_(theirs[names(name)])


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_content_finds_renames(tmp_path, kind):
    """Weights that a program loaded under new names lead their momentum there; the reason says from where."""
    source = Net(encoder=3)
    path, optimizer = saved(tmp_path, source)
    if kind == "torch":
        path = tmp_path / "ck.pt"
        named = optstate.named_state_dict(optimizer, source)
        torch.save({"model": source.state_dict(), "optimizer": named}, path)
    model = Net(seed=1, backbone=3)
    moved(source, model, lambda name: name.replace("backbone", "encoder"))
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh)
    assert found.exact
    assert decisions(found)[1] == {"renamed": 18, "exact": 6}
    assert "it holds what was saved as encoder.1.weight" in {item.reason for item in found.slots}
    names = {name.replace("encoder", "backbone"): name for name in optstate.attach(optimizer, source)}
    assert same_state(optstate.attach(fresh, model), optstate.attach(optimizer, source), names)


def test_content_must_be_alone_and_tell_something(tmp_path):
    """Equal and constant weights are no evidence: they stay missing, and are named."""
    source = Net(a=1, b=1, c=1, d=1)
    step(adamw(source), 3)
    with torch.no_grad():
        source.b[0].weight.copy_(source.a[0].weight)
        source.c[0].weight.fill_(0.5)
        for part in (source.a, source.b, source.c):
            part[0].bias.zero_()
    path = optstate.save(tmp_path / "ck", model=source)
    model = Net(seed=1, x=1, y=1, z=1, u=1)
    names = {"x": "a", "y": "b", "z": "c", "u": "d", "h": "h"}
    moved(source, model, lambda name: names[name[0]] + name[1:])
    found = plan(path, model=model)
    assert {item.name for item in found.weights if item.decision == "renamed"} == {"u.0.weight", "u.0.bias"}
    assert found.faults[0].startswith(
        "6 tensors of the model that the checkpoint lacks: x.0.weight, x.0.bias, y.0.weight, y.0.bias, z.0.weight"
    )


def test_one_bit_makes_another_weight(tmp_path):
    """A fingerprint only finds; every byte is compared before a rename is believed."""
    source = nn.ModuleDict({"old": nn.Linear(64, 64)})
    path, _ = saved(tmp_path, source)
    model = nn.ModuleDict({"new": nn.Linear(64, 64)})
    model["new"].load_state_dict(source["old"].state_dict())
    assert plan(path, model=model, optimizer=adamw(model)).faults == []
    with torch.no_grad():
        raw = model["new"].weight.view(-1).view(torch.int32)
        raw[7] ^= 1  # not one of the values that the fingerprint holds
    faults = plan(path, model=model, optimizer=adamw(model)).faults
    assert any("new.weight" in fault for fault in faults)
    assert not any("new.bias" in fault for fault in faults)


def test_damage_is_no_evidence(tmp_path):
    """A saved weight whose bytes changed is believed to be nobody's twin: the live one is missing, by name."""
    source = nn.ModuleDict({"old": nn.Linear(64, 64)})
    path, _ = saved(tmp_path, source)
    model = nn.ModuleDict({"new": nn.Linear(64, 64)})
    model["new"].load_state_dict(source["old"].state_dict())
    file = path / "weights.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-64 * 64 * 2] ^= 1
    file.write_bytes(raw)
    faults = plan(path, model=model, optimizer=adamw(model)).faults
    assert any("1 tensor of the model that the checkpoint lacks: new.weight" in fault for fault in faults)


def test_nothing_is_read_when_all_names_match(tmp_path):
    """Planning opens headers only: with every tensor file gone empty, a plan is still made."""
    source = Net(encoder=2)
    path, optimizer = saved(tmp_path, source)
    opened = optstate.open(path)
    for file in path.glob("*.safetensors"):
        file.write_bytes(b"\0" * file.stat().st_size)
    assert plan(opened, model=source, optimizer=optimizer).exact


def test_a_rule_is_stronger_than_content(tmp_path):
    """What a rule renames is not looked for elsewhere."""
    source = Net(encoder=1)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, backbone=1)
    moved(source, model, lambda name: name.replace("backbone", "encoder"))
    found = plan(path, model=model, optimizer=adamw(model), policy=Policy(rename={"encoder.": "elsewhere."}))
    assert any("backbone.0.weight" in fault for fault in found.faults)


# --- weights that are there -----------------------------------------------------------------------------------


def test_other_content_at_an_equal_name_is_normal(tmp_path):
    """A restore brings the weights: what was there before does not matter."""
    path, _ = saved(tmp_path, Net(encoder=1))
    model = Net(seed=1, encoder=1)
    assert plan(path, model=model, optimizer=adamw(model)).exact


def test_loaded_weights_are_checked_and_not_written(tmp_path):
    """With weights="loaded" momentum comes back only to the weights that it belongs to."""
    source = Net(encoder=1)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, encoder=1)
    policy = Policy(weights="loaded")
    with pytest.raises(
        RestoreRefused, match=r'4 weights are not those of the checkpoint(.|\n)*weights="loaded": encoder.0'
    ):
        restore(path, model=model, optimizer=adamw(model), policy=policy)
    model.load_state_dict(source.state_dict())
    versions = [parameter._version for parameter in model.parameters()]
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh, policy=policy)
    assert found.exact
    assert {item.reason for item in found.weights} == {"there already"}
    assert versions == [parameter._version for parameter in model.parameters()]
    assert same_state(
        optstate.attach(fresh, model),
        optstate.attach(optimizer, source),
        {name: name for name, _ in model.named_parameters()},
    )
    with torch.no_grad():
        model.encoder[0].weight.view(-1).view(torch.int32)[3] ^= 1
    found = plan(path, model=model, optimizer=adamw(model), policy=policy)
    (fault,) = found.faults
    assert fault.startswith("1 weight is not that of the checkpoint")
    assert fault.endswith("encoder.0.weight")


def test_weights_can_be_left(tmp_path):
    """weights="leave" restores the slots and touches no weight, whatever it is."""
    source = Net(encoder=1)
    path, optimizer = saved(tmp_path, source)
    model = Net(seed=1, encoder=1)
    before = bits(model)
    fresh = adamw(model)
    found = restore(path, model=model, optimizer=fresh, policy=Policy(weights="leave"))
    assert bits(model) == before
    assert not found.exact
    assert decisions(found) == ({"left out": 4}, {"exact": 12})
    assert found.left_out == ["weights (4 tensors)"]
    assert torch.equal(fresh.state[model.head.weight]["exp_avg"], optimizer.state[source.head.weight]["exp_avg"])


def test_left_weights_still_find_renames(tmp_path):
    """A fine-tune that loaded its weights by itself, under new names, gets the momentum for them."""
    source = Net(encoder=2)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, backbone=2)
    moved(source, model, lambda name: name.replace("backbone", "encoder"))
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(weights="leave"))
    assert decisions(found)[1] == {"renamed": 12, "exact": 6}


# --- choice --------------------------------------------------------------------------------------------------


def test_excluded_parameters_stay_as_they_are(tmp_path):
    """What include does not mean or exclude does keeps its bits, is listed, and is not unexpected."""
    source = Net(encoder=2)
    path, _ = saved(tmp_path, source)
    model = Net(seed=1, encoder=2)
    fresh = adamw(model)
    step(fresh, 1)
    head, entry = (
        model.head.weight.clone(),
        {key: value.clone() for key, value in fresh.state[model.head.weight].items()},
    )
    found = restore(
        path, model=model, optimizer=fresh, policy=Policy(include=("encoder.", "head.*"), exclude=("head.*",))
    )
    assert not found.exact
    assert decisions(found) == ({"exact": 4, "left out": 2}, {"exact": 12, "left out": 2})
    assert torch.equal(model.head.weight, head)
    assert all(torch.equal(value, entry[key]) for key, value in fresh.state[model.head.weight].items())
    assert torch.equal(model.encoder[1].weight, source.encoder[1].weight)


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_choice_that_means_nothing(tmp_path, field):
    """A typo in a pattern is an error with the nearest names, never an empty restore."""
    path, _ = saved(tmp_path, Net(encoder=1))
    model = Net(encoder=1)
    with pytest.raises(PolicyError, match=rf"{field}: 'encodr\.\*' means no parameter(.|\n)*did you mean 'encoder"):
        plan(path, model=model, optimizer=adamw(model), policy=Policy(**{field: ("encodr.*",)}))


def test_excluding_what_does_not_fit(tmp_path):
    """A head of another size is no fault once it is excluded."""
    path, _ = saved(tmp_path, Net(encoder=1))
    model = Net(seed=1, head=7, encoder=1)
    assert plan(path, model=model, optimizer=adamw(model)).faults
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(exclude=("head.",)))
    assert decisions(found) == ({"exact": 2, "left out": 2}, {"exact": 6, "left out": 2})


# --- missing, unexpected ---------------------------------------------------------------------------------------


def test_missing_starts_fresh_when_allowed(tmp_path):
    """A parameter of which nothing was saved keeps its weight and has no entry afterwards; each is listed."""
    path, _ = saved(tmp_path, Net(encoder=1))
    model = Net(seed=1, encoder=1, added=1)
    fresh = adamw(model)
    step(fresh, 1)
    assert len(plan(path, model=model, optimizer=fresh).faults) == 2
    before = model.added[0].weight.clone()
    found = restore(path, model=model, optimizer=fresh, policy=Policy(missing="fresh"))
    assert decisions(found) == ({"exact": 4, "fresh": 2}, {"exact": 12, "fresh": 2})
    assert not found.exact
    assert torch.equal(model.added[0].weight, before)
    assert model.added[0].weight not in fresh.state


def test_unexpected_is_left_out_when_allowed(tmp_path):
    """What nobody takes is listed by name."""
    path, _ = saved(tmp_path, Net(encoder=1, gone=1))
    model = Net(seed=1, encoder=1)
    assert len(plan(path, model=model, optimizer=adamw(model)).faults) == 2
    found = restore(path, model=model, optimizer=adamw(model), policy=Policy(unexpected="leave"))
    assert found.left_out == [
        "weight gone.0.weight", "weight gone.0.bias", "state of gone.0.weight", "state of gone.0.bias",
    ]  # fmt: skip
    assert not found.exact
    assert decisions(found) == ({"exact": 4}, {"exact": 12})


def test_a_file_without_state_needs_a_policy_that_starts_fresh(tmp_path):
    """Weights alone resume only when it was said that every momentum may start from nothing, with a warning."""
    source = Net(encoder=1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = Net(seed=1, encoder=1)
    assert plan(tmp_path / "weights.pt", model=model, optimizer=adamw(model)).faults
    found = restore(tmp_path / "weights.pt", model=model, optimizer=adamw(model), policy=Policy(missing="fresh"))
    assert any("no optimizer state at all" in warning for warning in found.warnings)
    assert decisions(found) == ({"exact": 4}, {"fresh": 4})
    found = restore(tmp_path / "weights.pt", model=model, optimizer=adamw(model), policy=Policy.weights_only())
    assert decisions(found) == ({"exact": 4}, {"fresh": 4})


# --- the parts -----------------------------------------------------------------------------------------------


def test_pairing_by_any_name():
    """First names differ with the order of modules; any shared name leads from one side to the other."""
    found = pair({"a": ("b",), "c": (), "e": ()}, {"b": ("a",), "d": ()})
    assert (found.pairs, found.lost, found.strangers) == ({"a": "b"}, ["c", "e"], ["d"])
    found = pair({"a": ("b",)}, {"a": (), "b": ()})
    assert found.tied == {"a": ["a", "b"]}
    found = pair({"a": (), "b": ()}, {"a": ("b",)})
    assert found.untied == {"a": ["a", "b"]}


def test_the_farthest_from_exact_is_named():
    """Where several things are done to a slot, the reason tells all of them."""
    cast, scaled = Fate("cast", "float32 → bfloat16"), Fate("scaled", "× 0.5")
    assert both(Fate("exact", "as saved"), cast) == cast
    assert both(cast, scaled) == Fate("scaled", "float32 → bfloat16; × 0.5")
    assert both(Fate("converted", "A → B"), scaled).decision == "converted"
