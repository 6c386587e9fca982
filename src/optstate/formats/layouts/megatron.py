"""Megatron-core's `torch_dist` folders: a DCP directory without paths, and `common.pt` for what no rank has alone.

State that is named says the slot before the parameter. Moments in the flat buckets of the distributed optimizer belong
to parameters by a layout that is not in the files: they are shown under their raw keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optstate.errors import ReadError
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.dcp import is_dcp
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_machine import Node
from optstate.formats.layouts.dcp import read_dcp
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.torch_save import entries_of, read_entries
from optstate.formats.layouts.weights import attempt
from optstate.formats.layouts.writers import Writer
from optstate.formats.parts import Parts
from optstate.text import count

FORMAT = "Megatron-core"

COMMON = "common.pt"

_ADAM = {
    "betas",
    "bias_correction",
}  # options that together only the fused Adam has, apex's or Transformer Engine's alike
_SMALL = 1 << 16  # bytes of `metadata.json`, which has four short entries


def _fits(folder: Folder) -> bool:
    if not folder.holds("metadata.json") or not is_dcp(folder):
        return False
    try:
        described = folder.json("metadata.json", _SMALL)
    except ReadError:
        return False
    return type(described) is dict and described.get("sharded_backend") == "torch_dist"


def _read(folder: Folder) -> Parts:
    """The parts of the shards and of `common.pt`. Raises as `read_dcp` does."""
    parts = read_dcp(folder)
    unread = [*parts.unread]
    pickled = attempt(unread, folder, COMMON, read_any_pickle) if folder.holds(COMMON) else None
    parts.format, parts.unread = FORMAT, unread
    if pickled is not None:
        common = read_entries(entries_of(pickled.root), Writer(FORMAT, steps=(("iteration",),)))
        parts.step, parts.objects = common.step, {**common.objects, **parts.objects}
        parts.notes = [*parts.notes, *pickled.notes]
        options = _options(common.objects.get("optimizer"))
        for optimizer in parts.optimizers.values():
            for group in optimizer["param_groups"]:
                group |= {key: value for key, value in options.items() if key not in group}
        if options.keys() >= _ADAM:
            parts.classes = dict.fromkeys(parts.optimizers, "apex.optimizers.fused_adam.FusedAdam")
    if any("bucket" in key for key in parts.unplaced):
        parts.clues = [*parts.clues, _clue_on_buckets(len(parts.unplaced))]
    return parts


LAYOUT = FolderLayout(FORMAT, _fits, _read)


def _options(node: Node) -> dict[str, Any]:
    """What all groups agree on; which parameters are in which of them the files do not say."""
    groups = [group for group in _groups(node) if type(group) is dict]
    common = {
        key: value
        for key, value in (groups[0] if groups else {}).items()
        if type(key) is str and all(type(group.get(key)) is type(value) and group[key] == value for group in groups)
    }
    return {key: value for key, value in common.items() if key != "params"}


def _groups(node: Node) -> Sequence[Node]:
    """The groups of an optimizer, or of several that are chained."""
    if not isinstance(node, Mapping):
        return ()
    inner = node.get("optimizer", node)
    groups = inner.get("param_groups") if isinstance(inner, Mapping) else None
    return groups if type(groups) is list else ()


def _clue_on_buckets(number: int) -> Clue:
    return Clue(
        "M201",
        f"{count(number, 'tensor')} of the distributed optimizer in flat buckets: which range of them belongs to which "
        "parameter depends on the layout of the run, which no file has",
        "save the optimizer in a sharding type with names, such as fully_reshardable",
    )
