"""The config section ``algorithm.gsd.dagrpo`` without its parts, and settings of the loss; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from verl_gsd.scalars import is_finite, is_number, is_whole
from verl_gsd.settings import SectionSettings, did_you_mean

DEMONSTRATION_RATIOS = ("shaped", "one")
#: Losses of the policy's own rows whose tokens are added up by verl's aggregation and nothing else.
ON_POLICY_LOSSES = ("vanilla", "gspo")


@dataclass(frozen=True)
class Delta:
    """The gap from which a pair counts, on the judge's scale: fixed, going from one value to another, or a quantile.

    Attributes:
        first, last: at step 1 and from step ``steps`` + 1 on, linear between; equal where fixed.
        steps: 0 where fixed.
        quantile: of the gaps of the batch at hand, in [0, 1]; the paper's open question of an adaptive delta. A judge
            that often contradicts the verifier makes it negative, and then keeps such pairs.
    """

    first: float = -math.inf
    last: float = -math.inf
    steps: int = 0
    quantile: float | None = None

    def at(self, steps_done: int) -> float:
        """delta after ``steps_done`` steps, where it is no quantile."""
        if steps_done >= self.steps:
            return self.last
        return self.first + (self.last - self.first) * steps_done / self.steps

    @property
    def keeps_all(self) -> bool:
        """Whether no pair is ever masked for its gap, so that no judge is needed."""
        return self.quantile is None and self.first == self.last == -math.inf

    @classmethod
    def of(cls, value: Any) -> Delta:
        """From a number, ``{from: 1, to: 5, steps: 200}`` or ``{quantile: 0.25}``.

        Raises:
            ValueError: it is none of these.
        """
        if isinstance(value, cls):
            return value
        if value == "-.inf":  # what YAML reads as a number, a command line does not
            value = -math.inf
        if is_number(value) and not math.isnan(value):
            return cls(float(value), float(value))
        if isinstance(value, Mapping):
            keys: dict[Any, Any] = dict(value)
            quantile: Any = keys.get("quantile")
            if set(keys) == {"quantile"} and is_number(quantile) and 0 <= quantile <= 1:
                return cls(quantile=float(quantile))
            ends: list[Any] = [keys.get("from"), keys.get("to")]
            steps: Any = keys.get("steps")
            counts = is_whole(steps, 1)
            if set(keys) == {"from", "to", "steps"} and counts and all(map(is_finite, ends)):
                return cls(float(ends[0]), float(ends[1]), steps)
        raise ValueError(
            "not a gap. Set it to a number on the judge's scale (-.inf keeps every pair), to {from: 1, to: 5, steps: "
            "200}, or to {quantile: 0.25} of each batch's gaps"
        )


class MaskSettings(SectionSettings):
    """Settings of the mask.

    Attributes:
        delta: see ``Delta``.
        signed: the better response's score less the worse one's; False: the gap whatever its sign.
        mask: ``pairs``, or ``min``, ``mean``, ``max``: a mask on responses, by that of their gaps to the other class.
        rescale: multiply a batch's advantages by N / N_kept, rows of mixed groups over those that are not masked.
        fail_closed: a failed judgement masks its pairs instead of keeping them.
        probe_every: steps between two measurements of the cosine between the gradients of positives and negatives;
            None for none.
    """

    parts = ("judge", "demonstrations")

    delta: Delta = Delta(3.0, 3.0)
    signed: bool = True
    mask: Literal["pairs", "min", "mean", "max"] = "pairs"
    rescale: bool = False
    fail_closed: bool = False
    probe_every: int | None = Field(None, ge=1)

    @field_validator("delta", mode="plain")
    @classmethod
    def _read_delta(cls, value: Any) -> Delta:
        return Delta.of(value)


def check_on_policy(loss: Any) -> None:
    """Raise a ValueError if ``loss`` is not one of those that work with demonstrations."""
    if loss not in ON_POLICY_LOSSES:
        raise ValueError(
            f"on_policy={loss}: no such value. Set it to one of {', '.join(ON_POLICY_LOSSES)}."
            f"{did_you_mean(loss, ON_POLICY_LOSSES)}"
        )


def check_ratio(ratio: Any, gamma: Any) -> None:
    """Raise a ValueError that names the setting of a demonstration's ratio which is out of range."""
    if ratio not in DEMONSTRATION_RATIOS:
        raise ValueError(
            f"ratio={ratio}: no such value. Set it to one of {', '.join(DEMONSTRATION_RATIOS)}."
            f"{did_you_mean(ratio, DEMONSTRATION_RATIOS)}"
        )
    if not (is_finite(gamma) and gamma > 0):
        raise ValueError(f"gamma={gamma}: out of range. Set it to a finite number above 0; the paper's is 0.1.")
