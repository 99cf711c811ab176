"""A second opinion on responses: a model's verdicts beside the verifier's (judge/verdicts.py).

    OUTPUT/BENCH/opinion/part_00000.json    the model's name and a verdict a response of that part, null where it failed

What a part has is not asked again; what failed is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from verl_gsd.evaluation.answers import Answers, Verdicts, parts
from verl_gsd.evaluation.benches import Bench
from verl_gsd.judge.problem import problem_text
from verl_gsd.judge.scorer import Question
from verl_gsd.writing import whole

#: Questions to a verdict each, None where it could not be had; told how many are done.
Ask = Callable[[list[Question], Callable[[int], None]], list[bool | None]]


def opinion(
    bench: Bench,
    folder: Path,
    answers: Answers,
    verdicts: Verdicts,
    model: str,
    ask: Ask,
    on_done: Callable[[int], None],
) -> dict[str, float]:
    """Ask ``model`` about every response in ``folder``, OUTPUT/BENCH.

    Returns:
        Shares of samples: ``second_accuracy``, right by the model; ``second_agreement``, on which it says what the
        verifier says; both of those with a verdict; ``second_failed``, without one. The first two are missing where
        all failed.

    Raises:
        ValueError: a part's file is damaged; the message names it.
    """
    said: list[bool | None] = []
    for number, part in enumerate(parts(len(bench.questions))):
        path = folder / "opinion" / f"part_{number:05d}.json"
        asked = [
            Question(problem_text(bench.questions[place].chat), bench.questions[place].truth, text)
            for place in part
            for text in answers.texts[place]
        ]
        known = _read(path, model, len(asked))
        missing = [row for row, verdict in enumerate(known) if verdict is None]
        if missing:
            before = len(said) + len(asked) - len(missing)
            found = ask([asked[row] for row in missing], _from(before, on_done))
            for row, verdict in zip(missing, found, strict=True):
                known[row] = verdict
            with whole(path) as building:
                building.write_text(json.dumps({"model": model, "verdicts": known}) + "\n", encoding="utf-8")
        said += known
        on_done(len(said))
    there = np.array([verdict is not None for verdict in said])
    figures = {"second_failed": float((~there).mean())}
    if there.any():
        second = np.array([bool(verdict) for verdict in said])[there]
        figures["second_accuracy"] = float(second.mean())
        figures["second_agreement"] = float((second == verdicts.correct.ravel()[there]).mean())
    return figures


def _from(before: int, on_done: Callable[[int], None]) -> Callable[[int], None]:
    return lambda done: on_done(before + done)


def _read(path: Path, model: str, responses: int) -> list[bool | None]:
    """What ``model`` said of a part before; another model's verdicts are not its."""
    if not path.is_file():
        return [None] * responses
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        verdicts = list(content["verdicts"])
        if content["model"] != model:
            return [None] * responses
        if len(verdicts) != responses or not all(verdict in (True, False, None) for verdict in verdicts):
            raise ValueError(f"not {responses} verdicts, true, false or null")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not readable ({error}). Remove it and run the same line") from error
    return verdicts
