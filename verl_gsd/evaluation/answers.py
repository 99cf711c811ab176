"""Responses on disk, written in parts while they are generated, and what a verifier says of them.

OUTPUT/BENCH/settings.json              what they depend on
OUTPUT/BENCH/responses/part_00000.parquet   a row a response, of the same questions always
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.evaluation.benches import Bench
from verl_gsd.writing import atomic_write

#: Questions in a part.
PART = 64

SCHEMA = pa.schema(
    [
        ("question", pa.int32()),  # its place in the benchmark
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("cut_off", pa.bool_()),  # at max_tokens, before it ended by itself
    ]
)

#: Threads that verify: each waits for a process of the verifier's most of its time.
_THREADS = 8


@dataclass(frozen=True, eq=False)
class Answers:
    """All responses to a benchmark's Q questions, n samples each.

    Attributes:
        texts: Q lists of n texts.
        tokens: (Q, n) int64, generated.
        cut_off: (Q, n) bool, ended by max_tokens.
    """

    texts: list[list[str]]
    tokens: np.ndarray
    cut_off: np.ndarray


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What the verifier says: ``correct`` (Q, n) bool; ``unverified`` (Q, n) bool, which count as wrong."""

    correct: np.ndarray
    unverified: np.ndarray


def parts(questions: int) -> list[range]:
    """The questions of each part."""
    return [range(start, min(start + PART, questions)) for start in range(0, questions, PART)]


def part_file(folder: Path, number: int) -> Path:
    """Part ``number`` of the responses in OUTPUT/BENCH."""
    return folder / "responses" / f"part_{number:05d}.parquet"


def write_part(folder: Path, number: int, rows: Sequence[dict]) -> None:
    """Write a part, whole or not at all."""
    with atomic_write(part_file(folder, number)) as building:
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), building, compression="zstd")


def read_answers(folder: Path, questions: int, samples: int) -> Answers:
    """All parts.

    Raises:
        ValueError: a part is missing, not readable, or of other questions; the message names the file.
    """
    texts: list[list[str]] = []
    tokens: np.ndarray = np.zeros((questions, samples), np.int64)
    cut_off: np.ndarray = np.zeros((questions, samples), bool)
    for number, of_part in enumerate(parts(questions)):
        path = part_file(folder, number)
        try:
            rows = pq.read_table(path, schema=SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{path}: not readable as responses ({error}). Remove it and run the same line") from error
        expected = [(question, sample) for question in of_part for sample in range(samples)]
        if [(row["question"], row["sample"]) for row in rows] != expected:
            raise ValueError(f"{path}: responses to other questions. Remove it and run the same line")
        for row in rows:
            tokens[row["question"], row["sample"]] = row["tokens"]
            cut_off[row["question"], row["sample"]] = row["cut_off"]
        flat = [row["text"] for row in rows]
        texts += [flat[place : place + samples] for place in range(0, len(flat), samples)]
    return Answers(texts, tokens, cut_off)


def verify(bench: Bench, answers: Answers, on_done: Callable[[int], None]) -> Verdicts:
    """Every response against its question's answer.

    Args:
        on_done: told how many are verified so far.
    """
    compute_score = bench.compute_score()
    shape = answers.tokens.shape
    asked = [(text, question.truth) for question, of in zip(bench.questions, answers.texts, strict=True) for text in of]
    correct: np.ndarray = np.zeros(len(asked), bool)
    unverified = correct.copy()
    with ThreadPoolExecutor(_THREADS) as threads:
        for place, score in enumerate(threads.map(lambda pair: compute_score(bench.name, *pair), asked)):
            correct[place] = score["acc"] > 0
            unverified[place] = score.get("unverified", 0.0) > 0
            on_done(place + 1)
    return Verdicts(correct.reshape(shape), unverified.reshape(shape))
