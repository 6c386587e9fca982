"""Tensors of which each process of a group holds a part: what is here, and where in the whole it belongs."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from optstate.formats.containers.assembled import Assembled, Piece
from optstate.formats.containers.constructors_python import expect
from optstate.formats.containers.pickle_machine import Global, Node
from optstate.formats.containers.records import attribute
from optstate.state.tensors import is_tensor

PARTS = 16
"""Shards of one tensor that a process may hold, and dimensions that a mesh may have."""


def sharded_tensor(dtype: str, shape: tuple[int, ...], state: Node) -> Node:
    """A `ShardedTensor`: (shards of this process, metadata, ...). Each shard says where it belongs."""
    shards = expect(expect(state, tuple)[0], list)
    if len(shards) > PARTS:
        raise ValueError(f"{len(shards)} shards of one tensor in one process")
    return Assembled("", dtype, shape, [_shard(shard) for shard in shards])


def _shard(node: Node) -> Piece:
    start, tensor = attribute(attribute(node, "metadata"), "shard_offsets"), attribute(node, "tensor")
    if not is_tensor(tensor) or type(start) not in (list, tuple) or len(start) != len(tensor.shape):
        raise ValueError("a shard without values or place")
    return Piece(_integers(start), tensor)


def tensor_of_mesh(_dtype: str, shape: tuple[int, ...], state: Node) -> Node:
    """A `DTensor`: the part of this process, and how the mesh cuts the whole.

    It is the part itself where every process has all of it. NotImplemented where the file does not say which part this
    is: sums that are still to be made, cuts of another kind, and meshes that do not know their own place.
    """
    wrapped = state[1] if type(state) is tuple and len(state) == 2 else state
    local, spec = (expect(wrapped, dict).get(name) for name in ("_local_tensor", "_spec"))
    if not is_tensor(local):
        raise ValueError("a part that is none")
    placements, mesh = attribute(spec, "placements"), attribute(spec, "mesh")
    if type(placements) is not tuple or not 0 < len(placements) <= PARTS:
        raise ValueError("placements that are none")
    cuts = [_cut(placement) for placement in placements]
    if all(cut == _WHOLE for cut in cuts) and local.shape == shape:
        return local
    sizes, coordinate = _mesh_sizes(mesh), attribute(mesh, "_coordinate_on_dim")
    if None in cuts or type(coordinate) not in (list, tuple) or not len(sizes) == len(coordinate) == len(cuts):
        return NotImplemented
    start, part = _place(shape, zip(cuts, sizes, _integers(coordinate), strict=True))
    if part != local.shape:
        raise ValueError(f"a part of shape {list(local.shape)} where the mesh says {list(part)}")
    return Assembled("", local.dtype, shape, [Piece(start, local)])


_WHOLE = -1


def _cut(placement: Node) -> int | None:
    """The dimension along which a placement cuts, `_WHOLE` for none, None where it is of another kind."""
    kind = getattr(placement, "kind", None)
    if type(kind) is not Global:
        return None
    if kind.name == "Replicate":
        return _WHOLE
    dimension = attribute(placement, "dim")
    return dimension if kind.name == "Shard" and type(dimension) is int and dimension >= 0 else None


def _mesh_sizes(mesh: Node) -> tuple[int, ...]:
    """The sizes of a mesh, () where they are not told: of its layout, or of the tensor of ranks that torch wrote before."""
    axes = attribute(attribute(mesh, "_layout"), "axes")
    if type(axes) is tuple and len(axes) <= PARTS:
        return tuple(prod(_integers(attribute(axis, "shape"))) for axis in axes)
    ranks = attribute(mesh, "mesh")
    return tuple(ranks.shape) if is_tensor(ranks) else ()


def _place(
    shape: tuple[int, ...], cuts: Iterator[tuple[int | None, int, int]]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Start and sizes of the part at a coordinate, as `torch.chunk` cuts: equal parts, the last ones shorter."""
    start, part = [0] * len(shape), list(shape)
    for axis, number, index in cuts:
        if axis == _WHOLE:
            continue
        if axis is None or axis >= len(shape) or not 0 <= index < number:
            raise ValueError("a cut along a dimension that there is not, or a place outside the mesh")
        length = -(-part[axis] // number)
        first = min(length * index, part[axis])
        start[axis] += first
        part[axis] = min(length, part[axis] - first)
    return tuple(start), tuple(part)


def _integers(node: Node) -> tuple[int, ...]:
    if type(node) not in (list, tuple) or len(node) > 64 or any(type(each) is not int for each in node):
        raise ValueError("places that are none")
    return tuple(node)
