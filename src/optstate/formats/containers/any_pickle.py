"""A file that holds one pickle, whichever container it lies in: chosen by its first bytes."""

from __future__ import annotations

from optstate.formats.containers.pickle_file import is_pickle, read_pickle
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.regular import ByteSource
from optstate.formats.containers.sniff import HEAD, wrong_kind
from optstate.formats.containers.torch_stream import is_torch_stream, read_torch_stream
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.formats.containers.zip_directory import MAGIC


def read_any_pickle(source: ByteSource) -> Pickled:
    """The structure of a file beside others, which its writer made with `torch.save` or `pickle.dump`.

    Raises `ReadError` as the reader of its container does, and for a file of another kind.
    """
    head = source.read(0, min(HEAD, source.size))
    if head.startswith(MAGIC):
        return read_torch_zip(ZipArchive(source))
    if is_torch_stream(head):
        return read_torch_stream(source)
    if is_pickle(head):
        return read_pickle(source)
    raise wrong_kind(source.name, head)
