"""OptimizerState: named parameters with typed slots, whether they live in a running optimizer or in a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

from optstate.errors import EditError, NoSuchParameter
from optstate.state.groups import Group, OptimizerInfo
from optstate.state.parameter import ParameterFacts, ParamState, SlotReader
from optstate.state.selection import Selection, select
from optstate.state.table import state_table
from optstate.text import count, safe_text


class Source(SlotReader, Protocol):
    """Where an `OptimizerState` reads from: a running optimizer, a frozen copy, or a file."""

    def names(self) -> Sequence[str]:
        """The names in the optimizers' own order, found anew where they can change."""

    def facts(self, name: str) -> ParameterFacts:
        """What is known of one parameter. Raises `KeyError` for a name that is not there."""

    def optimizers(self) -> Mapping[str, OptimizerInfo]:
        """The optimizers by name."""

    def left_out(self) -> Mapping[str, Sequence[str]]:
        """Names that are not part of the state although one might look for them: reason → names."""

    def freeze(self) -> Source:
        """A source that never changes again."""


class OptimizerState(Mapping[str, ParamState]):
    """A mapping from parameter name to `ParamState`.

    A live one (from `attach`) is a view: it holds the optimizer and the model, never a tensor, and follows
    every step, load and change of groups. One from a file reads values on demand.

    >>> state = optstate.attach(optimizer, model)
    >>> state["0.weight"].momentum.key
    'exp_avg'
    """

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, name: str) -> ParamState:
        try:
            return ParamState(self.source.facts(name), self.source)
        except KeyError:
            raise self._unknown(name) from None

    def __contains__(self, name: object) -> bool:
        try:
            return isinstance(name, str) and self.source.facts(name).name == name
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.source.names())

    def __len__(self) -> int:
        return len(self.source.names())

    @property
    def optimizers(self) -> Mapping[str, OptimizerInfo]:
        """The optimizers by name; a single one has the name ""."""
        return self.source.optimizers()

    @property
    def groups(self) -> tuple[Group, ...]:
        """All param groups of all optimizers, in order."""
        return tuple(group for info in self.optimizers.values() for group in info.groups)

    @property
    def left_out(self) -> Mapping[str, Sequence[str]]:
        """Names that are not part of this state, by reason: parameters of the model in no optimizer, and so on."""
        return self.source.left_out()

    def select(
        self,
        pattern: str = "*",
        *,
        role: str | None = None,
        group: int | None = None,
        optimizer: str | None = None,
        ndim: int | None = None,
        dtype: str | None = None,
        trained: bool | None = None,
    ) -> Selection:
        """The parameters whose name matches `pattern` and that satisfy every predicate given.

        `pattern` is a glob in which `*` crosses dots; `re:` in front makes it a regular expression that must
        match the whole name; a trailing dot makes it a prefix. `role` wants a slot of that role, `trained`
        any slot at all. Raises `NothingSelected`, with the nearest names, when nothing is left.

        >>> len(state.select("*.weight", ndim=2))
        2
        """
        return select(
            self, pattern, role=role, group=group, optimizer=optimizer, ndim=ndim, dtype=dtype, trained=trained
        )

    def edit(self, *_arguments: Any, **_options: Any) -> Any:
        """Only the state of a running optimizer is edited in place; raises `EditError`, which says what to do instead."""
        raise EditError(
            "this state does not belong to a running optimizer, so it cannot be edited in place",
            todo="a file: optstate.edit(path, new_path, ...) writes an edited copy; an optimizer: optstate.attach(...)",
        )

    def snapshot(self) -> OptimizerState:
        """A frozen copy: of a live state every slot is cloned on its device; a state from a file is one already."""
        return OptimizerState(self.source.freeze())

    def __str__(self) -> str:
        return state_table(self).text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return state_table(self).html()

    def _unknown(self, name: object) -> NoSuchParameter:
        names = list(self.source.names())
        shown = safe_text(name)
        if not isinstance(name, str):
            return NoSuchParameter(
                f"a parameter is addressed by its name, not by a {type(name).__name__}",
                found=shown,
                todo="state['encoder.weight']; list(state) shows the names",
            )
        for reason, left_out in self.left_out.items():
            if name in left_out:
                return NoSuchParameter(
                    f"{shown!r} is not in this state: it is {reason}",
                    todo="give the optimizer this very tensor; a replaced parameter needs a new optimizer, or add_param_group",
                )
        near = [safe_text(match) for match in get_close_matches(name, names, n=3)]
        return NoSuchParameter(
            f"no parameter is named {shown!r}",
            found=count(len(names), "parameter") + (f", the nearest: {', '.join(near)}" if near else ""),
            todo="list(state) shows every name; state.select('*part*') finds some",
        )
