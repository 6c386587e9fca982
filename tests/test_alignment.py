"""Alignment: what is advised where the truth is known, how surely, and that the advice can be followed."""

from __future__ import annotations

import json
from math import isnan, sqrt

import pytest
import torch
from torch import nn

import optstate
from optstate.errors import EditError
from optstate.optimizers.aligning import Sample, fit, together

ADAM = (torch.optim.AdamW, {"lr": 1e-4})
SGD = (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9})


class Slope(nn.Module):
    """Parameters whose gradients the test decides: a mean, and noise of standard deviation 1 around it."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.w = nn.Parameter(torch.zeros(64))
        self.b = nn.Parameter(torch.zeros(8, 8))
        self.mean = {name: torch.randn_like(parameter) for name, parameter in self.named_parameters()}

    def batch(self, scale=1.0, mean=None):
        for name, parameter in self.named_parameters():
            parameter.grad = scale * ((mean or self.mean)[name] + torch.randn_like(parameter))


def aged(cls, options, *, seed=0, steps=200):
    """An optimizer that has seen many batches of the same slope."""
    model = Slope(seed)
    optimizer = cls(model.parameters(), **options)
    for _ in range(steps):
        model.batch()
        optimizer.step()
    return model, optimizer


def measured(model, optimizer, batches=8, **batch):
    return optstate.alignment(optimizer, model, lambda: model.batch(**batch), batches)


def actions(found):
    return {found.overall.fit.action, *(each.fit.action for each in found.parameters.values())}


# --- the truth is known ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SGD, ADAM])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_data_keeps_its_momentum(kind, seed):
    """A momentum of these very gradients fits as well as noise allows, and nothing is advised."""
    model, optimizer = aged(kind[0], kind[1], seed=seed)
    found = measured(model, optimizer, 12)
    assert found.overall.fit.action == "keep"
    assert found.overall.fit.cosine == pytest.approx(found.overall.fit.ceiling, abs=0.1)
    if kind is ADAM:
        assert found.overall.fit.squares == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize("kind", [SGD, ADAM])
def test_gradients_turned_round_reset_momentum(kind):
    """Where the new data pulls the other way, momentum is of no use, and the second moment still is."""
    model, optimizer = aged(*kind)
    found = measured(model, optimizer, scale=-1.0)
    assert actions(found) == {"reset"}
    assert found.policy().scale == {"w": 0.0, "b": 0.0}
    squares = [entry["exp_avg_sq"].clone() for entry in optimizer.state.values() if "exp_avg_sq" in entry]
    with optstate.attach(optimizer, model).edit("other data") as edit:
        found.edit(edit)
    for entry in optimizer.state.values():
        assert not entry.get("exp_avg", entry.get("momentum_buffer")).any()
    assert all(
        torch.equal(entry["exp_avg_sq"], square)
        for entry, square in zip(optimizer.state.values(), squares, strict=False)
    )


def test_half_of_the_directions_changed_decays_momentum():
    """The factor is the cosine of the two mean gradients: √½ where half of their squares stayed."""
    model, optimizer = aged(*ADAM)
    half = {name: mean * (torch.arange(mean.numel()).reshape(mean.shape) % 2) for name, mean in model.mean.items()}
    found = measured(model, optimizer, 32, mean=half)
    assert found.overall.fit.action == "decay"
    truth = sqrt(sum(float(each.square().sum()) for each in half.values()))
    truth /= sqrt(sum(float(each.square().sum()) for each in model.mean.values()))
    assert found.overall.fit.factor == pytest.approx(truth, abs=0.08)
    before = optimizer.state[model.w]["exp_avg"].clone()
    with optstate.attach(optimizer, model).edit() as edit:
        found.edit(edit, "w")
    torch.testing.assert_close(optimizer.state[model.w]["exp_avg"], before * found.parameters["w"].fit.factor)


def test_a_loss_ten_times_as_large_rescales_every_slot():
    """C of F55: slots of degree k get c^k; the next step is then what it was before, not √10 times as long or worse."""
    model, optimizer = aged(*ADAM)
    found = measured(model, optimizer, 24, scale=10.0)
    assert actions(found) == {"rescale"}
    assert found.overall.fit.scale == pytest.approx(10.0, rel=0.1)
    assert found.overall.fit.squares == pytest.approx(100.0, rel=0.2)
    assert "gradients are" in str(found)
    with pytest.raises(EditError, match="this advice is to rescale"):
        found.policy()
    before = {key: value.clone() for key, value in optimizer.state[model.w].items()}
    with optstate.attach(optimizer, model).edit() as edit:
        found.edit(edit)
    scale, entry = found.parameters["w"].fit.scale, optimizer.state[model.w]
    torch.testing.assert_close(entry["exp_avg"], before["exp_avg"] * scale)
    torch.testing.assert_close(entry["exp_avg_sq"], before["exp_avg_sq"] * scale**2)
    assert torch.equal(entry["step"], before["step"])
    assert actions(measured(model, optimizer, 24, scale=10.0)) == {"keep"}


def test_larger_noise_alone_raises_the_second_moment():
    """Larger gradients of which no momentum tells: the second moment grows, so that steps do not."""
    model, optimizer = aged(*ADAM)
    none = {name: 0 * mean for name, mean in model.mean.items()}
    found = measured(model, optimizer, 24, scale=10.0, mean=none)
    factors = found.parameters["w"].factors
    assert factors["exp_avg_sq"] == pytest.approx(50.0, rel=0.3)  # noise of 10² where mean and noise were 1 each
    with optstate.attach(optimizer, model).edit() as edit:
        found.edit(edit)


@pytest.mark.parametrize("kind", [SGD, ADAM])
def test_pure_noise_cannot_be_told(kind):
    """Of twenty cases without any mean gradient, nearly none is given advice on its momentum."""
    told = 0
    model, optimizer = aged(*kind)
    none = {name: 0 * mean for name, mean in model.mean.items()}
    for seed in range(20):
        torch.manual_seed(seed)
        told += measured(model, optimizer, mean=none).overall.fit.action != "cannot be told"
    assert told <= 2


def test_one_batch_tells_nothing_of_noise():
    """The cosine of one batch is shown, without a range, and it is said why there is no advice."""
    model, optimizer = aged(*ADAM)
    found = measured(model, optimizer, 1)
    assert actions(found) == {"cannot be told"}
    assert isnan(found.overall.fit.ceiling)
    assert "one batch tells nothing of the noise" in str(found)
    assert found.policy() == optstate.Policy()
    json.dumps(found.document(), allow_nan=False)


def test_chance_stays_within_its_spread():
    """A momentum that has nothing to do with the gradients lies within ± its spread 95 times in a hundred."""
    generator = torch.Generator().manual_seed(0)
    outside = 0
    for _ in range(400):
        momentum = torch.randn(30, generator=generator)
        gradients = torch.randn(8, 30, generator=generator)
        total = gradients.sum(0)
        onward = [float(gradients[place] @ gradients[:place].sum(0)) for place in range(1, 8)]
        sample = Sample(
            float(momentum @ momentum), None, 19.0, float(total @ total),
            gradients.square().sum(1).tolist(), (gradients @ momentum).tolist(), onward,
        )  # fmt: skip
        its = fit(sample)
        outside += abs(its.cosine) > its.spread
    assert 8 <= outside <= 36


def test_the_mean_is_told_without_bias():
    """‖μ‖² from sums alone is right on average: with it the ceiling of a perfect momentum is what its cosine is."""
    generator = torch.Generator().manual_seed(0)
    ceilings, cosines = [], []
    for _ in range(300):
        mean = torch.ones(50) * 0.5
        momentum = mean + torch.randn(50, generator=generator) / sqrt(19)
        gradients = mean + torch.randn(8, 50, generator=generator)
        total = gradients.sum(0)
        sample = Sample(
            float(momentum @ momentum), None, 19.0, float(total @ total),
            gradients.square().sum(1).tolist(), (gradients @ momentum).tolist(), [0.0] * 7,
        )  # fmt: skip
        ceilings.append(fit(sample).ceiling)
        cosines.append(fit(sample).cosine)
    assert sum(ceilings) / 300 == pytest.approx(sum(cosines) / 300, abs=0.03)


def test_together_is_one_long_parameter():
    """Two parameters together are what they are when laid side by side."""
    one = Sample(1.0, 2.0, 19.0, 3.0, [1.0, 2.0], [0.5, 0.5], [0.1])
    both = together([one, one])
    assert both == Sample(2.0, 4.0, 19.0, 6.0, [2.0, 4.0], [1.0, 1.0], [0.2])
    assert fit(both).cosine == pytest.approx(fit(one).cosine)


# --- whatever the optimizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        (torch.optim.SGD, {"lr": 1e-4, "momentum": 0.9, "maximize": True}),
        (torch.optim.Adam, {"lr": 1e-4, "weight_decay": 0.1, "amsgrad": True}),
        (torch.optim.NAdam, {"lr": 1e-4}),
        (torch.optim.RAdam, {"lr": 1e-4}),
        (torch.optim.Adamax, {"lr": 1e-4}),
        (torch.optim.RMSprop, {"lr": 1e-4, "momentum": 0.9, "centered": True}),
    ],
)
def test_every_convention_is_understood(cls, options):
    """Sums, averages, signs and momentum of normalised gradients: the same data fits, its opposite does not."""
    model, optimizer = aged(cls, options)
    assert measured(model, optimizer, 12).overall.fit.cosine > 0.8
    assert measured(model, optimizer, 12, scale=-1.0).overall.fit.action == "reset"


def test_matrices_of_muon_are_judged_whole():
    """An update that is one of whole matrices has a step too; complex momentum is pairs of reals."""
    model = nn.ParameterDict(
        {"m": nn.Parameter(torch.zeros(8, 8)), "c": nn.Parameter(torch.zeros(6, dtype=torch.cfloat))}
    )
    optimizers = {"muon": torch.optim.Muon([model["m"]]), "adam": torch.optim.Adam([model["c"]])}

    def batch():
        for parameter in model.values():
            parameter.grad = torch.ones_like(parameter) * (1 + 0.1 * torch.randn(()))

    for _ in range(30):
        batch()
        for each in optimizers.values():
            each.step()
    found = optstate.alignment(optimizers, model, batch, 8)
    assert {name: each.fit.action for name, each in found.parameters.items()} == {"m": "keep", "c": "keep"}
    assert 0 < found.parameters["m"].step < 10


def test_step_over_a_fresh_start():
    """SGD's steady buffer steps ten times as far as a fresh start; Adam's as far as the mean is longer than noise."""
    model, optimizer = aged(*SGD)
    assert measured(model, optimizer).overall.step == pytest.approx(10.0, rel=0.2)


# --- nothing else changes, and what cannot be ------------------------------------------------------------------


def test_state_weights_and_gradients_stay():
    """Not one bit of state, weights or random numbers changes, and gradients are the same objects."""
    model, optimizer = aged(*ADAM)
    gradients = [parameter.grad for parameter in model.parameters()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slots = [value.clone() for entry in optimizer.state.values() for value in entry.values()]
    random = torch.get_rng_state()
    measured(model, optimizer)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is gradient for parameter, gradient in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    after = [value for entry in optimizer.state.values() for value in entry.values()]
    assert all(map(torch.equal, slots, after))


def test_what_has_no_momentum_is_left_with_the_reason():
    """Before the first step there is nothing to compare; a parameter without a gradient is named."""
    model = Slope()
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(EditError, match="no parameter has a momentum"):
        measured(model, optimizer)
    model, optimizer = aged(*ADAM)

    def only_w():
        model.batch()
        model.b.grad = None

    found = optstate.alignment(optimizer, model, only_w, 8)
    assert found.left == {"b": "no gradient in any batch"}
    assert list(found.parameters) == ["w"]
    assert "no gradient in any batch: b" in str(found)
    assert found.document()["left"] == {"b": "no gradient in any batch"}


@pytest.mark.parametrize("batches", [0, -3, 1.5])
def test_a_number_of_batches_that_is_none(batches):
    """Zero batches measure nothing."""
    model, optimizer = aged(ADAM[0], ADAM[1], steps=2)
    with pytest.raises(EditError, match="nothing is measured"):
        measured(model, optimizer, batches)


def test_a_policy_restores_as_advised(tmp_path):
    """The advice measured on new data goes into a restore, by exact names, whatever characters they have."""
    model, optimizer = aged(*ADAM)
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=200)
    policy = measured(model, optimizer, scale=-1.0).policy()
    other, fresh = aged(ADAM[0], ADAM[1], steps=1)
    optstate.restore(tmp_path / "ck", model=other, optimizer=fresh, policy=policy)
    assert not fresh.state[other.w]["exp_avg"].any()
    assert torch.equal(fresh.state[other.w]["exp_avg_sq"], optimizer.state[model.w]["exp_avg_sq"])
