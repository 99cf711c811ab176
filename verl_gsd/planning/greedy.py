"""Steps of falling gain, the largest taken first: optimal where every prompt's own gains fall."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def share_out(
    gains: Callable[[np.ndarray, int], np.ndarray],
    which: np.ndarray,
    prompts: np.ndarray,
    total: int,
    minimum: int,
    maximum: int | None,
) -> np.ndarray:
    """``total`` shared out, one at a time to whoever gains most.

    Args:
        gains: (entries, depth) to (n_entries, depth): what the first steps above ``minimum`` are worth to a prompt of
            each entry; no row increases.
        which: (n_prompts,), the entry that each prompt is of.
        prompts: (n_entries,), how many prompts are of an entry.
    """
    steps = total - minimum * len(which)  # each raises one prompt's group by one
    if steps == 0:
        return np.full(len(which), minimum)
    limit = steps if maximum is None else min(steps, maximum - minimum)
    # Gains are listed as far as somewhat more than equal shares need, and further where an entry has used its list up.
    listed = list(gains(np.arange(len(prompts)), min(16 + steps // len(which), limit)))
    while True:
        raised, partly, some = _take_largest(listed, prompts, steps)
        lengths = np.array([len(row) for row in listed])
        short = np.flatnonzero((raised == lengths) & (lengths < limit))
        if not len(short):
            break
        for entry, row in zip(short, gains(short, min(2 * int(lengths[short].max()), limit)), strict=True):
            listed[entry] = row
    sizes = minimum + raised[which]
    sizes[np.flatnonzero(which == partly)[:some]] += 1
    return sizes


def _take_largest(listed: list[np.ndarray], prompts: np.ndarray, steps: int) -> tuple[np.ndarray, int, int]:
    """Take ``steps`` steps in the order of their gain, smaller groups first among equals.

    Args:
        listed: the gains of each rate's steps, in order; a prompt of that rate can take each once.
        prompts: (n_rates,), how many prompts have the rate.

    Returns:
        Steps taken by all prompts of each rate, (n_rates,), and the rate of which how many prompts take one more.
    """
    lengths = np.fromiter(map(len, listed), dtype=np.int64)
    gain = np.concatenate(listed)
    rate: np.ndarray = np.repeat(np.arange(len(listed)), lengths)
    step = np.arange(len(gain)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if (
        0 < steps < len(gain)
    ):  # each listed step is taken by one prompt at least: no more than the largest are looked at
        largest = np.flatnonzero(gain >= np.partition(gain, len(gain) - steps)[len(gain) - steps])
        gain, rate, step = gain[largest], rate[largest], step[largest]
    order = np.lexsort((step, -gain))
    used = np.cumsum(prompts[rate[order]])
    whole = int(np.searchsorted(used, steps, side="right"))
    raised = np.bincount(rate[order[:whole]], minlength=len(listed))
    if whole == len(order):
        return raised, 0, 0
    before = int(used[whole - 1]) if whole else 0
    return raised, int(rate[order[whole]]), steps - before
