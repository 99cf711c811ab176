"""Earlier responses, by prompt: what a policy answered at the visits before, bounded by the tokens it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

PromptKey: TypeAlias = tuple[str, int]


#: What a response takes beside its tokens, in tokens.
_OVERHEAD = 100


@dataclass(frozen=True, eq=False)
class Response:
    """One response of j tokens.

    Attributes:
        tokens: (j,) int32.
        mask: (j,) bool, False on tokens the policy did not choose (a tool's).
        reward: the sum of its tokens' rewards.
        step: the trainer step it was generated for.
        verdict: what the verifier returned beside it, by name; finite numbers alone.
    """

    tokens: np.ndarray
    mask: np.ndarray
    reward: float
    step: int
    verdict: Mapping[str, float]


class ResponseStore:
    """A bounded memory of responses; the prompts whose responses were stored longest ago are forgotten first.

    Args:
        capacity: tokens stored at most, five bytes each, and a response counts for 100 more, which is what its object
            takes: by default 1.25 GiB of them.

    Raises:
        ValueError: ``capacity`` is not positive.
    """

    def __init__(self, capacity: int = 1 << 28) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity}: write a number of tokens, 1 or more")
        self.capacity = capacity
        self._of: dict[PromptKey, list[Response]] = {}  # in the order they were stored
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._of)

    def store(self, key: PromptKey, responses: Sequence[Response], *, keep: int) -> None:
        """Remember ``responses`` to a prompt, and of its older ones as many as make ``keep``."""
        kept = [*responses, *self.recall(key)][:keep]
        while _tokens(kept) > self.capacity:
            kept.pop()
        self.forget(key)
        if kept:
            self._of[key] = kept
            self._tokens += _tokens(kept)
        while self._tokens > self.capacity:
            self.forget(next(iter(self._of)))

    def recall(self, key: PromptKey) -> list[Response]:
        """What is remembered of a prompt, the latest first; nothing for one that is not known."""
        return list(self._of.get(key, ()))

    def forget(self, key: PromptKey) -> None:
        self._tokens -= _tokens(self._of.pop(key, []))

    def state_dict(self) -> dict[str, Any]:
        """Everything remembered: names, and arrays over responses, (n, ...), and over all their tokens."""
        found = [(key, response) for key, responses in self._of.items() for response in responses]
        sources = sorted({source for (source, _), _ in found})
        names = sorted({name for _, response in found for name in response.verdict})
        verdicts = [[response.verdict.get(name, math.nan) for name in names] for _, response in found]
        return {
            "response_sources": sources,
            "response_verdict_names": names,
            "response_verdict": np.array(verdicts, np.float64).reshape(len(found), len(names)),
            "response_source": np.array([sources.index(source) for (source, _), _ in found], np.int32),
            "response_index": np.array([index for (_, index), _ in found], np.int64),
            "response_reward": np.array([response.reward for _, response in found], np.float64),
            "response_step": np.array([response.step for _, response in found], np.int32),
            "response_length": np.array([len(response.tokens) for _, response in found], np.int32),
            "response_tokens": np.concatenate([np.zeros(0, np.int32), *(response.tokens for _, response in found)]),
            "response_mask": np.concatenate([np.zeros(0, bool), *(response.mask for _, response in found)]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what ``state_dict`` gave; a store of a smaller capacity keeps what was stored last."""
        self._of, self._tokens = {}, 0
        if "response_length" not in state:  # of a checkpoint made before responses were remembered
            return
        _require_consistent(state)
        by_key: dict[PromptKey, list[Response]] = {}
        for key, response in _unpacked(state):
            by_key.setdefault(key, []).append(response)
        for key, responses in by_key.items():
            self.store(key, responses, keep=len(responses))


def _require_consistent(state: Mapping[str, Any]) -> None:
    """Raise a ValueError where the arrays do not belong together."""
    lengths, n_tokens = state["response_length"], len(state["response_tokens"])
    if (lengths < 0).any() or lengths.sum() != n_tokens or len(state["response_mask"]) != n_tokens:
        raise ValueError(f"responses of {int(lengths.sum())} tokens in all, and {n_tokens} tokens")
    names = [
        name
        for name in ("index", "reward", "step", "verdict", "source")
        if len(state[f"response_{name}"]) != len(lengths)
    ]
    sources = state["response_source"]
    if names or not isinstance(state["response_sources"], list):
        raise ValueError(f"{len(lengths)} responses, and another number of {', '.join(names) or 'sources'}")
    if len(sources) and not 0 <= sources.min() <= sources.max() < len(state["response_sources"]):
        raise ValueError("a response of a source that has no name")


def _unpacked(state: Mapping[str, Any]) -> Iterator[tuple[PromptKey, Response]]:
    ends = np.cumsum(state["response_length"]).tolist()
    names, verdicts = state["response_verdict_names"], state["response_verdict"].tolist()
    for row, end in enumerate(ends):
        start = end - int(state["response_length"][row])
        key = (state["response_sources"][state["response_source"][row]], int(state["response_index"][row]))
        yield (
            key,
            Response(
                state["response_tokens"][start:end].copy(),  # not a view, which would keep all of them
                state["response_mask"][start:end].copy(),
                float(state["response_reward"][row]),
                int(state["response_step"][row]),
                {name: value for name, value in zip(names, verdicts[row], strict=True) if not math.isnan(value)},
            ),
        )


def _tokens(responses: Sequence[Response]) -> int:
    return sum(len(response.tokens) + _OVERHEAD for response in responses)
