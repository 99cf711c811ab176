r"""Which prompts to visit next: those whose answers are expected to disagree.

A prompt's solve rate p has the posterior Beta(a, b): the prior's a plus correct, and its b plus total - correct. What a
visit is worth is the probability that two of its answers differ,

    E[2 p (1-p)] = 2 a b / ((a + b) (a + b + 1)),

which is 2 G/(G-1) times the E[sigma_hat^2] of a group of any size G >= 2: the expected gain under alpha=0 of
arXiv 2607.00152. Under the uniform prior a prompt never seen has 1/3 and one right in all of 8 answers .164; nothing
exceeds 1/2.

A prompt is drawn with chance

    q_i = (1 - explore) w_i / sum_j w_j  +  explore / N,

again and again without replacement. Its chance to be among B draws is at least 1 - (1 - explore/N)^B, whatever the
weights are: on average it waits for no more than about 1/explore passes over the N prompts.
"""

from __future__ import annotations

import numpy as np

from verl_gsd.planning.rates import refuse


def expected_disagreement(
    correct: np.ndarray, total: np.ndarray, prior: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """E[2 p (1-p)] under Beta(a + correct, b + total - correct).

    Args:
        correct, total: (n,) sums of accuracies and of responses, real numbers since old ones may count less.
        prior: (a, b), both above 0; (1, 1) is uniform.

    Raises:
        ValueError: not 0 <= correct <= total (naming the entry).
    """
    correct, total = np.asarray(correct, dtype=float), np.asarray(total, dtype=float)
    # Sums of shares such as 0.1 exceed what they are shares of by rounding.
    possible = (correct >= 0) & (correct <= total * (1 + 1e-9))
    refuse(~possible, correct, "correct", "no less than 0 and no more than total")
    right, wrong = prior[0] + correct, prior[1] + np.maximum(total - correct, 0)
    both = right + wrong
    return 2 * right * wrong / (both * (both + 1))


def chances(weight: np.ndarray, explore: float) -> np.ndarray:
    """(n,) q_i above, which sum to 1, from ``weight`` (n,), each above 0."""
    return (1 - explore) / weight.sum() * weight + explore / len(weight)


def draw(chance: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) distinct places in ``chance`` (n,), in the order they are drawn: one after another by ``chance``.

    Each place has a clock that rings after an exponential time of rate ``chance``; the first ``count`` to ring are the
    draws (Efraimidis and Spirakis, Information Processing Letters 97, 2006). Time grows as n.

    Raises:
        ValueError: ``count`` exceeds n.
    """
    if count > len(chance):
        raise ValueError(f"count={count}: write no more than there are, {len(chance)}")
    rings = rng.standard_exponential(len(chance)) / chance
    first = np.argpartition(rings, count - 1)[:count]
    return first[np.argsort(rings[first], kind="stable")]


def effective_number(chance: np.ndarray) -> float:
    """1 / sum q_i^2: that many prompts of equal chance would be met again as often."""
    return float(1 / np.square(chance).sum())
