"""Groups: the hyperparameters that each live group will have, by where its parameters were when they were saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optstate.live.source import LiveSource, hyperparameters
from optstate.optimizers.spec import ALGORITHM_FLAGS, IMPLEMENTATION_FLAGS
from optstate.resume.decided import Decided
from optstate.resume.decisions import HyperparameterDecision, missing
from optstate.resume.policy import Policy
from optstate.resume.sameness import same
from optstate.resume.source import Saved
from optstate.state.groups import Group
from optstate.state.table import format_value
from optstate.text import count, safe_text

Place = tuple[str, int]
"""A live group: the name of its optimizer and its number."""


@dataclass(slots=True)
class Grouping:
    """Where the live groups come from, and what they will have.

    `homes` is live group → numbers of the saved groups that its parameters come from, in order; `after` its
    hyperparameters once all is done; `regrouped` has the live optimizers whose groups are not the saved ones in their order.
    """

    homes: dict[Place, tuple[int, ...]] = field(default_factory=dict)
    after: dict[Place, dict[str, Any]] = field(default_factory=dict)
    regrouped: set[str] = field(default_factory=set)


def decide_groups(
    found: Decided,
    saved: Saved,
    live: LiveSource,
    optimizers: Mapping[str, str],
    pairs: Mapping[str, str],
    policy: Policy,
) -> Grouping:
    """Decide every hyperparameter. `optimizers` and `pairs` are live name → saved name, of optimizers and parameters."""
    del policy  # whose values win
    home = {name: group for group in saved.state.groups for name in group.parameters}
    infos, grouping = live.optimizers(), Grouping()
    for live_name in optimizers:
        for index, group in enumerate(live.live_optimizers[live_name].param_groups):
            members = [home[pairs[name]] for name in infos[live_name].groups[index].parameters if name in pairs]
            sources = list({id(source): source for source in members}.values())
            mine = hyperparameters(group)
            grouping.homes[live_name, index] = tuple(source.index for source in sources)
            grouping.after[live_name, index] = mine
            if sources:
                if [source.index for source in sources] != [index]:
                    grouping.regrouped.add(live_name)
                decisions = _decide(found, live_name, index, mine, sources)
                found.hyperparameters.extend(decisions)
                grouping.after[live_name, index] = {
                    **mine,
                    **{item.key: item.value for item in decisions if item.value is not missing},
                }
    return grouping


def _decide(
    found: Decided, optimizer: str, index: int, live: Mapping[str, Any], sources: list[Group]
) -> list[HyperparameterDecision]:
    label = f"group {optimizer}:{index}" if optimizer else f"group {index}"
    decisions = []
    for key in dict.fromkeys((*live, *(key for source in sources for key in source.hyperparameters))):
        values = [source.hyperparameters.get(key, missing) for source in sources]
        mine, theirs = live.get(key, missing), values[0]
        agree = same(mine, theirs)
        if key in IMPLEMENTATION_FLAGS:
            if not agree:
                decisions.append(HyperparameterDecision(optimizer, index, key, mine, theirs, mine, "live", same=False))
            continue
        if not all(same(value, theirs) for value in values[1:]):
            shown = " and ".join(dict.fromkeys(format_value(value) for value in values))
            found.faults.append(
                f"{label}: its parameters come from {count(len(sources), 'saved group')} that differ in "
                f"{safe_text(key)} ({shown})"
            )
            continue
        if key in ALGORITHM_FLAGS and missing not in (mine, theirs) and not agree:
            found.faults.append(
                f"{label}: {key} is {format_value(theirs)} in the checkpoint and {format_value(mine)} live, "
                "which changes what the slots mean"
            )
            continue
        winner, value = ("live", mine) if theirs is missing else ("saved", theirs)
        decisions.append(HyperparameterDecision(optimizer, index, key, mine, theirs, value, winner, same=agree))  # type: ignore[arg-type]
    return decisions
