"""Finding optimizers and models in the tree of a file, wherever they lie and whatever their keys are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from optstate.formats.containers.modules import is_module, module_tensors
from optstate.formats.containers.pickle_machine import Call, Node
from optstate.formats.containers.pickled_optimizer import is_optimizer, state_dict_of
from optstate.formats.containers.records import attribute, attributes_of
from optstate.formats.named import is_named
from optstate.formats.placing import words
from optstate.formats.state_dict import is_state_dict
from optstate.state.tensors import TensorRef, is_tensor
from optstate.text import safe_text

DEPTH = 12
"""Levels that are searched; what lies deeper is an object like any other."""

Path: TypeAlias = tuple[str, ...]
"""The keys that lead to something."""

# Where programs put a model, alone or together with what belongs to it.
WEIGHT_KEYS = (
    "model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "module", "params",
)  # fmt: skip

STEP_KEYS = ("step", "global_step", "iteration", "iter_num", "iter")
"""Where programs put the training step, the likeliest first."""

_AVERAGED = {"ema", "swa", "averaged", "averaging", "shadow", "polyak", "teacher", "target"}
_NO_MODEL = {"rng", "scheduler", "schedulers", "scaler", "callbacks", "metrics", "loops", "hyper", "random", "sampler"}


@dataclass(slots=True)
class Model:
    """The tensors of a model by name, and which of them are known to be no parameters."""

    tensors: dict[str, TensorRef]
    buffers: frozenset[str] = frozenset()

    @property
    def genuine(self) -> bool:
        """Whether its names are those that modules give."""
        return any("." in name or name in ("weight", "bias") for name in self.tensors)


@dataclass(slots=True)
class Found:
    """What a tree holds: optimizers (as `torch.optim` has their dicts) and models by the keys that lead to them, the rest.

    `classes` are those of optimizers that were pickled as objects.

    `averaged` are models that nobody trains: averages of weights, teachers, target networks. `notes` say what about an
    optimizer's own layout does not fit that of torch.
    """

    optimizers: dict[Path, dict[str, Any]] = field(default_factory=dict)
    classes: dict[Path, str] = field(default_factory=dict)
    models: dict[Path, Model] = field(default_factory=dict)
    averaged: dict[Path, Model] = field(default_factory=dict)
    rest: dict[str, Node] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def everything(self) -> dict[Path, Model]:
        """All models, trained or not."""
        return {**self.models, **self.averaged}


def search(entries: Mapping[str, Node]) -> Found:
    """What there is in the entries of a file, which must be free of cycles. Time grows with what they hold."""
    searching = _Search()
    rest = {key: searching.visit((key,), node) for key, node in entries.items()}
    found = searching.found
    found.rest = {key: node for key, node in rest.items() if node is not _TAKEN}
    names = {id(tensor): name for model in found.models.values() for name, tensor in model.tensors.items()}
    for path, node in searching.pickled.items():
        found.optimizers[path] = state_dict_of(node, names)
        found.classes[path] = str(node.kind)
    return found


_TAKEN = object()
_CONTAINERS = {dict, list, tuple}


def _has_parts(node: Node) -> bool:
    return type(node) in _CONTAINERS or isinstance(node, Call)


class _Search:
    """One walk over a tree. What it takes out of a container it leaves out of the copy that stays among the objects."""

    def __init__(self) -> None:
        self.found = Found()
        self.pickled: dict[Path, Call] = {}
        self._seen: set[int] = set()

    def visit(self, path: Path, node: Node) -> Node:
        """Take what is an optimizer or a model; returns what is left of the node."""
        if not _has_parts(node):
            return node
        if id(node) in self._seen or len(path) > DEPTH:
            return node
        self._seen.add(id(node))
        if isinstance(node, Call):
            return self._object(path, node)
        if type(node) is dict:
            return self._dict(path, node)
        if not any(map(_has_parts, node)):  # numbers, perhaps a million of them
            return node
        left = {f"[{index}]": self.visit((*path, str(index)), each) for index, each in enumerate(node)}
        return _without(node, left, list(left.values()), node)

    def _object(self, path: Path, node: Call) -> Node:
        if is_optimizer(node):
            self.pickled[path] = node
        elif is_module(node):
            parameters, buffers = module_tensors(node)
            self._add_model(path, Model({**parameters, **buffers}, frozenset(buffers)))
        else:
            for name, value in attributes_of(node).items():
                self.visit((*path, name), value)
        return node

    def _dict(self, path: Path, node: dict[Any, Node]) -> Node:
        if is_named(node):
            self.found.optimizers[path] = node
            return _TAKEN
        optimizer, beside = self._optimizer(node)
        if optimizer is not None:
            self.found.optimizers[path] = optimizer
            node = beside
            if not node:
                return _TAKEN
        elif is_model(path, node):
            self._add_model(
                path, Model({key: value for key, value in node.items() if type(key) is str and is_tensor(value)})
            )
            node = {key: value for key, value in node.items() if type(key) is not str or not is_tensor(value)}
            if not node:
                return _TAKEN
        left = {label: self.visit((*path, label), value) for label, value in labelled(node).items()}
        return _without(node, left, list(left.values()), node.values())

    def _optimizer(self, node: dict[Any, Node]) -> tuple[dict[str, Any] | None, dict[Any, Node]]:
        """A node as torch would have the dict of an optimizer, and what stands beside it; None where it is none."""
        if is_state_dict(node):
            return node, {key: value for key, value in node.items() if key not in ("state", "param_groups")}
        if type(node.get("state")) is list and "hypers" in node:
            hypers = node["hypers"] if type(node["hypers"]) is list else attribute(node["hypers"], "items")
            if type(hypers) is list and all(type(each) is dict for each in hypers):
                optimizer = _of_list(node["state"], hypers, self.found.notes)
                return optimizer, {key: value for key, value in node.items() if key not in ("state", "hypers")}
        if node and all(map(_is_name, node)) and all(map(is_state_dict, node.values())):
            return _of_single(node), {}
        return None, node

    def _add_model(self, path: Path, model: Model) -> None:
        if model.tensors:
            averaged = any(words(key) & _AVERAGED for key in path)
            (self.found.averaged if averaged else self.found.models)[path] = model


def _without(node: Node, left: Mapping[str, Node], after: list[Node], before: Iterable[Node]) -> Node:
    """A container as it is, where nothing was taken out of it; else what stays, as a dict."""
    if all(one is other for one, other in zip(after, before, strict=True)):
        return node
    return {key: value for key, value in left.items() if value is not _TAKEN} or _TAKEN


def labelled(root: Mapping[Any, Node]) -> dict[str, Node]:
    """A dict with text for keys; keys that look alike as text, such as records, are told apart by a number."""
    entries: dict[str, Node] = {}
    for key, value in root.items():
        label = key if type(key) is str else f"[{safe_text(key)}]"
        entries[f"{label} {len(entries)}" if label in entries else label] = value
    return entries


def is_model(path: Path, node: Mapping[Any, Node]) -> bool:
    """Whether a dict is the weights of a model: it stands where they do, or holds nothing but tensors."""
    named = {key: value for key, value in node.items() if type(key) is str and is_tensor(value)}
    if not named or any(words(key) & _NO_MODEL for key in path):
        return False
    if path[-1] in WEIGHT_KEYS:
        return True
    return len(named) == len(node) and any(value.dtype.startswith(("float", "bfloat")) for value in named.values())


# --- optimizers in other layouts than torch's ---------------------------------------------------------------


def _is_name(key: object) -> bool:
    return type(key) is str and ("." in key or key in ("weight", "bias"))


def _of_list(state: list[Node], hypers: list[dict[Any, Node]], notes: list[str]) -> dict[str, Any]:
    """fastai's: a list with one dict per parameter, and hyperparameters by group, without saying who is in which."""
    if len(hypers) > 1:
        notes.append(
            f"the file does not say which parameters are in which of {len(hypers)} groups: they are shown as one"
        )
    keys = {key: None for group in hypers for key in group}
    group = {key: _common([each.get(key) for each in hypers]) for key in keys}
    entries = {number: entry for number, entry in enumerate(state) if type(entry) is dict and entry}
    return {"state": entries, "param_groups": [{**group, "params": list(range(len(state)))}] if hypers else []}


def _common(values: list[Node]) -> Node:
    """The value that all groups have, else all of them."""
    return values[0] if all(type(each) is type(values[0]) and each == values[0] for each in values) else tuple(values)


def _of_single(node: Mapping[str, dict[str, Any]]) -> dict[str, Any] | None:
    """One optimizer for each parameter, under its name, as torchtune has them: one dict, keyed by name."""
    state: dict[str, Node] = {}
    groups: list[dict[str, Any]] = []
    for name, each in node.items():
        filled = [group for group in each["param_groups"] if group["params"]]
        if len(filled) != 1 or type(filled[0]["params"]) is not list or len(filled[0]["params"]) != 1:
            return None
        group = {**filled[0], "params": []}
        (key,) = filled[0]["params"]
        if type(key) in (int, str) and key in each["state"]:
            state[name] = each["state"][key]
        if not groups or {**groups[-1], "params": []} != group:
            groups.append(group)
        groups[-1]["params"].append(name)
    return {"state": state, "param_groups": groups}
