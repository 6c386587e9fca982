"""Programs that write their checkpoints with `torch.save`, one row each: how to tell them, and what is where.

Verified against files of the program itself in `tests/test_dict_layouts.py`, unless the row says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optstate.formats.checkpoint import Clue
from optstate.formats.containers.pickle_machine import Node
from optstate.formats.layouts.search import STEP_KEYS, Found, Path
from optstate.formats.orders import USUAL, Order, Weight, is_bias, is_gain, is_matrix, split
from optstate.text import count

Entries = Mapping[Any, Node]


@dataclass(frozen=True, slots=True)
class Writer:
    """What a program puts where.

    format
        Its name, as a user would say it.
    keys
        Those that every file of it has at the top.
    among
        Keys of which a file has one.
    also
        What else must hold of the uppermost keys.
    weights
        Where the weights lie that the optimizer trains; the first that is there, and what lies at the others is an
        average of them. Empty: wherever a model is found.
    front
        What stands before the names of the weights and is no part of them.
    steps
        Where the training step may stand, the likeliest first.
    orders
        How it lays parameters out; a program that was changed may do what others do.
    missing
        Why there may be no optimizer in a file, and what to do; None where nothing is known.
    odd
        Further clues that a file of it gives.
    """

    format: str
    keys: frozenset[str] = frozenset()
    among: frozenset[str] = frozenset()
    also: Callable[[Entries], bool] = lambda _: True
    weights: Sequence[Path] = ()
    front: str = ""
    steps: Sequence[Path] = tuple((key,) for key in STEP_KEYS)
    orders: Sequence[Order] = USUAL
    missing: tuple[str, str] | None = None
    odd: Callable[[Entries], Iterable[Clue]] = lambda _: ()

    def fits(self, entries: Entries) -> bool:
        """Whether a file with these uppermost keys is one of this program."""
        return (
            entries.keys() >= self.keys and (not self.among or bool(self.among & entries.keys())) and self.also(entries)
        )

    def clues(self, entries: Entries, found: Found) -> Iterable[Clue]:
        """What a file shows that a diagnosis is made of."""
        if self.missing and not found.optimizers:
            evidence, fix = self.missing
            yield Clue("M103", f"{self.format}: {evidence}", fix)
        yield from self.odd(entries)


def _in_model_order(what: str) -> Order:
    """One group for each parameter or one for all, in the order of the model, as this program does."""
    return Order(what, None)


# --- PyTorch Lightning ------------------------------------------------------------------------------------


def _lightning(entries: Entries) -> Iterable[Clue]:
    """Lightning restores pairs of what was configured and what was saved, and says nothing about those left over."""
    schedulers, optimizers = entries.get("lr_schedulers"), entries.get("optimizer_states")
    if type(schedulers) is list and type(optimizers) is list and 0 < len(optimizers) < len(schedulers):
        yield Clue(
            "M205",
            f"{count(len(schedulers), 'scheduler')} and {count(len(optimizers), 'optimizer')} were saved: Lightning pairs "
            "what it saved with what configure_optimizers returns, and leaves out the rest without a word",
        )


LIGHTNING = Writer(
    "PyTorch Lightning",
    keys=frozenset({"state_dict"}),
    among=frozenset({"pytorch-lightning_version", "optimizer_states"}),
    also=lambda entries: "pytorch-lightning_version" in entries or "lr_schedulers" in entries,
    weights=(("current_model_state",), ("state_dict",)),  # with an averaging callback `state_dict` is the average
    steps=(("global_step",),),
    missing=(
        "a checkpoint without optimizer_states: it was saved with save_weights_only=True, or by hand",
        "save with ModelCheckpoint(save_weights_only=False), and resume with trainer.fit(model, ckpt_path=...)",
    ),
    odd=_lightning,
)

# --- computer vision --------------------------------------------------------------------------------------

_TIMM_NAMES = (
    "pos_embed",
    "cls_token",
    "dist_token",
    "reg_token",
    "relative_position_bias_table",
    "absolute_pos_embed",
)


def _without_decay(weight: Weight) -> bool:
    return not is_matrix(weight) or is_bias(weight)


def _named_without_decay(weight: Weight) -> bool:
    return _without_decay(weight) or weight.name.rpartition(".")[2] in _TIMM_NAMES


TIMM = Writer(
    "timm",
    keys=frozenset({"epoch", "arch", "state_dict", "version"}),
    weights=(("state_dict",),),
    orders=(
        Order("timm's groups, those without weight decay first", split(_without_decay)),
        Order("timm's groups, with the model's own list of those without weight decay", split(_named_without_decay)),
        _in_model_order("the order of the model, without weight decay"),
        *USUAL,
    ),
    missing=("there is no optimizer in it, as in published weights", "resume from last.pth.tar or a recovery file"),
)

MMENGINE = Writer(
    "MMEngine",
    keys=frozenset({"meta", "state_dict", "message_hub"}),
    weights=(("ema_state_dict",), ("state_dict",)),  # with EMA the two are swapped when they are saved
    front="module.",
    steps=(("meta", "iter"),),
    orders=(_in_model_order("the order of the model, as MMEngine builds optimizers"),),
    missing=(
        "there is no optimizer in it, as in best_*.pth and with save_optimizer=False",
        "resume from epoch_*.pth or iter_*.pth of the same run, with resume=True",
    ),
)

MMCV = Writer(
    "MMCV",
    keys=frozenset({"meta", "state_dict"}),
    also=lambda entries: (
        type(entries["meta"]) is dict and not entries["meta"].keys().isdisjoint({"mmcv_version", "iter", "config"})
    ),
    weights=(("state_dict",),),
    steps=(("meta", "iter"),),
    orders=(_in_model_order("the order of the model, as MMCV builds optimizers"),),
    missing=("there is no optimizer in it, as in published weights", "resume from epoch_*.pth of the run itself"),
)  # layout from source

DETECTRON2 = Writer(
    "detectron2",
    keys=frozenset({"model", "iteration"}),
    also=lambda entries: "trainer" in entries or entries.keys() >= {"optimizer", "scheduler"},
    weights=(("model",),),
    steps=(("iteration",),),
    missing=(
        "there is no optimizer in it, as in files of the model zoo",
        "resume from model_*.pth of the run itself, with resume_or_load(resume=True)",
    ),
)  # layout from source


def _of_boosted_head(weights: Sequence[Weight]) -> Callable[[Weight], bool]:
    """Whether a tensor is in the branch of YOLO's head that MuSGD gives a higher learning rate."""
    layers = [int(match[1]) for weight in weights if (match := re.match(r"(?:.*\.)?model\.(\d+)\.", weight.name))]
    inside = re.compile(rf"(?:.*\.)?model\.{max(layers, default=0)}\.(?:cv3|one2one_cv3)\.|.*proto\.semseg")
    return lambda weight: inside.match(weight.name) is not None


def _is_muon(weight: Weight) -> bool:
    return len(weight.tensor.shape) in (2, 4)


def _musgd(weights: Sequence[Weight]) -> list[list[Weight]]:
    """Weights, gains, biases and matrices, each in two groups: the boosted branch of the head, and the rest."""
    boosted = _of_boosted_head(weights)
    matrices = [weight for weight in weights if _is_muon(weight)]
    others = [weight for weight in weights if not _is_muon(weight)]
    gains, biases, rest = split(is_gain, _is_any_bias)(others)
    return [
        [weight for weight in kind if boosted(weight) is which]
        for kind in (rest, gains, biases, matrices)
        for which in (True, False)
    ]


def _is_any_bias(weight: Weight) -> bool:
    return "bias" in weight.name


def _yolo_groups(weights: Sequence[Weight]) -> list[Sequence[Weight]]:
    biases, gains, rest = split(_is_any_bias, is_gain)(weights)
    return [rest, gains, biases]


def _older_yolo_groups(weights: Sequence[Weight]) -> list[Sequence[Weight]]:
    rest, gains, biases = _yolo_groups(weights)
    return [biases, rest, gains]


_YOLO_ORDERS = (
    Order("YOLO's groups: weights, norms, biases", _yolo_groups),
    Order("YOLO's groups: biases, weights, norms", _older_yolo_groups),
    Order("YOLO's groups for MuSGD", _musgd),
    *USUAL,
)

ULTRALYTICS = Writer(
    "Ultralytics",
    keys=frozenset({"train_args", "model", "ema"}),
    weights=(("model",),),
    steps=(),
    orders=_YOLO_ORDERS,
    missing=(
        "the optimizer was stripped, as from last.pt and best.pt when a run has finished",
        "keep a copy of last.pt while the run goes on (save_period=1), and resume with resume=True",
    ),
)

YOLO = Writer(
    "YOLOv5",
    keys=frozenset({"epoch", "best_fitness", "model", "optimizer"}),
    weights=(("model",),),
    steps=(),
    orders=_YOLO_ORDERS,
    missing=ULTRALYTICS.missing,
)  # layout from source

# --- language, contrastive and other models --------------------------------------------------------------

NANOGPT = Writer(
    "nanoGPT",
    keys=frozenset({"model", "model_args", "iter_num"}),
    weights=(("model",),),
    steps=(("iter_num",),),
    orders=(Order("nanoGPT's groups: matrices, then vectors", split(is_matrix)), *USUAL),
    missing=("there is no optimizer in it, as in published weights", "resume from out_dir/ckpt.pt of the run itself"),
)

_GAIN_OR_BIAS = ("bn", "ln", "bias", "logit_scale")


def _open_clip_gain(weight: Weight) -> bool:
    return not is_matrix(weight) or any(part in weight.name for part in _GAIN_OR_BIAS)


OPENCLIP = Writer(
    "OpenCLIP",
    keys=frozenset({"epoch", "name", "state_dict"}),
    weights=(("state_dict",),),
    steps=(("global_step",),),
    orders=(Order("OpenCLIP's groups: gains and biases, then the rest", split(_open_clip_gain)), *USUAL),
    missing=(
        "there is no optimizer in it, as in released weights",
        "resume with --resume latest from the run's own logs",
    ),
)

FASTAI = Writer(
    "fastai",
    keys=frozenset({"model", "opt"}),
    also=lambda entries: len(entries) == 2,
    weights=(("model",),),
    steps=(),
    orders=(_in_model_order("the order of the model, as fastai's splitters keep it"),),
)

TORCHTUNE = Writer(
    "torchtune",
    keys=frozenset({"optimizer", "seed", "epochs_run", "total_epochs", "max_steps_per_epoch"}),
    steps=(("steps_run",),),
)

COMPOSER = Writer(
    "Composer",
    keys=frozenset({"state"}),
    also=lambda entries: type(entries["state"]) is dict and entries["state"].keys() >= {"integrations", "metadata"},
    weights=(("state", "model"),),
    steps=(("state", "timestamp", "Timestamp", "batch"),),
    missing=(
        "there is no optimizer in it: save_weights_only, or save_ignore_keys with state/optimizers/*",
        "save with save_weights_only=False",
    ),
)

WRITERS = (
    LIGHTNING, MMENGINE, ULTRALYTICS, NANOGPT, TIMM, OPENCLIP, FASTAI, TORCHTUNE, COMPOSER, DETECTRON2, MMCV, YOLO,
)  # fmt: skip
"""Those that are told by their keys, the most specific first."""

ANYBODY = Writer("torch.save", orders=USUAL)
"""A program of which nothing is known."""
