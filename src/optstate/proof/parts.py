"""All that decides how a run goes on, by component: read without touching it, and written back one component at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from optstate.live.bind import Bound
from optstate.live.source import LiveSource
from optstate.live.tensors import live_entry
from optstate.live.unwrap import walk
from optstate.live.view import checked_model, optimizers_by_name
from optstate.live.weights import ExtraState
from optstate.optimizers.interpret import interpret
from optstate.optimizers.registry import by_class
from optstate.proof.digest import parts_of
from optstate.proof.moments import BUFFERS, GRADIENTS, HYPERPARAMETERS, MODULES, RANDOM, SLOTS, WEIGHTS, Part
from optstate.proof.training import Training
from optstate.store.objects import RandomState
from optstate.text import safe_text

_MEMBERS = "parameters"  # which parameters a group has, beside its hyperparameters


class Parts:
    """A training taken apart: component → name → the live value. Nothing is copied, drawn or created by reading."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self._optimizers = optimizers_by_name(training.optimizer)
        self._source = LiveSource(self._optimizers, checked_model(training.model))
        self._roles: dict[tuple[str, tuple[Any, ...]], dict[Any, str]] = {}

    def read(self) -> dict[str, dict[str, Any]]:
        """Every component that there is."""
        found: dict[str, dict[str, Any]] = {
            WEIGHTS: self._tensors("named_parameters"),
            BUFFERS: self._tensors("named_buffers"),
            MODULES: ExtraState(self.training.model).state_dict(),
            HYPERPARAMETERS: self._hyperparameters(),
        }
        for component, name, value in self._slots():
            found.setdefault(component, {})[name] = value
        for name, item in self.training.saved().items():
            found[name] = {name: item.state_dict()}
        found.update({name: {name: state} for name, state in random_states().items()})
        return {component: parts for component, parts in found.items() if parts}

    def moment(self) -> dict[str, dict[str, Part]]:
        """The digest of everything, now."""
        return {
            component: dict(leaf for name, value in parts.items() for leaf in parts_of(value, name))
            for component, parts in self.read().items()
        }

    def gradients(self) -> dict[str, Any]:
        """What the parameters have of a gradient; a step that accumulates into it goes on from there."""
        return {
            name: parameter.grad.detach()
            for name, parameter in self._tensors("named_parameters").items()
            if parameter.grad is not None
        }

    def write(self, component: str, saved: Mapping[str, Any]) -> None:
        """Put one component there as it was read from another process."""
        if component in (WEIGHTS, BUFFERS):
            live = self._tensors("named_parameters" if component == WEIGHTS else "named_buffers")
            with torch.no_grad():
                for name, value in saved.items():
                    live[name].copy_(value)
        elif component == GRADIENTS:
            for name, parameter in self._tensors("named_parameters").items():
                parameter.grad = saved[name].clone() if name in saved else None
        elif component == MODULES:
            ExtraState(self.training.model).load_state_dict(saved)
        elif component == HYPERPARAMETERS:
            self._write_hyperparameters(saved)
        elif component in SLOTS:
            self._write_slots(component, saved)
        elif component in RANDOM:
            restore_random_state(component, saved[component])
        else:
            self.training.saved()[component].load_state_dict(copy.deepcopy(saved[component]))

    def a_bit(self) -> tuple[str, torch.Tensor] | None:
        """The name and first element of some slot, or of a weight where there are no slots: what a control can flip."""
        read = self.read()
        found = (item for component in (*SLOTS[1:], *SLOTS[:1], WEIGHTS) for item in read.get(component, {}).items())
        for name, value in found:
            if type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided and value.numel():
                return name, value.detach()[(0,) * value.dim()]
        return None

    def _tensors(self, named: str) -> dict[str, torch.Tensor]:
        """The model's own tensors by their first names, those that a state dict leaves out among them."""
        found: dict[int, tuple[str, torch.Tensor]] = {}
        for prefix, module in walk(self.training.model):
            for name, tensor in getattr(module, named)(recurse=False):
                found.setdefault(id(tensor), (prefix + name, tensor))
        return dict(found.values())

    def _slots(self) -> Iterator[tuple[str, str, Any]]:
        for bound, optimizer in self._bound():
            entry = optimizer.state.get(bound.tensor) or {}
            roles = self._roles_of(bound, optimizer, entry)
            for key, value in entry.items():
                yield roles.get(str(key), "other"), f"{bound.name}/{key}", value
        for label, optimizer in self._optimizers.items():
            for key, value in optimizer.state.items():
                if not isinstance(key, torch.Tensor):
                    yield "other", f"{label}optimizer.state/{safe_text(key)}", value

    def _bound(self) -> Iterator[tuple[Bound, torch.optim.Optimizer]]:
        return ((bound, self._optimizers[bound.optimizer]) for bound in self._source.bind().parameters())

    def _roles_of(self, bound: Bound, optimizer: torch.optim.Optimizer, entry: Mapping[Any, Any]) -> dict[Any, str]:
        """Asked once for each set of keys: a run takes many steps."""
        known = (bound.name, tuple(entry))
        if known not in self._roles:
            slots = interpret(by_class(type(optimizer)), bound.name, live_entry(optimizer, bound.tensor))
            self._roles[known] = {key: slot.role for key, slot in slots.items()}
        return self._roles[known]

    def _groups(self) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
        for name, optimizer in self._optimizers.items():
            for index, group in enumerate(optimizer.param_groups):
                yield f"{name} group {index}".lstrip(), name, index, group

    def _hyperparameters(self) -> dict[str, Any]:
        binding = self._source.bind()
        found: dict[str, Any] = {}
        for label, name, index, group in self._groups():
            found.update({f"{label}/{key}": value for key, value in group.items() if key not in _NAMES})
            found[f"{label}/{_MEMBERS}"] = binding.group(name, index)
        return found

    def _write_hyperparameters(self, saved: Mapping[str, Any]) -> None:
        for label, _, _, group in self._groups():
            theirs = {
                key.removeprefix(f"{label}/"): value for key, value in saved.items() if key.startswith(f"{label}/")
            }
            for key in [key for key in group if key not in _NAMES and key not in theirs]:
                del group[key]
            group.update({key: copy.deepcopy(value) for key, value in theirs.items() if key != _MEMBERS})

    def _write_slots(self, role: str, saved: Mapping[str, Any]) -> None:
        for bound, optimizer in self._bound():
            entry = optimizer.state.get(bound.tensor) or {}
            roles = self._roles_of(bound, optimizer, entry)
            prefix = f"{bound.name}/"
            theirs = {key.removeprefix(prefix): value for key, value in saved.items() if key.startswith(prefix)}
            for key in [key for key in entry if roles.get(str(key), "other") == role and key not in theirs]:
                del entry[key]
            if theirs:
                optimizer.state[bound.tensor].update(copy.deepcopy(theirs))


_NAMES = ("params", "param_names")


_RANDOM = {"python": "python RNG", "numpy": "numpy RNG", "torch": "torch RNG", "cuda": "CUDA RNG"}


def random_states() -> dict[str, Any]:
    """The state of every global generator: reading it draws nothing."""
    return {_RANDOM[name]: state for name, state in RandomState().state_dict().items()}


def restore_random_state(component: str, state: Any) -> None:
    """Put one generator there, and leave the others where they are."""
    name = next(name for name, each in _RANDOM.items() if each == component)
    RandomState().load_state_dict({**RandomState().state_dict(), name: state})
