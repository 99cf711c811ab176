"""``verl-gsd judge``: score responses offline, hold a judge against the verifier, distil it into a cheap one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from verl_gsd.cli.console import fail, out
from verl_gsd.cli.judge_score import SCORE, Device, File, progress, score
from verl_gsd.writing import atomic_write

app = typer.Typer(help="DaGRPO's judge outside a run: score, calibrate, distill.", no_args_is_help=True)

app.command()(score)


@app.command()
def calibrate(
    file: File,
    score_column: Annotated[str, typer.Option(help="A judge's scores, null where it failed.")] = SCORE,
    correct_column: Annotated[str, typer.Option(help="The verifier's verdicts: true or false, 1 or 0.")] = "correct",
    group_column: Annotated[str, typer.Option(help="Rows alike here answer one problem.")] = "problem",
    delta: Annotated[list[float] | None, typer.Option(help="Gaps of the mask; by default -inf 0 1 3 5.")] = None,
    json_: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Writes all figures there too.")] = None,
) -> None:
    """Hold a judge against the verifier: agreement, the scale's use, DaGRPO's mask, and judges of known quality."""
    import numpy as np

    from verl_gsd.cli.judge_report import plain, show
    from verl_gsd.evaluation.judging import calibrate as measure
    from verl_gsd.evaluation.masking import DELTAS
    from verl_gsd.judge.cells import as_label, as_score, as_verdict
    from verl_gsd.row_table import read_row_table

    try:
        sheet = read_row_table(file)
        if not len(sheet):
            fail(f"{file}: no rows")
        scores = np.array(sheet.column(score_column, as_score))
        correct = np.array(sheet.column(correct_column, as_verdict))
        found = measure(scores, correct, sheet.column(group_column, as_label), sorted(set(delta or DELTAS)))
    except ValueError as error:
        fail(str(error))
    show(found)
    if json_:
        try:
            with atomic_write(json_) as building:
                building.write_text(json.dumps(plain(found), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"{json_}: {error}")


@app.command()
def distill(
    cache: Annotated[Path, typer.Option(help="Judgements to learn from: a run's algorithm.gsd.dagrpo.judge.cache.")],
    encoder: Annotated[Path, typer.Option(help="A language model's folder, such as the policy's.")],
    output: Annotated[Path, typer.Option(help="The folder to make, for scorer=distilled.")],
    judge: Annotated[str | None, typer.Option(help="Whose judgements, if the cache has several judges'.")] = None,
    device: Device = "cpu",
) -> None:
    """Learn to score as a judge did: a linear head on a local model's states, measured on problems left out."""
    from verl_gsd.judge.cache import ScoreCache
    from verl_gsd.judge.distilled import fit
    from verl_gsd.judge.encoder import Encoder

    if output.exists():
        fail(f"{output} is there already: write the name of a folder to make")
    if not cache.is_file():
        fail(f"{cache}: no such file. Write the cache that a run or verl-gsd judge score --cache has filled")
    try:
        with ScoreCache(cache) as kept:
            rows = list(kept.rows())
        judges = Counter(row.identity for row in rows)
        if (judge is None and len(judges) > 1) or (judge is not None and judge not in judges):
            known = "; ".join(f"{name!r} ({count})" for name, count in judges.most_common())
            fail(f"{cache}: whose judgements? Write --judge and one of: {known or 'none, it is empty'}")
        chosen = [(row.question, row.score) for row in rows if judge in (None, row.identity)]
        states = Encoder(encoder, device)
        with progress() as shown:
            bar = shown.add_task("encoded", total=len(chosen))
            name = judge or next(iter(judges), "")
            head = fit(chosen, states, name, lambda done: shown.update(bar, completed=done))
        head.save(output)
    except (OSError, ValueError) as error:
        fail(str(error))
    for sentence in head.agreement.describe():
        out.print(sentence, highlight=False)
    out.print(f"{escape(str(output))} scores as {escape(head.identity)}.", highlight=False)
