"""A Python file of the user: its module, a function in it, and what goes wrong when that is called. Nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from inspect import Parameter, signature
from os import PathLike
from pathlib import Path
from traceback import extract_tb
from types import ModuleType
from typing import Any

from optstate.errors import OptstateError, ProofError
from optstate.text import listing, safe_text


def split(given: str, option: str) -> tuple[Path, str]:
    """`FILE:FUNCTION` in two. Raises `ProofError` where it is not that, or there is no such file."""
    file, colon, name = given.rpartition(":")
    path = Path(file)
    if not colon or not name.isidentifier():
        raise ProofError(
            f"{safe_text(given)!r} names no function of a file",
            expected=f"{option} FILE:FUNCTION, such as {option} train.py:build",
        )
    if not path.is_file():
        raise ProofError(
            f"there is no file {safe_text(path)} to take {safe_text(name)} from",
            where=option,
            todo="check the path; a relative one starts at the current directory",
        )
    return path, name


def load_file(path: Path) -> ModuleType:
    """The module that a file is, run anew."""
    name = module_name(path)
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise OptstateError(f"{safe_text(path)} is no Python file", expected="a file that ends in .py")
    module = module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for the classes of a module
    loader = spec.loader
    called(lambda: loader.exec_module(module), path, f"{safe_text(path)} cannot be imported")
    return module


def module_name(path: Path) -> str:
    """What the module of a file is called among `sys.modules`."""
    return f"_optstate_model_{path.stem}"


def function_of(module: ModuleType, path: Path, name: str, needs: int, returns: str) -> Callable[..., Any]:
    """The function of a module that can be called with `needs` arguments. Raises `OptstateError`."""
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None or not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise OptstateError(
            f"{safe_text(path)} has no function {safe_text(name)!r}",
            found=f"it defines {listing(key for key in own if not key.startswith('_'))}" if own else "it defines none",
            todo=f"write one that {returns}",
        )
    arguments = _arguments(function)[needs:]
    if arguments:
        taking = "that can be called without any" if not needs else f"of {needs}"
        raise OptstateError(
            f"{safe_text(name)} of {safe_text(path)} takes arguments" + (f" beyond {needs}" if needs else ""),
            expected=f"a function {taking}",
            found=f"{safe_text(name)} needs {listing(arguments)}",
            todo=f"write one that calls it: def {'build' if not needs else name}(): return {safe_text(name)}(...)",
        )
    return function


def _arguments(function: Callable[..., object]) -> list[str]:
    """The arguments without which a function cannot be called; none where it does not tell."""
    try:
        parameters = signature(function).parameters.values()
    except ValueError:
        return []
    return [each.name for each in parameters if each.default is each.empty and each.kind not in (_ANY, _ANY_BY_NAME)]


_ANY, _ANY_BY_NAME = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD


def called(function: Callable[[], Any], path: Path, what: str, todo: str | None = None) -> Any:
    """Call code of the user. Whatever it raises, `SystemExit` of a script without a guard included, is told in one shape."""
    try:
        return function()
    except OptstateError:
        raise
    except (Exception, SystemExit) as error:
        frames = extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        guard = 'put what the script does under `if __name__ == "__main__":`, so that importing it only defines'
        raise OptstateError(
            what,
            where=f"{safe_text(path)}, line {lines[-1]}" if lines else None,
            found=f"{type(error).__name__}: {safe_text(error)}",
            todo=guard if isinstance(error, SystemExit) else todo or misplaced(error, path),
        ) from error


def misplaced(error: BaseException, path: Path) -> str | None:
    """What to do about a file that was looked for in another folder than it is in."""
    name = getattr(error, "filename", None)
    if not isinstance(error, FileNotFoundError) or not isinstance(name, (str, PathLike)) or Path(name).is_absolute():
        return None
    if (path.parent / name).exists():
        return f"it is beside {safe_text(path.name)}: run this in that folder, or open Path(__file__).parent / ..."
    return "a relative path starts at the current directory: run this where the program runs, or write the path whole"
