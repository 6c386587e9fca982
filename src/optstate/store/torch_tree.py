"""A checkpoint as the dict that a program would give to `torch.save`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optstate.errors import Unsaveable
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.named import FORMAT as NAMED
from optstate.state.groups import OptimizerInfo
from optstate.state.optimizer_state import OptimizerState
from optstate.text import listing, safe_text

MODEL = "model"
"""Where the weights go; an object of this name holds what modules keep besides tensors, which belongs there too."""


def torch_tree(checkpoint: Checkpoint, *, named: bool) -> dict[str, Any]:
    """`model`, `optimizer` (`optimizers` for several), `step`, and every object under its name.

    The optimizer's dict is that of `torch.optim.Optimizer.state_dict()`, or `named_state_dict`'s.
    """
    tree: dict[str, Any] = {}
    objects = dict(checkpoint.objects)
    if checkpoint.weights:
        extra = objects.get(MODEL)
        tree[MODEL] = weights_tree(checkpoint)
        if isinstance(extra, Mapping) and not extra.keys() & tree[MODEL].keys():
            tree[MODEL] |= objects.pop(MODEL)
    state = checkpoint.state
    if named and state.optimizers:
        tree["optimizer"] = by_name(state)
    elif len(state.optimizers) == 1:
        tree["optimizer"] = by_position(state, *state.optimizers.values())
    elif state.optimizers:
        tree["optimizers"] = {name: by_position(state, info) for name, info in state.optimizers.items()}
    if checkpoint.step is not None:
        tree["step"] = checkpoint.step
    for name, value in objects.items():
        tree[_free(name, tree)] = value
    return tree


def _free(name: str, tree: Mapping[str, Any]) -> str:
    return _free(f"{name}_", tree) if name in tree else name


def weights_tree(checkpoint: Checkpoint) -> dict[str, Any]:
    """The weights by name, tied ones under each of their names."""
    tree: dict[str, Any] = {}
    for name, ref in checkpoint.weights.items():
        tree |= dict.fromkeys((name, *checkpoint.aliases.get(name, ())), ref)
    return tree


def by_position(state: OptimizerState, info: OptimizerInfo) -> dict[str, Any]:
    """One optimizer as `state_dict` gives it: parameters are numbered through all groups."""
    names = [name for group in info.groups for name in group.parameters]
    number = {name: index for index, name in enumerate(names)}
    recorded = bool(names) and all(state[name].facts.certainty == "recorded" for name in names)
    groups = [
        {
            **group.hyperparameters,
            "params": [number[name] for name in group.parameters],
            **({"param_names": list(group.parameters)} if recorded else {}),
        }
        for group in info.groups
    ]
    entries = {number[name]: {key: slot.value for key, slot in state[name].slots.items()} for name in names}
    return {"state": {index: entry for index, entry in entries.items() if entry}, "param_groups": groups}


def by_name(state: OptimizerState) -> dict[str, Any]:
    """All optimizers as `named_state_dict` gives them."""
    return {
        "format": NAMED,
        "optimizers": {
            name: {
                "class": None if info.alternatives else info.class_name,  # there is no place to say that it is a guess
                "groups": [
                    {"hyperparameters": dict(group.hyperparameters), "parameters": list(group.parameters)}
                    for group in info.groups
                ],
                **({} if info.ordered else {"ordered": False}),
            }
            for name, info in state.optimizers.items()
        },
        "parameters": {
            name: {
                "shape": None if parameter.facts.shape is None else list(parameter.facts.shape),
                "dtype": parameter.facts.dtype,
                "aliases": list(parameter.facts.aliases),
                "trainable": parameter.facts.trainable,
            }
            for name, parameter in state.items()
        },
        "state": {
            name: {key: slot.value for key, slot in parameter.slots.items()}
            for name, parameter in state.items()
            if parameter.slots
        },
    }


# --- what would lie ---------------------------------------------------------------------------------------


def check_positions(checkpoint: Checkpoint) -> None:
    """Raise `Unsaveable` where the order in which the optimizer was built is not in the source.

    To write another order as positions would hand each momentum to whichever parameter stands there.
    """
    guilty = [info for info in checkpoint.state.optimizers.values() if not info.ordered]
    if guilty:
        raise Unsaveable(
            f"{safe_text(checkpoint.path)} names its parameters and does not number them",
            expected="the order in which the optimizer was built, which is what positions mean",
            found=f"{safe_text(checkpoint.format)}, with state of {listing(guilty[0].groups[0].parameters, 3)}",
            todo="--model FILE:FUNCTION (like=state) gives the order of the program, or --to torch-named needs none",
        )


def check_names(checkpoint: Checkpoint) -> None:
    """Raise `Unsaveable` where parameters have no names to be written by."""
    nameless = [name for name, parameter in checkpoint.state.items() if parameter.facts.certainty == "position"]
    if nameless:
        raise Unsaveable(
            f"{safe_text(checkpoint.path)} does not say what its parameters are called",
            expected="a name for each parameter",
            found=f"nothing but positions: {listing(nameless)}",
            todo="--model FILE:FUNCTION gives the names of the program, or --to torch keeps positions",
        )
