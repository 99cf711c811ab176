"""pass@k: the probability that at least one of k samples is right, estimated from n samples of which c are right.

The unbiased estimator of Chen et al., arXiv 2107.03374, equation 1:

    pass@k = E[1 - C(n - c, k) / C(n, k)] = 1 - prod over i = n - c + 1 ... n of (1 - k / i)
"""

from __future__ import annotations

import numpy as np

from verl_gsd.planning.distinct import distinct_counts


def pass_at_k(samples: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k of each question, (Q,) float64.

    Args:
        samples: (Q,) integers n, number of samples per question.
        correct: (Q,) integers c, number of right samples per question.
        k: number of samples that a user would draw, at least 1.

    Raises:
        ValueError: the shapes differ, k is below 1 or above a question's number of samples, or ``correct`` is outside
            [0, samples]. The message names the row.
    """
    samples, correct = _as_integers(samples, "samples"), _as_integers(correct, "correct")
    if samples.shape != correct.shape:
        raise ValueError(
            f"samples has shape {samples.shape}, correct has shape {correct.shape}. Use one number per question in both"
        )
    if k < 1:
        raise ValueError(f"k={k} is too small. Use 1 or more")
    if len(bad := np.flatnonzero((correct < 0) | (correct > samples))):
        row = bad[0]
        raise ValueError(f"row {row}: correct={correct[row]} is not in [0, samples={samples[row]}]")
    if len(bad := np.flatnonzero(samples < k)):
        row = bad[0]
        raise ValueError(f"row {row}: k={k} is larger than samples={samples[row]}. Use a smaller k, or more samples")
    if not len(samples):
        return np.zeros(0)
    base = int(samples.max()) + 1
    pairs, pair_of_row = distinct_counts(samples * base + correct)  # a pair as one number
    estimates = np.array([_estimate(pair // base, pair % base, k) for pair in pairs.tolist()], dtype=np.float64)
    return estimates[pair_of_row]


def pass_at_k_of_groups(correct: np.ndarray, total: np.ndarray, is_graded: np.ndarray, k: int) -> np.ndarray:
    """Unbiased pass@k of each group of a run, (N,) float64; NaN for groups without an accuracy.

    All are NaN if any group with accuracies has fewer than k, because groups of hard and easy prompts may differ in
    size, and a mean over the others would be biased. All are NaN, too, if the accuracies are not all 0 or 1.

    Args:
        correct, total: (N,) sum and number of the accuracies of each group.
        is_graded: (N,) bool, whether a group has an accuracy between 0 and 1 (``records.is_graded``).
    """
    result: np.ndarray = np.full(len(total), np.nan)
    rated = total > 0
    if rated.any() and total[rated].min() >= k and not is_graded.any():
        result[rated] = pass_at_k(total[rated].astype(np.int64), correct[rated].astype(np.int64), k)
    return result


def _estimate(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0  # any k samples include a right one
    # log1p and expm1 keep precision for probabilities near 0 and near 1.
    return float(0.0 - np.expm1(np.log1p(-k / np.arange(n - c + 1, n + 1)).sum()))


def _as_integers(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not (values.size == 0 or np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"{name} has shape {values.shape} and dtype {values.dtype}. Use one integer per question")
    return values.astype(np.int64)
