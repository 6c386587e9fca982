"""A checkpoint as one safetensors file: weights under their names, slots as `<parameter>/<slot>`, the rest as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from optstate.errors import Unsaveable
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.containers.safetensors_header import Item, alignment, encode_header
from optstate.formats.ours import nodes
from optstate.formats.ours.flat import METADATA
from optstate.formats.ours.manifest import join_key
from optstate.formats.ours.nodes import Node, Tree
from optstate.formats.ours.tree import Path as TreePath
from optstate.formats.ours.tree import encode
from optstate.state.tensors import TensorRef, is_tensor, nbytes
from optstate.store.commit import new_file
from optstate.store.files import Files
from optstate.store.pipeline import Pipeline
from optstate.store.runs import row_major_pieces
from optstate.store.torch_tree import by_name
from optstate.store.writer import HEADER_LIMIT
from optstate.text import safe_text, size

_STATE = ("optimizer", "state")


def write_flat(path: Path, checkpoint: Checkpoint, files: Files, *, replace: bool = False) -> None:
    """Write weights, slots, groups and objects as one file; see `optstate.formats.ours.flat` for what is where.

    Every value is one that `sieve.for_safetensors` lets through. Raises `Unsaveable` for two tensors of one name and for
    a header that readers refuse, `WriteFailed` and `TargetExists`.
    """
    tensors: dict[str, TensorRef] = {}
    for name, ref in checkpoint.weights.items():
        _put(tensors, name, ref)
    metadata = {"format": "pt"}
    rest = {
        "optimizer": by_name(checkpoint.state) if checkpoint.state.optimizers else None,
        "objects": dict(checkpoint.objects),
        "step": checkpoint.step,
        "aliases": {name: list(aliases) for name, aliases in checkpoint.aliases.items()},
    }
    if any(value not in (None, {}) for value in rest.values()):
        metadata[METADATA] = msgspec.json.encode(encode(rest, (), _leaf(tensors))).decode()
    items = [Item(name, ref.dtype, ref.shape, nbytes(ref)) for name, ref in tensors.items()]
    items.sort(key=lambda item: -alignment(item.nbytes))
    header = encode_header(items, metadata)
    if len(header) > 2 * HEADER_LIMIT:
        raise Unsaveable(
            f"{safe_text(path)} would have a header of {size(len(header))}, which readers refuse",
            todo="convert to a directory of optstate, which has no such limit",
        )
    total = len(header) + sum(item.nbytes for item in items)
    with (
        new_file(path, files, replace=replace, nbytes=total) as temporary,
        Pipeline(files) as pipeline,
        pipeline.file(temporary, total) as output,
    ):
        output.write(header)
        for item in items:
            for piece in row_major_pieces(tensors[item.name]):
                output.write(piece)


def _put(tensors: dict[str, TensorRef], name: str, ref: TensorRef) -> None:
    if name in tensors or name == "__metadata__":
        raise Unsaveable(f"two tensors would be called {safe_text(name)!r} in one file", todo="use another format")
    tensors[name] = ref


def _leaf(tensors: dict[str, TensorRef]) -> Any:
    """Encodes a tensor as its name in the file, where it is put at once."""

    def leaf(value: Any, path: TreePath) -> Tree:
        if isinstance(value, Node):
            return value  # type: ignore[return-value]
        if not is_tensor(value):
            return None
        parts = path[2:] if path[:2] == _STATE else path
        name = join_key(map(str, parts))
        _put(tensors, name, value)
        return nodes.Tensor(name)

    return leaf
