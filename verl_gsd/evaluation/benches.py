"""Benchmarks: prepared test questions, their verifier, and the default number of samples per question."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.preparation import manifest
from verl_gsd.preparation.reading import sha256
from verl_gsd.tasks import catalog, embedded

#: Default number of samples per question: 32 for these small sets, as in arXiv 2504.19599 (AIME24) and arXiv 2504.14945
#: (AIME and AMC), and 1 for all others.
SAMPLES = {"aime24": 32, "aime25": 32, "amc23": 32}

Verifier = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class BenchQuestion:
    """One question of a benchmark.

    Attributes:
        index: identifies it in the benchmark.
        chat: the messages that ask it.
        truth: the reference answer.
        level: its level of difficulty; None if the benchmark has no levels.
    """

    index: int
    chat: list[dict[str, str]]
    truth: str
    level: str | None = None


@dataclass(frozen=True)
class Bench:
    """A benchmark.

    Attributes:
        name: its name in ``verl-gsd prepare`` and ``verl-gsd eval``.
        file: its rows, in verl's columns.
        sha256: SHA-256 of the file.
        verifier: the module whose ``compute_score`` verifies responses.
        questions: all questions, in the file's order.
    """

    name: str
    file: Path
    sha256: str
    verifier: str
    questions: tuple[BenchQuestion, ...]

    def samples_per_question(self, requested: int | None) -> int:
        """``requested``, or the benchmark's default if that is None."""
        return requested or SAMPLES.get(self.name, 1)

    def compute_score(self) -> Verifier:
        """The verifier's function."""
        return importlib.import_module(self.verifier).compute_score


def find_bench(name: str, data: Path, embedded_folder: Path) -> Bench:
    """The benchmark ``name``.

    Args:
        data: the folder of prepared data sets.
        embedded_folder: the folder of the task if ``name`` is an embedded task. Its layout is not that of prepared data
            sets.

    Raises:
        ValueError: the benchmark is not prepared, its file has changed since, or it has no verifier of this package.
    """
    if task := catalog.TASKS.get(name):
        if not embedded.is_ready(embedded_folder, embedded.Specification(task)):
            raise ValueError(f"--bench {name}: it is not in {embedded_folder}. Run verl-gsd prepare {name}")
        return _read_bench(name, embedded_folder / "test.parquet", task.verifier)
    manifest.check_name(name)
    data_set = manifest.read_manifest(data / name)
    if data_set is None:
        raise ValueError(f"--bench {name}: it is not in {data / name}. Run verl-gsd prepare {name}")
    file, verifier = data_set.file("test"), data_set.verifier("test")
    if verifier is None:
        raise ValueError(
            f"--bench {name}: its rewards come from a model, so it has no reference answers to verify against"
        )
    return _read_bench(name, file, verifier)


def _read_bench(name: str, file: Path, verifier: str) -> Bench:
    try:
        table = pq.read_table(file, columns=["prompt", "reward_model", "extra_info"])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ValueError(f"{file}: cannot be read as a data set with verl's columns: {error}") from error
    questions = tuple(_question(file, number, row) for number, row in enumerate(table.to_pylist()))
    if not questions:
        raise ValueError(f"{file}: there are no rows in this file")
    indices = [question.index for question in questions]
    if repeated := {index for index in indices if indices.count(index) > 1} if len(set(indices)) < len(indices) else ():
        raise ValueError(f"{file}: index {min(repeated)} occurs more than once. Give each question its own index")
    return Bench(name, file, sha256(file), verifier, questions)


def _question(file: Path, number: int, row: dict[str, Any]) -> BenchQuestion:
    try:
        truth, index = row["reward_model"]["ground_truth"], row["extra_info"]["index"]
        chat = [{"role": message["role"], "content": message["content"]} for message in row["prompt"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}, row {number} (the first is 0): this row lacks verl's columns: {error!r}") from error
    if not isinstance(truth, str) or not isinstance(index, int) or not chat:
        raise ValueError(
            f"{file}, row {number} (the first is 0): reward_model.ground_truth must be a text, extra_info.index must "
            f"be an integer, and the chat needs a message. Found {truth!r:.40}, {index!r:.40} and {len(chat)} messages"
        )
    level = row["extra_info"].get("level")
    return BenchQuestion(index, chat, truth, None if level is None else str(level))
