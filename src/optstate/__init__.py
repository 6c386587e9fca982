"""Optimizer state you can see, edit, schedule, save and trust: by parameter name.

A live optimizer and a checkpoint file are the same thing here: named parameters, each with typed slots.

see      attach, open, named_state_dict → OptimizerState, ParamState, Slot, Group, Selection, Checkpoint
change   LiveState (what attach gives: edit, undo, trial, regroup), edit (of a file), schedule → Change, Journal
mend     alignment (does old momentum fit new data?), rebuild (what was lost)
know     register, probe → SlotSpec, OptimizerSpec
trust    diagnose → Diagnosis, Finding; prove → Training, Proof; assert_state_equal
keep     save, verify, plan, restore, convert → Policy, RestorePlan; Checkpointer
compare  diff → Diff
fail     OptstateError; the whole tree is in optstate.errors

Nothing here imports torch before something that needs it is used: `optstate.open` never does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optstate import errors as errors
    from optstate import schedule as schedule
    from optstate.doctor.diagnosis import Diagnosis as Diagnosis
    from optstate.doctor.finding import Finding as Finding
    from optstate.errors import OptstateError as OptstateError
    from optstate.formats.checkpoint import Checkpoint as Checkpoint
    from optstate.formats.diff_report import Diff as Diff
    from optstate.formats.opening import open_checkpoint as open
    from optstate.formats.ours.verify import verify as verify
    from optstate.live.diagnose import diagnose as diagnose
    from optstate.live.named import named_state_dict as named_state_dict
    from optstate.live.probe import probe as probe
    from optstate.live.state import LiveState as LiveState
    from optstate.live.view import attach as attach
    from optstate.optimizers.registry import register as register
    from optstate.optimizers.spec import OptimizerSpec as OptimizerSpec
    from optstate.optimizers.spec import SlotSpec as SlotSpec
    from optstate.proof.equality import assert_state_equal as assert_state_equal
    from optstate.proof.proof import Proof as Proof
    from optstate.proof.prove import prove as prove
    from optstate.proof.training import Training as Training
    from optstate.resume.alignment import alignment as alignment
    from optstate.resume.checkpointer import Checkpointer as Checkpointer
    from optstate.resume.comparing import diff as diff
    from optstate.resume.plan import RestorePlan as RestorePlan
    from optstate.resume.plan import plan as plan
    from optstate.resume.plan import restore as restore
    from optstate.resume.policy import Policy as Policy
    from optstate.resume.rebuild import rebuild as rebuild
    from optstate.state.change import Change as Change
    from optstate.state.groups import Group as Group
    from optstate.state.journal import Journal as Journal
    from optstate.state.optimizer_state import OptimizerState as OptimizerState
    from optstate.state.parameter import ParamState as ParamState
    from optstate.state.selection import Selection as Selection
    from optstate.state.slot import Slot as Slot
    from optstate.store.convert import convert as convert
    from optstate.store.edit import edit as edit
    from optstate.store.save import save as save

    __version__: str

# Public name → where it lives. `module:name` where the two names differ, `module:` for a module itself.
_MAP = {
    "Change": "state.change",
    "Checkpoint": "formats.checkpoint",
    "Checkpointer": "resume.checkpointer",
    "Diagnosis": "doctor.diagnosis",
    "Finding": "doctor.finding",
    "Diff": "formats.diff_report",
    "Group": "state.groups",
    "Journal": "state.journal",
    "LiveState": "live.state",
    "OptimizerSpec": "optimizers.spec",
    "OptimizerState": "state.optimizer_state",
    "OptstateError": "errors",
    "ParamState": "state.parameter",
    "Policy": "resume.policy",
    "Proof": "proof.proof",
    "RestorePlan": "resume.plan",
    "Selection": "state.selection",
    "Slot": "state.slot",
    "SlotSpec": "optimizers.spec",
    "Training": "proof.training",
    "alignment": "resume.alignment",
    "assert_state_equal": "proof.equality",
    "attach": "live.view",
    "diagnose": "live.diagnose",
    "convert": "store.convert",
    "diff": "resume.comparing",
    "edit": "store.edit",
    "errors": "errors:",
    "named_state_dict": "live.named",
    "open": "formats.opening:open_checkpoint",
    "plan": "resume.plan",
    "probe": "live.probe",
    "prove": "proof.prove",
    "rebuild": "resume.rebuild",
    "register": "optimizers.registry",
    "restore": "resume.plan",
    "save": "store.save",
    "schedule": "schedule:",
    "verify": "formats.ours.verify",
}

# Written out for type checkers, which cannot read a table; a test holds the two equal.
__all__ = [
    "attach",
    "open",
    "named_state_dict",
    "OptimizerState",
    "ParamState",
    "Slot",
    "Group",
    "Selection",
    "Checkpoint",
    "LiveState",
    "edit",
    "schedule",
    "Change",
    "Journal",
    "alignment",
    "rebuild",
    "register",
    "probe",
    "SlotSpec",
    "OptimizerSpec",
    "diagnose",
    "Diagnosis",
    "Finding",
    "prove",
    "Training",
    "Proof",
    "assert_state_equal",
    "save",
    "verify",
    "plan",
    "restore",
    "convert",
    "Policy",
    "RestorePlan",
    "Checkpointer",
    "diff",
    "Diff",
    "OptstateError",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("optstate")
    if name not in _MAP:
        raise AttributeError(f"module 'optstate' has no attribute {name!r}")
    module_name, colon, attribute = _MAP[name].partition(":")
    module = import_module(f"optstate.{module_name}")
    value = module if colon and not attribute else getattr(module, attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
