"""An opened checkpoint of any format as the manifest and the tensors of one of ours. Needs no torch."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

from optstate.formats.checkpoint import Checkpoint
from optstate.formats.compare import bits
from optstate.formats.containers.quantised import Blockwise
from optstate.formats.containers.sparse import SparseRef
from optstate.formats.containers.stored_tensor import StoredTensor
from optstate.formats.orders import Weight, trained
from optstate.formats.ours import nodes
from optstate.formats.ours.journal import written
from optstate.formats.ours.manifest import (
    Body,
    Family,
    GroupEntry,
    ObjectEntry,
    OptimizerEntry,
    ParameterEntry,
    SlotEntry,
    WeightEntry,
    fingerprint_positions,
)
from optstate.formats.ours.nodes import Node, Tree
from optstate.formats.ours.own_tensors import OwnTensor
from optstate.formats.ours.tree import ArrayRef, Leaf, Path, encode
from optstate.state.journal import utc_now
from optstate.state.tensors import DTYPES, TensorRef, is_tensor
from optstate.store.runs import dense_stride, row_major_pieces
from optstate.store.table import PayloadTable, environment, name_in_file
from optstate.store.writer import Payload

_CODED = ("codes", "scale", "qmap")


class RefTable(PayloadTable):
    """The tensors of a file that are to be written again: each once, however many references lead to it."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[object, str] = {}
        self._kept: list[TensorRef] = []  # so that no two that were ever here have one id

    def add(self, ref: TensorRef, family: Family, parts: Path) -> str:
        """The key under which a tensor will be stored."""
        identity = (ref.identity, ref.dtype) if isinstance(ref, StoredTensor) else id(ref)
        known = self._keys.get(identity)
        if known is not None:
            return known
        key = self._keys[identity] = self.free_key(family, parts)
        self._kept.append(ref)
        device = ref.device if isinstance(ref, OwnTensor) else "cpu"
        self.payloads[key] = Payload(
            key, ref.dtype, ref.shape, partial(row_major_pieces, ref), dense_stride(ref), device
        )
        return key

    def leaf(self, family: Family, prefix: Path = (), skip: int = 0) -> Leaf:
        """What encodes references in a tree, as `optstate.store.tensors.TensorTable.leaf` does tensors."""

        def encoded(value: Any, path: Path) -> Tree:
            parts = (*prefix, *path[skip:])
            match value:
                case Node():
                    return value  # type: ignore[return-value]
                case ArrayRef():
                    return nodes.Array(self.add(value.tensor, family, parts))
                case SparseRef():
                    return nodes.Sparse(
                        self.add(value.indices, family, (*parts, "indices")),
                        self.add(value.values, family, (*parts, "values")),
                        value.shape,
                        value.coalesced,
                    )
                case Blockwise():
                    keys = [
                        self.add(each, family, (*parts, name)) for name, each in zip(_CODED, value.parts, strict=False)
                    ]
                    return nodes.Blockwise(keys[0], keys[1], value.shape, value.block, *keys[2:])
            return nodes.Tensor(self.add(value, family, parts)) if is_tensor(value) else None

        return encoded


def own_body(checkpoint: Checkpoint) -> tuple[Body, list[Payload]]:
    """The manifest without its tensors and files, and the tensors.

    Every value is one that our format holds, see `optstate.store.sieve`. Reads the fingerprints of the weights, and no
    other value. Raises `Unsaveable` for a name that is no text.
    """
    table = RefTable()
    state = checkpoint.state
    body = Body(
        save_id=secrets.token_hex(16),
        created=utc_now(),
        environment=environment("not used"),
        step=checkpoint.step,
        optimizers=tuple(_optimizers(checkpoint, table)),
        parameters=tuple(_parameters(checkpoint, table)),
        weights=tuple(_weights(checkpoint, table)),
        objects={
            name_in_file(name): ObjectEntry(
                checkpoint.object_classes.get(name), encode(value, (name,), table.leaf("objects"))
            )
            for name, value in checkpoint.objects.items()
        },
        left_out={reason: tuple(map(name_in_file, names)) for reason, names in state.left_out.items() if names},
        journal=written(checkpoint.journal),
        lineage=checkpoint.lineage,
    )
    return body, list(table.payloads.values())


def _optimizers(checkpoint: Checkpoint, table: RefTable) -> Iterator[OptimizerEntry]:
    for name, info in checkpoint.state.optimizers.items():
        groups = [
            GroupEntry(
                {
                    name_in_file(key): _hyperparameter(name, index, key, value, table)
                    for key, value in group.hyperparameters.items()
                },
                tuple(map(name_in_file, group.parameters)),
            )
            for index, group in enumerate(info.groups)
        ]
        yield OptimizerEntry(
            name_in_file(name),
            info.class_name,
            info.known,
            tuple(groups),
            info.inferred,
            info.alternatives,
            info.ordered,
        )


def _hyperparameter(optimizer: str, index: int, key: str, value: Any, table: RefTable) -> Tree:
    # No parameter has an empty name, so names that start with one never meet those of slots.
    leaf = table.leaf("optimizer", prefix=("", optimizer, index), skip=1)
    return encode(value, (f"{optimizer or 'optimizer'}.param_groups[{index}]", key), leaf)


def _parameters(checkpoint: Checkpoint, table: RefTable) -> Iterator[ParameterEntry]:
    leaf = table.leaf("optimizer")
    for name, parameter in checkpoint.state.items():
        facts = parameter.facts
        yield ParameterEntry(
            name=name_in_file(name),
            certainty=facts.certainty,
            optimizer=facts.optimizer,
            group=facts.group,
            shape=facts.shape,
            dtype=facts.dtype,
            trainable=facts.trainable,
            aliases=tuple(map(name_in_file, facts.aliases)),
            candidates=tuple(map(name_in_file, facts.candidates)),
            slots=tuple(
                SlotEntry(
                    name_in_file(key),
                    slot.role,
                    encode(slot.value, (name, key), leaf),
                    slot.primary,
                    slot.convention,
                    slot.of,
                )
                for key, slot in parameter.slots.items()
            ),
            absences=dict(parameter.absences),
        )


def _weights(checkpoint: Checkpoint, table: RefTable) -> Iterator[WeightEntry]:
    trainable = _trainable(checkpoint)
    for name, ref in checkpoint.weights.items():
        known = ref.weight if isinstance(ref, OwnTensor) else None
        aliases = checkpoint.aliases.get(name, ())
        parameter = name in trainable or bool(trained([Weight(name, ref)]))
        yield WeightEntry(
            name=name_in_file(name),
            kind=known.kind if known else "parameter" if parameter else "buffer",
            trainable=known.trainable if known else trainable.get(name, parameter and not trainable),
            tensor=table.add(ref, "weights", (name,)),
            fingerprint=known.fingerprint if known else fingerprint(ref),
            aliases=tuple(map(name_in_file, aliases)),
        )


def _trainable(checkpoint: Checkpoint) -> Mapping[str, bool]:
    """The names that the optimizers have, and whether each is trained; empty where none is known by its name."""
    facts = [parameter.facts for parameter in checkpoint.state.values()]
    return {name: each.trainable is not False for each in facts for name in (each.name, *each.aliases)}


def fingerprint(ref: TensorRef) -> str:
    """The bytes, in hexadecimal, of the elements at `fingerprint_positions`, reading little where that is possible."""
    positions, width = fingerprint_positions(prod(ref.shape)), DTYPES[ref.dtype][0]
    if isinstance(ref, StoredTensor) and not (ref.swap or ref.conj or ref.neg):
        places = [(ref.offset + _place(position, ref)) * width for position in positions]
        return b"".join(ref.record.read(place, width) for place in places).hex()
    raw, start = [], 0
    for block in ref.blocks():
        values = bits(block).reshape(block.size, -1)
        raw += [values[position - start].tobytes() for position in positions if start <= position < start + block.size]
        start += block.size
    return b"".join(raw).hex()


def _place(position: int, ref: StoredTensor) -> int:
    """Where an element lies, counted in row-major order, in elements from the tensor's first."""
    place = 0
    for length, step in zip(reversed(ref.shape), reversed(ref.stride), strict=True):
        position, index = divmod(position, length)
        place += index * step
    return place
