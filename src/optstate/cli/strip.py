"""`optstate strip`: old checkpoints of a run without their optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optstate.cli.terminal import debug_option, hint, json_option, quoted, say, say_json
from optstate.store.strip import StripReport, strip
from optstate.text import safe_text

SCHEMA = "optstate.strip/1"
LEFT = 1


@click.command(
    epilog="""\b
What is stripped:
  directories of optstate, files of torch.save, folders of the Hugging Face Trainer, Accelerate, DCP, FSDP and DeepSpeed;
  all but the optimizer stays, in a copy beside it: step-100.weights, epoch=1.weights.ckpt, checkpoint-100.weights

\b
Exit codes:
  0  done; with --dry-run, could be done
  1  some that should have been stripped were left alone; each is named, with the reason
  2  the folder cannot be read or is in use, or the command line is wrong

\b
Examples:
  optstate strip runs/ --dry-run
  optstate strip runs/ --keep-last 2
  optstate strip runs/a --json"""
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--keep-last", default=2, show_default=True, help="How many of each run keep their optimizer.")
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would be done.")
@json_option
@debug_option
def command(*, directory: Path, keep_last: int, dry_run: bool, as_json: bool) -> int:
    """Strip the optimizer from old checkpoints in DIR and below it, so that they take a third of the space.

    The newest of each run stay as they are, told by the step that they state, and are read whole first. Each of the others
    is copied without its optimizer, the copy read back and compared, and only then the checkpoint is removed.
    """
    report = strip(directory, keep_last=keep_last, dry_run=dry_run)
    if as_json:
        say_json(strip_document(report))
    else:
        say(str(report))
        if dry_run and report.nbytes:
            hint(f"optstate strip {quoted(directory)} --keep-last {keep_last}   does it")
    return LEFT if report.left else 0


def strip_document(report: StripReport) -> dict[str, Any]:
    """A report in JSON's own types, as docs/schema says."""
    return {
        "schema": SCHEMA,
        "directory": safe_text(report.directory),
        "dry_run": report.dry_run,
        "bytes": report.nbytes,
        "checkpoints": [
            {
                "path": safe_text(item.path, 4096),
                "step": item.step,
                "fate": item.fate,
                "optimizer_bytes": item.nbytes,
                "copy": None if item.copy is None else safe_text(item.copy, 4096),
                "why": item.why or None,
            }
            for item in report.items
        ],
    }
