"""``verl-gsd judge``: score responses with a judge outside a run, and distill a judge into a cheaper one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from verl_gsd.cli.command_groups import JudgeCommands, add_command, epilog
from verl_gsd.cli.judge_score import Device, progress, score
from verl_gsd.console import fail, out

app = typer.Typer(
    cls=JudgeCommands,
    help="A judge of responses outside a run: score, calibrate, distill.",
    epilog=epilog(
        "verl-gsd judge score responses.jsonl --output scored.jsonl --scorer stub",
        "verl-gsd judge calibrate scored.jsonl",
    ),
    no_args_is_help=True,
)


def distill(
    cache: Annotated[Path, typer.Option(help="The cache with the judge's scores: the cache of a run's judge.")],
    encoder: Annotated[Path, typer.Option(help="The folder of a language model, for example the policy's.")],
    output: Annotated[Path, typer.Option(help="The new folder to write. Use it with scorer=distilled.")],
    judge: Annotated[
        str | None, typer.Option(help="The judge to learn from, if the cache has scores of several judges.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Fit a linear head on a local model's hidden states to a judge's scores, and test it on held-out problems.

    Examples:
        verl-gsd judge distill --cache judge.sqlite --encoder MODEL --output models/judge
        verl-gsd judge distill --cache judge.sqlite --encoder MODEL --output models/judge --device cuda
    """
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


add_command(app, score)
add_command(app, distill)
