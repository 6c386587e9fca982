"""What `optstate convert` puts beside the tensors of a safetensors file: groups, plain slots and objects, as one JSON.

Weights stand in the file under their names, slots as `<parameter>/<slot>`. Under `optstate` in its metadata there is a
typed tree: `optimizer` (a by-name dict as `named_state_dict` makes it), `objects`, `step`, and `aliases` (name → further
names of tied weights); tensors in it are names in the file. Every tensor that it does not name is a weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from optstate.errors import Refused
from optstate.formats.ours.nodes import Tree
from optstate.formats.ours.tree import decode
from optstate.formats.parts import Parts
from optstate.state.tensors import TensorRef
from optstate.text import safe_text

METADATA = "optstate"
"""The key of the typed tree in the metadata of the file."""


def read_flat(text: str, tensors: Mapping[str, TensorRef], file: str, notes: Sequence[str]) -> Parts:
    """The parts of a file with such metadata; `notes` is what is to be said about reading it. Raises `Refused` for metadata that is not so."""
    used: set[str] = set()

    def tensor(name: str) -> TensorRef:
        used.add(name)
        return tensors[name]

    try:
        node = decode(msgspec.json.decode(text, type=Tree), tensor)
        optimizer, objects, step = node.get("optimizer"), node["objects"], node["step"]
        weights = {name: ref for name, ref in tensors.items() if name not in used}
        tied = {alias: weights[name] for name, aliases in node["aliases"].items() for alias in aliases}
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(
            f"{file} has metadata that optstate did not write",
            where=f"__metadata__.{METADATA}",
            found=f"{type(error).__name__}: {safe_text(error)}",
            todo="the program that wrote it is at fault",
        ) from None
    return Parts(
        format="safetensors",
        weights=weights | tied,
        named=None if optimizer is None else (f"__metadata__.{METADATA}", optimizer),
        step=step if type(step) is int else None,
        objects=_checked(objects, file),
        notes=notes,
    )


def _checked(objects: Any, file: str) -> dict[str, Any]:
    if type(objects) is dict and all(type(name) is str for name in objects):
        return objects
    raise Refused(f"{file} has metadata that optstate did not write", where=f"__metadata__.{METADATA}.objects")
