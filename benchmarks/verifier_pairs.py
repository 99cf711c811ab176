r"""Scores pairs of an answer and a reference: our verifier, math-verify alone and verl's own scorers.

    .venv/bin/python benchmarks/verifier_pairs.py
    .venv/bin/python benchmarks/verifier_pairs.py --pairs FILE --name NAME

A pair is one line of JSON: ``kind``, ``answer`` (a response), ``reference`` and ``equal`` (whether the response is
right). A scorer can fail in two ways: it rejects an equal pair, or it accepts a different one. math-verify runs as its
README shows: ``verify(parse(reference), parse(answer))``. The reference stands in dollar signs there, because
math-verify parses LaTeX only inside an environment.

The table is written under its name into the file of results, so that earlier tables stay.

``second.jsonl`` is the set by which a change of the verifier is judged: do not read it while you change the verifier.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import publishing
import typer

FIRST_SET = Path("tests/support/verifier_pairs/first.jsonl")
OURS = "verl_gsd.tasks.maths"


def scorers() -> dict[str, Callable[[str, str], bool]]:
    """Each scorer by name: whether it accepts a response for a reference."""
    from math_verify import parse, verify
    from verl.utils.reward_score import math_dapo, math_reward, prime_math

    from verl_gsd.tasks import maths

    return {
        OURS: lambda answer, truth: bool(maths.compute_score("pairs", answer, truth)["acc"]),
        "math-verify alone": lambda answer, truth: verify(parse(f"${truth}$"), parse(answer)),
        "verl math_reward": lambda answer, truth: bool(math_reward.compute_score(answer, truth)),
        "verl math_dapo": lambda answer, truth: bool(math_dapo.compute_score(answer, truth)["acc"]),
        "verl prime_math": lambda answer, truth: bool(prime_math.compute_score(answer, truth)[0]),
    }


def accepts(scorer: Callable[[str, str], bool], pair: dict[str, Any]) -> bool:
    """The scorer's verdict on a pair. A scorer that raises accepts nothing."""
    try:
        return scorer(pair["answer"], pair["reference"])
    except Exception:
        return False


def table(pairs: list[dict[str, Any]], verdicts: list[bool]) -> dict[str, Any]:
    """How many equal and how many different pairs were accepted, in all and by kind."""
    by_kind: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        by_kind[pair["kind"]].append((pair["equal"], verdict))
    counts = {
        kind: {
            "equal": sum(equal for equal, _ in found),
            "equal_accepted": sum(equal and verdict for equal, verdict in found),
            "different": sum(not equal for equal, _ in found),
            "different_accepted": sum(not equal and verdict for equal, verdict in found),
        }
        for kind, found in by_kind.items()
    }
    columns = ("equal", "equal_accepted", "different", "different_accepted")
    return {"all": {name: sum(count[name] for count in counts.values()) for name in columns}, "by_kind": counts}


def markdown(tables: dict[str, dict[str, Any]]) -> str:
    """The table by kind for docs/verifier.md: of each scorer, accepted equal pairs and accepted different pairs."""
    first = next(iter(tables.values()))
    rows = [("all", [scored["all"] for scored in tables.values()])]
    rows += [(kind, [scored["by_kind"][kind] for scored in tables.values()]) for kind in first["by_kind"]]
    lines = [f"| kind | pairs | {' | '.join(tables)} |", "|---" * (len(tables) + 2) + "|"]
    for kind, counts in rows:
        cells = [f"{count['equal_accepted']} / {count['different_accepted']}" for count in counts]
        lines.append(f"| {kind} | {counts[0]['equal']} / {counts[0]['different']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(
    pairs: Annotated[Path, typer.Option(help="Pairs, one JSON object per line.")] = FIRST_SET,
    name: Annotated[str, typer.Option(help="Under this name the tables are written.")] = "first set",
    only_ours: Annotated[bool, typer.Option(help="Score our verifier only, and list the pairs it misjudges.")] = False,
    output: Annotated[Path, typer.Option(help="Where the tables go.")] = Path("benchmarks/results/verifier_pairs.json"),
) -> None:
    """Score, print, write."""
    logging.disable(logging.CRITICAL)  # math-verify logs each time-out
    rows = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    tables = {}
    for scorer_name, scorer in scorers().items():
        if only_ours and scorer_name != OURS:
            continue
        verdicts = [accepts(scorer, row) for row in rows]
        tables[scorer_name] = table(rows, verdicts)
        print(scorer_name, tables[scorer_name]["all"])
        if only_ours:
            for row, verdict in zip(rows, verdicts, strict=True):
                if verdict != row["equal"]:
                    print(" accepted" if verdict else " rejected", json.dumps(row, ensure_ascii=False))
    results = json.loads(output.read_text()) if output.exists() else {}
    publishing.write(results | {name: tables}, output)
    print(markdown(tables))


if __name__ == "__main__":
    typer.run(main)
