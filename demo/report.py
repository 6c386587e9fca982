"""What the demo found, as data, and its two renderings: a table for the terminal and one offline page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demo import chart
from demo.compare import Log, Outcome, Proof, jitter
from demo.settings import USUAL_WAYS, Settings
from optstate.text import count

RESUMED = "optstate"
UNINTERRUPTED = "uninterrupted"


@dataclass(frozen=True, slots=True)
class Story:
    """Everything that happened. `outcomes` are the ways to resume: ours first, then the usual ones."""

    settings: Settings
    parameters: int  # numbers that the model learns
    proof: Proof
    reference: Log
    outcomes: Sequence[Outcome]
    plan: str
    leftovers: Sequence[str]  # what the kill left behind, half-written

    @property
    def losses(self) -> Mapping[int, float]:
        """The uninterrupted run's loss by step."""
        return {step: moment.loss for step, moment in self.reference.items() if moment.loss is not None}

    @property
    def jitter(self) -> float:
        """The median change of the uninterrupted loss from one step to the next, over the steps compared."""
        return jitter([loss for step, loss in self.losses.items() if step > self.proof.first_step])

    @property
    def offsets(self) -> list[int]:
        """The steps after the resume whose losses a table shows: the next ones, and the last."""
        last = self.proof.steps - 1
        return [offset for offset in (1, 2, 5, 20) if offset < last] + [last]

    @property
    def succeeded(self) -> bool:
        """Whether ours is exact and each of the usual ways was caught."""
        return self.proof.exact and all(outcome.wrong for outcome in self.outcomes if outcome.name != RESUMED)


def losses_at(story: Story, losses: Mapping[int, float]) -> list[str]:
    """One run's losses at the offsets of the table."""
    return [f"{losses[story.proof.first_step + offset]:.4f}" for offset in story.offsets]


def gap_text(outcome: Outcome) -> str:
    """The largest difference of a way to resume."""
    return f"{outcome.largest:.1e}" if outcome.largest else "0"


def seen_text(story: Story, outcome: Outcome) -> str:
    """Whether a look at the loss curve would have told; a dash where there is nothing to see."""
    if not outcome.wrong:
        return "–"
    return "yes" if outcome.seen(story.jitter) else "no"


def wrong_text(outcome: Outcome) -> str:
    """Which state differs right after the resume."""
    if not outcome.wrong:
        return "no state differs"
    what = "missing" if outcome.missing == len(outcome.wrong) else "different"
    return f"{what}: {count(len(outcome.wrong), 'tensor')}, first {outcome.wrong[0]}"


def text_table(story: Story) -> str:
    """The table for a terminal, 80 columns wide: a line of numbers for each way, and one of words beneath."""
    header = ["loss after resuming", *(f"+{offset}" for offset in story.offsets), "largest", "seen?"]
    lines = [_row(header), _row([UNINTERRUPTED, *losses_at(story, story.losses), "", ""])]
    for outcome in story.outcomes:
        numbers = losses_at(story, outcome.losses)
        lines.append(_row([outcome.name, *numbers, gap_text(outcome), seen_text(story, outcome)]))
        lines += [f"  {text}" for text in (USUAL_WAYS.get(outcome.name), wrong_text(outcome)) if text]
    lines += [
        "",
        "largest: the largest difference to the uninterrupted loss. seen?: is it more",
        f"than the {story.jitter:.2f} that the loss changes by in a step anyway (median)?",
        "The loss at +1 comes before the first update: it is right whatever was lost.",
    ]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return (f"{cells[0]:<20}" + "".join(f"{cell:>8}" for cell in cells[1:])).rstrip()


def html_page(story: Story) -> str:
    """The page: one file, inline SVG, no script, nothing from elsewhere."""
    start, killed = story.proof.first_step, story.settings.kill_at
    losses = {outcome.name: outcome.losses for outcome in story.outcomes} | {UNINTERRUPTED: story.losses}
    level = f"what the loss changes by from one step to the next: {story.jitter:.2f}"
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        story=story,
        usual_ways=USUAL_WAYS,
        frame=chart,
        loss_chart=chart.loss_chart(losses, {start: "resumed from", killed: "killed"}),
        gap_chart=chart.gap_chart({outcome.name: outcome.gaps for outcome in story.outcomes}, {story.jitter: level}),
        losses_at=losses_at,
        gap_text=gap_text,
        seen_text=seen_text,
        wrong_text=wrong_text,
        uninterrupted=UNINTERRUPTED,
    )
