"""The properties that are looked at in one process, on a training that has come to its end."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from optstate import Policy, attach, diagnose, named_state_dict, probe, restore, save
from optstate.errors import OptstateError, ProbeError
from optstate.live.edit import Edit
from optstate.live.state import LiveState
from optstate.optimizers.registry import by_class
from optstate.proof.moments import BUFFERS, STEPPED, WEIGHTS, differences
from optstate.proof.parts import Parts, random_states, restore_random_state
from optstate.proof.training import Training
from tests.conformance.building import build
from tests.conformance.peers import optimizers_of
from tests.conformance.row import Cell, NotApplicable, Row
from tests.probed_rows import KNOWN_BETTER

STEPS = 3
"""How far a reset optimizer is followed beside a new one."""

Look = Callable[[Row, Training, Path], "str | None"]
"""None where the property holds, or what differs. Raises `NotApplicable`."""


def look(row: Row, training: Training, path: Path) -> None:
    """Every property of LOOKS, written to a file. Called as a way to save is, in a process that ends thereafter."""
    found = {name: asdict(_cell(column, row, training, path.parent / name)) for name, column in LOOKS.items()}
    path.write_text(json.dumps(found))


def _cell(column: Look, row: Row, training: Training, path: Path) -> Cell:
    try:
        differs = column(row, training, path)
    except NotApplicable as reason:
        return Cell("none", str(reason))
    except Exception as error:  # noqa: BLE001  # whatever goes wrong is what the table is to tell
        return Cell("fails", f"{type(error).__name__}: {error}".splitlines()[0])
    return Cell("holds") if differs is None else Cell("fails", differs)


def save_and_look(training: Training, path: Path) -> None:
    """`save`, after looking at everything that can be looked at."""
    state = attach(training.optimizer, training.model)
    str(state), state.snapshot(), named_state_dict(training.optimizer, training.model)
    diagnose(training.optimizer, model=training.model)
    save(path, model=training.model, optimizer=training.optimizer, rng=True, **training.saved())


# --- the registry -------------------------------------------------------------------------------------------


def registry(row: Row, training: Training, _path: Path) -> str | None:
    """What the registry says of the class is what a probe of it measures."""
    if row.library == "training":
        raise NotApplicable("its optimizers have rows of their own")
    (optimizer,) = optimizers_of(training).values()
    spec = by_class(type(optimizer))
    if spec is None:
        raise NotApplicable("not in the registry")
    options = {key: value for key, value in row.options.items() if value != "tensor" and key != "differentiable"}
    try:
        told = probe(type(optimizer), **options).differences(spec)
    except ProbeError as error:
        raise NotApplicable(f"cannot be probed: {error.found}") from error
    known = KNOWN_BETTER.get(spec.name.rpartition(".")[2], ())
    wrong = [line for line in told if line not in known]
    return "; ".join(wrong) or None


# --- edits --------------------------------------------------------------------------------------------------


def edits(_row: Row, training: Training, _path: Path) -> str | None:
    """An edit that fails, and one that is undone, leave every bit as it was."""
    state, parts = attach(training.optimizer, training.model), Parts(training)
    before = parts.moment()
    keys = _scalable(state)
    for end in (_failing, _undone):
        end(state, keys)
        wrong = differences(before, parts.moment(), STEPPED)
        if wrong:
            return f"{wrong[0].name} after an edit that was {end.__name__[1:]}"
    return None


def _failing(state: LiveState, keys: Collection[str]) -> None:
    with suppress(KeyError), state.edit(force=True) as edit:
        _change(edit, keys)
        raise KeyError


def _undone(state: LiveState, keys: Collection[str]) -> None:
    with state.edit(force=True) as edit:
        _change(edit, keys)
    state.undo()


def _change(edit: Edit, keys: Collection[str]) -> None:
    for key in keys:
        edit.select("*").slot(key).scale_(0.5)


def _scalable(state: LiveState) -> list[str]:
    """The slots that can be scaled, found by trying."""
    found, refusal = [], "it keeps nothing"
    for key in sorted({key for name in state for key in state[name].slots}):
        try:
            with state.edit(dry_run=True, force=True) as edit:
                _change(edit, [key])
        except OptstateError as error:
            refusal = str(error).splitlines()[0]
        else:
            found.append(key)
    if not found:
        raise NotApplicable(f"no slot can be scaled: {refusal}")
    return found


# --- reset --------------------------------------------------------------------------------------------------


def reset(row: Row, training: Training, _path: Path) -> str | None:
    """A reset optimizer goes on as a new one does."""
    for optimizer in optimizers_of(training).values():
        if by_class(type(optimizer)) is None:
            raise NotApplicable("not in the registry")
        if not optimizer.state:
            raise NotApplicable("keeps nothing")
    with attach(training.optimizer, training.model).edit(force=True) as edit:
        edit.select("*").reset_()
    new = build(row)
    for name, item in new.saved().items():
        item.load_state_dict(training.saved()[name].state_dict())
    new.model.load_state_dict(training.model.state_dict())
    if row.library == "training":
        for old, group in zip(
            _groups(training), _groups(new), strict=True
        ):  # what a schedule has set stays after a reset
            group.update({key: value for key, value in old.items() if key != "params"})
    return _parting(training, new)


def _parting(one: Training, other: Training) -> str | None:
    """The first tensor of the model in which two trainings part within some steps on the same random numbers."""
    random, after = random_states(), []
    for training in (one, other):
        for component, state in random.items():
            restore_random_state(component, state)
        for _ in range(STEPS):
            training.train_step()
        moment = Parts(training).moment()
        after.append({**moment.get(WEIGHTS, {}), **moment.get(BUFFERS, {})})
    wrong = [name for name in after[0] if after[0][name].digest != after[1][name].digest]
    return f"{wrong[0]}, {STEPS} steps later, is not that of a new optimizer" if wrong else None


# --- hyperparameters ----------------------------------------------------------------------------------------


def hyperparameters(row: Row, training: Training, path: Path) -> str | None:
    """A restore gives the saved hyperparameters, or leaves those of the program, as the policy says."""
    if any("lr" not in group for group in _groups(training)):
        raise NotApplicable("no learning rate among them")
    save(path, model=training.model, optimizer=training.optimizer)
    for whose in ("saved", "live"):
        new = build(row)
        for group in _groups(new):
            _set_rate(group, RATE)
        policy = Policy(hyperparameters={"lr": whose, "*": "saved"})
        restore(path, model=new.model, optimizer=new.optimizer, policy=policy)
        for old, group in zip(_groups(training), _groups(new), strict=True):
            due = {**old, "lr": RATE} if whose == "live" else old
            wrong = [key for key in due if key not in _OWN and _plain(due[key]) != _plain(group.get(key))]
            if wrong:
                return f"{wrong[0]} is {group.get(wrong[0])}, expected {due[wrong[0]]} ({whose})"
    return None


RATE = 2**-6
"""A learning rate that the saved ones are not; the same number in every type."""

_OWN = {"params", "param_names", "foreach", "fused", "capturable", "differentiable"}
"""What is always the program's."""


def _groups(training: Training) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers_of(training).values() for group in optimizer.param_groups]


def _set_rate(group: dict[str, Any], value: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = value


def _plain(value: Any) -> str:
    """As it is compared: a tensor by its element, rounded as float32 is."""
    return repr(value.tolist()) if isinstance(value, torch.Tensor) else repr(value)


LOOKS: dict[str, Look] = {"registry": registry, "hyperparameters": hyperparameters, "edits": edits, "reset": reset}
"""In this order, for the last ones change the training."""
