"""Proofs of a resume: exact, or the first difference by name and what explains it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from optstate.errors import ProofError
from optstate.proof.judge import flip_check
from optstate.proof.moments import Part, Run
from optstate.proof.proof import GRADES
from optstate.proof.prove import asked, prove, proven
from optstate.proof.workers import Workers
from tests import proof_cases as cases

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def workers():
    """Interpreters for all proofs of this file."""
    with Workers(timeout=60) as them:
        yield them


@pytest.fixture
def tried(workers):
    """A proof of few steps."""

    def tried(build, load=None, save=None, before=5, after=3, using="optstate"):
        return proven(workers, asked(build, before, after, save, load, using))

    return tried


@pytest.fixture(scope="module")
def schema():
    """The published schema of certificates."""
    document = json.loads((ROOT / "docs" / "schema" / "optstate-proof-1.json").read_text())
    jsonschema.Draft202012Validator.check_schema(document)
    return document


# --- exact --------------------------------------------------------------------------------------------------


def test_resume_is_exact(tried, schema):
    """What optstate saves comes back, every step that follows is the same, and the certificate says so."""
    proof = tried(cases.small, before=4, after=4)
    assert (proof.exact, proof.grade, proof.difference, proof.cause) == (True, "trajectory-exact", None, None)
    assert [check.verdict for check in proof.checks] == ["exact"] * 7
    assert "EXACT: bit-identical for 4 steps after the restore (trajectory-exact)" in str(proof)
    jsonschema.validate(proof.document(), schema)
    digests = proof.document()["digests"]
    assert digests["uninterrupted"][-4:] == digests["restored"][-4:]


def test_plain_save_of_everything_is_exact(tried):
    """Functions of the user are put to the test as ours are, and theirs are exact as well when they hold everything."""
    proof = tried(cases.full, save=cases.save, load=partial(cases.load, None))
    assert proof.exact, proof
    assert proof.way == "proof_cases.py:load"


# --- each component, left out -------------------------------------------------------------------------------

NAMED = {
    "weights": ("weights", "0.weight", None),
    "running statistics": ("buffers", "1.running_mean", None),
    "number of batches": ("buffers", "1.num_batches_tracked", None),
    "module state": ("module state", "3._extra_state", None),
    "buffer outside the state dict": ("buffers", "3.seen", None),
    "optimizer state": ("step", "0.weight/step", "M101"),
    "momentum": ("momentum", "0.weight/exp_avg", None),
    "second moment": ("second_moment", "0.weight/exp_avg_sq", "M114"),
    "maximum of it": ("max_second_moment", "0.weight/max_exp_avg_sq", "M114"),
    "step counts": ("step", "0.weight/step", "M311"),
    "hyperparameters": ("hyperparameters", "group 0/lr", "M406"),
    "names": ("momentum", "0.bias/exp_avg", "M202"),
    "scheduler": ("scheduler", "scheduler/last_epoch", None),
    "average": ("average", "average/n_averaged", None),
    "scaler": ("scaler", "scaler/scale", None),
    "own generator": ("noise", "noise/generator/state/state", None),
    "python RNG": ("python RNG", "python RNG", None),
    "numpy RNG": ("numpy RNG", "numpy RNG", None),
    "torch RNG": ("torch RNG", "torch RNG", None),
    "position in the data": ("loader", "loader/position", None),
}
"""What is left out → the component, the name and the code that the proof tells."""


def test_every_component_that_can_be_left_out_is_tried():
    """None of the ways to lose something is without its test."""
    assert set(NAMED) | {"gradients"} == set(cases.LEFT_OUT)
    assert len(NAMED) >= 14


@pytest.mark.parametrize("left_out", NAMED)
def test_what_is_left_out_is_named(tried, left_out, schema):
    """A restore that leaves one component out is not exact, and the proof names it, its first tensor and its code."""
    proof = tried(cases.full, save=cases.save, load=partial(cases.load, left_out))
    component, name, code = NAMED[left_out]
    assert not proof.exact
    assert proof.grade is None
    assert (proof.difference.after, proof.difference.component) == (0, component), proof
    assert proof.difference.name.startswith(name), proof
    assert component in proof.cause.components, proof
    assert proof.cause.code == code, proof
    jsonschema.validate(proof.document(), schema)


def test_lost_gradients_are_named(tried):
    """A program that accumulates into gradients needs them; their loss shows only in a step, and is named all the same."""
    proof = tried(partial(cases.full, accumulate=True), save=cases.save, load=partial(cases.load, "gradients"))
    assert proof.grade == "state-exact"
    assert proof.cause.components == ("gradients",)
    assert tried(partial(cases.full, accumulate=True), save=cases.save, load=partial(cases.load, None)).exact


# --- what is told of a difference ---------------------------------------------------------------------------


def test_ours_lacks_only_what_no_state_dict_has(tried):
    """Of a training with everything, optstate restores all but a buffer that its module keeps out of its state dict."""
    proof = tried(cases.full)
    assert proof.difference.among == {"buffers": 1}
    assert proof.difference.text == "3.seen is 0.0, expected 5.0"
    assert proof.cause.components == ("buffers",)


def test_usual_way_loses_the_random_states(tried):
    """`torch.save` and `load_state_dict` of everything: the next dropout mask and the next noise are others."""
    proof = tried(cases.small, using="torch")
    assert proof.grade is None
    assert proof.cause.components == ("torch RNG",)
    assert [trial.exact for trial in proof.cause.trials] == [True]
    assert ("batches", "different") in [(check.name, check.verdict) for check in proof.checks]


def test_element_is_told_with_both_values(tried):
    """Of a tensor: where it differs first, what is there and what should be, and how many elements differ."""
    proof = tried(cases.full, save=cases.save, load=partial(cases.load, "momentum"))
    assert proof.difference.name == "0.weight/exp_avg"
    place, both = proof.difference.element.split("] ")
    assert place == "[0, 0"
    assert both.startswith("0.0, expected ")
    assert both.endswith("; 48 of 48 elements differ")


def test_element_of_a_later_step_is_told(tried):
    """Where the state is right and a step is not, the values are had by running up to that step once more."""
    proof = tried(cases.hidden_variable, save=cases.save_plainly, load=cases.load_plainly)
    assert (proof.grade, proof.difference.after, proof.difference.component) == ("state-exact", 1, "loss")
    proof = tried(cases.hidden_rate, save=cases.save_plainly, load=cases.load_plainly)
    assert (proof.difference.after, proof.difference.name) == (1, "weight/exp_avg")
    assert "elements differ" in proof.difference.element


def test_several_lost_components_are_told_together(tried):
    """Where none alone explains it, all of them do, and each that was tried alone is in the certificate."""
    proof = tried(cases.full, using="torch")
    assert set(proof.cause.components) == {"buffers", "python RNG", "numpy RNG", "torch RNG"}
    assert [(len(trial.components), trial.exact) for trial in proof.cause.trials] == [*[(1, False)] * 4, (4, True)]


def test_position_that_nothing_holds_is_told(tried):
    """State and random generators are right, and the batches are others: the loader's place was in a variable."""
    proof = tried(cases.hidden_position, save=cases.save_plainly, load=cases.load_plainly)
    assert (proof.grade, proof.difference.component) == ("state-exact", "batch")
    assert proof.cause.components == ("position in the data",)


def test_hidden_variable_is_told(tried):
    """Everything that Training names is right, and the loss is not: something else decides, and is said to."""
    proof = tried(cases.hidden_variable, save=cases.save_plainly, load=cases.load_plainly)
    assert proof.cause.components == ()
    assert proof.cause.text.startswith("something that Training does not name")


def test_saving_that_changes_the_run_is_told(tried, schema):
    """A save that draws a random number is a fault, though what it saves is right."""
    proof = tried(cases.small, save=cases.save_and_disturb, load=cases.load_plainly)
    assert (proof.exact, proof.grade) == (False, GRADES[2])
    assert proof.verdict == "NOT EXACT: saving changes the run that goes on; the restored one is trajectory-exact"
    assert proof.difference.component == "batch"
    jsonschema.validate(proof.document(), schema)


def test_strides_are_compared_apart(tried):
    """The same values in another order in memory are the same state; that they lie otherwise is noted."""
    proof = tried(cases.small, save=cases.save_plainly, load=cases.load_transposed)
    assert proof.exact
    assert proof.notes[0].startswith("other strides, the same values: weight/exp_avg;")


# --- the control --------------------------------------------------------------------------------------------


def test_program_that_computes_otherwise_each_time(tried, schema):
    """Nothing is claimed beyond the state where two uninterrupted runs part."""
    proof = tried(cases.another_each_time, save=cases.save_plainly, load=cases.load_plainly)
    assert (proof.exact, proof.conclusive, proof.grade) == (False, False, "state-exact")
    assert proof.verdict.startswith("NOT PROVEN: state-exact, and what follows cannot be tried")
    assert proof.checks[0].text == "two runs part at step 1: weight/exp_avg"
    jsonschema.validate(proof.document(), schema)


def test_lost_state_is_told_where_nothing_else_can_be(tried):
    """A program that is not deterministic still learns that its state did not come back."""
    proof = tried(cases.another_each_time, save=cases.save_plainly, load=cases.load_nothing)
    assert (proof.grade, proof.difference.after, proof.cause.code) == (None, 0, "M101")


def test_setting_that_makes_it_deterministic_is_found(tried):
    """The proof is made with the setting of torch under which the program computes the same twice, and says so."""
    proof = tried(cases.order_of_threads, save=cases.save_plainly, load=cases.load_plainly)
    assert proof.exact
    assert "torch.use_deterministic_algorithms(True)" in proof.notes[0]
    assert proof.environment["deterministic"] == "true"


def test_operator_that_is_not_deterministic_is_named(tried):
    """torch knows the operators that have no deterministic implementation; the one that is met is named."""
    proof = tried(cases.uses_put, save=cases.save_plainly, load=cases.load_plainly)
    assert not proof.conclusive
    assert "not deterministic here: put_" in proof.notes


# --- the control of the comparison itself -------------------------------------------------------------------

STATE = {"momentum": {"weight/exp_avg": Part("0" * 32, "float32 [3]"), "bias/exp_avg": Part("1" * 32, "float32 [3]")}}
FLIPPED = {"momentum": {**STATE["momentum"], "weight/exp_avg": Part("2" * 32, "float32 [3]")}}


def test_flipped_bit_that_is_seen():
    """One slot, and nothing else, is another."""
    assert flip_check(Run({5: STATE}, flipped=FLIPPED, flip="weight/exp_avg"), 5).verdict == "exact"


@pytest.mark.parametrize(
    "run",
    [
        Run({5: STATE}, flipped=STATE, flip="weight/exp_avg"),
        Run({5: STATE}, flipped=FLIPPED, flip="bias/exp_avg"),
        Run({5: STATE}, flipped=FLIPPED, flip="weight/exp_avg", untouched=False),
        Run({5: STATE}),
    ],
    ids=["not seen", "seen elsewhere", "not put back", "nothing flipped"],
)
def test_proof_is_void_when_a_flipped_bit_is_not_seen(run):
    """A comparison that is blind to one bit proves nothing, and no verdict is given."""
    with pytest.raises(ProofError, match="the proof is void"):
        flip_check(run, 5)


# --- bad input ----------------------------------------------------------------------------------------------

BAD = {
    cases.without_any_seed: r"without_any_seed makes another training each time it is called: weight differs",
    cases.order_of_a_set: r"order_of_a_set makes another training each time it is called: group 0/parameters",
    cases.draws_unseeded: r"python RNG is drawn from and was never seeded\n.*call random.seed\(0\)",
    cases.raises_in_build: r"raises_in_build failed\n.*proof_cases.py, line \d+\n.*no such corpus \\x1b\[2J",
    cases.raises_in_step: r"train_step\(\) failed at step 1\n.*line \d+\n.*ValueError: NaN in the data",
    cases.opens_a_file: r"opens_a_file failed\n[\s\S]*beside.txt[\s\S]*a relative path starts at the current directory",
    cases.opens_a_file_beside: r"opens_a_file_beside failed\n[\s\S]*it is beside proof_cases.py: run this in that folder",
    cases.returns_nothing: r"returned no optstate.Training\n[\s\S]*None: is there a return\?",
    cases.returns_a_tuple: r"returned no optstate.Training\n[\s\S]*a tuple",
    cases.never_gets_data: r"train_step\(\) changes nothing in 8 calls[\s\S]*does it ever get data",
    cases.runs_out_of_data: r"train_step\(\) ran out of data at step 7\n.*batches for 8 steps",
    cases.returns_no_loss: r"train_step\(\) returned no loss\n[\s\S]*a dict",
    cases.dies: r"the process of the program died in build\(\)\n.*SIGSEGV",
    cases.exits: r"exits failed\n[\s\S]*SystemExit: 3",
    cases.nothing_to_flip: r"the proof is void: there is no slot or weight",
    cases.names_an_object_badly: r"names_an_object_badly failed|an object cannot be named weights",
}


@pytest.mark.parametrize("build", BAD, ids=lambda build: build.__name__)
def test_bad_program_is_told(tried, build, tmp_path, monkeypatch):
    """What cannot be tried is said in one line, what to do in another, and a traceback is shown once."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProofError, match=BAD[build]) as caught:
        tried(build)
    notes = getattr(caught.value, "__notes__", [])
    assert sum(note.count("Traceback") for note in notes) <= 1
    assert not any("optstate/proof/child.py" in note for note in notes)
    assert ("Traceback" in "".join(notes)) == build.__name__.startswith(("raises", "opens", "runs_out", "exits"))


def test_failing_restore_is_told(tried):
    """Functions of the user that raise are told as the program is."""
    with pytest.raises(ProofError, match=r"load_and_raise failed\n[\s\S]*RuntimeError: size mismatch"):
        tried(cases.small, save=cases.save_plainly, load=cases.load_and_raise)


def test_function_that_is_not_there_is_told(tried):
    """A file without that function says which ones it has."""
    with pytest.raises(ProofError, match=r"has no function 'nothing'\n.*it defines Counting"):
        tried(f"{cases.__file__}:nothing")


def local_build():
    """What no other process can find."""

    def build():
        return cases.small()

    return build


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (local_build(), "defined in a function"),
        (lambda: None, "a lambda"),
        (7, "a int"),
        (partial(cases.full, accumulate=(each for each in "ab")), "cannot be given to a fresh process"),
        ("train.py", "names no function of a file"),
        ("nowhere.py:build", "there is no file nowhere.py to take build from"),
    ],
)
def test_function_that_nobody_finds_again(build, said):
    """A function that a fresh process could not find is refused before any is started."""
    with pytest.raises(ProofError, match=said):
        prove(build)


@pytest.mark.parametrize(("before", "after"), [(0, 5), (20, 2)])
def test_too_few_steps_are_refused(before, after):
    """Two steps prove nothing: the first loss is right even without any optimizer state."""
    with pytest.raises(ProofError, match="too few steps"):
        prove(cases.small, before, after)


def test_save_and_load_belong_together():
    """One without the other is refused."""
    with pytest.raises(ProofError, match="save and load belong together"):
        prove(cases.small, save=cases.save_plainly)


def test_hanging_program_is_ended(workers, monkeypatch):
    """A process that gives no sign of life is killed, and where it stood is told."""
    monkeypatch.setattr(workers, "timeout", 2)
    with pytest.raises(ProofError, match=r"gave no sign for 2 seconds, in build\(\)"):
        proven(workers, asked(cases.never_ends, 5, 3))
