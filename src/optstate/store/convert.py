"""`convert`: a checkpoint of any program, written as one of optstate, of `torch.save`, or as safetensors. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as copy
from pathlib import Path
from typing import Any, Literal, get_args

from optstate.errors import OptstateError, TargetExists, Unsaveable
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.formats.ours.directory import is_checkpoint
from optstate.formats.ours.journal import as_object
from optstate.state.frozen import FrozenParameter, FrozenSource
from optstate.state.groups import Group
from optstate.state.journal import Journal
from optstate.state.optimizer_state import OptimizerState
from optstate.state.tensors import TensorRef, nbytes
from optstate.store.commit import target_exists
from optstate.store.files import Files, RealFiles
from optstate.store.flat_writer import write_flat
from optstate.store.own_body import own_body
from optstate.store.reorder import in_order_of
from optstate.store.runs import tensors_in
from optstate.store.sieve import LEFT_OUT, Leaf, Sieve, for_optstate, for_safetensors, for_torch
from optstate.store.torch_tree import check_names, check_positions, torch_tree, weights_tree
from optstate.store.torch_writer import write_torch
from optstate.store.writer import write_checkpoint
from optstate.text import count, safe_text, size

Target = Literal["optstate", "torch", "torch-named", "safetensors"]
TARGETS: tuple[Target, ...] = get_args(Target)
"""optstate: a directory of ours · torch: what `torch.save` writes of `state_dict()`s, parameters by position · torch-named: the
same with the optimizer by name, as `named_state_dict` · safetensors: weights, and slots as `<parameter>/<slot>`."""

_SUFFIXES: Mapping[str, Target] = {
    **dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".tar"), "torch"),
    ".safetensors": "safetensors",
    "": "optstate",
}


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` wrote.

    path, to
        Where, and in which format.
    tensors, nbytes
        How many tensors it holds, and how many bytes they take.
    left_out
        What the format cannot hold, or what could not be read of the source, each with its place; only ever when `partial`
        allowed it.
    changed
        Values that became the closest that the format has, such as a deque that became a list.

    >>> print(optstate.convert(checkpoint, "run.safetensors"))
    run.safetensors: safetensors, 16 tensors, 712 B
    """

    path: Path
    to: Target
    tensors: int
    nbytes: int
    left_out: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What was written, and all that is not as it was."""
        return "\n".join(
            [
                f"{safe_text(self.path)}: {self.to}, {count(self.tensors, 'tensor')}, {size(self.nbytes)}",
                *(f"  left out  {safe_text(line, 300)}" for line in self.left_out),
                *(f"  changed   {safe_text(line, 300)}" for line in self.changed),
            ]
        )


def convert(
    source: str | os.PathLike[str] | Checkpoint,
    target: str | os.PathLike[str],
    *,
    to: Target | None = None,
    weights_only: bool = False,
    like: OptimizerState | None = None,
    partial: bool = False,
    replace: bool = False,
) -> Conversion:
    """Write a checkpoint of any format that `open` reads in another format, every tensor bit for bit.

    to
        One of `TARGETS`; by default what the suffix of `target` says, a directory of optstate where there is none.
    weights_only
        The model's weights and nothing else; for torch a plain dict of them.
    like
        An attached state that says in which order and groups parameters stand; needed for `torch` where the source names
        its parameters without numbering them.
    partial
        Write although something has no place in the format or could not be read; else that is an error that lists it.
    replace
        Whether a checkpoint at `target` may be replaced.

    Values are read block by block. The target appears whole and durable, or not at all, and what was there stays until
    then; the source is never touched. Raises `ReadError` for the source, `Unsaveable`, `TargetExists`, `WriteFailed`.

    >>> optstate.convert(checkpoint, "run.pt").to
    'torch'
    """
    checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
    return converted(
        checkpoint,
        Path(target),
        RealFiles(),
        to=to,
        weights_only=weights_only,
        like=like,
        partial=partial,
        replace=replace,
    )


def converted(
    checkpoint: Checkpoint,
    path: Path,
    files: Files,
    *,
    to: Target | None = None,
    weights_only: bool = False,
    like: OptimizerState | None = None,
    partial: bool = False,
    replace: bool = False,
) -> Conversion:
    """As `convert`, by way of `files`."""
    chosen = chosen_target(to, path)
    check_target(checkpoint, path, chosen, replace=replace)
    sieve = Sieve(_LEAVES[chosen])
    clean = _sifted(_weights_alone(checkpoint) if weights_only else _placed_journal(checkpoint, chosen), sieve)
    left_out = (*(f"not read: {safe_text(line)}" for line in checkpoint.unread), *sieve.left_out)
    if left_out and not partial:
        raise _incomplete(checkpoint, chosen, left_out)
    if like is not None:
        clean = in_order_of(clean, like)
    _write(clean, chosen, path, files, replace=replace, bare=weights_only)
    tensors = {id(ref): ref for ref in _tensors(clean)}.values()
    return Conversion(path, chosen, len(tensors), sum(map(nbytes, tensors)), left_out, tuple(sieve.changed))


def _write(checkpoint: Checkpoint, to: Target, path: Path, files: Files, *, replace: bool, bare: bool) -> None:
    if to == "torch":
        check_positions(checkpoint)
    if to in ("torch-named", "safetensors"):
        check_names(checkpoint)
    if to == "optstate":
        write_checkpoint(path, *own_body(checkpoint), files, replace=replace)
    elif to == "safetensors":
        write_flat(path, checkpoint, files, replace=replace)
    else:
        tree = weights_tree(checkpoint) if bare else torch_tree(checkpoint, named=to == "torch-named")
        write_torch(path, tree, files, replace=replace)


_LEAVES: Mapping[Target, Leaf] = {
    "optstate": for_optstate,
    "torch": for_torch,
    "torch-named": for_torch,
    "safetensors": for_safetensors,
}


def _tensors(checkpoint: Checkpoint) -> Iterator[TensorRef]:
    slots = [slot.value for parameter in checkpoint.state.values() for slot in parameter.slots.values()]
    groups = [dict(group.hyperparameters) for group in checkpoint.state.groups]
    return tensors_in([list(checkpoint.weights.values()), slots, groups, dict(checkpoint.objects)])


# --- what goes into the target ----------------------------------------------------------------------------


def _placed_journal(checkpoint: Checkpoint, to: Target) -> Checkpoint:
    return checkpoint if to == "optstate" else as_object(checkpoint)


def _weights_alone(checkpoint: Checkpoint) -> Checkpoint:
    state = OptimizerState(FrozenSource([], {}))
    return copy(checkpoint, step=None, state=state, objects={}, unplaced={}, journal=Journal())


def _sifted(checkpoint: Checkpoint, sieve: Sieve) -> Checkpoint:
    """The checkpoint without what the sieve holds back; state that has no parameter becomes an object."""
    objects = {**checkpoint.objects, **({UNPLACED: dict(checkpoint.unplaced)} if checkpoint.unplaced else {})}
    return copy(
        checkpoint,
        weights=_kept(sieve, checkpoint.weights),
        state=_state(checkpoint.state, sieve),
        objects=_kept(sieve, objects),
        unplaced={},
    )


UNPLACED = "unplaced"


def _kept(sieve: Sieve, values: Mapping[str, Any], *where: Any) -> dict[str, Any]:
    taken = {name: sieve.take(value, (*where, name)) for name, value in values.items()}
    return {name: value for name, value in taken.items() if value is not LEFT_OUT}


def _state(state: OptimizerState, sieve: Sieve) -> OptimizerState:
    parameters = []
    for name, parameter in state.items():
        values = _kept(sieve, {key: slot.value for key, slot in parameter.slots.items()}, name)
        slots = {key: copy(parameter.slots[key], value=value) for key, value in values.items()}
        parameters.append(FrozenParameter(parameter.facts, slots, parameter.absences))
    infos = {
        name: copy(info, groups=tuple(_group(group, name or "optimizer", sieve) for group in info.groups))
        for name, info in state.optimizers.items()
    }
    return OptimizerState(FrozenSource(parameters, infos, state.left_out))


def _group(group: Group, optimizer: str, sieve: Sieve) -> Group:
    return copy(group, hyperparameters=_kept(sieve, group.hyperparameters, optimizer, "param_groups", group.index))


# --- what is refused --------------------------------------------------------------------------------------


def chosen_target(to: str | None, path: Path) -> Target:
    """The format to write: the one named, or what the suffix says. Raises `OptstateError` for a name of none."""
    chosen = _SUFFIXES.get(path.suffix, "optstate") if to is None else to
    if chosen not in TARGETS:
        raise OptstateError("there is no such format to write", expected=", ".join(TARGETS), found=safe_text(to, 40))
    return chosen


def check_target(checkpoint: Checkpoint, path: Path, to: Target, *, replace: bool) -> None:
    """What is at the target is replaced only if it is of the same kind, and never while it is being read."""
    if not os.path.lexists(path):
        return
    if not replace:
        raise target_exists(path)
    if path.exists() and checkpoint.path.exists() and path.samefile(checkpoint.path):
        raise TargetExists(
            f"{safe_text(path)} is what is to be converted",
            expected="another path",
            todo="convert it beside, then move it",
        )
    kind = is_checkpoint(path) if to == "optstate" else path.is_file()
    if path.is_symlink() or not kind:
        raise TargetExists(
            f"{safe_text(path)} exists and is not replaced",
            expected="a checkpoint of optstate" if to == "optstate" else "a file",
            found="a symbolic link" if path.is_symlink() else "something else",
            todo="convert to another path, or remove it yourself",
        )


def _incomplete(checkpoint: Checkpoint, to: Target, left_out: Sequence[str]) -> Unsaveable:
    return Unsaveable(
        f"{count(len(left_out), 'part')} of {safe_text(checkpoint.path)} would not be in the target; nothing was written",
        expected=f"what {to} can hold, and all of it readable",
        found="\n            ".join([*map(safe_text, left_out[:_SHOWN]), *_more(left_out)]),
        todo="--partial (partial=True) writes the rest, if that is what you want",
    )


_SHOWN = 20


def _more(left_out: Sequence[str]) -> list[str]:
    return [f"… and {len(left_out) - _SHOWN:,} more"] if len(left_out) > _SHOWN else []
