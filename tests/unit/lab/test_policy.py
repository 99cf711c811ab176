"""Sampling and log-probabilities with shared prompts, against one plain forward pass per row."""

import math

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from verl_gsd.lab.training import policy
from verl_gsd.lab.training.policy import (
    TokenSampling,
    end_tokens,
    read_many_prompts,
    read_prompts,
    sample_responses,
    score_responses,
)
from verl_gsd.tasks.byte_llama import build_tokenizer

VOCABULARY, EOS = 7, 0
PROMPTS = [[3, 1, 4], [1, 5], [2, 6, 5, 3, 5], [1]]
#: (prompt, response), in no order of prompts; lengths from 1 to 4.
ROWS = [(2, [4, 4, 1, 0]), (0, [0]), (1, [6, 2]), (0, [5, 5, 5]), (3, [3, 0]), (2, [1]), (0, [2, 0])]
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module", params=[(LlamaForCausalLM, LlamaConfig), (Qwen2ForCausalLM, Qwen2Config)])
def model(request):
    torch.manual_seed(0)
    kind, config = request.param
    made = kind(config(**SIZES)).double().eval()
    with torch.no_grad():  # far from uniform
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def plain(model, prompt, response, temperature=1.0):
    """(j,) log-probabilities and entropies of one response, from one pass over the whole row."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1] / temperature
    log_probs = torch.log_softmax(logits, dim=-1)
    return log_probs[torch.arange(len(response)), response], -(log_probs.exp() * log_probs).sum(dim=-1)


def padded(rows):
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)


def scored(model, rows, **options):
    prompt_of = torch.tensor([prompt for prompt, _ in rows])
    responses = padded([response for _, response in rows])
    return score_responses(model, read_prompts(model, PROMPTS), prompt_of, responses, **options)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_shared_prompts_give_the_log_probabilities_and_entropies_of_separate_rows(model, temperature):
    scores = scored(model, ROWS, temperature=temperature, with_entropy=True)
    for row, (prompt, response) in enumerate(ROWS):
        log_probs, entropy = plain(model, PROMPTS[prompt], response, temperature)
        torch.testing.assert_close(scores.log_probs[row, : len(response)], log_probs, check_dtype=False)
        torch.testing.assert_close(scores.entropy[row, : len(response)], entropy, check_dtype=False)


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_prompts_read_in_parts_by_length_give_the_scores_of_one_pass(model, size, monkeypatch):
    monkeypatch.setattr(policy, "_PROMPTS", size)
    prompt_of, responses = torch.tensor([prompt for prompt, _ in ROWS]), padded([response for _, response in ROWS])
    ours, reference = (
        score_responses(model, read(model, PROMPTS), prompt_of, responses, with_entropy=True)
        for read in (read_many_prompts, read_prompts)
    )
    torch.testing.assert_close(ours.log_probs, reference.log_probs)
    torch.testing.assert_close(ours.entropy, reference.entropy)
    assert not read_many_prompts(model, PROMPTS).logits.requires_grad


def test_shared_prompts_give_the_gradient_of_separate_rows(model):
    weights = torch.linspace(-1, 2, len(ROWS))
    lengths = torch.tensor([len(response) for _, response in ROWS])
    log_probs = scored(model, ROWS).log_probs
    counts = torch.arange(log_probs.shape[1]) < lengths.unsqueeze(1)
    shared = torch.autograd.grad((log_probs * counts * weights.unsqueeze(1)).sum(), list(model.parameters()))
    losses = [
        weight * plain(model, PROMPTS[prompt], response)[0].sum()
        for weight, (prompt, response) in zip(weights, ROWS, strict=True)
    ]
    separate = torch.autograd.grad(sum(losses), list(model.parameters()))
    for ours, reference in zip(shared, separate, strict=True):
        assert (ours - reference).norm() <= 1e-6 * reference.norm()


def test_responses_of_one_token_need_no_second_pass(model):
    rows = [(prompt, response[:1]) for prompt, response in ROWS]
    scores = scored(model, rows)
    for row, (prompt, response) in enumerate(rows):
        expected = plain(model, PROMPTS[prompt], response)[0]
        torch.testing.assert_close(scores.log_probs[row], expected, check_dtype=False)


def sampled(model, copies, sampling=TokenSampling(), seed=0, max_tokens=3, ends=(EOS,)):
    generator = torch.Generator().manual_seed(seed)
    options = {"max_tokens": max_tokens, "ends": ends, "sampling": sampling, "generator": generator}
    return sample_responses(model, PROMPTS, copies, **options)


def test_sampled_responses_end_with_eos_or_at_the_limit_and_carry_their_log_probabilities(model):
    copies = [30, 0, 50, 200]
    responses = sampled(model, copies, TokenSampling(temperature=0.8))
    prompts = [prompt for prompt, count in enumerate(copies) for _ in range(count)]
    assert len(responses) == sum(copies)
    assert {len(response.tokens) for response in responses} == {1, 2, 3}
    for prompt, response in zip(prompts, responses, strict=True):
        assert EOS not in response.tokens[:-1]
        assert response.tokens[-1] == EOS or len(response.tokens) == 3
        log_probs, entropy = plain(model, PROMPTS[prompt], response.tokens, 0.8)
        assert response.log_probs == pytest.approx(log_probs.tolist(), abs=1e-5)
        assert response.entropy == pytest.approx(entropy.tolist(), abs=1e-5)


def test_each_of_several_end_tokens_ends_a_response(model):
    ends = (2, EOS)
    responses = sampled(model, [50] * len(PROMPTS), ends=ends)
    assert {response.tokens[-1] for response in responses} >= set(ends)
    for response in responses:
        assert not set(response.tokens[:-1]) & set(ends)
        assert response.tokens[-1] in ends or len(response.tokens) == 3


def test_without_an_end_token_responses_have_the_maximum_length(model):
    assert {len(response.tokens) for response in sampled(model, [50] * len(PROMPTS), ends=())} == {3}


@pytest.fixture
def folder(tmp_path):
    """A model's folder whose tokenizer ends with the token 1, and whose config.json names the tokens 2 and 3."""
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(eos_token_id=[2, 3]).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("generation", "configured"),
    [(None, {2, 3}), ({}, set()), ({"eos_token_id": 5}, {5}), ({"eos_token_id": [5, 6]}, {5, 6})],
)
def test_end_tokens_come_from_the_tokenizer_and_the_generation_config(folder, generation, configured):
    """Without generation_config.json, config.json counts, as in vLLM."""
    if generation is not None:
        GenerationConfig(**generation).save_pretrained(folder)
    assert end_tokens(str(folder)) == configured | {build_tokenizer().eos_token_id}


def test_responses_have_the_frequencies_of_their_probabilities(model):
    count = 20_000
    responses = sampled(model, [0, 0, 0, count], max_tokens=2)
    observed = {}
    for response in responses:
        observed[tuple(response.tokens)] = observed.get(tuple(response.tokens), 0) + 1
    possible = [(EOS,)] + [(a, b) for a in range(1, VOCABULARY) for b in range(VOCABULARY)]
    expected = {tokens: plain(model, PROMPTS[3], tokens)[0].sum().exp().item() for tokens in possible}
    assert sum(expected.values()) == pytest.approx(1)
    for tokens, p in expected.items():
        tolerance = 5 * math.sqrt(p * (1 - p) / count) + 1 / count
        assert observed.get(tokens, 0) / count == pytest.approx(p, abs=tolerance), tokens


def test_temperature_zero_takes_the_most_probable_token(model):
    for prompt, response in enumerate(sampled(model, [1] * len(PROMPTS), TokenSampling(temperature=0))):
        context = list(PROMPTS[prompt])
        for token in response.tokens:
            assert token == int(model(torch.tensor([context])).logits[0, -1].argmax())
            context.append(token)


@pytest.mark.parametrize("prompt", range(len(PROMPTS)))
@pytest.mark.parametrize(("top_k", "top_p"), [(2, 1.0), (-1, 0.7), (3, 0.5)])
def test_top_k_and_top_p_leave_only_the_most_probable_tokens(model, prompt, top_k, top_p):
    probabilities = model(torch.tensor([PROMPTS[prompt]])).logits[0, -1].softmax(dim=-1).detach()
    order = probabilities.argsort(descending=True).tolist()
    kept = order[:top_k] if top_k > 0 else order
    mass, allowed = 0.0, []
    whole = sum(float(probabilities[token]) for token in kept)
    for token in kept:
        if mass < top_p:
            allowed.append(token)
        mass += float(probabilities[token]) / whole
    copies = [400 if number == prompt else 0 for number in range(len(PROMPTS))]
    responses = sampled(model, copies, TokenSampling(top_k=top_k, top_p=top_p), max_tokens=1)
    drawn = {response.tokens[0] for response in responses}
    assert drawn <= set(allowed)
    assert {token for token in allowed if probabilities[token] / whole > 0.05} <= drawn


def test_equal_seeds_give_equal_responses(model):
    first, again, other = (sampled(model, [9] * len(PROMPTS), seed=seed) for seed in (1, 1, 2))
    assert [response.tokens for response in first] == [response.tokens for response in again]
    assert [response.tokens for response in first] != [response.tokens for response in other]
