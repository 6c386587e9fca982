"""`torch.distributed.checkpoint` directories, and the programs that write them: torchtitan, Composer, anybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optstate.formats.checkpoint import Clue
from optstate.formats.containers.dcp import METADATA, UNFINISHED, DcpTree, is_dcp, read_tree
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_machine import Node
from optstate.formats.layouts.flattened import take_flattened
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.search import Path
from optstate.formats.layouts.torch_save import NO_STATE, entries_of, read_entries
from optstate.formats.layouts.writers import COMPOSER, Writer
from optstate.formats.parts import Parts
from optstate.state.tensors import is_tensor

FORMAT = "torch DCP"

LEVELS = 5
"""How deep optimizers are looked for: `state.optimizers.<class>` is the deepest seen."""

TORCHTITAN = Writer(
    "torchtitan",
    keys=frozenset({"train_state", "dataloader"}),
    weights=(("model",),),
    steps=(("train_state", "step"),),
)  # layout from source

ANYBODY = Writer(FORMAT)


def read_dcp(folder: Folder) -> Parts:
    """The parts of a DCP directory that may be one of several in another layout's folder; opens no more than it must.

    Raises `Damaged` for a save that did not finish, `Refused`, as `containers.dcp.read_tree` does.
    """
    tree = read_tree(folder)
    root = _restored(tree.root, ())
    unplaced = {key: node for key, node in root.items() if type(key) is str and is_tensor(node) and _of_optimizer(key)}
    entries = entries_of(_with_model({key: node for key, node in root.items() if key not in unplaced}))
    writer = next((each for each in (TORCHTITAN, COMPOSER) if each.fits(entries)), ANYBODY)
    parts = read_entries(entries, writer, tree.notes)
    parts.unplaced = {**parts.unplaced, **unplaced}
    parts.notes = [note for note in parts.notes if note != NO_STATE]
    parts.unread = [*parts.unread, *tree.unread]
    parts.clues = [*parts.clues, *_clues(tree, folder)]
    return parts


def _read(folder: Folder) -> Parts:
    """A DCP directory that is a checkpoint by itself."""
    parts = read_dcp(folder)
    if not parts.optimizers:
        parts.notes = [*parts.notes, NO_STATE]
    if not parts.optimizers and parts.weights:
        parts.clues = [*parts.clues, _ALONE]
    return parts


LAYOUT = FolderLayout(FORMAT, is_dcp, _read)

_ALONE = Clue(
    "M103",
    "the model was saved alone, as torchtitan does in its last step unless checkpoint.last_save_model_only is off",
    "save both: {'model': ..., 'optimizer': get_optimizer_state_dict(model, optimizer)}; an earlier step may have it",
)


def _of_optimizer(key: str) -> bool:
    """Whether a key that no path divides begins with an optimizer: what is left of those belongs to no parameter."""
    return "." in key and "optim" in key.partition(".")[0].lower()


def _with_model(root: dict[Any, Node]) -> dict[Any, Node]:
    """The tree with the tensors that torchtitan puts at its top, without anything in front, as one model."""
    weights = {key: value for key, value in root.items() if type(key) is str and "." in key and is_tensor(value)}
    if not weights or "model" in root:
        return root
    return {"model": weights, **{key: value for key, value in root.items() if key not in weights}}


# --- optimizers as torch has them -------------------------------------------------------------------------


def _restored(node: Node, path: Path) -> Node:
    """A node with every optimizer in it as torch's `state_dict` has it."""
    own = _state_dict(node, path)
    if own is not None or type(node) not in (dict, list) or len(path) >= LEVELS:
        return node if own is None else own
    if type(node) is list:
        return [_restored(child, (*path, str(index))) for index, child in enumerate(node)]
    flattened, others = take_flattened(node, optimizer=_says_optimizer(path))
    found = {key: _restored(child, (*path, str(key))) for key, child in others.items()}
    for owner, state_dict in flattened.items():
        found |= {owner: state_dict} if owner else state_dict
    return found


def _says_optimizer(path: Path) -> bool:
    return any("optim" in part.lower() for part in path)


def _state_dict(node: Node, path: Path) -> dict[str, Any] | None:
    """A nested optimizer as torch's `state_dict` has it, None where a node is none.

    DCP leaves out an empty `state`, and turns numbers that are keys into text.
    """
    if type(node) is not dict:
        return None
    state, groups = node.get("state", {}), node.get("param_groups", [None])
    if type(state) is not dict or not all(type(entry) is dict for entry in state.values()):
        return None
    if not _are_groups(groups):
        if "state" not in node or not _says_optimizer(path):
            return None
        groups = [{"params": list(state)}]  # they are missing, or in a file of another kind
    if all(type(key) is int for group in groups for key in group["params"]):
        state = {int(key) if str(key).isdecimal() and len(key) < 10 else key: entry for key, entry in state.items()}
    return {**node, "state": state, "param_groups": groups}


def _are_groups(node: Node) -> bool:
    return type(node) is list and all(type(group) is dict and type(group.get("params")) is list for group in node)


# --- what is to be said -----------------------------------------------------------------------------------


def _clues(tree: DcpTree, folder: Folder) -> Iterator[Clue]:
    if tree.missing:
        yield Clue(
            "M513",
            f"values that the metadata describe are not in the shards: {'; '.join(tree.missing)}",
            "copy the missing shards from where they were written, or use an earlier checkpoint",
        )
    if folder.holds(METADATA, UNFINISHED):
        yield Clue("M522", f"{UNFINISHED} beside {METADATA}: a later save into this folder did not finish")
