"""stable-baselines3: a zip of torch files, one for the policy and one for each optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from optstate.errors import ReadError
from optstate.formats.checkpoint import Clue
from optstate.formats.containers.folder import parsed_json
from optstate.formats.containers.pickled import Pickled
from optstate.formats.containers.torch_zip import read_torch_zip
from optstate.formats.containers.unfolding import prune
from optstate.formats.containers.zip_archive import ZipArchive
from optstate.formats.layouts.layout import ZipLayout
from optstate.formats.layouts.search import is_model
from optstate.formats.orders import Order, Weight
from optstate.formats.parts import Parts
from optstate.formats.state_dict import is_state_dict
from optstate.state.tensors import is_tensor
from optstate.text import safe_text, size

_POLICY = "policy.pth"
_VARIABLES = "pytorch_variables.pth"  # what is trained and in no module: the entropy coefficient
_DATA = "data"
_DATA_LIMIT = 1 << 26
_SERIALIZED = ":serialized:"  # what JSON has no form for, as a pickle in base64: never decoded


def fits(archive: ZipArchive) -> bool:
    """Whether there is a policy, and what the library writes beside it."""
    return _POLICY in archive.members and ("_stable_baselines3_version" in archive.members or _DATA in archive.members)


def read(archive: ZipArchive) -> Parts:
    """The policy's weights, and the optimizers over the parts of it. Raises `ReadError` for a policy that cannot be read."""
    parts = Parts("stable-baselines3")
    inner, parts.notes, parts.unread = _read_inner(archive)
    trees = {name.removesuffix(".pth"): pickled.root for name, pickled in inner.items()}
    found = {name: root for name, root in trees.items() if is_state_dict(root)}
    labels = {name: name if len(found) > 1 else "" for name in found}
    parts.weights = {
        key: value for name in (_POLICY, _VARIABLES) for key, value in _tensors(trees.get(name.removesuffix(".pth")))
    }
    parts.optimizers = {labels[name]: root for name, root in found.items()}
    parts.paths = {labels[name]: f"{name}.pth" for name in found}
    parts.orders = [order for name in found for order in _orders(name, labels[name])]
    objects = {
        name: root for name, root in trees.items() if name not in found and f"{name}.pth" not in (_POLICY, _VARIABLES)
    }
    parts.notes = [*parts.notes, *prune(objects)]
    parts.objects = {**objects, **_about(archive, parts)}
    if not found:
        parts.clues = [_without_optimizer(archive)]
    return parts


LAYOUT = ZipLayout("stable-baselines3", fits, read)


def _read_inner(archive: ZipArchive) -> tuple[dict[str, Pickled], list[str], list[str]]:
    """The torch files in the archive; the policy must be readable, and what else is not is listed."""
    inner: dict[str, Pickled] = {}
    notes: dict[str, None] = {}
    unread: list[str] = []
    for name in archive.members:
        if not name.endswith(".pth"):
            continue
        try:
            inner[name] = read_torch_zip(ZipArchive(archive.source_of(name)))
        except ReadError as error:
            if name == _POLICY:
                raise
            unread.append(f"{safe_text(name)}: {error.what}")
            continue
        notes |= dict.fromkeys(inner[name].notes)
    return inner, list(notes), unread


def _tensors(root: Any) -> Iterator[tuple[str, Any]]:
    if type(root) is dict and (is_model(("policy",), root) or all(map(is_tensor, root.values()))):
        yield from ((key, value) for key, value in root.items() if type(key) is str and is_tensor(value))


def _about(archive: ZipArchive, parts: Parts) -> dict[str, Any]:
    """What is in `data`: settings as JSON. Values that are pickles stay what they are, text."""
    if _DATA not in archive.members:
        return {}
    record = archive.record(_DATA)
    if record.nbytes > _DATA_LIMIT:
        parts.unread = [*parts.unread, f"{_DATA}: {size(record.nbytes)} of settings"]
        return {}
    try:
        settings = parsed_json(record.read(0, record.nbytes), record.where)
    except ReadError as error:
        parts.unread = [*parts.unread, f"{_DATA}: {error.what}"]
        return {}
    if type(settings) is not dict:
        return {_DATA: settings}
    coded = [key for key, value in settings.items() if type(value) is dict and _SERIALIZED in value]
    if coded:
        parts.notes = [
            *parts.notes,
            f"not decoded: {len(coded)} of {len(settings)} settings, which are pickles in base64",
        ]
    return {_DATA: {key: "(a pickle in base64)" if key in coded else value for key, value in settings.items()}}


def _orders(name: str, label: str) -> Iterator[Order]:
    """What an optimizer is over: the module before its name, or all of the policy but its target networks."""
    module = name.removesuffix(".optimizer").removesuffix("_optimizer")
    for what, test in _parts_of(module):
        yield Order(f"{what} of {safe_text(module, 40)}", _only(test), optimizer=label)


def _parts_of(module: str) -> Sequence[tuple[str, Callable[[str], bool]]]:
    if module == "policy":
        return [
            ("the parameters", lambda _: True),
            ("the parameters without target networks", lambda name: "_target." not in name),
        ]
    return [
        ("the parameters", lambda name: name.startswith(f"{module}.")),
        (
            "the parameters without shared features",
            lambda name: name.startswith(f"{module}.") and "features_ex" not in name,
        ),
        ("the coefficient", lambda name: name == f"log_{module}"),
    ]


def _only(test: Callable[[str], bool]) -> Callable[[Sequence[Weight]], list[list[Weight]]]:
    return lambda weights: [[weight for weight in weights if test(weight.name)]]


def _without_optimizer(archive: ZipArchive) -> Clue:
    return Clue(
        "M103",
        f"{archive.source.name} holds a policy and no optimizer: it was saved without",
        "save with model.save(path), and without exclude=['policy.optimizer']",
    )
