"""The config section ``algorithm.gsd.dagrpo`` without its subsections, and checks of the settings of its loss.

It does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, field_validator

from verl_gsd.scalars import is_finite, is_number, is_whole
from verl_gsd.settings import SectionSettings, did_you_mean

DEMONSTRATION_RATIOS = ("shaped", "one")
#: Losses of the policy's own responses that ``loss_mode=dagrpo`` works with, because only verl's aggregation sums over
#: their tokens.
ON_POLICY_LOSSES = ("vanilla", "gspo")


@dataclass(frozen=True)
class MaskDelta:
    """The gap from which a pair counts, on the judge's scale. It is fixed, changes linearly, or is a quantile.

    Attributes:
        first, last: delta at step 1, and from step ``steps`` + 1 on. In between, delta is interpolated linearly. Both
            are equal if delta is fixed.
        steps: 0 if delta is fixed.
        quantile: delta is this quantile of the current batch's gaps, in [0, 1]. The paper leaves such an adaptive delta
            as an open question. If a judge often contradicts the verifier, the quantile becomes negative and keeps
            pairs on which the two disagree.
    """

    first: float = -math.inf
    last: float = -math.inf
    steps: int = 0
    quantile: float | None = None

    def at(self, steps_done: int) -> float:
        """Delta after ``steps_done`` steps, if it is not a quantile."""
        if steps_done >= self.steps:
            return self.last
        return self.first + (self.last - self.first) * steps_done / self.steps

    @property
    def keeps_all(self) -> bool:
        """Whether no gap ever masks a pair, so that no judge is needed."""
        return self.quantile is None and self.first == self.last == -math.inf

    @classmethod
    def of(cls, value: Any) -> MaskDelta:
        """Read a number, ``{from: 1, to: 5, steps: 200}`` or ``{quantile: 0.25}``.

        Raises:
            ValueError: ``value`` is none of these.
        """
        if isinstance(value, cls):
            return value
        if value == "-.inf":  # a number in YAML, but a string on the command line
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
            has_steps = is_whole(steps, 1)
            if set(keys) == {"from", "to", "steps"} and has_steps and all(map(is_finite, ends)):
                return cls(float(ends[0]), float(ends[1]), steps)
        raise ValueError(
            "not a score gap. Set it to a number on the judge's scale (-.inf keeps every pair), to {from: 1, to: 5, "
            "steps: 200}, or to {quantile: 0.25} for a quantile of each batch's gaps"
        )


class MaskSettings(SectionSettings):
    """Settings of the mask.

    Attributes:
        delta: the gap from which a pair counts, on the judge's scale: a number, ``{from: 1, to: 5, steps: 200}`` for a
            schedule, or ``{quantile: 0.25}`` for a quantile of each batch's gaps (``MaskDelta``).
        signed: whether a gap is the better response's score minus the worse one's. If False, it is the absolute
            difference.
        mask: ``pairs`` masks pairs. ``min``, ``mean`` and ``max`` mask responses, by the minimum, mean or maximum of
            their gaps to the responses of the other class.
        rescale: multiply a batch's advantages by N / N_kept: the rows of mixed groups, divided by those of them that
            are not masked.
        fail_closed: whether a failed judgement masks its pairs instead of keeping them.
        probe_every: number of steps between two measurements of the cosine between the gradients of rows with positive
            and with negative advantages; None for no measurement.
    """

    parts = ("judge", "demonstrations")

    delta: MaskDelta = MaskDelta(3.0, 3.0)
    signed: bool = True
    mask: Literal["pairs", "min", "mean", "max"] = "pairs"
    rescale: bool = False
    fail_closed: bool = False
    probe_every: int | None = Field(None, ge=1)

    @field_validator("delta", mode="plain")
    @classmethod
    def _read_delta(cls, value: Any) -> MaskDelta:
        return MaskDelta.of(value)


def check_on_policy(loss: Any) -> None:
    """Raise a ValueError if ``loss`` does not work with demonstrations."""
    if loss not in ON_POLICY_LOSSES:
        raise ValueError(
            f"on_policy={loss}: no such value. Set it to one of {', '.join(ON_POLICY_LOSSES)}."
            f"{did_you_mean(loss, ON_POLICY_LOSSES)}"
        )


def check_ratio(ratio: Any, gamma: Any) -> None:
    """Raise a ValueError that names the first wrong setting of the ratio on demonstrations."""
    if ratio not in DEMONSTRATION_RATIOS:
        raise ValueError(
            f"ratio={ratio}: no such value. Set it to one of {', '.join(DEMONSTRATION_RATIOS)}."
            f"{did_you_mean(ratio, DEMONSTRATION_RATIOS)}"
        )
    if not (is_finite(gamma) and gamma > 0):
        raise ValueError(f"gamma={gamma}: out of range. Set it to a finite number above 0. The paper uses 0.1.")
