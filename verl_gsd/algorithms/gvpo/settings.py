"""The config section ``algorithm.gsd.gvpo``, and the settings of GVPO's loss; needs no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from verl_gsd.scalars import is_finite
from verl_gsd.settings import SectionSettings, did_you_mean

NORMALIZERS = ("k-1", "k", "none")
REFERENCES = ("old", "ref")


class GvpoSettings(SectionSettings):
    """Settings of GVPO in the trainer.

    Attributes:
        grouping: how a group's weights are made where its rows are spread over micro-batches and workers. ``whole``:
            micro-batches of whole groups; ``prepass``: a pass without gradients before each mini-batch's update;
            ``auto``: whole where it fits.
        history_fraction: share of each group that is earlier responses to the same prompt.
        allow_second_kl: whether a second KL term, in the reward or beside the loss, is allowed.
    """

    grouping: Literal["auto", "whole", "prepass"] = "auto"
    history_fraction: float = Field(0.0, ge=0, lt=1)
    allow_second_kl: bool = False


def check_gvpo_settings(beta: Any, normalizer: Any, reference: Any = "old", var: Any = True, cov: Any = True) -> None:
    """Raise a ValueError that names the setting of GVPO's loss which is out of range."""
    if not (is_finite(beta) and beta > 0):
        raise ValueError(f"beta={beta}: out of range. Set it to a finite number above 0; the paper's is 0.1.")
    for name, value, choices in (("normalizer", normalizer, NORMALIZERS), ("reference", reference, REFERENCES)):
        if value not in choices:
            raise ValueError(
                f"{name}={value}: no such value. Set it to one of {', '.join(choices)}.{did_you_mean(value, choices)}"
            )
    for name, value in (("var", var), ("cov", cov)):
        if not isinstance(value, bool):
            raise ValueError(f"{name}={value}: wrong type ({type(value).__name__}). Set it to true or false.")
