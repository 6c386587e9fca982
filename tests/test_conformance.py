"""The conformance table: every optimizer of `torch.optim`, and a sample of everything else that is installed."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from optstate.proof.workers import Workers
from tests.conformance import page
from tests.conformance.known import KNOWN, reasons, surprises
from tests.conformance.row import Cell, Result, Row
from tests.conformance.special import special_rows
from tests.conformance.torch_rows import FLAGS, exported, torch_rows
from tests.conformance.trying import tried

SAMPLE, SEED = 8, 7
TORCH = torch_rows()
OTHERS = random.Random(SEED).sample([row for row in special_rows() if not row.slow], SAMPLE)


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Interpreters for all rows of this file."""
    with Workers(timeout=60, modules=["tests.conformance.trying", "ml_dtypes", "not_there"]) as them:
        yield them


@pytest.fixture(scope="module")
def exact() -> set[str]:
    """The labels of the rows of torch that came out exact; the tests of the rows fill it."""
    return set()


def label(row: Row) -> str:
    return row.label


@pytest.mark.slow
@pytest.mark.parametrize("row", TORCH, ids=label)
def test_optimizer_of_torch(row, workers, exact):
    """Saved, restored by a fresh process and stepped on, every optimizer of torch with every flag goes on bit for bit."""
    result = tried(workers, row)
    assert surprises(result) == []
    assert (result.refused is None) != ("capturable" in row.label), result.refused  # which a CPU does not take
    if result.exact:
        exact.add(row.label)


@pytest.mark.slow
def test_exact_rows_do_not_get_fewer(exact, request, capsys):
    """As many rows of torch are exact as the page says; the number is printed."""
    asked = [item for item in request.session.items if item.function is test_optimizer_of_torch]
    if len(asked) < len(TORCH):
        pytest.skip("not every row was run")
    with capsys.disabled():
        print(f" {len(exact)} of {len(TORCH)} rows of torch.optim are exact ", end="")  # noqa: T201  # it is to be seen
    assert len(exact) >= page.figures()["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("row", OTHERS, ids=label)
def test_special_training(row, workers):
    """A sample of trainings with averages, scalers, schedules, odd parameters: each comes out as the page has it."""
    assert surprises(tried(workers, row)) == []


@pytest.mark.slow
def test_loss_in_a_peer_is_told(workers):
    """The table can fail: what `torch.save` with `load_state_dict` swaps between two layers is seen, and only there."""
    (row,) = (row for row in TORCH if row.label == "AdamW foreach")
    cells = tried(workers, row, peers=True).cells
    assert cells["reordered"].verdict == cells["torch trajectory"].verdict == "holds"
    assert cells["torch reordered"].text.startswith("as restored: first.weight/exp_avg is")


@pytest.mark.slow
def test_class_that_takes_no_step_is_told(workers):
    """What cannot be tried is a row with its reason, and no row that holds."""
    result = tried(workers, Row("torch", "base", "torch.optim.Optimizer", {"defaults": {}}))
    assert result.refused is not None
    assert result.refused.startswith("train_step() failed at step 1")
    assert not result.exact


# --- the data of the table ----------------------------------------------------------------------------------


def test_every_exported_class_has_its_flags():
    """A class that is new in torch.optim has a row at once; until it has flags too, this says so."""
    assert set(exported()) == set(FLAGS)
    assert {row.optimizer.rpartition(".")[2] for row in TORCH} == set(FLAGS)


def test_labels_are_distinct():
    """A row is found by its label."""
    for rows in (TORCH, special_rows()):
        assert len({row.label for row in rows}) == len(rows)


def test_known_reasons_mean_rows():
    """A reason for a training that no longer exists is no reason."""
    labels = {row.label for row in special_rows()}
    assert {label for library, label in KNOWN if library == "training"} <= labels


ROW = Row("timm", "Adahessian")
HOLDS = {name: Cell("holds") for name in page.COLUMNS}


def test_row_that_fails_unexpectedly_is_told():
    """A cell that fails without a reason, and one that holds in spite of one, are both told."""
    failing = {**HOLDS, "edits": Cell("fails", "0.weight/exp_avg"), "trajectory": Cell("fails", "draws")}
    told = surprises(Result(ROW, failing))
    assert told[0] == "timm: Adahessian: edits: 0.weight/exp_avg"
    assert told[1].startswith("timm: Adahessian: reset: holds now, though: draws from a generator of its own")
    assert "trajectory" not in "".join(told)
    assert surprises(Result(Row("torch", "Adam"), HOLDS)) == []


def test_page_counts_what_it_shows():
    """The figures that are read back are those that were written."""
    results = [Result(Row("torch", "Adam"), HOLDS), Result(ROW, HOLDS), Result(Row("torch", "x"), refused="no | way")]
    written = page.table(results, {"torch": "2.0", "timm": "1.0"})
    assert "| torch | 2.0 | 1 | 1 | 0 | 0 | 0 |" in written
    assert {found["library"]: int(found["exact"]) for found in page._FIGURE.finditer(written)} == {
        "torch": 1,
        "timm": 1,
    }
    assert "- torch, x: no \\| way" in written
    assert reasons(ROW.library, ROW.label)["trajectory"] in written
