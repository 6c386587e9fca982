"""`--model FILE:FUNCTION`: the program's own model and optimizer, to know parameters by identity. This runs its code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from optstate.cli.terminal import tell
from optstate.errors import OptstateError
from optstate.formats.checkpoint import Checkpoint
from optstate.proof.user_file import called, function_of, load_file, split
from optstate.text import listing, safe_text

if TYPE_CHECKING:
    from optstate.live.weights import Weight
    from optstate.state.parameter import ParameterFacts

model_option = click.option(
    "--model",
    "factory",
    metavar="FILE:FUNCTION",
    help="Imports torch and runs FUNCTION of your FILE, which returns (model, optimizer).",
)
"""The option of a command that can use the live program; its value goes to `built`."""

_RETURNS = "a model, (model, optimizer), (model, optimizer, scheduler), or a dict or an object with these by name"


class Built(NamedTuple):
    """What a factory made: the model; the optimizer or optimizers by name, None without; the scheduler, None without.

    `objects` is what else can be restored into, under the names that the factory gave.
    """

    model: Any
    optimizer: Any
    scheduler: Any = None
    objects: Mapping[str, Any] = {}


def built(factory: str) -> Built:
    """Run the factory that `FILE:FUNCTION` names, and say on standard error that its code runs.

    What it prints goes to standard error. Raises `OptstateError` for a file or function that is not there, for whatever
    it raises, and for what it returns that is no model.
    """
    path, name = split(factory, "--model")
    tell(f"--model imports torch and runs {safe_text(name)}() of {safe_text(path)}")
    try:
        import torch
    except ImportError as error:
        raise OptstateError(
            "--model needs torch, which is not installed here",
            found=safe_text(error),
            todo="pip install 'optstate[torch]', or leave --model out",
        ) from None
    with _at_home(path):
        function = function_of(load_file(path), path, name, 0, f"takes nothing and returns {_RETURNS}")
        made = called(function, path, f"{name}() of {safe_text(path)} failed", "--debug prints the traceback")
    return _sorted_out(made, torch, f"{safe_text(path)}:{safe_text(name)}")


def pinned(checkpoint: Checkpoint, made: Built) -> Checkpoint:
    """The checkpoint with the names that a program gives to its positions. Raises `BindError` where the two do not fit."""
    from optstate.formats.pin import pin, pin_in_order

    if made.optimizer is not None:
        from optstate.live.view import attach

        return pin(checkpoint, attach(made.optimizer, made.model))
    from optstate.live.weights import live_weights

    parameters = [weight for weight in live_weights(made.model).values() if weight.kind == "parameter"]
    return pin_in_order(checkpoint, [_facts(weight) for weight in parameters])


def named_by(checkpoint: Checkpoint, made: Built) -> Checkpoint:
    """The checkpoint with the names of the program, where it does not have them itself."""
    own = all(parameter.facts.certainty == "file" for parameter in checkpoint.state.values())
    return checkpoint if own else pinned(checkpoint, made)


def _facts(weight: Weight) -> ParameterFacts:
    from optstate.state.parameter import ParameterFacts

    tensor = weight.tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    return ParameterFacts(
        weight.name, "rule", tuple(tensor.shape), dtype, "", 0, weight.aliases, trainable=tensor.requires_grad
    )


@contextmanager
def _at_home(path: Path) -> Iterator[None]:
    """As `python FILE` would have it: modules beside the file can be imported. Standard output stays ours."""
    home = str(path.resolve().parent)
    sys.path.insert(0, home)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(home)


def _sorted_out(made: object, torch: ModuleType, where: str) -> Built:
    """Model, optimizer and scheduler out of what was returned: by their names, or told apart by their types."""
    named = _by_names(made, torch)
    if named:
        parts: Sequence[object] = [named.get(name) for name in ("model", "optimizer", "scheduler")]
    else:
        parts = list(made) if isinstance(made, (tuple, list)) else [made]
    models = [part for part in parts if isinstance(part, torch.nn.Module)]
    if len(models) != 1 or len(parts) > 3:
        raise OptstateError(
            "the factory of --model returned no model" if not models else "the factory of --model returned too much",
            where=where,
            expected=_RETURNS,
            found=listing(type(part).__name__ for part in parts),
        )
    rest = [part for part in parts if part is not models[0] and part is not None]
    optimizers = [part for part in rest if _steps(part)]
    schedulers = [part for part in rest if not _steps(part)]
    if len(optimizers) > 1 or len(schedulers) > 1:
        raise OptstateError(
            "the factory of --model returned parts that cannot be told apart",
            where=where,
            expected=f"{_RETURNS}; several optimizers as a list, or as a dict by name",
            found=listing(type(part).__name__ for part in parts),
        )
    optimizer = _by_name(*optimizers) if optimizers else None
    objects = {name: part for name, part in named.items() if name not in ("model", "optimizer") and part is not None}
    return Built(models[0], optimizer, schedulers[0] if schedulers else None, objects)


def _by_names(made: object, torch: ModuleType) -> dict[str, Any]:
    """What a dict, or an object with a model, has: of a dict all of it, of an object what can be restored into."""
    if isinstance(made, Mapping) and "model" in made:
        return {str(name): part for name, part in made.items()}
    if isinstance(made, torch.nn.Module) or not hasattr(made, "model"):
        return {}
    parts = {name: getattr(made, name, None) for name in ("model", "optimizer", "scheduler")}
    others = {name: part for name, part in getattr(made, "__dict__", {}).items() if not name.startswith("_")}
    return {**parts, **{name: part for name, part in others.items() if _is_restorable(part)}}


def _is_restorable(part: object) -> bool:
    return all(callable(getattr(part, method, None)) for method in ("state_dict", "load_state_dict"))


def _steps(part: object) -> bool:
    """Whether a part is an optimizer, a wrapper of one, or several of them."""
    return isinstance(part, (list, Mapping)) or hasattr(part, "param_groups")


def _by_name(optimizer: object) -> object:
    return {str(index): each for index, each in enumerate(optimizer)} if isinstance(optimizer, list) else optimizer
