"""A second opinion on responses: a model's verdicts beside the verifier's (judge/verdicts.py).

    OUTPUT/BENCH/opinion/part_00000.json    whose, of which texts, and a verdict a response; null where it failed

What a part has is not asked again; what failed is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from verl_gsd.evaluation.answers import Answers, Verdicts, parts
from verl_gsd.evaluation.benches import Bench
from verl_gsd.evaluation.intervals import mean_by_question
from verl_gsd.judge.problem import problem_text
from verl_gsd.judge.prompt import VERDICT_VERSION
from verl_gsd.judge.scorer import Question, Reason
from verl_gsd.writing import atomic_write

#: Questions to a verdict each, None where it could not be had, and how many could not, by reason; told how many are
#: done.
Ask = Callable[[list[Question], Callable[[int], None]], tuple[list[bool | None], Counter[Reason]]]


def opinion(
    bench: Bench,
    folder: Path,
    answers: Answers,
    verdicts: Verdicts,
    model: str,
    ask: Ask,
    on_done: Callable[[int], None],
) -> dict[str, float | str]:
    """Ask ``model`` about every response in ``folder``, OUTPUT/BENCH.

    Returns:
        ``second_model`` and ``second_prompt``, whose opinion it is and the version of what it was asked; counts
        ``second_failed_<reason>`` of what failed this time; and shares of samples: ``second_failed``, without a
        verdict; of those with one ``second_agreement``, on which it says what the verifier says. ``second_accuracy``,
        with ``second_accuracy_low`` and ``_high``, is the mean over questions of the share of their samples with a
        verdict that are right by the model, with its 95% interval over questions. Where all failed, these are missing.

    Raises:
        ValueError: a part's file is damaged; the message names it.
    """
    said: list[bool | None] = []
    failures: Counter[Reason] = Counter()
    for number, part in enumerate(parts(len(bench.questions))):
        path = folder / "opinion" / f"part_{number:05d}.json"
        asked = [
            Question(problem_text(bench.questions[place].chat), bench.questions[place].truth, text)
            for place in part
            for text in answers.texts[place]
        ]
        of = {"model": model, "prompt": VERDICT_VERSION, "texts": _digest(asked)}
        known = _read(path, of, len(asked))
        missing = [row for row, verdict in enumerate(known) if verdict is None]
        if missing:
            before = len(said) + len(asked) - len(missing)
            found, failed = ask([asked[row] for row in missing], _from(before, on_done))
            failures += failed
            for row, verdict in zip(missing, found, strict=True):
                known[row] = verdict
            with atomic_write(path) as building:
                building.write_text(json.dumps(of | {"verdicts": known}) + "\n", encoding="utf-8")
        said += known
        on_done(len(said))
    there = np.array([verdict is not None for verdict in said]).reshape(verdicts.correct.shape)
    figures: dict[str, float | str] = {"second_model": model, "second_prompt": VERDICT_VERSION}
    figures |= {f"second_failed_{reason}": float(count) for reason, count in sorted(failures.items())}
    figures["second_failed"] = float((~there).mean())
    if there.any():
        right = np.array([bool(verdict) for verdict in said]).reshape(there.shape)
        judged = there.any(axis=1)
        accuracy = mean_by_question(right.sum(axis=1)[judged] / there.sum(axis=1)[judged])
        figures["second_accuracy"] = accuracy.value
        figures |= {"second_accuracy_low": accuracy.low, "second_accuracy_high": accuracy.high}
        figures["second_agreement"] = float((right == verdicts.correct)[there].mean())
    return figures


def _from(before: int, on_done: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: on_done(before + done)


def _digest(questions: list[Question]) -> str:
    content = json.dumps([[question.problem, question.reference, question.response] for question in questions])
    return hashlib.sha256(content.encode()).hexdigest()


def _read(path: Path, of: Mapping[str, str], responses: int) -> list[bool | None]:
    """What was said of a part before; another model's verdicts, or those of other texts, are not asked for."""
    if not path.is_file():
        return [None] * responses
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        verdicts = list(content["verdicts"])
        if any(content[name] != value for name, value in of.items()):
            return [None] * responses
        if len(verdicts) != responses or not all(verdict in (True, False, None) for verdict in verdicts):
            raise ValueError(f"not {responses} verdicts, true, false or null")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not readable ({error}). Remove it and run the same line") from error
    return verdicts
