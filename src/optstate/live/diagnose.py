"""`diagnose`: the one question about a file, a running program, or both. A file alone is diagnosed without torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from optstate.doctor.case import Case
from optstate.doctor.diagnosis import Diagnosis
from optstate.doctor.engine import diagnose_case
from optstate.errors import BindError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.text import listing

if TYPE_CHECKING:
    from optstate.doctor.evidence import LiveEvidence


def diagnose(
    target: Any,
    model: Any = None,
    *,
    against: Any = None,
    scheduler: Any = None,
    scaler: Any = None,
    values: bool = True,
) -> Diagnosis:
    """Why momentum is missing, or wrong: every finding about a checkpoint, a running optimizer, or the two together.

    `target` and `against` are each a checkpoint (a path or what `optstate.open` gives) or one or more optimizers as
    `attach` takes them, which want their `model`. A file against a file: what changed between them. A file and an
    optimizer: what `load_state_dict` would do, said without calling it. `scheduler` (one or several) and `scaler` (a
    `GradScaler`) belong to the optimizer. Without `values` no tensor is read. Nothing is changed: no step is taken, no
    entry created, no random number drawn.

    Raises `ReadError` for a file that cannot be read, and `BindError` for a combination that makes no sense.

    >>> print(len(optstate.diagnose(optimizer, model)))
    0
    >>> for finding in optstate.diagnose(checkpoint, model, against=torch.optim.AdamW(model.parameters(), lr=0.5)):
    ...     print(finding.code, finding.evidence)
    M401 loading replaces the program's lr 0.5 → 0.001
    """
    files = [_opened(each) for each in (target, against) if _is_file(each)]
    programs = [each for each in (target, against) if each is not None and not _is_file(each)]
    live = _examined(programs, model, scheduler, scaler)
    checkpoint, other = (*files, None, None)[:2]
    return diagnose_case(Case(checkpoint=checkpoint, other=other, live=live), values=values)


def _is_file(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike, Checkpoint))


def _opened(value: Any) -> Checkpoint:
    return value if isinstance(value, Checkpoint) else open_checkpoint(value)


def _examined(programs: list[Any], model: Any, scheduler: Any, scaler: Any) -> LiveEvidence | None:
    if len(programs) > 1:
        raise BindError(
            "two running programs are not diagnosed at once",
            todo='several optimizers over one model go into a mapping: diagnose({"muon": o1, "adamw": o2}, model)',
        )
    if not programs:
        given = {"model": model, "scheduler": scheduler, "scaler": scaler}
        alone = [name for name, value in given.items() if value is not None]
        if alone:
            raise BindError(
                f"{listing(alone)} without an optimizer to look at",
                todo="diagnose(checkpoint, model, against=optimizer) holds a file against a program",
            )
        return None
    from optstate.live.examine import examine  # torch is only needed where something runs

    return examine(programs[0], model, scheduler=scheduler, scaler=scaler)
