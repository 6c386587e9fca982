"""Objects: schedulers, loaders and whatever else has a state of its own; what becomes of each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from optstate.errors import PolicyError
from optstate.live.beside import Beside
from optstate.live.source import LiveSource, hyperparameters
from optstate.optimizers.registry import qualified_name
from optstate.resume.decided import Decided
from optstate.resume.decisions import HyperparameterDecision, ObjectDecision, missing
from optstate.resume.groups import Grouping
from optstate.resume.policy import PRESETS, Policy, nearest
from optstate.resume.rates import KEYS
from optstate.resume.regrouping import reshape
from optstate.resume.rehearsal import rehearse
from optstate.resume.sameness import same
from optstate.resume.schedulers import Driver, other_settings, restored
from optstate.resume.source import Saved
from optstate.state.selection import matcher
from optstate.state.table import format_value
from optstate.store.objects import MODEL, OPTIMIZER, RNG
from optstate.text import listing, safe_text


def decide_objects(
    found: Decided,
    saved: Saved,
    objects: Mapping[str, Any],
    live: LiveSource | None,
    grouping: Grouping,
    drivers: Sequence[Driver],
    policy: Policy,
) -> None:
    """Decide for every object that was passed, and try those that drive an optimizer on copies.

    Raises `PolicyError` for a pattern that means no object of either side.
    """
    _check_patterns(policy, {*objects, *saved.objects})
    for name, item in objects.items():
        decision = _decide(found, saved, name, item, policy)
        if decision is not None:
            found.objects.append(decision)
    _list_left_out(found, saved, objects, policy)
    fits = [_fit(found, driver, live, grouping) for driver in drivers]
    _compare_drivers(found, saved, drivers, live, policy)
    _explain_hyperparameters(found, drivers)
    if all(fits):
        rehearse(found, live, grouping, drivers, policy)


def _check_patterns(policy: Policy, names: Iterable[str]) -> None:
    known = [name for name in names if name != OPTIMIZER]  # which goes with the slots, whatever is said of objects
    own = {pattern for preset in PRESETS for pattern in getattr(Policy, preset)().objects}
    for pattern in policy.objects:
        if pattern not in own and not any(map(matcher(pattern), known)):
            raise PolicyError(
                f"no object is meant by {safe_text(pattern)!r}{nearest(pattern, known)}",
                where="objects",
                expected=f"some of {listing(known)}" if known else "nothing, for there are no objects",
            )


def _decide(found: Decided, saved: Saved, name: str, item: Any, policy: Policy) -> ObjectDecision | None:
    if name == MODEL and policy.weights != "restore":
        return None  # what modules keep besides goes with their weights
    if name == OPTIMIZER:
        return _decide_beside(found, saved, item, policy)
    if name != MODEL and not restored(policy, name):
        return None
    if name not in saved.objects:
        found.faults.append(
            f"{safe_text(name)}: not among the objects of the checkpoint ({listing(saved.objects) or 'none'}); "
            f'objects={{"{safe_text(name)}": "live"}} leaves it as it is'
        )
        return None
    expected, mine = saved.object_classes.get(name), qualified_name(type(item))
    if expected is not None and expected != mine and name not in (RNG, MODEL):
        found.faults.append(f"{safe_text(name)}: a {safe_text(expected)} in the checkpoint, a {mine} live")
        return None
    transform = partial(_completed, item) if name == MODEL and policy.missing == "fresh" else None
    return ObjectDecision(name, mine, saved.objects[name], _reversible(item), transform)


def _decide_beside(found: Decided, saved: Saved, item: Beside, policy: Policy) -> ObjectDecision | None:
    """What optimizers keep besides goes with their slots."""
    mine = qualified_name(Beside)
    if policy.slots != "restore" or saved.object_classes.get(OPTIMIZER) != mine:
        return None
    state: Any = saved.objects[OPTIMIZER]
    found.left_out += [why for name, each in state.items() if (why := item.misplaced(name, each)) is not None]
    wrong = [
        f"{safe_text(each['class'])} has a state_dict of its own: its slots come back as they were saved, and scale has no effect"
        for each in state.values()
        if "own" in each and policy.scale not in (1.0, {})
    ]
    found.faults += wrong
    return None if wrong else ObjectDecision(OPTIMIZER, mine, state, _reversible(item))


def _completed(item: Any, state: Any) -> Any:
    """What modules keep besides, with that of the modules that the checkpoint does not have."""
    return {**item.state_dict(), **state}


def _reversible(item: Any) -> bool:
    """Whether the object's present state can be kept aside, so that it can be put back."""
    try:
        copy.deepcopy(item.state_dict())
    except Exception:  # noqa: BLE001  # whatever a foreign object raises, the answer is no
        return False
    return True


def _list_left_out(found: Decided, saved: Saved, objects: Mapping[str, Any], policy: Policy) -> None:
    stays = [
        name
        for name in saved.objects
        if name in objects and name not in (MODEL, OPTIMIZER) and not restored(policy, name)
    ]
    left = [name for name in saved.objects if name not in objects]
    found.left_out += [f"what belongs to no parameter: {listing(saved.unplaced)}"] if saved.unplaced else []
    found.left_out += [f"objects {listing(left)}"] if left else []
    found.left_out += [f"objects {listing(stays)}: the live ones stay as they are"] if stays else []


# --- what drives an optimizer -------------------------------------------------------------------------------


def _fit(found: Decided, driver: Driver, live: LiveSource | None, grouping: Grouping) -> bool:
    """Have the saved state of a driver fit the live groups; whether it does."""
    decision = next((item for item in found.objects if item.name == driver.name), None)
    if decision is None or live is None or driver.optimizer is None or not grouping.rows:
        return decision is not None
    rows = [row for (name, _), row in grouping.rows.items() if name == driver.optimizer]
    made = reshape(driver, grouping.saved[driver.optimizer], rows)
    if isinstance(made, str):
        found.faults.append(f"{safe_text(driver.name)}: {made}")
        return False
    if made is not None:
        both = made if decision.transform is None else _after(decision.transform, made)
        found.objects[found.objects.index(decision)] = ObjectDecision(
            decision.name, decision.class_name, decision.saved, decision.reversible, both
        )
    return True


def _after(first: Callable[[Any], Any], then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda state: then(first(state))


def _compare_drivers(
    found: Decided, saved: Saved, drivers: Sequence[Driver], live: LiveSource | None, policy: Policy
) -> None:
    """Look at what every scheduler drives, and was built with: what it goes on from is not in its own state."""
    passed = {item.name for item in found.objects}
    for driver in drivers:
        name = safe_text(driver.name)
        if driver.name not in passed:
            continue
        if driver.optimizer is None and live is not None:
            found.warnings.append(
                f"M407 {name} drives another optimizer than the one restored: build it again on this one"
            )
        elif driver.optimizer is None and driver.of_torch:
            _compare_groups(found, saved, driver, policy)
        settings = other_settings(driver)
        if settings:
            found.warnings.append(f"{name}: {listing(settings)}; set it after the restore to keep yours")


def _compare_groups(found: Decided, saved: Saved, driver: Driver, policy: Policy) -> None:
    """A scheduler goes on from what its groups hold, and they hold something else than when it was saved (M406)."""
    groups = driver.target.param_groups
    theirs: list[Mapping[str, Any]] = [group.hyperparameters for group in saved.state.groups]
    if len(theirs) != len(groups):
        theirs = [{"lr": rate} for rate in driver.state.get("_last_lr", ())]
    for index, (mine, before) in enumerate(zip(map(hyperparameters, groups), theirs, strict=False)):
        differing = [key for key in _DRIVEN if key in before and not same(mine.get(key, missing), before[key])]
        if differing:
            shown = ", ".join(
                f"{key} {format_value(mine[key]) if key in mine else 'none'} where {format_value(before[key])} was saved"
                for key in differing
            )
            (found.faults if policy.rest == "saved" else found.warnings).append(
                f"M406 {safe_text(driver.name)} goes on from what group {index} holds, {shown}: building a scheduler writes to "
                "the groups; restore both together, with model= and optimizer="
            )
            return


_DRIVEN = (*KEYS, "momentum", "betas", "base_momentum", "max_momentum")


def _explain_hyperparameters(found: Decided, drivers: Sequence[Driver]) -> None:
    """A changed value that no restored scheduler accounts for deserves a warning (M401)."""
    groups: dict[str, list[str]] = {}
    for item in found.hyperparameters:
        explained = item.winner != "saved" or not item.changes or item.live is missing or item.key in _NOTED
        if not explained and not any(each.optimizer == item.optimizer and each.drives(item.key) for each in drivers):
            sentence = (
                f"{safe_text(item.key)} becomes {format_value(item.saved)} (your program set {format_value(item.live)}) and no "
                f'restored scheduler explains it; hyperparameters={{"{safe_text(item.key)}": "live"}} keeps yours'
            )
            groups.setdefault(sentence, []).append(group_label(item))
    for sentence, labels in groups.items():
        found.warnings.append(f"M401 group{'s' if len(labels) > 1 else ''} {listing(labels)}: {sentence}")


_NOTED = frozenset(KEYS) - {"lr"}
"""What schedulers note in a group about its rates; they go the way of `lr`."""


def group_label(item: HyperparameterDecision) -> str:
    """The live group of a decision: its number, after the optimizer's name where there are several."""
    return f"{safe_text(item.optimizer)}:{item.group}" if item.optimizer else str(item.group)
