"""The pytest plugin: the fixture `resume_exact`. It imports neither torch nor numpy before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from optstate.proof.program import Given
    from optstate.proof.proof import Proof
    from optstate.proof.prove import BuiltIn
    from optstate.proof.workers import Workers

ResumeExact = Callable[..., "Proof"]
"""`resume_exact(build, before=20, after=5, save=None, load=None, using="optstate")`, for annotations in tests."""


@pytest.fixture(scope="session")
def _optstate_workers() -> Iterator[Workers]:
    """Interpreters that have imported torch, started once for all proofs of a session."""
    from optstate.proof.workers import Workers

    with Workers() as workers:
        yield workers


@pytest.fixture
def resume_exact(_optstate_workers: Workers) -> ResumeExact:
    """A function that proves a resume exact, or fails the test with the first difference and its cause.

    Takes what `optstate.prove` takes and returns the `Proof`; the interpreters behind it serve the whole session.

        def test_resume(resume_exact):
            resume_exact("train.py:build", before=20, after=5)
    """

    def resume_exact(
        build: Given,
        before: int = 20,
        after: int = 5,
        save: Given | None = None,
        load: Given | None = None,
        using: BuiltIn = "optstate",
    ) -> Proof:
        __tracebackhide__ = True
        from optstate.proof.prove import asked, proven

        proof = proven(_optstate_workers, asked(build, before, after, save, load, using))
        if not proof.exact:
            pytest.fail(str(proof), pytrace=False)
        return proof

    return resume_exact
