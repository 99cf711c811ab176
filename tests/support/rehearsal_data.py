"""Small made-up data in the columns that ``verl-gsd prepare`` writes, and folders of models, for all recipes.

Recipes find them where VERL_GSD_DATA names the folder.
"""

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.preparation.item import BOXED, Item, file_schema, verl_row

#: (data set, split, rows, with demonstrations). As many rows as the largest batch of a recipe that uses them.
FILES = (
    ("bigmath", "train", 256, False),
    ("gsm8k", "train", 200, False),
    ("gsm8k", "test", 20, False),
    ("math", "train", 1100, False),
    ("math500", "test", 20, False),
    ("openr1_math_46k", "train", 200, True),
    ("tldr", "train", 600, False),
    ("tldr", "test", 20, False),
)


def write_data(folder: Path) -> Path:
    """Write all files and models below ``folder`` and return it."""
    for name, split, rows, shown in FILES:
        path = folder / name / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(name, split, rows, shown), path)
    write_model(folder / "models" / "Qwen2.5-Math-7B-16k", positions=16384)
    write_model(folder / "models" / "qwen2.5-1.5b-tldr-sft", positions=32768)
    return folder


def table(name: str, split: str, rows: int, shown: bool = False) -> pa.Table:
    """Sums of two numbers, with the answer as demonstration where ``shown``."""
    numbers = random.Random(f"{name} {split}")
    items = []
    for _ in range(rows):
        first, second = numbers.randrange(10, 99), numbers.randrange(10, 99)
        demonstration = [f"\\boxed{{{first + second}}}"] if shown else None
        items.append(Item(f"What is {first} + {second}?", str(first + second), demonstration=demonstration))
    style = "model" if name == "tldr" else "rule"
    made = [
        verl_row(item, data_source=name, index=index, split=split, suffix=BOXED, style=style)
        for index, item in enumerate(items)
    ]
    return pa.Table.from_pylist(made, file_schema(shown, {}))


def write_model(folder: Path, positions: int, template: str | None = None) -> Path:
    """The folder of a model without weights: the config of a small Qwen2, and a tokenizer of bytes."""
    from transformers import Qwen2Config

    from verl_gsd.tasks import byte_llama

    tokenizer = byte_llama.build_tokenizer()
    tokenizer.chat_template = template or tokenizer.chat_template
    Qwen2Config(
        vocab_size=byte_llama.VOCABULARY_SIZE,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
