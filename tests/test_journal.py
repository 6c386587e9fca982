"""The journal: what it says of each edit, that it prints safely, and that JSON holds all of it."""

from __future__ import annotations

import gc
import json
import re
from math import inf, isnan, nan
from pathlib import Path

import jsonschema
import msgspec
import pytest
import torch

import optstate
from optstate.cli.app import main
from optstate.formats.ours.manifest import decode_manifest, digest_of
from optstate.live.journals import journal_of
from optstate.state.journal import Journal, JournalEntry, journal_table
from tests.checkpoints import sample

ROOT = Path(__file__).parents[1]

NOON = "2026-01-02T12:00:00Z"


def entry(**fields):
    """An entry as an edit of two parameters writes it."""
    return JournalEntry(
        **{
            "verb": "scale_",
            "arguments": {"factor": 0.5},
            "step": 1200,
            "note": "after the drop",
            "selection": "encoder.*",
            "parameters": 2,
            "slots": 2,
            "elements": 40,
            "norms": {"exp_avg": (3.0, 1.5)},
            "effect": (1.0, 0.5, 1.0),
            **fields,
        }
    )


@pytest.fixture
def journal():
    """An empty journal whose clock stands still."""
    return Journal(clock=lambda: NOON)


def test_append_writes_the_time(journal):
    """An entry gets the time of its journal's clock; one that has a time keeps it."""
    assert journal.append(entry()).when == NOON
    assert journal.append(entry(when="2025-12-31T00:00:00Z")).when == "2025-12-31T00:00:00Z"
    assert [each.when for each in journal] == [NOON, "2025-12-31T00:00:00Z"]


def test_clock_is_utc_in_whole_seconds():
    """Without another clock the time is that of the machine, in UTC."""
    when = Journal().append(entry()).when
    assert len(when) == len(NOON)
    assert when.endswith("Z")


def test_amend_writes_in_place(journal):
    """An entry that is taken back stays where it is, marked; of two alike only the one that was meant."""
    first, second = journal.append(entry()), journal.append(entry())
    assert first == second
    amended = journal.amend(second, undone=True, times=3)
    assert [each.undone for each in journal] == [False, True]
    assert journal[1] is amended
    with pytest.raises(ValueError, match="not in the journal"):
        journal.amend(second, undone=False)


def test_it_is_a_sequence(journal):
    """A journal has a length, an order and slices, as a list has."""
    entries = [journal.append(entry(note=str(number))) for number in range(3)]
    assert len(journal) == 3
    assert list(journal) == entries
    assert journal[-1] is entries[2]
    assert journal[1:] == entries[1:]
    assert journal.index(entries[1]) == 1


def test_prints_as_a_table(journal):
    """One line for each edit, with all that is known of it, and no column for what nobody knows."""
    journal.append(entry())
    journal.append(entry(verb="zero_", arguments={}, note="", norms=None, effect=None, undone=True, backup=False))
    journal.append(
        entry(
            verb="momentum",
            arguments={"curve": "linear(0, 1, 9)"},
            note="",
            norms=None,
            effect=None,
            times=300,
            forced=True,
        )
    )
    title, _, *rows = str(journal).split("\n")
    header, *lines = [re.split("  +", row) for row in rows]
    touched = "2 parameters, 2 slots, 40 elements"
    assert title == "journal: 3 entries"
    assert header == ["WHEN", "STEP", "EDIT", "SELECTION", "TOUCHED", "NORM", "NEXT UPDATE", "BESIDES", "NOTE"]
    assert lines == [
        [NOON, "1,200", "scale_(factor=0.5)", "encoder.*", touched, "exp_avg 3 → 1.5", "1 → 0.5 (fresh 1)", "after the drop"],
        [NOON, "1,200", "zero_()", "encoder.*", touched, "undone, no backup"],
        [NOON, "1,200", "momentum(curve='linear(0, 1, 9)') × 300", "encoder.*", touched, "forced"],
    ]  # fmt: skip
    assert repr(journal) == str(journal)


def test_empty_journal_says_so():
    """Nothing was edited: one line."""
    assert str(Journal()) == "journal: 0 entries"
    assert "journal: 0 entries" in Journal()._repr_html_()


def test_prints_foreign_text_safely(journal):
    """A note, a name or an argument from a file cannot act on a terminal or on a page."""
    bad = "\x1b[2J<script>"
    journal.append(
        entry(note=bad, selection=bad, verb=bad, optimizer=bad, arguments={bad: bad}, norms={bad: (1.0, None)})
    )
    assert "\x1b" not in str(journal)
    assert "<script>" not in journal._repr_html_()
    assert "1 → ?" in str(journal)


def test_json_holds_all_of_it(journal):
    """What `document` says can be written as JSON, and read again is the same entry, infinities included."""
    written = journal.append(
        entry(effect=(inf, -inf, None), norms={"v": (nan, 1.0)}, arguments={"min": -inf, "to": (1, [2.0])})
    )
    document = json.loads(json.dumps(journal.document(), allow_nan=False))
    assert document["schema"] == "optstate.journal/1"
    read = JournalEntry.of(document["entries"][0])
    assert read.effect == (inf, -inf, None)
    assert isnan(read.norms["v"][0])
    assert read.arguments == {"min": "-Infinity", "to": [1, [2.0]]}
    assert (read.when, read.note, read.elements) == (written.when, written.note, written.elements)


def test_journal_can_always_be_saved(journal):
    """Arguments that JSON lacks and text that Unicode lacks become text; nothing of it makes a save fail."""
    journal.append(entry(note="\udcff", arguments={"set": object(), "to": torch.Size([2]), "big": 1 << 80, "on": True}))
    document = json.loads(json.dumps(journal.document(), allow_nan=False).encode("utf-8", "strict"))
    (read,) = document["entries"]
    assert read["note"] == "\\udcff"
    assert read["arguments"]["set"].startswith("<object")
    assert (read["arguments"]["to"], read["arguments"]["big"], read["arguments"]["on"]) == ([2], str(1 << 80), True)


# --- of running optimizers ------------------------------------------------------------------------------


def sgd():
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)])


def test_optimizers_keep_their_journal():
    """The same optimizer has the same journal however often it is attached, and another one another."""
    optimizer, other = sgd(), sgd()
    assert journal_of({"": optimizer}) is journal_of({"": optimizer})
    assert journal_of({"": optimizer}) is not journal_of({"": other})


def test_optimizers_attached_together_share_one():
    """What was edited alone is in the journal of both, by its time; a journal in hand stays a true one."""
    one, two = sgd(), sgd()
    late, early = journal_of({"": one}), journal_of({"": two})
    late.append(entry(when="2026-01-02T00:00:00Z", note="late"))
    early.append(entry(when="2026-01-01T00:00:00Z", note="early"))
    both = journal_of({"one": one, "two": two})
    assert [each.note for each in both] == ["early", "late"]
    both.append(entry(note="together"))
    assert list(late) == list(early) == list(journal_of({"": two})) == list(both)
    assert len(both) == 3


def test_journal_keeps_no_optimizer_alive():
    """When an optimizer goes, its journal does not hold it."""
    from weakref import ref

    optimizer = sgd()
    journal, gone = journal_of({"": optimizer}), ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert len(journal) == 0


# --- in checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture
def trained():
    """A model and its optimizer after a step, with an entry in the journal."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    journal_of({"": optimizer}).append(entry(when=NOON, effect=(inf, 1.0, None)))
    return model, optimizer


def notes(optimizer):
    """What the journal of an optimizer tells, each entry in a word."""
    return [f"{'undone ' * each.undone}{each.note or each.verb}" for each in journal_of({"": optimizer})]


def test_save_keeps_the_journal(tmp_path, trained):
    """A checkpoint holds every entry as it was, and prints them."""
    model, optimizer = trained
    optstate.save(tmp_path / "one", model=model, optimizer=optimizer)
    opened = optstate.open(tmp_path / "one")
    assert list(opened.journal) == list(journal_of({"": optimizer}))
    assert opened.journal[0].effect == (inf, 1.0, None)


def test_checkpoint_without_optimizer_has_none(tmp_path, trained):
    """Weights alone have no journal."""
    optstate.save(tmp_path / "one", model=trained[0])
    assert len(optstate.open(tmp_path / "one").journal) == 0


@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors"])
def test_convert_keeps_the_journal(tmp_path, trained, suffix):
    """Every format that a checkpoint can be written in gives the journal back."""
    model, optimizer = trained
    optstate.save(tmp_path / "one", model=model, optimizer=optimizer)
    optstate.convert(tmp_path / "one", tmp_path / f"two{suffix}")
    opened = optstate.open(tmp_path / f"two{suffix}")
    assert list(opened.journal) == list(journal_of({"": optimizer}))
    assert "journal" not in opened.objects
    weights = tmp_path / f"weights{suffix}"
    optstate.convert(tmp_path / "one", weights, weights_only=True)
    assert len(optstate.open(weights).journal) == 0


def test_an_object_called_journal_stays_one(tmp_path, trained):
    """What a program keeps under that name is its own, also where it looks nearly like ours."""
    model, optimizer = trained
    mine = {"schema": "optstate.journal/1", "entries": [{"verb": 3}]}
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "journal": mine}, tmp_path / "a.pt")
    opened = optstate.open(tmp_path / "a.pt")
    assert opened.objects["journal"] == mine
    assert len(opened.journal) == 0


def test_restore_goes_on_from_the_saved_journal(tmp_path, trained):
    """In a new process the journal of the checkpoint comes first, then the restore; the next save holds both."""
    model, optimizer = trained
    optstate.save(tmp_path / "one", model=model, optimizer=optimizer, step=1)
    fresh = torch.optim.AdamW(model.parameters())
    optstate.restore(tmp_path / "one", model=model, optimizer=fresh)
    assert notes(fresh) == ["after the drop", "restore"]
    told = journal_of({"": fresh})[-1]
    assert (told.step, told.parameters, told.slots, told.elements) == (1, 2, 6, 18)
    assert told.arguments == {"source": str(tmp_path / "one")}
    optstate.save(tmp_path / "two", model=model, optimizer=fresh)
    assert len(optstate.open(tmp_path / "two").journal) == 2


def test_restore_takes_back_what_came_later(tmp_path, trained):
    """Restored into the optimizer that went on, what was done since the save stays in the journal, as undone."""
    model, optimizer = trained
    optstate.save(tmp_path / "one", model=model, optimizer=optimizer)
    journal = journal_of({"": optimizer})
    journal.amend(journal[0], undone=True)
    journal.append(entry(note="after the drop", when="2026-01-03T00:00:00Z"))
    optstate.restore(tmp_path / "one", model=model, optimizer=optimizer)
    assert notes(optimizer) == ["after the drop", "undone after the drop", "restore"]
    assert journal_of({"": optimizer}) is journal


def test_restore_from_elsewhere_says_so(trained):
    """A source that keeps no journal leaves the one that is there, and the restore is written into it."""
    model, optimizer = trained
    optstate.restore(optstate.named_state_dict(optimizer, model), model=model, optimizer=optimizer)
    assert notes(optimizer) == ["after the drop", "restore"]


def test_refused_restore_writes_nothing(tmp_path, trained):
    """A restore that does not happen is not in the journal."""
    model, optimizer = trained
    other = torch.nn.Linear(4, 2)
    optstate.save(tmp_path / "one", model=other, optimizer=torch.optim.AdamW(other.parameters()))
    with pytest.raises(optstate.errors.RestoreRefused):
        optstate.restore(tmp_path / "one", model=model, optimizer=optimizer)
    assert notes(optimizer) == ["after the drop"]


def test_show_tells_the_journal(tmp_path, trained, capsys):
    """`optstate show` prints every entry below the table, and as JSON all of each."""
    model, optimizer = trained
    optstate.save(tmp_path / "one", model=model, optimizer=optimizer)
    assert main(["show", str(tmp_path / "one")]) == 0
    assert "scale_(factor=0.5)" in capsys.readouterr().out
    assert main(["show", str(tmp_path / "one"), "--select", "weight"]) == 0
    assert "scale_(" not in capsys.readouterr().out
    assert main(["show", str(tmp_path / "one"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["journal"] == journal_of({"": optimizer}).document()["entries"]
    jsonschema.validate(document, json.loads((ROOT / "docs" / "schema" / "optstate-show-1.json").read_text()))


def test_manifest_with_a_bad_entry_is_refused():
    """An entry that is not as the format has it is a fault, as anything else in a manifest is."""
    body = sample(3)[0]
    raw = msgspec.json.decode(msgspec.json.encode(body))
    raw["journal"] = [{"when": NOON, "verb": "zero_", "arguments": {}, "elements": -1}]
    packed = msgspec.json.encode(raw)
    envelope = {"format": "optstate/1", "digest": digest_of(packed), "body": msgspec.Raw(packed)}
    with pytest.raises(optstate.errors.Refused, match="not as optstate/1"):
        decode_manifest(msgspec.json.encode(envelope), "manifest.json")


def test_long_journals_show_their_end(journal):
    """On a terminal the last entries are shown, and how many there are."""
    for number in range(5):
        journal.append(entry(note=f"note {number}"))
    text = journal_table(journal, 2).text()
    assert text.startswith("journal: 5 entries, the last 2\n")
    assert "note 2" not in text
    assert "note 4" in text
