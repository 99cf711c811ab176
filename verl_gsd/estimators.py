"""Which advantage estimators compare a response with the other responses of its group."""

from __future__ import annotations

#: The key of the estimator.
ESTIMATOR = "algorithm.adv_estimator"
#: Estimators of verl and of this package under which a group whose rewards are all equal has advantages of 0.
GROUP_BASELINES = frozenset(
    {
        *("gsd", "grpo", "grpo_vectorized", "grpo_passk", "rloo", "rloo_vectorized"),
        *("opo", "gpg", "reinforce_plus_plus_baseline"),
    }
)


def has_group_baseline(estimator: object) -> bool:
    """Whether equal rewards in a group give advantages of 0. True for None, an estimator that is not known.

    Args:
        estimator: the value of ``algorithm.adv_estimator``.
    """
    return estimator is None or str(estimator) in GROUP_BASELINES
