r"""How many answers a second the verifier of mathematics decides, from eight threads of one process.

    .venv/bin/python benchmarks/verification.py

Groups of eight responses to one problem, some 1,500 characters of prose each with the box at the end. References are
65% integers, 15% fractions, 8% surds and multiples of pi, 4% polynomials, 5% tuples and intervals, 3% words, which is
our estimate of MATH. ``ordinary``: each response is right with the problem's own probability, half of the right ones
in the reference's own words, and the wrong ones share three answers; ``distinct``: no two of a group are the same text
and no two references of the corpus either. Beside the rate by the clock stands CPU time, since other work may share
the machine: the rate of two free cores is computed from it and called so.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import psutil
import publishing
import typer

from verl_gsd.tasks import maths
from verl_gsd.tasks.answers import final_answer
from verl_gsd.tasks.plain import plain_equal
from verl_gsd.tasks.screen import is_too_large

SIZE, THREADS, LENGTH = 8, 8, 1500
#: A value as the reference has it, and as another might write it; values are numbered, so that none comes twice.
FORMS: dict[str, tuple[float, Callable[[int], str], Callable[[int], str]]] = {
    "integer": (0.65, lambda n: str(n), lambda n: f"{n:,}" if n > 999 else f"{n}.0"),
    "fraction": (0.15, lambda n: rf"\frac{{{2 * n + 1}}}{{4}}", lambda n: f"{(2 * n + 1) / 4}"),
    "surd": (0.08, lambda n: rf"{n + 2}\sqrt{{3}}", lambda n: rf"\sqrt{{{3 * (n + 2) ** 2}}}"),
    "polynomial": (0.04, lambda n: f"x^2+{n + 2}x+{n + 1}", lambda n: f"(x+1)(x+{n + 1})"),
    "interval": (0.05, lambda n: rf"\left[{n},{n + 2}\right)", lambda n: f"[{n}, {n + 2})"),
    "words": (0.03, lambda n: rf"\text{{case }}{n}", lambda n: f"case {n}"),
}
PROSE = (
    "We write the left-hand side as a product and compare it with what is given. ",
    r"Since $a + b = {n}$ and $ab = {n}$, the roots satisfy $t^2 - {n}t + {n} = 0$. ",
    "There are {n} ways to choose the first and {n} ways to choose the second, independently. ",
    r"By symmetry the area is twice $\int_0^{{{n}}} f(x)\,dx$, which we now compute. ",
    "This contradicts what was assumed, so the other case must hold. ",
)


def corpus(rng: random.Random, groups: int, *, distinct: bool) -> list[tuple[str, str]]:
    """(response, reference), groups one after the other."""
    pairs = []
    for number in range(groups):
        (kind,) = rng.choices(list(FORMS), [share for share, *_ in FORMS.values()])
        _, usual, other = FORMS[kind]
        value = 10 * number if distinct else rng.randrange(500)
        rate = rng.random()
        for place in range(SIZE):
            if distinct:
                answer = (usual, other)[place](value) if place < 2 else usual(value + place)
            elif rng.random() < rate:
                answer = rng.choice((usual, other))(value)
            else:
                answer = usual(value + rng.randint(1, 3))
            pairs.append((response(rng, answer), usual(value)))
    return pairs


def response(rng: random.Random, answer: str) -> str:
    text = ""
    while len(text) < LENGTH:
        text += rng.choice(PROSE).format(n=rng.randrange(100))
    return rf"{text}Therefore the answer is $\boxed{{{answer}}}$."


def decided_by(pair: tuple[str, str]) -> str:
    answer, truth = final_answer(pair[0]) or "", pair[1]
    if answer == truth:
        return "text"
    if plain_equal(answer, truth) is not None:
        return "plain"
    return "screen" if is_too_large(answer) else "worker"


def cpu_s() -> tuple[float, float]:
    """Seconds of CPU so far: of this process, and of those that compare."""
    own = psutil.Process()
    used = [process.cpu_times() for process in own.children(recursive=True)]
    forked = sum(times.user + times.system for times in used)
    ended = sum(times.children_user + times.children_system for times in used)
    return time.process_time(), forked + ended


def measured(pairs: list[tuple[str, str]]) -> dict[str, object]:
    maths._verdicts.clear()
    start, (own, theirs) = time.perf_counter(), cpu_s()
    with ThreadPoolExecutor(THREADS) as threads:
        verdicts = list(threads.map(lambda pair: maths.compute_score("math", *pair), pairs))
    seconds, (own_now, theirs_now) = time.perf_counter() - start, cpu_s()
    own, theirs = (own_now - own) / len(pairs), (theirs_now - theirs) / len(pairs)
    shares = Counter(map(decided_by, pairs))
    return {
        "answers": len(pairs),
        "share_right": sum(verdict["acc"] for verdict in verdicts) / len(pairs),
        "unverified": int(sum(verdict["unverified"] for verdict in verdicts)),
        "share_decided_by": {name: count / len(pairs) for name, count in sorted(shares.items())},
        "comparisons_by_worker": len(maths._verdicts),
        "answers_per_s_by_the_clock": len(pairs) / seconds,
        "cpu_ms_per_answer": {"this_process": 1e3 * own, "workers": 1e3 * theirs},
        # One interpreter runs all of this process's threads, so its share is of one core.
        "answers_per_s_of_two_free_cores_computed": min(2 / (own + theirs), 1 / own),
    }


def main(
    groups: Annotated[int, typer.Option(help="Groups of eight responses.")] = 500,
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("benchmarks/results/verification.json"),
) -> None:
    """Measure, print, write down."""
    rng = random.Random(0)
    with ThreadPoolExecutor(maths.PROCESSES) as threads:  # processes start before the clock does
        list(threads.map(lambda n: maths._reply(rf"\sqrt{{{n}}}+1", rf"1+\sqrt{{{n}}}"), range(2, 8)))
    _, started = cpu_s()
    result: dict[str, object] = {
        "machine": publishing.machine(),
        "load_average_before": psutil.getloadavg()[0],
        "cpu_s_to_start_a_worker": started / maths.PROCESSES,
    }
    for name in ("ordinary", "distinct"):
        result[name] = measured(corpus(rng, groups, distinct=name == "distinct"))
    for name, value in result.items():
        print(f"{name}: {value}")
    publishing.write(result, output)


if __name__ == "__main__":
    typer.run(main)
