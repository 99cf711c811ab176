"""Who gets how many rollouts: a total shared out over prompts, one at a time to whoever gains most.

Both E[sigma_hat] and the probability of a mixed group are concave in the group size, so that taking the largest next
gain is optimal for them. With the rates known exactly it gains 1 to 4 % over equal shares on Big-Math; no more is
promised. ``fidelity`` raises the lowest first instead: it makes estimates equally faithful, and yields less signal.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from verl_gsd.planning.rates import expected_std, fidelity, mixed_rate, refuse

Objective = Literal["expected_std", "mixed", "fidelity"]

#: Decimals of a gain: prompts at p and 1-p must not be told apart by rounding. A smaller gain counts as none.
_DIGITS = 13


def allocate(
    p: ArrayLike,
    total: int,
    *,
    objective: Objective = "expected_std",
    minimum: int = 2,
    maximum: int | None = None,
) -> np.ndarray:
    """Group sizes that sum to ``total``.

    Args:
        p: (n_prompts,) solve rates. Cost grows with the number of distinct ones.
        total: rollouts to share out.
        objective: the sum of ``expected_std`` or of ``mixed`` (the probability of a mixed group) is made as large as it
            can be; ``fidelity`` raises whichever is lowest, prompts at 0 and 1 left out since nothing raises them.
        minimum, maximum: bounds of every group size; at least 1, and no bound where None.

    Returns:
        (n_prompts,) int64. Between equal gains the smaller group comes first; prompts of equal rate differ by at most
        one, the earlier ones having more.

    Raises:
        ValueError: a rate is outside [0, 1] (naming the entry), bounds contradict each other or ``total``, or the
            objective has another name.
    """
    rates = np.asarray(p, dtype=float)
    if rates.ndim != 1:
        raise ValueError(f"p has shape {rates.shape}; write one rate a prompt, shape (n_prompts,)")
    refuse(~((rates >= 0) & (rates <= 1)), rates, "p", "a rate between 0 and 1")
    total, minimum = _whole(total, "total"), _whole(minimum, "minimum")
    maximum = None if maximum is None else _whole(maximum, "maximum")
    _check(len(rates), total, objective, minimum, maximum)
    distinct, which, prompts = np.unique(rates, return_inverse=True, return_counts=True)
    steps = total - minimum * len(rates)  # each raises one prompt's group by one
    limit = steps if maximum is None else min(steps, maximum - minimum)
    # Gains are listed as far as somewhat more than equal shares need, and further where a rate has used its list up.
    listed = list(_gains(distinct, objective, minimum, min(16 + steps // len(rates), limit)))
    while True:
        raised, partly, some = _take_largest(listed, prompts, steps)
        short = [rate for rate, gains in enumerate(listed) if raised[rate] == len(gains) < limit]
        if not short:
            break
        for rate in short:
            (listed[rate],) = _gains(distinct[[rate]], objective, minimum, min(2 * len(listed[rate]), limit))
    sizes = minimum + raised[which]
    sizes[np.flatnonzero(which == partly)[:some]] += 1
    return sizes


def _gains(rates: np.ndarray, objective: Objective, minimum: int, depth: int) -> np.ndarray:
    """(n_rates, depth): what raising a group of ``minimum`` + j by one is worth; no row increases."""
    sizes = np.arange(minimum, minimum + depth + 1)
    if objective == "fidelity":
        interior = (rates > 0) & (rates < 1)
        lowest_first = -np.asarray(fidelity(rates[:, None], sizes[:-1])).round(_DIGITS)
        return np.where(interior[:, None], lowest_first, -np.inf)
    value = {"expected_std": expected_std, "mixed": mixed_rate}[objective](rates[:, None], sizes)
    return np.diff(value, axis=1).round(_DIGITS)


def _take_largest(listed: list[np.ndarray], prompts: np.ndarray, steps: int) -> tuple[np.ndarray, int, int]:
    """Take ``steps`` steps in the order of their gain, smaller groups first among equals.

    Args:
        listed: the gains of each rate's steps, in order; a prompt of that rate can take each once.
        prompts: (n_rates,), how many prompts have the rate.

    Returns:
        Steps taken by all prompts of each rate, (n_rates,), and the rate of which how many prompts take one more.
    """
    rate: np.ndarray = np.repeat(np.arange(len(listed)), [len(gains) for gains in listed])
    step = np.concatenate([np.arange(len(gains)) for gains in listed])
    order = np.lexsort((step, -np.concatenate(listed)))
    used = np.cumsum(prompts[rate[order]])
    whole = int(np.searchsorted(used, steps, side="right"))
    raised = np.bincount(rate[order[:whole]], minlength=len(listed))
    if whole == len(order):
        return raised, 0, 0
    before = int(used[whole - 1]) if whole else 0
    return raised, int(rate[order[whole]]), steps - before


def _whole(value: int, name: str) -> int:
    if not (np.ndim(value) == 0 and np.isfinite(value) and value == int(value)):
        raise ValueError(f"{name}={value}: write a whole number")
    return int(value)


def _check(n_prompts: int, total: int, objective: str, minimum: int, maximum: int | None) -> None:
    if objective not in ("expected_std", "mixed", "fidelity"):
        raise ValueError(f"objective={objective!r}: write one of expected_std, mixed, fidelity")
    if n_prompts == 0:
        raise ValueError("p is empty: there is no prompt to allocate to")
    if minimum < 1:
        raise ValueError(f"minimum={minimum}: write 1 or more")
    if maximum is not None and maximum < minimum:
        raise ValueError(f"maximum={maximum} is below minimum={minimum}")
    if total < minimum * n_prompts:
        raise ValueError(f"total={total} does not give {n_prompts} prompts the minimum of {minimum} each")
    if maximum is not None and total > maximum * n_prompts:
        raise ValueError(f"total={total} is more than {n_prompts} prompts may take, at most {maximum} each")
