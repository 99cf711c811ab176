"""What an evaluation amounts to: figures of one benchmark with intervals over questions, and two models compared.

OUTPUT/BENCH/result.json    figures, what they were measured with, and each question's right samples
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.evaluation.answers import Answers, Verdicts
from verl_gsd.evaluation.intervals import Estimate, Paired, mean_by_question, paired
from verl_gsd.evaluation.passing import pass_at_k
from verl_gsd.writing import atomic_write

RESULT, SETTINGS = "result.json", "settings.json"
FORMAT = 1


@dataclass(frozen=True, eq=False)
class Result:
    """One model on one benchmark.

    Attributes:
        settings: what it was measured with; ``settings["model"]`` alone says with which weights.
        indices: (Q,) int64, the questions'.
        samples: n, of each question.
        correct: (Q,) int64, right samples of each.
        figures: unverified and cut_off (shares of samples), tokens (mean), and of a second opinion what
            ``opinion.opinion`` says.
    """

    settings: Mapping[str, Any]
    indices: np.ndarray
    samples: int
    correct: np.ndarray
    figures: Mapping[str, float | str]

    def average(self) -> Estimate:
        """avg@n: the mean over questions of the share of right samples."""
        return mean_by_question(self.correct / self.samples)

    def passing(self) -> dict[int, Estimate]:
        """pass@k for k of 2, 4, ... up to n; pass@1 is the average."""
        ks = [2**power for power in range(1, self.samples.bit_length())]
        drawn = np.full(len(self.correct), self.samples)
        return {k: mean_by_question(pass_at_k(drawn, self.correct, k)) for k in ks}


def result_of(
    settings: Mapping[str, Any],
    indices: np.ndarray,
    answers: Answers,
    verdicts: Verdicts,
    more: Mapping[str, float | str],
) -> Result:
    """The result of all samples; ``more`` are further figures."""
    figures = {
        "unverified": float(verdicts.unverified.mean()),
        "cut_off": float(answers.cut_off.mean()),
        "tokens": float(answers.tokens.mean()),
        **more,
    }
    return Result(settings, indices, answers.tokens.shape[1], verdicts.correct.sum(axis=1), figures)


def write_result(folder: Path, result: Result) -> None:
    """Write OUTPUT/BENCH/result.json, whole or not at all."""
    content = {
        "format": FORMAT,
        "settings": dict(result.settings),
        "questions": len(result.correct),
        "samples": result.samples,
        "average": asdict(result.average()),
        "pass_at_k": {str(k): asdict(estimate) for k, estimate in result.passing().items()},
        "figures": dict(result.figures),
        "indices": result.indices.tolist(),
        "correct": result.correct.tolist(),
    }
    with atomic_write(folder / RESULT) as building:
        building.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_result(folder: Path) -> Result:
    """Read it back; the estimates are computed anew.

    Raises:
        ValueError: it is not there, or none of ours; the message names the file.
    """
    path = folder / RESULT
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"of format {content['format']}, this package reads {FORMAT}")
        indices, correct = (np.array(content[name], dtype=np.int64) for name in ("indices", "correct"))
        samples = int(content["samples"])
        if indices.shape != correct.shape or not ((correct >= 0) & (correct <= samples)).all() or samples < 1:
            raise ValueError("its correct is no list of numbers from 0 to samples, one a question")
        return Result(dict(content["settings"]), indices, samples, correct, dict(content["figures"]))
    except (OSError, OverflowError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a result of verl-gsd eval ({error})") from error


def require_comparable(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Refuse to compare results whose settings differ in anything but the model.

    Raises:
        ValueError: they do; the message names what.
    """
    for name in sorted({*first, *second} - {"model"}):
        if first.get(name) != second.get(name):
            raise ValueError(
                f"{second.get('bench')}: {name} was {first.get(name)!r:.80} there and is {second.get(name)!r:.80} here."
                " Measured otherwise, they cannot be compared question by question: evaluate both with the same options"
            )


def compare(first: Result, second: Result) -> Paired:
    """How the second model does against the first, question by question.

    Raises:
        ValueError: as ``require_comparable``, or the questions are others.
    """
    require_comparable(first.settings, second.settings)
    if first.indices.tolist() != second.indices.tolist() or first.samples != second.samples:
        raise ValueError("the questions, or the samples of each, are others there")
    return paired(first.correct / first.samples, second.correct / second.samples)
