"""The manifest of our checkpoints: what `manifest.json` says, as types.

The file is an envelope, `{"format": "optstate/1", "digest": "xxh3-128:…", "body": {…}}`, whose digest covers the
exact bytes of the body. All other bytes of a checkpoint have a digest in the body: each file's header, and
each tensor in pieces. Values are little-endian and in row-major order. A tensor's key is
`<family>/<name in the file>`, its family being the files that hold it: `weights`, `optimizer` or `objects`.
The schema is published as `docs/schema/optstate-1.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
import xxhash
from msgspec import Meta, Struct, field

from optstate.errors import Damaged, NewerFormat, NotACheckpoint, Refused
from optstate.formats.ours.nodes import Tree
from optstate.state.absence import Absence
from optstate.state.roles import Certainty, Convention, Of, Role
from optstate.text import safe_text

FORMAT = "optstate/1"
MANIFEST = "manifest.json"

Family = Literal["weights", "optimizer", "objects"]

Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Digest: TypeAlias = Annotated[str, Meta(pattern="^xxh3-128:[0-9a-f]{32}$")]
FileName: TypeAlias = Annotated[
    str, Meta(pattern=r"^(weights|optimizer|objects)(-[0-9]{5,}-of-[0-9]{5,})?\.safetensors$")
]
Hex: TypeAlias = Annotated[str, Meta(pattern="^([0-9a-f]{2})*$")]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A field that this version does not know is a fault, never skipped.

    `gc=False`: entries never refer to themselves, and there may be a hundred thousand.
    """


class Chunk(_Strict, frozen=True):
    """A piece of a tensor: which bytes of which file, and which block of the tensor they are."""

    file: FileName
    offset: Natural
    """Bytes from the start of the file."""
    nbytes: Natural
    start: tuple[Natural, ...]
    """The block's first index in each dimension."""
    shape: tuple[Natural, ...]
    """The block's sizes."""
    digest: Digest


class TensorEntry(_Strict, frozen=True):
    """A stored tensor. `stride` is what it had in memory, in elements; without one it was row-major."""

    dtype: str
    shape: tuple[Natural, ...]
    device: str
    chunks: tuple[Chunk, ...]
    stride: tuple[Natural, ...] | None = None


class FileEntry(_Strict, frozen=True):
    """A safetensors file: its length and the digest of its header, the eight bytes of length included."""

    nbytes: Natural
    header_nbytes: Natural
    header_digest: Digest


class SlotEntry(_Strict, frozen=True):
    """A slot; `value` is a tensor node or a typed tree."""

    key: str
    role: Role
    value: Tree
    primary: bool = True
    convention: Convention | None = None
    of: Of | None = None


class ParameterEntry(_Strict, frozen=True):
    """A parameter in an optimizer, its slots, and why others are not there."""

    name: str
    certainty: Certainty
    optimizer: str
    group: Natural
    shape: tuple[Natural, ...] | None = None
    dtype: str | None = None
    trainable: bool | None = None
    aliases: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    slots: tuple[SlotEntry, ...] = ()
    absences: dict[Role, Absence] = {}


class WeightEntry(_Strict, frozen=True):
    """A parameter or buffer of the model.

    `fingerprint` is the bytes of the elements at `fingerprint_positions`, by which a renamed tensor is found.
    """

    name: str
    kind: Literal["parameter", "buffer"]
    trainable: bool
    tensor: str
    fingerprint: Hex
    aliases: tuple[str, ...] = ()


class GroupEntry(_Strict, frozen=True):
    """A param group; parameters in the optimizer's order."""

    hyperparameters: dict[str, Tree]
    parameters: tuple[str, ...]


class OptimizerEntry(_Strict, frozen=True):
    """An optimizer; `known` says whether the registry described its class when it was saved.

    Where another program's file was converted, which may not say the class, `inferred` marks one deduced from what the
    optimizer keeps, with the `alternatives` that keep the same; without any the class is null. `ordered` is false where
    that file had parameters in another order than the program.
    """

    name: str
    class_name: str | None = field(name="class")
    known: bool
    groups: tuple[GroupEntry, ...]
    inferred: bool = False
    alternatives: tuple[str, ...] = ()
    ordered: bool = True


class ObjectEntry(_Strict, frozen=True):
    """The state of an object, as its `state_dict` gave it; the class is null where a converted file does not say it."""

    class_name: str | None = field(name="class")
    state: Tree


class Environment(_Strict, frozen=True):
    """With which versions the checkpoint was written; on which kind of system, but not on which machine."""

    python: str
    torch: str
    optstate: str
    platform: str


Number: TypeAlias = float | Literal["NaN", "Infinity", "-Infinity"]


class JournalEntry(_Strict, frozen=True):
    """A change of the state before this checkpoint: `optstate.state.journal` says what the fields are."""

    when: str
    verb: str
    arguments: dict[str, Any]
    step: int | None = None
    note: str = ""
    selection: str = ""
    parameters: Natural = 0
    slots: Natural = 0
    elements: Natural = 0
    norms: dict[str, tuple[Number | None, Number | None]] | None = None
    effect: tuple[Number | None, Number | None, Number | None] | None = None
    forced: bool = False
    undone: bool = False
    backup: bool = True
    optimizer: str = ""
    times: Natural = 1


class LineageEntry(_Strict, frozen=True):
    """A checkpoint that this one goes back to, and with which versions that one was written.

    Oldest first: those that its run was resumed from, and the one that it was edited or copied from.
    """

    save_id: str
    step: int | None = None
    environment: Environment | None = None


class Body(_Strict, frozen=True):
    """All that a checkpoint says of itself.

    `created` is UTC in ISO 8601; `left_out` maps reasons to names. `run` is the run whose checkpointer wrote it and may
    remove it, null for one that was saved by hand.
    """

    save_id: str
    created: str
    environment: Environment
    step: int | None = None
    optimizers: tuple[OptimizerEntry, ...] = ()
    parameters: tuple[ParameterEntry, ...] = ()
    weights: tuple[WeightEntry, ...] = ()
    objects: dict[str, ObjectEntry] = {}
    tensors: Mapping[str, TensorEntry] = {}
    files: dict[FileName, FileEntry] = {}
    left_out: dict[str, tuple[str, ...]] = {}
    journal: tuple[JournalEntry, ...] = ()
    lineage: tuple[LineageEntry, ...] = ()
    run: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")] | None = None


class _Stored(Body, frozen=True):
    """A body whose tensors are not decoded yet."""

    tensors: dict[str, msgspec.Raw] = {}  # type: ignore[assignment]


class _Entries(Mapping[str, TensorEntry]):
    """The entries of a manifest's tensors, each decoded where it is asked for: of a million, they would take a gigabyte."""

    def __init__(self, raw: Mapping[str, msgspec.Raw], where: str) -> None:
        self._raw = raw
        self._where = where

    def __getitem__(self, key: str) -> TensorEntry:
        try:
            return msgspec.json.decode(self._raw[key], type=TensorEntry)
        except _FAULTS as error:
            raise _undefined(self._where, f"{_fault(error)} of {safe_text(key)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._raw)

    def __len__(self) -> int:
        return len(self._raw)


class Brief(Struct, frozen=True, omit_defaults=True):
    """What of a manifest says which checkpoint it is, and what its files are; the rest is skipped, not decoded."""

    save_id: str
    created: str
    environment: Environment
    step: int | None = None
    optimizers: tuple[msgspec.Raw, ...] = ()
    files: dict[FileName, FileEntry] = {}
    lineage: tuple[LineageEntry, ...] = ()
    run: str | None = None


class _Head(Struct):
    """What every version of the format has in its envelope, whatever else is new."""

    format: str = ""


class _Envelope(_Strict, frozen=True):
    format: str
    digest: Digest
    body: msgspec.Raw


def digest_of(data: bytes | bytearray | memoryview) -> str:
    """The digest of some bytes, with the name of the algorithm."""
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def encode_manifest(body: Body) -> tuple[bytes, bytes, bytes]:
    """The content of `manifest.json`, in pieces: of a million tensors it is too long to be copied into one."""
    raw = msgspec.json.encode(body)
    before, after = msgspec.json.encode(_Envelope(FORMAT, digest_of(raw), msgspec.Raw(b"0"))).rsplit(b"0", 1)
    return before, raw, after


def decode_manifest(raw: bytes, where: str) -> Body:
    """The body of a manifest, its digest checked; `where` names the file in messages.

    Raises `NotACheckpoint` for JSON that is no manifest of ours, `NewerFormat`, `Damaged`, and `Refused` for
    one that is intact but not as the format is; of the entry of a tensor, when that is asked for.
    """
    stored = _decoded(raw, where, _Stored)
    return Body(**{**msgspec.structs.asdict(stored), "tensors": _Entries(stored.tensors, where)})


def decode_brief(raw: bytes, where: str) -> Brief:
    """As `decode_manifest`, in a fraction of the time where there are a million tensors."""
    return _decoded(raw, where, Brief)


_Kind = TypeVar("_Kind", _Stored, Brief)


def _decoded(raw: bytes, where: str, kind: type[_Kind]) -> _Kind:
    version = format_version(raw)
    if version is None and raw.startswith(b'{"format":"optstate/'):
        raise _changed(where, f"{len(raw):,} bytes that are no complete JSON")
    if version is None:
        raise NotACheckpoint(
            f"{where} is no manifest of optstate",
            expected=f'{{"format": "{FORMAT}", …}}',
            found=safe_text(raw[:40].decode("utf-8", "replace"), 60),
            todo="name the directory that optstate.save returned",
        )
    if version != 1:
        raise NewerFormat(
            f"{where} is in a format that this optstate does not know",
            expected=FORMAT,
            found=f"optstate/{version}",
            todo="upgrade optstate: pip install --upgrade optstate",
        )
    try:
        envelope = msgspec.json.decode(raw, type=_Envelope)
    except _FAULTS as error:
        raise _changed(where, _fault(error)) from None
    if digest_of(envelope.body) != envelope.digest:
        raise _changed(where, f"digest {digest_of(envelope.body)}", f"digest {envelope.digest}")
    try:
        return msgspec.json.decode(envelope.body, type=kind)
    except _FAULTS as error:
        raise _undefined(where, _fault(error)) from None


def format_version(raw: bytes) -> int | None:
    """The number behind `optstate/` in a manifest; None for anything that is no manifest of ours."""
    try:
        head = msgspec.json.decode(raw, type=_Head)
    except _FAULTS:
        return None
    match = re.fullmatch(r"optstate/([1-9][0-9]{0,8})", head.format)
    return int(match[1]) if match else None


_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def _fault(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else safe_text(error)


def _undefined(where: str, found: str) -> Refused:
    return Refused(
        f"{where} is intact, but not as {FORMAT} is defined",
        found=found,
        todo="if a newer optstate wrote it, upgrade; otherwise the program that wrote it is at fault",
    )


def _changed(where: str, found: str, expected: str | None = None) -> Damaged:
    return Damaged(
        f"{where} was changed or cut since it was written",
        expected=expected,
        found=found,
        todo="use another checkpoint, or another copy of this one",
    )


def schema() -> dict[str, Any]:
    """The JSON Schema of `manifest.json`."""
    (body, tree), definitions = msgspec.json.schema_components([Body, Tree], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": FORMAT,
        "description": "manifest.json of a checkpoint written by optstate; digest covers the exact bytes of body",
        "type": "object",
        "properties": {
            "format": {"const": FORMAT},
            "digest": {"type": "string", "pattern": "^xxh3-128:[0-9a-f]{32}$"},
            "body": body,
        },
        "required": ["format", "digest", "body"],
        "additionalProperties": False,
        "$defs": {"Tree": tree} | {name: _shortened(definition, tree) for name, definition in definitions.items()},
    }


def _shortened(node: Any, tree: Any) -> Any:
    """A part of a schema with each copy of the typed tree's definition replaced by a reference to it."""
    if node == tree:
        return {"$ref": "#/$defs/Tree"}
    if isinstance(node, dict):
        return {key: _shortened(item, tree) for key, item in node.items()}
    return [_shortened(item, tree) for item in node] if isinstance(node, list) else node


def join_key(parts: Iterable[str]) -> str:
    """Parts of a name as one, in which `/` separates them: `%` is written `%25` and `/` within a part `%2F`.

    >>> join_key(["blocks/0.weight", "exp_avg"])
    'blocks%2F0.weight/exp_avg'
    """
    return "/".join([part.replace("%", "%25").replace("/", "%2F") for part in parts])


def split_key(key: str) -> list[str]:
    """The parts that `join_key` joined."""
    return [part.replace("%2F", "/").replace("%25", "%") for part in key.split("/")]


FINGERPRINT = 16
"""Elements in a fingerprint, evenly spread from the first to the last."""


def fingerprint_positions(elements: int) -> list[int]:
    """Which elements of a tensor, in row-major order, its fingerprint holds; all of them where there are few."""
    if elements <= FINGERPRINT:
        return list(range(elements))
    return [index * (elements - 1) // (FINGERPRINT - 1) for index in range(FINGERPRINT)]
