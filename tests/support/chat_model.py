"""A model folder with a BPE tokenizer and a chat template that has a system prompt, tools and rules of its own."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

TEMPLATE = (
    "{%- if tools %}<|start|>system\nTools:{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}<|end|>\n"
    "{%- elif messages[0].role != 'system' %}<|start|>system\n{{ manner | default('Think.') }}<|end|>\n{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role not in ('system', 'user', 'assistant', 'tool') %}"
    "{{ raise_exception('no such role') }}{%- endif %}"
    "<|start|>{{ message.role + '\n' + message.content }}<|end|>\n{%- endfor %}"
    "{%- if add_generation_prompt %}<|start|>assistant\n{%- endif %}"
)


def build_tokenizer(normalizer=normalizers.NFC):
    """BPE over bytes, with merges of a few English words."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizer()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|start|>", "<|end|>"],
        show_progress=False,
    )
    core.train_from_iterator(["what is the sum of the numbers", "the system thinks of the user"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>", pad_token="<|end|>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def save(folder, tokenizer=None):
    """The folder of a model without weights: its config and its tokenizer."""
    LlamaConfig(
        vocab_size=512, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    ).save_pretrained(folder)
    (tokenizer or build_tokenizer()).save_pretrained(folder)
    return folder
