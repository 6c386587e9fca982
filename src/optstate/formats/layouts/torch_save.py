"""Any dict that a program gave to `torch.save`: which of it is optimizer, model, step, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any

from optstate.errors import ReadError
from optstate.formats.containers.pickle_machine import Call, Global, Node
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts.layout import FileLayout
from optstate.formats.layouts.search import WEIGHT_KEYS, Found, Path, labelled, search
from optstate.formats.layouts.writers import ANYBODY, WRITERS, Writer
from optstate.formats.named import FORMAT as NAMED
from optstate.formats.named import is_named
from optstate.formats.parts import Parts
from optstate.formats.state_dict import is_state_dict
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import listing, safe_text

# Where programs put the optimizer. Its layout is what counts; the key only tells what should have been there.
OPTIMIZER_KEYS = (
    "optimizer", "optimizers", "optim", "opt", "optimizer_state", "optimizer_state_dict", "optimizer_states",
    "last_optimizer_state",
)  # fmt: skip

NO_STATE = "no optimizer state in it"
"""The note on a file without any."""


def read(pickled: Pickled, writer: Writer = ANYBODY) -> Parts:
    """The parts of what was given to `torch.save`; values are read on demand.

    Optimizers and models are found wherever they lie. Whatever else there is becomes objects.
    """
    return read_entries(entries_of(pickled.root), writer, pickled.notes)


def read_entries(entries: dict[str, Node], writer: Writer = ANYBODY, notes: list[str] | None = None) -> Parts:
    """As `read`, for a tree by its uppermost keys."""
    notes = [*(notes or ()), *prune(entries)]
    found = search(entries)
    named = next((path for path, node in found.optimizers.items() if is_named(node)), None)
    labels = _labels(found.optimizers)
    weights, buffers = _weights(found, writer)
    unread: list[str] = []
    step_key, step = _step(entries, writer, unread)
    objects = {key: node for key, node in found.rest.items() if key != step_key}
    return Parts(
        format=NAMED if named else writer.format,
        weights=weights,
        buffers=buffers,
        optimizers={} if named else {labels[path]: node for path, node in found.optimizers.items()},
        classes={labels[path]: name for path, name in found.classes.items()},
        orders=writer.orders,
        paths={labels[path]: ".".join(map(safe_text, path)) for path in found.optimizers},
        named=(".".join(named), found.optimizers[named]) if named else None,
        step=step,
        objects=_with_others(objects, found, named),
        unread=unread,
        clues=list(writer.clues(entries, found)),
        notes=[*notes, *found.notes, *_notes_on_absence(entries, found, named)],
    )


def _layout(writer: Writer) -> FileLayout:
    def fits(pickled: Pickled) -> bool:
        return type(pickled.root) is dict and writer.fits(pickled.root)

    return FileLayout(writer.format, fits, lambda pickled: read(pickled, writer))


LAYOUTS = tuple(map(_layout, WRITERS))
"""The programs that are known, the most specific first."""

LAYOUT = FileLayout(ANYBODY.format, lambda _: True, read)


def entries_of(root: Node) -> dict[str, Node]:
    """What the file holds, by name; what it holds alone gets the name that it would have among others."""
    if is_state_dict(root) or is_named(root):
        return {"optimizer": root}
    if type(root) is dict and root and all(is_tensor(value) for value in root.values()):
        return {"model": root}
    if type(root) is dict:
        return labelled(root)
    if type(root) in (list, tuple):
        return {f"[{index}]": value for index, value in enumerate(root)}
    return {"object": root}


# --- names of optimizers and weights ----------------------------------------------------------------------


def _labels(optimizers: Mapping[Path, Node]) -> dict[Path, str]:
    """Optimizers under the names that a state gives them: "" for a single one, else as short as tells them apart."""
    if len(optimizers) == 1:
        return dict.fromkeys(optimizers, "")
    short = {path[-1] for path in optimizers}
    return {path: safe_text(path[-1]) if len(short) == len(optimizers) else ".".join(path) for path in optimizers}


def _weights(found: Found, writer: Writer) -> tuple[dict[str, TensorRef], frozenset[str]]:
    """The tensors that the optimizers train, and which of them are known to be no parameters.

    What is not taken stays among the objects.
    """
    paths = _chosen(found, writer)
    averaged = [path for path in (*found.averaged, *writer.weights) if path not in paths and path in found.everything]
    if not paths and averaged:
        found.notes.append(
            f"the only weights are averages ({_listed(averaged[:1])}): momentum belongs to those that were trained"
        )
        paths = averaged[:1]
    elif averaged:
        found.notes.append(
            f"averages of weights, or those of a target, to which no momentum belongs: {_listed(averaged)}"
        )
    models = {path: (found.models if path in found.models else found.averaged).pop(path) for path in paths}
    fronts = {path: "" if len(models) == 1 else f"{label}." for path, label in _labels(models).items()}
    named = {
        (path, name): fronts[path] + name.removeprefix(writer.front)
        for path, model in models.items()
        for name in model.tensors
    }
    return (
        {name: models[path].tensors[own] for (path, own), name in named.items()},
        frozenset(name for (path, own), name in named.items() if own in models[path].buffers),
    )


def _listed(paths: Sequence[Path]) -> str:
    return listing(".".join(path) for path in paths)


def _chosen(found: Found, writer: Writer) -> list[Path]:
    """The models that are shown as weights: where the writer keeps them; else the one under a usual key; else all."""
    at_home = [path for path in writer.weights if path in found.everything]
    if at_home:
        return at_home[:1]
    models = found.models
    if len(models) == 1:
        return list(models)
    usual = sorted((path for path in models if path[-1] in WEIGHT_KEYS), key=_rank)
    positions = sum(map(_length, found.optimizers.values()))
    if usual and positions <= len(models[usual[0]].tensors):
        return usual[:1]
    return [path for path, model in models.items() if model.genuine]


def _rank(path: Path) -> tuple[int, int]:
    return len(path), WEIGHT_KEYS.index(path[-1])


def _length(node: Mapping[str, Any]) -> int:
    groups = [] if is_named(node) else node["param_groups"]
    return sum(len(group["params"]) for group in groups if type(group["params"]) is list)


def _with_others(objects: dict[str, Node], found: Found, named: Path | None) -> dict[str, Node]:
    """The objects, and the models and optimizers that are shown nowhere else."""
    others: dict[Path, Node] = {path: model.tensors for path, model in found.everything.items()}
    if named:
        others |= {path: node for path, node in found.optimizers.items() if path != named}
    for path, node in others.items():
        if path[0] not in objects or type(objects[path[0]]) is dict:
            objects[".".join(path)] = node
    return objects


# --- the step, and what is not there ----------------------------------------------------------------------


def _step(entries: Mapping[str, Node], writer: Writer, unread: list[str]) -> tuple[str, int | None]:
    """The training step that the file states, and its key where that stands at the top."""
    for path in writer.steps:
        value = follow(entries, path)
        if is_tensor(value) and prod(value.shape) == 1:
            try:
                value = value.item()
            except ReadError as error:
                unread.append(f"{'.'.join(path)}: {error.what}")
        if type(value) is int or (type(value) is float and value.is_integer()):
            return path[0] if len(path) == 1 else "", int(value)
    return "", None


def follow(node: Any, path: Path) -> Node:
    """What lies under these keys, None where nothing does."""
    for key in path:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _notes_on_absence(entries: Mapping[str, Node], found: Found, named: Path | None) -> Iterator[str]:
    """Why there is no optimizer state, or not all that one would look for."""
    told = False
    for key in OPTIMIZER_KEYS:
        inside = [path for path in found.optimizers if path[0] == key]
        if key in entries and (not inside or (named and named not in inside)):
            told = True
            yield (
                f"{key} is not shown: a by-name dict describes all optimizers"
                if inside
                else f"{key} is {_what(entries[key])}, not an optimizer's state_dict"
            )
    if not told and not found.optimizers:
        yield NO_STATE


def _what(node: Node) -> str:
    if isinstance(node, (Call, Global)):
        return f"an object ({node})"
    return "empty" if not node else f"a {type(node).__name__}"
