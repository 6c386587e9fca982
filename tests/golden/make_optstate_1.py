"""What made `optstate-1/` and `optstate-1.json`, on torch 2.13 with version 0.1 of optstate.

It is not run again: the checkpoint is what that version wrote, and every later one has to read it. A new version
of the format gets a golden checkpoint of its own, beside this one.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import torch
from torch import nn

import optstate
from optstate.formats.ours.directory import open_directory
from tests.checkpoints import described

HERE = Path(__file__).parent


def values(*shape: int, dtype: torch.dtype = torch.float32, start: float = 0.0) -> torch.Tensor:
    """Consecutive eighths, exact in every floating type."""
    count = int(np.prod(shape))
    return (torch.arange(count) / 8 + start).reshape(shape).to(dtype)


class Model(nn.Module):
    """Tied weights, a channels-last bf16 convolution, buffers, a complex and a frozen parameter, extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.conv = nn.Conv2d(2, 3, 2, bias=False).bfloat16().to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(2)
        self.head = nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight
        self.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex128))
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.spare = nn.Parameter(torch.zeros(1))

    def get_extra_state(self) -> dict[str, object]:
        return {"calls": 3, "scale": torch.tensor(0.5)}

    def set_extra_state(self, state: object) -> None:
        """Nothing to do."""


class Odd:
    """An object with a state that formats usually lose something of."""

    def state_dict(self) -> dict[object, object]:
        metadata = OrderedDict(weight=torch.ones(1))
        vars(metadata)["_metadata"] = OrderedDict({"": {"version": 1}})
        sparse = torch.sparse_coo_tensor([[2, 0, 2]], [1.0, 2.0, 3.0], (3,), check_invariants=True)
        return {
            "numbers": (1, -0.0, float("nan"), float("-inf"), 2**70, True, None, complex(1, -0.0)),
            "text": ["a\ud800", "", "line\nfeed", b"\x00\xff"],
            7: deque([1, 2], maxlen=2),
            (1, "x"): Counter("aab"),
            "default": defaultdict(list, {"k": [1]}),
            "set": {4},
            "frozen": frozenset({5}),
            "module": metadata,
            "numpy": [np.float32(0.5), np.arange(4, dtype=np.uint16).reshape(2, 2), np.asfortranarray(np.eye(2))],
            "torch": [torch.Size([2, 3]), torch.bfloat16, torch.device("cuda:0"), torch.tensor([True, False])],
            "sparse": sparse,
        }

    def load_state_dict(self, state: object) -> None:
        """Nothing to do."""


def make() -> None:
    """Write the checkpoint and what is in it."""
    model = Model()
    with torch.no_grad():
        for number, tensor in enumerate((*model.parameters(), *model.buffers())):
            tensor.copy_(values(*tensor.shape, dtype=tensor.dtype, start=number) if tensor.dim() else torch.tensor(9))
    adamw = torch.optim.AdamW(
        [{"params": [model.embed.weight, model.conv.weight]}, {"params": [model.norm.weight, model.frozen], "lr": 0.5}],
        lr=torch.tensor(0.25),
        amsgrad=True,
    )
    for parameter in (model.embed.weight, model.conv.weight, model.norm.weight):
        slots = {
            key: torch.zeros_like(parameter, dtype=torch.float32) for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        }
        for number, slot in enumerate(slots.values(), 20):
            slot.copy_(values(*slot.shape, start=number))
        adamw.state[parameter] = {"step": torch.tensor(4.0), **slots}
    lbfgs = torch.optim.LBFGS([model.phase])
    lbfgs.state[model.phase] = {
        "func_evals": 5,
        "n_iter": 4,
        "d": values(4),
        "t": 0.125,
        "old_dirs": [values(4, start=1), values(4, start=2)],
        "old_stps": [],
        "ro": [torch.tensor(0.5)],
        "H_diag": 1,
        "prev_flat_grad": None,
        "prev_loss": float("inf"),
        "al": [None, torch.tensor(0.25)],
    }
    path = optstate.save(
        HERE / "optstate-1", model=model, optimizer={"adamw": adamw, "lbfgs": lbfgs}, step=4, odd=Odd()
    )
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in described(open_directory(path)).items()]
    (HERE / "optstate-1.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="ascii")


if __name__ == "__main__":
    make()
