"""The shape of the house: which room may import which, read from the syntax trees of `src/optstate`.

Each rule is a function from imports to complaints, so that a made-up package can show that it bites.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools.graph import cycle, imports, modules

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "optstate"

# From the ground up: a room imports from itself and from the floors below it. Rooms to come are listed already.
FLOORS = (
    ("errors", "text"),
    ("state",),
    ("optimizers",),
    ("formats",),
    ("doctor",),
    ("live",),
    ("schedule", "store"),
    ("resume",),
    ("proof", "watch"),
    ("report",),
    ("integrations", "cli"),
    ("__init__", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH = {
    "live",
    "schedule",
    "store",
    "resume",
    "proof",
    "watch",
    "integrations",
}  # rooms that need torch to be imported
PLUGINS = {"optstate.proof.pytest_plugin": "pytest"}  # who imports them is there
NO_TORCH_AT_ALL = {"formats"}  # not even inside a function: no reader may depend on it


def room(module):
    """The room of a module: `optstate.state.slot` is in `state`, the package itself in `__init__`."""
    return module.partition(".")[2].partition(".")[0] or "__init__"


def upward(found, package):
    """Imports that do not go downwards."""
    return [
        f"{edge.importer}:{edge.line} imports {edge.target}, which is not below it"
        for edge in found
        if edge.target.partition(".")[0] == package
        and room(edge.importer) != room(edge.target)
        and FLOOR[room(edge.importer)] <= FLOOR[room(edge.target)]
    ]


def misplaced_torch(found):
    """Imports of torch where there must be none, or none before a function is called."""
    return [
        f"{edge.importer}:{edge.line} imports torch ({edge.when})"
        for edge in found
        if edge.target == "torch"
        and (room(edge.importer) in NO_TORCH_AT_ALL or (edge.when == "import" and room(edge.importer) not in TORCH))
    ]


def undeclared(found, package, declared):
    """Imports of something that installing the package would not bring. An integration may import its partner late."""
    allowed = {package, "torch", *declared, *sys.stdlib_module_names}
    return [
        f"{edge.importer}:{edge.line} imports {edge.target}, which is no declared dependency"
        for edge in found
        if edge.target.partition(".")[0] not in allowed
        and not (room(edge.importer) == "integrations" and edge.when != "import")
        and not (room(edge.importer) in ("__init__", "cli") and edge.target == "?")  # lazy maps: names from a table
        and not (room(edge.importer) == "proof" and edge.target == "?")  # the user's own modules
        and PLUGINS.get(edge.importer) != edge.target
    ]


def undocumented(package):
    """Modules without a docstring."""
    return [name for name, tree in modules(package).items() if not ast.get_docstring(tree)]


@pytest.fixture(scope="module")
def found():
    """Every import of the package."""
    return imports(PACKAGE)


@pytest.fixture(scope="module")
def declared():
    """The import names of the core's dependencies."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in project["dependencies"]}


def test_every_module_has_a_room():
    """A new room is entered in the table before it is built."""
    assert {room(name) for name in modules(PACKAGE)} <= set(FLOOR)


def test_imports_have_no_cycle(found):
    """No module imports itself by way of others, not even lazily or for types."""
    assert cycle([edge for edge in found if edge.target != "?"]) == []


def test_imports_go_downwards(found):
    """Each room imports only from the floors below it."""
    assert upward(found, "optstate") == []


def test_torch_stays_upstairs(found):
    """Only rooms that work on a running optimizer import torch with themselves; formats never do."""
    assert misplaced_torch(found) == []


def test_dependencies_are_the_declared_ones(found, declared):
    """The core imports what pyproject.toml declares, and declares what it imports."""
    assert undeclared(found, "optstate", declared) == []
    assert declared - {edge.target for edge in found} == set()


def test_every_module_has_a_docstring():
    """Each file says first what it is for."""
    assert undocumented(PACKAGE) == []


def python(code):
    """Run code in a fresh interpreter, as a user's process would be."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_importing_the_package_is_light():
    """`import optstate` costs neither torch nor numpy; a name is loaded when it is used."""
    done = python("import sys, optstate; print(sorted({'torch', 'numpy'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_torch_free_rooms_import_without_torch():
    """Every module outside the rooms that need torch can be imported where there is none."""
    free = [name for name in modules(PACKAGE) if room(name) not in TORCH and not name.endswith("__main__")]
    block = "import sys; sys.modules['torch'] = None; from importlib import import_module\n"
    done = python(f"{block}for name in {free}: import_module(name)")
    assert done.returncode == 0, done.stderr


# --- the rules bite -------------------------------------------------------------------------------

GOOD = {
    "__init__.py": '"""The map."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from made.live import attach\n',
    "errors.py": '"""Errors."""\n',
    "state/__init__.py": '"""State."""\n',
    "state/slot.py": '"""Slots."""\nfrom made.errors import Missing\n',
    "formats/__init__.py": '"""Formats."""\nfrom ..state import slot\n',
    "live.py": '"""Live."""\nimport torch\nfrom made.state.slot import Slot\n',
}
BAD = {
    "upward": ("state/slot.py", "import made.live", "made.state.slot:3 imports made.live"),
    "upward in a function": (
        "state/slot.py",
        "def f(): from made.live import x",
        "made.state.slot:3 imports made.live",
    ),
    "upward and relative": ("state/slot.py", "from .. import live", "made.state.slot:3 imports made.live"),
    "upward for types": (
        "state/slot.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import made.live",
        "made.state.slot:5 imports made.live",
    ),
    "upward by string": (
        "state/slot.py",
        "from importlib import import_module\nimport_module('made.live')",
        "made.state.slot:4 imports made.live",
    ),
    "the package itself": ("live.py", "from made import attach", "made.live:4 imports made"),
    "cycle": ("errors.py", "def f(): import made.state.slot", "made.errors"),
    "torch at the top": ("errors.py", "import torch.nn", "made.errors:2 imports torch"),
    "torch in formats": ("formats/__init__.py", "def f(): import torch", "made.formats:3 imports torch"),
    "undeclared": ("live.py", "def f(): import pandas", "made.live:4 imports pandas"),
    "computed": ("errors.py", "__import__('pan' + 'das')", "made.errors:2 imports ?"),
    "no docstring": ("state/new.py", "x = 1", "made.state.new"),
}


def complaints(package):
    """What all rules together say about a package."""
    edges = imports(package)
    return [
        *cycle(edges),
        *upward(edges, "made"),
        *misplaced_torch(edges),
        *undeclared(edges, "made", set()),
        *undocumented(package),
    ]


@pytest.fixture
def made(tmp_path):
    """A small package that keeps every rule."""
    for name, text in GOOD.items():
        file = tmp_path / "made" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "made"


def test_good_package_passes(made):
    """The rules do not complain about a package that keeps them."""
    assert complaints(made) == []


@pytest.mark.parametrize(("file", "line", "complaint"), BAD.values(), ids=BAD)
def test_bad_line_is_found(made, file, line, complaint):
    """One bad line in a good package is found and named."""
    with (made / file).open("a") as out:
        out.write(line + "\n")
    assert any(complaint in said for said in complaints(made)), complaints(made)


# --- what is tracked ------------------------------------------------------------------------------

HOME = re.compile(r"(?<![\w./-])/(home|Users|root|mnt|opt|work)/\w|[A-Z]:\\Users\\")


@pytest.mark.parametrize("folder", ["/{}/ada/run.pt".format("home"), r"C:\{}\ada".format("Users")])
def test_home_paths_are_recognised(folder):
    """The expression finds what it is for."""
    assert HOME.search(f"see {folder}")


def test_no_file_names_a_home():
    """No tracked file holds an absolute path of somebody's machine."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nobody can say which files are tracked")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    files = [file for name in names if name and (file := ROOT / name).is_file()]
    guilty = [str(file) for file in files if HOME.search(file.read_bytes().decode(errors="replace"))]
    assert guilty == []
