"""``verl-gsd eval``: a checkpoint on benchmarks, with intervals, and against another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from verl_gsd.cli.console import fail, out
from verl_gsd.cli.judge_score import progress
from verl_gsd.cli.prepare import data_folder

if TYPE_CHECKING:
    from verl_gsd.evaluation.benches import Bench
    from verl_gsd.evaluation.results import Result
    from verl_gsd.evaluation.run import OnProgress, Second

#: Where a run's evaluations lie, beside its checkpoints.
FOLDER = "evaluation"


def evaluate(
    checkpoint: Annotated[str, typer.Option(help="RUN/global_step_N, or a model: its folder or name on the hub.")],
    bench: Annotated[
        str,
        typer.Option(
            help="Names with commas: arithmetic, aime24, aime25, amc23, math500, minerva, olympiadbench, arc_c, "
            "gpqa_diamond, mmlu_pro, or any prepared data set with a test split."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Where to; by default RUN/evaluation/global_step_N, or evaluation/MODEL.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Another evaluation's folder, or the checkpoint it is of: compare with it, paired."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="Responses a question; by default 32 for aime24, aime25, amc23 and else 1."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Of sampling; 0 takes the most probable token.")
    ] = 0.6,
    top_p: Annotated[float, typer.Option(help="Of sampling, above 0 and up to 1.")] = 1.0,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="A response's; by default the run's data.max_response_length, or 8192.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs that one model is spread over.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="The folder of prepared data sets; $VERL_GSD_DATA or ~/data.")
    ] = None,
    verifier_url: Annotated[
        str | None,
        typer.Option(help="A server of an LLM verifier such as http://localhost:8000/v1, asked beside the rules."),
    ] = None,
    verifier_model: Annotated[str | None, typer.Option(help="Its model, as the server names it.")] = None,
) -> None:
    """Evaluate a checkpoint: merge its shards, generate with vLLM, verify, and say how sure the figures are.

    Stopped half-way, the same line goes on from there.
    """
    from verl_gsd.cli.evaluate_tables import table, write_summary
    from verl_gsd.errors import ConfigError
    from verl_gsd.evaluation.run import Sampling, alone, model_of
    from verl_gsd.evaluation.run import evaluate as evaluate_model

    try:
        if not 0 < top_p <= 1:
            raise ValueError(f"--top-p {top_p}: write a share above 0 and up to 1")
        if temperature == 0 and (samples or 1) > 1:
            raise ValueError(
                f"--samples {samples}: at temperature 0 all are the same. Write --samples 1, or a temperature"
            )
        if (verifier_url is None) != (verifier_model is None):
            raise ValueError("--verifier-url and --verifier-model: write both, or neither")
        second = _second(verifier_url, verifier_model)
        benches = _benches(bench, data or data_folder())
        folder = output or _folder_of(checkpoint)
        compared = _compared(against, benches)
        out.print("Loading the model's weights, merged first if they are a run's.", highlight=False)
        longest, template_options = _of_run(checkpoint)
        with alone(folder), progress() as shown:
            results = evaluate_model(
                model_of(checkpoint, folder),
                benches,
                folder,
                Sampling(temperature, top_p, max_tokens or longest, seed),
                template_options=template_options,
                samples=samples,
                tensor_parallel=tensor_parallel,
                against=compared,
                second=second,
                on_progress=_bars(shown),
            )
            write_summary(folder, results, compared)
        out.print(table(results, compared))
        for other in sorted({result.settings["model"]["checkpoint"] for result in compared.values()}):
            out.print(f"Compared with {escape(other)}.", soft_wrap=True, highlight=False)
    except (ValueError, OSError, ConfigError) as error:
        fail(str(error))
    except RuntimeError as error:  # a verifier that does not start
        fail(str(error), code=1)
    except KeyboardInterrupt:
        fail("stopped; no process of it is left. The same line goes on from here", code=130)
    out.print(f"Results, responses and settings are in [bold]{escape(str(folder))}[/].", soft_wrap=True)


def _benches(words: str, data: Path) -> list[Bench]:
    from verl_gsd import config
    from verl_gsd.evaluation.benches import ARITHMETIC, find

    # Where --data is, or where task=arithmetic looks.
    inside = data / ARITHMETIC
    arithmetic = inside if inside.is_dir() else Path(config.load("task", ARITHMETIC).task.directory)
    return [find(name.strip(), data, arithmetic) for name in dict.fromkeys(words.split(","))]


def _folder_of(checkpoint: str) -> Path:
    path = Path(checkpoint)
    return path.parent / FOLDER / path.name if path.name.startswith("global_step_") else Path(FOLDER) / path.name


def _compared(against: Path | None, benches: Sequence[Bench]) -> dict[str, Result]:
    """The other evaluation's results, by benchmark."""
    from verl_gsd.evaluation.results import RESULT, read_result

    if against is None:
        return {}
    is_evaluation = any((against / bench.name / RESULT).is_file() for bench in benches)
    folder = against if is_evaluation else _folder_of(str(against))
    if not folder.is_dir():
        raise ValueError(f"--against {against}: no evaluation in {folder}. Run verl-gsd eval for it first")
    results = {bench.name: read_result(folder / bench.name) for bench in benches}
    if not is_evaluation:
        for result in results.values():
            _require_of(result, against, folder)
    return results


def _require_of(result: Result, checkpoint: Path, folder: Path) -> None:
    """Refuse another model's evaluation: folders of evaluations are named by the last part of a checkpoint's name."""
    from verl_gsd.evaluation.run import described_by

    made = result.settings["model"]
    is_it = made["checkpoint"] in (str(checkpoint), str(checkpoint.resolve()))
    if is_it and (not checkpoint.exists() or described_by(checkpoint)["files"] == made.get("files")):
        return
    other = f"{made['checkpoint']}{', before its weights changed' if is_it else ''}"
    raise ValueError(
        f"--against {checkpoint}: {folder} is an evaluation of {other}. Evaluate it again, or name an evaluation"
    )


def _of_run(checkpoint: str) -> tuple[int, dict[str, Any]]:
    """What the run of a checkpoint was trained with: tokens of a response, and what its chat template was given; of a
    model that is no run's 8192, and nothing."""
    from verl_gsd.compare.run_names import read_yaml
    from verl_gsd.dotted_keys import value_at
    from verl_gsd.rundir import RunDirectory
    from verl_gsd.sections import is_whole

    path = Path(checkpoint)
    file = RunDirectory(path.parent).config
    config = read_yaml(file) if path.name.startswith("global_step_") else None
    if config is None:
        return 8192, {}
    longest, options = (
        value_at(config, f"data.{key}") for key in ("max_response_length", "apply_chat_template_kwargs")
    )
    if not is_whole(longest, 1) or not isinstance(options or {}, dict):
        raise ValueError(f"{file}: no data.max_response_length, or of no use: {longest!r:.80}. Write --max-tokens")
    return longest, options or {}


def _second(url: str | None, model: str | None) -> Second | None:
    """The LLM verifier at ``url``."""
    if url is None or model is None:
        return None
    from verl_gsd.evaluation.opinion import opinion
    from verl_gsd.judge.build import served_model
    from verl_gsd.judge.settings import Settings
    from verl_gsd.judge.verdicts import verify_all

    try:
        served_model(Settings(base_url=url, model=model))  # now, and not when all is generated
    except ValueError as error:
        raise ValueError(f"--verifier-url, --verifier-model: {error}") from error

    def second(bench, folder, answers, verdicts, on_done):  # as evaluating.Second
        def ask(questions, told):
            return verify_all(questions, base_url=url, model=model, on_done=told)

        return opinion(bench, folder, answers, verdicts, model, ask, on_done)

    return second


def _bars(shown: Progress) -> OnProgress:
    """A bar for everything that is done."""
    bars: dict[str, TaskID] = {}

    def show(said: str, done: int, total: int) -> None:
        if said not in bars:
            bars[said] = shown.add_task(said, total=total)
        shown.update(bars[said], completed=done)

    return show
