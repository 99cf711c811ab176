"""The settings of algorithms, checked without torch, so that a command line can be refused at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd.sections import is_finite

DIAL_SETTINGS = ("alpha", "ddof", "eps")
GVPO_NORMALIZERS = ("k-1", "k", "none")
GVPO_REFERENCES = ("old", "ref")
DEMONSTRATION_RATIOS = ("shaped", "one")
#: Losses of the policy's own rows whose tokens are added up by verl's aggregation and nothing else.
ON_POLICY_LOSSES = ("vanilla", "gspo")


def dial_settings(gsd: Mapping[str, Any]) -> dict[str, Any]:
    """``alpha``, ``ddof`` and ``eps`` of a config section ``algorithm.gsd``.

    Raises:
        ValueError: one is missing or out of range (naming it).
    """
    settings = {name: gsd.get(name) for name in DIAL_SETTINGS}
    for name, value in settings.items():
        if value is None:
            raise ValueError(f"algorithm.gsd.{name} is missing: add algo=gsd, or another of our algorithms")
    check_dial_settings(**settings)
    return settings


def check_dial_settings(alpha: Any, ddof: Any, eps: Any) -> None:
    """Raise a ValueError that names the setting which is out of range."""
    if not is_finite(alpha):
        raise ValueError(f"alpha={alpha}: write a finite number; 1 is GRPO, 0 is Dr. GRPO")
    if ddof not in (0, 1):
        raise ValueError(f"ddof={ddof}: write 0 (population) or 1 (sample)")
    if not (is_finite(eps) and eps >= 0):
        raise ValueError(f"eps={eps}: write a finite number, 0 or more")


def check_gvpo_settings(beta: Any, normalizer: Any, reference: Any = "old") -> None:
    """Raise a ValueError that names the setting of GVPO's loss which is out of range."""
    if not (is_finite(beta) and beta > 0):
        raise ValueError(f"beta={beta}: write a finite number above 0; the paper's is 0.1")
    if normalizer not in GVPO_NORMALIZERS:
        raise ValueError(f"normalizer={normalizer}: write one of {', '.join(GVPO_NORMALIZERS)}")
    if reference not in GVPO_REFERENCES:
        raise ValueError(f"reference={reference}: write one of {', '.join(GVPO_REFERENCES)}")


def check_on_policy(loss: Any) -> None:
    """Raise a ValueError if ``loss`` is not one of those that demonstrations can stand beside."""
    if loss not in ON_POLICY_LOSSES:
        raise ValueError(f"on_policy={loss}: write one of {', '.join(ON_POLICY_LOSSES)}")


def check_ratio(ratio: Any, gamma: Any) -> None:
    """Raise a ValueError that names the setting of a demonstration's ratio which is out of range."""
    if ratio not in DEMONSTRATION_RATIOS:
        raise ValueError(f"ratio={ratio}: write one of {', '.join(DEMONSTRATION_RATIOS)}")
    if not (is_finite(gamma) and gamma > 0):
        raise ValueError(f"gamma={gamma}: write a finite number above 0; the paper's is 0.1")
