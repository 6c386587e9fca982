"""What a conversion between two classes keeps, approximates and loses, in words; and how far its updates may go."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from optstate.optimizers.at import At
from optstate.optimizers.conventions import is_debiased
from optstate.optimizers.conversion_families import DERIVED, Square
from optstate.optimizers.conversion_moments import averages, decay, of_updates, square_key, square_of
from optstate.optimizers.conversion_pair import Pair, existing, knows_mean, knows_square, writes_mean
from optstate.text import safe_text

_FROM: dict[Square, str] = {
    "sum": "the second moment is the plain mean of all squared gradients: which were recent, a sum does not tell",
    "variance": "the second moment is the variance and the square of the mean, added",
    "ahead": "the second moment is of gradients that look ahead, somewhat larger than that of gradients",
    "maximum": "the second moment is the square of the largest gradient, larger than its mean: first updates are smaller",
    "factored": "the second moment is known by rows and columns: exact where it has rank 1",
    "weighted": "the second moment averages over all steps, the later ones more",
}
_INTO: dict[Square, str] = {
    "sum": "the second moment goes on as a sum, of as many equal squares as there were steps",
    "variance": "the variance is the second moment without the square of the mean, no less than one gradient leaves",
    "ahead": "changes between gradients are not known: the second moment is that of gradients",
    "maximum": "the largest gradient is not known: the root mean square stands for it, up to 2.8 times smaller under noise",
    "factored": "of the second moment, means of rows and columns are kept",
    "weighted": "the second moment goes on as an average over all steps",
}


def losses(pair: Pair) -> tuple[str, ...]:
    """One sentence for each thing that is lost or approximated; none where the conversion is exact."""
    return () if pair.is_same else tuple(dict.fromkeys([*_scale(pair), *_mean(pair), *_square(pair), *_others(pair)]))


def _scale(pair: Pair) -> Iterator[str]:
    if pair.rescaled:
        yield "gradients are clipped together on one side only, so that scales differ: all history counts as one gradient"


def _mean(pair: Pair) -> Iterator[str]:
    old, new = _source(pair), writes_mean(pair.after)
    if old is not None and new is None and not _goes_on(pair, old):
        yield f"{'the momentum' if pair.before.spec.slots[old].primary else safe_text(old)} is lost"
    if new is not None and old is None:
        yield "no momentum is known: it starts at zero"
    if old is None or new is None or pair.kept(new, [old]):
        return
    if of_updates(pair.before.spec, old) != of_updates(pair.after.spec, new):
        yield "the momentum changes between gradients and normalised gradients, which vary apart"
    yield from _decays(pair, "momentum", old, new)
    if any(at.option("dampening") for at in (pair.before, pair.after)):
        yield "the first gradient enters a dampened momentum undamped, which is not undone"


def _source(pair: Pair) -> str | None:
    """The slot from which the momentum is made: one that goes on as it is, where there is one."""
    known, new = knows_mean(pair.before), writes_mean(pair.after)
    return (pair.kept(new, known) if new is not None else None) or next(iter(known), None)


def _goes_on(pair: Pair, key: str) -> bool:
    return any(pair.kept(other, [key]) for other in existing(pair.after))


def _square(pair: Pair) -> Iterator[str]:
    old, new = (square_key(at.spec, existing(at)) for at in (pair.before, pair.after))
    if old is None and new is not None:
        yield "no second moment is known: the momentum counts as the one gradient seen so far"
    if old is not None and new is None:
        yield "the second moment is lost, and with it the step size of each weight"
    if old is None or new is None or pair.kept(new, [old]):
        return
    kinds = square_of(pair.before.spec, old), square_of(pair.after.spec, new)
    if kinds[0] != kinds[1]:
        yield from (words[kind] for words, kind in zip((_FROM, _INTO), kinds, strict=True) if kind in words)
    yield from _decays(pair, "second moment", old, new)
    before, after = (is_debiased(at.spec.slots[key], at.hyperparameters) for at, key in _sides(pair, old, new))
    if kinds == ("average", "average") and before and not after:
        yield "the second moment is kept corrected, as if it were old"


def _decays(pair: Pair, what: str, old: str, new: str) -> Iterator[str]:
    sides = _sides(pair, old, new)
    before, after = (decay(at, key) for at, key in sides)
    if before != after and all(averages(at, key) for at, key in sides):
        counted = f", counted as {pair.most_steps:g} steps" if what != "momentum" and pair.longer else ""
        yield f"the {what} was averaged with {before:g} and goes on with {after:g}{counted}"


def _sides(pair: Pair, old: str, new: str) -> tuple[tuple[At, str], tuple[At, str]]:
    return (pair.before, old), (pair.after, new)


def _others(pair: Pair) -> Iterator[str]:
    """Slots beside the moments: those that only the former class keeps, and those that only the other one does."""
    old, new = existing(pair.before), existing(pair.after)
    for key in old:
        if not _derived(pair.before, key) and key != _source(pair) and not _goes_on(pair, key):
            yield f"{safe_text(key)} is lost"
    for key in new:
        slot = pair.after.spec.slots[key]
        if slot.reset == "delete" or _derived(pair.after, key) or pair.kept(key, old):
            continue
        today = slot.role == "max_second_moment"
        yield f"{safe_text(key)} {'starts as the second moment is today' if today else 'starts anew'}"


def _derived(at: At, key: str) -> bool:
    slot = at.spec.slots[key]
    moment = (
        slot.role == "momentum" or slot.role.startswith("factored") or slot.role in ("second_moment", "infinity_norm")
    )
    return key in DERIVED or slot.role in ("step", "counter") or (moment and slot.primary)


def note(pair: Pair) -> str:
    """One line for a plan: which slot is made from which."""
    if pair.is_same:
        return "every slot as it is"
    mean, square = _source(pair), square_key(pair.before.spec, existing(pair.before))
    into = writes_mean(pair.after), square_key(pair.after.spec, existing(pair.after))
    parts = [_made(pair, "momentum", mean, into[0]), _made(pair, "second moment", square, into[1])]
    if pair.most_steps < inf:
        parts.append(f"counted as {pair.most_steps:g} step{'s' * (pair.most_steps > 1)} at most")
    beside = [at.spec.decoupled if isinstance(at.spec.decoupled, bool) else at.flag(at.spec.decoupled) for at in pair]
    if pair.before.option("weight_decay") and beside[0] != beside[1]:
        old, new = ("beside" if each else "within" for each in beside)
        parts.append(f"weight decay was {old} the gradients and is {new} them now")
    return "; ".join(part for part in parts if part)


def _made(pair: Pair, what: str, old: str | None, new: str | None) -> str:
    if new is None:
        return f"{what}: {safe_text(old)} lost" if old is not None else ""
    if old is None:
        return f"{what}: {'0' if what == 'momentum' else 'from the momentum'} → {safe_text(new)}"
    return (
        f"{what}: {safe_text(new)} as it is"
        if pair.kept(new, [old])
        else f"{what}: {safe_text(old)} → {safe_text(new)}"
    )


def bound(pair: Pair) -> float:
    """See `Route.bound`. Measured over all pairs, ages and kinds of gradients in `tests/test_conversions.py`, rounded up.

    Without a second moment, updates are as large as gradients happened to be; where no momentum was known, an old second
    moment meets gradients that a fresh one would have let in at once.
    """
    if pair.assumes_one_step:
        return 1.1
    if not knows_square(pair.after):
        return 3.0
    return 1.5 if knows_mean(pair.before) else 2.5
