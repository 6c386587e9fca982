"""What torch's calls in a pickle stand for: tensors of every layout, and the small types beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

from optstate.formats.containers.assembled import Absent
from optstate.formats.containers.constructors_python import expect, text
from optstate.formats.containers.distributed import sharded_tensor, tensor_of_mesh
from optstate.formats.containers.pickle_machine import Constructor, Global, Node
from optstate.formats.containers.quantised import Affine, Blockwise
from optstate.formats.containers.sparse import CompressedRef, SparseRef
from optstate.formats.containers.storages import Storage
from optstate.formats.containers.stored_tensor import MAX_RANK, StoredTensor
from optstate.state.tensors import DTYPES, TensorRef, is_tensor
from optstate.text import safe_text

# --- strided tensors --------------------------------------------------------------------------------------


def _tensor(
    storage: Node, offset: Node, shape: Node, stride: Node, grad: Node = None, hooks: Node = None, flags: Node = None
) -> Node:
    if type(storage) is not Storage or storage.dtype is None:
        raise ValueError("a storage that is none, or has no type")
    if storage.dtype not in DTYPES:
        return NotImplemented
    return _view(storage, storage.dtype, offset, shape, stride, flags)


def _typed_tensor(
    storage: Node, offset: Node, shape: Node, stride: Node, grad: Node, hooks: Node, dtype: Node, flags: Node = None
) -> Node:
    if type(storage) is not Storage:
        raise ValueError("a storage that is none")
    name = _dtype(dtype)
    if name not in DTYPES:
        return NotImplemented
    if storage.dtype not in (None, name):
        raise ValueError(f"elements {safe_text(name)} in a storage of {storage.dtype}")
    return _view(storage, name, offset, shape, stride, flags)


def _view(storage: Storage, dtype: str, offset: Node, shape: Node, stride: Node, flags: Node) -> Node:
    if not flags:
        return StoredTensor(storage.record, dtype, offset, shape, stride, swap=storage.swap)
    if type(flags) is not dict or not flags.keys() <= {"conj", "neg"}:
        return NotImplemented
    conj, neg = bool(flags.get("conj")), bool(flags.get("neg"))
    return StoredTensor(storage.record, dtype, offset, shape, stride, swap=storage.swap, conj=conj, neg=neg)


def _parameter(tensor: Node, grad: Node, hooks: Node, state: Node = None) -> Node:
    return tensor


def _on_device(values: Node, dtype: Node, device: Node, grad: Node) -> Node:
    """A tensor of a device that pickles none of its own: its values as an array of numpy, or as one of the CPU's."""
    if not is_tensor(values):
        raise ValueError("values that are none")
    _dtype(dtype)  # what the device had; values of bfloat16 are written as the wider float32
    return values


def _without_values(dtype: Node, shape: Node, stride: Node, grad: Node) -> Absent:
    return Absent("", _dtype(dtype), _shape(shape), "a tensor on the meta device was saved, which has none")


def _dtype(node: Node) -> str:
    if type(node) is not Global or node.module != "torch":
        raise ValueError("an element type that is none")
    return node.name


def _shape(node: Node) -> tuple[int, ...]:
    sizes: tuple[int, ...] = expect(node, tuple)
    if len(sizes) > MAX_RANK or any(type(length) is not int or length < 0 for length in sizes):
        raise ValueError("a shape that is none")
    return sizes


# --- sparse and quantised ---------------------------------------------------------------------------------


def _layout(name: Node) -> Global:
    return Global("torch", expect(name, str).removeprefix("torch."), None)


def _sparse(layout: Node, data: Node) -> Node:
    if type(layout) is not Global or type(data) is not tuple:
        raise ValueError("a layout or data that are none")
    if layout.name == "sparse_coo" and len(data) in (3, 4):
        return _coordinates(*data)
    if layout.name in ("sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc") and len(data) == 4:
        return _compressed(layout.name.removeprefix("sparse_"), *data)
    return NotImplemented


def _coordinates(indices: Node, values: Node, shape: Node, coalesced: Node = None) -> SparseRef:
    places, found = _integers(indices), _numbers(values)
    sizes = _shape(shape)
    if len(places.shape) != 2 or places.shape[1:] != found.shape[:1]:
        raise ValueError(f"indices of shape {list(places.shape)} for values of shape {list(found.shape)}")
    if sizes[places.shape[0] :] != found.shape[1:] or places.shape[0] > len(sizes):
        raise ValueError(f"values of shape {list(found.shape)} in a sparse tensor of shape {list(sizes)}")
    return SparseRef(places, found, sizes, coalesced is True)


def _compressed(layout: Any, compressed: Node, plain: Node, values: Node, shape: Node) -> CompressedRef:
    starts, places, found, sizes = _integers(compressed), _integers(plain), _numbers(values), _shape(shape)
    batch = len(sizes) - 2
    if batch < 0 or len(starts.shape) != batch + 1 or len(places.shape) != batch + 1:
        raise ValueError(f"indices of {len(starts.shape)} and {len(places.shape)} dimensions for shape {list(sizes)}")
    if found.shape[: batch + 1] != places.shape:
        raise ValueError(f"indices of shape {list(places.shape)} for values of shape {list(found.shape)}")
    if len(found.shape) != batch + (3 if layout in ("bsr", "bsc") else 1):
        raise ValueError(f"values of {len(found.shape)} dimensions in layout {layout}")
    return CompressedRef(layout, starts, places, found, sizes)


def _integers(node: Node) -> TensorRef:
    if not is_tensor(node) or node.dtype not in ("int64", "int32"):
        raise ValueError("indices that are none")
    return node


def _numbers(node: Node) -> TensorRef:
    if not is_tensor(node) or node.dtype not in DTYPES:
        raise ValueError("values that are none")
    return node


_QUANTISED = {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}


def _quantised(
    storage: Node, offset: Node, shape: Node, stride: Node, quantiser: Node, grad: Node, hooks: Node
) -> Node:
    if type(storage) is not Storage or type(quantiser) is not tuple or not quantiser:
        raise ValueError("a storage or a quantiser that is none")
    if storage.dtype not in _QUANTISED:
        return NotImplemented
    scheme, *parameters = quantiser
    codes = StoredTensor(storage.record, _QUANTISED[storage.dtype], offset, shape, stride, swap=storage.swap)
    if _dtype(scheme) == "per_tensor_affine" and len(parameters) == 2:
        scale, zero_point = parameters
        return Affine(storage.dtype, codes, expect(scale, float), expect(zero_point, int), None)
    if _dtype(scheme) == "per_channel_affine" and len(parameters) == 3 and all(map(is_tensor, parameters[:2])):
        scales, zero_points, axis = parameters
        return Affine(storage.dtype, codes, scales, zero_points, expect(axis, int))
    return NotImplemented


# --- subclasses -------------------------------------------------------------------------------------------


def _of_class(rebuild: Node, kind: Node, arguments: Node, state: Node) -> Node:
    """A tensor of a subclass, or one that someone hung attributes on.

    One with a storage of its own has its values there, whatever the class does with them. One that wraps other tensors
    has them in its state: classes that are known become what they stand for, others stay a record.
    """
    if type(rebuild) is not Global or type(kind) is not Global or type(arguments) is not tuple:
        raise ValueError("a function, a class or arguments that are none")
    if rebuild.constructor in _WITH_STORAGE:
        return rebuild.constructor(*arguments)
    if rebuild.constructor is not _wrapper or (kind.module, kind.name) not in WRAPPERS:
        return NotImplemented
    _, dtype, shape, *_ = arguments if len(arguments) == 8 else (None, None, None)
    return WRAPPERS[kind.module, kind.name](_dtype(dtype), _shape(shape), state)


def _wrapper(*arguments: Node) -> Node:
    """`_rebuild_wrapper_subclass` alone, without the state that says what is wrapped."""
    return NotImplemented


def _in_blocks(dtype: str, shape: tuple[int, ...], state: Node) -> Node:
    """A quantised slot of torchao: `codes`, `scale` and, but for fp8, `qmap`."""
    parts = [expect(state, dict).get(name) for name in ("codes", "scale", "qmap")]
    codes, scale, qmap = parts
    if not is_tensor(codes) or not is_tensor(scale) or not (qmap is None or is_tensor(qmap)):
        raise ValueError("codes or scales that are none")
    blocks = prod(scale.shape)
    if len(scale.shape) != 1 or not blocks or prod(shape) % blocks:
        raise ValueError(f"scales of shape {list(scale.shape)} for a tensor of shape {list(shape)}")
    return Blockwise(codes, scale, qmap, shape, prod(shape) // blocks)


_WITH_STORAGE = (_tensor, _typed_tensor, _quantised, _sparse)

_AO = "torchao.optim.subclass_"
WRAPPERS: Mapping[tuple[str, str], Callable[[str, tuple[int, ...], Node], Node]] = {
    ("torch.distributed.tensor", "DTensor"): tensor_of_mesh,
    ("torch.distributed._tensor", "DTensor"): tensor_of_mesh,
    ("torch.distributed._tensor.api", "DTensor"): tensor_of_mesh,
    ("torch.distributed._shard.sharded_tensor.api", "ShardedTensor"): sharded_tensor,
    **{
        (module, name): _in_blocks
        for package in (_AO, f"{_AO[:8]}prototype.low_bit_optim.subclass_")
        for module, name in (
            (f"{package}8bit", "OptimState8bit"),
            (f"{package}4bit", "OptimState4bit"),
            (f"{package}fp8", "OptimStateFp8"),
        )
    },
}


# --- small types ------------------------------------------------------------------------------------------


def _size(sizes: Node) -> Node:
    return expect(sizes, tuple)


def _device(kind: Node, index: Node = None) -> str:
    return expect(kind, str) if index is None else f"{expect(kind, str)}:{expect(index, int)}"


TORCH: Mapping[tuple[str, str], Constructor] = MappingProxyType(
    {
        ("torch._utils", "_rebuild_tensor"): _tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch._utils", "_rebuild_meta_tensor_no_storage"): _without_values,
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): _on_device,
        ("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"): _on_device,
        ("torch._utils", "_rebuild_xla_tensor"): _on_device,
        ("torch._utils", "_rebuild_sparse_tensor"): _sparse,
        ("torch._utils", "_rebuild_qtensor"): _quantised,
        ("torch._utils", "_rebuild_wrapper_subclass"): _wrapper,
        ("torch._tensor", "_rebuild_from_type_v2"): _of_class,
        ("torch.serialization", "_get_layout"): _layout,
        ("torch.torch_version", "TorchVersion"): text,
        ("torch", "Size"): _size,
        ("torch", "device"): _device,
    }
)
