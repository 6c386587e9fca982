"""The calls in a pickle that are interpreted, each by a constructor of ours; every other call stays a record.

Read a row of `CONSTRUCTORS` as: module and name as a pickle spells them, and what is made of the arguments. The rows
are in `constructors_torch`, `constructors_python` and `constructors_numpy`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from optstate.formats.containers.constructors_numpy import NUMPY
from optstate.formats.containers.constructors_python import PYTHON
from optstate.formats.containers.constructors_torch import TORCH, WRAPPERS
from optstate.formats.containers.pickle_machine import MAKERS, Constructor, Global
from optstate.formats.containers.records import is_value
from optstate.formats.containers.storages import STORAGES, UNTYPED
from optstate.state.tensors import DTYPES

CONSTRUCTORS: Mapping[tuple[str, str], Constructor] = MappingProxyType({**TORCH, **PYTHON, **NUMPY})

# Globals that stand for themselves in genuine files: classes that constructors are told.
_KNOWN_VALUES = {
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.nn.parameter", "Buffer"),
    ("numpy", "ndarray"),
    ("builtins", "object"),
    UNTYPED,
    *(("torch", f"per_{what}_affine") for what in ("tensor", "channel")),
    *(("ml_dtypes", name) for name in DTYPES),
    *WRAPPERS,
    *MAKERS,
}


def known_global(found: Global) -> bool:
    """Whether a global is one that the reader understands, so that it needs no mention."""
    if found.constructor is not None or (found.module, found.name) in _KNOWN_VALUES or is_value(found):
        return True
    return found.module == "torch" and (found.name in STORAGES or found.name in DTYPES)
