"""What the moments of two runs say: is the machine deterministic, is the state the saved one, is what follows. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from optstate.errors import ProofError
from optstate.proof.moments import (
    BATCH,
    LOSS,
    RANDOM,
    RESTORED,
    STEPPED,
    Difference,
    Moment,
    Run,
    counts,
    differences,
)
from optstate.proof.proof import FLIP, Check, FirstDifference
from optstate.text import count, listing, safe_text

_SEEDS = {
    "python RNG": "random.seed(0)",
    "numpy RNG": "numpy.random.seed(0)",
    "torch RNG": "torch.manual_seed(0)",
    "CUDA RNG": "torch.cuda.manual_seed_all(0)",
}


def without_state(moment: Moment) -> Moment:
    """What a moment holds beside the batch and loss that led to it."""
    return {component: parts for component, parts in moment.items() if component not in (BATCH, LOSS)}


def unseeded(first: Run, second: Run, build: str) -> frozenset[str]:
    """The generators that `build` left unseeded and nothing draws from: they are no part of the run.

    Raises `ProofError` where two calls of `build` make two trainings, or where nothing ever changes.
    """
    start, end = min(first.moments), max(first.moments)
    found = differences(first.moments[start], second.moments[start], STEPPED)
    streams = {each.component for each in found} & set(RANDOM)
    drawn = {
        each.component for run in (first, second) for each in differences(run.moments[start], run.moments[end], STEPPED)
    }
    other = [each for each in found if each.component not in streams]
    if other:
        raise ProofError(
            f"{build} makes another training each time it is called: {safe_text(other[0].name)} differs",
            expected="two calls in two processes that make the same run, bit for bit",
            found=f"{count(len(other), 'part')} of another value: {listing([each.name for each in other], limit=4)}",
            todo="seed the generators at the start of build, and take nothing from the clock or the order of a set",
        )
    if streams & drawn:
        raise ProofError(
            f"{listing(sorted(streams & drawn))} is drawn from and was never seeded",
            todo=f"call {', '.join(_SEEDS[each] for each in sorted(streams & drawn))} at the start of build",
        )
    if not drawn - set(RANDOM):
        raise ProofError(
            f"train_step() changes nothing in {count(end - start, 'call')}",
            expected="one optimizer step in each call",
            found="the same weights and slots after every call",
            todo="does it ever get data? a loop over an empty loader takes no step",
        )
    return frozenset(streams)


def diverged(first: Run, second: Run, ignored: Collection[str]) -> tuple[int, list[Difference]] | None:
    """The first step at which two runs differ, and all that differs there, in the order of `STEPPED`."""
    for step in sorted(first.moments.keys() & second.moments.keys()):
        found = differences(first.moments[step], second.moments[step], STEPPED, ignored)
        if found:
            return step, found
    return None


def first_of(step: int, found: list[Difference], element: str | None = None) -> FirstDifference:
    """The first of several differences, as it is told."""
    among = Counter(each.component for each in found)
    return FirstDifference(step, *found[0], element, dict(among))


def first_after(
    reference: Run, restored: Run, cut: int, comparable: int, ignored: Collection[str]
) -> FirstDifference | None:
    """What differs first in the `comparable` steps after a restore at `cut`; None where nothing does."""
    for step in range(cut + 1, cut + 1 + comparable):
        if step not in restored.moments:
            return FirstDifference(step - cut, LOSS, restored.failed or "the step", None, None, None, {LOSS: 1})
        found = differences(reference.moments[step], restored.moments[step], STEPPED, ignored)
        if found:
            return first_of(step - cut, found)
    return None


def restored_state(saved: Moment, restored: Moment, ignored: Collection[str]) -> list[Difference]:
    """All that is not as it was saved."""
    return differences(without_state(saved), without_state(restored), RESTORED, ignored)


def state_checks(saved: Moment, found: list[Difference], ignored: Collection[str]) -> list[Check]:
    """State, and random generators, as restored."""
    random = [name for name in RANDOM if name in saved and name not in ignored]
    tensors, values = counts({name: parts for name, parts in saved.items() if name not in RANDOM})
    streams = list(dict.fromkeys(each.component for each in found if each.component in RANDOM))
    others = [each for each in found if each.component not in RANDOM]
    return [
        Check(
            "state",
            "different" if others else "exact",
            f"{count(tensors, 'tensor')} and {count(values, 'other value')} by name, as restored",
        ),
        Check(
            "random", "different" if streams else "exact", ", ".join(streams or random).replace(" RNG", "") or "none"
        ),
    ]


def batch_check(reference: Run, restored: Run, cut: int, last: int) -> Check:
    """Whether the model was fed the same."""
    fed = [step for step in range(cut + 1, last + 1) if BATCH in reference.moments[step]]
    steps = [step for step in fed if step in restored.moments]
    if not steps:
        why = "no step could be taken" if fed else "the model itself is never called with a batch"
        return Check("batches", "not tried", why)
    same = [step for step in steps if _batch(reference, step) == _batch(restored, step)]
    return Check("batches", "exact" if same == steps else "different", f"{len(same)} of {len(steps)} by digest")


def _batch(run: Run, step: int) -> dict[str, str]:
    """The digests of what the model was fed in a step."""
    return {name: part.digest for name, part in run.moments[step].get(BATCH, {}).items()}


def flip_check(restored: Run, cut: int) -> Check:
    """The control of the comparison itself. Raises `ProofError` where a flipped bit is not seen: nothing is proven then."""
    if restored.flip is None or restored.flipped is None:
        raise ProofError(
            "the proof is void: there is no slot or weight whose bit could be flipped, so nothing shows that it would be seen",
            expected="a model with weights, or an optimizer with slots",
        )
    seen = restored_state(restored.moments[cut], restored.flipped, ())
    name = restored.flip
    if [each.name for each in seen if each.name == name] != [name] or not restored.untouched:
        raise ProofError(
            f"the proof is void: one bit of {safe_text(name)} was flipped, and the comparison did not see it",
            expected=f"{safe_text(name)} and nothing else to differ",
            found=listing([each.name for each in seen]) if seen else "no difference",
        )
    return Check(FLIP, "exact", f"one bit of {safe_text(name, 40)} flipped")
