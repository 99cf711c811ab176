"""A run as a learning curve: held-out accuracy by what was generated in training.

Tokens are those of all responses that the run's records count, whatever became of their group: an evicted group was
generated like any other. Not counted are what records do not have: steps that a resume undid, groups that waited when
training ended, validation, and a judge's answers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Curve:
    """One run of a method.

    Attributes:
        label: of the method; runs of one label differ by their seed.
        data_source: of the held-out prompts.
        steps: of the validations, rising.
        tokens: all that training had generated when each was made, rising.
        accuracy: in [0, 1], mean of verl's ``val-core/<data_source>/acc/mean@N``.
        run: the folder it was read from.
        total_steps: the run's length as configured; None where the config does not say.
        validation: what an accuracy depends on beside the policy, by the config's key; empty where nobody knows.

    Raises:
        ValueError: lengths differ, steps or tokens do not rise, or an accuracy is none; the message names the entry.
    """

    label: str
    seed: int
    data_source: str
    steps: tuple[int, ...]
    tokens: tuple[int, ...]
    accuracy: tuple[float, ...]
    run: str = ""
    total_steps: int | None = None
    validation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.steps) == len(self.tokens) == len(self.accuracy) >= 1:
            lengths = f"{len(self.steps)} steps, {len(self.tokens)} tokens, {len(self.accuracy)} accuracies"
            raise ValueError(f"{lengths}: write as many of each, at least one")
        for name in ("steps", "tokens"):
            values = getattr(self, name)
            if values[0] < 0:
                raise ValueError(f"{name}[0]={values[0]}: write 0 or more")
            for place, (before, after) in enumerate(pairwise(values), start=1):
                if after <= before:
                    raise ValueError(f"{name}[{place}]={after}: write more than the {before} before it")
        for place, value in enumerate(self.accuracy):
            if not 0 <= value <= 1:
                raise ValueError(f"accuracy[{place}]={value}: write a share in [0, 1]")

    @property
    def name(self) -> str:
        return f"{self.label} seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether its last validation was after the last step that was asked for, as far as that is known."""
        return self.total_steps is None or self.steps[-1] >= self.total_steps

    def at(self, tokens: float) -> float:
        """Accuracy after that many generated tokens, on the line between two validations; NaN before the first.

        Raises:
            ValueError: the run did not generate as many.
        """
        if tokens > self.tokens[-1]:
            raise ValueError(f"{self.name}: has no accuracy at {tokens:.0f} tokens, its last is at {self.tokens[-1]}")
        return math.nan if tokens < self.tokens[0] else float(np.interp(tokens, self.tokens, self.accuracy))


def require_comparable(curves: Sequence[Curve]) -> None:
    """Refuse curves whose accuracies are not of the same thing, or that are two of one label and seed.

    A key of ``validation`` that one of two runs does not know is not compared.

    Raises:
        ValueError: the message names two of them and what differs.
    """
    known: dict[str, tuple[Any, Curve]] = {}
    taken: dict[tuple[str, int], Curve] = {}
    for curve in curves:
        for key, value in {"data source": curve.data_source, **curve.validation}.items():
            other, holder = known.setdefault(key, (value, curve))
            if other != value:
                raise ValueError(
                    f"{holder.run} and {curve.run}: {key} is {other!r} and {value!r}, so that their accuracies cannot "
                    "be compared. Leave one of the two out"
                )
        twin = taken.setdefault((curve.label, curve.seed), curve)
        if twin is not curve:
            raise ValueError(
                f"{twin.run} and {curve.run}: both are {curve.name}. Leave one out, or write LABEL=RUN to rename it"
            )
