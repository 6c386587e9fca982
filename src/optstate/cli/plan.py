"""`optstate plan`: what restoring a checkpoint into a program would do, without doing it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optstate.cli.model_option import Built, built, model_option
from optstate.cli.terminal import Progressing, debug_option, hint, json_option, quoted, say, say_json, terminal_width
from optstate.errors import OptstateError
from optstate.formats.checkpoint import Checkpoint
from optstate.formats.opening import open_checkpoint
from optstate.resume.policy import Policy

if TYPE_CHECKING:
    from optstate.resume.plan import RestorePlan

EXACT, NOT_EXACT, CANNOT = 0, 1, 2


@click.command(
    epilog="""\b
Exit codes:
  0  exact: everything in the checkpoint comes back, bit for bit
  1  it can be restored, and something is not exact; the plan says what
  2  it cannot: the plan has faults, the checkpoint or the policy cannot be read, or
     the command line is wrong

\b
What FUNCTION of --model returns is what is restored into: a model, (model, optimizer),
(model, optimizer, scheduler), or a dict such as {"model": model, "optimizer": optimizer,
"scheduler": scheduler, "loader": loader} with further objects by the names that they
were saved by. A random state in the checkpoint counts as restored, as with rng=True.

\b
A policy is a TOML file with the fields of optstate.Policy, such as
  preset = "finetune"        # strict (the default), finetune, new_data, weights_only
  shape = "pad"
  [rename]
  "encoder." = "backbone."
  [hyperparameters]
  lr = "live"

\b
Examples:
  optstate plan runs/a/step-420 --model train.py:build
  optstate plan runs/a/step-420 --model train.py:build --policy policy.toml
  optstate plan checkpoint.pt --model train.py:build --all
  optstate plan runs/a/step-420 --model train.py:build --json | python -m json.tool"""
)
@click.argument("file", metavar="CKPT", type=click.Path(path_type=Path))
@model_option
@click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A TOML file that says what may differ; without, everything must agree.",
)
@click.option("--all", "every_row", is_flag=True, help="Every parameter, not only what is not exact.")
@json_option
@debug_option
def command(*, file: Path, factory: str | None, policy_file: Path | None, every_row: bool, as_json: bool) -> int:
    """Show what restoring CKPT into your program would do, by parameter and slot, without doing it.

    CKPT is any checkpoint that `optstate show` opens. The same in Python is `optstate.plan(CKPT, model=model,
    optimizer=optimizer)`, whose `apply()` then does it.
    """
    checkpoint = open_checkpoint(file)
    if factory is None:
        raise OptstateError(
            "a plan needs the program that the checkpoint is restored into",
            expected="--model FILE:FUNCTION, such as --model train.py:build",
        )
    policy = Policy() if policy_file is None else Policy.load(policy_file)
    made = built(factory)
    with Progressing("verifying") as progress, redirect_stdout(sys.stderr):  # objects of the program may print
        plan = _planned(checkpoint, made, policy, progress)
    if as_json:
        say_json(plan.document())
    else:
        say(plan.table(None).text(terminal_width()) if every_row else plan.text(terminal_width()))
        _next(plan, f"optstate plan {quoted(file)} --model {quoted(factory)}", policy_file, every_row=every_row)
    return CANNOT if plan.faults else EXACT if plan.exact else NOT_EXACT


def _planned(checkpoint: Checkpoint, made: Built, policy: Policy, progress: Progressing) -> RestorePlan:
    from optstate.resume.plan import live_side, planned
    from optstate.store.objects import RNG

    live = live_side(made.model, made.optimizer, _named(checkpoint, made), RNG in checkpoint.objects)
    return planned(checkpoint, live, policy, progress.at)


def _named(checkpoint: Checkpoint, made: Built) -> dict[str, Any]:
    """The objects of the program by their names; a scheduler without one by that of the only saved one of its class."""
    from optstate.optimizers.registry import qualified_name

    objects = dict(made.objects)
    if made.scheduler is not None and made.scheduler not in objects.values():
        mine = qualified_name(type(made.scheduler))
        names = [name for name, theirs in checkpoint.object_classes.items() if theirs == mine]
        objects[names[0] if len(names) == 1 else "scheduler"] = made.scheduler
    return objects


def _next(plan: RestorePlan, command_line: str, policy_file: Path | None, *, every_row: bool) -> None:
    """The next useful command."""
    if plan.faults and policy_file is None:
        hint(f"{command_line} --policy policy.toml   with what the plan says of policies; see --help")
    elif not plan.faults and not every_row:
        hint(f"{command_line} --all   every parameter")
