r"""Samples responses and computes log-probabilities with a Hugging Face model, once per prompt instead of per response.

The responses of a group share their prompt. The model therefore reads each distinct prompt once, and each response
continues from the prompt's keys and values. In the embedded task a prompt has some 12 tokens and a response some 3, so
that a group of 8 costs 36 tokens instead of 120. Gradients flow through the shared keys and values, so they are those
of separate rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, DynamicCache, GenerationConfig

Tokens = Sequence[int]
#: Prompts per pass of ``read_many_prompts``. Measured with 1,024 prompts of the embedded task: 64 are the fastest.
_PROMPTS = 64


@dataclass(frozen=True, eq=False)
class Prefix:
    """What the model computed for U distinct prompts.

    Attributes:
        cache: per layer the keys and values, (U, heads, P, head size) each.
        mask: (U, P) int64, 1 on tokens of the prompt. Prompts are padded on the left.
        logits: (U, V) of the first token after each prompt.
    """

    cache: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    mask: torch.Tensor
    logits: torch.Tensor


@dataclass(frozen=True, eq=False)
class ResponseScores:
    """Per token of N responses of at most T tokens, padded on the right; padding has any value.

    Attributes:
        log_probs: (N, T) log pi(y_t | prompt, y_<t).
        entropy: (N, T) in nats, of the distribution from which y_t was sampled. None if it was not requested.
    """

    log_probs: torch.Tensor
    entropy: torch.Tensor | None


@dataclass(frozen=True)
class TokenSampling:
    """How tokens are sampled; the names are vLLM's.

    Attributes:
        temperature: 0 takes the most probable token.
        top_k: sample only from this many tokens; -1 for all.
        top_p: sample only from the most probable tokens that together have this probability.
    """

    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


def end_tokens(folder: str) -> frozenset[int]:
    """The token ids that end a response of the model in ``folder``, as vLLM finds them under verl's settings.

    They are the end token of the folder's tokenizer, and ``eos_token_id`` of its generation_config.json, which is one
    id or a list. If there is no such file, ``eos_token_id`` of config.json counts instead.
    """
    try:
        generation = GenerationConfig.from_pretrained(folder)
    except OSError:
        generation = GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    ids = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    return frozenset([*ids, AutoTokenizer.from_pretrained(folder, trust_remote_code=False).eos_token_id]) - {None}


def read_prompts(model: Any, prompts: Sequence[Tokens]) -> Prefix:
    """Run the model on U prompts, each with at least one token."""
    device = next(model.parameters()).device
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    ids, mask = ids.to(device), mask.to(device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = DynamicCache()
    output = model(
        ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    layers = tuple((layer.keys, layer.values) for layer in cache.layers)
    return Prefix(layers, mask, output.logits[:, -1])


@torch.no_grad()
def read_many_prompts(model: Any, prompts: Sequence[Tokens]) -> Prefix:
    """The same for many prompts, without gradients, and equal up to rounding. Padding costs less time.

    Each pass reads prompts of similar length.
    """
    longest = max(map(len, prompts))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    parts = [order[start : start + _PROMPTS] for start in range(0, len(order), _PROMPTS)]
    read = [read_prompts(model, [prompts[number] for number in part]) for part in parts]
    back = torch.argsort(torch.tensor(order)).to(read[0].mask.device)

    def whole(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
        """One tensor in the order of the prompts, padded on the left of ``dim``, the dimension of tokens."""
        padded = []
        for tensor in tensors:
            shape = list(tensor.shape)
            shape[dim] = longest - shape[dim]
            padded.append(torch.cat([tensor.new_zeros(shape), tensor], dim=dim))
        return torch.cat(padded)[back]

    layers = tuple(
        (whole([keys for keys, _ in layer], 2), whole([values for _, values in layer], 2))
        for layer in zip(*(part.cache for part in read), strict=True)
    )
    return Prefix(layers, whole([part.mask for part in read], 1), torch.cat([part.logits for part in read])[back])


def response_logits(model: Any, prefix: Prefix, prompt_of: torch.Tensor, responses: torch.Tensor) -> torch.Tensor:
    """Logits from which each token of N responses is sampled, (N, T, V), in the model's dtype.

    Args:
        prompt_of, responses: see ``score_responses``.
    """
    first = prefix.logits[prompt_of].unsqueeze(1)
    length = responses.shape[1]
    if length == 1:
        return first
    cache = _cache_of(prefix, prompt_of)
    mask, positions = _continued(prefix.mask[prompt_of], length - 1)
    output = model(
        responses[:, :-1], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    return torch.cat([first, output.logits], dim=1)


def score_responses(
    model: Any,
    prefix: Prefix,
    prompt_of: torch.Tensor,
    responses: torch.Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
) -> ResponseScores:
    """Log-probabilities of N responses, with gradients if they are enabled.

    Args:
        prompt_of: (N,) int64, the number of each response's prompt in ``prefix``.
        responses: (N, T) int64 token ids, padded on the right with any id.
        temperature: divides the logits, as in verl's engines.
    """
    logits = response_logits(model, prefix, prompt_of, responses)
    log_probs = torch.log_softmax(logits.float() / temperature, dim=-1)
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1) if with_entropy else None
    return ResponseScores(log_probs.gather(-1, responses.unsqueeze(-1)).squeeze(-1), entropy)


@dataclass(frozen=True, eq=False)
class Sampled:
    """One sampled response.

    Attributes:
        tokens: token ids.
        log_probs, entropy: per token, as in ``ResponseScores``, at the sampling temperature without ``top_k`` and
            ``top_p``.
    """

    tokens: list[int]
    log_probs: list[float]
    entropy: list[float]


@torch.no_grad()
def sample_responses(
    model: Any,
    prompts: Sequence[Tokens],
    copies: Sequence[int],
    *,
    max_tokens: int,
    ends: Collection[int],
    sampling: TokenSampling,
    generator: torch.Generator,
) -> list[Sampled]:
    """Sample ``copies[u]`` responses to prompt u, in the order of the prompts.

    A response ends with the first of the token ids ``ends``, or after ``max_tokens`` tokens.
    """
    prefix = read_prompts(model, prompts)
    return continue_prompts(
        model, prefix, copies, max_tokens=max_tokens, ends=ends, sampling=sampling, generator=generator
    )


@torch.no_grad()
def continue_prompts(
    model: Any,
    prefix: Prefix,
    copies: Sequence[int],
    *,
    max_tokens: int,
    ends: Collection[int],
    sampling: TokenSampling,
    generator: torch.Generator,
) -> list[Sampled]:
    """Sample responses as ``sample_responses`` does, to prompts that the model has read."""
    prompt_of = torch.repeat_interleave(torch.arange(len(copies)), torch.as_tensor(copies)).to(prefix.mask.device)
    mask = prefix.mask[prompt_of]
    prompt_length = mask.sum(dim=1)
    responses = [Sampled([], [], []) for _ in range(len(prompt_of))]
    going = torch.arange(len(prompt_of), device=mask.device)  # the rows whose responses have not ended
    end_ids = torch.tensor(sorted(ends), dtype=torch.int64, device=mask.device)
    cache = _cache_of(prefix, prompt_of)
    logits = prefix.logits[prompt_of]
    for number in range(max_tokens):
        tokens = _draw(logits, sampling, generator)
        log_probs = torch.log_softmax(logits.float() / (sampling.temperature or 1.0), dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        chosen = log_probs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        for row, *values in zip(going.tolist(), tokens.tolist(), chosen.tolist(), entropy.tolist(), strict=True):
            response = responses[row]
            response.tokens.append(values[0])
            response.log_probs.append(values[1])
            response.entropy.append(values[2])
        unended = torch.nonzero(~torch.isin(tokens, end_ids)).squeeze(1)
        if number == max_tokens - 1 or not len(unended):
            break
        if len(unended) < len(going):
            going, mask, tokens = going[unended], mask[unended], tokens[unended]
            cache.batch_select_indices(unended)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        positions = (prompt_length[going] + number).unsqueeze(1)
        output = model(
            tokens.unsqueeze(1), attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits = output.logits[:, -1]
    return responses


def _draw(logits: torch.Tensor, sampling: TokenSampling, generator: torch.Generator) -> torch.Tensor:
    """(N,) one token per row of ``logits`` (N, V)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(dim=-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        dropped = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        dropped[:, 0] = False  # the most probable token is never dropped
        probabilities = probabilities.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), 0)
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


def _cache_of(prefix: Prefix, prompt_of: torch.Tensor) -> DynamicCache:
    """The keys and values of each response's prompt, as a cache that the model can extend."""
    cache = DynamicCache()
    for number, (keys, values) in enumerate(prefix.cache):
        cache.update(keys[prompt_of], values[prompt_of], number)
    return cache


def _continued(mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention mask (N, P + length) and positions (N, length) of ``length`` tokens after prompts with ``mask``."""
    whole = torch.cat([mask, mask.new_ones(len(mask), length)], dim=1)
    return whole, mask.sum(dim=1, keepdim=True) + torch.arange(length, device=mask.device)
