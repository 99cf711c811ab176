r"""Exact solve rates: the probability of a prompt's one right answer, by teacher forcing instead of sampling.

A response ends with the first end token, and there can be several (``policy.end_tokens``). The right responses to a
prompt x consist of the tokens y_1 ... y_k of the answer, then any end token without text. Their probability is

    p = \prod_{t <= k} \pi(y_t | x, y_<t) \sum_{e in E} \pi(e | x, y)

with logits divided by the sampling temperature. E are the end tokens whose text is empty, as that of special tokens is,
or white space. There is no sum if the response ends after y_k in any case, because it has the maximum length or because
y_k is an end token. p is 0 if one of y_1 ... y_{k-1} is an end token, or if the answer is too long.

p is a lower bound of the solve rate, because the verifier also accepts a few other responses: it ignores white space
around the answer, decoding skips special tokens, and some tokenizers can split the answer in several ways. These
responses have at most the probability

    slack = \sum_t \pi(y_<t | x) \sum_{v in V_t} \pi(v | x, y_<t)

over the steps t of the response. V_t are the tokens, except y_t and E, whose text, without white space around it, is
the beginning of what remains of the answer after y_<t. The empty text is such a beginning, so V_t contains all other
white space and all other special tokens. It also contains all tokens that are only a part of a character, because
several of them can be white space together.

Why this is a bound: every other response leaves the right ones at some first step t with a token v. If v is in E, the
response ends with only a part of the answer. If v is another token outside V_t, the text so far is not the beginning of
an accepted text, and what follows does not change this. In both cases the response is wrong. The events of different t
exclude each other, so that their probabilities add up. The solve rate therefore lies in [p, p + slack].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from verl_gsd.lab.training.policy import Prefix, Tokens, TokenSampling, read_prompts, response_logits
from verl_gsd.tasks.one_answer import has_one_answer

#: Prompts that the model reads at once, and the most logits of a pass, which limits the memory of large vocabularies.
_PROMPTS, _ELEMENTS = 128, 1 << 24
#: What decoding writes for a part of a character.
_PART = "\ufffd"


@dataclass(frozen=True, eq=False)
class ExactRates:
    """Exact solve rates of N prompts; see the module for the equations.

    Attributes:
        p: (N,) float64, the probability of the answer's tokens and an end token.
        slack: (N,) float64. The solve rate is at least p and at most p + slack.
    """

    p: np.ndarray
    slack: np.ndarray


class ExactSolver:
    """Computes solve rates of one policy, whose weights may change between calls.

    Args:
        max_tokens: longest response in tokens. Sampling ends there, so that an answer of exactly this length needs no
            end token, and a longer one is never given.
        ends: the end tokens of responses.
        temperature: that of sampling. Rates are those of sampling from all tokens, without ``top_k`` and ``top_p``.

    Raises:
        ValueError: ``temperature`` is not above 0.
    """

    def __init__(
        self, model: Any, tokenizer: Any, *, max_tokens: int, ends: Collection[int], temperature: float = 1.0
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: a solve rate needs sampling. Set it to a number above 0.")
        self._model, self._tokenizer = model, tokenizer
        self._max_tokens, self._ends, self._temperature = max_tokens, frozenset(ends), temperature
        # A model with a small vocabulary may have end tokens that it cannot sample.
        self._vocabulary = model.get_output_embeddings().weight.shape[0]
        self._without_text = [end for end in sorted(ends) if end < self._vocabulary and not self._text([end]).strip()]
        self._tokens_of_text: dict[str, list[int]] = {}  # text without white space around it -> tokens
        self._others: dict[tuple[str, int | None], torch.Tensor] = {}  # (rest of the answer, y_t) -> V_t

    def rates(self, prompts: Sequence[Tokens], answers: Sequence[str]) -> ExactRates:
        """Solve rates of N prompts, given as token ids, whose right answers are ``answers``."""
        return joined(
            self.rates_of_read(self._read(prompts[start : start + _PROMPTS]), answers[start : start + _PROMPTS])
            for start in range(0, len(prompts), _PROMPTS)
        )

    @torch.no_grad()
    def rates_of_read(self, prefix: Prefix, answers: Sequence[str]) -> ExactRates:
        """The same for prompts that the model has read."""
        tokens = [self._tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
        longest = min(self._max_tokens, 1 + max(map(len, tokens)))
        size = max(1, _ELEMENTS // (longest * prefix.logits.shape[-1]))
        return joined(
            self._pass(prefix, start, answers[start : start + size], tokens[start : start + size])
            for start in range(0, len(answers), size)
        )

    @torch.no_grad()
    def _read(self, prompts: Sequence[Tokens]) -> Prefix:
        return read_prompts(self._model, prompts)

    def _pass(
        self, prefix: Prefix, start: int, answers: Sequence[str], answer_tokens: Sequence[list[int]]
    ) -> ExactRates:
        steps = [self._steps(tokens) for tokens in answer_tokens]
        is_impossible = torch.tensor(
            # The verifier removes white space around a response, but not around the ground truth.
            [
                len(of_answer) < len(tokens) or answer != answer.strip()
                for of_answer, answer, tokens in zip(steps, answers, answer_tokens, strict=True)
            ]
        )
        # The model reads no token after the last step of an answer, so that any token can stand there.
        responses = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor([token or 0 for token in of_answer]) for of_answer in steps], batch_first=True
        )
        is_step = torch.arange(responses.shape[1]) < torch.tensor([len(of_answer) for of_answer in steps]).unsqueeze(1)
        is_end = torch.zeros_like(is_step)
        is_end[is_step] = torch.tensor([token is None for of_answer in steps for token in of_answer])
        prompt_of = torch.arange(start, start + len(answers))
        logits = response_logits(self._model, prefix, prompt_of, responses)
        log_probs = torch.log_softmax(logits.double() / self._temperature, dim=-1)
        chosen = log_probs.gather(-1, responses.unsqueeze(-1)).squeeze(-1)
        ending = log_probs[..., self._without_text].logsumexp(dim=-1)
        chosen = torch.where(is_end, ending, chosen).masked_fill(~is_step, 0)
        reached = torch.nn.functional.pad(chosen.cumsum(dim=1)[:, :-1], (1, 0)).exp()  # pi(y_<t)

        pairs = self._pairs(answers, steps)
        number = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
        others = torch.stack([self._other_tokens(rest, token) for rest, token in number])
        pair_of_step = torch.zeros_like(responses)
        pair_of_step[is_step] = torch.tensor([number[pair] for pair in pairs])
        leaving = (log_probs.exp() * others[pair_of_step]).sum(dim=-1).masked_fill(~is_step, 0)
        p = chosen.sum(dim=1).exp().masked_fill(is_impossible, 0)
        return ExactRates(p.numpy(), (reached * leaving).sum(dim=1).numpy())

    def _steps(self, tokens: Sequence[int]) -> list[int | None]:
        """The right tokens of a response to an answer with ``tokens``: a token, or None for any end token without text.

        There are fewer steps than ``tokens`` if the response ends before the whole answer is given.
        """
        steps: list[int | None] = []
        for token in tokens[: self._max_tokens]:
            steps.append(token)
            if token in self._ends:
                return steps
        return steps if len(steps) == self._max_tokens else [*steps, None]

    def _pairs(self, answers: Sequence[str], steps: Sequence[list[int | None]]) -> list[tuple[str, int | None]]:
        """Per step of each response: what remains of the answer, and y_t, or None if an end token is right."""
        pairs = []
        for answer, of_answer in zip(answers, steps, strict=True):
            for number, token in enumerate(of_answer):
                text = self._text(of_answer[:number])
                pairs.append((answer.removeprefix(_bare(text)), token))
        return pairs

    def _other_tokens(self, rest: str, token: int | None) -> torch.Tensor:
        """V_t as a mask, (vocabulary,) bool."""
        if not self._tokens_of_text:
            tokens_of_text = defaultdict(list)
            texts = self._tokenizer.batch_decode(
                [[number] for number in range(self._vocabulary)], skip_special_tokens=True
            )
            for number, text in enumerate(texts):
                tokens_of_text[_bare(text)].append(number)
            self._tokens_of_text = dict(tokens_of_text)
        if (rest, token) not in self._others:
            mask = torch.zeros(self._vocabulary, dtype=torch.bool)
            for end in range(len(rest) + 1):
                mask[self._tokens_of_text.get(rest[:end], [])] = True
            mask[self._without_text] = False
            if token is not None:
                mask[token] = False
            self._others[rest, token] = mask
        return self._others[rest, token]

    def _text(self, tokens: Sequence[int | None]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)


def why_not_exact(config: DictConfig, sampling: TokenSampling) -> str:
    """Why solve rates under this resolved config cannot be computed, with what to set instead; empty if they can."""
    if not has_one_answer(config):
        function = OmegaConf.select(config, "reward.custom_reward_function.path")
        return (
            f"reward.custom_reward_function.path={function}: this verifier may accept several answers to a prompt, and "
            "then the solve rate is not the probability of one response. Use an embedded task, for example "
            "task=arithmetic."
        )
    if sampling.temperature == 0:
        return "the temperature is 0. Set it to a number above 0."
    if sampling.top_p < 1:
        return f"top_p={sampling.top_p:g} excludes tokens. Set it to 1."
    if sampling.top_k > 0:
        return f"top_k={sampling.top_k} excludes tokens. Set it to -1."
    return ""


def exact_solver(
    config: DictConfig, model: Any, tokenizer: Any, ends: Collection[int], sampling: TokenSampling
) -> ExactSolver | None:
    """The solver of a config's policy, whose responses end with ``ends``; None if solve rates cannot be computed."""
    if why_not_exact(config, sampling):
        return None
    longest = int(config.data.max_response_length)
    return ExactSolver(model, tokenizer, max_tokens=longest, ends=ends, temperature=sampling.temperature)


def joined(parts: Iterable[ExactRates]) -> ExactRates:
    """The rates of all parts, in their order. There is at least one part."""
    rates = list(parts)
    return ExactRates(np.concatenate([part.p for part in rates]), np.concatenate([part.slack for part in rates]))


def _bare(text: str) -> str:
    """``text`` without white space and parts of characters around it."""
    before = None
    while text != before:
        before, text = text, text.strip().strip(_PART)
    return text
