"""The import graph of a package, read from its syntax trees: nothing is imported to find out.

Every import counts: at the top, inside a function, under TYPE_CHECKING, relative, and `import_module("a.b")`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

When = Literal["import", "call", "typing"]
"""When an import happens: with its module, when a function is called, or never outside a type checker."""


@dataclass(frozen=True, slots=True)
class Import:
    """`importer` imports `target`: a module of the package by its full name, or a foreign top-level package.

    `target` is `?` where a program computes the name.
    """

    importer: str
    target: str
    line: int
    when: When


def modules(package: Path) -> dict[str, ast.Module]:
    """The syntax tree of every module of a package folder, by full name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def imports(package: Path) -> list[Import]:
    """Every import of every module of a package folder."""
    trees = modules(package)
    folders = {".".join(file.parent.relative_to(package.parent).parts) for file in package.rglob("__init__.py")}
    found = []
    for importer, tree in trees.items():
        here = importer if importer in folders else importer.rpartition(".")[0]
        for node, when in _import_nodes(tree, "import"):
            for name in _names(node, here):
                targets = _targets(name, importer, package.name, trees)
                found += [Import(importer, target, node.lineno, when) for target in targets]
    return found


def cycle(edges: Sequence[Import]) -> list[str]:
    """Modules that import one another in a circle, the first again at the end; empty when there are none."""
    graph: dict[str, set[str]] = {}
    for edge in edges:
        graph.setdefault(edge.importer, set()).add(edge.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


Node = ast.Import | ast.ImportFrom | ast.Call


def _import_nodes(tree: ast.AST, when: When) -> Iterator[tuple[Node, When]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) or (isinstance(node, ast.Call) and _is_import_call(node)):
            yield node, when
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _import_nodes(node, "call" if when == "import" else when)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from _import_nodes(ast.Module([child], []), "typing")
            yield from _import_nodes(ast.Module(node.orelse, []), when)
        else:
            yield from _import_nodes(node, when)


def _is_import_call(node: ast.Call) -> bool:
    return ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")


def _names(node: Node, here: str) -> list[str]:
    """The full names that an import asks for, `here` being the package that relative ones start from."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call):
        match node.args:
            case [ast.Constant(value=str(name)), *_]:
                return [name]
        return ["?"]
    base = node.module or ""
    if node.level:
        parts = here.split(".")
        base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
    return [f"{base}.{alias.name}" for alias in node.names]


def _targets(name: str, importer: str, package: str, known: dict[str, ast.Module]) -> list[str]:
    """What is imported by asking for `name`: the module, and the packages above it whose `__init__` then runs."""
    if name.partition(".")[0] != package:
        return [name.partition(".")[0]]
    module = name if name in known else name.rpartition(".")[0]  # else a name inside a module
    parts = module.split(".")
    above = [".".join(parts[:end]) for end in range(1, len(parts))]
    return [module, *(folder for folder in above if not f"{importer}.".startswith(f"{folder}."))]
