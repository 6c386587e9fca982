"""The command line: one file per command, each a thin translation of options to one library call."""

from __future__ import annotations

from optstate.cli.app import main

__all__ = ["main"]
