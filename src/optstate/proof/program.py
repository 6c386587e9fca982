"""A function of the user's program that a fresh process finds again: `FILE:FUNCTION`, or a function that can be imported."""

from __future__ import annotations

import sys
from base64 import b64decode, b64encode
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from inspect import getsourcefile
from operator import attrgetter
from os import PathLike, fspath
from pathlib import Path
from pickle import dumps, loads  # only of what this very program wrote for its own child
from types import ModuleType
from typing import Any, TypeAlias

import msgspec

from optstate.errors import ProofError
from optstate.proof.user_file import function_of, load_file, module_name, split
from optstate.text import safe_text

Given: TypeAlias = "str | PathLike[str] | Callable[..., Any]"
"""How a function is given: `train.py:build`, or the function itself."""


class Program(msgspec.Struct, frozen=True):
    """Where a fresh process finds a function. `arguments` are those of a `functools.partial`, pickled."""

    label: str
    name: str
    file: str | None = None
    module: str | None = None
    arguments: str | None = None


def program(given: Given, what: str) -> Program:
    """`given` as a fresh process will find it. Raises `ProofError` for what no other process could find."""
    if isinstance(given, (str, PathLike)):
        path, name = split(fspath(given), what)
        return Program(f"{safe_text(path)}:{safe_text(name)}", name, str(path.resolve()))
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    while isinstance(given, partial):
        arguments.append((given.args, given.keywords))
        given = given.func
    name = getattr(given, "__qualname__", "")
    module = getattr(given, "__module__", None)
    file = _source(given)
    if not name or not all(map(str.isidentifier, name.split("."))) or not callable(given):
        raise _unfindable(what, given, name)
    if file is None or (module == "__main__" and file.startswith("<")):
        raise _unfindable(what, given, name)
    label = f"{safe_text(Path(file).name)}:{safe_text(name)}"
    return Program(label, name, str(Path(file).resolve()), module, _packed(arguments, what) if arguments else None)


def _source(given: Any) -> str | None:
    try:
        file = getsourcefile(given)
    except TypeError:
        return None
    return file if file is not None and Path(file).is_file() else None


def _unfindable(what: str, given: object, name: str) -> ProofError:
    kind = "a lambda" if "<lambda>" in name else "defined in a function" if "<locals>" in name else None
    return ProofError(
        f"{what} cannot be found again by a fresh process",
        expected=f"FILE:FUNCTION, or a function at the top of a file, as in {what}=build; functools.partial of one is fine",
        found=kind
        or (f"a {type(given).__name__}" if not callable(given) else f"{safe_text(name)}, which is in no file"),
    )


def _packed(arguments: list[tuple[tuple[Any, ...], dict[str, Any]]], what: str) -> str:
    try:
        return b64encode(dumps(arguments)).decode()
    except Exception as error:  # noqa: BLE001  # whatever pickling a foreign object raises
        raise ProofError(
            f"the arguments of {what} cannot be given to a fresh process",
            expected="arguments of functools.partial that can be pickled",
            found=f"{type(error).__name__}: {safe_text(error)}",
        ) from None


def found(program: Program, *, needs: int, returns: str) -> Callable[..., Any]:
    """The function, in this process. Raises `OptstateError` for a file or function that is not there, or cannot be run.

    needs
        How many arguments it is called with; `returns` says in a message what it should return.
    """
    module = _module(program)
    path = Path(program.file or "")
    if "." in program.name or program.arguments is not None:
        function: Callable[..., Any] = attrgetter(program.name)(module)
    else:
        function = function_of(module, path, program.name, needs, returns)
    if program.arguments is not None:
        for positional, keywords in reversed(loads(b64decode(program.arguments))):  # noqa: S301  # our own bytes
            function = partial(function, *positional, **keywords)
    return function


def _module(program: Program) -> ModuleType:
    """By its name where that leads to the same file, so that relative imports work; else from the file."""
    path = Path(program.file or "")
    if program.module is not None and program.module != "__main__":
        with suppress(ImportError):
            module = import_module(program.module)
            if Path(module.__file__ or "").resolve() == path:
                return module
    there = sys.modules.get(module_name(path))  # from another function of the same file
    if there is not None and there.__file__ == str(path):
        return there
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))  # as `python FILE` would have it
    return load_file(path)
