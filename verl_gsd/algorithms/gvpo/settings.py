"""The config section ``algorithm.gsd.gvpo``, and checks of the settings of GVPO's loss. It does not import torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from verl_gsd.scalars import is_finite
from verl_gsd.settings import SectionSettings, did_you_mean

NORMALIZERS = ("k-1", "k", "none")
REFERENCES = ("old", "ref")


class GvpoSettings(SectionSettings):
    """GVPO's settings in the trainer.

    Attributes:
        grouping: how the weights of a group are computed although verl spreads its rows over micro-batches and workers.
            ``whole``: micro-batches hold whole groups. ``prepass``: a forward pass without gradients before the update
            of each mini-batch. ``auto``: ``whole`` if groups fit, otherwise ``prepass``.
        history_fraction: share of each group that is earlier responses to the same prompt.
        allow_second_kl: whether a second KL term, in the reward or added to the loss, is allowed.
    """

    grouping: Literal["auto", "whole", "prepass"] = "auto"
    history_fraction: float = Field(0.0, ge=0, lt=1)
    allow_second_kl: bool = False


def check_gvpo_settings(beta: Any, normalizer: Any, reference: Any = "old", var: Any = True, cov: Any = True) -> None:
    """Raise a ValueError that names the first setting of GVPO's loss that is wrong."""
    if not (is_finite(beta) and beta > 0):
        raise ValueError(f"beta={beta}: out of range. Set it to a finite number above 0. The paper uses 0.1.")
    for name, value, choices in (("normalizer", normalizer, NORMALIZERS), ("reference", reference, REFERENCES)):
        if value not in choices:
            raise ValueError(
                f"{name}={value}: no such value. Set it to one of {', '.join(choices)}.{did_you_mean(value, choices)}"
            )
    for name, value in (("var", var), ("cov", cov)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value}: wrong type ({type(value).__name__}). Set it to true or false.")
