"""`doctor` on files: every code that a file shows is found in a genuine file with that fault, and in no healthy one."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

import optstate
from optstate.doctor.case import Case
from optstate.doctor.counting import Counter, side_by_side
from optstate.doctor.diagnosis import SHOWN, Diagnosis
from optstate.doctor.engine import diagnose_case
from optstate.doctor.finding import Finding
from optstate.doctor.rule import Rule
from optstate.errors import Damaged
from optstate.formats.checkpoint import Checkpoint, Clue
from optstate.formats.opening import open_checkpoint
from optstate.state.frozen import FrozenSource
from optstate.state.optimizer_state import OptimizerState
from tests.faults import FAULTS, HEALTHY, Fault
from tests.faults.making import adamw, contents, entries, halving, net, save, scheduled, trained
from tests.faults.store import one_bit_flipped


def diagnosed(made: Path | tuple[Path, Path], **options: bool) -> Diagnosis:
    """A file, or the later of two against the earlier."""
    if isinstance(made, tuple):
        earlier, later = made
        return diagnose_case(Case(checkpoint=open_checkpoint(later), other=open_checkpoint(earlier)), **options)
    return diagnose_case(Case(checkpoint=open_checkpoint(made)), **options)


def codes(diagnosis: Diagnosis) -> set[str]:
    return {finding.code for finding in diagnosis}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.label)
def test_a_fault_is_found_by_its_code(fault: Fault, tmp_path):
    """The file with a fault has its code, with evidence and a fix, and nothing that is not there."""
    diagnosis = diagnosed(fault.make(tmp_path))
    assert codes(diagnosis) - {"M201"} == ({fault.code} | fault.also) - {"M201"}, str(diagnosis)
    assert fault.code in codes(diagnosis)
    assert all(finding.evidence and finding.todo for finding in diagnosis)


@pytest.mark.parametrize("kind", HEALTHY)
def test_a_healthy_file_has_no_finding(kind, tmp_path):
    """What is right is called clean; only absence by nature and names that cannot be known are explained."""
    make, explained = HEALTHY[kind]
    diagnosis = diagnosed(save(tmp_path / "file.pt", make()))
    assert codes(diagnosis) == explained, str(diagnosis)
    assert diagnosis.ok
    assert {"values", "checksums", "hyperparameters"} <= set(diagnosis.checked)


def test_our_own_checkpoint_is_clean(tmp_path):
    """What optstate saved has no finding at all."""
    model, optimizer = trained()
    optstate.save(tmp_path / "ck", model=model, optimizer=optimizer, step=3)
    diagnosis = diagnosed(tmp_path / "ck")
    assert (len(diagnosis), diagnosis.ok, diagnosis.uninspected) == (0, True, ())


def test_two_healthy_files_of_one_run_differ_in_nothing_that_matters(tmp_path):
    """A run that went on, its learning rate scheduled, has no finding, whichever file is named first."""
    earlier = save(tmp_path / "1.pt", scheduled(halving))
    later = save(tmp_path / "2.pt", scheduled(halving) | {"optimizer": adamw(lr=0.1, steps=4)["optimizer"], "step": 4})
    for case in ((earlier, later), (later, earlier)):
        assert codes(diagnosed(case)) <= {"M405", "M406"}  # of the one that was put together here


def test_findings_name_every_parameter_and_the_gravest_come_first(tmp_path):
    """A program finds all names in `parameters`, whatever the sentence elides."""
    saved = contents(*trained(model=torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(9)))))
    for entry in entries(saved):
        entry["exp_avg"].zero_()
    entries(saved)[0]["exp_avg_sq"][0] = float("nan")
    diagnosis = diagnosed(save(tmp_path / "file.pt", saved))
    first, second = diagnosis
    assert (first.code, first.parameters) == ("M301", ("0.weight",))
    assert second.code == "M320"
    assert len(second.parameters) == 18
    assert "and 13 more" in second.evidence


# --- what could not be looked at ---------------------------------------------------------------------------


def test_a_damaged_tensor_is_named_and_the_rest_is_judged(tmp_path):
    """One flipped bit ends neither the diagnosis nor in a clean verdict."""
    saved = adamw()
    entries(saved)[0]["exp_avg_sq"].neg_()
    path = one_bit_flipped(tmp_path)
    diagnosis = diagnosed(path)
    assert codes(diagnosis) == {"M512"}
    assert len(diagnosis.uninspected) == 1
    assert not diagnosis.ok
    assert "values" not in diagnosis.checked
    assert "not clean: a part was not inspected" in str(diagnosis)


def test_headers_alone_give_no_verdict_on_values(tmp_path):
    """Without values nothing is read, nothing about values is ticked off, and the page says so."""
    saved = adamw()
    entries(saved)[0]["exp_avg_sq"].neg_()
    diagnosis = diagnosed(save(tmp_path / "file.pt", saved), values=False)
    assert (len(diagnosis), diagnosis.uninspected) == (0, ())
    assert not diagnosis.ok
    assert not {"values", "checksums"} & set(diagnosis.checked)
    assert "left out: the values of tensors" in str(diagnosis)


def nothing(path: Path, **facts: object) -> Checkpoint:
    """A checkpoint that holds nothing but what is said."""
    return Checkpoint(path, "made", None, OptimizerState(FrozenSource([], {})), **facts)


def test_parts_that_a_reader_left_are_never_clean(tmp_path):
    """What was not read, and what could not be placed, is listed and keeps the verdict open."""
    checkpoint = nothing(tmp_path, unread=("shard 3: missing",), unplaced={"state[7].exp_avg": 1.0})
    diagnosis = diagnose_case(Case(checkpoint=checkpoint))
    assert diagnosis.uninspected == (
        "shard 3: missing",
        "1 piece of optimizer state that could not be placed: state[7].exp_avg",
    )
    assert not diagnosis.ok
    many = nothing(tmp_path, unread=tuple(f"shard {number}" for number in range(SHOWN + 5)))
    assert "5 more" in str(diagnose_case(Case(checkpoint=many)))


def test_a_clue_of_the_reader_stands_for_the_rule_of_its_code(tmp_path):
    """What the layout knows is told once, with its own fix; the general rule keeps silent."""
    clue = Clue("M103", "the writer leaves the optimizer out of its best files", "take last.pt")
    (found,) = diagnose_case(Case(checkpoint=nothing(tmp_path, clues=(clue,))))
    assert found == Finding("M103", clue.evidence, fix="take last.pt")


def test_a_rule_that_fails_to_read_is_told_and_the_others_are_asked(tmp_path):
    """An unreadable part ends one question; what it found before is kept."""

    def asks(_: Case) -> object:
        yield Finding("M301", "seen before")
        raise Damaged("it is cut short", where="file.pt")

    rules = [
        Rule(("M301",), "file", asks, "values"),
        Rule(("M317",), "file", lambda _: [Finding("M317", "seen after")], "signs"),
        Rule(("M106",), "live", lambda _: [Finding("M106", "never asked")], "memory"),
    ]
    diagnosis = diagnose_case(Case(checkpoint=nothing(tmp_path)), rules=rules)
    assert [finding.code for finding in diagnosis] == ["M301", "M317"]
    assert diagnosis.uninspected == ("values: it is cut short · file.pt",)
    assert diagnosis.checked == ()


def test_nothing_is_ticked_off_that_was_not_there(tmp_path):
    """Weights alone: no tick for slots, steps or groups."""
    diagnosis = diagnosed(save(tmp_path / "file.pt", net().state_dict()))
    assert codes(diagnosis) == {"M103"}
    assert set(diagnosis.checked) == {"values", "checksums"}


def test_a_file_without_checksums_is_not_said_to_be_checked(tmp_path):
    """The older layout of torch holds none: no tick, and a note that says so."""
    torch.save(adamw(), tmp_path / "file.pt", _use_new_zipfile_serialization=False)
    diagnosis = diagnosed(tmp_path / "file.pt")
    assert diagnosis.ok
    assert "checksums" not in diagnosis.checked
    assert "values" in diagnosis.checked
    assert "damage to values would not show" in str(diagnosis).replace("\n  ", " ")


def test_a_case_without_anything_is_refused():
    """A diagnosis of nothing is a fault of the program that asks."""
    with pytest.raises(ValueError, match="without anything to diagnose"):
        diagnose_case(Case())


# --- the pass over the values ------------------------------------------------------------------------------


def test_values_are_read_once_and_progress_is_told(tmp_path):
    """The last word of the progress is the number of all bytes; every tensor of state and model counts once."""
    saved = adamw()
    seen: list[tuple[int, int]] = []
    case = Case(checkpoint=open_checkpoint(save(tmp_path / "file.pt", saved)))
    diagnose_case(case, progress=lambda done, total: seen.append((done, total)))
    tensors = [*saved["model"].values(), *(slot for entry in entries(saved) for slot in entry.values())]
    expected = sum(tensor.nbytes for tensor in tensors)
    assert seen[-1] == (expected, expected)


def test_memory_is_bounded_whatever_the_size(tmp_path):
    """64 MB of moments are judged in a few MB."""
    weight = torch.nn.Linear(4096, 2048, bias=False)
    optimizer = torch.optim.SGD(weight.named_parameters(), lr=0.1, momentum=0.9)
    weight.weight.grad = torch.ones_like(weight.weight)
    optimizer.step()
    case = Case(checkpoint=open_checkpoint(save(tmp_path / "file.pt", contents(weight, optimizer, at=1))))
    diagnose_case(case, values=False)  # what is imported on the way is not counted
    tracemalloc.start()
    diagnose_case(case)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_000_000


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "int64", "uint8", "bool", "complex64"])
def test_a_measure_counts_what_numpy_counts(dtype):
    """Ends, zeros, negatives and what is not finite, in any element type and any blocks."""
    import ml_dtypes

    values = np.array([0, 1, 2, 0, 3, 7, 1, 0, 5], np.float64)
    if dtype in ("float16", "float32", "float64", "bfloat16"):
        values[[1, 4]] = [-2, np.nan]
    array = values.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    counter = Counter()
    for block in np.array_split(array, 4):
        counter.add(block)
    measure = counter.measure
    wide = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    assert (measure.elements, measure.nonfinite, measure.zeros, measure.negative, measure.smallest, measure.largest) == (
        9, 9 - finite.size, np.count_nonzero(wide == 0), np.count_nonzero(wide < 0), finite.min(), finite.max(),
    )  # fmt: skip
    whole = Counter()
    whole.add(array)
    assert whole.measure.digest == measure.digest


def test_blocks_of_different_lengths_are_laid_side_by_side():
    """Each element meets its own, wherever either tensor is cut."""
    values = np.arange(10)
    pairs = list(side_by_side(iter(np.split(values, [3, 4])), iter(np.split(values, [1, 7, 9]))))
    assert all((one == other).all() for one, other in pairs)
    assert np.concatenate([one for one, _ in pairs]).tolist() == values.tolist()
