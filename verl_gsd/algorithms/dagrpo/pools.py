"""Where demonstrations come from: a column of the data, verified by the run's verifier, or the policy's successes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.tokens import Reason, expert_texts, expert_tokens, own_tokens, succeeded
from verl_gsd.extension import Services, Verdict, Visits
from verl_gsd.responses import PromptKey, Response
from verl_gsd.trainer.rows import only_outputs, read_responses, uid_of


class Pool(Protocol):
    """Demonstrations of the prompts at hand.

    Attributes:
        rejected: what was no demonstration, by reason, since somebody cleared it.
    """

    rejected: Counter[Reason]

    def look_up(self, visits: Visits) -> None:
        """Prompts about to be generated."""

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        """Those of a prompt that was looked up; waits for the verifier until ``deadline`` by time.monotonic."""

    def forget(self, uid: str) -> None:
        """The visit is over."""

    def observe_trained(self, own: Sequence[str], key_of: Mapping[str, PromptKey], step: int) -> None:
        """Rows that the policy generated and was trained on, which can still be read."""

    def end_step(self) -> dict[str, float]:
        """Learn from what was observed; returns metrics."""


@dataclass(frozen=True)
class _Candidate:
    """An expert's text as tokens: number ``number`` of the prompt ``key``; ``answer``, where the verifier was asked."""

    key: PromptKey
    number: int
    tokens: np.ndarray
    answer: Any = None


class Experts:
    """An expert's texts in a column of the data: checked, and sent to the verifier until it has answered, when their
    prompt is generated.

    Args:
        column: of the data.
        longest: tokens of a response at most.
        services: have the policy's tokenizer and the run's verifier.
        template: further arguments of the tokenizer's chat template.
    """

    def __init__(self, column: str, *, longest: int, services: Services, template: Mapping[str, Any]) -> None:
        self.rejected: Counter[Reason] = Counter()
        self._column, self._longest, self._services, self._template = column, longest, services, dict(template)
        self._of: dict[str, list[_Candidate | Reason]] = {}  # by uid
        self._verdicts: dict[tuple[PromptKey, int], Verdict] = {}

    def look_up(self, visits: Visits) -> None:
        columns = dict(visits.columns)
        if self._column not in columns:
            raise ValueError(
                f"algorithm.gsd.dagrpo.demonstrations.column={self._column}: the data has no such column. It has "
                f"{', '.join(sorted(columns))}."
            )
        for number, (uid, key) in enumerate(zip(visits.uids, visits.keys, strict=True)):
            self._of[uid] = self._candidates(key, {name: values[number] for name, values in columns.items()})

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        found = []
        for candidate in self._of.get(uid, ()):
            accepted = candidate if isinstance(candidate, str) else self._accepted(candidate, deadline)
            if isinstance(accepted, str):
                self.rejected[accepted] += 1
            else:
                found.append(accepted)
        return found

    def forget(self, uid: str) -> None:
        for candidate in self._of.pop(uid, ()):
            # An answer that nobody needed this time is known at the next visit.
            if isinstance(candidate, _Candidate) and self._has_answered(candidate):
                self._verdict(candidate, deadline=0.0)

    def _has_answered(self, candidate: _Candidate) -> bool:
        return candidate.answer is not None and self._services.verifier.has_answered(candidate.answer)

    def observe_trained(self, own: Sequence[str], key_of: Mapping[str, PromptKey], step: int) -> None:
        pass

    def end_step(self) -> dict[str, float]:
        return {}

    def _candidates(self, key: PromptKey, columns: Mapping[str, Any]) -> list[_Candidate | Reason]:
        try:
            texts = expert_texts(columns[self._column])
        except ValueError as error:
            raise ValueError(f"column {self._column} of data_source={key[0]}, index={key[1]}: {error}") from None
        if not texts:
            return ["missing"]
        tokenizer = self._services.tokenizer
        prompt = tokenizer.apply_chat_template(
            columns["raw_prompt"], add_generation_prompt=True, tokenize=False, **self._template
        )
        found: list[_Candidate | Reason] = []
        for number, text in enumerate(texts):
            tokens = expert_tokens(text, tokenizer, prompt=prompt, longest=self._longest)
            if isinstance(tokens, str):
                found.append(tokens)
                continue
            answer = None
            if (key, number) not in self._verdicts:
                ids = tokenizer.encode(prompt, add_special_tokens=False)
                answer = self._services.verifier.submit(columns, ids, tokens.tolist())
            found.append(_Candidate(key, number, tokens, answer))
        return found

    def _accepted(self, candidate: _Candidate, deadline: float) -> Response | Reason:
        verdict = self._verdict(candidate, deadline)
        if verdict is None:
            return "unverified"
        source, index = candidate.key
        where = f"data_source={source}, index={index} (a demonstration)"
        if not succeeded(verdict.info.get("acc", np.nan), where):
            return "failed_verification"
        return Response(candidate.tokens, np.ones(len(candidate.tokens), bool), verdict.reward, 0, verdict.info)

    def _verdict(self, candidate: _Candidate, deadline: float) -> Verdict | None:
        """What the verifier says; one that failed or was late is asked again at the next visit."""
        place = (candidate.key, candidate.number)
        if place not in self._verdicts:
            verdict = self._services.verifier.verdict(candidate.answer, max(0.0, deadline - time.monotonic()))
            if verdict is None:
                return None
            self._verdicts[place] = verdict
        return self._verdicts[place]


class OwnSuccesses:
    """The policy's own earlier successes on the same prompt, verified when they were made; the latest first.

    Args:
        services: have the store of responses, in which nothing else is, and the policy's tokenizer.
        keep: responses of a prompt at most.
        longest: tokens of a response at most.
    """

    def __init__(self, services: Services, *, keep: int, longest: int) -> None:
        self.rejected: Counter[Reason] = Counter()
        self._services, self._keep, self._longest = services, keep, longest
        self._store = services.prompts.responses
        self._observed: dict[PromptKey, list[Response]] = {}  # successes of the step at hand
        self._key_of: dict[str, PromptKey] = {}

    def look_up(self, visits: Visits) -> None:
        self._key_of |= dict(zip(visits.uids, visits.keys, strict=True))

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        stored = self._store.recall(self._key_of[uid])
        if not stored:
            self.rejected["missing"] += 1
        found = []
        for response in stored:
            tokens = own_tokens(response.tokens, self._services.tokenizer, longest=self._longest)
            if isinstance(tokens, str):
                self.rejected[tokens] += 1
            else:
                found.append(response)
        return found

    def forget(self, uid: str) -> None:
        self._key_of.pop(uid, None)

    def observe_trained(self, own: Sequence[str], key_of: Mapping[str, PromptKey], step: int) -> None:
        keys = [key for rows in only_outputs(own).values() for key in rows]
        for key, response in zip(keys, read_responses(self._services.rows, keys, step), strict=True):
            prompt = key_of[uid_of(key)]
            if succeeded(response.verdict.get("acc", np.nan), f"data_source={prompt[0]}, index={prompt[1]}"):
                self._observed.setdefault(prompt, []).append(response)

    def end_step(self) -> dict[str, float]:
        observed, self._observed = self._observed, {}
        for prompt, responses in observed.items():
            self._store.store(prompt, responses[: self._keep], keep=self._keep)
        return {"known": float(len(self._store))}


class ExpertsOrOwn:
    """An expert's where one is accepted, the policy's own earlier successes otherwise."""

    def __init__(self, experts: Experts, own: OwnSuccesses) -> None:
        self.rejected = experts.rejected = own.rejected = Counter()
        self._pools = (experts, own)

    def look_up(self, visits: Visits) -> None:
        for pool in self._pools:
            pool.look_up(visits)

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        experts, own = self._pools
        return experts.demonstrations(uid, deadline) or own.demonstrations(uid, deadline)

    def forget(self, uid: str) -> None:
        for pool in self._pools:
            pool.forget(uid)

    def observe_trained(self, own: Sequence[str], key_of: Mapping[str, PromptKey], step: int) -> None:
        self._pools[1].observe_trained(own, key_of, step)

    def end_step(self) -> dict[str, float]:
        return self._pools[1].end_step()


def pool_of(settings: DemonstrationSettings, services: Services) -> Pool:
    """The demonstrations that ``settings.source`` names."""
    data = services.config.data
    longest = int(data.max_response_length)
    own = OwnSuccesses(services, keep=settings.per_group, longest=longest)
    template = data.get("apply_chat_template_kwargs") or {}
    experts = Experts(settings.column, longest=longest, services=services, template=template)
    pools: dict[str, Pool] = {"expert": experts, "self": own, "expert_or_self": ExpertsOrOwn(experts, own)}
    return pools[settings.source]
