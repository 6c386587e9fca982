"""What a checkpoint of a live program holds: names, groups, slots and objects as they are now, and its tensors as they are taken."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import index
from typing import Any, TypeAlias, TypedDict, Unpack

import torch
from torch import nn

from optstate.errors import BindError, Unsaveable
from optstate.formats.ours.journal import written
from optstate.formats.ours.manifest import (
    Body,
    GroupEntry,
    LineageEntry,
    OptimizerEntry,
    ParameterEntry,
    SlotEntry,
    WeightEntry,
)
from optstate.formats.ours.nodes import Tree
from optstate.formats.ours.tree import Leaf, encode
from optstate.live.journals import journal_of
from optstate.live.source import LiveSource, facts_of
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import live_weights
from optstate.optimizers.interpret import described
from optstate.optimizers.registry import by_class, qualified_name
from optstate.optimizers.spec import SlotSpec
from optstate.state.absence import Absence
from optstate.state.collection import without_collection
from optstate.state.journal import utc_now
from optstate.state.roles import Role
from optstate.store.background import settle
from optstate.store.objects import RNG, RandomState, encode_beside, encode_extra_state, encode_objects
from optstate.store.table import environment, name_in_file
from optstate.store.tensors import TensorTable, fingerprint
from optstate.text import safe_text

Optimizers: TypeAlias = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]


class What(TypedDict, total=False):
    """What is saved, as `save` takes it; `run` and `lineage` are those of a run."""

    model: nn.Module | None
    optimizer: Optimizers | None
    step: int | None
    rng: bool
    replace: bool
    objects: Mapping[str, Any]
    run: str | None
    lineage: tuple[LineageEntry, ...]


class Collected:
    """Everything that a checkpoint will hold, as `table` takes it.

    Saves in the background that are about the same parameters are waited for first, and raise what they failed with.

    body
        The manifest without its tensors and files.
    payloads
        The tensors.
    parameters
        The `id` of every parameter.
    """

    def __init__(self, table: TensorTable, **what: Unpack[What]) -> None:
        model, optimizer = what.get("model"), what.get("optimizer")
        if model is None and (optimizer is not None or not (what.get("objects") or what.get("rng"))):
            raise _without_model(optimizer)
        module = None if model is None else checked_model(model)
        source = None if module is None or optimizer is None else LiveSource(optimizers_by_name(optimizer), module)
        self.parameters = _ids(module, source)
        settle(self.parameters)
        with without_collection():
            self.body = _body(module, source, table, what)
            self.payloads = list(table.payloads.values())


def _body(module: nn.Module | None, source: LiveSource | None, table: TensorTable, what: What) -> Body:
    random = {RNG: RandomState()} if what.get("rng", False) else {}
    weights = () if module is None else tuple(_weights(module, table))
    return Body(
        save_id=secrets.token_hex(16),
        created=utc_now(),
        environment=environment(str(torch.__version__)),
        step=_checked_step(what.get("step")),
        optimizers=() if source is None else tuple(_optimizers(source, table)),
        parameters=() if source is None else tuple(_parameters(source, table)),
        weights=weights,
        objects={
            **({} if module is None else encode_extra_state(module, table)),
            **({} if source is None else encode_beside(source, table)),
            **encode_objects({**what.get("objects", {}), **random}, table),
        },
        left_out={}
        if source is None
        else {reason: tuple(names) for reason, names in source.left_out().items() if names},
        journal=() if source is None else written(journal_of(source.live_optimizers)),
        run=what.get("run"),
        lineage=what.get("lineage", ()),
    )


def _ids(module: nn.Module | None, source: LiveSource | None) -> frozenset[int]:
    """The `id` of every parameter of a model and its optimizers."""
    own = () if module is None else module.parameters()
    optimizers = () if source is None else source.live_optimizers.values()
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return frozenset(map(id, chain(own, *(group["params"] for group in groups))))


# --- what is there ------------------------------------------------------------------------------------------


def _weights(model: nn.Module, table: TensorTable) -> Iterator[WeightEntry]:
    for weight in live_weights(model).values():
        name = name_in_file(weight.name)
        yield WeightEntry(
            name=name,
            kind=weight.kind,
            trainable=weight.tensor.requires_grad,
            tensor=table.add(weight.tensor, "weights", (name,), (name,), in_steps=weight.kind == "parameter"),
            fingerprint=fingerprint(weight.tensor),
            aliases=tuple(map(name_in_file, weight.aliases)),
        )


def _optimizers(source: LiveSource, table: TensorTable) -> Iterator[OptimizerEntry]:
    for name, info in source.optimizers().items():
        optimizer = source.live_optimizers[name]
        groups = [
            GroupEntry(_hyperparameters(name, index, live, table), group.parameters)
            for index, (live, group) in enumerate(zip(optimizer.param_groups, info.groups, strict=True))
        ]
        yield OptimizerEntry(name_in_file(name), str(info.class_name), info.known, tuple(groups))


def _hyperparameters(optimizer: str, index: int, group: Mapping[str, Any], table: TensorTable) -> dict[str, Tree]:
    label = f"{optimizer or 'optimizer'}.param_groups[{index}]"
    # No parameter has an empty name, so names that start with one never meet those of slots.
    leaf = table.leaf("optimizer", prefix=("", optimizer, index), skip=1)
    return {
        name_in_file(key): encode(value, (label, key), leaf)
        for key, value in group.items()
        if key not in ("params", "param_names")
    }


def _parameters(source: LiveSource, table: TensorTable) -> Iterator[ParameterEntry]:
    leaf = table.leaf("optimizer", in_steps=True)
    alike: dict[object, dict[Role, Absence]] = {}  # nearly all parameters miss the same, and few ask why
    for bound in source.bind().parameters():
        facts, optimizer = facts_of(bound), source.live_optimizers[bound.optimizer]
        # The live entry itself: its containers keep their types, and keys whose value is None are there.
        entry = optimizer.state.get(bound.tensor) or {}
        meanings = described(by_class(type(optimizer)), entry)
        kind = (bound.optimizer, bound.group, facts.shape and len(facts.shape), facts.trainable, bool(entry), *meanings)
        if kind not in alike:
            alike[kind] = source.absences_of(bound, meanings)
        yield ParameterEntry(
            name=name_in_file(bound.name),
            certainty=facts.certainty,
            optimizer=facts.optimizer,
            group=facts.group,
            shape=facts.shape,
            dtype=facts.dtype,
            trainable=facts.trainable,
            aliases=tuple(map(name_in_file, facts.aliases)),
            slots=tuple([_slot(bound.name, key, value, meanings.get(key), leaf) for key, value in entry.items()]),
            absences=alike[kind],
        )


def _slot(parameter: str, key: Any, value: Any, meaning: SlotSpec | None, leaf: Leaf) -> SlotEntry:
    tree = encode(value, (parameter, name_in_file(key)), leaf)
    if meaning is None:  # nobody described it, or it is None and no slot to anyone; but a restore puts the key back
        return SlotEntry(key, "other", tree, primary=False)
    return SlotEntry(key, meaning.role, tree, meaning.primary, meaning.convention, meaning.of)


# --- what is refused ----------------------------------------------------------------------------------------


def _without_model(optimizer: object) -> BindError:
    if optimizer is None:
        return BindError("there is nothing to save", expected="model=..., optimizer=..., objects by name, or rng=True")
    return BindError(
        "an optimizer cannot be saved without its model",
        expected="model=...",
        todo="names come from the model: pass the one whose parameters the optimizer steps",
    )


def _checked_step(step: Any) -> int | None:
    try:
        return None if step is None else index(step)
    except TypeError:
        raise Unsaveable(
            "step is no whole number",
            expected="an int or None",
            found=f"a {safe_text(qualified_name(type(step)))}",
        ) from None
