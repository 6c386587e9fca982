"""`optstate convert`: a checkpoint of any program in another format."""

from __future__ import annotations

from pathlib import Path

import click

from optstate.cli.model_option import Built, built, model_option, named_by
from optstate.cli.terminal import debug_option, hint, quoted, say, say_error
from optstate.errors import TargetExists, Unsaveable
from optstate.formats.opening import open_checkpoint
from optstate.state.optimizer_state import OptimizerState
from optstate.store.convert import TARGETS, Target, convert

REFUSED = 1


@click.command(
    epilog="""\b
Formats:
  optstate     a directory of optstate: everything, by name, with a digest of each tensor
  torch        a file as torch.save writes it: model, optimizer by position, step
  torch-named  the same with the optimizer by name, which optstate.restore takes
  safetensors  one file: weights, slots as <parameter>/<slot>, the rest as JSON beside them

\b
Exit codes:
  0  written, with all that was there (or with what --partial allowed to go)
  1  not written: the format cannot hold all of it, or not say it truly; each part is named
  2  A cannot be read, B cannot be written, or the command line is wrong

\b
Examples:
  optstate convert lightning.ckpt runs/a/step-420
  optstate convert runs/a/step-420 step-420.pt
  optstate convert checkpoint-420/ momentum.pt --to torch-named --model train.py:build
  optstate convert run.pt weights.safetensors --weights-only"""
)
@click.argument("source", metavar="A", type=click.Path(path_type=Path))
@click.argument("target", metavar="B", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(TARGETS), help="The format of B; by default what its suffix says.")
@click.option("--weights-only", is_flag=True, help="The model's weights and nothing else.")
@click.option("--partial", is_flag=True, help="Write although parts of A have no place in B, or cannot be read.")
@click.option("--replace", is_flag=True, help="Replace a checkpoint that is at B.")
@model_option
@debug_option
def command(
    *,
    source: Path,
    target: Path,
    to: Target | None,
    weights_only: bool,
    partial: bool,
    replace: bool,
    factory: str | None,
) -> int:
    """Write the checkpoint A, of any format that `optstate show` opens, as B, every tensor bit for bit.

    B is a directory of optstate, or a file as torch.save or safetensors write it. It appears whole or not at all.
    Neither torch nor any code of A is needed or run; --model runs yours.
    """
    checkpoint, like = open_checkpoint(source), None
    if factory is not None:
        made = built(factory)
        checkpoint, like = named_by(checkpoint, made), _order_of(made)
    try:
        done = convert(
            checkpoint, target, to=to, weights_only=weights_only, like=like, partial=partial, replace=replace
        )
    except TargetExists as error:
        if not replace:
            error.todo = "name another path, or add --replace to replace what is there"
        raise
    except Unsaveable as error:
        say_error(error, None)
        return REFUSED
    say(str(done))
    hint(f"optstate diff {quoted(source)} {quoted(target)}   holds them against each other")
    return 0


def _order_of(made: Built) -> OptimizerState | None:
    if made.optimizer is None:
        return None
    from optstate.live.view import attach

    return attach(made.optimizer, made.model)
