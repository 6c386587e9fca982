"""Checkpoints that are known by their signature and not read: what each is, what reading it would take, what to do now.

A row here is better than "unknown": nobody searches for momentum in a folder that never had any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NoReturn

from optstate.errors import Refused
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.formats.layouts.layout import FolderLayout, ZipLayout
from optstate.formats.parts import Parts
from optstate.text import listing


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a layout that is not read.

    what
        What it is, with its article, as the end of "... is".
    takes
        Where its momentum is, and what reading it would take.
    todo
        What a user can do today.
    signatures
        Names as globs, of which all of one line are there. A trailing slash means a folder.
    """

    what: str
    takes: str
    todo: str
    signatures: Sequence[Sequence[str]]

    def fits(self, names: Sequence[str]) -> bool:
        """Whether one line of names is there."""
        return any(all(any(fnmatchcase(name, glob) for name in names) for glob in line) for line in self.signatures)


_CONVERT = "load it with what wrote it, and save a state dict by name from there"

FOLDERS: Sequence[Known] = (
    Known(
        "an Orbax checkpoint that was not finished",
        "Orbax renames the folder when everything is written",
        "use an earlier step",
        (("*.orbax-checkpoint-tmp*/",), ("*.orbax-checkpoint-tmp*",)),
    ),
    Known(
        "an Orbax checkpoint, as JAX programs write",
        "its momentum is under opt_state (mu, nu, trace) in an OCDBT store, which takes tensorstore to read",
        "load it with Orbax, and save the arrays with safetensors",
        (("manifest.ocdbt",), ("_METADATA",), ("_CHECKPOINT_METADATA",)),
    ),
    Known(
        "a TensorFlow checkpoint",
        "its slots are found by the object graph in the .index file, a sorted string table; the bytes lie beside it",
        "load it with tf.train.load_checkpoint, and save the arrays with safetensors",
        (("*.index", "*.data-?????-of-?????"),),
    ),
    Known(
        "a TensorFlow SavedModel",
        "it is a program for inference, mostly without optimizer slots",
        "look for the checkpoint (*.index) of the training run",
        (("saved_model.pb",), ("keras_metadata.pb",)),
    ),
    Known(
        "a NeMo 2 checkpoint",
        "`weights/` is a Megatron store and `context/` how to build the model; the optimizer is among the weights",
        "open the folder weights/ itself, which is a folder of torch.distributed.checkpoint",
        (("weights/", "context/"),),
    ),
    Known(
        "a folder of Megatron-LM with steps in it",
        "each iteration has a folder of its own",
        "open one iteration: iter_*/mp_rank_*/model_optim_rng.pt, or iter_* itself where it holds a .metadata",
        (("latest_checkpointed_iteration.txt",),),
    ),
    Known(
        "an iteration of Megatron-LM",
        "one folder for each model-parallel rank; with the distributed optimizer the moments are flat buckets in "
        "distrib_optim.pt, in an order that only the running program knows",
        "open one rank: mp_rank_*/model_optim_rng.pt; save with --use-dist-ckpt to have moments by name",
        (("mp_rank_??/",), ("mp_rank_??_*/",)),
    ),
    Known(
        "a folder of T5X",
        "its momentum is under state/param_states, one zarr array for each tensor, which takes tensorstore to read",
        "load it with t5x, and save the arrays with safetensors",
        (("checkpoint", "state.*/"), ("target.*/",)),
    ),
)

ZIPS: Sequence[Known] = (
    Known(
        "a Keras 3 model",
        "its momentum is in model.weights.h5 under optimizer/vars, in the order of the trainable variables; reading it "
        "takes h5py",
        "load it with keras.models.load_model, and save the arrays of model.optimizer.variables with safetensors",
        (("config.json", "model.weights.*"), ("config.json", "metadata.json")),
    ),
    Known(
        "a program of torch.export",
        "it is compiled for inference and holds weights and constants, no optimizer",
        "open the checkpoint that it was exported from",
        (("*/models/*.json", "*/archive_format"), ("*/archive_version", "*/archive_format"), ("archive_format",)),
    ),
    Known(
        "numpy arrays (.npz)",
        "arrays by name, of which nothing says which is a momentum",
        "load it with numpy.load, and save it with safetensors under <parameter>/<slot>",
        (("*.npy",),),
    ),
    Known("an ordinary archive of files", "it is no checkpoint itself", "unpack it, and open the checkpoint inside", (("*.ckpt",), ("*.safetensors",))),
)  # fmt: skip


def _names(folder: Folder) -> list[str]:
    return [f"{name}/" if is_folder else name for name, is_folder in folder.entries.items()]


def _refuse(known: Known, name: str, found: Sequence[str]) -> NoReturn:
    raise Refused(
        f"{name} is {known.what}, which is recognised and not read: {known.takes}",
        found=listing(found),
        todo=known.todo,
    )


def _folder_layout(known: Known) -> FolderLayout:
    def read(folder: Folder) -> Parts:
        _refuse(known, folder.name, _names(folder))

    return FolderLayout(known.what, lambda folder: known.fits(_names(folder)), read)


def _zip_layout(known: Known) -> ZipLayout:
    def read(archive: ZipArchive) -> Parts:
        _refuse(known, archive.source.name, list(archive.members))

    return ZipLayout(known.what, lambda archive: known.fits(list(archive.members)), read)


FOLDER_LAYOUTS: Sequence[FolderLayout] = tuple(map(_folder_layout, FOLDERS))
"""To be asked after every layout that is read."""

ZIP_LAYOUTS: Sequence[ZipLayout] = tuple(map(_zip_layout, ZIPS))
"""To be asked after every layout that is read."""
