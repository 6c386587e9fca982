"""The page of the study: its tables and its plots, put between the marks that stand in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from optstate.schedule.plot import svg
from study.arms import ARMS
from study.figures import Difference, differences
from study.results import Results
from study.runs import OPTIMIZERS
from study.tasks import TASKS

STEPS = (1, 3, 10, 20, 60, 150, 300)
"""Of the tables."""

FULL, COLD, REBUILT = "full restore", "cold start", "rebuild"

PLOTS: Mapping[str, tuple[str, Sequence[str]]] = {
    "study-rebuild.svg": ("loss above a full restore", (COLD, "cold start, warm-up", REBUILT, "second moment only")),
    "study-trap.svg": ("the trap", (COLD, "measured, k=10", "measured, k=30", "measured, k=100")),
}
"""File → what is drawn, and of which arms."""


def write(page: Path, results: Results) -> None:
    """Put tables into the page, and the plots beside it."""
    text = page.read_text(encoding="utf-8")
    for mark, table in _tables(results):
        begin, end = f"<!-- table {mark} -->", "<!-- end -->"
        if begin in text:
            before, _, after = text.partition(begin)
            text = f"{before}{begin}\n{table}\n{end}{after.partition(end)[2]}"
    page.write_text(text, encoding="utf-8")
    for name, (title, arms) in PLOTS.items():
        page.with_name(name).write_text(svg(dict(_panels(results, title, arms)), "steps after the cut:") + "\n")


def _tables(results: Results) -> Iterator[tuple[str, str]]:
    for task, optimizer in _settings():
        rows = {arm: differences(results, task, optimizer, arm, FULL) for arm in ARMS if arm != FULL}
        yield f"{task} {optimizer}", _table({arm: row for arm, row in rows.items() if row})
    yield "cold", _against_cold(results)


def _settings() -> list[tuple[str, str]]:
    return [(task, optimizer) for task in TASKS for optimizer in OPTIMIZERS]


def _table(rows: Mapping[str, Mapping[int, Difference]]) -> str:
    looks = [step for step in STEPS if all(step in row for row in rows.values())]
    lines = [("", *(str(step) for step in looks)), ("---", *("---:" for _ in looks))]
    lines += [(arm, *(str(row[step]) for step in looks)) for arm, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _against_cold(results: Results) -> str:
    """Where an arm's whole interval lies above or below that of a cold start, of all looks after the cut."""
    lines = [("", "worse than a cold start", "better", "worst difference", "after 20 steps, to a full restore")]
    lines.append(("---", "---", "---", "---:", "---:"))
    for task, optimizer in _settings():
        to_cold = differences(results, task, optimizer, REBUILT, COLD)
        to_full = differences(results, task, optimizer, REBUILT, FULL)
        after = {step: each for step, each in to_cold.items() if step}
        if after:
            worse = [str(step) for step, each in after.items() if each.is_worse]
            better = [str(step) for step, each in after.items() if each.mean + each.half < 0]
            worst = max(after.values(), key=lambda each: each.mean)
            last = to_full.get(20) or to_full[max(to_full)]
            lines.append(
                (f"{task}, {optimizer}", _listed(worse), f"{len(better)} of {len(after)}", str(worst), str(last))
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _listed(steps: Sequence[str]) -> str:
    return f"after {', '.join(steps)} steps" if steps else "never"


def _panels(results: Results, title: str, arms: Sequence[str]) -> Iterator[tuple[str, dict[str, list[float]]]]:
    for task, optimizer in _settings():
        found = {arm: differences(results, task, optimizer, arm, FULL) for arm in arms}
        lines = {arm: _each_step({step: each.mean for step, each in row.items()}) for arm, row in found.items() if row}
        if lines:
            yield f"{title}: {task}, {optimizer} ({TASKS[task].unit})", lines


def _each_step(curve: Mapping[int, float], last: int = 60) -> list[float]:
    """The curve at every step up to the last, straight between the looks."""
    points = [(step, value) for step, value in curve.items() if step <= last]
    found = [points[0][1]]
    for (start, low), (end, high) in pairwise(points):
        found += [low + (high - low) * (step - start) / (end - start) for step in range(start + 1, end + 1)]
    return found
