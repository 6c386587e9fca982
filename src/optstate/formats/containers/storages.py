"""What a persistent id of torch stands for: a run of bytes, and the type of the elements in it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from optstate.formats.containers.pickle_machine import Global, Node
from optstate.formats.containers.stored_tensor import Record

STORAGES: Mapping[str, str] = MappingProxyType(
    {
        "DoubleStorage": "float64",
        "FloatStorage": "float32",
        "HalfStorage": "float16",
        "BFloat16Storage": "bfloat16",
        "ComplexDoubleStorage": "complex128",
        "ComplexFloatStorage": "complex64",
        "LongStorage": "int64",
        "IntStorage": "int32",
        "ShortStorage": "int16",
        "CharStorage": "int8",
        "ByteStorage": "uint8",
        "BoolStorage": "bool",
        "QInt8Storage": "qint8",
        "QUInt8Storage": "quint8",
        "QInt32Storage": "qint32",
    }
)
"""Storage classes of torch, and the element type each is for. An untyped one counts bytes."""

UNTYPED = ("torch.storage", "UntypedStorage")


class Storage:
    """What a persistent id of torch stands for: a record, and its element type as `storage_dtype` has it."""

    __slots__ = ("dtype", "record", "swap")

    def __init__(self, record: Record, dtype: str | None, swap: bool) -> None:
        self.record = record
        self.dtype = dtype
        self.swap = swap

    def __str__(self) -> str:
        return f"{self.dtype or 'untyped'} storage in {self.record.where}"


def storage_dtype(kind: Node) -> str | None:
    """The element type of a storage class: None for an untyped one, the class itself where its type is not known."""
    if type(kind) is not Global:
        raise ValueError("a storage whose class is none")
    if (kind.module, kind.name) == UNTYPED:
        return None
    return (STORAGES.get(kind.name) if kind.module == "torch" else None) or str(kind)
