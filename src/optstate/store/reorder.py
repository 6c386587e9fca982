"""The parameters of a checkpoint in the order and groups of a running program."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from optstate.errors import Unsaveable
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.matching import match_names
from optstate.formats.trees import walk
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.text import listing, safe_text


def in_order_of(checkpoint: Checkpoint, live: OptimizerState) -> Checkpoint:
    """The checkpoint with its parameters laid out as in `live`, under the names that they have there.

    Each group keeps the hyperparameters of the checkpoint. Raises `Unsaveable` for a parameter that `live` does not have,
    and for a group whose parameters have several hyperparameters in the checkpoint, or none.
    """
    state = checkpoint.state
    pairs = match_names(
        {name: state[name].facts.aliases for name in state}, {name: live[name].facts.aliases for name in live}
    ).pairs
    strangers = [name for name in state if name not in pairs]
    if strangers:
        raise Unsaveable(
            "the program does not have all parameters of the checkpoint",
            where=safe_text(checkpoint.path),
            expected=listing(live),
            found=listing(strangers),
            todo="build model and optimizer as the run did that wrote it",
        )
    homes = {other: name for name, other in pairs.items()}
    parameters = [_placed(state, homes.get(name), live, name) for name in live]
    infos = {name: _info(state, info, homes) for name, info in live.optimizers.items()}
    return replace(checkpoint, state=OptimizerState(FrozenSource(parameters, infos, state.left_out)))


def _placed(state: OptimizerState, saved: str | None, live: OptimizerState, name: str) -> FrozenParameter:
    facts = live[name].facts
    if saved is None:
        return FrozenParameter(facts, {}, live[name].absences)
    found = state[saved]
    slots = {key: replace(slot, parameter=name) for key, slot in found.slots.items()}
    return FrozenParameter(replace(facts, dtype=found.facts.dtype or facts.dtype), slots, found.absences)


def _info(state: OptimizerState, info: OptimizerInfo, homes: dict[str, str]) -> OptimizerInfo:
    groups = tuple(
        Group(info.name, group.index, _hyperparameters(state, group, homes), group.parameters) for group in info.groups
    )
    return replace(info, groups=groups)


def _hyperparameters(state: OptimizerState, group: Group, homes: dict[str, str]) -> dict[str, Any]:
    """The hyperparameters that all parameters of a live group have in the checkpoint."""
    places = {
        (facts.optimizer, facts.group)
        for name in group.parameters
        if name in homes
        for facts in (state[homes[name]].facts,)
    }
    found = [each for each in state.groups if (each.optimizer, each.index) in places]
    one = dict(found[0].hyperparameters) if found else {}
    if not found or any(walk(one, dict(other.hyperparameters)).differing for other in found[1:]):
        raise Unsaveable(
            f"the parameters of the program's group {group.index} "
            + ("have several hyperparameters in the checkpoint" if found else "are not in the checkpoint"),
            found=listing(group.parameters, 3),
            todo="build the optimizer with the groups of the run that wrote the checkpoint",
        )
    return one
