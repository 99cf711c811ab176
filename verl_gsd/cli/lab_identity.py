"""``verl-gsd lab identity``."""

from __future__ import annotations


def identity() -> None:
    """Measure the norm of each group's gradient against sigma^(2 - alpha) times the norm of the score difference."""
    raise NotImplementedError
