"""Benchmarks: prepared test problems, who verifies answers to them, and how often each is asked."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.preparation import prepared
from verl_gsd.preparation.reading import sha256
from verl_gsd.tasks import embedded

#: Samples per question without --samples: 32 for these small sets, as in arXiv 2504.19599 (AIME24) and arXiv 2504.14945
#: (AIME and AMC), and 1 for all others.
SAMPLES = {"aime24": 32, "aime25": 32, "amc23": 32}

#: The embedded task; its folder is not one of prepared data.
ARITHMETIC = "arithmetic"

Verifier = Callable[..., dict[str, float]]


@dataclass(frozen=True)
class BenchQuestion:
    """One row: its index, the chat that asks it, and the reference answer."""

    index: int
    chat: list[dict[str, str]]
    truth: str


@dataclass(frozen=True)
class Bench:
    """A benchmark.

    Attributes:
        name: as ``prepare`` and ``eval`` call it.
        file: its rows, in verl's columns.
        sha256: of the file.
        verifier: the module whose ``compute_score`` verifies.
        questions: all of them, in the file's order.
    """

    name: str
    file: Path
    sha256: str
    verifier: str
    questions: tuple[BenchQuestion, ...]

    def samples(self, asked: int | None) -> int:
        """Samples a question."""
        return asked or SAMPLES.get(self.name, 1)

    def compute_score(self) -> Verifier:
        """The verifier's function."""
        return importlib.import_module(self.verifier).compute_score


def find(name: str, data: Path, arithmetic: Path) -> Bench:
    """The benchmark ``name`` below the folder ``data`` of prepared sets; the embedded task in its own.

    Raises:
        ValueError: it is not prepared, is not what was prepared, or has no verifier.
    """
    if name == ARITHMETIC:
        if not embedded.is_ready(arithmetic):
            raise ValueError(f"--bench {name}: not in {arithmetic}. Run verl-gsd prepare {name}")
        return _bench(name, arithmetic / "test.parquet", "verl_gsd.tasks.arithmetic")
    prepared.require_name(name)
    made = prepared.read(data / name)
    if made is None:
        raise ValueError(f"--bench {name}: not in {data / name}. Run verl-gsd prepare {name}")
    file, verifier = made.file("test"), made.splits["test"].get("verifier")
    if not isinstance(verifier, str) or not verifier.startswith("verl_gsd.tasks."):
        raise ValueError(f"--bench {name}: its reward is a model's; it has no answers to verify")
    return _bench(name, file, verifier)


def _bench(name: str, file: Path, verifier: str) -> Bench:
    try:
        table = pq.read_table(file, columns=["prompt", "reward_model", "extra_info"])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise ValueError(f"{file}: not readable as verl's columns: {error}") from error
    questions = tuple(_question(file, number, row) for number, row in enumerate(table.to_pylist()))
    if not questions:
        raise ValueError(f"{file}: no rows")
    indices = [question.index for question in questions]
    if repeated := {index for index in indices if indices.count(index) > 1} if len(set(indices)) < len(indices) else ():
        raise ValueError(f"{file}: index {min(repeated)} is there twice. Give each question its own")
    return Bench(name, file, sha256(file), verifier, questions)


def _question(file: Path, number: int, row: dict[str, Any]) -> BenchQuestion:
    try:
        truth, index = row["reward_model"]["ground_truth"], row["extra_info"]["index"]
        chat = [{"role": message["role"], "content": message["content"]} for message in row["prompt"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}, row {number} (the first is 0): not verl's columns: {error!r}") from error
    if not isinstance(truth, str) or not isinstance(index, int) or not chat:
        raise ValueError(
            f"{file}, row {number} (the first is 0): write a text as reward_model.ground_truth, a whole number as "
            f"extra_info.index, and a chat; not {truth!r:.40}, {index!r:.40}"
        )
    return BenchQuestion(index, chat, truth)
