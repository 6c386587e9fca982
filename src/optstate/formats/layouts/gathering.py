"""A checkpoint that is a folder of files: what each holds, collected; a file that cannot be read takes only its own part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from optstate.formats.checkpoint import Clue
from optstate.formats.containers.any_pickle import read_any_pickle
from optstate.formats.containers.folder import Folder
from optstate.formats.containers.pickle_machine import Node
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts.weights import Tensors, attempt, tried
from optstate.formats.parts import Parts
from optstate.formats.state_dict import is_state_dict
from optstate.state.roles import Certainty
from optstate.text import safe_text

_STATE = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt", "*.safetensors")
"""Files that may hold state; others of a folder are texts, tokenizers and tables."""


class Gathering:
    """The parts of a folder as they are found. `taken` are the files and folders that were looked at."""

    def __init__(self, folder: Folder, form: str) -> None:
        self.folder = folder
        self.form = form
        self.optimizers: dict[str, Mapping[str, Any]] = {}
        self.certainties: dict[str, Certainty] = {}
        self.objects: dict[str, Node] = {}
        self.unplaced: dict[str, Node] = {}
        self.unread: list[str] = []
        self.notes: list[str] = []
        self.clues: list[Clue] = []
        self.taken: set[str] = set()

    def node(self, name: str) -> Node:
        """What a torch file or a pickle holds, free of cycles; None where it cannot be read."""
        self.taken.add(name)
        pickled = attempt(self.unread, self.folder, name, read_any_pickle)
        if pickled is None:
            return None
        entries = {name: pickled.root}
        notes = [*pickled.notes, *prune(entries)]
        self.notes += [f"{safe_text(name)}: {note}" for note in notes]
        return entries[name]

    def object(self, name: str) -> None:
        """A file as an object of its name, without the suffix."""
        if name in self.folder.files:
            node = self.node(name)
            if node is not None:
                self.objects[name.rpartition(".")[0]] = node

    def json(self, name: str) -> Any:
        """What a JSON file holds; None where there is none, or none that can be read."""
        if name not in self.folder.files:
            return None
        self.taken.add(name)
        return tried(self.unread, name, lambda: self.folder.json(name))

    def optimizer(self, name: str, label: str) -> bool:
        """A file as an optimizer. Whether it is one; what is not, is shown as an object."""
        node = self.node(name)
        if is_state_dict(node):
            self.optimizers[label] = node
            return True
        if node is not None:
            self.objects[name] = node
            self.unread.append(f"{safe_text(name)}: it holds no state_dict of an optimizer")
        return False

    def weights(self, found: Tensors, *names: str) -> None:
        """Take note of files that weights were read from, and of what there is to say about them."""
        self.taken.update(names)
        self.objects |= found.objects
        self.unread += found.unread
        self.notes += found.notes

    def inner(self, name: str, read: Callable[[Folder], Parts], label: str = "") -> Parts | None:
        """A folder in it as another layout reads it; None where it cannot. Its weights are the caller's to use."""
        return self.add(tried(self.unread, name, lambda: read(self.folder.folder(name))), name, label=label)

    def add(self, parts: Parts | None, *names: str, label: str = "") -> Parts | None:
        """What another layout read of these files and folders; `label` is what a single optimizer in it is called."""
        self.taken.update(names)
        if parts is not None:
            self.optimizers |= {name or label: node for name, node in parts.optimizers.items()}
            self.certainties |= {name or label: certainty for name, certainty in parts.certainties.items()}
            self.objects |= parts.objects
            self.unplaced |= parts.unplaced
            self.unread += parts.unread
            self.notes += parts.notes
            self.clues += parts.clues
        return parts

    def finish(self) -> None:
        """List what might hold state and was not read; a single optimizer has no name."""
        if len(self.optimizers) == 1:
            ((label, only),) = self.optimizers.items()
            self.optimizers = {"": only}
            self.certainties = {"": self.certainties[label]} if label in self.certainties else {}
        left = [name for name in self.folder.entries if name not in self.taken]
        self.unread += [
            f"{safe_text(name)}: not read, as {self.form} does not write it"
            for name in left
            if self.folder.entries[name] or any(fnmatchcase(name, pattern) for pattern in _STATE)
        ]
