"""The folders `checkpoint-<step>/` of the Hugging Face Trainer, and of what is built on it (TRL, Axolotl, Unsloth).

The Trainer gives its optimizer two groups: parameters that decay, and those that do not, which are biases and what is
in a layer norm; each in the order of the model. A torch file keeps that order; for safetensors it comes from
`hf_orders`, and where that does not tell, only the layers of a list are known to be in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from optstate.formats.checkpoint import Clue
from optstate.formats.containers.dcp import is_dcp
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts import deepspeed
from optstate.formats.layouts.dcp import read_dcp
from optstate.formats.layouts.gathering import Gathering
from optstate.formats.layouts.hf_model import BUFFERS, Model, read_model
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.weights import tried
from optstate.formats.orders import Groups, Order, Weight, split
from optstate.formats.parts import Parts
from optstate.text import safe_text

FORMAT = "Hugging Face Trainer"
SIGNATURE = "trainer_state.json"

_UNFINISHED = "checkpoint-is-incomplete.txt"
_FLAT = re.compile(r"rank\d+-of-\d+-optimizer\.pt|optimizer\.pt_.+")
"""The optimizer as XLA-FSDP and SageMaker write it: a flat shard for each rank."""


def fits(folder: Folder) -> bool:
    """Whether the Trainer wrote this folder."""
    return SIGNATURE in folder.files


def read(folder: Folder) -> Parts:
    """The parts of a checkpoint of the Trainer; what DeepSpeed, FSDP or PEFT wrote in it is read as theirs.

    A file that cannot be read takes only what is in it: it is told in `unread`.
    """
    got = Gathering(folder, FORMAT)
    state = got.json(SIGNATURE)
    step = state.get("global_step") if type(state) is dict else None
    model = read_model(got)
    inner = _optimizer(got)
    got.objects["trainer_state"] = state
    for name in ("scheduler.pt", "scaler.pt", *folder.matching("rng_state*.pth"), "training_args.bin"):
        got.object(name)
    got.clues += _clues(got)
    got.finish()
    return Parts(
        FORMAT,
        weights=model.weights or (inner.weights if inner else {}),
        optimizers=got.optimizers,
        certainties=got.certainties,
        orders=_orders(model),
        step=step if type(step) is int else None,
        objects=got.objects,
        unplaced=got.unplaced,
        unread=got.unread,
        clues=got.clues,
        notes=[*got.notes, *prune(got.objects)],
    )


LAYOUT = FolderLayout(FORMAT, fits, read)


# --- the optimizer ----------------------------------------------------------------------------------------


def _optimizer(got: Gathering) -> Parts | None:
    """Read the optimizer, wherever it lies; the parts of DeepSpeed, which has weights as well, where it is there."""
    files, folders = got.folder.files, got.folder.folders
    name = next((name for name in ("optimizer.pt", "optimizer.bin") if name in files), None)
    if name is not None:
        got.optimizer(name, "")
    for each in folders:
        if each.startswith("optimizer_") and is_dcp(got.folder.folder(each)):
            got.inner(each, read_dcp, each)
    flat = [name for name in files if _FLAT.fullmatch(name)]
    got.taken.update(flat)
    got.unread += [
        f"{safe_text(name)}: a flat shard of one rank, which does not say of which parameters" for name in flat
    ]
    if deepspeed.fits(got.folder):
        steps = [each for each in folders if each.startswith("global_step")]
        return got.add(tried(got.unread, "latest", lambda: deepspeed.read(got.folder)), *steps)
    return None


def _clues(got: Gathering) -> Iterator[Clue]:
    """Why resuming from here would lose the momentum."""
    files = got.folder.files
    with_scheduler = "scheduler.pt" in files or deepspeed.fits(got.folder)
    if _UNFINISHED in files:
        yield Clue("M522", f"{_UNFINISHED} is there: the save did not finish, and the Trainer does not look")
    if not got.optimizers and not any(line.startswith(("optimizer", "latest")) for line in got.unread):
        alone = not with_scheduler and not got.folder.matching("rng_state*.pth")
        why = (
            "no scheduler and no random state: saved with save_only_model=True"
            if alone
            else "others of its files are there"
        )
        yield Clue("M118", f"there is no optimizer.pt ({why}); the Trainer resumes without a word")
    listed = [group["params"] for node in got.optimizers.values() for group in node["param_groups"]]
    if not any(type(keys) is list and keys and type(keys[0]) is int for keys in listed):
        return  # names, as FSDP and DeepSpeed write them, or nothing
    if not with_scheduler:
        yield Clue(
            "M118",
            "there is no scheduler.pt: the Trainer loads the optimizer only where both are there, and says nothing",
            "save the scheduler's state_dict as scheduler.pt beside optimizer.pt before resuming",
        )
    if "optimizer.pt" not in files and "optimizer.bin" in files:
        yield Clue(
            "M118",
            "the optimizer is in optimizer.bin, where the Trainer looks for optimizer.pt",
            "rename optimizer.bin to optimizer.pt",
        )


# --- its groups -------------------------------------------------------------------------------------------

_NORM = r"layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)"
_NAMES = (re.compile(f"bias|{_NORM}"), re.compile("bias"))
"""Names of parameters that do not decay: of today's transformers, and of those before 4.50, which had no norms in it."""


def _orders(model: Model) -> list[Order]:
    """The ways in which the Trainer may have formed its groups: which modules are layer norms is not in a file.

    The sizes of the groups and every shape then tell which of them it was.
    """
    what = f"the Trainer's groups, in {model.order}" if model.order else "the Trainer's groups"
    batch_norms = {name.removesuffix(".running_mean") for name in model.weights if name.endswith(".running_mean")}
    biased = {name.removesuffix(".bias") for name in model.weights if name.endswith(".bias")}

    def gains(weight: Weight) -> bool:
        module, _, name = weight.name.rpartition(".")
        return len(weight.tensor.shape) == 1 and name == "weight" and module not in batch_norms

    def layer_norms(weight: Weight) -> bool:
        return gains(weight) and weight.name.rpartition(".")[0] in biased

    return [
        Order(what, _groups(names, norms), known=model.known or not model.order, lists_only=not model.order)
        for names in _NAMES
        for norms in (layer_norms, gains, lambda _: False)
    ]


def _groups(names: re.Pattern[str], norms: Callable[[Weight], bool]) -> Callable[[Sequence[Weight]], Groups]:
    decaying = split(lambda weight: not norms(weight) and not names.search(weight.name.lower()))
    return lambda weights: decaying([weight for weight in weights if weight.name.rpartition(".")[2] not in BUFFERS])
