"""The settings of GVPO's loss, checked without torch."""

from __future__ import annotations

from typing import Any

from verl_gsd.sections import is_finite

NORMALIZERS = ("k-1", "k", "none")
REFERENCES = ("old", "ref")


def check_gvpo_settings(beta: Any, normalizer: Any, reference: Any = "old") -> None:
    """Raise a ValueError that names the setting of GVPO's loss which is out of range."""
    if not (is_finite(beta) and beta > 0):
        raise ValueError(f"beta={beta}: write a finite number above 0; the paper's is 0.1")
    if normalizer not in NORMALIZERS:
        raise ValueError(f"normalizer={normalizer}: write one of {', '.join(NORMALIZERS)}")
    if reference not in REFERENCES:
        raise ValueError(f"reference={reference}: write one of {', '.join(REFERENCES)}")
