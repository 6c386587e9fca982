"""What a row does not say of the statistics of an optimizer, by family: classes that share a rule for updates share these too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from optstate.optimizers.spec import OptimizerSpec, SlotSpec

Square = Literal[
    "average",  # of squared gradients
    "sum",  # of squared gradients, from the first on
    "variance",  # of the gradient around its mean
    "ahead",  # of squared gradients that look ahead by their last change
    "maximum",  # the largest gradient, decaying: its square
    "factored",  # an average of squared gradients, by rows and columns
    "weighted",  # an average in which a gradient weighs the less, the later it comes
]


@dataclass(frozen=True, slots=True)
class Family:
    """How classes with one rule for updates use their statistics.

    `square`: what the second moment is, where no role tells. `scaled`: moments are of the gradient times an estimated step
    size `d`; with `lr_scaled` the first one also times the learning rate and the second one plain. `of_updates`: a momentum
    without a convention is an average of normalised updates. `unread`: a momentum from which no gradient can be told.
    `normalised`: a learning rate of η moves a weight by about η, so that an estimate of it carries over.
    """

    square: Square = "average"
    scaled: bool = False
    lr_scaled: bool = False
    of_updates: bool = False
    unread: bool = False
    normalised: bool = True


FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(("adam", "sparse_adam", "nadam", "nadamw", "radam", "adamax", "ademamix", "lamb"), Family()),
    "adabelief": Family(square="variance"),
    "adan": Family(square="ahead"),
    "adagrad": Family(square="sum", normalised=False),
    **dict.fromkeys(("rmsprop", "rmsprop_tf", "adadelta", "adafactor"), Family(normalised=False)),
    **dict.fromkeys(("sgd", "lion", "muon", "schedule_free"), Family(normalised=False)),
    "lr_adafactor": Family(normalised=False, unread=True),
    "came": Family(normalised=False, of_updates=True),
    "prodigy": Family(scaled=True, normalised=False),
    "d_adapt": Family(scaled=True, lr_scaled=True, normalised=False),
}

_ALIKE: Mapping[str, str] = {
    **{f"fastai.optimizer.{name}": "adam" for name in ("Adam", "QHAdam")},
    "fastai.optimizer.RAdam": "radam",
    "fastai.optimizer.RMSProp": "rmsprop",
    "fastai.optimizer.SGD": "sgd",
    "bitsandbytes.optim.lamb.LAMB": "lamb",
    "timm.optim.adamp.AdamP": "adam",
    "timm.optim.nadam.NAdamLegacy": "nadam",
    "timm.optim.radam.RAdamLegacy": "radam",
    "timm.optim.sgdp.SGDP": "sgd",
    "muon.Muon": "muon",
    "adan_pytorch.adan.Adan": "adan",
    "came_pytorch.CAME.CAME": "came",
    "transformers.optimization.Adafactor": "lr_adafactor",
    "dadaptation.dadapt_adam.DAdaptAdam": "d_adapt",
    **{
        f"schedulefree.{name}": "schedule_free"
        for name in (
            "adamw_schedulefree.AdamWScheduleFree",
            "radam_schedulefree.RAdamScheduleFree",
            "adamw_schedulefree_reference.AdamWScheduleFreeReference",
        )
    },
    **{
        f"pytorch_optimizer.optimizer.{place}": family
        for place, family in {
            "adabelief.AdaBelief": "adabelief",
            "adabound.AdaBound": "adam",
            "adamp.AdamP": "adam",
            "came.CAME": "came",
            "dadapt.DAdaptAdam": "d_adapt",
            "lamb.Lamb": "lamb",
            "radam.RAdam": "radam",
            "qhm.QHM": "lion",
            "sgd.SignSGD": "lion",
            "tiger.Tiger": "lion",
            "schedulefree.ScheduleFreeAdamW": "schedule_free",
            "schedulefree.ScheduleFreeRAdam": "schedule_free",
        }.items()
    },
}
"""Classes that keep what a family keeps, though their own updates follow no rule that is known here."""

REFUSED: Mapping[str, str] = {
    "torch.optim.lbfgs.LBFGS": "keeps a history of differences over all parameters, which no moments tell and which tells none",
    "torch.optim.rprop.Rprop": "keeps the last gradient and a step size of its own for each weight, no moments",
    "torch.optim.asgd.ASGD": "keeps averaged weights and its own learning rate, no moments",
}
"""Why there is no way from or to a class that keeps no moments, where its slots alone would not tell."""

DERIVED = frozenset(
    {"mu_product", "m_schedule", "RMS", "weight_norm", "adam_norm", "trust_ratio", "unorm_vec", "use_muon"}
)
"""Slots that hyperparameters and the count of steps tell, or that the next step writes anew."""

INVERTED: Mapping[str, Mapping[str, int]] = {"adan_pytorch.adan.Adan": {"m": 0, "v": 1, "n": 2}}
"""Slots whose decay is one minus an element of `betas`."""

COUNTED_FROM: Mapping[str, int] = {"pytorch_optimizer.optimizer.prodigy.Prodigy": 1}
"""What a fresh group counts, where that is not 0."""

ZEROED = frozenset({"d_numerator", "numerator_weighted"})
"""Group keys that start anew with the sums that they belong to."""

_MIXTURES = ("muon.MuonWithAuxAdam", "timm.optim.muon.Muon")


def family_name(spec: OptimizerSpec) -> str:
    """The key of the family in `FAMILIES`; `` where a class has none."""
    name = _ALIKE.get(spec.name, spec.update or "")
    return name if name in FAMILIES else ""


def family(spec: OptimizerSpec) -> Family:
    """What the class's family does, see `Family`; the plain one where it has none."""
    return FAMILIES.get(family_name(spec), Family())


def kept_by(spec: OptimizerSpec, hyperparameters: Mapping[str, Any]) -> OptimizerSpec:
    """The row as it holds for one group: of classes that are Muon for some groups and Adam for others, one of both.

    Left as it is where the group does not tell which.
    """
    if spec.name not in _MIXTURES:
        return spec
    muon = hyperparameters.get("use_muon")
    if muon is None and hyperparameters.get("use_fallback") is not None:
        muon = not hyperparameters["use_fallback"]
    if muon is None or hyperparameters.get("algo", "muon") != "muon":
        return spec
    own = {"use_muon", "momentum_buffer"} if muon else {"use_muon", "step", "exp_avg", "exp_avg_sq"}
    slots = {key: _always(slot, own) for key, slot in spec.slots.items() if key in own}
    return replace(spec, slots=slots, update="muon" if muon else "adam")


def is_undecided(spec: OptimizerSpec) -> bool:
    """Whether a row still is that of Muon and of Adam at once."""
    return spec.name in _MIXTURES and {"momentum_buffer", "exp_avg"} <= spec.slots.keys()


def _always(slot: SlotSpec, own: set[str]) -> SlotSpec:
    return replace(slot, when=None, primary=True, companions=tuple(key for key in slot.companions if key in own))
