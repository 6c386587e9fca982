"""A whole `torch.optim.Optimizer` that was pickled, as the dict that its `state_dict()` would have been."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optstate.formats.containers.pickle_machine import Call, Node
from optstate.formats.containers.records import attribute
from optstate.state.tensors import is_tensor


def is_optimizer(node: Node) -> bool:
    """Whether an object that was not made has what every `torch.optim.Optimizer` has."""
    groups = attribute(node, "param_groups")
    return (
        isinstance(node, Call)
        and type(attribute(node, "state")) is dict
        and type(groups) is list
        and all(type(group) is dict and type(group.get("params")) is list for group in groups)
    )


def state_dict_of(node: Node, names: Mapping[int, str]) -> dict[str, Any]:
    """What `state_dict()` would have given: parameters, which the object holds itself, become their numbers.

    `names` are those of the tensors of a model in the same pickle, by `id`; a parameter of the optimizer that is the
    very same tensor gets its name instead of a number. State of no parameter stays, under its own key.
    """
    keys: dict[int, int | str] = {}
    groups = []
    for group in attribute(node, "param_groups"):
        members = [each for each in group["params"] if is_tensor(each)]
        for each in members:
            keys.setdefault(id(each), names.get(id(each), len(keys)))
        groups.append({**group, "params": [keys[id(each)] for each in members]})
    state = {
        keys.get(id(key), key) if is_tensor(key) else key: entry for key, entry in attribute(node, "state").items()
    }
    return {"state": state, "param_groups": groups}
