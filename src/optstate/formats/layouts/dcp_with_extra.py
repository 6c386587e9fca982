"""DCP directories with a file of `torch.save` beside the shards, for what is no tensor: Lightning's and OpenCLIP's."""

from __future__ import annotations

from collections.abc import Mapping

from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.dcp import is_dcp
from optstate.formats.containers.folder import Folder
from optstate.formats.layouts.dcp import read_dcp
from optstate.formats.layouts.layout import FolderLayout
from optstate.formats.layouts.torch_save import entries_of, read_entries
from optstate.formats.layouts.weights import attempt
from optstate.formats.layouts.writers import LIGHTNING, OPENCLIP, Writer
from optstate.formats.parts import Parts

EXTRAS: Mapping[str, Writer] = {
    "meta.pt": LIGHTNING,  # FSDP and model-parallel strategies, of the trainer and of Fabric
    "_metadata_extra.pt": OPENCLIP,  # layout from source
}


def _extra(folder: Folder) -> str | None:
    return next((name for name in EXTRAS if folder.holds(name)), None)


def _read(folder: Folder) -> Parts:
    """The parts of the shards, and of the file beside them. Raises as `read_dcp` does."""
    parts = read_dcp(folder)
    name = str(_extra(folder))
    parts.format, unread = EXTRAS[name].format, [*parts.unread]
    pickled = attempt(unread, folder, name, read_any_pickle)
    if pickled is not None:
        extra = read_entries(entries_of(pickled.root), EXTRAS[name], pickled.notes)
        parts.objects = {**extra.objects, **parts.objects}
        parts.step = extra.step if parts.step is None else parts.step
        parts.notes = [*parts.notes, *(note for note in pickled.notes if note not in parts.notes)]
        unread += extra.unread
    parts.unread = unread
    return parts


LAYOUT = FolderLayout("DCP with a file beside it", lambda folder: _extra(folder) is not None and is_dcp(folder), _read)
