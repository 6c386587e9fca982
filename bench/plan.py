"""`optstate.plan` of 10,000 parameters with 3 slots each, against torch's `load_state_dict` of the same; and of a million slots.

What was saved and what is live have no memory (meta tensors), for a plan reads headers only: the peak is that of the names,
the two sides and the plan. Both sides are there before the clock starts.
"""

from __future__ import annotations

import json
import sys

from bench.harness import OURS, PEER, Options, Row, Target, row, run_child, take_turns, timed

LARGE = 333_334
"""Parameters that have a million slots."""


def rows(options: Options) -> list[Row]:
    """Two rows."""
    parameters = 1_000 if options.quick else 10_000
    beside = _child(parameters, options.rounds(7), "torch")
    small = row("plan", f"{parameters:,} parameters", beside[0], Target("ours", 0.5), Target("to_peer", 0.5))
    parameters = 10_000 if options.quick else LARGE
    times, peak_mb = _child(parameters, 1, "alone")
    large = row(
        "plan", f"{3 * parameters:,} slots", times, Target("ours", 30), Target("peak_mb", 2000), peak_mb=peak_mb
    )
    return [small, large]


def _child(parameters: int, rounds: int, beside: str) -> tuple[dict[str, list[float]], float]:
    child = run_child(["-m", "bench.plan", str(parameters), str(rounds), beside])
    return json.loads(child.output), child.peak_mb


def main() -> None:
    """`python -m bench.plan PARAMETERS ROUNDS torch|alone`: the times as JSON."""
    import torch
    from torch import nn

    import optstate
    from optstate.live.tensors import HeldTensor
    from optstate.optimizers.interpret import interpret
    from optstate.optimizers.registry import by_name
    from optstate.state.frozen import FrozenParameter, FrozenSource
    from optstate.state.groups import Group, OptimizerInfo
    from optstate.state.optimizer_state import OptimizerState
    from optstate.state.parameter import ParameterFacts

    parameters, rounds, beside = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    model = nn.Module()
    for place in range(-(-parameters // 12)):  # as many parameters in a block as in a transformer's
        block = nn.Module()
        for number in range(min(12, parameters - 12 * place)):
            block.register_parameter(f"weight_{number}", nn.Parameter(torch.empty(4, 4, device="meta")))
        model.add_module(f"block_{place}", block)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    values = {
        "step": HeldTensor(torch.tensor(1.0)),
        "exp_avg": HeldTensor(torch.empty(4, 4, device="meta")),
        "exp_avg_sq": HeldTensor(torch.empty(4, 4, device="meta")),
    }
    name = "torch.optim.adamw.AdamW"
    names = tuple(name for name, _ in model.named_parameters())
    hyperparameters = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    info = OptimizerInfo("", name, (Group("", 0, hyperparameters, names),), known=True)
    saved = OptimizerState(
        FrozenSource(
            [
                FrozenParameter(
                    ParameterFacts(each, "file", (4, 4), "float32", "", 0), interpret(by_name(name), each, values), {}
                )
                for each in names
            ],
            {"": info},
        )
    )
    plan = optstate.plan  # now, for the name is imported when it is first used
    contenders = {OURS: timed(lambda: plan(saved, model=model, optimizer=optimizer))}
    if beside == "torch":
        state = {"state": {}, "param_groups": optimizer.state_dict()["param_groups"]}
        state["state"] = {
            number: {key: value.tensor.clone() for key, value in values.items()} for number in range(parameters)
        }
        contenders[PEER] = timed(lambda: optimizer.load_state_dict(state))
    print(json.dumps(take_turns(contenders, rounds)))


if __name__ == "__main__":
    main()
