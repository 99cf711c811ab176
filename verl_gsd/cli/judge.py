"""``verl-gsd judge``: score responses with a judge outside a run, and distill a judge into a cheaper one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from verl_gsd.cli.command_groups import JudgeCommands
from verl_gsd.cli.judge_score import Device, progress, score
from verl_gsd.console import fail, out

app = typer.Typer(
    cls=JudgeCommands, help="A judge of responses outside a run: score, calibrate, distill.", no_args_is_help=True
)

app.command()(score)


@app.command()
def distill(
    cache: Annotated[Path, typer.Option(help="Judgements to learn from: a run's judge.cache, or that of judge score.")],
    encoder: Annotated[Path, typer.Option(help="A language model's folder, for example the policy's.")],
    output: Annotated[Path, typer.Option(help="The folder to create, for scorer=distilled.")],
    judge: Annotated[str | None, typer.Option(help="Whose judgements, if the cache has several judges'.")] = None,
    device: Device = "cpu",
) -> None:
    """Learn to score like a judge: a linear head on a local model's states, tested on held-out problems."""
    from verl_gsd.judge.cache import ScoreCache
    from verl_gsd.judge.distilled import fit
    from verl_gsd.judge.encoder import Encoder

    if output.exists():
        fail(f"--output {output}: this exists already. Use the name of a new folder.")
    if not cache.is_file():
        fail(f"--cache {cache}: no such file. Use the cache of a run or of verl-gsd judge score --cache.")
    try:
        with ScoreCache(cache) as kept:
            rows = list(kept.rows())
        judges = Counter(row.identity for row in rows)
        if (judge is None and len(judges) > 1) or (judge is not None and judge not in judges):
            known = "; ".join(f"{name!r} ({count})" for name, count in judges.most_common())
            fail(f"--cache {cache}: whose judgements? Use --judge with one of: {known or 'none, it is empty'}")
        chosen = [(row.question, row.score) for row in rows if judge in (None, row.identity)]
        states = Encoder(encoder, device)
        with progress() as bars:
            bar = bars.add_task("encoded", total=len(chosen))
            name = judge or next(iter(judges), "")
            head = fit(chosen, states, name, lambda done: bars.update(bar, completed=done))
        head.save(output)
    except (OSError, ValueError) as error:
        fail(str(error))
    for sentence in head.agreement.describe():
        out.print(sentence, highlight=False)
    out.print(f"{escape(str(output))} scores as {escape(head.identity)}.", highlight=False)
