"""torchtune's folders: the recipe's state with the optimizer in one file, the weights of each epoch in folders beside it.

Layout from source: `torchtune/training/checkpointing/_checkpointer.py`.
"""

from __future__ import annotations

import re

from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.folder import Folder
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.torch_save import read as read_dict
from optstate.formats.layouts.weights import Tensors, attempt, read_tensors, read_weights
from optstate.formats.layouts.writers import TORCHTUNE
from optstate.formats.parts import Parts
from optstate.text import safe_text

_RECIPE = "recipe_state.pt"
_HOME = "recipe_state"
_STEMS = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.pt",
    "adapter_model.bin",
)
_SINGLE = re.compile(r"(?:ft-)?model-0*1-of-0*1\.(?:safetensors|bin|pt)")
_EPOCH = re.compile(r"(?:epoch|step)_(\d+)")


def fits(folder: Folder) -> bool:
    """Whether the recipe's state lies here, or in the folder that newer versions give it."""
    return _RECIPE in folder.files or (_HOME in folder.folders and _RECIPE in folder.folder(_HOME).files)


def read(folder: Folder) -> Parts:
    """The recipe's state, and the weights of the epoch that it belongs to.

    The weights have the names of the format that they were converted to, the optimizer those of torchtune. Raises
    `ReadError` for a recipe's state that cannot be read.
    """
    home = folder if _RECIPE in folder.files else folder.folder(_HOME)
    pickled = read_any_pickle(home.open(_RECIPE))
    parts = read_dict(pickled, TORCHTUNE)
    parts.orders = ()  # that of converted weights is not the optimizer's
    place, weights = _weights(folder, parts.objects.get("epochs_run"))
    parts.weights = {**weights.tensors, **parts.weights}
    parts.clues = [*pickled.clues, *parts.clues]
    parts.unread = [*parts.unread, *weights.unread]
    parts.notes = [*parts.notes, *weights.notes, *([f"the weights are those of {safe_text(place)}"] if place else [])]
    return parts


LAYOUT = FolderLayout("torchtune", fits, read)


def _weights(folder: Folder, epochs: object) -> tuple[str, Tensors]:
    """The weights in the folder itself, else of the epoch after which the recipe's state was saved, and where they are."""
    found = _in(folder)
    if found is not None:
        return "", found
    last = [f"epoch_{epochs - 1}"] if isinstance(epochs, int) else []
    numbered = sorted((int(match[1]), name) for name in folder.folders if (match := _EPOCH.fullmatch(name)))
    for name in (*last, *(name for _, name in reversed(numbered))):
        if name in folder.folders and (found := _in(folder.folder(name))) is not None:
            return name, found
    return "", Tensors()


def _in(folder: Folder) -> Tensors | None:
    name, found = read_weights(folder, *_STEMS)
    if name:
        return found
    single = next((name for name in folder.files if _SINGLE.fullmatch(name)), None)
    if single is None:
        return None
    unread: list[str] = []
    return attempt(unread, folder, single, read_tensors) or Tensors(unread=unread)
