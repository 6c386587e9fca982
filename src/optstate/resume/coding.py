"""Slots in codes: which travel as they are, and what it costs to write those that do not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from optstate.formats.containers.quantised import Blockwise
from optstate.formats.entries import PARTS
from optstate.live.quantised import Form, decoded, encoded
from optstate.live.tensors import HeldTensor, is_quantised
from optstate.optimizers.spec import OptimizerSpec
from optstate.resume.classes import keeps_codes
from optstate.resume.decisions import Entry, Fate, Transform
from optstate.resume.fates import both
from optstate.resume.materialise import materialise
from optstate.state.tensors import Value


def has_codes(spec: OptimizerSpec | None, saved: Mapping[str, Value]) -> bool:
    """Whether a live class may keep slots in codes, or a saved entry has such."""
    return (
        (spec is not None and keeps_codes(spec))
        or not PARTS.keys().isdisjoint(saved)
        or any(map(_is_coded, saved.values()))
    )


def _is_coded(value: Value) -> bool:
    return isinstance(value, Blockwise) or (isinstance(value, HeldTensor) and is_quantised(value.tensor))


def coded(
    saved: Mapping[str, Value],
    fates: Mapping[str, Fate],
    transforms: tuple[Transform, ...],
    forms: Mapping[str, Form],
) -> tuple[dict[str, Fate], tuple[Transform, ...]]:
    """The fates and the transforms of an entry with codes on either side; `saved` is gathered, `forms` are the live ones.

    Codes that are written alike on both sides travel as they are. What has to be written anew is read, and its fate
    tells the error that was measured.
    """
    found = dict(fates)
    for key, value in saved.items():
        if isinstance(value, Blockwise) and key not in forms and _travels(found.get(key)):
            found[key] = both(found[key], Fate("cast", f"the values of {value.dtype}, without loss"))
    anew = [key for key in forms if key in found and not (_travels(found[key]) and forms[key].takes(saved[key]))]
    if anew:
        entry: Entry = {key: materialise(value) for key, value in saved.items()}
        for transform in transforms:
            entry = transform(entry)
        for key in anew:
            found[key] = both(found[key], Fate("cast", f"written in {forms[key]}: {forms[key].loss(entry[key])}"))
    by_key = {part: fate for key, fate in found.items() for part in (forms[key].keys if key in forms else (key,))}
    if forms:
        return by_key, (*transforms, partial(encoded, forms=forms))
    return by_key, (*transforms, decoded) if any(map(_is_coded, saved.values())) else transforms


def _travels(fate: Fate | None) -> bool:
    """Whether all that is done to a slot can be done to its codes."""
    return fate is not None and fate.decision in ("exact", "renamed", "scaled")
