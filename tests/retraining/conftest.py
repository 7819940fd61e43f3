"""What the tests of retraining share."""

import pytest

from coarlib.retraining import vectorised


@pytest.fixture(autouse=True)
def stacks_are_fast(monkeypatch):
    """Let no mood of the machine decide whether models are trained together."""
    monkeypatch.setattr(vectorised, "seconds_alone", lambda *_: 1e6)
