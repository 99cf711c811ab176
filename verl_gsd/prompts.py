"""A run's memory of its prompts: number of visits, results of the responses, and some of the responses.

A prompt is identified by its key, (data source, dataset index). verl's own uid is new at every visit, and its dataset
index defaults to 0 if a file has none. Uniqueness is therefore checked at the start (``run/dataset.py``). If keys are
not unique, a hash of the prompt's text replaces the index (``prompt_hash``).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_gsd.responses import PromptKey, ResponseStore

__all__ = ["PromptKey", "PromptStore", "independent_prompts", "prompt_hash", "question_labels"]

#: One prompt in the store: 56 bytes, in addition to about 110 bytes in the dictionary that finds it.
_ROW: np.dtype = np.dtype(
    [
        ("source", np.int32),
        ("last_step", np.int32),
        ("index", np.int64),
        ("visits", np.int32),
        ("total", np.int32),
        ("correct", np.float64),
        # Sums with exponential forgetting, as of last_step.
        ("recent_correct", np.float64),
        ("recent_total", np.float64),
        ("recent_partial", np.float64),
    ]
)


@dataclass(frozen=True)
class PromptCounts:
    """The recent counts of all prompts of a store.

    Attributes:
        sources: the names of the data sources.
        source: (n_prompts,) the position of each prompt's source in ``sources``.
        index: (n_prompts,) dataset indices.
        correct, total: (n_prompts,) as ``PromptStore.recent`` returns them.
        partial: (n_prompts,) as ``PromptStore.recent_partial`` returns it.
    """

    sources: tuple[str, ...]
    source: np.ndarray
    index: np.ndarray
    correct: np.ndarray
    total: np.ndarray
    partial: np.ndarray


class PromptStore:
    """A bounded memory of prompts, at most 200 bytes per prompt, and of the responses that an algorithm stores.

    If it is full, the sixteenth of its prompts with the oldest visits is removed.

    Args:
        capacity: the largest number of prompts.
        half_life: the number of trainer steps after which a visit counts half in the recent counts; None for no
            forgetting.
        prior: (a, b) of the Beta prior of a prompt's solve rate before its first visit.

    Attributes:
        half_life, prior: as above. An extension may set them before training begins.
        responses: earlier responses, bounded by their number of tokens; empty unless an algorithm stores some.
        unrated: data sources without accuracies, because an ``acc`` lay outside [0, 1]. The store has no prompts of
            them.

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
            raise ValueError(f"capacity={capacity} is too small. Set it to 1 or more prompts.")
        if half_life is not None and not half_life > 0:
            raise ValueError(
                f"half_life={half_life} is not above 0. Set it to a number of steps, or to null for no forgetting."
            )
        self.capacity, self.half_life, self.prior = capacity, half_life, prior
        self.responses = ResponseStore()
        self.unrated: frozenset[str] = frozenset()
        self._sources: list[str] = []
        self._positions: list[dict[int, int]] = []  # for each source: dataset index -> position in _rows
        self._rows = np.zeros(0, _ROW)
        self._size = 0

    @property
    def rated(self) -> frozenset[str]:
        """The data sources that have accuracies: those of all prompts that were ever observed, but for ``unrated``."""
        return frozenset(self._sources) - self.unrated

    def __len__(self) -> int:
        return self._size

    def observe(self, key: PromptKey, correct: float, total: int, step: int, partial: float = 0.0) -> None:
        """Add one visit in trainer step ``step``: ``total`` responses with a sum of accuracies ``correct``.

        Args:
            partial: their partial credit, the sum of acc (1 - acc); 0 if every accuracy is 0 or 1.
        """
        position = self._find_or_add(key)  # may move the rows
        row = self._rows[position]
        weight = self._weight(step - row["last_step"])
        row["visits"] += 1
        row["correct"] += correct
        row["total"] += total
        row["recent_correct"] = weight * row["recent_correct"] + correct
        row["recent_total"] = weight * row["recent_total"] + total
        row["recent_partial"] = weight * row["recent_partial"] + partial
        row["last_step"] = step

    def leave_out(self, source: str) -> None:
        """A response of ``source`` has an ``acc`` outside [0, 1]: remove its prompts, and add it to ``unrated``.

        The responses that an algorithm stored stay, because they have rewards.
        """
        if source in self._sources:
            rows = self._rows[: self._size]
            self._set_rows(rows[rows["source"] != self._sources.index(source)])
        self.unrated |= {source}

    def counts(self, keys: Sequence[PromptKey]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(visits, correct, total) over all visits, one int, float and int per key; zeros for an unknown prompt."""
        rows = self._rows_of(keys)
        return rows["visits"], rows["correct"], rows["total"]

    def recent(self, keys: Sequence[PromptKey], step: int) -> tuple[np.ndarray, np.ndarray]:
        """The recent counts (correct, total) in trainer step ``step``, which must not precede the last observed step.

        A visit a steps ago has the weight 2^(-a / half_life), or 1 without a half-life.

        Returns:
            Two float64 arrays with one entry per key: weighted sums of accuracies and of responses; zeros for an
            unknown prompt.
        """
        rows = self._rows_of(keys)
        weight = self._weight(step - rows["last_step"])
        return weight * rows["recent_correct"], weight * rows["recent_total"]

    def recent_partial(self, keys: Sequence[PromptKey], step: int) -> np.ndarray:
        """(n_keys,) float64, the partial credit of the visits, weighted as in ``recent``; 0 for an unknown prompt."""
        rows = self._rows_of(keys)
        return self._weight(step - rows["last_step"]) * rows["recent_partial"]

    def all_recent(self, step: int) -> PromptCounts:
        """The counts of ``recent`` and ``recent_partial`` for every prompt.

        Prompts keep their positions until some are removed.
        """
        rows = self._rows[: self._size]
        weight = self._weight(step - rows["last_step"])
        return PromptCounts(
            tuple(self._sources),
            rows["source"],
            rows["index"],
            weight * rows["recent_correct"],
            weight * rows["recent_total"],
            weight * rows["recent_partial"],
        )

    def state_dict(self) -> dict[str, Any]:
        """The whole store: the names of the sources, one array (n_prompts,) per column, and the responses.

        If no prompt has partial credit, its column is left out, as in checkpoints of older versions. So are the
        unrated sources if there are none.
        """
        rows = self._rows[: self._size]
        counts = {name: rows[name].copy() for name in _ROW.names or ()}
        if not counts["recent_partial"].any():
            del counts["recent_partial"]
        unrated = {"unrated_sources": sorted(self.unrated)} if self.unrated else {}
        return {"sources": list(self._sources)} | unrated | counts | self.responses.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict``. If the capacity is now smaller, the latest visited prompts are kept."""
        rows = np.zeros(len(state["index"]), _ROW)
        for name in _ROW.names or ():
            if name in state:
                rows[name] = state[name]
            elif name != "recent_partial":  # stays 0
                # Checkpoints without recent counts were saved without forgetting.
                rows[name] = state[name.removeprefix("recent_")]
        self._sources = list(state["sources"])
        self.unrated = frozenset(state.get("unrated_sources", ()))
        self.responses.load_state_dict(state)
        self._set_rows(rows)
        if self._size > self.capacity:
            self._forget(self._size - self.capacity)

    def metrics(self) -> dict[str, float]:
        """The number of prompts in the store, and their mean number of visits."""
        visits = self._rows["visits"][: self._size]
        return {"prompts/known": float(self._size), "prompts/visits/mean": float(visits.mean()) if self._size else 0.0}

    def _weight(self, age: np.ndarray | int) -> np.ndarray | float:
        """The weight of a visit ``age`` steps ago in the recent counts."""
        return np.exp2(-np.asarray(age, dtype=float) / self.half_life) if self.half_life is not None else 1.0

    def _rows_of(self, keys: Sequence[PromptKey]) -> np.ndarray:
        """The rows of ``keys``, with zeros for unknown prompts."""
        rows = np.zeros(len(keys), _ROW)
        for entry, key in enumerate(keys):
            position = self._find(key)
            if position is not None:
                rows[entry] = self._rows[position]
        return rows

    def _find(self, key: PromptKey) -> int | None:
        source, index = key
        return self._positions[self._sources.index(source)].get(index) if source in self._sources else None

    def _find_or_add(self, key: PromptKey) -> int:
        position = self._find(key)
        if position is not None:
            return position
        if self._size == self.capacity:
            self._forget(max(1, self.capacity // 16))
        source, index = key
        if source not in self._sources:
            self._sources.append(source)
            self._positions.append({})
        if self._size == len(self._rows):
            more = min(max(1024, len(self._rows) // 4), self.capacity - len(self._rows))
            self._rows = np.concatenate([self._rows, np.zeros(more, _ROW)])
        position, self._size = self._size, self._size + 1
        source_number = self._sources.index(source)
        self._rows[position]["source"], self._rows[position]["index"] = source_number, index
        self._positions[source_number][index] = position
        return position

    def _forget(self, count: int) -> None:
        """Remove the ``count`` prompts with the oldest visits, and their responses."""
        oldest = np.argsort(self._rows["last_step"][: self._size], kind="stable")[:count]
        for row in self._rows[oldest]:
            self.responses.forget((self._sources[row["source"]], int(row["index"])))
        self._set_rows(np.delete(self._rows[: self._size], oldest))

    def _set_rows(self, rows: np.ndarray) -> None:
        self._rows, self._size = rows, len(rows)
        self._positions = [{} for _ in self._sources]
        for position, (source, index) in enumerate(zip(rows["source"].tolist(), rows["index"].tolist(), strict=True)):
            self._positions[source][index] = position


def prompt_hash(prompt: Any) -> int:
    """A hash of a prompt's messages that is the same in every process: 63 bits, 0 to 2^63 - 1.

    Arrays are hashed by their entries, bytes and images by their bytes, and other values without a JSON form by their
    type.
    """
    text = json.dumps(prompt, sort_keys=True, default=_json_value)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def question_labels(columns: Mapping[str, Sequence[Any]]) -> list[int]:
    """A hash of each row's prompt and reference answer. Rows with the same label are the same question.

    Args:
        columns: columns of verl's data set: ``raw_prompt``, and ``reward_model`` if there is one.
    """
    chats = columns["raw_prompt"]
    models = columns["reward_model"] if "reward_model" in columns else [None] * len(chats)
    truths = [model.get("ground_truth") if isinstance(model, Mapping) else None for model in models]
    return [prompt_hash([chat, truth]) for chat, truth in zip(chats, truths, strict=True)]


def independent_prompts(labels: Iterable[Hashable]) -> int:
    """How many prompts have a mean of the same variance as rows with these labels.

    Rows with one label are samples of one prompt. With m_i rows of prompt i, the number is (sum m)^2 / sum m^2, rounded
    down: the number of distinct prompts if all are repeated equally often.
    """
    counts = Counter(labels).values()
    return sum(counts) ** 2 // sum(count**2 for count in counts)


def _json_value(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    content = value.tobytes() if hasattr(value, "tobytes") else value
    return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else type(value).__name__
