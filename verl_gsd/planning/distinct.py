"""Distinct pairs of numbers, so that a figure is computed once for all prompts that share it."""

from __future__ import annotations

import numpy as np


def distinct_pairs(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The result of ``np.unique(np.stack([first, second]), axis=1)`` with inverse and counts.

    That function compares pairs as structures, which takes 20 s for ten million pairs. Here numbers are compared.

    Args:
        first, second: (n,) of one type, without NaN.

    Returns:
        (2, n_distinct) the pairs in ascending order, (n,) the position of each entry's pair, and (n_distinct,) the
        number of entries of each pair.
    """
    values, value_of_entry = np.unique(first, return_inverse=True)
    others, other_of_entry = np.unique(second, return_inverse=True)
    codes, inverse, counts = np.unique(
        value_of_entry * len(others) + other_of_entry, return_inverse=True, return_counts=True
    )
    return np.stack([values[codes // len(others)], others[codes % len(others)]]), inverse, counts
