"""The config section ``algorithm.gsd.dagrpo``, without its ``judge`` and ``demonstrations``; needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from verl_gsd.sections import is_finite, is_number, is_whole, settings_of

MASKS = ("pairs", "min", "mean", "max")
DEMONSTRATION_RATIOS = ("shaped", "one")
#: Losses of the policy's own rows whose tokens are added up by verl's aggregation and nothing else.
ON_POLICY_LOSSES = ("vanilla", "gspo")
#: Sub-sections that other parts read.
PARTS = ("judge", "demonstrations")


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
        """From a number, ``{from: 1, to: 5, steps: 200}`` or ``{quantile: 0.25}``; a ValueError says what is wrong."""
        if value == "-.inf":  # what YAML reads as a number, a command line does not
            value = -math.inf
        if is_number(value) and not math.isnan(value):
            return cls(float(value), float(value))
        if isinstance(value, Mapping):
            found: dict[Any, Any] = dict(value)
            quantile: Any = found.get("quantile")
            if set(found) == {"quantile"} and is_number(quantile) and 0 <= quantile <= 1:
                return cls(quantile=float(quantile))
            ends: list[Any] = [found.get("from"), found.get("to")]
            steps: Any = found.get("steps")
            counts = is_whole(steps, 1)
            if set(found) == {"from", "to", "steps"} and counts and all(map(is_finite, ends)):
                return cls(float(ends[0]), float(ends[1]), steps)
        raise ValueError(
            f"delta={value}: write a number on the judge's scale (-.inf keeps every pair), {{from: 1, to: 5, steps: "
            "200}, or {quantile: 0.25} of each batch's gaps"
        )


@dataclass(frozen=True)
class Settings:
    """What the mask is.

    Attributes:
        delta: see ``Delta``.
        signed: the better response's score less the worse one's; False: the gap whatever its sign.
        mask: ``pairs``, or ``min``, ``mean``, ``max``: a mask on responses, by that of their gaps to the other class.
        rescale: multiply a batch's advantages by N / N_kept, rows of mixed groups over those that are not masked.
        fail_closed: a failed judgement masks its pairs instead of keeping them.
        probe_every: steps between two measurements of the cosine between the gradients of positives and negatives;
            None for none.

    Raises:
        ValueError: a value is out of range.
    """

    delta: Delta
    signed: bool = True
    mask: Literal["pairs", "min", "mean", "max"] = "pairs"
    rescale: bool = False
    fail_closed: bool = False
    probe_every: int | None = None

    def __post_init__(self) -> None:
        for name in ("signed", "rescale", "fail_closed"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)}: write true or false")
        if self.mask not in MASKS:
            raise ValueError(f"mask={self.mask}: write one of {', '.join(MASKS)}")
        every = self.probe_every
        if every is not None and not is_whole(every, 1):
            raise ValueError(f"probe_every={every}: write a number of steps, 1 or more, or null")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Settings:
        """From the config section; a ValueError for a key nobody reads or a value that is missing."""
        return settings_of(cls, section, beside=PARTS, delta=Delta.of(section.get("delta")))


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
