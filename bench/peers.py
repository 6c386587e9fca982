"""What others take to save the same state, durably: each in a row beside ours, with the limit of the disk.

What is extra is the peer's memory. Not among the subjects that run by themselves, since it takes minutes: `python -m bench --only peers`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.durable import durable, extra_mb, raw_writer, synced
from bench.harness import LIMIT, OURS, PEER, Options, Row, measured_in_child, row, take_turns

PEERS = ("torch.save", "safetensors", "DCP", "DCP safetensors")


def rows(options: Options) -> list[Row]:
    """A row for each peer; the peak is that of the peer."""
    megabytes = 100 if options.quick else 2100
    found = []
    for peer in PEERS:
        times = measured_in_child("bench.peers", options.directory, peer, megabytes, options.rounds(3))
        found.append(row(f"save: {peer}", f"{megabytes} MB", times, peak_mb=times.pop("extra_mb")[0]))
    return found


def main() -> None:
    """`python -m bench.peers DIRECTORY PEER MEGABYTES ROUNDS`: times, and the peer's extra memory, as JSON."""
    import optstate
    from bench.training import state_nbytes, training

    directory, name, megabytes, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    warnings.simplefilter("ignore")  # of the peers
    model, optimizer = training(megabytes)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
    write, save = _writer(name), optstate.save  # now, for the name is imported when it is first used

    def peer(path: Path) -> None:
        write(state, path)
        synced(path)

    contenders = {
        OURS: durable(lambda path: save(path, model=model, optimizer=optimizer, step=1), directory / "ours"),
        PEER: durable(peer, directory / "peer"),
        LIMIT: durable(raw_writer(state_nbytes(model, optimizer)), directory / "raw"),
    }
    extra = extra_mb(contenders[PEER])
    print(json.dumps({**take_turns(contenders, rounds), "extra_mb": [extra]}))


def _writer(name: str) -> Callable[[dict[str, Any], Path], object]:
    """How a peer writes a state."""
    import torch
    from safetensors.torch import save_file
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    if name == "torch.save":
        return torch.save
    if name == "safetensors":
        return lambda state, path: save_file(_flat(state), path)

    def save(state: dict[str, Any], path: Path) -> None:
        plain = name == "DCP"
        writer = FileSystemWriter(path) if plain else HuggingFaceStorageWriter(str(path))
        save_distributed(state if plain else _flat(state), storage_writer=writer, no_dist=True)

    return save


def _flat(state: dict[str, Any]) -> dict[str, Any]:
    """Tensors by one name each, which is all that safetensors knows."""
    slots = state["optimizer"]["state"]
    return {
        **state["model"],
        **{f"{number}/{key}": slot for number, entry in slots.items() for key, slot in entry.items()},
    }


if __name__ == "__main__":
    main()
