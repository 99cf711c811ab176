"""HA-DW's anchors: the policy's running accuracy (arXiv 2601.08521); ``factor.py`` has equations and our choices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Anchor(Protocol):
    """A running accuracy; ``value`` is None before the first observation."""

    @property
    def value(self) -> float | None: ...

    def observe(self, correct: float, total: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class FixedAnchor:
    """An anchor that does not move.

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
    """The mean of the last ``window`` batch accuracies, of fewer at the start.

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
        """A batch of ``total`` responses with ``correct``, the sum of their accuracies; a ValueError if impossible."""
        self._accuracies = [*self._accuracies, _rate(correct, total)][-self._window :]

    def state_dict(self) -> dict[str, Any]:
        return {"accuracies": list(self._accuracies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._accuracies = list(state["accuracies"])


class SoftAnchor:
    """C moves towards a batch's accuracy the faster, the more it moved lately.

    Args:
        eta: gain on sigma_t.
        window: m, values of C that sigma_t is taken over.
        floor, cap: bounds of eta_t.
        seeds: batches at the start whose accuracy C takes as it is.

    Attributes:
        value: C, or None.
        rate: the last eta_t; 1 while seeding.

    Raises:
        ValueError: ``window`` or ``seeds`` is not positive, or not 0 <= floor <= cap <= 1, or eta is negative.
    """

    def __init__(
        self, eta: float = 20.0, window: int = 10, floor: float = 0.05, cap: float = 0.2, seeds: int = 1
    ) -> None:
        if not (0 <= floor <= cap <= 1 and eta >= 0):
            raise ValueError(f"eta={eta}, floor={floor}, cap={cap}: write eta >= 0 and 0 <= floor <= cap <= 1")
        self._eta, self._window, self._floor, self._cap = eta, _positive(window), floor, cap
        self._seeds = _positive(seeds)
        self._seen = 0
        self._path: list[float] = []
        self.rate = 1.0

    @property
    def value(self) -> float | None:
        return self._path[-1] if self._path else None

    def observe(self, correct: float, total: int) -> None:
        """A batch of ``total`` responses with ``correct``, the sum of their accuracies; a ValueError if impossible."""
        accuracy = _rate(correct, total)
        self._seen += 1
        if self._seen <= self._seeds:
            self._path.append(accuracy)
        else:
            # Decided by max == min: the float standard deviation of equal values need not be 0.
            moved = 0.0 if max(self._path) == min(self._path) else statistics.pstdev(self._path)
            self.rate = min(max(self._eta * moved, self._floor), self._cap)
            self._path.append((1 - self.rate) * self._path[-1] + self.rate * accuracy)
        self._path = self._path[-self._window :]

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self._seen, "path": list(self._path), "rate": self.rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seen, self._path, self.rate = state["seen"], list(state["path"]), state["rate"]


class AnchorBank:
    """An anchor a data source, and one over all, which stands in until a source has shown ``n_min`` responses.

    Args:
        make: builds an anchor; called once a source and once for all together.
    """

    def __init__(self, make: Callable[[], Anchor], n_min: int) -> None:
        self._make, self._n_min = make, n_min
        self.overall = make()
        self.sources: dict[str, Anchor] = {}
        self._shown: dict[str, int] = {}

    def value(self, source: str) -> float | None:
        """C for prompts of ``source``; None before anything was observed."""
        known = self._shown.get(source, 0) >= self._n_min
        return (self.sources[source] if known else self.overall).value

    def observe(self, groups: Iterable[tuple[str, float, int]]) -> None:
        """One batch: (source, correct, total) of every group that left the buffer, whatever its fate."""
        counted = [(source, correct, total) for source, correct, total in groups if total]
        if not counted:
            return
        self.overall.observe(math.fsum(correct for _, correct, _ in counted), sum(total for *_, total in counted))
        for name in sorted({source for source, _, _ in counted}):
            own = [(correct, total) for source, correct, total in counted if source == name]
            total = sum(count for _, count in own)
            self.sources.setdefault(name, self._make()).observe(math.fsum(correct for correct, _ in own), total)
            self._shown[name] = self._shown.get(name, 0) + total

    def state_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        sources = {name: anchor.state_dict() for name, anchor in self.sources.items()}
        return {"overall": self.overall.state_dict(), "sources": sources, "shown": dict(self._shown)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` of a bank made in the same way gave."""
        self.overall.load_state_dict(state["overall"])
        self.sources = {name: self._make() for name in state["sources"]}
        for name, anchor in self.sources.items():
            anchor.load_state_dict(state["sources"][name])
        self._shown = dict(state["shown"])


def _rate(correct: float, total: int) -> float:
    if not (total > 0 and 0 <= correct <= total):
        raise ValueError(f"{correct} correct of {total}: write 0 <= correct <= total and total > 0")
    return correct / total


def _positive(count: int) -> int:
    if count < 1:
        raise ValueError(f"window or seeds of {count}: write 1 or more")
    return count
