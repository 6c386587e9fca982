"""Any dict that a program gave to `torch.save`: which of it is optimizer, model, step, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from optstate.formats.containers.pickle_machine import Call, Global, Node
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.containers.unfolding import prune
from optstate.formats.layouts.layout import FileLayout
from optstate.formats.named import FORMAT as NAMED
from optstate.formats.named import is_named
from optstate.formats.naming import MODEL_ORDER
from optstate.formats.parts import Parts
from optstate.formats.state_dict import is_state_dict
from optstate.text import safe_text

# Where programs put the model's weights; the first of these that holds tensors.
WEIGHT_KEYS = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "module", "generator", "params",
)  # fmt: skip

# Where programs put the optimizer. Its layout is what counts; the key only tells what should have been there.
OPTIMIZER_KEYS = (
    "optimizer", "optimizers", "optim", "opt", "optimizer_state", "optimizer_state_dict", "optimizer_states",
    "last_optimizer_state",
)  # fmt: skip

STEP_KEYS = ("step", "global_step", "iteration", "iter_num", "iter")


def read(pickled: Pickled) -> Parts:
    """The parts of what was given to `torch.save`; values are read on demand.

    Recognised are an optimizer's `state_dict()` alone, dicts with a model and optimizers, weights alone, and
    `named_state_dict`. Whatever else there is becomes objects.
    """
    entries = _entries(pickled.root)
    notes = [*pickled.notes, *prune(entries)]
    optimizers = dict(_optimizers(entries))
    taken = {path[0] for path in optimizers}
    key = _weights_key({name: node for name, node in entries.items() if name not in taken})
    tensors, beside = _split(entries.pop(key, {}))
    if beside:
        entries[key] = beside
    named = next((path for path, node in optimizers.items() if is_named(node)), None)
    taken = {named[0]} if named else taken
    step_key, step = _step(entries)
    objects = {name: node for name, node in entries.items() if name not in {*taken, step_key}}
    return Parts(
        format=NAMED if named else "torch.save",
        weights=tensors,
        optimizers={} if named else _by_label(optimizers),
        orders=(MODEL_ORDER,),
        named=(".".join(named), optimizers[named]) if named else None,
        step=step,
        objects=objects,
        notes=[*notes, *_notes_on_absence(objects, bool(optimizers))],
    )


LAYOUT = FileLayout("torch.save", lambda _: True, read)


def _entries(root: Node) -> dict[str, Node]:
    """What the file holds, by name; what it holds alone gets the name that it would have among others."""
    if is_state_dict(root) or is_named(root):
        return {"optimizer": root}
    if type(root) is dict and root and all(type(value) is StoredTensor for value in root.values()):
        return {"model": root}
    if type(root) is dict:
        return _labelled(root)
    if type(root) in (list, tuple):
        return {f"[{index}]": value for index, value in enumerate(root)}
    return {"object": root}


def _labelled(root: Mapping[Any, Node]) -> dict[str, Node]:
    """A dict with text for keys; keys that look alike as text, such as records, are told apart by a number."""
    entries: dict[str, Node] = {}
    for key, value in root.items():
        label = key if type(key) is str else f"[{safe_text(key)}]"
        entries[f"{label} {len(entries)}" if label in entries else label] = value
    return entries


def _optimizers(entries: Mapping[str, Node]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Every optimizer, one by one or several together, with the keys that lead to it."""
    for key, node in entries.items():
        if is_state_dict(node) or is_named(node):
            yield (key,), node
        elif type(node) is dict and node and all(map(is_state_dict, node.values())):
            yield from (((key, safe_text(inner)), each) for inner, each in node.items())
        elif type(node) in (list, tuple) and node and all(map(is_state_dict, node)):
            yield from (((key, str(index)), each) for index, each in enumerate(node))


def _by_label(optimizers: Mapping[tuple[str, ...], Node]) -> dict[str, Node]:
    """Optimizers under the names that a state gives them: "" for a single one, else as short as tells them apart."""
    if len(optimizers) == 1:
        (only,) = optimizers.values()
        return {"": only}
    short = {path[-1]: node for path, node in optimizers.items()}
    return short if len(short) == len(optimizers) else {".".join(path): node for path, node in optimizers.items()}


def _weights_key(entries: Mapping[str, Node]) -> str:
    """Where the model's weights are: under a usual key, else the only other dict of nothing but tensors; or ""."""
    for key in WEIGHT_KEYS:
        if type(entries.get(key)) is dict and _split(entries[key])[0]:
            return key
    others = [key for key, node in entries.items() if type(node) is dict and node and not _split(node)[1]]
    return others[0] if len(others) == 1 else ""


def _split(node: Mapping[Any, Node]) -> tuple[dict[str, StoredTensor], dict[Any, Node]]:
    """The tensors of a dict, and what stands beside them."""
    tensors = {key: value for key, value in node.items() if type(key) is str and isinstance(value, StoredTensor)}
    return tensors, {key: value for key, value in node.items() if key not in tensors}


def _step(entries: Mapping[str, Node]) -> tuple[str, int | None]:
    """The training step that the file states, and where."""
    for key in STEP_KEYS:
        value = entries.get(key)
        if isinstance(value, StoredTensor) and prod(value.shape) == 1:
            value = value.item()
        if type(value) is int or (type(value) is float and value.is_integer()):
            return key, int(value)
    return "", None


def _notes_on_absence(objects: Mapping[str, Node], has_optimizer: bool) -> list[str]:
    """Why there is no optimizer state, or not all that one would look for."""
    found = {key: objects[key] for key in OPTIMIZER_KEYS if key in objects}
    notes = [
        f"{key} is not shown: a by-name dict describes all optimizers"
        if is_state_dict(node)
        else f"{key} is {_what(node)}, not an optimizer's state_dict"
        for key, node in found.items()
    ]
    return notes if notes or has_optimizer else ["no optimizer state in it"]


def _what(node: Node) -> str:
    if isinstance(node, (Call, Global)):
        return f"an object ({node})"
    return "empty" if not node else f"a {type(node).__name__}"
