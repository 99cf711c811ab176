"""HA-DW's anchors: running estimates of the policy's accuracy (arXiv 2601.08521).

``factor.py`` has the equations and explains our choices.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Anchor(Protocol):
    """A running accuracy. ``value`` is None before the first observation."""

    @property
    def value(self) -> float | None: ...

    def observe(self, correct: float, total: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FixedAnchor:
    """An anchor that never changes.

    Raises:
        ValueError: ``value`` is outside [0, 1].
    """

    def __init__(self, value: float) -> None:
        self.value: float | None = _rate(value, 1)

    def observe(self, correct: float, total: int) -> None:
        _rate(correct, total)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value = state["value"]


class HardAnchor:
    """The mean of the last ``window`` batch accuracies. At the start of a run it is the mean of fewer.

    Raises:
        ValueError: ``window`` is not positive.
    """

    def __init__(self, window: int = 10) -> None:
        self._window = _positive(window)
        self._accuracies: list[float] = []

    @property
    def value(self) -> float | None:
        return math.fsum(self._accuracies) / len(self._accuracies) if self._accuracies else None

    def observe(self, correct: float, total: int) -> None:
        """Observe a batch of ``total`` responses. ``correct`` is the sum of their accuracies.

        Raises:
            ValueError: ``total`` is not positive, or ``correct`` is outside [0, total].
        """
        self._accuracies = [*self._accuracies, _rate(correct, total)][-self._window :]

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": list(self._accuracies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._accuracies = list(state["accuracies"])


class SoftAnchor:
    """An exponential moving average C whose rate eta_t grows with the recent variation of C itself.

    Args:
        eta: eta_t = eta * sigma_t, before it is clipped.
        window: m, the number of latest values of C over which sigma_t is computed.
        floor, cap: bounds of eta_t.
        seeds: the number of batches at the start for which C is set to the batch's accuracy.

    Attributes:
        value: C; None before the first observation.
        rate: the last eta_t; 1 during the seed batches.

    Raises:
        ValueError: ``window`` or ``seeds`` is not positive, eta is negative, or 0 <= floor <= cap <= 1 does not hold.
    """

    def __init__(
        self, eta: float = 20.0, window: int = 10, floor: float = 0.05, cap: float = 0.2, seeds: int = 1
    ) -> None:
        if not (0 <= floor <= cap <= 1 and eta >= 0):
            raise ValueError(
                f"eta={eta}, floor={floor}, cap={cap}: out of range. Use eta >= 0 and 0 <= floor <= cap <= 1."
            )
        self._eta, self._window, self._floor, self._cap = eta, _positive(window), floor, cap
        self._seeds = _positive(seeds)
        self._seen = 0
        self._path: list[float] = []
        self.rate = 1.0

    @property
    def value(self) -> float | None:
        return self._path[-1] if self._path else None

    def observe(self, correct: float, total: int) -> None:
        """Observe a batch of ``total`` responses. ``correct`` is the sum of their accuracies.

        Raises:
            ValueError: ``total`` is not positive, or ``correct`` is outside [0, total].
        """
        accuracy = _rate(correct, total)
        self._seen += 1
        if self._seen <= self._seeds:
            self._path.append(accuracy)
        else:
            # Compare max and min first: in floats, the standard deviation of equal values need not be 0.
            spread = 0.0 if max(self._path) == min(self._path) else statistics.pstdev(self._path)
            self.rate = min(max(self._eta * spread, self._floor), self._cap)
            self._path.append((1 - self.rate) * self._path[-1] + self.rate * accuracy)
        self._path = self._path[-self._window :]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "path": list(self._path), "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._path, self.rate = state["seen"], list(state["path"]), state["rate"]


class AnchorBank:
    """One anchor per data source, and one anchor over all sources.

    Prompts of a source use the overall anchor until the bank has observed ``n_min`` responses of that source.

    Args:
        make_anchor: builds an anchor. It is called once per source and once for the overall anchor.
        n_min: see above.
    """

    def __init__(self, make_anchor: Callable[[], Anchor], n_min: int) -> None:
        self._make_anchor, self._n_min = make_anchor, n_min
        self.overall = make_anchor()
        self.sources: dict[str, Anchor] = {}
        self._observed: dict[str, int] = {}  # source -> responses observed

    def value(self, source: str) -> float | None:
        """C for prompts of ``source``; None before the first observation."""
        has_own_anchor = self._observed.get(source, 0) >= self._n_min
        return (self.sources[source] if has_own_anchor else self.overall).value

    def observe(self, groups: Iterable[tuple[str, float, int]]) -> None:
        """Observe one batch: (source, correct, total) of every group that left the buffer, trained on or not."""
        counted = [(source, correct, total) for source, correct, total in groups if total]
        if not counted:
            return
        self.overall.observe(math.fsum(correct for _, correct, _ in counted), sum(total for *_, total in counted))
        for name in sorted({source for source, _, _ in counted}):
            of_source = [(correct, total) for source, correct, total in counted if source == name]
            correct, total = math.fsum(correct for correct, _ in of_source), sum(total for _, total in of_source)
            self.sources.setdefault(name, self._make_anchor()).observe(correct, total)
            self._observed[name] = self._observed.get(name, 0) + total

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        sources = {name: anchor.state_dict() for name, anchor in self.sources.items()}
        return {"overall": self.overall.state_dict(), "sources": sources, "shown": dict(self._observed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned, for a bank with the same arguments."""
        self.overall.load_state_dict(state["overall"])
        self.sources = {name: self._make_anchor() for name in state["sources"]}
        for name, anchor in self.sources.items():
            anchor.load_state_dict(state["sources"][name])
        self._observed = dict(state["shown"])


def _rate(correct: float, total: int) -> float:
    if not (total > 0 and 0 <= correct <= total):
        raise ValueError(f"{correct} correct of {total}: impossible. Use total > 0 and 0 <= correct <= total.")
    return correct / total


def _positive(count: int) -> int:
    if count < 1:
        raise ValueError(f"window or seeds of {count}: out of range. Set both to 1 or more.")
    return count
