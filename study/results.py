"""The losses of all runs, as JSON beside the page that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from study.runs import Key

SCHEMA = "optstate.study/1"

Losses = Mapping[int, float]
"""Held-out loss by steps after the cut."""

Results = Mapping[Key, Losses]
"""Every run."""


def read(path: Path) -> dict[Key, Losses]:
    """What `write` wrote; nothing where there is no file."""
    if not path.exists():
        return {}
    document = json.loads(path.read_text("utf-8"))
    return dict(_runs(document["looks"], document["runs"]))


def _runs(looks: list[int], runs: Mapping[str, list[float]]) -> Iterator[tuple[Key, Losses]]:
    for name, losses in runs.items():
        task, optimizer, seed, arm = name.split("/")
        yield Key(task, optimizer, int(seed), arm), dict(zip(looks, losses, strict=True))


def write(path: Path, results: Results) -> None:
    """All runs, a line each, so that a change of one is a change of one line."""
    looks = list(next(iter(results.values())))
    lines = [
        f"{json.dumps('/'.join(map(str, key)))}: {json.dumps([round(loss, 5) for loss in losses.values()])}"
        for key, losses in sorted(results.items())
    ]
    runs = ",\n  ".join(lines)
    text = f'{{\n "schema": "{SCHEMA}",\n "looks": {looks},\n "runs": {{\n  {runs}\n }}\n}}\n'
    path.write_text(text, encoding="utf-8")
