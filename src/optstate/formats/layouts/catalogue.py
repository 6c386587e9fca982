"""Every layout that is known, the most specific first: the first that fits reads."""

from __future__ import annotations

from collections.abc import Sequence

from optstate.formats.layouts import torch_save
from optstate.formats.layouts.layout import FileLayout, FolderLayout, ZipLayout

FILES: Sequence[FileLayout] = (torch_save.LAYOUT,)
"""What a pickle can hold. The last one takes everything."""

ZIPS: Sequence[ZipLayout] = ()

FOLDERS: Sequence[FolderLayout] = ()
