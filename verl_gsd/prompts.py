"""What a run remembers of each prompt: how often it was visited, how its responses came out, and some of them.

A prompt is known by its key, (data source, dataset index). verl's own uid is new at every visit, and its dataset index
defaults to 0 where a file has none, so uniqueness is checked at start (``run/dataset.py``), and where keys are not
unique a hash of the prompt's text takes the index's place (``prompt_hash``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_gsd.responses import PromptKey, ResponseStore

__all__ = ["PromptKey", "PromptStore", "prompt_hash"]

#: A prompt's place in the store: 48 bytes, next to some 110 of the dictionary that finds it.
_ROW: np.dtype = np.dtype(
    [
        ("source", np.int32),
        ("last_step", np.int32),
        ("index", np.int64),
        ("visits", np.int32),
        ("total", np.int32),
        ("correct", np.float64),
        # As the last two, forgetting: what they amounted to at last_step.
        ("recent_correct", np.float64),
        ("recent_total", np.float64),
    ]
)


@dataclass(frozen=True)
class Known:
    """The prompts of a store: sources' names, and (n_prompts,) each the number of the source, the index, the counts."""

    sources: tuple[str, ...]
    source: np.ndarray
    index: np.ndarray
    correct: np.ndarray
    total: np.ndarray


class PromptStore:
    """A bounded memory of prompts, at most 200 bytes each, and what an algorithm stores of their responses.

    When it is full, the sixteenth of its prompts that were not visited for longest is forgotten.

    Args:
        capacity: prompts remembered at most.
        half_life: trainer steps after which a visit counts half in what is recent; None forgets nothing there.
        prior: (a, b) of Beta, of a prompt's solve rate before its first visit.

    Attributes:
        half_life, prior: as above. An extension may set them before training begins.
        responses: earlier responses, bounded by their tokens; empty unless an algorithm stores some.

    Raises:
        ValueError: ``capacity`` or ``half_life`` is not positive.
    """

    def __init__(
        self,
        capacity: int = 1_000_000,
        half_life: float | None = None,
        prior: tuple[float, float] = (0.5, 0.5),
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: write a number of prompts, 1 or more")
        if half_life is not None and not half_life > 0:
            raise ValueError(f"half_life={half_life}: write a number of steps above 0, or null to forget nothing")
        self.capacity, self.half_life, self.prior = capacity, half_life, prior
        self.responses = ResponseStore()
        self._sources: list[str] = []
        self._places: list[dict[int, int]] = []  # by source: dataset index -> row
        self._rows = np.zeros(0, _ROW)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def observe(self, key: PromptKey, correct: float, total: int, step: int) -> None:
        """Add one visit: ``total`` responses in trainer step ``step``, of which ``correct`` (a sum of accuracies)."""
        place = self._find_or_add(key)  # may move the rows
        row = self._rows[place]
        kept = self._kept(step - row["last_step"])
        row["visits"] += 1
        row["correct"] += correct
        row["total"] += total
        row["recent_correct"] = kept * row["recent_correct"] + correct
        row["recent_total"] = kept * row["recent_total"] + total
        row["last_step"] = step

    def counts(self, keys: Sequence[PromptKey]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(visits, correct, total) over all visits, an entry a key: int, float, int; zeros for a prompt not known."""
        found = self._rows_of(keys)
        return found["visits"], found["correct"], found["total"]

    def recent(self, keys: Sequence[PromptKey], step: int) -> tuple[np.ndarray, np.ndarray]:
        """(correct, total) as they count in trainer step ``step``, no earlier than the last one observed.

        A visit of a steps ago counts 2^(-a / half_life), and 1 without a half-life.

        Returns:
            Two float64 arrays, an entry a key: sums of accuracies and of responses; zeros for a prompt not known.
        """
        found = self._rows_of(keys)
        kept = self._kept(step - found["last_step"])
        return kept * found["recent_correct"], kept * found["recent_total"]

    def known(self, step: int) -> Known:
        """Every prompt, with counts as ``recent`` has them; a prompt stands where it stood until some are forgotten."""
        rows = self._rows[: self._size]
        kept = self._kept(step - rows["last_step"])
        return Known(
            tuple(self._sources),
            rows["source"],
            rows["index"],
            kept * rows["recent_correct"],
            kept * rows["recent_total"],
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered: the sources' names, an array (n_prompts,) a column, and the responses."""
        rows = self._rows[: self._size]
        counts = {name: rows[name].copy() for name in _ROW.names or ()}
        return {"sources": list(self._sources)} | counts | self.responses.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave; a store of a smaller capacity keeps what was visited last."""
        rows = np.zeros(len(state["index"]), _ROW)
        for name in _ROW.names or ():
            # A checkpoint older than what is recent: nothing was forgotten yet.
            rows[name] = state[name] if name in state else state[name.removeprefix("recent_")]
        self._sources = list(state["sources"])
        self.responses.load_state_dict(state)
        self._take(rows)
        if self._size > self.capacity:
            self._forget(self._size - self.capacity)

    def metrics(self) -> dict[str, float]:
        """How many prompts are known, and how often each was visited on average."""
        visits = self._rows["visits"][: self._size]
        return {"prompts/known": float(self._size), "prompts/visits/mean": float(visits.mean()) if self._size else 0.0}

    def _kept(self, age: np.ndarray | int) -> np.ndarray | float:
        """What is left of a visit ``age`` steps ago."""
        return np.exp2(-np.asarray(age, dtype=float) / self.half_life) if self.half_life is not None else 1.0

    def _rows_of(self, keys: Sequence[PromptKey]) -> np.ndarray:
        found = np.zeros(len(keys), _ROW)
        for entry, key in enumerate(keys):
            place = self._find(key)
            if place is not None:
                found[entry] = self._rows[place]
        return found

    def _find(self, key: PromptKey) -> int | None:
        source, index = key
        return self._places[self._sources.index(source)].get(index) if source in self._sources else None

    def _find_or_add(self, key: PromptKey) -> int:
        place = self._find(key)
        if place is not None:
            return place
        if self._size == self.capacity:
            self._forget(max(1, self.capacity // 16))
        source, index = key
        if source not in self._sources:
            self._sources.append(source)
            self._places.append({})
        if self._size == len(self._rows):
            more = min(max(1024, len(self._rows) // 4), self.capacity - len(self._rows))
            self._rows = np.concatenate([self._rows, np.zeros(more, _ROW)])
        place, self._size = self._size, self._size + 1
        number = self._sources.index(source)
        self._rows[place]["source"], self._rows[place]["index"] = number, index
        self._places[number][index] = place
        return place

    def _forget(self, count: int) -> None:
        oldest = np.argsort(self._rows["last_step"][: self._size], kind="stable")[:count]
        for row in self._rows[oldest]:
            self.responses.forget((self._sources[row["source"]], int(row["index"])))
        self._take(np.delete(self._rows[: self._size], oldest))

    def _take(self, rows: np.ndarray) -> None:
        self._rows, self._size = rows, len(rows)
        self._places = [{} for _ in self._sources]
        for place, (source, index) in enumerate(zip(rows["source"].tolist(), rows["index"].tolist(), strict=True)):
            self._places[source][index] = place


def prompt_hash(prompt: Any) -> int:
    """A hash of a prompt's messages that is the same in every process: 63 bits, 0 to 2^63 - 1.

    Arrays count by their entries, bytes and images by their bytes, anything else that JSON cannot hold by its type.
    """
    text = json.dumps(prompt, sort_keys=True, default=_plain)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    content = value.tobytes() if hasattr(value, "tobytes") else value
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else type(value).__name__
