"""Keys of `optimizer.state` that are no parameter, and a state in which nothing can be looked up."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.doctor.evidence import LiveEvidence, LiveOptimizer, Stranger
from optstate.doctor.finding import Finding
from optstate.doctor.rules.asking import live_rule
from optstate.doctor.rules.wording import called
from optstate.text import count, listing, safe_text


def _mapping(live: LiveEvidence) -> Iterator[Finding]:
    for optimizer in live.optimizers.values():
        if not optimizer.creates_entries:
            yield Finding(
                "M119",
                f"optimizer.state is a {safe_text(optimizer.container)}, in which a step cannot create an entry",
                where=called(optimizer.name),
                fix="    optimizer.state = collections.defaultdict(dict, optimizer.state)",
            )


def _keys(live: LiveEvidence) -> Iterator[Finding]:
    for optimizer in live.optimizers.values():
        ids = sum(parameter.optimizer == optimizer.name for parameter in live.parameters.values())
        numbers = [stranger for stranger in optimizer.strangers if stranger.kind == "number"]
        tensors = [stranger for stranger in optimizer.strangers if stranger.kind == "tensor"]
        yield from _found(optimizer, "M120", [each for each in numbers if not each.slots], _LOOKED_UP)
        used = [each for each in numbers if each.slots]
        yield from _found(optimizer, "M218", [each for each in used if 0 <= each.number < ids], _HIDES)
        yield from _found(optimizer, "M219", [each for each in used if not 0 <= each.number < ids], _ORPHAN)
        yield from _found(optimizer, "M216", [each for each in tensors if each.slots], _STALE)
        yield from _found(optimizer, "M217", [each for each in tensors if not each.slots], _PHANTOM)


_LOOKED_UP = "with nothing in it, as reading optimizer.state by a number leaves behind"
_HIDES = "which in the next state_dict() takes the place of the parameter with that number"
_ORPHAN = "which is the number of no parameter, as loading a file with such a number leaves behind"
_STALE = "which is in no group any more, so that state_dict() raises KeyError"
_PHANTOM = "which is in no group and has an empty entry, as reading optimizer.state leaves behind"

_DELETE_NUMBERS = "    for key in [key for key in optimizer.state if isinstance(key, int)]: del optimizer.state[key]"
_DELETE_TENSORS = (
    "    held = {id(p) for group in optimizer.param_groups for p in group['params']}\n"
    "    for p in [p for p in optimizer.state if id(p) not in held]: del optimizer.state[p]"
)


def _found(optimizer: LiveOptimizer, code: str, strangers: list[Stranger], what: str) -> Iterator[Finding]:
    if strangers:
        numbers = strangers[0].kind == "number"
        noun = count(len(strangers), "number" if numbers else "tensor")
        yield Finding(
            code,
            f"optimizer.state has an entry for {noun} ({listing([each.shown for each in strangers])}), {what}",
            where=called(optimizer.name),
            fix=_DELETE_NUMBERS if numbers else _DELETE_TENSORS,
        )


RULES = (
    live_rule(_mapping, "M119", checks="keys of the state"),
    live_rule(_keys, "M120", "M216", "M217", "M218", "M219", checks="keys of the state"),
)
