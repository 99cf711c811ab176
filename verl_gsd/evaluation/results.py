"""The results of an evaluation: figures of one benchmark with intervals over questions, and a comparison of two models.

OUTPUT/BENCH/result.json    figures, settings, and each question's number of right samples
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.evaluation.answers import Answers, Verdicts
from verl_gsd.evaluation.benches import BenchQuestion
from verl_gsd.evaluation.intervals import Estimate, PairedTest, difference_by_question, mean_by_question, paired_test
from verl_gsd.plain_data import parse_json
from verl_gsd.planning.pass_at_k import pass_at_k
from verl_gsd.prompts import question_labels
from verl_gsd.regular_files import read_regular
from verl_gsd.writing import atomic_write

RESULT, SETTINGS = "result.json", "settings.json"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class BenchResult:
    """One model's result on one benchmark.

    Attributes:
        settings: all settings of the evaluation. ``settings["model"]`` identifies the weights; nothing else does.
        indices: (Q,) int64, the questions' indices.
        samples: n, number of samples per question.
        correct: (Q,) int64, number of right samples per question.
        figures: ``unverified`` and ``cut_off`` (shares of samples), ``tokens`` (mean), and with an LLM verifier the
            figures of ``llm_verifier.verify_with_llm``.
        levels: (Q,) the questions' levels of difficulty, None for a question without one; empty if they are unknown, as
            in results of earlier versions.
        repeats: (Q,) labels, equal for equal questions, which have different indices. Empty if no question is repeated,
            and in results of earlier versions. Intervals count a repeated question once.
    """

    settings: Mapping[str, Any]
    indices: np.ndarray
    samples: int
    correct: np.ndarray
    figures: Mapping[str, float | str]
    levels: Sequence[str | None] = ()
    repeats: Sequence[int] = ()

    @property
    def _questions(self) -> np.ndarray | None:
        return np.array(self.repeats) if len(self.repeats) else None

    def average(self) -> Estimate:
        """avg@n: the mean over questions of the share of right samples."""
        return mean_by_question(self.correct / self.samples, questions=self._questions)

    def average_by_level(self) -> dict[str, Estimate]:
        """avg@n of the questions of each level, in the order of levels. Empty if the benchmark has no levels."""
        rows: dict[str, list[int]] = {}
        for row, level in enumerate(self.levels):
            if level is not None:
                rows.setdefault(level, []).append(row)
        shares = self.correct / self.samples
        questions = np.arange(len(shares)) if self._questions is None else self._questions
        return {
            level: mean_by_question(shares[rows[level]], questions=questions[rows[level]])
            for level in sorted(rows, key=_level_order)
        }

    def pass_at_k(self) -> dict[int, Estimate]:
        """pass@k for k = 2, 4, ... up to n. pass@1 is the average."""
        ks = [2**power for power in range(1, self.samples.bit_length())]
        samples = np.full(len(self.correct), self.samples)
        return {k: mean_by_question(pass_at_k(samples, self.correct, k), questions=self._questions) for k in ks}


def _level_order(level: str) -> list[tuple[bool, int, str]]:
    """A sort key: numbers in a level's name are ordered by size, so that level 10 follows level 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", level)]


def build_result(
    settings: Mapping[str, Any],
    questions: Sequence[BenchQuestion],
    answers: Answers,
    verdicts: Verdicts,
    more: Mapping[str, float | str],
) -> BenchResult:
    """The result of all samples of the benchmark's ``questions``, with further figures ``more``."""
    indices = np.array([question.index for question in questions], dtype=np.int64)
    levels = [question.level for question in questions]
    figures = {
        "unverified": float(verdicts.unverified.mean()),
        "cut_off": float(answers.cut_off.mean()),
        "tokens": float(answers.tokens.mean()),
        **more,
    }
    correct = verdicts.correct.sum(axis=1)
    labels = labels_of_questions(questions)
    repeats = labels.tolist() if len(np.unique(labels)) < len(labels) else ()
    return BenchResult(settings, indices, answers.tokens.shape[1], correct, figures, levels, repeats)


def labels_of_questions(questions: Sequence[BenchQuestion]) -> np.ndarray:
    """(Q,) int64 labels from 0 on, equal for rows that ask the same question. Intervals count such rows once."""
    labels = question_labels(
        {
            "raw_prompt": [question.chat for question in questions],
            "reward_model": [{"ground_truth": question.truth} for question in questions],
        }
    )
    return np.unique(labels, return_inverse=True)[1]


def write_result(folder: Path, result: BenchResult) -> None:
    """Write OUTPUT/BENCH/result.json atomically."""
    content = {
        "format": FORMAT,
        "settings": dict(result.settings),
        "questions": len(result.correct),
        "samples": result.samples,
        "average": asdict(result.average()),
        "pass_at_k": {str(k): asdict(estimate) for k, estimate in result.pass_at_k().items()},
        "by_level": {level: asdict(estimate) for level, estimate in result.average_by_level().items()},
        "figures": dict(result.figures),
        "indices": result.indices.tolist(),
        "correct": result.correct.tolist(),
        "levels": list(result.levels),
    }
    if len(result.repeats):
        content["repeats"] = list(result.repeats)
    with atomic_write(folder / RESULT) as building:
        building.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(folder: Path, *, within: Path) -> BenchResult:
    """Read OUTPUT/BENCH/result.json. The estimates are computed again from the counts.

    Args:
        within: the folder of the run or of the evaluation. A file outside it, to which a link leads, is not read.

    Raises:
        ValueError: the file is missing, is outside ``within``, or is not a result. The message names it.
    """
    path = folder / RESULT
    try:
        content = parse_json(read_regular(path, within=within))
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}, and this package reads format {FORMAT}")
        indices, correct = (np.array(content[name], dtype=np.int64) for name in ("indices", "correct"))
        samples = int(content["samples"])
        if indices.shape != correct.shape or not ((correct >= 0) & (correct <= samples)).all() or samples < 1:
            raise ValueError("correct must be a list of numbers from 0 to samples, one per question")
        levels = list(content.get("levels", ()))
        if (levels and len(levels) != len(correct)) or not all(isinstance(level, str | None) for level in levels):
            raise ValueError("levels must be a list of texts or nulls, one per question")
        repeats = list(content.get("repeats", ()))
        if (repeats and len(repeats) != len(correct)) or not all(isinstance(label, int) for label in repeats):
            raise ValueError("repeats must be a list of integers, one per question")
        settings, figures = dict(content["settings"]), dict(content["figures"])
        return BenchResult(settings, indices, samples, correct, figures, levels, repeats)
    except (OSError, OverflowError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a result of verl-gsd eval ({error})") from error


def check_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Check that the settings of two results differ only in the model.

    Raises:
        ValueError: another setting differs. The message names it.
    """
    for name in sorted({*first, *second} - {"model"}):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"{second.get('bench')}: {name} is {first.get(name)!r:.80} in the other evaluation and "
                f"{second.get(name)!r:.80} in this one, so they cannot be compared. Use the same options for both"
            )


def compare(first: BenchResult, second: BenchResult) -> PairedTest:
    """Compare the second model with the first, question by question.

    Raises:
        ValueError: see ``check_comparable``; or the questions differ.
    """
    check_comparable(first.settings, second.settings)
    if first.indices.tolist() != second.indices.tolist() or first.samples != second.samples:
        raise ValueError("the other evaluation has other questions, or another number of samples per question")
    shares = first.correct / first.samples, second.correct / second.samples
    questions = np.array(first.repeats or second.repeats or range(len(first.correct)))
    difference = difference_by_question(*shares, questions=questions)
    # The signs of a question's differences flip together. Scaled sums have the mean of all rows.
    _, place = np.unique(questions, return_inverse=True)
    scale = (place.max() + 1) / len(place)
    by_question = (np.bincount(place, weights=values) * scale for values in shares)
    return replace(paired_test(*by_question), difference=difference)
