"""Tensors of a whole `torch.nn.Module` that was pickled, by the names that the module itself would give them."""

from __future__ import annotations

from collections.abc import Iterator

from optstate.formats.containers.pickle_machine import Call, Node
from optstate.formats.containers.records import attribute
from optstate.state.tensors import TensorRef, is_tensor

DEPTH = 100
"""Levels of modules in modules that are walked."""


def is_module(node: Node) -> bool:
    """Whether an object that was not made has what every `torch.nn.Module` has."""
    return isinstance(node, Call) and all(
        type(attribute(node, name)) is dict for name in ("_parameters", "_buffers", "_modules")
    )


def module_tensors(node: Node) -> tuple[dict[str, TensorRef], dict[str, TensorRef]]:
    """Parameters and buffers of a pickled module, each in the order of `named_parameters()` and `named_buffers()`.

    A tensor that has several names is here by its first. Both are empty for what is no module.
    """
    parameters: dict[str, TensorRef] = {}
    buffers: dict[str, TensorRef] = {}
    seen: set[int] = set()
    for prefix, module in _modules(node):
        for found, kind in ((parameters, "_parameters"), (buffers, "_buffers")):
            for name, tensor in attribute(module, kind).items():
                if type(name) is str and is_tensor(tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[prefix + name] = tensor
    return parameters, buffers


def _modules(root: Node) -> Iterator[tuple[str, Node]]:
    """Each module once, parents first, with the prefix of its names."""
    waiting: list[tuple[str, Node, int]] = [("", root, 0)]
    seen: set[int] = set()
    while waiting:
        prefix, module, depth = waiting.pop()
        if not is_module(module) or id(module) in seen or depth > DEPTH:
            continue
        seen.add(id(module))
        yield prefix, module
        children: dict[object, Node] = attribute(module, "_modules")
        waiting += [
            (f"{prefix}{name}.", child, depth + 1) for name, child in reversed(children.items()) if type(name) is str
        ]
