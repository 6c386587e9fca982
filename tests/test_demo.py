"""The demo: a run that is killed and resumed is the run that was not, and every other way to resume is caught."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from demo import chart
from demo.__main__ import begin
from demo.children import ChildFailed, Job, run_jobs
from demo.compare import Moment, first_difference, outcome, prove
from demo.report import RESUMED, Story, html_page, text_table
from demo.settings import QUICK, USUAL_WAYS

ROOT = Path(__file__).parents[1]
DEMO = [sys.executable, "-m", "demo", "--quick"]


def start(folder, *arguments, **options):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    return subprocess.Popen(
        [*DEMO, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, **options
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def nobody_holds_the_terminal(screen):
    """Whether every process that could write to a terminal has ended."""
    os.set_blocking(screen, False)
    try:
        while os.read(screen, 4096):
            pass
    except OSError as error:  # EIO: no writer is left; EAGAIN: one is, and has nothing to say just now
        return error.errno == errno.EIO
    return True


class Page(HTMLParser):
    """What the tests ask of a page: its tags, its references, its text."""

    VOID = {"meta", "line", "path", "br"}

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.references, self.words = [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in {"href", "src", "xlink:href", "action"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


# --- the whole of it ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_demo_is_exact_after_an_interrupted_one(tmp_path):
    """Ctrl-C in the middle leaves no process and no file; the next demo in the same folder is EXACT, with its page."""
    screen, terminal = pty.openpty()
    interrupted = start(tmp_path, stderr=terminal)
    os.close(terminal)
    while b": step 2 of" not in os.read(screen, 4096):  # the runs are under way, and the terminal shows it
        pass
    interrupted.send_signal(signal.SIGINT)
    code, _ = finish(interrupted)
    assert code == 130
    assert nobody_holds_the_terminal(screen)
    os.close(screen)
    assert list(tmp_path.iterdir()) == []

    code, output = finish(start(tmp_path, stderr=subprocess.PIPE))
    assert code == 0
    assert "The kill left half-written: .step-15.tmp-" in output
    assert "restore demo-runs/killed/step-12 · step 12" in output
    flowing = " ".join(output.split())
    assert "\nEXACT: 96 tensors" in output
    assert "at 19 points: as restored after step 12, and after each of the 18 steps that followed" in flowing
    for way in USUAL_WAYS:
        assert re.search(rf"^{way} +\d\.\d{{4}}", output, re.MULTILINE)
    assert "missing: 72 tensors, first blocks.0.attention.key.weight/exp_avg" in output  # every slot
    assert "different: 8 tensors" in output  # two layers, query and key, two moments
    assert "different: 48 tensors" in output  # all first and second moments
    assert "different: 24 tensors" in output  # all first moments

    report = tmp_path / "demo-report.html"
    assert report.stat().st_size < 100_000
    source = report.read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    assert page.references == []
    assert not re.search(r"http|url\(|@import", source)
    assert "script" not in page.tags
    assert page.tags.count("title") == 3  # the page's own, and one for each of the two charts
    assert "EXACT 96 tensors" in page.text


@pytest.mark.slow
def test_one_flipped_bit_is_found(tmp_path):
    """Negative control: one bit of one slot changed after the resume is reported by name, and the exit code is 1."""
    slot = "blocks.1.mlp.0.weight/exp_avg_sq"
    code, output = finish(start(tmp_path, "--flip", slot, stderr=subprocess.PIPE))
    assert code == 1
    assert f"NOT EXACT: First difference: {slot} after step 12." in " ".join(output.split())
    assert "EXACT: 96 tensors" not in output
    assert f"different: 1 tensor, first {slot}" in output
    assert f"First difference: {slot} after step 12." in Page((tmp_path / "demo-report.html").read_text("utf-8")).text


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, monkeypatch):
    """The demo removes what demos made, and refuses to remove anything else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-runs" / "killed" / "step-6").mkdir(parents=True)
    begin()
    assert list((tmp_path / "demo-runs").iterdir()) == []
    (tmp_path / "demo-runs" / "thesis.txt").write_text("ten years of work")
    with pytest.raises(FileExistsError, match="demo-runs/ holds thesis.txt, which this demo did not make"):
        begin()
    assert (tmp_path / "demo-runs" / "thesis.txt").exists()


def test_a_run_that_fails_is_named(capfd):
    """A child that ends in another way than it should stops the demo; its own message is on stderr."""
    with pytest.raises(ChildFailed, match="the run 'odd' ended with 1 instead of 0"):
        run_jobs([Job("odd", ["demo.nothing"])])
    assert "No module named demo.nothing" in capfd.readouterr().err


# --- comparing ------------------------------------------------------------------------------------------------


def moments(*digests, loss=1.0):
    return {step: Moment(loss + step, value) for step, value in enumerate(digests)}


def test_the_earliest_difference_is_named():
    """What is reported is the first step that differs, and everything that differs there."""
    reference = moments({"w": "a", "w/m": "b"}, {"w": "c", "w/m": "d"}, {"w": "e", "w/m": "f"})
    other = moments({"w": "a", "w/m": "b"}, {"w": "c", "w/m": "!"}, {"w": "!", "w/m": "!"})
    assert first_difference(reference, other) == ["w/m after step 1"]
    assert first_difference(reference, reference) == []


def test_a_missing_slot_is_a_difference():
    """Absence is never taken for agreement, on either side."""
    reference, other = moments({"w": "a", "w/m": "b"}), moments({"w": "a"})
    assert first_difference(reference, other) == ["w/m after step 0"]
    assert first_difference(other, reference) == ["w/m after step 0"]
    assert outcome("weights-only", reference, other).missing == 1


def test_a_loss_differs_by_its_last_bit():
    """Losses are compared as they are, not as they print."""
    reference, other = {1: Moment(0.1 + 0.2, {})}, {1: Moment(0.3, {})}
    assert first_difference(reference, other) == ["the loss, 0.3 instead of 0.30000000000000004, after step 1"]


def test_a_proof_is_whole(tmp_path):
    """Equal logs are no proof where the last checkpoints differ in a bit, or a step or a tensor was not compared."""
    import torch

    import optstate

    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    optstate.save(tmp_path / "a", model=model, optimizer=optimizer)
    optimizer.state[model.weight]["exp_avg"].view(torch.int32)[0, 0] ^= 1
    optstate.save(tmp_path / "b", model=model, optimizer=optimizer)

    log = moments({"weight": "a", ":rng torch": "b"})
    same = prove(log, log, tmp_path / "a", tmp_path / "a")
    assert same.exact
    assert (same.steps, same.tensors, same.others, same.saved_tensors) == (1, 1, 1, 8)
    other = prove(log, log, tmp_path / "a", tmp_path / "b")
    assert other.differences == ("weight/exp_avg in the two last checkpoints",)
    shorter = prove(log | {1: log[0]}, log, tmp_path / "a", tmp_path / "a")
    assert shorter.differences == ("step 1, which is not in the log",)
    unsaved = moments({"weight": "a", "weight/other": "b"})
    assert not prove(unsaved, unsaved, tmp_path / "a", tmp_path / "a").exact


def test_newest_intact_checkpoint_is_found(tmp_path):
    """Neither a damaged newer checkpoint, nor a half-written one, nor a stray file is resumed from."""
    import torch

    import optstate
    from demo.train import newest_intact

    model = torch.nn.Linear(3, 2)
    for step in (90, 100, 110):
        optstate.save(tmp_path / f"step-{step}", model=model, step=step)
    weights = next((tmp_path / "step-110").glob("*.safetensors"))
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    (tmp_path / "step-120").mkdir()
    (tmp_path / "step-130").write_text("")
    (tmp_path / ".step-140.tmp-0").mkdir()
    assert newest_intact(tmp_path).name == "step-100"
    with pytest.raises(SystemExit, match="holds no intact checkpoint"):
        newest_intact(tmp_path / "step-120")


# --- the page -------------------------------------------------------------------------------------------------


def story(plan="exact"):
    steps = range(12, 31)
    reference = {step: Moment(3.0 - step / 30 + step % 2 / 10, {"w": "a"}) for step in steps}
    other = {step: Moment(moment.loss + 1e-5, {"w": "b"}) for step, moment in reference.items()}
    outcomes = [outcome(RESUMED, reference, reference), *(outcome(way, reference, other) for way in USUAL_WAYS)]
    proof = prove_without_files(reference)
    return Story(QUICK, 34_112, proof, reference, outcomes, plan, [".step-15.tmp-0"])


def prove_without_files(reference):
    from demo.compare import Proof

    return Proof(min(reference), max(reference), 1, 0, 1, 4, ())


def test_a_foreign_string_cannot_break_out_of_the_page():
    """Names come from files; on the page they are text."""
    hostile = "</pre><script>alert(1)</script><img src=http://example.org>"
    page = Page(html_page(story(plan=hostile)))
    assert hostile in page.text
    assert page.references == []
    assert "script" not in page.tags


def test_a_small_difference_is_in_the_table_and_not_in_the_curve():
    """The table says what the curve hides: a difference below the loss's own changes counts as unseen."""
    table = text_table(story())
    assert re.search(r"^bf16-moments .* 1\.0e-05 +no$", table, re.MULTILINE)
    assert re.search(r"^optstate .* 0 +–$", table, re.MULTILINE)
    assert max(map(len, table.splitlines())) <= 90


def test_zero_has_a_place_on_the_log_axis():
    """An exact run is the lowest line of the chart of differences, and everything else is above it."""
    drawn = chart.gap_chart({"exact": {1: 0.0, 2: 0.0}, "near": {1: 1e-6, 2: 1e-3}}, {0.1: "jitter"})
    exact, near = ([float(y) for y in re.findall(r",([\d.]+)", drawn.lines[name])] for name in ("exact", "near"))
    assert exact == [chart.BOTTOM, chart.BOTTOM]
    assert chart.TOP < near[1] < near[0] < chart.BOTTOM
    assert drawn.levels[0].at < near[1]
    assert drawn.y_ticks[0].label == "0"


def test_ticks_of_steps_are_round():
    """The axis counts in ones, twos, fives and tens, and stays in its frame."""
    ticks = chart.loss_chart({"run": {1: 2.0, 240: 1.2}}, {}).x_ticks
    assert [tick.label for tick in ticks] == ["50", "100", "150", "200"]
    assert all(chart.LEFT <= tick.at <= chart.RIGHT for tick in ticks)
