"""`optstate.restore` of a cold checkpoint, every digest verified, against what people load with and a cold read past the cache.

Each measurement is a process of its own, whose files the system has forgotten: a second load in one process reuses the memory
of the first. Into a live optimizer, into one without state, weights alone, and the momentum of one parameter. The peak is
what ours took beyond what it restored; the limit reads the same bytes with `O_DIRECT` and looks at none of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from bench.harness import LIMIT, OURS, PEER, Options, Row, Target, row, run_child, take_turns
from bench.reading import direct, uncached

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import AdamW

LIVE = ("torch.load", "torch.load, mmap", "DCP", "safetensors")
"""Ways of loading into a live optimizer."""

_PEAK = Target("peak_mb", 150)


def rows(options: Options) -> list[Row]:
    """A row for each way of loading into a live optimizer, and one for each of the other cases."""
    megabytes = 100 if options.quick else 2100
    extra: dict[str, list[float]] = {}

    def contender(case: str, how: str) -> Callable[[], float]:
        def run() -> float:
            done = run_child(["-m", "bench.restore", case, how, str(options.directory), str(megabytes)])
            seconds, beyond = json.loads(done.output)
            extra.setdefault(f"{case} {how}", []).append(beyond)
            return float(seconds)

        return run

    def measured(case: str, peers: Sequence[str], *targets: Target) -> list[Row]:
        contenders = {how: contender(case, how) for how in (OURS, LIMIT, *peers)}
        times = take_turns(contenders, options.rounds(3))
        return [
            row(
                f"restore {case}, {peer}",
                f"{megabytes} MB",
                {OURS: times[OURS], PEER: times[peer], LIMIT: times[LIMIT]},
                Target("to_peer", 1),
                *targets,
                peak_mb=max(extra[f"{case} {OURS}"]),
            )
            for peer in peers
        ]

    contender("write", OURS)()
    found = [
        *measured("live", LIVE, Target("to_limit", 1.5), _PEAK),
        *measured("empty", LIVE[:1], Target("to_limit", 1.15), _PEAK),
        *measured("weights", LIVE[:1], Target("to_limit", 1.5), _PEAK),
        *measured("one slot", LIVE[:1], Target(OURS, 0.03), _PEAK),
    ]
    for path in options.directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


# --- one measurement, in a process of its own -----------------------------------------------------------------------


def main() -> None:
    """`python -m bench.restore CASE HOW DIRECTORY MEGABYTES`: seconds, and megabytes beyond what was restored, as JSON."""
    case, how, directory, megabytes = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    from bench.training import training

    model, optimizer = training(megabytes, seed=0 if case == "write" else 1)
    if case == "write":
        _write(directory, model, optimizer)
        print(json.dumps([0.0, 0.0]))
        return
    if case != "live":
        optimizer.state.clear()
    work = _work(case, how, directory, model, optimizer)
    uncached(str(path) for path in directory.rglob("*") if path.is_file())
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
    began = perf_counter()
    work()
    seconds = perf_counter() - began
    made = sum(value.nbytes for entry in optimizer.state.values() for value in entry.values()) if case == "empty" else 0
    print(json.dumps([seconds, _resident("VmHWM") - before - made / 1e6]))


def _resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6


def _write(directory: Path, model: nn.Module, optimizer: AdamW) -> None:
    """The same state as each contender reads it."""
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.state_dict_saver import save

    import optstate

    optstate.save(directory / "ours", model=model, optimizer=optimizer, step=1)
    optstate.save(directory / "small", model=torch.nn.Linear(2, 2), step=1)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, directory / "peer.pt")
    save_file(_flat(model, optimizer), directory / "peer.safetensors")
    save(_flat(model, optimizer), checkpoint_id=directory / "dcp", no_dist=True)


def _flat(model: nn.Module, optimizer: AdamW) -> dict[str, Any]:
    """Every tensor of the training by a name of its own."""
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    names: dict[Any, str] = {parameter: name for name, parameter in model.named_parameters()}
    slots = {
        f"{names[parameter]}/{key}": slot for parameter, entry in optimizer.state.items() for key, slot in entry.items()
    }
    return weights | slots


def _work(case: str, how: str, directory: Path, model: nn.Module, optimizer: AdamW) -> Callable[[], object]:
    """What is measured, with everything imported that it needs."""
    if how == LIMIT:
        return _limit(case, directory)
    if how == OURS:
        return _ours(case, directory / "ours", model, optimizer)
    live = _flat(model, optimizer)
    if how == "DCP":
        import torch.distributed.checkpoint.state_dict_loader  # noqa: F401  # heavy, and no part of what is measured
    return {
        "torch.load": lambda: _torch_load(case, directory / "peer.pt", model, optimizer),
        "torch.load, mmap": lambda: _mapped(directory / "peer.pt", model, optimizer),
        "DCP": lambda: _dcp(directory / "dcp", live),
        "safetensors": lambda: _safetensors(directory / "peer.safetensors", live),
    }[how]


def _limit(case: str, directory: Path) -> Callable[[], object]:
    if case == "one slot":
        from optstate.formats.ours.directory import read_manifest

        nbytes = read_manifest(directory / "ours").tensors["optimizer/20.weight/exp_avg"].chunks[0].nbytes
        return lambda: direct([directory / "ours" / "optimizer.safetensors"], nbytes)
    family = "weights" if case == "weights" else "*"
    files = sorted((directory / "ours").glob(f"{family}.safetensors"))
    return lambda: direct(files)


def _ours(case: str, path: Path, model: nn.Module, optimizer: AdamW) -> Callable[[], object]:
    import torch

    import optstate

    restore, open_ = optstate.restore, optstate.open
    restore(path.with_name("small"), model=torch.nn.Linear(2, 2))  # most is imported when it is first used

    def look() -> object:
        return open_(path).state["20.weight"].momentum.array()

    return (
        look
        if case == "one slot"
        else lambda: restore(path, model=model, optimizer=None if case == "weights" else optimizer)
    )


def _torch_load(case: str, path: Path, model: nn.Module, optimizer: AdamW) -> None:
    import torch

    loaded = torch.load(path, weights_only=True)
    if case == "one slot":
        loaded["optimizer"]["state"][20]["exp_avg"].sum()
        return
    model.load_state_dict(loaded["model"])
    if case != "weights":
        optimizer.load_state_dict(loaded["optimizer"])


def _mapped(path: Path, model: nn.Module, optimizer: AdamW) -> None:
    import torch

    loaded = torch.load(path, weights_only=True, mmap=True)
    model.load_state_dict(loaded["model"])
    for live, saved in zip(optimizer.state.values(), loaded["optimizer"]["state"].values(), strict=True):
        for key, slot in live.items():
            slot.copy_(saved[key])


def _dcp(path: Path, live: dict[str, Any]) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    load(live, checkpoint_id=path, no_dist=True)


def _safetensors(path: Path, live: dict[str, Any]) -> None:
    from safetensors.torch import load_file

    for name, saved in load_file(path).items():
        live[name].copy_(saved)


if __name__ == "__main__":
    main()
