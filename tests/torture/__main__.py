"""`python -m tests.torture`: kill saves, replacements, conversions and whole training runs, thousands of times.

Each deed of `tests.torture.deeds` is killed before each of its operations, by the one that asks for it and with the threads
that write; so is what recovers from it. Then real runs are killed and terminated at random moments, and resumed to their end.
Exit code 0: nothing that was saved was lost. 1: what was, and where.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from tests.torture.deeds import DEEDS
from tests.torture.kills import swept
from tests.torture.lives import lives

THREADS = 2

Toll = Counter[str]


def operations(root: Path, chance: random.Random, only: Sequence[str]) -> Iterator[Toll]:
    """Every deed killed before each of its operations, all in one; each time the recovery is killed elsewhere."""
    for number in count():
        each = (swept(name, DEEDS[name], root / str(number) / name, chance) for name in only)
        yield sum((Counter(kills=kills, places=1) for places in each for kills in places), Counter())


def threads(root: Path, chance: random.Random, only: Sequence[str]) -> Iterator[Toll]:
    """A deed with the threads that write, killed at any of its operations, which come in another order each time."""
    for number in count():
        name = chance.choice(only)
        for kills in swept(name, DEEDS[name], root / str(number), chance, THREADS, chance.randint(2, 9)):
            yield Counter(kills=kills, places=1)


def runs(root: Path, chance: random.Random, *, block: bool) -> Iterator[Toll]:
    """A run of training, with all that was done to it."""
    for done in lives(root, chance, block=block):
        yield Counter(kills=done["KILL"] + done["TERM"], runs=1, **done)


def taken(tolls: Iterator[Toll], kills: int, say: Callable[[str], None]) -> Toll:
    """Go on until there were so many kills."""
    total, spoken = Counter[str](), time.monotonic()
    while total["kills"] < kills:
        total += next(tolls)
        if time.monotonic() - spoken > 5:
            say(f"  … {total['kills']:,} of {kills:,}")
            spoken = time.monotonic()
    return total


def main() -> int:
    """Run every subject, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--kills", type=int, default=1_000, help="how many, in all; default: %(default)s")
    parser.add_argument("--seed", type=int, help="which moments; default: others each time")
    parser.add_argument(
        "--only",
        action="append",
        metavar="SUBJECT",
        help="operations, threads, runs or runs in the background; may be repeated",
    )
    parser.add_argument("--small", action="store_true", help="leave out the deeds of two hundred tensors")
    arguments = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    _say(f"seed {seed}")
    chance = random.Random(seed)
    only = [name for name in DEEDS if not (arguments.small and "hundred" in name)]
    total = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subjects: dict[str, tuple[float, Iterator[Toll]]] = {
            "operations": (0.4, operations(root / "operations", chance, only)),
            "threads": (0.3, threads(root / "threads", chance, only)),
            "runs": (0.15, runs(root / "runs", chance, block=True)),
            "runs in the background": (0.15, runs(root / "background", chance, block=False)),
        }
        chosen = arguments.only or list(subjects)
        shares = sum(subjects[name][0] for name in chosen)
        for name in chosen:
            share, tolls = subjects[name]
            started = time.monotonic()
            try:
                toll = taken(tolls, round(arguments.kills * share / shares), _say)
            except AssertionError as error:
                _say(f"{name}: LOST with seed {seed}: {error}")
                return 1
            told = ", ".join(f"{number:,} {what}" for what, number in toll.items())
            _say(f"{name}: {told} in {time.monotonic() - started:.0f} s, nothing lost")
            total += toll["kills"]
    _say(f"{total:,} kills: nothing that was saved was lost, and every run ended bit for bit as if unharmed")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
