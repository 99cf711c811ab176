r"""Sampling of the prompts to visit next: prompts whose responses are expected to disagree are drawn more often.

A prompt's solve rate p has the posterior Beta(a, b), with a = prior a + correct and b = prior b + total - correct. The
weight of a prompt is the probability that two of its responses have different rewards,

    E[2 p (1-p)] = 2 a b / ((a + b) (a + b + 1)).

Verdicts between 0 and 1 (partial credit) count by their spread: the weight is then the expected squared difference of
two verdicts (``planning.counts.posterior``). A prompt whose responses all get 0.5 is as settled as one whose responses
are all right.

The weight is 2 G/(G-1) times E[sigma_hat^2] for a group of any size G >= 2, the expected gain at alpha=0 in
arXiv 2607.00152. Under the uniform prior, the weight is 1/3 for a prompt never seen and 0.164 for one with 8 of 8
responses correct. The weight never exceeds 1/2.

Prompts are drawn one after another without replacement, with probability

    q_i = (1 - explore) w_i / sum_j w_j  +  explore / N.

A prompt is among B draws with probability at least 1 - (1 - explore/N)^B, whatever the weights are. On average it waits
for at most about 1/explore passes over the N prompts.
"""

from __future__ import annotations

import numpy as np

from verl_gsd.planning.counts import posterior
from verl_gsd.planning.rates import check_entries


def expected_disagreement(
    correct: np.ndarray,
    total: np.ndarray,
    prior: tuple[float, float] = (1.0, 1.0),
    *,
    partial: np.ndarray | float = 0.0,
) -> np.ndarray:
    """The expected squared difference of two verdicts: E[2 p (1-p)] under Beta(a + correct, b + total - correct).

    Args:
        correct, total: (n,) sums of accuracies and numbers of responses. They may be fractions, because old responses
            can be discounted.
        prior: (a, b), both above 0; (1, 1) is uniform.
        partial: (n,) sums of acc (1 - acc); 0 if every accuracy is 0 or 1.

    Raises:
        ValueError: not 0 <= correct <= total, or ``partial`` is out of range; the message names the entry.
    """
    correct, total = np.asarray(correct, dtype=float), np.asarray(total, dtype=float)
    # Rounding can make a sum of fractional verdicts, such as 0.1, slightly larger than the number of responses.
    valid = (correct >= 0) & (correct <= total * (1 + 1e-9))
    check_entries(valid, correct, "correct", "a number from 0 to the same entry of total")
    right, wrong = posterior(correct, total, prior, partial)
    both = right + wrong
    return 2 * right * wrong / (both * (both + 1))


def chances(weight: np.ndarray, explore: float) -> np.ndarray:
    """(n,) the probabilities q_i above, which sum to 1. Every entry of ``weight`` (n,) must be above 0."""
    return (1 - explore) / weight.sum() * weight + explore / len(weight)


def draw(chance: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) distinct indices, drawn one after another with probabilities ``chance`` (n,), in the order of the draws.

    Each index gets an exponential waiting time of rate ``chance``, and the ``count`` smallest times are the draws
    (Efraimidis and Spirakis, Information Processing Letters 97, 2006). The run time is linear in n.

    Raises:
        ValueError: ``count`` exceeds n.
    """
    if count > len(chance):
        raise ValueError(f"count={count} is too large. Use at most {len(chance)}, the number of entries.")
    times = rng.standard_exponential(len(chance)) / chance
    first = np.argpartition(times, count - 1)[:count]
    return first[np.argsort(times[first], kind="stable")]


def effective_number(chance: np.ndarray) -> float:
    """1 / sum q_i^2: the number of equally likely prompts whose draws would repeat as often."""
    return float(1 / np.square(chance).sum())
