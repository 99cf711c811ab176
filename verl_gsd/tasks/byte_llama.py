"""A Llama of about a million parameters that reads bytes, built and warm-started locally.

Nothing is downloaded. The tokenizer is byte-level without merges, and the weights are random. A short supervised
training on (question, answer) pairs makes the policy good enough for reinforcement learning to improve it. The result
depends on the seed, on the number of threads, which is therefore fixed, and on the processor, which rounds sums in its
own way. ``embedded.py`` therefore has the weights of the tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, EOS = "<pad>", "<eos>"
ROLES = ("system", "user", "assistant")
#: 256 bytes, 5 special tokens, and unused entries up to a multiple of 32.
VOCABULARY_SIZE = 288
#: Long enough for the same model to serve as a judge of whole solutions.
CONTEXT_LENGTH = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + EOS + "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

#: Fixed, because the number of threads changes the order of float sums and thus, slightly, the weights.
_THREADS = 2


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are the 256 bytes plus ``<pad> <eos> <|system|> <|user|> <|assistant|>``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A model with random float32 weights: 2 layers of width 192, 6 heads of 32, tied embeddings, 1.01M parameters."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=192,
            intermediate_size=576,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def warm_start(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Iterator[tuple[str, str]],
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the model in place, by cross-entropy on the answer's bytes and ``<eos>`` with the question as context.

    Args:
        pairs: an endless iterator of (question, answer).
        on_step: called after each step with the number of steps done and the last loss.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * max(0.05, 1 - step / steps)
    )
    model.train()
    with _fixed_threads():
        for step in range(1, steps + 1):
            tokens, labels = _collate([_encode(tokenizer, *next(pairs)) for _ in range(batch_size)], tokenizer)
            logits = model(tokens).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            on_step(step, loss.item())
    model.eval()


def chat_prompt(question: str) -> list[dict[str, str]]:
    """The chat that asks ``question``, in the data set and in the warm start."""
    return [{"role": "user", "content": question}]


_IGNORED_LABEL = -100


def _encode(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tuple[list[int], list[int]]:
    prompt = tokenizer.apply_chat_template(chat_prompt(question), add_generation_prompt=True, return_dict=False)
    response = [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id]
    return prompt, response


def _collate(
    rows: list[tuple[list[int], list[int]]], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    tokens = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), _IGNORED_LABEL)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return tokens, labels


@contextmanager
def _fixed_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
