"""What a row cannot hold, and why: each is expected to fail, and is told where it no longer does."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from tests.conformance.row import Cell, Result

_RESTORE = ("saving", "state", "trajectory", "reordered", "hyperparameters")

KNOWN: dict[tuple[str, str], tuple[tuple[str, ...], str]] = {
    ("pytorch_optimizer", "Conda*"): (_RESTORE, "its projector is an object without a place in a file; saving refuses it by name"),
    ("pytorch_optimizer", "SCION*"): (_RESTORE, "a hyperparameter is an enumeration of its own; saving refuses it by name"),
    ("pytorch_optimizer", "ScalableShampoo"): (_RESTORE, "its preconditioners are objects; saving refuses them by name"),
    ("pytorch_optimizer", "MADGRAD"): (("reset",), "keeps its count beside the parameters, which a reset does not see"),
    **{
        ("pytorch_optimizer", name): (("trajectory",), "goes on in another way, though all of its state comes back")
        for name in ("FriendlySAM", "SAM")
    },
    **{
        ("pytorch_optimizer", name): (("reordered",), "keeps numbers of its own in a state dict by position, which a plan leaves out")
        for name in ("SPAM", "TRAC")
    },
    ("timm", "Lamb"): (("registry",), "clips gradients by their norm, so doubled ones, by which a probe measures, are the same to it"),
    ("timm", "Kron"): (("reset",), "what its preconditioners begin with is not zero; a reset refuses them by name"),
    ("timm", "Adahessian"): (("trajectory", "reset"), "draws from a generator of its own, which no state dict has"),
    ("training", "StatefulDataLoader in the middle of an epoch, with a generator of its own"): (
        ("reset",), "the order of the next epoch is in that generator, which the loader's state does not have",
    ),
    ("training", "StatefulDataLoader in the middle of an epoch, with torch's generator"): (
        ("state", "trajectory", "reset"),
        "making its iterator anew draws from torch's generator after that was restored: give the loader one of its own",
    ),
}  # fmt: skip
"""Library and pattern of labels → columns, and the reason."""


def reasons(library: str, label: str) -> Mapping[str, str]:
    """The reason by column of what a row cannot hold."""
    return {
        column: reason
        for (known, pattern), (columns, reason) in KNOWN.items()
        if known == library and fnmatchcase(label, pattern)
        for column in columns
    }


def surprises(result: Result) -> list[str]:
    """Where a row does not come out as expected, one line each."""
    row = result.row
    expected = reasons(row.library, row.label)
    cells = {name: cell for name, cell in result.cells.items() if " " not in name}  # peers may fail as they like
    return [
        f"{row.library}: {row.label}: {name}: {_told(cell, expected.get(name))}"
        for name, cell in cells.items()
        if (cell.verdict == "fails") != (name in expected)
    ]


def _told(cell: Cell, reason: str | None) -> str:
    return f"holds now, though: {reason}" if reason is not None else cell.text
