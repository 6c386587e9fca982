"""Looking into objects that a pickle describes and that were not made: namespaces, configurations, modules, enums."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optstate.formats.containers.pickle_machine import Call, Global, Node

_SHARDS, _MESH = "torch.distributed._shard", "torch.distributed.tensor"
_VALUES = frozenset(
    {
        ("argparse", "Namespace"),
        ("types", "SimpleNamespace"),
        ("functools", "partial"),
        ("fractions", "Fraction"),
        ("decimal", "Decimal"),
        ("uuid", "UUID"),
        # Which part of a tensor a process has.
        (f"{_MESH}._dtensor_spec", "DTensorSpec"),
        (f"{_MESH}._dtensor_spec", "TensorMeta"),
        (f"{_MESH}._dtensor_spec", "ShardOrderEntry"),
        (f"{_MESH}.placement_types", "Shard"),
        (f"{_MESH}.placement_types", "Replicate"),
        ("torch.distributed.device_mesh", "DeviceMesh"),
        ("torch.distributed._mesh_layout", "_MeshLayout"),
        ("torch.distributed._mesh_layout", "_FlatLayout"),
        ("torch.distributed.remote_device", "_remote_device"),
        (f"{_SHARDS}.metadata", "ShardMetadata"),
        (f"{_SHARDS}.sharded_tensor.shard", "Shard"),
        (f"{_SHARDS}.sharded_tensor.api", "ShardedTensor.ProcessGroupState"),
        (f"{_SHARDS}.sharded_tensor.metadata", "ShardedTensorMetadata"),
        (f"{_SHARDS}.sharded_tensor.metadata", "TensorProperties"),
        (f"{_SHARDS}.sharded_tensor.metadata", "MEM_FORMAT_ENCODING"),
        (f"{_SHARDS}.sharding_spec.chunk_sharding_spec", "ChunkShardingSpec"),
    }
)
"""Classes that hold values and do nothing: a record of one says all that there is to it, and needs no mention."""


def is_value(kind: Global) -> bool:
    """Whether a class only holds values, such as `argparse.Namespace`."""
    return (kind.module, kind.name) in _VALUES


def attributes_of(node: Node) -> Mapping[str, Node]:
    """The attributes of an object that was not made, by name; empty for anything else, or where it has none.

    Of a configuration of omegaconf they are its keys, or the places in it as text. Values are nodes as the pickle has
    them; an object may hold itself, so who follows them counts its steps.
    """
    if type(node) is Config and type(node.state) is list:
        return {str(index): _unwrapped(value) for index, value in enumerate(node.state)}
    return {key: _unwrapped(value) for part in _parts(node) for key, value in part.items() if type(key) is str}


def attribute(node: Node, name: str) -> Node:
    """One attribute of an object that was not made; None where it has none of this name."""
    return next((_unwrapped(part[name]) for part in _parts(node) if name in part), None)


def _parts(node: Node) -> list[dict[Any, Node]]:
    """The dicts in which an object keeps its attributes: one, or a second one where it has `__slots__`."""
    state = node.state if isinstance(node, Call) else None
    parts = state if type(state) is tuple and len(state) == 2 else (state,)
    return [part for part in parts if type(part) is dict]


def _unwrapped(value: Node) -> Node:
    return value.state if type(value) is Plain else value


class Config(Call):
    """A configuration of omegaconf: a dict or a list whose values know what contains them, which is left out here.

    `state` is what it holds; see `attributes_of`.
    """

    __slots__ = ()

    def set_state(self, state: Node) -> None:
        # Where it holds neither, it is None, missing (`???`) or an interpolation, as text.
        self.state = state.get("_content") if type(state) is dict else None


class Plain(Call):
    """A value in a configuration of omegaconf; `state` is the value itself."""

    __slots__ = ()

    def set_state(self, state: Node) -> None:
        self.state = state.get("_val") if type(state) is dict else None
