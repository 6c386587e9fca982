"""The bug zoo: every fault that libraries let pass is found, and the zoo notices when that is no longer so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.optim import AdamW

import optstate
from optstate.doctor.catalogue.codes import CODES
from zoo.__main__ import main
from zoo.keepers import specimens
from zoo.programs import net, trained
from zoo.specimen import NOTHING, Scene, Specimen, attempt, really, show

SLOW = {"M118", "M522", "M303", "M515", "M516"}  # they run other libraries, which take a while to import


@pytest.mark.parametrize(
    "specimen",
    [
        pytest.param(each, marks=pytest.mark.slow if each.code in SLOW else (), id=f"{each.code}-{each.title}")
        for each in specimens()
    ],
)
@pytest.mark.filterwarnings("ignore")  # what libraries say is recorded, and is what is shown
def test_specimen(specimen):
    """The library does what the zoo says, and doctor finds it, or the row says why nothing can be seen."""
    shown = show(specimen)
    if shown.skipped and specimen.needs:
        pytest.skip(shown.doctor)
    assert shown.ok, shown


def test_every_code_is_in_the_zoo():
    """No code of the catalogue is left out; what cannot be shown here has its reason."""
    assert {each.code for each in specimens()} == set(CODES)


def test_what_the_library_says_agrees_with_the_catalogue():
    """A fault that the catalogue calls late raises later, one that it calls silent is silent."""
    for code, said in (
        ("M207", "later: KeyError"),
        ("M202", NOTHING),
        ("M205", "at once: ValueError"),
        ("M407", "warning: "),
    ):
        assert all(show(each).library.startswith(said) for each in specimens([code]))


# --- the zoo itself can fail ----------------------------------------------------------------------------------


def shown(act, **more):
    """What comes of showing a program as M106."""
    return show(Specimen("M106", "made up", act, **more))


def healthy():
    """A program without fault."""
    model, optimizer = trained(AdamW)
    yield Scene(optimizer, model)


def test_missed_fault_is_told():
    """A fault that doctor does not find is a failure, with what it said instead."""
    assert (shown(healthy).ok, shown(healthy).doctor) == (False, "missed it; it says nothing")


def test_fault_that_can_be_seen_after_all_is_told():
    """A row that says that nothing can be seen fails once doctor finds it."""

    def replaced():
        model, optimizer = trained(AdamW)
        model[0] = torch.nn.Linear(4, 4, bias=False)
        yield Scene(optimizer, model)

    assert shown(replaced).ok
    assert not shown(replaced, unseen="nobody knows").ok
    assert shown(healthy, unseen="nobody knows").ok


def test_library_that_was_mended_is_told():
    """A specimen whose damage does not happen fails, so that the zoo follows the libraries."""

    def mended():
        yield from healthy()
        really(False)

    assert (shown(mended).ok, shown(mended).library) == (False, "it did not happen")


def test_words_of_a_library():
    """Warnings, errors at once and later errors are each told; a library that says nothing is quoted so."""

    def talkative():
        warnings.warn("take care\nand more", UserWarning, stacklevel=1)
        yield attempt(lambda: {}["lr"])
        yield from healthy()
        raise KeyError("betas")

    assert shown(talkative).library == "at once: KeyError: 'lr'; warning: take care; later: KeyError: 'betas'"
    assert shown(healthy).library == NOTHING


def test_specimen_runs_in_a_folder_of_its_own(tmp_path, monkeypatch):
    """What a specimen writes is gone afterwards."""
    monkeypatch.chdir(tmp_path)

    def writes():
        model = net()
        optstate.save("here", model=model, optimizer=AdamW(model.parameters()), step=1)
        yield Scene("here")

    shown(writes)
    assert list(tmp_path.iterdir()) == []


def test_missing_library_is_a_reason():
    """A specimen whose library is not installed says so, and is no failure."""
    row = shown(healthy, needs=("no_such_library",))
    assert (row.ok, row.skipped, "no_such_library is not installed" in row.doctor) == (True, True, True)


@pytest.mark.filterwarnings("ignore")
def test_table(capsys, monkeypatch):
    """`python -m zoo CODE` shows those codes, and its exit code says whether doctor found them."""
    monkeypatch.setattr("sys.argv", ["zoo", "M202", "M224", "M517"])
    assert main() == 0
    out = capsys.readouterr().out
    assert "✓  M202" in out
    assert "–  M224" in out
    assert "1 leave nothing to be seen; 1 code cannot be shown here" in out
    monkeypatch.setattr("sys.argv", ["zoo", "M999"])
    assert main() == 1
