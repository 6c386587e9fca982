"""README and docs show what really happens, and the tool that says so can say no."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from tools import pages

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_shows_what_happens(page, capsys):
    """Every block of every page runs and prints what stands below it."""
    code = pages.main(["--check", str(page)])
    assert code == 0, capsys.readouterr().out


@pytest.fixture
def check(tmp_path, capsys):
    """Run the tool on a page given as text: exit code and what it said."""

    def run(text, *options, action="--check"):
        page = tmp_path / "page.md"
        page.write_text(textwrap.dedent(text))
        code = pages.main([action, *options, str(page)])
        return code, capsys.readouterr().out

    return run


RIGHT = """
    # A page

    ```python
    import os
    class Thing:
        pass
    print("one", os.environ["COLUMNS"])
    ```

    It prints this:

    ```text
    one 100
    ```

    ```console
    $ printf 'a\\n' > file; cat \\
      file
    a
    $ ls
    file
    ```

    ```python
    import pickle, subprocess, warnings
    warnings.warn("careful")
    subprocess.run(["cat", "file"])
    print(type(pickle.loads(pickle.dumps(Thing()))).__module__)
    ```

    ```output
    UserWarning: careful
    a
    __main__
    ```

    <!-- not run: it needs a network -->
    ```bash
    exit 1
    ```
"""


def test_right_page_passes(check):
    """One namespace and one folder per page; warnings and children's output count; `not run` is not run."""
    code, said = check(RIGHT)
    assert code == 0, said
    assert "as shown" in said


@pytest.mark.parametrize(
    ("shown", "wrong"),
    [
        ("one 100", "two 100"),
        ("\n    a\n    $ ls", "\n    b\n    $ ls"),
        ("file\n    ```\n\n    ```python", "```\n\n    ```python"),
    ],
    ids=["python", "console", "missing line"],
)
def test_wrong_output_fails(check, shown, wrong):
    """A page that shows something else fails with a diff that names page and line."""
    assert shown in RIGHT
    code, said = check(RIGHT.replace(shown, wrong))
    assert code == 1
    assert "page.md:" in said
    assert "\n+" in said


def test_output_that_the_page_hides_fails(check):
    """A block that prints must be followed by what it prints."""
    code, said = check("```python\nprint('hidden')\n```\n")
    assert code == 1
    assert "+hidden" in said


def test_write_repairs_and_then_changes_nothing(check, tmp_path):
    """--write puts real output in place, adds a missing block, and leaves a right page byte for byte."""
    wrong = "```python\nprint(1)\n```\n\ntext\n\n```console\n$ echo b\na\n$ true\n```\n"
    assert check(wrong, action="--write")[0] == 0
    repaired = (tmp_path / "page.md").read_text()
    assert repaired == ("```python\nprint(1)\n```\n\n```text\n1\n```\n\ntext\n\n```console\n$ echo b\nb\n$ true\n```\n")
    assert check(repaired)[0] == 0
    assert check(repaired, action="--write")[0] == 0
    assert (tmp_path / "page.md").read_text() == repaired


def test_unstable_parts_are_not_compared_and_not_rewritten(check, tmp_path):
    """A declared time may differ; the words around it may not."""
    page = "```python\nprint('took', 2.5, 's')\n```\n\n<!-- unstable: \\d+\\.\\d+ s -->\n```text\ntook 1.0 s\n```\n"
    page = page.replace("2.5, 's'", "'2.5 s'")
    assert check(page, action="--write")[0] == 0
    assert (tmp_path / "page.md").read_text() == page
    code, said = check(page.replace("took 1", "lasted 1"))
    assert code == 1
    assert "-lasted <unstable>" in said


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ("```python\n{}['x']\n```\n", "KeyError: 'x'"),
        ("<!-- raises: KeyError -->\n```python\n1\n```\n", "raises no KeyError"),
        ("```console\n$ exit 3\n```\n", "ended with 3, not 0"),
        ("```console\nno dollar\n```\n", "starts with `\\$ command`"),
        ("```python\nimport os; os._exit(0)\n```\n", "line 1: the page's process ended with 0"),
        ("```python\n1\n", "has no end"),
        ("```bash\nls\n```\n", "a bash block is not run"),
        ("- item\n  ```python\n  1\n  ```\n", "indented python block is not run"),
        ("<!-- not run: because -->\ntext\n", "line 2: `not run` stands above text"),
        ("<!-- unstable: ( -->\n```text\na\n```\n", "no regular expression"),
    ],
)
def test_pages_that_cannot_be_trusted_fail(check, page, says):
    """What raises, dies, or would silently not be run is a failure that says where."""
    code, said = check(page)
    assert code == 1
    assert re.search(says, said)


def test_expected_failures_pass(check):
    """A page may show an exception and an exit code when it announces them."""
    page = """
        <!-- raises: KeyError -->
        ```python
        {}["x"]
        ```

        ```text
        KeyError: 'x'
        ```

        <!-- exit: 2 -->
        ```console
        $ echo bad >&2; exit 2
        bad
        ```
    """
    assert check(page)[0] == 0


def test_page_that_hangs_is_ended(check):
    """A page that does not end, nor the processes that it started, do not hold up the suite."""
    code, said = check("```python\nimport subprocess\nsubprocess.run(['sleep', '60'])\n```\n", "--timeout", "0.5")
    assert code == 1
    assert "line 1: the page's process did not end within 0.5 s" in said


def test_missing_page_is_bad_usage(capsys):
    """A page that is not there is no success."""
    with pytest.raises(SystemExit, match="2"):
        pages.main(["--check", "nowhere.md"])
    assert "no such page: nowhere.md" in capsys.readouterr().err
