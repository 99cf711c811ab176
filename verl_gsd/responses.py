"""A bounded store of earlier responses to each prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

#: (data source, dataset index) of a prompt.
PromptKey: TypeAlias = tuple[str, int]

#: Memory of a response's objects in addition to its tokens, expressed in tokens.
_OVERHEAD = 100


@dataclass(frozen=True, eq=False)
class Response:
    """One response of j tokens.

    Attributes:
        tokens: (j,) int32.
        mask: (j,) bool, False for tokens that the policy did not generate (a tool's output).
        reward: the sum of its tokens' rewards.
        step: the trainer step that it was generated for.
        verdict: the other results of the verifier, by name; only finite numbers.
    """

    tokens: np.ndarray
    mask: np.ndarray
    reward: float
    step: int
    verdict: Mapping[str, float]


class ResponseStore:
    """A bounded store of responses. If it is full, the prompts whose responses were stored longest ago are removed.

    Args:
        capacity: the largest number of tokens to store, at 5 bytes each; the default is 1.25 GiB. Each response counts
            as 100 additional tokens for the memory of its object.

    Raises:
        ValueError: ``capacity`` is not positive.
    """

    def __init__(self, capacity: int = 1 << 28) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} is too small. Set it to 1 or more tokens.")
        self.capacity = capacity
        self._responses: dict[PromptKey, list[Response]] = {}  # in the order of storing
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._responses)

    def store(self, key: PromptKey, responses: Sequence[Response], *, keep: int) -> None:
        """Store ``responses`` to a prompt, and keep its older ones up to ``keep`` responses in total."""
        kept = [*responses, *self.recall(key)][:keep]
        while _tokens(kept) > self.capacity:
            kept.pop()
        self.forget(key)
        if kept:
            self._responses[key] = kept
            self._tokens += _tokens(kept)
        while self._tokens > self.capacity:
            self.forget(next(iter(self._responses)))

    def recall(self, key: PromptKey) -> list[Response]:
        """The stored responses to a prompt, latest first; empty for an unknown prompt."""
        return list(self._responses.get(key, ()))

    def forget(self, key: PromptKey) -> None:
        """Remove the responses to a prompt, if there are any."""
        self._tokens -= _tokens(self._responses.pop(key, []))

    def state_dict(self) -> dict[str, Any]:
        """The whole store: names, arrays over the n responses, (n, ...), and arrays over all their tokens."""
        pairs = [(key, response) for key, responses in self._responses.items() for response in responses]
        sources = sorted({source for (source, _), _ in pairs})
        names = sorted({name for _, response in pairs for name in response.verdict})
        verdicts = [[response.verdict.get(name, math.nan) for name in names] for _, response in pairs]
        return {
            "response_sources": sources,
            "response_verdict_names": names,
            "response_verdict": np.array(verdicts, np.float64).reshape(len(pairs), len(names)),
            "response_source": np.array([sources.index(source) for (source, _), _ in pairs], np.int32),
            "response_index": np.array([index for (_, index), _ in pairs], np.int64),
            "response_reward": np.array([response.reward for _, response in pairs], np.float64),
            "response_step": np.array([response.step for _, response in pairs], np.int32),
            "response_length": np.array([len(response.tokens) for _, response in pairs], np.int32),
            "response_tokens": np.concatenate([np.zeros(0, np.int32), *(response.tokens for _, response in pairs)]),
            "response_mask": np.concatenate([np.zeros(0, bool), *(response.mask for _, response in pairs)]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of ``state_dict``. If the capacity is now smaller, the latest responses are kept."""
        self._responses, self._tokens = {}, 0
        if "response_length" not in state:  # older checkpoints have no responses
            return
        _check_consistent(state)
        by_key: dict[PromptKey, list[Response]] = {}
        for key, response in _unpacked(state):
            by_key.setdefault(key, []).append(response)
        for key, responses in by_key.items():
            self.store(key, responses, keep=len(responses))


def _check_consistent(state: Mapping[str, Any]) -> None:
    """Raise a ValueError if the arrays do not belong together."""
    lengths, n_tokens = state["response_length"], len(state["response_tokens"])
    if (lengths < 0).any() or lengths.sum() != n_tokens or len(state["response_mask"]) != n_tokens:
        raise ValueError(f"the responses have {int(lengths.sum())} tokens in total, but {n_tokens} tokens are stored")
    mismatched = [
        name
        for name in ("index", "reward", "step", "verdict", "source")
        if len(state[f"response_{name}"]) != len(lengths)
    ]
    sources = state["response_source"]
    if mismatched or not isinstance(state["response_sources"], list):
        wrong = ", ".join(mismatched) or "sources"
        raise ValueError(f"there are {len(lengths)} responses, but {wrong} of another number or type")
    if len(sources) and not 0 <= sources.min() <= sources.max() < len(state["response_sources"]):
        raise ValueError("the data source of a response has no name")


def _unpacked(state: Mapping[str, Any]) -> Iterator[tuple[PromptKey, Response]]:
    """The stored (key, response) pairs, in order."""
    ends = np.cumsum(state["response_length"]).tolist()
    names, verdicts = state["response_verdict_names"], state["response_verdict"].tolist()
    for row, end in enumerate(ends):
        start = end - int(state["response_length"][row])
        key = (state["response_sources"][state["response_source"][row]], int(state["response_index"][row]))
        yield (
            key,
            Response(
                state["response_tokens"][start:end].copy(),  # a view would keep the whole array in memory
                state["response_mask"][start:end].copy(),
                float(state["response_reward"][row]),
                int(state["response_step"][row]),
                {name: value for name, value in zip(names, verdicts[row], strict=True) if not math.isnan(value)},
            ),
        )


def _tokens(responses: Sequence[Response]) -> int:
    return sum(len(response.tokens) + _OVERHEAD for response in responses)
