"""Sources of demonstrations: a column of the data, which the run's verifier checks, or the policy's own successes."""

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
from verl_gsd.trainer.rows import only_outputs, read_responses, read_verdicts, uid_of


class DemonstrationPool(Protocol):
    """A source of demonstrations for the prompts of current visits.

    Attributes:
        rejected: reason -> number of rejected candidates, since the counter was last cleared.
    """

    rejected: Counter[Reason]

    def look_up(self, visits: Visits) -> None:
        """Look for candidates for these prompts. Their rollouts are about to be generated, or in flight."""

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        """The accepted demonstrations of a visit after ``look_up``.

        The method waits for the verifier until ``deadline``, by time.monotonic.
        """

    def forget(self, uid: str) -> None:
        """Forget a visit, which is over."""

    def observe_trained(self, own: Sequence[str], prompts: Mapping[str, PromptKey], step: int) -> None:
        """Observe the rows ``own``, which the policy generated and was trained on. They can still be read.

        Args:
            own: keys of the rows.
            prompts: uid -> prompt.
            step: the trainer step.
        """

    def end_step(self) -> dict[str, float]:
        """Store what was observed. Returns metrics."""


@dataclass(frozen=True)
class _Candidate:
    """An expert's text as tokens.

    Attributes:
        key, number: the prompt, and the number of the text among its texts.
        tokens: the text.
        answer: the verifier's handle, if the text was sent to the verifier at this visit.
    """

    key: PromptKey
    number: int
    tokens: np.ndarray
    answer: Any = None


class ExpertPool:
    """An expert's texts, from a column of the data.

    When the rollouts of a prompt are about to be generated, its texts are checked and sent to the verifier. A text that
    already has a verdict is not sent again.

    Args:
        column: the column of the data.
        longest: maximum tokens of a response.
        services: provide the policy's tokenizer and the run's verifier.
        template: further arguments of the tokenizer's chat template.
    """

    def __init__(self, column: str, *, longest: int, services: Services, template: Mapping[str, Any]) -> None:
        self.rejected: Counter[Reason] = Counter()
        self._column, self._longest, self._services, self._template = column, longest, services, dict(template)
        self._candidates: dict[str, list[_Candidate | Reason]] = {}  # by uid
        self._verdicts: dict[tuple[PromptKey, int], Verdict] = {}

    def look_up(self, visits: Visits) -> None:
        columns = dict(visits.columns)
        if self._column not in columns:
            raise ValueError(
                f"algorithm.gsd.dagrpo.demonstrations.column={self._column}: the data has no such column. Set "
                f"the key to one of its columns: {', '.join(sorted(columns))}."
            )
        for number, (uid, key) in enumerate(zip(visits.uids, visits.keys, strict=True)):
            self._candidates[uid] = self._find_candidates(
                key, {name: values[number] for name, values in columns.items()}
            )

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        accepted = []
        for candidate in self._candidates.get(uid, ()):
            result = candidate if isinstance(candidate, str) else self._verify(candidate, deadline)
            if isinstance(result, str):
                self.rejected[result] += 1
            else:
                accepted.append(result)
        return accepted

    def forget(self, uid: str) -> None:
        for candidate in self._candidates.pop(uid, ()):
            # Keep a verdict that has arrived but was not needed, for the prompt's next visit.
            if isinstance(candidate, _Candidate) and self._has_answered(candidate):
                self._verdict(candidate, deadline=0.0)

    def _has_answered(self, candidate: _Candidate) -> bool:
        return candidate.answer is not None and self._services.verifier.has_answered(candidate.answer)

    def observe_trained(self, own: Sequence[str], prompts: Mapping[str, PromptKey], step: int) -> None:
        pass

    def end_step(self) -> dict[str, float]:
        return {}

    def _find_candidates(self, key: PromptKey, columns: Mapping[str, Any]) -> list[_Candidate | Reason]:
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
        candidates: list[_Candidate | Reason] = []
        for number, text in enumerate(texts):
            tokens = expert_tokens(text, tokenizer, prompt=prompt, longest=self._longest)
            if isinstance(tokens, str):
                candidates.append(tokens)
                continue
            answer = None
            if (key, number) not in self._verdicts:
                ids = tokenizer.encode(prompt, add_special_tokens=False)
                answer = self._services.verifier.submit(columns, ids, tokens.tolist())
            candidates.append(_Candidate(key, number, tokens, answer))
        return candidates

    def _verify(self, candidate: _Candidate, deadline: float) -> Response | Reason:
        verdict = self._verdict(candidate, deadline)
        if verdict is None:
            return "unverified"
        source, index = candidate.key
        where = f"data_source={source}, index={index} (a demonstration)"
        if not succeeded(verdict.info.get("acc", np.nan), where):
            return "failed_verification"
        return Response(candidate.tokens, np.ones(len(candidate.tokens), bool), verdict.reward, 0, verdict.info)

    def _verdict(self, candidate: _Candidate, deadline: float) -> Verdict | None:
        """The verdict; None if the verifier failed or was late. The text is then sent again at the next visit."""
        text = (candidate.key, candidate.number)
        if text not in self._verdicts:
            verdict = self._services.verifier.verdict(candidate.answer, max(0.0, deadline - time.monotonic()))
            if verdict is None:
                return None
            self._verdicts[text] = verdict
        return self._verdicts[text]


class OwnSuccessPool:
    """The policy's own earlier successes on the same prompt, the latest first. They were verified when generated.

    Args:
        services: provide the policy's tokenizer and the store of responses, which only this pool uses.
        keep: maximum number of stored responses per prompt.
        longest: maximum tokens of a response.
    """

    def __init__(self, services: Services, *, keep: int, longest: int) -> None:
        self.rejected: Counter[Reason] = Counter()
        self._services, self._keep, self._longest = services, keep, longest
        self._store = services.prompts.responses
        self._observed: dict[PromptKey, list[Response]] = {}  # the first successes of the current step
        self._prompts: dict[str, PromptKey] = {}  # by uid

    def look_up(self, visits: Visits) -> None:
        self._prompts |= dict(zip(visits.uids, visits.keys, strict=True))

    def demonstrations(self, uid: str, deadline: float) -> list[Response]:
        stored = self._store.recall(self._prompts[uid])
        if not stored:
            self.rejected["missing"] += 1
        accepted = []
        for response in stored:
            tokens = own_tokens(response.tokens, self._services.tokenizer, longest=self._longest)
            if isinstance(tokens, str):
                self.rejected[tokens] += 1
            else:
                accepted.append(response)
        return accepted

    def forget(self, uid: str) -> None:
        self._prompts.pop(uid, None)

    def observe_trained(self, own: Sequence[str], prompts: Mapping[str, PromptKey], step: int) -> None:
        keys = [key for rows in only_outputs(own).values() for key in rows]
        successes: dict[PromptKey, list[str]] = {}
        for key, verdict in zip(keys, read_verdicts(self._services.rows, keys), strict=True):
            prompt = prompts[uid_of(key)]
            if succeeded(verdict.get("acc", np.nan), f"data_source={prompt[0]}, index={prompt[1]}"):
                successes.setdefault(prompt, []).append(key)
        # Tokens are read only for the responses that end_step stores. Most rows of a batch are not among them.
        chosen = [
            key
            for prompt, rows in successes.items()
            for key in rows[: self._keep - len(self._observed.get(prompt, ()))]
        ]
        for key, response in zip(chosen, read_responses(self._services.rows, chosen, step), strict=True):
            self._observed.setdefault(prompts[uid_of(key)], []).append(response)

    def end_step(self) -> dict[str, float]:
        observed, self._observed = self._observed, {}
        for prompt, responses in observed.items():
            self._store.store(prompt, responses, keep=self._keep)
        return {"known": float(len(self._store))}


class ExpertFirstPool:
    """An expert's demonstrations if one is accepted, otherwise the policy's own earlier successes."""

    def __init__(self, experts: ExpertPool, own: OwnSuccessPool) -> None:
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

    def observe_trained(self, own: Sequence[str], prompts: Mapping[str, PromptKey], step: int) -> None:
        self._pools[1].observe_trained(own, prompts, step)

    def end_step(self) -> dict[str, float]:
        return self._pools[1].end_step()


def build_pool(settings: DemonstrationSettings, services: Services) -> DemonstrationPool:
    """Build the pool that ``settings.source`` names."""
    data = services.config.data
    longest = int(data.max_response_length)
    own = OwnSuccessPool(services, keep=settings.per_group, longest=longest)
    template = data.get("apply_chat_template_kwargs") or {}
    experts = ExpertPool(settings.column, longest=longest, services=services, template=template)
    pools: dict[str, DemonstrationPool] = {
        "expert": experts,
        "self": own,
        "expert_or_self": ExpertFirstPool(experts, own),
    }
    return pools[settings.source]
