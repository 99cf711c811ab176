"""``verl-gsd eval``: evaluate a checkpoint on benchmarks, with intervals, and compare it with another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, TaskID

from verl_gsd.cli.judge_score import progress
from verl_gsd.cli.prepare import default_directory
from verl_gsd.console import err, fail, out
from verl_gsd.preparation.commands import data_folder
from verl_gsd.tasks.catalog import TASKS

if TYPE_CHECKING:
    from verl_gsd.evaluation.benches import Bench
    from verl_gsd.evaluation.results import BenchResult
    from verl_gsd.evaluation.run import LlmVerifier, OnProgress

#: The folder of a run's evaluations, next to its checkpoints.
FOLDER = "evaluation"


def evaluate(
    checkpoint: Annotated[str, typer.Option(help="RUN/global_step_N, a model's folder, or its name on the hub.")],
    bench: Annotated[
        str,
        typer.Option(
            help=f"Benchmarks, separated by commas: {', '.join(TASKS)}, aime24, aime25, amc23, math500, minerva, "
            "olympiadbench, arc_c, gpqa_diamond, mmlu_pro, or any prepared data set with a test split."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Output folder. Default: RUN/evaluation/global_step_N, or evaluation/MODEL.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with another evaluation, question by question: its folder, or its checkpoint."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=100_000, help="Responses per question. Default: 32 for aime24, aime25 and amc23, else 1."
        ),
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=10.0, help="Sampling temperature. 0 takes the most probable token.")
    ] = 0.6,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling: a share above 0 and up to 1.")] = 1.0,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Maximum response length. Default: the run's data.max_response_length, or 8192."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Sampling seed.")] = 0,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="Number of GPUs per model.")] = 1,
    data: Annotated[
        Path | None, typer.Option(help="The folder of prepared data sets. Default: $VERL_GSD_DATA or ~/data.")
    ] = None,
    verifier_url: Annotated[
        str | None,
        typer.Option(
            help="URL of an LLM verifier's server, for example http://localhost:8000/v1. Used in addition to the rules."
        ),
    ] = None,
    verifier_model: Annotated[str | None, typer.Option(help="The LLM verifier's name on the server.")] = None,
) -> None:
    """Evaluate a checkpoint: merge its shards, generate with vLLM, verify, and print figures with intervals.

    If interrupted, run the same command to resume.

    Examples:
        verl-gsd eval --checkpoint RUN/global_step_40 --bench arithmetic
        verl-gsd eval --checkpoint Qwen/Qwen2.5-0.5B --bench gsm8k,math500 --max-tokens 2048
    """
    from verl_gsd.checkpoints import step_of
    from verl_gsd.cli.evaluate_tables import results_table, write_summary
    from verl_gsd.errors import ConfigError
    from verl_gsd.evaluation.run import Sampling, lock_output, resolve_model
    from verl_gsd.evaluation.run import evaluate as evaluate_model
    from verl_gsd.run.trust import real_run

    try:
        if not 0 < top_p <= 1:
            raise ValueError(f"--top-p {top_p}: this is out of range. Use a share above 0 and up to 1")
        if temperature == 0 and (samples or 1) > 1:
            raise ValueError(
                f"--samples {samples}: at temperature 0 all samples are equal. Use 1, or a higher --temperature"
            )
        if (verifier_url is None) != (verifier_model is None):
            raise ValueError("--verifier-url and --verifier-model only work together. Use both, or neither")
        llm_verifier = _llm_verifier(verifier_url, verifier_model)
        benches = _benches(bench, data or data_folder())
        if step_of(Path(checkpoint)) is not None:  # otherwise it is a model, and may be a name on the hub
            real_run(Path(checkpoint).parent)
        folder = output or _checked_default_output(checkpoint)
        others = _read_others(against, benches)
        err.print("Loading the model's weights. A run's checkpoint is merged first.", highlight=False)
        default_max_tokens, template_options = _training_settings(checkpoint)
        with lock_output(folder), progress() as display:
            results = evaluate_model(
                resolve_model(checkpoint, folder),
                benches,
                folder,
                Sampling(temperature, top_p, max_tokens or default_max_tokens, seed),
                template_options=template_options,
                samples=samples,
                tensor_parallel=tensor_parallel,
                against=others,
                llm_verifier=llm_verifier,
                on_progress=_progress_bars(display),
            )
            write_summary(folder, results, others)
        out.print(results_table(results, others))
        for other in sorted({result.settings["model"]["checkpoint"] for result in others.values()}):
            out.print(f"The other model is {escape(other)}.", soft_wrap=True, highlight=False)
    except (ValueError, OSError, ConfigError) as error:
        fail(str(error))
    except RuntimeError as error:  # the verifier did not start
        fail(str(error), code=1)
    except KeyboardInterrupt:
        fail("stopped, and all processes have ended. Run the same command to resume", code=130)
    out.print(f"Results, responses and settings are in [bold]{escape(str(folder))}[/].", soft_wrap=True)


def _benches(names: str, data: Path) -> list[Bench]:
    from verl_gsd.evaluation.benches import find_bench

    def folder(name: str) -> Path:
        """In ``data`` if it is there, else the folder that ``task=NAME`` uses."""
        return data / name if name not in TASKS or (data / name).is_dir() else default_directory(TASKS[name])

    unique_names = dict.fromkeys(name.strip() for name in names.split(","))
    return [find_bench(name, data, folder(name)) for name in unique_names]


def default_output(checkpoint: str) -> Path:
    path = Path(checkpoint)
    return path.parent / FOLDER / path.name if path.name.startswith("global_step_") else Path(FOLDER) / path.name


def _checked_default_output(checkpoint: str) -> Path:
    """The default output folder, if no link in somebody else's run leads it to other files of this user.

    Raises:
        ConfigError: a link does so.
    """
    from verl_gsd.errors import ConfigError

    folder = default_output(checkpoint)
    run = folder.parents[1]
    if folder.resolve() != run.resolve() / folder.relative_to(run):
        raise ConfigError(
            f"--output: the default is {folder}, and a link leads from there to {folder.resolve()}. Files there would "
            "be replaced. Set --output to a folder of your own"
        )
    return folder


def _read_others(against: Path | None, benches: Sequence[Bench]) -> dict[str, BenchResult]:
    """The results of the evaluation ``against``, by benchmark.

    Raises:
        ConfigError: as for ``trust.real_run``.
        ValueError: there is no evaluation, it is of another checkpoint, or it cannot be read.
    """
    from verl_gsd.evaluation.results import RESULT, read_result
    from verl_gsd.run.trust import real_run

    if against is None:
        return {}
    is_evaluation = any((against / bench.name / RESULT).is_file() for bench in benches)
    real_run(against if is_evaluation else against.parent)  # a checkpoint may be a link to another disk
    folder = against if is_evaluation else default_output(str(against))
    if not folder.is_dir():
        raise ValueError(f"--against {against}: there is no evaluation in {folder}. Run verl-gsd eval for it first")
    within = folder if is_evaluation else folder.parents[1]
    results = {bench.name: read_result(folder / bench.name, within=within) for bench in benches}
    if not is_evaluation:
        for result in results.values():
            _check_evaluated(result, against, folder)
    return results


def _check_evaluated(result: BenchResult, checkpoint: Path, folder: Path) -> None:
    """Raise a ValueError if ``result`` is not of ``checkpoint``.

    ``folder`` is named after the last part of the checkpoint's path, so it may belong to another model.
    """
    from verl_gsd.evaluation.run import describe_weights

    evaluated = result.settings["model"]
    is_same_path = evaluated["checkpoint"] in (str(checkpoint), str(checkpoint.resolve()))
    if is_same_path and (not checkpoint.exists() or describe_weights(checkpoint)["files"] == evaluated.get("files")):
        return
    other = f"{evaluated['checkpoint']}{', before its weights changed' if is_same_path else ''}"
    raise ValueError(
        f"--against {checkpoint}: {folder} is an evaluation of {other}. Run verl-gsd eval for {checkpoint} again, or "
        "use the folder of an evaluation"
    )


def _training_settings(checkpoint: str) -> tuple[int, dict[str, Any]]:
    """The maximum response length and the chat template's options in the run of ``checkpoint``.

    For a model that is not a run's checkpoint: 8192 and no options.
    """
    from verl_gsd.dotted_keys import value_at
    from verl_gsd.rundir import RunDirectory
    from verl_gsd.scalars import is_whole

    path = Path(checkpoint)
    run = RunDirectory(path.parent)
    config = run.read_yaml(run.config) if path.name.startswith("global_step_") else None
    if config is None:
        return 8192, {}
    max_tokens, options = (
        value_at(config, f"data.{key}") for key in ("max_response_length", "apply_chat_template_kwargs")
    )
    if not is_whole(max_tokens, 1) or not isinstance(options or {}, dict):
        raise ValueError(
            f"{run.config}: data.max_response_length is missing or invalid: {max_tokens!r:.80}. Use --max-tokens"
        )
    return max_tokens, options or {}


def _llm_verifier(url: str | None, model: str | None) -> LlmVerifier | None:
    """The LLM verifier at ``url``, or None without one."""
    if url is None or model is None:
        return None
    from verl_gsd.evaluation.llm_verifier import verify_with_llm
    from verl_gsd.judge.build import served_model
    from verl_gsd.judge.settings import JudgeSettings
    from verl_gsd.judge.verdicts import verify_all

    try:
        served_model(JudgeSettings.of({"base_url": url, "model": model}))  # check this before generating anything
    except ValueError as error:
        raise ValueError(f"--verifier-url, --verifier-model: {error}") from error

    def verify(bench, folder, answers, verdicts, on_done):  # see run.LlmVerifier
        def ask(questions, on_question_done):
            return verify_all(questions, base_url=url, model=model, on_done=on_question_done)

        return verify_with_llm(bench, folder, answers, verdicts, model, ask, on_done)

    return verify


def _progress_bars(display: Progress) -> OnProgress:
    """Shows one progress bar per description."""
    bars: dict[str, TaskID] = {}

    def update(description: str, done: int, total: int) -> None:
        if description not in bars:
            bars[description] = display.add_task(escape(description), total=total)
        display.update(bars[description], completed=done)

    return update
