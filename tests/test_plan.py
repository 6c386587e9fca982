"""A plan: refused when anything changed since, read in a few lines, and by programs."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import torch
from torch import nn

import optstate
from optstate.errors import RestoreRefused, StalePlan
from optstate.resume.decided import Decided
from optstate.resume.decisions import (
    Decision,
    EntryDecision,
    Fate,
    HyperparameterDecision,
    ObjectDecision,
    WeightDecision,
    missing,
)
from optstate.resume.document import document
from optstate.resume.printing import summary
from tests.test_restore import fingerprint, mlp, train

ROOT = Path(__file__).parents[1]
DECISIONS = get_args(Decision)


@pytest.fixture
def path(tmp_path):
    """A checkpoint of AdamW with a scheduler after three steps."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    train(model, optimizer)
    return optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, scheduler=scheduler, step=3)


# --- stale plans ------------------------------------------------------------------------------------------------


def program():
    model = mlp(seed=9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 1, 7)
    return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)


def a_step(model, optimizer, scheduler):
    train(model, optimizer, 1, 20)


def a_weight(model, optimizer, scheduler):
    with torch.no_grad():
        model[0].weight.add_(1)


def a_buffer_of_another_shape(model, optimizer, scheduler):
    model[2].bias.data = torch.zeros(3)


def a_slot(model, optimizer, scheduler):
    optimizer.state[model[0].bias]["exp_avg"].zero_()


def a_slot_replaced(model, optimizer, scheduler):
    entry = optimizer.state[model[0].bias]
    entry["exp_avg"] = entry["exp_avg"].clone()


def a_slot_added(model, optimizer, scheduler):
    optimizer.state[model[0].bias]["mine"] = 3


def a_number_in_a_slot(model, optimizer, scheduler):
    optimizer.state[model[0].bias]["step"] = 17


def an_entry_removed(model, optimizer, scheduler):
    del optimizer.state[model[0].bias]


def an_edit(model, optimizer, scheduler):
    optstate.attach(optimizer, model).select("*.weight").momentum.scale_(0.5)


def a_rate(model, optimizer, scheduler):
    optimizer.param_groups[0]["lr"] = 0.5


def a_key(model, optimizer, scheduler):
    optimizer.param_groups[0]["mine"] = 1


def a_load(model, optimizer, scheduler):
    optimizer.load_state_dict(optimizer.state_dict())


def a_regroup(model, optimizer, scheduler):
    optstate.attach(optimizer, model).regroup({"*.bias": {"weight_decay": 0.5}}, scheduler=scheduler)


def another_module(model, optimizer, scheduler):
    model.append(nn.Linear(2, 2))


def another_weight(model, optimizer, scheduler):
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())


def another_driver(model, optimizer, scheduler):
    scheduler.optimizer = torch.optim.AdamW(model.parameters())


CHANGES = {
    a_step: r"(0\.weight|0\.bias).* was written to, as by a step",
    a_weight: "0.weight was written to",
    a_buffer_of_another_shape: "2.bias has another memory or shape",
    a_slot: "0.bias/exp_avg was written to",
    a_slot_replaced: "0.bias/exp_avg was written to",
    a_slot_added: r"0.bias has other slots \(mine\)",
    a_number_in_a_slot: "0.bias/step was written to",
    an_entry_removed: r"0.bias has other slots \(exp_avg, exp_avg_sq, step\)",
    an_edit: "0.weight/exp_avg was written to",
    a_rate: "group 0: lr was 0.01 and is 0.5",
    a_key: "group 0: mine was added",
    a_load: "the param groups are others",
    a_regroup: "the param groups are others",
    another_module: "the model has other tensors: 3.bias, 3.weight",
    another_weight: "0.weight is another tensor",
    another_driver: "scheduler is or drives another object",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_plan_is_refused_when_anything_changed_since(path, change):
    """Whatever happens to the live side between plan and apply: the plan says what, and writes nothing."""
    model, optimizer, scheduler = program()
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    change(model, optimizer, scheduler)
    before = fingerprint(model, optimizer)
    with pytest.raises(StalePlan, match=CHANGES[change]):
        plan.apply()
    assert fingerprint(model, optimizer) == before


@pytest.mark.parametrize("flag", ["foreach", "fused"])
def test_a_step_of_every_kernel_is_seen(flag):
    """Not only the plain kernel: each of them raises the counters that a plan looks at."""
    model = mlp(seed=9)
    optimizer = torch.optim.AdamW(model.parameters(), **{flag: True})
    train(model, optimizer, 1)
    plan = optstate.plan(optstate.named_state_dict(optimizer, model), model=model, optimizer=optimizer)
    optimizer.step()
    with pytest.raises(StalePlan, match="written to, as by a step"):
        plan.apply()


def test_a_plan_that_nothing_happened_to_is_applied(path):
    """Looking, printing, gradients and random numbers are no change."""
    model, optimizer, scheduler = program()
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    str(plan), plan.table(None), plan.document(), plan._repr_html_(), optstate.attach(optimizer, model).snapshot()
    model(torch.randn(5, 4)).sum().backward()
    assert plan.apply().exact


def test_a_plan_of_tensors_without_counters(path):
    """Weights made in inference mode have none: a plan of them is made and applied all the same."""
    with torch.inference_mode():
        model = mlp(seed=9)
        plan = optstate.plan(path, model=model).apply()
    assert plan.left_out == ["optimizer state (4 parameters)", "objects scheduler"]


# --- as people read it ------------------------------------------------------------------------------------------


def test_an_exact_plan_is_a_few_lines(path):
    """Counts, what changes, and the verdict on the last line; no row for each parameter."""
    model, optimizer, scheduler = program()
    text = str(optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler))
    assert text.splitlines()[:6] == [
        f"restore {path} · step 3",
        "",
        "weights    4 exact",
        "slots      12 exact",
        "objects    scheduler",
        "",
    ]
    assert text.splitlines()[-1] == "exact: everything in the checkpoint, bit for bit"
    assert "0.weight" not in text


def layers(number, decision="renamed", why="as saved under backbone.{}.weight"):
    """A plan about so many layers, as planning makes it."""
    plan = Decided(source="old", step=None)
    for layer in range(number):
        name, fate = f"encoder.{layer}.weight", Fate(decision, why.format(layer))
        plan.weights.append(WeightDecision(name, *fate, f"backbone.{layer}.weight"))
        plan.entries.append(EntryDecision(name, fate, f"backbone.{layer}.weight", {}, dict.fromkeys(("m", "v"), fate)))
    return plan


@pytest.mark.parametrize("number", [3, 300, 30_000])
def test_names_alike_are_one_row(number):
    """A plan about 30,000 layers is as short as one about three, counts included."""
    lines = summary(layers(number)).text().splitlines()
    assert lines[2:4] == [f"weights    {number:,} renamed", f"slots      {2 * number:,} renamed"]
    assert lines[5].split() == ["PARAMETERS", "DECISION", "WHAT", "WHY"]
    assert lines[6] == f"encoder.*.weight ({number:,})  renamed   weight, m, v  as saved under backbone.*.weight"
    assert len(lines) == 9


def test_what_differs_is_not_one_row():
    """Another decision, another reason or other slots make another row; numbers that are no names stay as they are."""
    plan = layers(4)
    for layer, fate in enumerate((Fate("scaled", "× 0.5"), Fate("scaled", "× 0.25"), Fate("fresh", "not there"))):
        name = f"encoder.{layer}.bias"
        plan.entries.append(EntryDecision(name, fate, name, {}, {"m": fate}))
    rows = summary(plan).rows
    assert [row[1] for row in rows] == ["renamed", "scaled", "scaled", "fresh"]
    assert {row[3] for row in rows} == {"as saved under backbone.*.weight", "× 0.5", "× 0.25", "not there"}


def test_many_patterns_are_one_row_with_what_they_share():
    """Forty names without numbers are not forty cells: the row shows what they have in common, and how many they are."""
    plan = Decided(source="old", step=None)
    for part in range(40):
        plan.weights.append(WeightDecision(f"encoder.part{part}.norm.weight", "fresh", "not in the checkpoint"))
    assert summary(plan).rows == [["encoder.*.norm.weight (40)", "fresh", "weight", "not in the checkpoint"]]


@pytest.mark.parametrize("decision", ["cast", "scaled", "resized", "converted", "fresh", "left out"])
def test_the_last_line_counts_what_is_not_exact(decision):
    """Whatever is not exact is on the last line with its number."""
    assert summary(layers(2, decision)).text().splitlines()[-1] == f"not exact: 6 {decision}"


def test_a_parameter_without_state_is_exact_when_there_was_none():
    """Nothing saved, nothing restored is exact; state that the policy starts anew is not."""
    plan = Decided(source="old", step=None)
    plan.entries.append(EntryDecision("a", Fate("fresh", "it was frozen"), "a"))
    assert plan.exact
    assert summary(plan).text().splitlines()[-1] == "exact: everything in the checkpoint, bit for bit"
    plan.entries.append(EntryDecision("b", Fate("fresh", "not in the checkpoint")))
    assert not plan.exact
    assert summary(plan).text().splitlines()[-1].startswith("not exact: ")


def rate(group, live, saved, value, winner):
    return HyperparameterDecision("", group, "lr", live, saved, value, winner, same=live == saved)


def test_groups_of_which_the_same_is_said_are_one_line():
    """Three hundred groups with one change are one line, and a group of its own is another."""
    plan = Decided(source="old", step=None)
    plan.hyperparameters += [rate(group, 0.1, 0.2, 0.2, "saved") for group in range(300)]
    assert summary(plan).title[2:] == ["all 300 groups lr 0.1 → 0.2 (saved)"]
    plan.hyperparameters += [rate(300, 0.1, 0.2, 0.1, "live"), rate(301, 0.1, missing, 0.3, "given")]
    assert summary(plan).title[2:] == [
        "groups 0, 1, 2, 3, 4 and 295 more lr 0.1 → 0.2 (saved)",
        "group 300  lr stays 0.1 (live; the checkpoint has 0.2)",
        "group 301  lr 0.1 → 0.3 (given; the checkpoint has none)",
    ]


def test_a_plan_with_faults_says_so_first_and_last(path):
    """Before anything else: that it cannot be applied, why, and what a policy could say to each kind of fault."""
    model = mlp(width=16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    plan = optstate.plan(path, model=model, optimizer=optimizer)
    lines = str(plan).splitlines()
    assert lines[1] == f"cannot be applied, {len(plan.faults)} faults:"
    assert any(line.startswith("  - 0.weight: shape") for line in lines)
    assert '  shape:            Policy(shape="pad" | "slice" | "fresh" | a function)' in lines
    assert lines[-1] == f"cannot be applied: {len(plan.faults)} faults, see above"
    with pytest.raises(RestoreRefused):
        plan.apply()


def test_every_way_out_that_is_named_is_a_field_of_a_policy():
    """The hints are about fields that there are."""
    from optstate.resume.printing import _WAYS

    assert set(_WAYS) <= set(optstate.Policy.__dataclass_fields__)


def test_foreign_names_are_harmless():
    """A name from a file can neither repaint a terminal nor add markup to a page."""
    plan = layers(1)
    evil = "\x1b[2J<script>alert(1)</script>"
    plan.weights.append(WeightDecision(evil, "fresh", f"as {evil}"))
    plan.left_out.append("weight x")
    text, html = summary(plan).text(), summary(plan).html()
    assert "\x1b" not in text + html
    assert "<script>" not in html
    HTMLParser().feed(html)


def test_the_table_shows_every_parameter(path):
    """`table(None)` has a row for each, `table(1)` says how many it leaves out."""
    model, optimizer, scheduler = program()
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert [row[0] for row in plan.table(None).rows] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [row[0] for row in plan.table(1).rows] == ["… 3 more", "2.bias"]


# --- as programs read it ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def schema():
    """The published schema of the document."""
    read = json.loads((ROOT / "docs" / "schema" / "optstate-plan-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(read)
    return read


def everything():
    """A plan with every kind of decision, value and sentence."""
    plan = layers(2)
    for decision in DECISIONS:
        plan.weights.append(WeightDecision(decision, decision, "why"))
        plan.entries.append(EntryDecision(decision, Fate(decision, "why"), None, {}, {"m": Fate(decision, "why")}))
    plan.entries.append(EntryDecision("bare", Fate("fresh", "none"), "bare"))
    values = [(1, missing), (missing, float("nan")), ((0.9, 0.999), (0.9, float("inf"))), (None, True), ("a", "b")]
    for live, saved in values:
        plan.hyperparameters.append(HyperparameterDecision("adam", 0, "x", live, saved, saved, "saved", same=False))
    plan.objects.append(ObjectDecision("scheduler", "a.B", {}, reversible=False))
    plan.faults.append("a fault")
    plan.warnings.append("a warning")
    plan.left_out.append("a rest")
    plan.notes.append("a note")
    return plan


def test_the_document_keeps_its_schema(path, schema):
    """Documents of real plans and of one with everything in it are what the published schema promises."""
    model, optimizer, scheduler = program()
    real = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    for made in (real.document(), document(everything()), document(Decided(source="nothing", step=None))):
        jsonschema.validate(json.loads(json.dumps(made, allow_nan=False)), schema)
    assert real.document()["exact"] is True
    assert document(everything())["applicable"] is False


def test_the_document_says_all_that_the_plan_decides(path):
    """Each weight, slot and hyperparameter is in it, with its decision."""
    model, optimizer, scheduler = program()
    plan = optstate.plan(path, model=model, optimizer=optimizer, scheduler=scheduler)
    made = plan.document()
    assert [each["name"] for each in made["weights"]] == [each.name for each in plan.weights]
    slots = [
        (entry["parameter"], slot["key"], slot["decision"]) for entry in made["entries"] for slot in entry["slots"]
    ]
    assert slots == [(slot.parameter, slot.key, slot.decision) for slot in plan.slots]
    assert len(made["hyperparameters"]) == len(plan.hyperparameters)


def test_the_schema_lists_the_closed_sets(schema):
    """The words in the schema are those of the code."""
    assert schema["$defs"]["decision"]["enum"] == list(DECISIONS)


def test_the_schema_refuses_what_is_not_in_it(schema):
    """A field that changes its name is found: the schema bites."""
    made = document(everything())
    made["weights"][0]["verdict"] = made["weights"][0].pop("decision")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(made, schema)
