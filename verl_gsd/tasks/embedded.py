"""Makes an embedded task locally: two Parquet files in verl's schema and a warm-started model.

The weights of the default specifications come with the package (``starts``), so that runs on all machines begin with
the same policy. Machines with other processors round sums differently, and their own warm starts differ by several
percent in accuracy. Other specifications are trained on this machine. ``scripts/make_starts.py`` makes the package's
weights.

The folder is created atomically and by one process at a time. Its manifest has the specification it was made from.
``ensure`` makes the folder if it is missing or has another specification.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from verl_gsd.tasks import arithmetic
from verl_gsd.tasks.catalog import ARITHMETIC, EmbeddedTask
from verl_gsd.writing import atomic_folder, atomic_write

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MANIFEST = "manifest.json"
#: Increase it whenever ``ensure`` writes other files for the same specification.
FORMAT = 4
#: The weights that come with the package, one file per task.
STARTS = Path(__file__).parent / "starts"
#: The specification that a file there was made from, in its metadata.
_FINGERPRINT = "fingerprint"


@dataclasses.dataclass(frozen=True)
class Specification:
    """What the folder's content depends on. Problems are counted per level; 700 steps take about 75 s on two cores.

    The defaults need no warm start: their weights come with the package.
    """

    task: EmbeddedTask = ARITHMETIC
    seed: int = 0
    train_per_level: int = 320
    test_per_level: int = 128
    warm_start_steps: int = 700

    def numbers(self) -> dict[str, int]:
        """The specification without its task."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "task"}

    def fingerprint(self) -> str:
        """A hash of this specification, the task and the format."""
        levels, lessons = (
            [dataclasses.asdict(level) for level in group] for group in (self.task.levels, self.task.lessons)
        )
        # ARITHMETIC was the only task at first. Its folders would be remade if its hash had more than this.
        more = [] if self.task == ARITHMETIC else [self.task.name, lessons]
        content = json.dumps([FORMAT, self.numbers(), levels, *more], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def is_ready(directory: Path, specification: Specification = Specification()) -> bool:
    """Whether ``directory`` holds the task made from ``specification``."""
    return _read_manifest(directory).get("fingerprint") == specification.fingerprint()


def _read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a task's folder; empty if there is none or it is damaged."""
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}


def ensure(
    directory: Path,
    specification: Specification = Specification(),
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> Path:
    """Make the task in ``directory`` if it is missing or out of date, and return ``directory``.

    Neither the training set nor the warm start contains a test question.

    Args:
        on_step: called after every step of the warm start with its number and loss, if there is one.

    Raises:
        FileExistsError: ``directory`` contains another embedded task, or files that are not part of one.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_name(directory.name + ".lock")):
        if is_ready(directory, specification):
            return directory
        if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
            raise FileExistsError(
                f"{directory} is not empty and does not contain an embedded task. Set task.directory to another folder"
            )
        manifest, name = _read_manifest(directory), specification.task.name
        # Folders of the first task were written without a name at first.
        if manifest and (other := manifest.get("task", ARITHMETIC.name)) != name:
            raise FileExistsError(
                f"{directory} contains the task {other}, not {name}. Set task.directory to another folder"
            )
        with atomic_folder(directory) as building:
            _build(building, specification, on_step)
    return directory


def packaged_start(specification: Specification) -> Path | None:
    """The file of the package with the warm-started weights of a specification; None if there is none."""
    from safetensors import safe_open

    path = STARTS / f"{specification.task.name}.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="np") as file:
        return path if file.metadata()[_FINGERPRINT] == specification.fingerprint() else None


def make_start(specification: Specification, on_step: Callable[[int, float], None] = lambda step, loss: None) -> Path:
    """Train the weights of a specification on this machine and write them to ``STARTS``. Returns the file."""
    from safetensors.torch import save_file

    _, test, rng = _problems(specification)
    model, _ = _warm_started(specification, test, rng, on_step)
    path = STARTS / f"{specification.task.name}.safetensors"
    weights = {name: value.contiguous() for name, value in model.named_parameters()}  # tied weights once
    with atomic_write(path) as building:
        save_file(weights, building, metadata={_FINGERPRINT: specification.fingerprint()})
    return path


def _build(directory: Path, specification: Specification, on_step: Callable[[int, float], None]) -> None:
    task, (train, test, rng) = specification.task, _problems(specification)
    _write_parquet(task, train, "train", 0, directory / "train.parquet")
    _write_parquet(task, test, "test", len(train), directory / "test.parquet")

    start = packaged_start(specification)
    if start is None:
        model, tokenizer = _warm_started(specification, test, rng, on_step)
    else:
        model, tokenizer = _loaded(start, specification)
    model.save_pretrained(directory / "model")
    tokenizer.save_pretrained(directory / "model")

    manifest = (
        {"task": task.name}
        | specification.numbers()
        | {
            "fingerprint": specification.fingerprint(),
            "train_prompts": len(train),
            "test_prompts": len(test),
        }
    )
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _problems(
    specification: Specification,
) -> tuple[list[arithmetic.Problem], list[arithmetic.Problem], random.Random]:
    """The training problems, the test problems, and the generator that has drawn them, for the warm start's corpus."""
    levels, rng = specification.task.levels, random.Random(specification.seed)
    test = arithmetic.distinct_problems(specification.test_per_level, rng, levels=levels)
    held_out = {problem.question for problem in test}
    train = arithmetic.distinct_problems(specification.train_per_level, rng, held_out, levels)
    return train, test, rng


def _warm_started(
    specification: Specification,
    test: list[arithmetic.Problem],
    rng: random.Random,
    on_step: Callable[[int, float], None],
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    from verl_gsd.tasks import byte_llama  # imports torch and transformers, which composing a config does not need

    tokenizer = byte_llama.build_tokenizer()
    model = byte_llama.build_model(tokenizer, specification.seed)
    pairs = arithmetic.warm_start_pairs(rng, {problem.question for problem in test}, specification.task.corpus)
    byte_llama.warm_start(model, tokenizer, pairs, steps=specification.warm_start_steps, on_step=on_step)
    return model, tokenizer


def _loaded(start: Path, specification: Specification) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    from safetensors.torch import load_file

    from verl_gsd.tasks import byte_llama

    tokenizer = byte_llama.build_tokenizer()
    model = byte_llama.build_model(tokenizer, specification.seed)
    weights = load_file(start)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights.pop(name))
    if weights:
        raise ValueError(f"{start} has weights that the model has not: {', '.join(weights)}")
    return model, tokenizer


def _write_parquet(
    task: EmbeddedTask, problems: list[arithmetic.Problem], split: str, first_index: int, path: Path
) -> None:
    """Write problems in verl's schema. ``extra_info.index`` is unique over both files.

    The demonstration is the answer, because an expert would write nothing else.
    """
    from verl_gsd.tasks.byte_llama import chat_prompt

    rows = [
        {
            "data_source": task.name,
            "prompt": chat_prompt(problem.question),
            "ability": "arithmetic",
            "reward_model": {"style": "rule", "ground_truth": problem.answer},
            "extra_info": {"index": index, "split": split, "level": problem.level},
            "demonstration": problem.answer,
        }
        for index, problem in enumerate(problems, start=first_index)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
