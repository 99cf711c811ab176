"""Greedy allocation: steps are taken in the order of their gain. Optimal if no prompt's gains increase with size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def allocate_greedily(
    gains: Callable[[np.ndarray, int], np.ndarray],
    entry_of_prompt: np.ndarray,
    n_prompts: np.ndarray,
    total: int,
    minimum: int,
    maximum: int | None,
) -> np.ndarray:
    """(n_prompts,) group sizes that sum to ``total``, each rollout given to the prompt that gains most.

    Prompts with the same solve rate (or the same counts) share one entry, so that their gains are computed once.

    Args:
        gains: (entries, depth) -> (n_entries, depth): the gains of the first ``depth`` steps above ``minimum`` for a
            prompt of each entry. No row increases.
        entry_of_prompt: (n_prompts,), the entry of each prompt.
        n_prompts: (n_entries,), the number of prompts of each entry.
    """
    steps = total - minimum * len(entry_of_prompt)  # each raises one prompt's group by one
    if steps == 0:
        return np.full(len(entry_of_prompt), minimum)
    limit = steps if maximum is None else min(steps, maximum - minimum)
    # Compute somewhat more gains than equal group sizes need, and more for entries whose gains have all been used.
    gains_of_entry = list(gains(np.arange(len(n_prompts)), min(16 + steps // len(entry_of_prompt), limit)))
    while True:
        raised, partial_entry, remainder = _take_largest(gains_of_entry, n_prompts, steps)
        lengths = np.array([len(row) for row in gains_of_entry])
        used_up = np.flatnonzero((raised == lengths) & (lengths < limit))
        if not len(used_up):
            break
        for entry, row in zip(used_up, gains(used_up, min(2 * int(lengths[used_up].max()), limit)), strict=True):
            gains_of_entry[entry] = row
    sizes = minimum + raised[entry_of_prompt]
    sizes[np.flatnonzero(entry_of_prompt == partial_entry)[:remainder]] += 1
    return sizes


def _take_largest(gains_of_entry: list[np.ndarray], n_prompts: np.ndarray, steps: int) -> tuple[np.ndarray, int, int]:
    """Take ``steps`` steps in the order of their gain; if gains are equal, smaller groups first.

    Args:
        gains_of_entry: the gains of each entry's steps, in order. Every prompt of the entry can take each step once.
        n_prompts: (n_entries,), the number of prompts of each entry.

    Returns:
        The steps that all prompts of each entry take, (n_entries,); the entry of which only some prompts take one more
        step; and how many of its prompts do.
    """
    lengths = np.fromiter(map(len, gains_of_entry), dtype=np.int64)
    gain = np.concatenate(gains_of_entry)
    entry: np.ndarray = np.repeat(np.arange(len(gains_of_entry)), lengths)
    step = np.arange(len(gain)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # At least one prompt takes each step that is taken, so only the ``steps`` largest gains are needed.
    if 0 < steps < len(gain):
        largest = np.flatnonzero(gain >= np.partition(gain, len(gain) - steps)[len(gain) - steps])
        gain, entry, step = gain[largest], entry[largest], step[largest]
    order = np.lexsort((step, -gain))
    steps_taken = np.cumsum(n_prompts[entry[order]])
    n_complete = int(np.searchsorted(steps_taken, steps, side="right"))
    raised = np.bincount(entry[order[:n_complete]], minlength=len(gains_of_entry))
    if n_complete == len(order):
        return raised, 0, 0
    before = int(steps_taken[n_complete - 1]) if n_complete else 0
    return raised, int(entry[order[n_complete]]), steps - before
