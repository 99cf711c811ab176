"""``verl-gsd judge score FILE``: the judge's scores of responses in a file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from verl_gsd.cli.console import fail, out

if TYPE_CHECKING:
    from verl_gsd.judge.scorer import Question, Scorer
    from verl_gsd.judge.settings import Settings
    from verl_gsd.row_table import RowTable

SCORE = "judge_score"

File = Annotated[Path, typer.Argument(metavar="FILE", help="Rows of responses: .parquet, .jsonl or .csv.")]
Device = Annotated[str, typer.Option(help="Where a local model computes: cpu, cuda, cuda:1.")]


def score(
    file: File,
    output: Annotated[Path, typer.Option(help=f"Where to: the same rows with a column {SCORE}, null where it failed.")],
    scorer: Annotated[str, typer.Option(help="stub (measures nothing), openai, or distilled.")],
    base_url: Annotated[str | None, typer.Option(help="Of openai: such as http://localhost:8000/v1.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Of openai, as the server names it; of distilled, its folder.")
    ] = None,
    answer: Annotated[str, typer.Option(help="Of openai: choice (vLLM), json_schema or text.")] = "choice",
    problem_column: Annotated[str, typer.Option(help="Texts, or verl's lists of messages.")] = "problem",
    response_column: Annotated[str, typer.Option(help="Texts.")] = "response",
    reference_column: Annotated[
        str | None, typer.Option(help="Reference answers; by default reference, if there is such a column.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="Keeps scores: what it has is not asked again.")] = None,
    concurrency: Annotated[int, typer.Option(help="Calls in flight at most.")] = 64,
    timeout: Annotated[float, typer.Option(help="Of openai: seconds a call may take.")] = 30.0,
    device: Device = "cpu",
) -> None:
    """Score the responses in FILE. Stopped half-way, the same line with the same --cache goes on from there."""
    from verl_gsd.judge.cache import ScoreCache
    from verl_gsd.judge.judge import Judge
    from verl_gsd.judge.offline import score_all
    from verl_gsd.judge.settings import Settings
    from verl_gsd.row_table import read_row_table

    try:
        sheet = read_row_table(file)
        if cache is not None and cache.resolve() in (output.resolve(), file.resolve()):
            fail(f"--cache {cache}: is a table of this line too. Write a file of its own")
        sheet.check_writable(output, SCORE)
        questions = _questions(sheet, problem_column, response_column, reference_column)
        settings = Settings(
            scorer=scorer,  # type: ignore[arg-type]  # it checks both
            base_url=base_url,
            model=model,
            answer=answer,  # type: ignore[arg-type]
            concurrency=concurrency,
            timeout_s=timeout,
        )
        asked = _scorer(settings, device)
        kept = ScoreCache(cache) if cache else None
    except (OSError, ValueError) as error:
        fail(str(error))
    # No budget: offline a row may wait as long as it takes, and each call has its own timeout.
    judge = Judge(asked, kept, concurrency=concurrency, budget_s=math.inf)
    try:
        with progress() as shown:
            bar = shown.add_task("scored", total=len(questions))
            scores = score_all(
                judge, questions, window=4 * concurrency, on_scored=lambda done: shown.update(bar, completed=done)
            )
        metrics = judge.metrics()
    finally:
        judge.close()
        if kept:
            kept.close()
    _say_what_it_took(metrics)
    if all(math.isnan(value) for value in scores):
        fail(f"no response got a score; {output} was not written", code=1)
    try:
        sheet.write(output, SCORE, scores.tolist())
    except OSError as error:
        fail(f"{output}: {error}. " + (f"The scores are in {cache}" if cache else "Write --cache to keep scores"))
    out.print(f"{escape(str(output))} has them.", highlight=False)


def _questions(sheet: RowTable, problem: str, response: str, reference: str | None) -> list[Question]:
    from verl_gsd.judge.cells import as_reference, as_response
    from verl_gsd.judge.problem import problem_text
    from verl_gsd.judge.scorer import Question

    if not len(sheet):
        raise ValueError(f"{sheet.path}: no rows")
    problems, responses = sheet.column(problem, problem_text), sheet.column(response, as_response)
    if reference is None and "reference" not in sheet.names:
        out.print("No column reference: the judge sees no reference answers.", highlight=False)
        references = [""] * len(sheet)
    else:
        references = sheet.column(reference or "reference", as_reference)
    return [Question(*texts) for texts in zip(problems, references, responses, strict=True)]


def _scorer(settings: Settings, device: str) -> Scorer:
    from verl_gsd.judge.build import scorer_of
    from verl_gsd.judge.distilled import DistilledScorer

    return DistilledScorer(Path(str(settings.model)), device) if settings.scorer == "distilled" else scorer_of(settings)


def _say_what_it_took(metrics: dict[str, float]) -> None:
    names = ("responses", "calls", "cache_hits", "shared")
    responses, calls, hits, shared = (int(metrics[f"judge/{name}"]) for name in names)
    took = [f"{metrics[name]:.2f} s (p{name[-2:]})" for name in metrics if name.startswith("judge/latency/")]
    calling = f"{calls} calls of {', '.join(took)}" if took else f"{calls} calls"
    out.print(f"{responses} responses: {calling}; {hits} from the cache, {shared} equal to another.", highlight=False)
    failures = {name.removeprefix("judge/failures/"): int(count) for name, count in metrics.items() if "/fail" in name}
    if total := failures.pop("any"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in failures.items() if count)
        out.print(f"{total} failed: {reasons}.", highlight=False)


def progress() -> Progress:
    """A bar with what is done of how much."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=out
    )
