"""How the verifier of mathematics judges generated pairs: 5,000 equal ones and 5,000 different ones.

    PYTHONPATH=tests/support .venv/bin/python benchmarks/verifier_generated.py

``tests/support/expressions.py`` draws an expression and writes it in two notations, or changes one node of it. A pair
counts as different only if the values clearly differ at a point where both are real.
"""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import publishing
import typer
from expressions import changed, different, drawn, written

from verl_gsd.tasks import maths


def score(pair: tuple[str, str]) -> dict[str, float | str]:
    return maths.compute_score("generated", rf"\boxed{{{pair[0]}}}", pair[1])


def main(
    pairs: Annotated[int, typer.Option(help="Equal pairs, and different pairs.")] = 5000,
    seed: Annotated[int, typer.Option(help="Seed of the generator.")] = 1,
    output: Annotated[Path, typer.Option(help="Where the counts go.")] = Path(
        "benchmarks/results/verifier_generated.json"
    ),
) -> None:
    """Compare, print, write."""
    rng = random.Random(seed)
    drawn_pairs: dict[str, list[tuple[str, str]]] = {"equal": [], "different": []}
    while len(drawn_pairs["different"]) < pairs:
        tree = drawn(rng)
        other = changed(tree, rng)
        if len(drawn_pairs["equal"]) < pairs:
            drawn_pairs["equal"].append((written(tree, rng), written(tree, rng)))
        if different(tree, other):
            drawn_pairs["different"].append((written(other, rng), written(tree, rng)))
    counts: Counter[str] = Counter()
    with ThreadPoolExecutor(maths.PROCESSES) as threads:
        for kind in ("different", "equal"):
            for number, verdict in enumerate(threads.map(score, drawn_pairs[kind])):
                counts[kind] += 1
                counts[f"{kind}_accepted"] += verdict["acc"] == 1.0
                counts[f"{kind}_unverified"] += verdict["unverified"] == 1.0
                if (verdict["acc"] == 1.0) != (kind == "equal"):
                    print(kind, "accepted" if verdict["acc"] else "rejected", *drawn_pairs[kind][number], sep=" | ")
                if counts[kind] % 500 == 0:
                    print(dict(counts), flush=True)
    publishing.write({"machine": publishing.machine(), "seed": seed, **counts}, output)


if __name__ == "__main__":
    typer.run(main)
