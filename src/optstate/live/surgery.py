"""Surgery: parameters cut, grown, replaced and moved while they train, with all that belongs to them, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from optstate.errors import EditError
from optstate.live.bind import Bound
from optstate.live.rows import RowIndex
from optstate.live.surgery_members import refuse_order, stranger
from optstate.live.surgery_model import put
from optstate.live.surgery_parameters import ParameterVerbs
from optstate.live.surgery_rows import check_fill, dimension, grown, kept, shared, tiled
from optstate.live.surgery_swap import by_rows, check_new, fits, replacing
from optstate.live.unwrap import find
from optstate.optimizers.new_rows import FillWord
from optstate.optimizers.row_map import RowMap
from optstate.text import safe_text


class Surgery(ParameterVerbs):
    """What `with state.surgery(...) as cut:` gives: verbs that change parameters themselves; afterwards `change`.

    A verb acts at once, on everything that knows the parameter: the model under every name, what a normalisation knows of its
    channels, param groups, the slots, the gradient, averages, schedules. Slots of rows that stay keep their bits. A parameter of another shape is another object,
    for torch remembers the shape of a parameter; its attributes and hooks go along.

    >>> with state.surgery("half of the hidden units, and one output more") as cut:
    ...     cut.keep_rows("0.*", slice(4))
    ...     cut.keep_rows("2.weight", slice(4), dim=1)
    ...     cut.grow("2.weight", rows=torch.zeros(1, 4))
    ...     cut.grow("2.bias", rows=torch.zeros(1))
    >>> state["2.weight"].momentum.shape, model[0]
    ((3, 4), Linear(in_features=4, out_features=4, bias=True))
    """

    def keep_rows(self, name: str, rows: RowIndex, *, dim: int = 0) -> None:
        """Keep the rows of a mask, or those of an index in its order, and drop the others.

        `name` may be a pattern of several parameters with as many rows. What is kept keeps its bits, in every slot.
        """
        self._map("keep_rows", name, dim, lambda bound, axis: kept(bound.tensor, rows, axis, bound.name))

    def tile(self, name: str, times: int, *, dim: int = 0) -> None:
        """Repeat all rows so many times, as of one expert that becomes several. Copies keep the state of what they are of,
        and move as that does. `name` may be a pattern.
        """
        self._map("tile", name, dim, lambda bound, axis: tiled(bound.tensor, times, axis, bound.name))

    def split(
        self,
        name: str,
        rows: RowIndex,
        shares: Sequence[float] = (0.5, 0.5),
        *,
        dim: int = 0,
        outgoing: bool = False,
    ) -> None:
        """Have several copies of some rows, the first in its place and the others behind all, which share their part.

        To widen a layer without a change of what the network computes, split the weight and bias of its units, and with
        `outgoing` the weights that they feed (`dim=1` of the next layer). Incoming weights are copied, and their slots
        multiplied by α^k, for a copy gets α of the gradient; outgoing weights are multiplied by α, and their slots copied.
        Shares should differ: equal copies stay equal. Source: Net2Net (arXiv 1511.05641), LEMON (arXiv 2310.07999).
        """
        said = {"shares": [float(share) for share in shares], "outgoing": outgoing}
        self._map(
            "split", name, dim, lambda bound, axis: shared(bound.tensor, rows, shares, axis, bound.name), outgoing, said
        )

    def grow(
        self,
        name: str,
        new: torch.Tensor | None = None,
        *,
        rows: torch.Tensor | None = None,
        like: RowIndex | None = None,
        fill: FillWord | torch.Tensor = "zero",
        dim: int = 0,
    ) -> None:
        """Have more rows behind those that there are, which start safely: see `fill`.

        new, rows
            The whole parameter as it is to be, or the new rows alone. With neither, the model has it already, and the
            optimizer still has the smaller one.
        like
            For each new row the old row that it resembles: gradients as large as that one's are to be expected.
        fill
            The momentum of new rows: "zero", the "mean" of the others', a "copy" of that of the row it is like, or a
            tensor for the new rows. It is shrunk, element by element, so far that no next update is above a fresh start's.
        """
        with self._acting(name, may_be_swapped=True) as bounds:
            there = find(self._source.model, name)
            new = there if new is None and rows is None and not bounds else new
            given = new if new is not None else rows
            if given is None or (new is not None and rows is not None):
                raise EditError(f"by what is {safe_text(name)} to grow?", expected="the whole new parameter, or rows=")
            bound = self._meant(name, bounds, lambda each: fits(each, there, dim))
            old, axis = bound.tensor, dimension(bound.tensor, dim, name)
            sizes = {place: size for place, size in enumerate(old.shape) if place != axis}
            given = check_new(name, old, given, fixed=sizes)
            mapping = grown(old, given.shape[axis] - (old.shape[axis] if rows is None else 0), like, axis, name)
            check_fill(fill, mapping, old, name)
            whole, fresh = (given, None) if rows is None else (None, rows)
            swap = by_rows(self._source, bound, mapping, averages=self._averages, new=whole, fill=fill, fresh=fresh)
            said = f"a tensor {list(fill.shape)}" if isinstance(fill, torch.Tensor) else fill
            self._install("grow", name, [swap], axis, {"fill": said})

    def replace(
        self,
        name: str,
        new: torch.Tensor | None = None,
        *,
        map: Any = None,
        old: str | torch.Tensor | None = None,
        dim: int = 0,
    ) -> None:
        """Put another parameter in the place of one; or, where the model has another already, have the optimizer follow.

        new
            The parameter; None: the one that the model has under this name and no optimizer has.
        map
            None: shapes are equal, and slots stay as they are. For each new row the old row that it comes from, or -1; or a
            callable that makes each slot's tensor of its key and its old tensor.
        old
            Which of the optimizer's tensors that are no longer in the model is meant, by name (`#3`) or itself: needed where
            several would fit.
        """
        with self._acting(name, may_be_swapped=True) as bounds:
            there = find(self._source.model, name)
            new = there if new is None and not bounds else new
            if new is None:
                raise EditError(f"by what is {safe_text(name)} to be replaced?", todo="pass the new parameter")
            shape = getattr(new, "shape", None)
            bound = self._meant(name, bounds, lambda each: map is not None or each.shape == shape, old)
            given = check_new(name, bound.tensor, new)
            if given is bound.tensor:
                raise EditError(f"{safe_text(name)} is this very parameter already")
            if not bounds and there is not None and there is not given:
                put(self.transaction, self._source.model, there, given)
            axis = dimension(bound.tensor, dim, name) if bound.tensor.dim() else 0
            swap = replacing(self._source, bound, given, map, axis, self._averages)
            self._install(
                "replace", name, [swap], axis, {} if map is None else {"map": "callable" if callable(map) else "rows"}
            )

    # --- how ------------------------------------------------------------------------------------------------

    def _map(
        self,
        verb: str,
        name: str,
        dim: int,
        rows_of: Callable[[Bound, int], RowMap],
        outgoing: bool = False,
        arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Map the rows of every parameter that is meant; all are prepared before the first is put in place."""
        with self._acting(name) as bounds:
            swaps = []
            for bound in bounds:
                rows = rows_of(bound, dimension(bound.tensor, dim, bound.name))
                swaps.append(by_rows(self._source, bound, rows, averages=self._averages, outgoing=outgoing))
            self._install(verb, name, swaps, dim, arguments)

    def _meant(
        self,
        name: str,
        bounds: Sequence[Bound],
        fits_in: Callable[[torch.Tensor], bool],
        old: str | torch.Tensor | None = None,
    ) -> Bound:
        """The parameter of this name; where no optimizer has it, what one has in its place, under this name."""
        if bounds:
            return bounds[0]
        bound = stranger(self._source, name, fits_in, old)
        refuse_order(self._optimizer(bound), name)
        return bound._replace(name=name)
