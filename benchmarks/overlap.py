"""How often a distinct problem is taken for a copy of a test problem, how many near copies are found, and the time.

    PYTHONPATH=tests/support .venv/bin/python benchmarks/overlap.py

The problems are generated in the style of MATH (``tests/support/math_problems.py``). Training and test problems come
from the same 74 templates, which is harder than MATH, where most problems have a template of their own. All are
distinct: a training problem that is found is a false positive. Most of them differ in numbers. ``other_meanings`` are
test problems with one other sign, bracket, exponent or number word, which should not be found. Intervals are Wilson's,
at 95%. Times are CPU seconds.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import publishing
import typer
from math_problems import (
    OTHER_MEANINGS,
    TEMPLATES,
    MathProblem,
    change_meaning,
    change_notation,
    change_word,
    draw_distinct,
)

from verl_gsd.evaluation.intervals import proportion
from verl_gsd.preparation.overlap import SHORTEST, OverlapIndex
from verl_gsd.preparation.words import words


def main(
    training: Annotated[int, typer.Option(help="Training problems.")] = 100_000,
    tests: Annotated[int, typer.Option(help="Test problems of the largest set.")] = 20_000,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/overlap.json"),
) -> None:
    """Measure, print, write down."""
    problems = draw_distinct(training + tests, seed=0)
    train, test = problems[:training], problems[training:]
    result: dict[str, Any] = {"machine": publishing.machine(), "templates": len(TEMPLATES), "training": training}
    result["false_positives"] = [_false_positives(train, test[:size]) for size in (500, tests)]
    rng = random.Random(1)
    # Shorter problems are found only if their words are the same.
    long = [problem for problem in test if len(words(problem.text)) >= SHORTEST][:500]
    result["found"] = {
        name: _found(long, change)
        for name, change in (
            ("equal", lambda text: text),
            ("one word changed", lambda text: change_word(text, rng)),
            ("other notation", lambda text: change_notation(text, rng)),
            ("within other text", lambda text: f"Problem 7. {text} Explain each step of what you do."),
        )
    }
    result["other_meanings"] = {name: _other_meanings(test, name, rng) for name in OTHER_MEANINGS}
    print(result)
    publishing.write(result, output)


def _index(problems: list[MathProblem]) -> OverlapIndex:
    index = OverlapIndex(13)
    index.add("test", (problem.text for problem in problems))
    return index


def _false_positives(train: list[MathProblem], test: list[MathProblem]) -> dict[str, Any]:
    start = time.process_time()
    index = _index(test)
    index.find("Build what is built at the first search.")
    built = time.process_time()
    found = sum(index.find(problem.text) is not None for problem in train)
    seconds = time.process_time() - built
    interval = proportion(found, len(train))
    return {
        "test_problems": len(test),
        "found": found,
        "rate": [round(value, 6) for value in (found / len(train), interval.low, interval.high)],
        "index_s": round(built - start, 2),
        "search_s": round(seconds, 2),
    }


def _other_meanings(test: list[MathProblem], name: str, rng: random.Random) -> dict[str, Any]:
    """How many of the problems that one change makes of 4,000 test problems are found among these."""
    test = test[:4_000]
    index = _index(test)
    changed = [other for problem in test if (other := change_meaning(problem.text, name, rng)) is not None]
    found = sum(index.find(other) is not None for other in changed)
    interval = proportion(found, len(changed))
    return {
        "problems": len(changed),
        "found": found,
        "rate": [round(value, 5) for value in (found / len(changed), interval.low, interval.high)],
    }


def _found(test: list[MathProblem], change: Callable[[str], str]) -> dict[str, Any]:
    index = _index(test)
    found = sum(index.find(change(problem.text)) is not None for problem in test)
    interval = proportion(found, len(test))
    return {"problems": len(test), "share": [round(v, 4) for v in (found / len(test), interval.low, interval.high)]}


if __name__ == "__main__":
    typer.run(main)
