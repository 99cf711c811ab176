"""``verl-gsd judge``: score responses offline, compare a judge with the verifier, distil it into a cheaper judge."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from verl_gsd.cli.console import fail, out
from verl_gsd.cli.judge_score import SCORE, Device, File, progress, score
from verl_gsd.writing import whole

app = typer.Typer(help="Use DaGRPO's judge outside a training run: score, calibrate, distill.", no_args_is_help=True)

app.command()(score)


@app.command()
def calibrate(
    file: File,
    score_column: Annotated[str, typer.Option(help="Column with the judge's scores, null where it failed.")] = SCORE,
    correct_column: Annotated[
        str, typer.Option(help="Column with the verifier's verdicts: true or false, 1 or 0.")
    ] = "correct",
    group_column: Annotated[
        str, typer.Option(help="Column with the problem. Rows with equal values form a group.")
    ] = "problem",
    delta: Annotated[
        list[float] | None, typer.Option(help="Thresholds (delta) of the mask. Default: -inf 0 1 3 5.")
    ] = None,
    json_: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Also write all results to this JSON file.")
    ] = None,
) -> None:
    """Compare a judge with the verifier: agreement, score histograms, the effect of DaGRPO's mask, synthetic judges."""
    import numpy as np

    from verl_gsd.cli.judge_report import print_report, to_json
    from verl_gsd.evaluation.judging import calibrate as measure
    from verl_gsd.evaluation.masking import DELTAS
    from verl_gsd.judge.cells import as_label, as_score, as_verdict
    from verl_gsd.sheets import read_sheet

    try:
        sheet = read_sheet(file)
        if not len(sheet):
            fail(f"{file}: there are no rows in this file")
        scores = np.array(sheet.column(score_column, as_score))
        correct = np.array(sheet.column(correct_column, as_verdict))
        calibration = measure(scores, correct, sheet.column(group_column, as_label), sorted(set(delta or DELTAS)))
    except ValueError as error:
        fail(str(error))
    print_report(calibration)
    if json_:
        try:
            with whole(json_) as building:
                building.write_text(json.dumps(to_json(calibration), indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            fail(f"{json_}: {error}")


@app.command()
def distill(
    cache: Annotated[
        Path, typer.Option(help="The cache with the judge's scores: a run's algorithm.gsd.dagrpo.judge.cache.")
    ],
    encoder: Annotated[Path, typer.Option(help="The folder of a language model, for example the policy's.")],
    output: Annotated[Path, typer.Option(help="The new folder to write. Use it with scorer=distilled.")],
    judge: Annotated[
        str | None, typer.Option(help="The judge to learn from, if the cache has scores of several judges.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Fit a linear head on a local model's hidden states to a judge's scores, and test it on held-out problems."""
    from verl_gsd.judge.cache import ScoreCache
    from verl_gsd.judge.distilled import fit
    from verl_gsd.judge.encoder import Encoder

    if output.exists():
        fail(f"--output {output}: this folder already exists. Use the name of a new folder")
    if not cache.is_file():
        fail(
            f"--cache {cache}: there is no such file. Use a cache that a run or verl-gsd judge score --cache has filled"
        )
    try:
        with ScoreCache(cache) as score_cache:
            rows = list(score_cache.rows())
        judges = Counter(row.identity for row in rows)
        if (judge is None and len(judges) > 1) or (judge is not None and judge not in judges):
            counts = "; ".join(f"{name!r} ({count})" for name, count in judges.most_common())
            fail(
                f"--cache {cache}: the judges in this cache are: {counts or 'none, it is empty'}. Use --judge with one "
                "of these names"
            )
        judgements = [(row.question, row.score) for row in rows if judge in (None, row.identity)]
        model = Encoder(encoder, device)
        with progress() as display:
            bar = display.add_task("encoded", total=len(judgements))
            name = judge or next(iter(judges), "")
            distilled = fit(judgements, model, name, lambda done: display.update(bar, completed=done))
        distilled.save(output)
    except (OSError, ValueError) as error:
        fail(str(error))
    for sentence in distilled.agreement.describe():
        out.print(sentence, highlight=False)
    out.print(f"Wrote {escape(str(output))}. Its scorer identity is: {escape(distilled.identity)}.", highlight=False)
