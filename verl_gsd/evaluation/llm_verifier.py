"""Verifies responses with an LLM, in addition to the rule-based verifier (see judge/verdicts.py).

    OUTPUT/BENCH/opinion/part_00000.json    model, prompt version, digest of the texts, one verdict per response

A verdict in a part's file is reused. If a verdict is null, verification failed, and the response is verified again.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from verl_gsd.evaluation.answers import Answers, Verdicts, part_ranges
from verl_gsd.evaluation.benches import Bench
from verl_gsd.evaluation.intervals import mean_by_question
from verl_gsd.evaluation.results import labels_of_questions
from verl_gsd.judge.problem import problem_text
from verl_gsd.judge.prompt import VERDICT_VERSION
from verl_gsd.judge.scorer import Question, Reason
from verl_gsd.writing import atomic_write

#: Maps questions to one verdict each (None if it failed) and to the numbers of failures by reason. Its second argument
#: is called with the number of questions done.
Ask = Callable[[list[Question], Callable[[int], None]], tuple[list[bool | None], Counter[Reason]]]


def verify_with_llm(
    bench: Bench,
    folder: Path,
    answers: Answers,
    verdicts: Verdicts,
    model: str,
    ask: Ask,
    on_done: Callable[[int], None],
) -> dict[str, float | str]:
    """Let ``model`` verify every response in ``folder``, which is OUTPUT/BENCH.

    Returns:
        Figures by name:

        - ``second_model`` and ``second_prompt``: the model, and the version of its prompt.
        - ``second_failed_<reason>``: number of responses whose verification failed this time.
        - ``second_failed``: share of samples without a verdict.
        - ``second_agreement``: share of the samples with a verdict on which the model agrees with the verifier.
        - ``second_accuracy``, ``second_accuracy_low`` and ``_high``: mean over questions, with its 95% interval over
          questions, of the share of samples that are right according to the model. Samples without a verdict are left
          out. The interval counts a repeated question once.

        If no sample has a verdict, ``second_agreement`` and ``second_accuracy*`` are missing.

    Raises:
        ValueError: a part's file is damaged. The message names it.
    """
    all_verdicts: list[bool | None] = []
    failures: Counter[Reason] = Counter()
    # These parts have 64 questions whatever the number of samples: a larger part keeps more requests in flight.
    for number, positions in enumerate(part_ranges(len(bench.questions), 1)):
        path = folder / "opinion" / f"part_{number:05d}.json"
        questions = [
            Question(problem_text(bench.questions[position].chat), bench.questions[position].truth, text)
            for position in positions
            for text in answers.texts[position]
        ]
        inputs = {"model": model, "prompt": VERDICT_VERSION, "texts": _digest(questions)}
        part_verdicts = _read_verdicts(path, inputs, len(questions))
        missing = [row for row, verdict in enumerate(part_verdicts) if verdict is None]
        if missing:
            done_before = len(all_verdicts) + len(questions) - len(missing)
            new_verdicts, new_failures = ask([questions[row] for row in missing], _add(done_before, on_done))
            failures += new_failures
            for row, verdict in zip(missing, new_verdicts, strict=True):
                part_verdicts[row] = verdict
            with atomic_write(path) as building:
                building.write_text(json.dumps(inputs | {"verdicts": part_verdicts}) + "\n", encoding="utf-8")
        all_verdicts += part_verdicts
        on_done(len(all_verdicts))
    has_verdict = np.array([verdict is not None for verdict in all_verdicts]).reshape(verdicts.correct.shape)
    figures: dict[str, float | str] = {"second_model": model, "second_prompt": VERDICT_VERSION}
    figures |= {f"second_failed_{reason}": float(count) for reason, count in sorted(failures.items())}
    figures["second_failed"] = float((~has_verdict).mean())
    if has_verdict.any():
        right = np.array([bool(verdict) for verdict in all_verdicts]).reshape(has_verdict.shape)
        judged = has_verdict.any(axis=1)
        shares = right.sum(axis=1)[judged] / has_verdict.sum(axis=1)[judged]
        accuracy = mean_by_question(shares, questions=labels_of_questions(bench.questions)[judged])
        figures["second_accuracy"] = accuracy.value
        figures |= {"second_accuracy_low": accuracy.low, "second_accuracy_high": accuracy.high}
        figures["second_agreement"] = float((right == verdicts.correct)[has_verdict].mean())
    return figures


def _add(done_before: int, on_done: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: on_done(done_before + done)


def _digest(questions: list[Question]) -> str:
    content = json.dumps([[question.problem, question.reference, question.response] for question in questions])
    return hashlib.sha256(content.encode()).hexdigest()


def _read_verdicts(path: Path, inputs: Mapping[str, str], responses: int) -> list[bool | None]:
    """The verdicts in a part's file. All are None if it does not exist or has another model, prompt or other texts."""
    if not path.is_file():
        return [None] * responses
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        verdicts = list(content["verdicts"])
        if any(content[name] != value for name, value in inputs.items()):
            return [None] * responses
        if len(verdicts) != responses or not all(verdict in (True, False, None) for verdict in verdicts):
            raise ValueError(f"verdicts must be a list of {responses} values, each true, false or null")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Remove it and run the same command") from error
    return verdicts
