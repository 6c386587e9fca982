"""`python tools/rare.py`: install the rarer writers and optimizers, one by one; what fails is said and stops nothing.

Their tests run under `make test-all` and skip where a writer is missing. None of them may replace torch or numpy: what
pins another torch is installed without its dependencies, beside those that it truly imports.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).parents[1]
APART = ROOT / ".rare"
"""torchvision lies apart: the index has no build of it that fits a CPU torch, and others would trip over half of one."""


@dataclass(frozen=True)
class Writer:
    """A distribution; what is installed for it, and whether its own requirements are left aside."""

    name: str
    needs: tuple[str, ...] = ()
    alone: bool = False
    options: tuple[str, ...] = ()


_OPTIMIZERS = ("pytorch_optimizer", "prodigyopt", "lion-pytorch", "adan-pytorch", "dadaptation", "came-pytorch")
"""Optimizers that need torch and nothing else."""

WRITERS = (
    Writer("schedulefree"),
    Writer("torchao"),
    Writer("bitsandbytes"),
    *(Writer(name, alone=True) for name in _OPTIMIZERS),
    Writer("mmengine"),
    Writer("deepspeed", options=("--no-build-isolation",)),  # its build looks for torch
    Writer(
        "fastai",
        ("fastcore", "fasttransform", "fastprogress", "plum-dispatch", "beartype", "pandas", "scipy", "python-fasthtml"),
        alone=True,
    ),
    Writer("torchvision", alone=True, options=("--target", str(APART))),
    Writer("timm", alone=True),
    Writer("ultralytics", ("polars", "opencv-python", "requests", "nvidia-ml-py", "ultralytics-thop"), alone=True),
    Writer(
        "mosaicml",
        (
            "torch_optimizer", "pytorch-ranger", "coolname", "tabulate", "mosaicml-cli", "importlib-metadata", "requests",
            "py-cpuinfo", "backoff", "gql", "ruamel.yaml", "validators", "arrow", "docker", "questionary", "argcomplete",
        ),
        alone=True,
    ),
)  # fmt: skip


def main() -> int:
    """Install what is missing and print a line for each writer."""
    for writer in WRITERS:
        print(f"{writer.name:<14} {_settled(writer)}", flush=True)
    return 0


def _settled(writer: Writer) -> str:
    """Its version, or why it is not there."""
    if (found := _version(writer)) is not None:
        return found
    alone = [name for name in writer.needs if name in _PINNED]
    plain = [name for name in writer.needs if name not in _PINNED]
    options = list(writer.options)
    steps = [[*options, *(["--no-deps"] if writer.alone else []), writer.name]]
    steps = [*([["--no-deps", *alone]] if alone else []), *([plain] if plain else []), *steps]
    for step in steps:
        done = _pip(step)
        if done.returncode:
            last = (done.stderr.strip() or "pip says nothing").splitlines()[-1]
            return f"not installed: {last}"
    return _version(writer) or "not installed: pip said that it is"


_PINNED = {"torch_optimizer", "pytorch-ranger", "mosaicml-cli", "ultralytics-thop"}
"""Requirements that ask for torch themselves, or for versions of what the development group has."""


def _version(writer: Writer) -> str | None:
    if str(APART) in writer.options:
        found = next(APART.glob(f"{writer.name}-*.dist-info"), None)
        return found.name.removesuffix(".dist-info").rpartition("-")[2] if found else None
    try:
        return version(writer.name)
    except PackageNotFoundError:
        return None


def _pip(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    environment = {**os.environ, "DS_BUILD_OPS": "0"}  # no kernels are compiled before they are used
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, env=environment)


if __name__ == "__main__":
    sys.exit(main())
