"""The optimizers of other packages, found in the packages themselves: a class that is new there has its row here."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch

from tests.conformance.row import Row
from tests.conformance.torch_rows import shown
from tests.probed_rows import ROWS as PROBED
from tests.probed_rows import _reachable

PACKAGES = {
    "pytorch_optimizer": ("pytorch_optimizer", "pytorch_optimizer"),
    "timm": ("timm", "timm.optim"),
    "schedulefree": ("schedulefree", "schedulefree"),
    "prodigyopt": ("prodigyopt", "prodigyopt"),
    "lion_pytorch": ("lion-pytorch", "lion_pytorch"),
    "adan_pytorch": ("adan-pytorch", "adan_pytorch"),
    "dadaptation": ("dadaptation", "dadaptation"),
    "came_pytorch": ("came-pytorch", "came_pytorch"),
    "bitsandbytes": ("bitsandbytes", "bitsandbytes.optim"),
    "torchao": ("torchao", "torchao.optim"),
}
"""Import name → the distribution, and the package that its optimizers are in."""

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"lr": 0.1, "momentum": 0.9} for name in ("LARS", "LARS32bit", "LARS8bit", "PytorchLARS")},
    **{name: {"lr": 0.1, "momentum": 0.9} for name in ("SGD", "SGD32bit", "SGD8bit")},
    "CAME": {"lr": 0.1},
    "Ranger21": {"num_iterations": 20},
    "BSAM": {"num_data": 100},
    "AliG": {"max_lr": 0.1},
}
"""What a class cannot be built without, by its name."""


def installed(library: str) -> str | None:
    """The version of a library, None where it is not there."""
    try:
        return version(PACKAGES[library][0])
    except PackageNotFoundError:
        return None


def rows_of(library: str) -> list[Row]:
    """A row for each class as it is built by default, and for each variant that `probed_rows` has."""
    variants: dict[str, list[dict[str, Any]]] = {}
    for place, options in PROBED.get(library, ()):
        variants.setdefault(f"{library}.{place}", []).append(options)
    found = classes(library)
    often = Counter(cls.__name__ for cls in found.values())
    return [
        Row(
            library,
            shown(_label(cls, often), options, rate=True),
            name,
            options,
            "closure" if needs_closure(cls) else "",
        )
        for name, cls in sorted(found.items())
        for options in _distinct([OPTIONS.get(cls.__name__, {}), *variants.get(name, ())])
    ]


def _label(cls: type, often: Mapping[str, int]) -> str:
    """The name of a class, with its module where several have that name."""
    return cls.__name__ if often[cls.__name__] == 1 else f"{cls.__module__.rpartition('.')[2]}.{cls.__name__}"


def _distinct(options: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({repr(each): each for each in options}.values())


def classes(library: str) -> dict[str, type[torch.optim.Optimizer]]:
    """Every public optimizer of a package by its qualified name."""
    _reachable(library)
    return {
        f"{value.__module__}.{value.__qualname__}": value
        for module in _modules(PACKAGES[library][1])
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value.__module__.partition(".")[0] == library
        and not inspect.isabstract(value)
        and not value.__name__.startswith("_")
    }


def _modules(root: str) -> Iterator[ModuleType]:
    package = importlib.import_module(root)
    yield package
    for found in pkgutil.walk_packages(package.__path__, f"{root}."):
        with suppress(Exception, SystemExit):  # what only works with another library of its own is not there
            yield importlib.import_module(found.name)


def needs_closure(cls: type[torch.optim.Optimizer]) -> bool:
    """Whether a step cannot be taken without one."""
    _, *others = inspect.signature(cls.step).parameters.values()
    return any(each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD for each in others)


def preloaded(library: str) -> tuple[str, ...]:
    """What the processes for a library import once."""
    return tuple(name for name in (PACKAGES[library][1],) if library != "timm") if library in PACKAGES else ()
