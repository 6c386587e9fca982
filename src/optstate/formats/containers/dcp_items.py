"""The items of a `torch.distributed.checkpoint` directory: each a file of torch, one behind the other in shard files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from optstate.errors import Damaged
from optstate.formats.containers.dcp_metadata import Place
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_machine import Node
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import listing, safe_text, size

if TYPE_CHECKING:
    import numpy as np

CODED = "coded as"
"""How the reason begins for an item that is there and was compressed."""

_OPEN = 64  # shard files open at once: a large save has more than a process may open
_SMALL = 1 << 12  # bytes of an item that is remembered: one number in a file of torch has 1,600


class Shards:
    """The shard files of a directory, a few open at a time."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._source = lru_cache(_OPEN)(folder.open)
        self._size = lru_cache(None)(folder.size)
        self._known: dict[tuple[bytes, str], Node] = {}
        self.notes: dict[str, None] = {}
        """What is to be said about the items that were read for what is no tensor."""

    def loss(self, place: Place) -> str | None:
        """Why an item is not there or cannot be read, None where it can; no file is opened to tell."""
        there = self._size(place.file)
        if there is None:
            return f"{safe_text(place.file)} is missing"
        if place.offset + place.length > there:
            return f"{safe_text(place.file)} ends too early, after {size(there)}"
        if place.coding:
            return f"{CODED} {listing(place.coding)}, which is not read"
        return None

    def item(self, place: Place, key: str) -> Pickled:
        """What an item holds. Raises `ReadError`."""
        return read_torch_zip(ZipArchive(self._source(place.file).window(place.offset, place.length, key)))

    def plain(self, place: Place, key: str) -> Node:
        """What an item holds that is no tensor. Raises `ReadError`."""

        def read() -> Node:
            pickled = self.item(place, key)
            self.notes |= dict.fromkeys(pickled.notes)
            return pickled.root

        return self.known(place, "", read)

    def known(self, place: Place, what: str, read: Callable[[], Node]) -> Node:
        """What `read` finds in an item; of the same few bytes, with the same `what` wanted of them, only once.

        A flattened optimizer has each hyperparameter once for each parameter.
        """
        if place.length > _SMALL:
            return read()
        raw = self._source(place.file).read(place.offset, place.length)
        if (raw, what) not in self._known:
            self._known[raw, what] = read()
        return self._known[raw, what]


class ItemTensor:
    """A tensor that is an item of a shard file; satisfies `optstate.state.tensors.TensorRef`.

    Type and shape are those that the metadata state. Asking for values raises `Damaged` where the item is another
    tensor, or none.
    """

    __slots__ = ("_place", "_shards", "dtype", "name", "shape")

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], place: Place, shards: Shards) -> None:
        self.name = name
        self.dtype = dtype
        self.shape = shape
        self._place = place
        self._shards = shards

    def array(self) -> np.ndarray[Any, Any]:
        """The values, checked. Raises `Damaged`, which names this tensor."""
        return self._stored().array()

    def blocks(self) -> Iterator[np.ndarray[Any, Any]]:
        """The values in row-major order, a block at a time; raises as `array` does."""
        return self._stored().blocks()

    def item(self) -> bool | int | float | complex:
        """The value of a tensor with a single element. Raises `Refused` for any other."""
        number: bool | int | float | complex = self._shards.known(
            self._place, f"{self.dtype} {self.shape}", lambda: self._stored().item()
        )
        return number

    def _stored(self) -> TensorRef:
        root = self._shards.item(self._place, self.name).root
        if not is_tensor(root) or root.shape != self.shape or (type(root) is StoredTensor and root.dtype != self.dtype):
            raise Damaged(
                f"{safe_text(self.name)} is not what the metadata say",
                where=f"{safe_text(self._place.file)}, byte {self._place.offset:,}",
                expected=f"{safe_text(self.dtype)} {list(self.shape)}",
                found=repr(root) if is_tensor(root) else f"a {type(root).__name__}",
            )
        if isinstance(root, StoredTensor):
            root.record.owner = safe_text(self.name)
        return root

    def __repr__(self) -> str:
        return f"{safe_text(self.dtype)} {list(self.shape)} {safe_text(self.name)}"
