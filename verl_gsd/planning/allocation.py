"""Allocation of a total number of rollouts to prompts, one rollout at a time to the prompt that gains most.

E[sigma_hat] and the probability of a mixed group are concave in the group size, so this greedy allocation is optimal
for both. If the solve rates are known exactly, it gains 1% to 4% over equal group sizes on Big-Math; we claim no more.
The objective ``fidelity`` raises the prompt with the lowest fidelity first. It makes estimates equally faithful and
yields less signal.

Rates from few responses are not exact. On samples from Big-Math, treating 8 responses per prompt as an exact rate
loses 5% against equal group sizes, and treating 4 responses that way loses 15%. Used as counts
(``allocate_from_counts``) they lose nothing, and 64 responses per prompt gain 2%.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from verl_gsd.planning.counts import posterior
from verl_gsd.planning.distinct import distinct_pairs
from verl_gsd.planning.greedy import allocate_greedily
from verl_gsd.planning.rates import check_entries, expected_std, fidelity, mixed_rate
from verl_gsd.planning.urn import expected_std_by_size, fidelity_by_size, mixed_gain_by_size

Objective = Literal["expected_std", "mixed", "fidelity"]

#: Gains are rounded to this many decimals, so that rounding errors do not distinguish prompts at p and 1-p. A smaller
#: gain counts as zero.
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
        p: (n_prompts,) solve rates. The cost grows with the number of distinct rates.
        total: rollouts to allocate.
        objective: ``expected_std`` and ``mixed`` (the probability of a mixed group) maximize their sum over prompts.
            ``fidelity`` raises the prompt with the lowest fidelity first, except prompts at 0 and 1, whose fidelity
            no group size raises.
        minimum: smallest group size, at least 1.
        maximum: largest group size; None for no limit.

    Returns:
        (n_prompts,) int64. If gains are equal, the smaller group is raised first. Sizes of prompts with equal rates
        differ by at most one, and the earlier prompts have the larger groups.

    Raises:
        ValueError: a rate is outside [0, 1] (the message names the entry), the bounds contradict each other or
            ``total``, or the objective is unknown.
    """
    rates = np.asarray(p, dtype=float)
    if rates.ndim != 1:
        raise ValueError(f"p has shape {rates.shape}. Use one rate per prompt, shape (n_prompts,).")
    check_entries((rates >= 0) & (rates <= 1), rates, "p", "a rate between 0 and 1")
    total, minimum = _integer(total, "total"), _integer(minimum, "minimum")
    maximum = None if maximum is None else _integer(maximum, "maximum")
    _check_bounds(len(rates), total, objective, minimum, maximum)
    distinct, entry_of_prompt, n_prompts = np.unique(rates, return_inverse=True, return_counts=True)

    def gains(entries: np.ndarray, depth: int) -> np.ndarray:
        return _gains(distinct[entries], objective, minimum, depth)

    return allocate_greedily(gains, entry_of_prompt, n_prompts, total, minimum, maximum)


def allocate_from_counts(
    correct: ArrayLike,
    total: ArrayLike,
    rollouts: int,
    *,
    objective: Objective = "expected_std",
    prior: tuple[float, float] = (1.0, 1.0),
    partial: ArrayLike = 0.0,
    minimum: int = 2,
    maximum: int | None = None,
) -> np.ndarray:
    """Group sizes that sum to ``rollouts``, for prompts with few or no earlier responses.

    A solve rate has the posterior Beta(a + correct, b + total - correct), and the expected value of the objective
    under it is used. A prompt with a few wrong responses is therefore not treated as a prompt at rate 0, which would
    get the minimum forever.

    Args:
        correct, total: (n_prompts,), numbers of correct responses and of all responses. They may be fractions,
            because verdicts can be fractions and old responses can be discounted. The cost grows with the number of
            distinct pairs and with the square of the largest group.
        rollouts: rollouts to allocate.
        objective: as in ``allocate``; ``fidelity`` is E[sigma_hat] / E[sqrt(p (1-p))].
        prior: (a, b), both above 0; (1, 1) is uniform.
        partial: (n_prompts,) sums of verdict (1 - verdict). 0 if every verdict is 0 or 1. See ``counts.posterior``.
        minimum, maximum: as in ``allocate``.

    Returns:
        (n_prompts,) int64. If gains are equal, the smaller group is raised first. Sizes of prompts with equal counts
        differ by at most one, and the earlier prompts have the larger groups.

    Raises:
        ValueError: counts or prior are out of range (the message names the entry), the bounds contradict each other
            or ``rollouts``, or the objective is unknown.
    """
    a, b = posterior(correct, total, prior, partial)
    if a.ndim != 1:
        raise ValueError(f"correct has shape {a.shape}. Use one count per prompt, shape (n_prompts,).")
    rollouts, minimum = _integer(rollouts, "rollouts"), _integer(minimum, "minimum")
    maximum = None if maximum is None else _integer(maximum, "maximum")
    _check_bounds(len(a), rollouts, objective, minimum, maximum, names=("correct", "rollouts"))
    distinct, entry_of_prompt, n_prompts = distinct_pairs(a, b)

    def gains(entries: np.ndarray, depth: int) -> np.ndarray:
        a, b = distinct[:, entries]
        return _posterior_gains(a, b, objective, minimum, depth)

    return allocate_greedily(gains, entry_of_prompt, n_prompts, rollouts, minimum, maximum)


def _gains(rates: np.ndarray, objective: Objective, minimum: int, depth: int) -> np.ndarray:
    """(n_rates, depth): the gain from raising a group of ``minimum`` + j by one. No row increases."""
    sizes = np.arange(minimum, minimum + depth + 1)
    if objective == "fidelity":
        interior = (rates > 0) & (rates < 1)
        lowest_first = -np.asarray(fidelity(rates[:, None], sizes[:-1])).round(_DIGITS)
        return np.where(interior[:, None], lowest_first, -np.inf)
    value = {"expected_std": expected_std, "mixed": mixed_rate}[objective](rates[:, None], sizes)
    return np.diff(value, axis=1).round(_DIGITS)


def _posterior_gains(a: np.ndarray, b: np.ndarray, objective: Objective, minimum: int, depth: int) -> np.ndarray:
    """``_gains`` for rates with the posteriors Beta(a, b), each (n,)."""
    if objective == "fidelity":
        gains = -fidelity_by_size(a, b, minimum + depth - 1)[:, minimum - 1 :]
    elif objective == "mixed":
        gains = mixed_gain_by_size(a, b, minimum + depth - 1)[:, minimum - 1 :]
    else:
        gains = np.diff(expected_std_by_size(a, b, minimum + depth)[:, minimum - 1 :], axis=1)
    return gains.round(_DIGITS)


def _integer(value: int, name: str) -> int:
    if not (np.ndim(value) == 0 and np.isfinite(value) and value == int(value)):
        raise ValueError(f"{name}={value} is not an integer. Set it to a whole number.")
    return int(value)


def _check_bounds(
    n_prompts: int,
    total: int,
    objective: str,
    minimum: int,
    maximum: int | None,
    names: tuple[str, str] = ("p", "total"),
) -> None:
    """Raise a ValueError if the arguments of ``allocate`` contradict each other.

    Args:
        names: what the caller names the prompts and the total, for the messages.
    """
    prompts, rollouts = names
    if objective not in ("expected_std", "mixed", "fidelity"):
        raise ValueError(f"objective={objective!r} is unknown. Use one of expected_std, mixed, fidelity.")
    if n_prompts == 0:
        raise ValueError(f"{prompts} is empty. Use at least one prompt.")
    if minimum < 1:
        raise ValueError(f"minimum={minimum} is too small. Set it to 1 or more.")
    if maximum is not None and maximum < minimum:
        raise ValueError(f"maximum={maximum} is below minimum={minimum}. Set maximum to {minimum} or more.")
    if total < minimum * n_prompts:
        raise ValueError(
            f"{rollouts}={total} is too small: {n_prompts} prompts need the minimum of {minimum} each. Set it to "
            f"{minimum * n_prompts} or more, or use a smaller minimum."
        )
    if maximum is not None and total > maximum * n_prompts:
        raise ValueError(
            f"{rollouts}={total} is too large: {n_prompts} prompts take at most {maximum} each. Set it to "
            f"{maximum * n_prompts} or less, or use a larger maximum."
        )
