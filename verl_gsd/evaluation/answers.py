"""Stores a model's responses on disk in parts, as they are generated, and verifies them.

OUTPUT/BENCH/settings.json                  all settings that the responses depend on
OUTPUT/BENCH/responses/part_00000.parquet   one row per response; a part always holds the same questions
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
from verl_gsd.regular_files import open_regular
from verl_gsd.writing import atomic_write

#: A part has the questions of about this many responses, and at least one question. Parts are divided among GPUs, so a
#: small benchmark with many samples per question needs several.
PART_RESPONSES = 64

SCHEMA = pa.schema(
    [
        ("question", pa.int32()),  # position in the benchmark
        ("sample", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("cut_off", pa.bool_()),  # whether generation stopped at max_tokens
    ]
)

#: Number of threads that verify. Most of the time, each waits for a process of the verifier.
_THREADS = 8


@dataclass(frozen=True, eq=False)
class Answers:
    """All responses to a benchmark with Q questions, n samples each.

    Attributes:
        texts: Q lists of n texts.
        tokens: (Q, n) int64, number of generated tokens.
        cut_off: (Q, n) bool, whether generation stopped at max_tokens.
    """

    texts: list[list[str]]
    tokens: np.ndarray
    cut_off: np.ndarray


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The verifier's results.

    Attributes:
        correct: (Q, n) bool.
        unverified: (Q, n) bool, responses that could not be verified. They count as wrong.
    """

    correct: np.ndarray
    unverified: np.ndarray


def part_ranges(questions: int, samples: int) -> list[range]:
    """The positions of the questions in each part, given the number of samples per question."""
    size = max(1, PART_RESPONSES // samples)
    return [range(start, min(start + size, questions)) for start in range(0, questions, size)]


def part_file(folder: Path, number: int) -> Path:
    """The file of part ``number`` in ``folder``, which is OUTPUT/BENCH."""
    return folder / "responses" / f"part_{number:05d}.parquet"


def write_part(folder: Path, number: int, rows: Sequence[dict]) -> None:
    """Write a part atomically."""
    with atomic_write(part_file(folder, number)) as building:
        pq.write_table(pa.Table.from_pylist(list(rows), SCHEMA), building, compression="zstd")


def read_answers(folder: Path, questions: int, samples: int) -> Answers:
    """Read all parts in ``folder``, which is OUTPUT/BENCH.

    Raises:
        ValueError: a part is missing, unreadable, or belongs to other questions. The message names the file.
    """
    texts: list[list[str]] = []
    tokens: np.ndarray = np.zeros((questions, samples), np.int64)
    cut_off: np.ndarray = np.zeros((questions, samples), bool)
    for number, positions in enumerate(part_ranges(questions, samples)):
        path = part_file(folder, number)
        try:
            with open_regular(path) as file:
                rows = pq.read_table(file, schema=SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise ValueError(
                f"{path}: cannot be read as responses ({error}). Remove it and run the same command"
            ) from error
        expected = [(question, sample) for question in positions for sample in range(samples)]
        if [(row["question"], row["sample"]) for row in rows] != expected:
            raise ValueError(f"{path}: the responses belong to other questions. Remove it and run the same command")
        for row in rows:
            tokens[row["question"], row["sample"]] = row["tokens"]
            cut_off[row["question"], row["sample"]] = row["cut_off"]
        part_texts = [row["text"] for row in rows]
        texts += [part_texts[start : start + samples] for start in range(0, len(part_texts), samples)]
    return Answers(texts, tokens, cut_off)


def verify(bench: Bench, answers: Answers, on_done: Callable[[int], None]) -> Verdicts:
    """Compare every response with the answer to its question.

    Args:
        on_done: called with the number of responses verified so far.
    """
    compute_score = bench.compute_score()
    shape = answers.tokens.shape
    pairs = [
        (text, question.truth) for question, texts in zip(bench.questions, answers.texts, strict=True) for text in texts
    ]
    correct: np.ndarray = np.zeros(len(pairs), bool)
    unverified = correct.copy()
    with ThreadPoolExecutor(_THREADS) as threads:
        for row, score in enumerate(threads.map(lambda pair: compute_score(bench.name, *pair), pairs)):
            correct[row] = score["acc"] > 0
            unverified[row] = score.get("unverified", 0.0) > 0
            on_done(row + 1)
    return Verdicts(correct.reshape(shape), unverified.reshape(shape))
