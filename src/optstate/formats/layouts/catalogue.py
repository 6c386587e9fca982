"""Every layout that is known, the most specific first: the first that fits reads.

A process that opens one file needs few of them, and is short: what is for folders and archives is imported when one
is opened.
"""

from __future__ import annotations

from collections.abc import Sequence

from optstate.formats.layouts import fsdp, torch_save
from optstate.formats.layouts.layout import FileLayout, FolderLayout, ZipLayout

FILES: Sequence[FileLayout] = (fsdp.FILE, *torch_save.LAYOUTS, torch_save.LAYOUT)
"""What a pickle can hold. The last one takes everything."""


def zips() -> Sequence[ZipLayout]:
    """Archives that are no files of torch."""
    from optstate.formats.layouts import recognised, stable_baselines3

    return (stable_baselines3.LAYOUT, *recognised.ZIP_LAYOUTS)


def folders() -> Sequence[FolderLayout]:
    """Folders of files."""
    from optstate.formats.layouts import (
        accelerate,
        dcp,
        dcp_with_extra,
        deepspeed,
        deepspeed_universal,
        hf_trainer,
        megatron,
        recognised,
        safetensors,
        torchtune,
    )

    return (
        hf_trainer.LAYOUT,
        accelerate.LAYOUT,
        deepspeed_universal.LAYOUT,
        deepspeed.LAYOUT,
        dcp_with_extra.LAYOUT,
        megatron.LAYOUT,
        dcp.LAYOUT,
        fsdp.FOLDER,
        torchtune.LAYOUT,
        safetensors.LAYOUT,
        *recognised.FOLDER_LAYOUTS,
    )
