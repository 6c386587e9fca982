"""An earlier and a later checkpoint of one run: hyperparameters and flags that changed, by parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optstate.doctor.case import Case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.doctor.rules.asking import alike
from optstate.doctor.rules.file_groups import OF_SCHEDULERS, schedulers
from optstate.doctor.rules.two_files_state import TwoFiles, two_files
from optstate.doctor.rules.wording import about
from optstate.formats.checkpoint import Checkpoint
from optstate.optimizers.spec import ALGORITHM_FLAGS, IMPLEMENTATION_FLAGS
from optstate.state.table import format_value
from optstate.text import safe_text

Changes = dict[str, list[tuple[str, Any, Any]]]
"""Hyperparameter → (parameter, value in the earlier file, value in the later)."""


def _changed(case: Case) -> Iterator[Finding]:
    files = two_files(case)
    for key, changes in _changes(files).items():
        exchanged = [name for name, old, new in changes if any(alike(new, o) and alike(old, n) for _, o, n in changes)]
        if exchanged:
            yield about("M221", exchanged, f"have got the {safe_text(key)} of another group {files.names}")
        elif key == "lr" and _scheduled(case, files):
            continue
        else:
            yield _finding(key, changes, files)


def _changes(files: TwoFiles) -> Changes:
    """Every hyperparameter that a parameter has in both files with different values."""
    changes: Changes = {}
    for name in files.common:
        old, new = _group(files.earlier, name), _group(files.later, name)
        cycled = {"momentum", "betas"} if "max_momentum" in old or "max_momentum" in new else set()
        for key in (old.keys() & new.keys()) - OF_SCHEDULERS - IMPLEMENTATION_FLAGS - cycled:
            if not alike(old[key], new[key]):
                changes.setdefault(key, []).append((name, old[key], new[key]))
    return dict(sorted(changes.items()))


def _group(checkpoint: Checkpoint, name: str) -> Mapping[str, Any]:
    facts = checkpoint.state[name].facts
    return checkpoint.state.optimizers[facts.optimizer].groups[facts.group].hyperparameters


def _finding(key: str, changes: list[tuple[str, Any, Any]], files: TwoFiles) -> Finding:
    _, old, new = changes[0]
    names = [name for name, _, _ in changes]
    says = f"{safe_text(key)} {format_value(old)} became {format_value(new)} {files.names}, for"
    return Finding(_code(key, names, files), f"{says} {len(names):,} of {len(files.common):,} parameters", tuple(names))


def _code(key: str, names: list[str], files: TwoFiles) -> str:
    """Which kind of change it is; some matter because of the momentum that was built up before."""
    momenta = [files.later.state[name].find("momentum") for name in names]
    if key == "maximize" and any(momenta):
        return "M319"
    if key == "decoupled_weight_decay":
        return "M403"
    if key in ALGORITHM_FLAGS:
        return "M402"
    sums = any(slot is not None and slot.convention == "accumulate" for slot in momenta)
    return "M413" if key == "momentum" and sums else "M401"


def _scheduled(case: Case, files: TwoFiles) -> bool:
    """Whether something is known to move the learning rate: a scheduler's mark in a group, or its state in a file."""
    groups = (*files.earlier.state.groups, *files.later.state.groups)
    return any("initial_lr" in group.hyperparameters for group in groups) or any(schedulers(case))


RULES = (Rule(("M221", "M319", "M401", "M402", "M403", "M413"), "two files", _changed, "hyperparameters"),)
