"""What is known of n prompts: how often each was solved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl_gsd.prompts import PromptKey


@dataclass(frozen=True, eq=False)
class SolveRates:
    """Solve rates of n prompts, n at least 1.

    Attributes:
        path: the file or folder they were read from.
        rate: (n,) float64 in [0, 1].
        correct, total: (n,) int64, right responses and responses behind each rate, total at least 1; both None where
            that is not known, or where verdicts are fractions.
        keys: of each prompt, (data source, dataset index); None where the source does not tell.
        skipped: what was left out, a sentence a reason, with how many and the first one's place.
        row: (n,) int64, the row of the file each entry stands in, from 0; None where rows were pooled by prompt.
        n_rows: rows of the file, those left out included; 0 where they were pooled.
    """

    path: Path
    rate: np.ndarray
    correct: np.ndarray | None
    total: np.ndarray | None
    keys: list[PromptKey] | None
    skipped: tuple[str, ...] = ()
    row: np.ndarray | None = None
    n_rows: int = 0

    def __len__(self) -> int:
        return len(self.rate)


def pooled(
    path: Path, correct: np.ndarray, total: np.ndarray, keys: list[PromptKey] | None, skipped: tuple[str, ...]
) -> SolveRates:
    """Rates from sums of verdicts in [0, 1], (n,) float, and how many there were, (n,) int64 and 1 or more."""
    counts = correct.round()
    if (np.abs(correct - counts) <= 1e-6).all():
        solved: np.ndarray = counts.astype(np.int64)
        return SolveRates(path, solved / total, solved, total, keys, skipped)
    return SolveRates(path, np.clip(correct / total, 0.0, 1.0), None, None, keys, skipped)
