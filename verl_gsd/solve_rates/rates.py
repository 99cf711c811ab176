"""The solve rates of prompts: how often each prompt was solved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from verl_gsd.prompts import PromptKey


@dataclass(frozen=True, eq=False)
class SolveRates:
    """Solve rates of n >= 1 prompts.

    Attributes:
        path: the file or folder that the rates were read from.
        rate: (n,) float64 in [0, 1].
        correct, total: (n,) int64, the numbers of correct responses and of all responses behind each rate; total is at
            least 1. Both are None if they are unknown, or if verdicts are fractions.
        keys: (data source, dataset index) of each prompt; None if the source does not contain them.
        skipped: what was skipped: one text per reason, with the number of entries and the location of the first.
        row: (n,) int64, the row of each entry in the file, starting at 0; None if rows were pooled by prompt.
        n_rows: the number of rows of the file, including skipped ones; 0 if rows were pooled.
        graded: the number of prompts with a verdict between 0 and 1 (partial credit). Their rate is the mean verdict.
        verdicts: if verdicts are fractions, what the posteriors of ``planning`` take instead of counts, (n,) each: the
            sum of the verdicts, their number, and the sum of verdict (1 - verdict). None if a part of it is unknown.
        mixed_groups: the number of groups in dumps that seem to have mixed groups only because of dynamic sampling.
            The rates are not those of the prompts: groups that agreed are missing.
        mixed_files: the number of these dumps.
        unmarked_files: the number of dumps that seem to have responses of earlier steps and do not mark them. These
            count as responses of the policy.
        from_dumps: whether the source is verl's dumps.
        chosen_by: what chose how many responses a prompt has by the outcomes of earlier ones; empty if nothing did.
    """

    path: Path
    rate: np.ndarray
    correct: np.ndarray | None
    total: np.ndarray | None
    keys: list[PromptKey] | None
    skipped: tuple[str, ...] = ()
    row: np.ndarray | None = None
    n_rows: int = 0
    graded: int = 0
    verdicts: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    mixed_groups: int = 0
    mixed_files: int = 0
    unmarked_files: int = 0
    from_dumps: bool = False
    chosen_by: str = ""

    def __len__(self) -> int:
        return len(self.rate)

    @property
    def is_biased(self) -> bool:
        """Whether counts depend on outcomes, groups are missing, or responses may count that are not the policy's."""
        return self.mixed_groups > 0 or self.unmarked_files > 0 or self.chosen_by != ""

    @property
    def unbiased_counts(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """``correct`` and ``total`` if unbiased estimates can be computed from them; else None and None."""
        return (None, None) if self.is_biased else (self.correct, self.total)

    @property
    def evidence(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """``verdicts``, also if all of them are 0 or 1; None if the rates have to be taken for exact."""
        if self.correct is None or self.total is None:
            return self.verdicts
        return self.correct, self.total, np.zeros(len(self))

    def notices(self) -> list[str]:
        """What was skipped, whether groups are missing, and whether rows may count that should not."""
        sentences = [f"Skipped: {reason}." for reason in self.skipped]
        if self.chosen_by:
            sentences.append(
                f"In {self.path}, {self.chosen_by} gave more responses to prompts whose responses differed. No figure "
                "is therefore called unbiased: prompts with many responses are not like the others."
            )
        if self.mixed_groups:
            sentences.append(
                f"All {self.mixed_groups} groups in {self.mixed_files} dumps of {self.path} are mixed. Dynamic "
                "sampling (algorithm.filter_groups) evicts the silent groups, and verl dumps only what it trains on. "
                "If the run had it in these steps, silent groups are understated below, and gain is overstated. No "
                "figure is therefore called unbiased. Set --solve-rates to the folder of the verl-gsd run, whose "
                "records have the evicted groups."
            )
        if self.unmarked_files:
            sentences.append(
                f"In {self.unmarked_files} dumps of {self.path}, most groups lack session numbers. Either sessions "
                "failed, or the run added responses of earlier steps to its groups. The dumps do not mark such rows, "
                "so all of them count as responses of the policy, and no figure is called unbiased. Set --solve-rates "
                "to the run's folder, whose records do not count them."
            )
        return sentences


def rates_from_counts(
    path: Path,
    correct: np.ndarray,
    total: np.ndarray,
    is_graded: np.ndarray,
    keys: list[PromptKey] | None,
    skipped: tuple[str, ...],
    *,
    partial: np.ndarray | None = None,
) -> SolveRates:
    """Solve rates of pooled responses.

    Args:
        correct: (n,) float, the sum of each prompt's verdicts, which lie in [0, 1].
        total: (n,) int64, the number of verdicts, at least 1.
        is_graded: (n,) bool, whether a prompt has a verdict between 0 and 1. Its sum is then no count of right
            responses, even if it is a whole number.
        partial: (n,) float, the sum of verdict (1 - verdict) of each prompt; NaN, or None for all, if it is unknown.
    """
    if is_graded.any():
        rate = np.clip(correct / total, 0.0, 1.0)
        verdicts = None if partial is None or np.isnan(partial).any() else (correct, total, partial)
        return SolveRates(path, rate, None, None, keys, skipped, graded=int(is_graded.sum()), verdicts=verdicts)
    solved: np.ndarray = correct.astype(np.int64)
    return SolveRates(path, solved / total, solved, total, keys, skipped)
