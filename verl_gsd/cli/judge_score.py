"""``verl-gsd judge score FILE``: score the responses in a file with a judge."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from verl_gsd.console import err, fail, out
from verl_gsd.judge.score_files import SCORE_COLUMN, ResponseFile

if TYPE_CHECKING:
    from verl_gsd.judge.scorer import Question, Scorer
    from verl_gsd.judge.settings import JudgeSettings
    from verl_gsd.row_table import RowTable

Device = Annotated[str, typer.Option(help="The device for a local model: cpu, cuda, cuda:1.")]


def score(
    file: ResponseFile,
    output: Annotated[
        Path,
        typer.Option(help=f"Output file: the same rows plus a column {SCORE_COLUMN}, null where the judge failed."),
    ],
    scorer: Annotated[str, typer.Option(help="stub (for trying out; its scores mean nothing), openai, or distilled.")],
    base_url: Annotated[
        str | None, typer.Option(help="For openai: URL of the API, for example http://localhost:8000/v1.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="For openai: the model's name on the server. For distilled: the folder.")
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(help="For openai: form of the answer. choice (vLLM only, the default), json_schema or text."),
    ] = None,
    problem_column: Annotated[
        str, typer.Option(help="Column with the problem: a text, or a list of chat messages as in verl.")
    ] = "problem",
    response_column: Annotated[str, typer.Option(help="Column with the response: a text.")] = "response",
    reference_column: Annotated[
        str | None, typer.Option(help="Column with the reference answer. Default: reference, if that column exists.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="File that stores scores. Stored scores are reused.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Maximum number of calls in flight. Default: that of a run.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="For openai: maximum seconds per call. Default: that of a run.")
    ] = None,
    device: Device = "cpu",
) -> None:
    """Score the responses in FILE.

    If interrupted, run the same command with the same --cache to resume.

    Examples:
        verl-gsd judge score responses.jsonl --output scored.jsonl --scorer stub
        verl-gsd judge score responses.jsonl --output scored.jsonl --scorer openai --base-url http://localhost:8000/v1
    """
    from verl_gsd.judge.cache import ScoreCache
    from verl_gsd.judge.judge import Judge
    from verl_gsd.judge.offline import score_all
    from verl_gsd.judge.settings import JudgeSettings
    from verl_gsd.row_table import read_row_table

    try:
        sheet = read_row_table(file)
        if cache is not None and cache.resolve() in (output.resolve(), file.resolve()):
            fail(f"--cache {cache}: this file is also the input or the output. Use a separate file")
        sheet.check_writable(output, SCORE_COLUMN)
        questions = _questions(sheet, problem_column, response_column, reference_column)
        given = {"answer": answer, "concurrency": concurrency, "timeout_s": timeout}
        settings = JudgeSettings.of(
            {"scorer": scorer, "base_url": base_url, "model": model}
            | {key: value for key, value in given.items() if value is not None}
        )
        judge_scorer = _build_scorer(settings, device)
        score_cache = ScoreCache(cache) if cache else None
    except (OSError, ValueError) as error:
        fail(str(error))
    # No budget: offline, a row may wait for any time, and each call has its own timeout.
    judge = Judge(judge_scorer, score_cache, concurrency=settings.concurrency, budget_s=math.inf)
    try:
        with progress() as display:
            bar = display.add_task("scored", total=len(questions))
            scores = score_all(
                judge,
                questions,
                window=4 * settings.concurrency,
                on_scored=lambda done: display.update(bar, completed=done),
            )
        metrics = judge.metrics()
    finally:
        judge.close()
        if score_cache:
            score_cache.close()
    _print_counts(metrics)
    if all(math.isnan(value) for value in scores):
        fail(f"the judge scored no response, so {output} was not written", code=1)
    try:
        sheet.write(output, SCORE_COLUMN, scores.tolist())
    except OSError as error:
        fail(f"{output}: {error}. " + (f"The scores are in {cache}" if cache else "Use --cache to keep the scores"))
    out.print(f"Wrote the scores to {escape(str(output))}.", highlight=False)


def _questions(sheet: RowTable, problem: str, response: str, reference: str | None) -> list[Question]:
    from verl_gsd.judge.cells import as_reference, as_response
    from verl_gsd.judge.problem import problem_text
    from verl_gsd.judge.scorer import Question

    if not len(sheet):
        raise ValueError(f"{sheet.path}: there are no rows in this file")
    problems, responses = sheet.column(problem, problem_text), sheet.column(response, as_response)
    if reference is None and "reference" not in sheet.names:
        err.print("There is no column reference, so the judge sees no reference answers.", highlight=False)
        references = [""] * len(sheet)
    else:
        references = sheet.column(reference or "reference", as_reference)
    return [Question(*texts) for texts in zip(problems, references, responses, strict=True)]


def _build_scorer(settings: JudgeSettings, device: str) -> Scorer:
    from verl_gsd.judge.build import build_scorer
    from verl_gsd.judge.distilled import DistilledScorer

    if settings.scorer == "distilled":
        return DistilledScorer(Path(str(settings.model)), device)
    return build_scorer(settings)


def _print_counts(metrics: dict[str, float]) -> None:
    names = ("responses", "calls", "cache_hits", "shared")
    responses, calls, hits, shared = (int(metrics[f"judge/{name}"]) for name in names)
    latencies = [f"{metrics[name]:.2f} s (p{name[-2:]})" for name in metrics if name.startswith("judge/latency/")]
    call_text = f"{calls} calls of {', '.join(latencies)}" if latencies else f"{calls} calls"
    out.print(
        f"{responses} responses: {call_text}; {hits} from the cache, {shared} equal to another response.",
        highlight=False,
    )
    failures = {name.removeprefix("judge/failures/"): int(count) for name, count in metrics.items() if "/fail" in name}
    if total := failures.pop("any"):
        reasons = ", ".join(f"{reason} {count}" for reason, count in failures.items() if count)
        out.print(f"{total} judgements failed: {reasons}.", highlight=False)


def progress() -> Progress:
    """A progress bar with the numbers of finished and of all items."""
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=err
    )
