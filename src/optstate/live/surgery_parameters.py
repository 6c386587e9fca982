"""Surgery on whole parameters: they join and leave optimizers, freeze, are renamed, share one tensor and part again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.regroup import regroup
from optstate.live.surgery_averages import Weight
from optstate.live.surgery_base import Operation
from optstate.live.surgery_members import (
    check_pair,
    chosen_group,
    join,
    leave,
    mean_of,
    record,
    refuse_order,
    set_trained,
    told_apart,
)
from optstate.live.surgery_model import holders, place, put, put_at, rename
from optstate.live.surgery_swap import alike, rekey
from optstate.live.unwrap import find
from optstate.optimizers.registry import by_class
from optstate.text import safe_text


class ParameterVerbs(Operation):
    """The verbs that take a parameter as it is."""

    def add(
        self,
        name: str,
        parameter: torch.Tensor | None = None,
        *,
        beside: str | None = None,
        optimizer: str | None = None,
        group: int | None = None,
        hyperparameters: Mapping[str, Any] | None = None,
    ) -> None:
        """Have an optimizer train one more parameter, last in its group.

        `parameter` is put into the model under that name; None: it is there already. It joins the group of the parameter
        `beside`, or a group by number, which is needed where there are several; other `hyperparameters` than the group's
        move it to a group of its own, and schedulers follow. It has no state until its first step.
        """
        with self._acting() as _:
            if beside is not None:
                bound = self._bounds(beside)[0]
                optimizer, group = bound.optimizer, bound.group
            of, number = chosen_group(self._source, optimizer, group)
            live = self._source.live_optimizers[of]
            refuse_order(live, name)
            parameter = self._placed(name, parameter)
            join(live.param_groups[number], name, parameter)
            for each in self._averages:
                if each.of(Weight(name, parameter)) is None:
                    each.add(self.transaction, Weight(name, None, parameter, parameter))
            if hyperparameters:
                regroup(self.transaction, self._source, {name: hyperparameters})
            self._touch(live, parameter, name)
            self._tell("add", name, [of], arguments={"group": number, **(hyperparameters or {})})

    def remove(self, name: str) -> None:
        """Take a parameter out of the model, which has None in its place, and out of its optimizer, with its state."""
        with self._acting(name) as bounds:
            for bound in bounds:
                optimizer = self._optimizer(bound)
                slots = len(optimizer.state.get(bound.tensor) or ())
                leave(self.transaction, optimizer, bound.tensor)
                put(self.transaction, self._source.model, bound.tensor, None)
                for each in self._averages:
                    each.drop(self.transaction, Weight(bound.name, bound.tensor))
                self._tell("remove", bound.name, [bound.optimizer], slots=slots)

    def freeze(self, name: str) -> None:
        """Have parameters stay as they are: no gradient, and no update. Their state stays in the optimizer, untouched by
        its steps and in every checkpoint, until `unfreeze`. `name` may be a pattern.
        """
        self._train(name, "freeze", trained=False)

    def unfreeze(self, name: str) -> None:
        """Have frozen parameters train again, with the state that they had, to the bit. `name` may be a pattern."""
        self._train(name, "unfreeze", trained=True)

    def rename(self, old: str, new: str) -> None:
        """Give a parameter another name in the model, or with a trailing dot a module: `rename("encoder.", "backbone.")`.

        Recorded names, averages and schedules follow.
        """
        with self._acting() as _:
            if not old.endswith(".") and find(self._source.model, old) is None:
                self._bounds(old)  # which says what is there instead
            before = {id(bound.tensor): bound.name for bound in self._source.bind().parameters()}
            rename(self.transaction, self._source.model, old, new)
            moved = [bound for bound in self._source.bind().parameters() if before[id(bound.tensor)] != bound.name]
            for bound in moved:
                record(self._optimizer(bound), bound, bound.name)
            for each in self._averages:
                each.rename(self.transaction, Weight(old, to=new))
            names = [bound.optimizer for bound in moved]
            self._tell("rename", old, names, arguments={"to": new}, parameters=len(moved))

    def tie(self, name: str, to: str, *, state: Literal["first", "mean"] = "first") -> None:
        """Have a name mean the parameter `to` from now on, which then gets the gradients of both.

        Its own tensor leaves model and optimizer. The state that stays is that of `to` ("first"), or the "mean" of both
        where they have taken as many steps: of moments the mean, of maxima the larger.
        """
        with self._acting() as _:
            model = self._source.model
            old, new = find(model, name), find(model, to)
            old, new = check_pair(name, old, to, new)
            if state not in ("first", "mean"):
                raise EditError("which state stays?", expected="first or mean", found=safe_text(state))
            mine, theirs = self._bound_of(old), self._bound_of(new)
            if mine is not None:
                refuse_order(self._optimizer(mine), name)
                if state == "mean" and theirs is not None:
                    self._average(theirs, mine)
                leave(self.transaction, self._optimizer(mine), old)
            put(self.transaction, model, old, new)
            for each in self._averages:
                each.tie(self.transaction, Weight(name, old, to=to))
            self._tell("tie", name, [mine.optimizer] if mine else [], arguments={"to": to, "state": state})

    def untie(self, name: str) -> None:
        """Have one name of a parameter with several mean a parameter of its own: a copy, in the same group, with a copy of
        the state.
        """
        with self._acting() as _:
            model, (module, attribute) = self._source.model, place(self._source.model, name)
            old = module._parameters.get(attribute)
            if old is None or len(holders(model, old)) < 2:
                raise EditError(f"{safe_text(name)} is {'tied to nothing' if old is not None else 'no parameter'}")
            bound = self._bound_of(old)
            averages = [each.of(Weight(bound.name if bound else name, old)) for each in self._averages]
            new = alike(old, old.detach().clone())
            put_at(self.transaction, module, attribute, new)
            slots = 0 if bound is None else self._beside(bound, name, new)
            for each, average in zip(self._averages, averages, strict=True):
                if average is not None:
                    each.add(self.transaction, Weight(name, None, new, average))
            self._tell("untie", name, [bound.optimizer] if bound else [], slots=slots)

    # --- how ------------------------------------------------------------------------------------------------

    def _placed(self, name: str, parameter: torch.Tensor | None) -> torch.Tensor:
        """The parameter of this name in the model, put there where it was given. Raises `EditError` where it cannot be."""
        there = find(self._source.model, name)
        if parameter is None:
            if there is None:
                raise EditError(f"there is no parameter {safe_text(name)!r} in the model", todo="pass the parameter")
            if self._bound_of(there) is not None:
                raise EditError(f"{safe_text(name)} is in an optimizer already")
            return there
        module, attribute = place(self._source.model, name)
        if there is not None or (hasattr(module, attribute) and getattr(module, attribute) is not None):
            raise EditError(f"there is a {safe_text(name)!r} in the model already", todo="replace() puts another there")
        if not isinstance(parameter, torch.nn.Parameter):
            raise EditError(f"{safe_text(name)} is to be a parameter", found=f"a {type(parameter).__name__}")
        put_at(self.transaction, module, attribute, parameter)
        return parameter

    def _train(self, name: str, verb: str, *, trained: bool) -> None:
        with self._acting(name) as bounds:
            for bound in bounds:
                set_trained(self.transaction, bound.tensor, trained=trained)
                self._touch(self._optimizer(bound), bound.tensor, bound.name)
            slots = sum(len(self._optimizer(each).state.get(each.tensor) or ()) for each in bounds)
            self._tell(verb, name, [each.optimizer for each in bounds], parameters=len(bounds), slots=slots)

    def _average(self, stays: Bound, goes: Bound) -> None:
        """Give the parameter that stays the mean of its state and that of the one that goes, where both have one."""
        optimizer, other = self._optimizer(stays), self._optimizer(goes)
        if other is not optimizer:
            raise EditError("states in different optimizers have no mean", todo='tie(state="first")')
        entry, theirs = optimizer.state.get(stays.tensor), optimizer.state.get(goes.tensor)
        if entry and theirs:
            mean = mean_of(by_class(type(optimizer)), entry, theirs, goes.name)
            self.transaction.before_entry(optimizer, stays.tensor)
            optimizer.state[stays.tensor] = mean
            self._touch(optimizer, stays.tensor, stays.name)

    def _beside(self, bound: Bound, name: str, new: torch.Tensor) -> int:
        """Have a copy of a parameter join its group behind it, with a copy of its state; returns how many slots."""
        optimizer = self._optimizer(bound)
        told_apart(optimizer, bound)
        entry = optimizer.state.get(bound.tensor)
        join(optimizer.param_groups[bound.group], name, new, bound.position + 1)
        self._touch(optimizer, new, name)
        if entry is not None:
            copies = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in entry.items()}
            rekey(self.transaction, optimizer, new, new, copies)
        return len(entry or ())
