"""Damaged files of every kind: a reader opens them or says in one paragraph what is wrong.

Nothing else may come of one: no other exception, no wait, no look at files outside the folder, and
nothing changed. `benchmarks/fuzzing.py` does the same ten thousand times.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.attempts import Kind, attempt
from helpers.foreign import KINDS

# Mutations of each kind. A model takes a twentieth of a second to open, a file two thousandths.
LIGHT, HEAVY = 150, 25
# Seconds that a reader may take.
PATIENCE = 10


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(" ", "_"))
def kind(request) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def good(kind: Kind, tmp_path: Path) -> Path:
    """A folder of good files."""
    folder = tmp_path / "good"
    folder.mkdir()
    kind.make(folder)
    return folder


@contextmanager
def in_time() -> Iterator[None]:
    """Python code that takes longer is stopped; what hangs in a library, the benchmark sees."""

    def stop(*_: object) -> None:
        raise BaseException(f"longer than {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_good_file_is_read(kind: Kind, good: Path) -> None:
    outcome = attempt(kind, good, good.parent / "sandbox", None)
    assert outcome.what == "opened", outcome


def test_a_damaged_file_is_read_or_refused(kind: Kind, good: Path) -> None:
    @settings(
        max_examples=HEAVY if kind.heavy else LIGHT,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(seed=st.integers(0, 2**32))
    def damaged(seed: int) -> None:
        with in_time():
            outcome = attempt(kind, good, good.parent / "sandbox", Random(seed))
        assert outcome.what in ("opened", "refused"), outcome

    damaged()
