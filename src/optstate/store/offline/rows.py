"""Some rows of a tensor in a file: an index, several, a slice, or a mask along its first dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from optstate.errors import EditError
from optstate.text import safe_text

if TYPE_CHECKING:
    import numpy as np

RowIndex: TypeAlias = "int | slice | range | Sequence[int] | Sequence[bool] | np.ndarray[Any, Any]"


def chosen_rows(rows: Any, shape: Sequence[int], path: str) -> np.ndarray[Any, Any]:
    """A mask of the rows meant. Raises `EditError` for a mask of another length, an index outside, or neither of both."""
    import numpy as np

    if not shape:
        raise EditError(f"{path} has no rows", found="a tensor without dimensions", todo="edit it as a whole")
    mask = np.zeros(shape[0], bool)
    try:
        index = rows if isinstance(rows, slice) else np.atleast_1d(np.asarray(rows))
        if not isinstance(index, slice) and index.size and index.dtype.kind not in "iub":
            raise _no_rows(rows, path)
        mask[index if isinstance(index, slice) or index.size else []] = True
    except IndexError as error:
        raise EditError(
            f"these rows do not fit {path}",
            expected=f"indices below {shape[0]}, or a mask of {shape[0]} values",
            found=safe_text(error),
            todo="select the parameters that have as many rows",
        ) from None
    except (TypeError, ValueError):
        raise _no_rows(rows, path) from None
    return mask


def _no_rows(rows: object, path: str) -> EditError:
    return EditError(
        f"these are no rows of {path}",
        expected="an index, a list or array of them, a slice, or a mask of booleans",
        found=safe_text(rows, 60),
    )
