"""pass@k: the chance that at least one of k samples is right, from n samples of which c were.

Chen et al., arXiv 2107.03374, equation 1, unbiased:

    pass@k = E[1 - C(n - c, k) / C(n, k)] = 1 - prod over i = n - c + 1 ... n of (1 - k / i)
"""

from __future__ import annotations

import numpy as np


def pass_at_k(samples: np.ndarray, correct: np.ndarray, k: int) -> np.ndarray:
    """pass@k of each question, unbiased, (Q,) float64.

    Args:
        samples: (Q,) whole numbers n, samples of each question.
        correct: (Q,) whole numbers c, those of them that were right.
        k: samples that a user would draw, at least 1.

    Raises:
        ValueError: the shapes differ, k is above a question's samples, or ``correct`` outside [0, samples]; the
            message names the row.
    """
    samples, correct = _whole(samples, "samples"), _whole(correct, "correct")
    if samples.shape != correct.shape:
        raise ValueError(f"samples of shape {samples.shape}, correct of {correct.shape}: write one of each a question")
    if k < 1:
        raise ValueError(f"k={k}: write 1 or more")
    if len(bad := np.flatnonzero((correct < 0) | (correct > samples))):
        row = bad[0]
        raise ValueError(f"row {row}: correct={correct[row]} of samples={samples[row]}; need 0 <= correct <= samples")
    if len(bad := np.flatnonzero(samples < k)):
        row = bad[0]
        raise ValueError(f"row {row}: k={k} of samples={samples[row]}; write k of at most that, or draw more samples")
    pairs, place = np.unique(np.stack([samples, correct]), axis=1, return_inverse=True)
    found = np.array([_one(n, c, k) for n, c in pairs.T.tolist()], dtype=np.float64)
    return found[place.reshape(-1)]


def _one(n: int, c: int, k: int) -> float:
    if n - c < k:
        return 1.0  # k samples cannot all be wrong
    # log1p and expm1: neither a tiny chance nor one close to 1 loses its digits.
    return float(0.0 - np.expm1(np.log1p(-k / np.arange(n - c + 1, n + 1)).sum()))


def _whole(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not (values.size == 0 or np.issubdtype(values.dtype, np.integer)):
        raise ValueError(f"{name} of shape {values.shape}, {values.dtype}: write one whole number a question")
    return values.astype(np.int64)
