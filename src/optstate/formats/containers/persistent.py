"""The storages that the persistent ids of a torch file name, each looked up once."""

from __future__ import annotations

from abc import abstractmethod

from optstate.formats.containers.pickle_machine import Global, Node
from optstate.formats.containers.storages import Storage, storage_dtype
from optstate.formats.containers.stored_tensor import Record
from optstate.state.tensors import DTYPES
from optstate.text import safe_text

_QUANTISED = {"qint8": 1, "quint8": 1, "qint32": 4}


class Storages:
    """What the persistent ids of a file stand for, one `Storage` for each key; each container finds them its own way.

    `lengths` are the elements that each key has, as the pickle says.
    """

    def __init__(self, *, swap: bool = False) -> None:
        self.lengths: dict[str, int] = {}
        self._swap = swap
        self._known: dict[str, Storage] = {}
        self._types: dict[Global, tuple[str | None, int | None]] = {}

    @abstractmethod
    def find(self, key: str, nbytes: int | None) -> Record:
        """The record of a key that has so many bytes; None where the size of its elements is not known.

        Raises `ValueError` where there is none, or it is not as long.
        """

    def get(self, kind: Node, key: Node, elements: Node) -> Storage:
        """The storage that a pickle describes by its class, its key and how many elements it has.

        Raises `ValueError` where that cannot be, or is not what the pickle said before.
        """
        if type(key) is not str or type(elements) is not int or elements < 0:
            raise ValueError("a storage whose key or length is none")
        if type(kind) is not Global:
            raise ValueError("a storage whose class is none")
        dtype, width = self._types.get(kind) or self._types.setdefault(kind, _type(kind))
        known = self._known.get(key)
        if known is None:
            record = self.find(key, None if width is None else elements * width)
            known = self._known[key] = Storage(record, dtype, self._swap)
            self.lengths[key] = elements
        elif (known.dtype, self.lengths[key]) != (dtype, elements):
            if elements or self.lengths[key]:
                raise ValueError(f"storage {safe_text(key, 40)} with two types or lengths")
            return Storage(known.record, dtype, self._swap)  # torch lets what is empty have any type
        return known


def _type(kind: Global) -> tuple[str | None, int | None]:
    """The element type of a storage class, and its bytes; an untyped storage counts bytes."""
    dtype = storage_dtype(kind)
    if dtype is None:
        return None, 1
    return dtype, DTYPES[dtype][0] if dtype in DTYPES else _QUANTISED.get(dtype)
