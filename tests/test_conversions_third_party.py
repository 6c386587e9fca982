"""Conversions to and from the optimizers of other libraries, on the real classes; and what their rows alone decide."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from optstate.errors import RegistryError
from optstate.optimizers.conversion import converted, route, shared
from optstate.optimizers.registry import by_name, register
from optstate.optimizers.spec import SlotSpec
from tests.converted_rows import ROWS

ADAM = by_name("torch.optim.adam.Adam")
GROUP = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
STATE = {"step": 40.0, "exp_avg": np.array([[1.0, 2.0]]), "exp_avg_sq": np.array([[4.0, 9.0]])}


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize("library", ROWS)
def test_conversions_hold_on_the_classes(library):
    """To and from Adam: exact ones hold what the class would have kept, others stay within the bound, and all slots are there."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    program = [sys.executable, "-m", "tests.converted_rows", library]
    shown = subprocess.run(program, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    for row, faults in json.loads(shown.splitlines()[-1]).items():
        assert (row, faults) == (row, [])


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("torch.optim.adamw.AdamW", {}),
        ("timm.optim.adamw.AdamWLegacy", {"amsgrad": False}),
        ("apex.optimizers.fused_adam.FusedAdam", {"step": 0}),
        ("deepspeed.ops.adam.cpu_adam.DeepSpeedCPUAdam", {}),
        ("torchao.optim.adam.AdamW8bit", {"amsgrad": False}),
        ("composer.optim.decoupled_weight_decay.DecoupledAdamW", {"amsgrad": False}),
    ],
)
def test_adams_of_all_libraries_share_their_slots(name, group):
    """What all Adams keep alike goes between them as it is, the very arrays."""
    group = {**GROUP, "amsgrad": False, **group}
    assert route(ADAM, by_name(name), group, group).exact
    found = converted(ADAM, by_name(name), STATE, group, group, None)
    assert found["exp_avg"] is STATE["exp_avg"]
    assert found["exp_avg_sq"] is STATE["exp_avg_sq"]


def test_a_group_counts_what_its_youngest_parameter_can_bear():
    """One count for all: the least, 1 where a parameter starts fresh; the moments are corrected for that count."""
    fused = by_name("apex.optimizers.fused_adam.FusedAdam")
    entries = [(STATE, GROUP), ({**STATE, "step": 7.0}, GROUP)]
    assert shared(ADAM, fused, entries, GROUP) == {"step": 7.0}
    assert shared(ADAM, fused, [*entries, ({}, GROUP)], GROUP) == {"step": 1.0}
    found = converted(ADAM, fused, STATE, GROUP, GROUP, None, {"step": 7.0})
    assert found["exp_avg"] / (1 - 0.9**7) == pytest.approx(STATE["exp_avg"] / (1 - 0.9**40), rel=1e-14)
    assert found["exp_avg_sq"] / (1 - 0.999**7) == pytest.approx(STATE["exp_avg_sq"] / (1 - 0.999**40), rel=1e-13)
    back = converted(
        fused, ADAM, {key: STATE[key] for key in ("exp_avg", "exp_avg_sq")}, {**GROUP, "step": 40}, GROUP, None
    )
    assert back["step"] == 40.0
    assert back["exp_avg"] is STATE["exp_avg"]


def test_schedule_free_starts_from_the_weights():
    """The iterates are the weights, the second moment and the count go on, and an average of 1/(1-β1) iterates is there."""
    target = by_name("schedulefree.adamw_schedulefree.AdamWScheduleFree")
    live = {**GROUP, "k": 0, "weight_sum": 0.0, "lr_max": -1.0, "r": 0.0, "weight_lr_power": 2.0}
    weights = np.array([[5.0, 6.0]])
    assert shared(ADAM, target, [(STATE, GROUP)], live) == pytest.approx({"k": 40.0, "weight_sum": 0.1, "lr_max": 0.1})
    found = converted(ADAM, target, STATE, GROUP, live, weights)
    assert found.keys() == {"z", "exp_avg_sq"}
    assert found["exp_avg_sq"] is STATE["exp_avg_sq"]
    assert found["z"].tolist() == weights.tolist()
    assert found["z"] is not weights


def test_mixtures_are_told_by_their_group():
    """In a mixture of Muon and Adam each group says what its parameters keep; one that does not is refused."""
    mixture, muon = by_name("muon.MuonWithAuxAdam"), by_name("torch.optim.Muon")
    momentum = {"momentum_buffer": np.ones((2, 2))}
    assert route(muon, mixture, {"momentum": 0.95}, {"use_muon": True, "momentum": 0.95}).exact
    assert route(ADAM, mixture, GROUP, {**GROUP, "use_muon": False}).exact
    assert converted(ADAM, mixture, STATE, GROUP, {**GROUP, "use_muon": False}, None).keys() == STATE.keys()
    found = converted(mixture, muon, momentum, {"use_muon": True, "momentum": 0.95}, {"momentum": 0.95}, None)
    assert found["momentum_buffer"] is momentum["momentum_buffer"]
    assert "the group does not say which" in route(mixture, muon, GROUP, {"momentum": 0.95})


def test_clipping_together_hides_the_scale():
    """Where one side clips all gradients together, the history counts as one gradient, whose size no longer matters."""
    lamb = by_name("timm.optim.lamb.Lamb")
    group = {**GROUP, "step": 400, "max_grad_norm": 1.0}
    state = {key: STATE[key] for key in ("exp_avg", "exp_avg_sq")}
    assert not route(lamb, ADAM, group, GROUP).exact
    found = converted(lamb, ADAM, state, group, GROUP, None)
    assert found["step"] == 1.0
    assert route(lamb, ADAM, {**group, "max_grad_norm": None}, GROUP).exact


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sophia.SophiaG", r"SophiaG keeps a preconditioner \(hessian\), which other statistics do not tell"),
        ("timm.optim.kron.Kron", r"Kron keeps a preconditioner \(Q\)"),
        ("torch.optim.lbfgs.LBFGS", "LBFGS keeps a history of differences"),
        ("timm.optim.lars.Lars", "how Lars uses what it keeps is not known well enough"),
        ("galore_torch.adamw.AdamW", "not known well enough"),
    ],
)
def test_what_cannot_be_converted_says_why(name, reason):
    """No way, from there or to there: a reason, and an error for who converts nevertheless."""
    spec, group = by_name(name), {**GROUP, "momentum": 0.9}
    for pair in ((spec, ADAM), (ADAM, spec)):
        told = route(*pair, group, group)
        assert isinstance(told, str)
        with pytest.raises(RegistryError, match=reason):
            converted(*pair, STATE, group, group, None)


@pytest.mark.parametrize(
    ("saved", "live", "reason"),
    [
        ({"betas": (1.0, 0.999)}, GROUP, r"betas\[0\] of the saved Adam must be in \[0, 1\), found 1"),
        (GROUP, {"lr": 0.1}, r"betas\[0\] of the live AdamW must be in \[0, 1\), found nothing"),
        (GROUP, {**GROUP, "betas": (0.9, float("nan"))}, r"betas\[1\] of the live AdamW must be in"),
    ],
)
def test_hyperparameters_that_mean_nothing_are_refused(saved, live, reason):
    """A coefficient that is missing, NaN or 1 is named, with the side on which it is."""
    with pytest.raises(RegistryError, match=reason):
        converted(ADAM, by_name("torch.optim.adamw.AdamW"), STATE, saved, live, None)


def test_described_optimizers_convert_by_their_rule():
    """A class that a program describes converts by its row where it names a rule for updates, and not otherwise."""
    average = SlotSpec(role="momentum", convention="ema", of="gradient", coefficient="decay", gradient_degree=1)
    mine = register("made.up.Signs", {"average": average}, update="lion")
    other = register("made.up.Unknown", {"average": average})
    found = converted(ADAM, mine, STATE, GROUP, {"decay": 0.9}, None)
    assert found["average"] == pytest.approx(STATE["exp_avg"] / (1 - 0.9**40), rel=1e-14)
    assert "not known well enough" in route(ADAM, other, GROUP, {"decay": 0.9})
