"""Makes the embedded task on this machine: two Parquet files in verl's schema and a warm-started model.

A folder is made whole or not at all, by one process at a time, and carries a manifest that says what it was made from;
``ensure`` makes it when it is missing or made from something else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from verl_gsd.tasks import arithmetic
from verl_gsd.writing import atomic_folder

MANIFEST = "manifest.json"
#: Raised whenever what ``ensure`` writes changes while the specification below does not.
FORMAT = 3


@dataclasses.dataclass(frozen=True)
class Specification:
    """What the folder is a function of. Problems are per level; 700 steps are about 75 s on two cores."""

    seed: int = 0
    train_per_level: int = 320
    test_per_level: int = 128
    warm_start_steps: int = 700

    def fingerprint(self) -> str:
        """A hash of this specification, the levels and the format."""
        levels = [dataclasses.asdict(level) for level in arithmetic.LEVELS]
        content = json.dumps([FORMAT, dataclasses.asdict(self), levels], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def is_ready(directory: Path, specification: Specification = Specification()) -> bool:
    """Whether ``directory`` holds the task made from ``specification``."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return manifest.get("fingerprint") == specification.fingerprint()


def ensure(
    directory: Path,
    specification: Specification = Specification(),
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Make the task in ``directory`` unless it is there; returns ``directory``.

    Test questions are in neither the training set nor the warm start.

    Args:
        on_step: called after every step of the warm start with its number and loss.

    Raises:
        FileExistsError: ``directory`` holds something that is not this task.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(directory.name + ".lock")):
        if is_ready(directory, specification):
            return directory
        if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
            raise FileExistsError(f"{directory} is not empty and not a task of ours: write another task.directory")
        with atomic_folder(directory) as building:
            _build(building, specification, on_step)
    return directory


def _build(directory: Path, specification: Specification, on_step: Callable[[int, float], None]) -> None:
    from verl_gsd.tasks import byte_llama  # torch and transformers: seconds that composing a config need not pay

    rng = random.Random(specification.seed)
    test = arithmetic.distinct(specification.test_per_level, rng)
    held_out = {problem.question for problem in test}
    train = arithmetic.distinct(specification.train_per_level, rng, excluded=held_out)
    _write_parquet(train, "train", 0, directory / "train.parquet")
    _write_parquet(test, "test", len(train), directory / "test.parquet")

    tokenizer = byte_llama.build_tokenizer()
    model = byte_llama.build_model(tokenizer, specification.seed)
    pairs = arithmetic.warm_start_pairs(rng, held_out)
    byte_llama.warm_start(model, tokenizer, pairs, steps=specification.warm_start_steps, on_step=on_step)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")

    manifest = dataclasses.asdict(specification) | {
        "fingerprint": specification.fingerprint(),
        "train_prompts": len(train),
        "test_prompts": len(test),
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _write_parquet(problems: list[arithmetic.Problem], split: str, first_index: int, path: Path) -> None:
    """verl's schema: a chat, the answer, and ``extra_info.index``, unique over both files; an expert would write the
    answer and no more."""
    from verl_gsd.tasks.byte_llama import chat_prompt

    rows = [
        {
            "data_source": arithmetic.DATA_SOURCE,
            "prompt": chat_prompt(problem.question),
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split, "level": problem.level},
            "demonstration": problem.answer,
        }
        for index, problem in enumerate(problems, start=first_index)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
