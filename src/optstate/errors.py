"""Every error of the package: one root, one shape of message.

OptstateError
├── ReadError                 a file cannot be read as a checkpoint
│   ├── NotACheckpoint        it is something else: a web page, a pointer, a pipe, an empty file
│   ├── Damaged               truncated, or a digest or checksum does not match
│   ├── NewerFormat           written by a newer optstate than this one
│   └── Refused               readable, but it asks for what a reader must not do, or more than it may
├── SelectionError (KeyError) a pattern or name does not point at what was meant
│   ├── NoSuchParameter
│   └── NothingSelected
├── MissingSlot (KeyError)    the slot is absent; the message says why
├── BindError                 optimizer and model do not make one named state
├── SaveError                 nothing was written, or what was written is gone again
│   ├── Unsaveable            a value has no place in the format; the path to it is named
│   ├── TargetExists
│   └── WriteFailed (OSError) the system refused; errno is kept
├── InUse                     another process has this folder of checkpoints
├── RestoreError
│   ├── PolicyError           a policy asks for what there is not
│   ├── RestoreRefused        the plan has faults; nothing was touched
│   ├── StalePlan             the live side changed since the plan was made
│   └── RestoreFailed         a failure while applying; says what was put back
├── EditError                 an edit was not made; the state is as it was
│   └── EditRefused           it was made, looked at, and taken back: values or the next update would be wrong
├── CoefficientError (ValueError)  a hyperparameter would leave the range in which it means something
├── ScheduleError             a schedule cannot drive what it is asked to, or it has another owner
├── ProofError                a resume could not be tried: the program, a process or the control failed
├── RegistryError             a description of an optimizer contradicts itself or another one
└── ProbeError                a class could not be probed

A message says what, where (by name), expected, found, and what to do next; each is a field, so programs
need not parse text.

>>> try:
...     state["0.wieght"]
... except optstate.errors.NoSuchParameter as error:
...     error.what
"no parameter is named '0.wieght'"
"""

from __future__ import annotations

from collections.abc import Sequence


class OptstateError(Exception):
    """Root of every error that optstate raises on purpose.

    Fields: `what` (one sentence), `where` (file and name), `expected`, `found`, `todo` (the next step);
    each may be None but the first. Foreign text in them must have passed `text.safe_text`.

    >>> try:
    ...     state.select("layers.*")
    ... except optstate.OptstateError as error:
    ...     print(error.todo)
    list(state) shows every name
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        todo: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.todo = todo

    def __str__(self) -> str:
        rows = [
            ("where", self.where),
            ("expected", self.expected),
            ("found", self.found),
            ("to do", self.todo),
        ]
        return "\n".join([self.what, *(f"  {label:<9} {text}" for label, text in rows if text)])


class ReadError(OptstateError):
    """A file cannot be read as a checkpoint."""


class NotACheckpoint(ReadError):
    """The path leads to something that is no checkpoint at all."""


class Damaged(ReadError):
    """The file is a checkpoint, but truncated or changed since it was written."""


class NewerFormat(ReadError):
    """The checkpoint was written in a format version that this optstate does not know."""


class Refused(ReadError):
    """The file is well-formed but demands what a safe reader does not do."""


class SelectionError(OptstateError, KeyError):
    """A name or pattern does not point at what was meant."""


class NoSuchParameter(SelectionError):
    """No parameter has this name."""


class NothingSelected(SelectionError):
    """A selection matches no parameter."""


class MissingSlot(OptstateError, KeyError):
    """A slot is absent; the message is the reason."""


class BindError(OptstateError):
    """Optimizer and model do not make one named state."""


class SaveError(OptstateError):
    """A checkpoint was not saved; whatever was there before still is."""


class Unsaveable(SaveError):
    """A value has no place in the format."""


class TargetExists(SaveError):
    """Something is already at the target path and replacing it was not asked for."""


class WriteFailed(SaveError, OSError):
    """The system refused a write; `errno` is the system's own."""


class InUse(OptstateError):
    """Another process, or another checkpointer of this one, saves into the folder."""


class RestoreError(OptstateError):
    """A checkpoint was not restored."""


class PolicyError(RestoreError):
    """A policy contradicts itself, or names what neither side has."""


class RestoreRefused(RestoreError):
    """The plan has faults; nothing was touched.

    `faults` holds one line per fault, every one of them, while the message shows the first twenty.
    """

    SHOWN = 20

    def __init__(self, what: str, faults: Sequence[str], *, where: str | None = None, todo: str | None = None) -> None:
        super().__init__(what, where=where, todo=todo)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        shown = [f"  - {fault}" for fault in self.faults[: self.SHOWN]]
        hidden = len(self.faults) - len(shown)
        if hidden > 0:
            shown.append(f"  … and {hidden} more (all of them: error.faults)")
        head, *rest = super().__str__().split("\n")
        return "\n".join([head, *shown, *rest])


class StalePlan(RestoreError):
    """The live model or optimizer changed since the plan was made."""


class RestoreFailed(RestoreError):
    """A failure while applying a plan; the message says what could be put back."""


class EditError(OptstateError):
    """An edit was not made; the state is as it was before."""


class EditRefused(EditError):
    """An edit was made, looked at, and taken back: it left values that no state has, or too large a next update.

    `change` is what it would have changed.
    """

    def __init__(self, what: str, change: object = None, **fields: str | None) -> None:
        super().__init__(what, **fields)
        self.change = change


class CoefficientError(OptstateError, ValueError):
    """A hyperparameter would get a value with which the optimizer diverges, divides by zero or cannot step."""


class ScheduleError(OptstateError):
    """A schedule cannot drive what it is asked to, or something else drives it already."""


class ProofError(OptstateError):
    """Whether a resume is exact could not be tried, so nothing is known; a traceback of the program is in the notes."""


class RegistryError(OptstateError):
    """A description of an optimizer contradicts itself or an earlier one."""


class ProbeError(OptstateError):
    """An optimizer class could not be probed."""
