"""DeepSpeed's universal folders: one folder for each parameter, one file for each of its slots, named as they are.

Source: `checkpoint/ds_to_universal.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from optstate.errors import Damaged, ReadError
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.assembled import Assembled, Piece
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts.deepspeed import model_file, shapes_of, weights_of
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.zero import MASTER
from optstate.formats.parts import Parts
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import count, safe_text

if TYPE_CHECKING:
    import numpy as np

_ZERO = "zero"
_LATEST = "latest_universal"
_GROUPS = "optimizer_state.pt"


class FileTensor:
    """A tensor that has a file to itself; satisfies `optstate.state.tensors.TensorRef`.

    A folder of a large model has more of them than a process may have files open, so each is opened to be looked at,
    and opened again to be read. Raises `ReadError` as its container's reader does, and `Damaged` for a file without a
    tensor or one that has changed.
    """

    def __init__(self, folder: Folder, file: str, name: str) -> None:
        self._folder = folder
        self._file = file
        self.name = name
        found = self._open()
        self.dtype, self.shape = found.dtype, found.shape

    def array(self) -> np.ndarray[Any, Any]:
        return self._again().array()

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        return self._again().blocks()

    def item(self) -> bool | int | float | complex:
        return self._again().item()

    def _open(self) -> TensorRef:
        root = read_any_pickle(self._folder.open(self._file)).root
        # Stages 1 and 2 put a dict around it that says along which dimension it was cut.
        tensor = root.get("param") if type(root) is dict else root
        if is_tensor(tensor):
            return tensor
        raise Damaged(f"{safe_text(self._folder.path / self._file)} holds no tensor", found=type(root).__name__)

    def _again(self) -> TensorRef:
        tensor = self._open()
        if (tensor.dtype, tensor.shape) != (self.dtype, self.shape):
            raise Damaged(f"{safe_text(self.name)} changed while it was read", where=safe_text(self._file))
        return tensor

    def __repr__(self) -> str:
        return f"{self.dtype} {list(self.shape)} in {safe_text(self._file)}"


def fits(folder: Folder) -> bool:
    """Whether this is a universal folder, or one above it that names it."""
    return _is_universal(folder) or universal_below(folder) is not None


def _is_universal(folder: Folder) -> bool:
    if _ZERO not in folder.folders:
        return False
    zero = folder.folder(_ZERO)
    return _GROUPS in zero.files or any(f"{MASTER}.pt" in zero.folder(name).files for name in zero.folders[:1])


def universal_below(folder: Folder) -> Folder | None:
    """The universal folder that a folder above it names as the latest; None where it names none."""
    if _LATEST not in folder.files:
        return None
    name = folder.text(_LATEST, 4096).strip()
    return folder.folder(name) if name in folder.folders and _is_universal(folder.folder(name)) else None


def read(folder: Folder) -> Parts:
    """The parts of a universal folder; what cannot be read of it is told in `unread`."""
    inner = universal_below(folder) or folder
    zero = inner.folder(_ZERO)
    about, notes = model_file(inner)
    shapes = shapes_of(about.get("param_shapes"))
    groups, state = _groups(zero)
    parts = Parts("DeepSpeed Universal", step=_number(about.get("global_steps")), added={MASTER: "master_weights"})
    known = {name: shape for group in shapes for name, shape in group.items()}
    found, unread = _slots(zero, known)
    # A frozen parameter has a folder with its value alone.
    slots = {name: entry for name, entry in found.items() if name in known or entry.keys() - {MASTER}}
    for index, group in enumerate(shapes):
        for name in group:
            if "step" in state.get(index, {}) and slots.get(name, {}).keys() - {MASTER}:
                slots[name].setdefault("step", state[index]["step"])
    parts.optimizers = {"": {"state": slots, "param_groups": _named_groups(groups, shapes, slots)}}
    masters = {name: entry[MASTER] for name, entry in found.items() if MASTER in entry}
    parts.weights = {**masters, **{name: each for name, each in weights_of(about).items() if prod(each.shape)}}
    parts.unread, parts.notes = unread, notes
    if unread:
        parts.clues = [Clue("M118", f"{count(len(unread), 'part')} of the folder could not be read: {unread[0]}")]
    objects = {key: about[key] for key in ("lr_scheduler", "ds_config") if about.get(key)}
    parts.notes = [*notes, *prune(objects)]
    parts.objects = objects
    return parts


LAYOUT = FolderLayout("DeepSpeed Universal", fits, read)


def _slots(zero: Folder, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The slots of every parameter, and the files that could not be read."""
    slots: dict[str, dict[str, Any]] = {}
    unread: list[str] = []
    for name in zero.folders:
        folder, entry = zero.folder(name), slots.setdefault(name, {})
        for file in folder.matching("*.pt"):
            key = file.removesuffix(".pt")
            try:
                tensor = FileTensor(folder, file, f"{name}/{key}")
                entry[key] = _shaped(tensor, shapes.get(name))
            except (ReadError, ValueError) as error:
                unread.append(f"{safe_text(name)}/{safe_text(file)}: {safe_text(getattr(error, 'what', error))}")
    absent = [f"{safe_text(name)}: no folder of this name" for name in shapes if name not in slots]
    return slots, [*unread, *absent]


def _shaped(tensor: FileTensor, shape: tuple[int, ...] | None) -> TensorRef:
    """A tensor with the shape of its parameter; stage 3 writes them flat."""
    if shape is None or not tensor.shape or tensor.shape == shape:
        return tensor
    return Assembled(tensor.name, tensor.dtype, shape, [Piece((0,), tensor)], flat=True)


def _groups(zero: Folder) -> tuple[list[dict[str, Any]], dict[int, dict[str, Any]]]:
    """The param groups, and what stage 3 keeps of its flat vectors: the step among them."""
    if _GROUPS not in zero.files:
        return [], {}
    root = read_any_pickle(zero.open(_GROUPS)).root
    if type(root) is not dict:
        return [], {}
    groups = root.get("param_groups")
    inner = root.get("optimizer_state_dict")
    state = inner.get("state") if type(inner) is dict else None
    return (
        [group for group in groups if type(group) is dict] if type(groups) is list else [],
        {key: entry for key, entry in state.items() if type(entry) is dict} if type(state) is dict else {},
    )


def _named_groups(
    groups: list[dict[str, Any]], shapes: list[dict[str, tuple[int, ...]]], slots: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The groups with the names of their parameters, which the model's file tells; else one group of all."""
    if not shapes:
        return [{**(groups[0] if len(groups) == 1 else {}), "params": list(slots)}]
    members = iter([list(group) for group in shapes])
    found = []
    for group in groups or [{"params": [index]} for index in range(len(shapes))]:
        vectors = group["params"] if type(group.get("params")) is list else []
        names = [name for _, each in zip(vectors, members, strict=False) for name in each]
        found.append({**group, "params": names})
    return found


def _number(node: object) -> int | None:
    return node if type(node) is int else None
