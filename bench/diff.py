"""`optstate diff` of two files, the whole process, against reading the same bytes, and against torch doing the same."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from statistics import median

from bench.harness import LIMIT, OURS, PEER, Child, Options, Row, Target, row, run_child, take_turns
from bench.reading import uncached

_PEER = """
import sys, torch
a, b = (torch.load(path, weights_only=True, mmap=True) for path in sys.argv[1:])
pairs = [(a["model"][name], b["model"][name]) for name in a["model"]]
pairs += [(a["optimizer"]["state"][k][s], b["optimizer"]["state"][k][s]) for k, v in a["optimizer"]["state"].items() for s in v]
for x, y in pairs:
    if not torch.equal(x, y):
        (x - y).abs().max(), (x - y).norm() / x.norm(), torch.nn.functional.cosine_similarity(x.ravel(), y.ravel(), 0)
"""


def rows(options: Options) -> list[Row]:
    """Files that are equal and files of which every value differs, in the page cache and not."""
    megabytes = 100 if options.quick else 2000
    paths = [str(options.directory / f"{name}.pt") for name in ("a", "b", "same")]
    a, b, same = paths
    run_child(["-m", "bench.training", a, str(megabytes), b, str(megabytes)])
    run_child(["-m", "bench.diff", "shift", b])
    shutil.copyfile(a, same)
    return [
        _row(f"diff, {what}{where}", megabytes, [a, other], options, cold=cold)
        for what, other in (("equal", same), ("all different", b))
        for where, cold in (("", False), (", uncached", True))
    ]


def _row(subject: str, megabytes: int, paths: list[str], options: Options, *, cold: bool) -> Row:
    peaks: list[float] = []

    def run(*arguments: str) -> Child:
        if cold:
            uncached(paths)
        return run_child([*arguments, *paths])

    def ours() -> float:
        child = run("-c", _OURS)
        peaks.append(child.peak_mb)
        return child.seconds

    contenders = {
        OURS: ours,
        PEER: lambda: run("-c", _PEER).seconds,
        LIMIT: lambda: run("-m", "bench.reading").seconds,
    }
    times = take_turns(contenders, options.rounds(5))
    # 40 % of the speed at which the disk reads; what is in memory already, faster than torch.
    speed = Target("to_limit", 2.5) if cold else Target("to_peer", 0.75)
    return row(subject, f"2 × {megabytes} MB", times, speed, Target("peak_mb", 200), peak_mb=median(peaks))


# The exit code says that they differ, which is no failure here.
_OURS = "import sys; from optstate.cli import main; main(['diff', *sys.argv[1:]])"


def main() -> None:
    """`python -m bench.diff shift FILE`: change every value of a file."""
    import torch

    path = Path(sys.argv[2])
    content = torch.load(path, weights_only=True)
    tensors = [
        *content["model"].values(),
        *(slot for slots in content["optimizer"]["state"].values() for slot in slots.values()),
    ]
    for tensor in tensors:
        tensor.mul_(1.01).add_(1e-3)
    torch.save(content, path)


if __name__ == "__main__":
    main()
