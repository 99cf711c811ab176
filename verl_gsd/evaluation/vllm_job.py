"""Generates responses with vLLM in subprocesses, one engine each: ``vllm_job JOB DIGEST PID``.

JOB is a JSON file with a ``GenerationJob``, DIGEST its SHA-256, and PID the process that waits. Engines are
independent: each has its own GPUs, a copy of the model, and its share of the parts. Parts that exist are not generated
again. A sample's seed depends only on the job's seed, the question, the sample's number, and how often a benchmark
asked the same question before. It is therefore the same after a restart and with another number of engines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_gsd import model_files
from verl_gsd.cpu.forkserver import die_with_parent
from verl_gsd.errors import ConfigError
from verl_gsd.evaluation.answers import part_file, part_ranges, write_part
from verl_gsd.python_commands import module_command
from verl_gsd.run import compile_cache
from verl_gsd.run.launch import signals_interrupt
from verl_gsd.writing import open_new

#: Seconds between two calls of ``on_part``.
_POLL_INTERVAL_S = 0.5
#: The most requests that an engine has at a time. vLLM computes up to 1,024 of them together, and the others wait.
IN_FLIGHT = 4096


@dataclass(frozen=True)
class GenerationTask:
    """The responses to one benchmark.

    Attributes:
        folder: OUTPUT/BENCH, where the parts are written.
        prompts: one list of token ids per question.
        samples: number of responses per question.
    """

    folder: str
    prompts: list[list[int]]
    samples: int

    def parts(self) -> list[range]:
        """The positions of the questions in each part."""
        return part_ranges(len(self.prompts), self.samples)

    def part_count(self) -> int:
        """Number of parts, existing or not."""
        return len(self.parts())

    def missing_parts(self) -> list[int]:
        """Numbers of the parts that do not exist yet."""
        return [number for number in range(self.part_count()) if not part_file(Path(self.folder), number).is_file()]


@dataclass(frozen=True)
class GenerationJob:
    """All responses of one model.

    Attributes:
        model: a folder in Hugging Face's format, or a name on the hub.
        dtype: vLLM's name of the precision.
        temperature, top_p, max_tokens: sampling parameters. At temperature 0 the most probable token is taken.
        seed: seed of all sampling.
        tensor_parallel: number of GPUs per model.
        on_cpu: whether to compute on the CPU because there is no GPU.
        revision: the revision of a model on the hub; None for a folder.
        tasks: one per benchmark.
        parts: (position in ``tasks``, number of the part) of what to generate.
    """

    model: str
    dtype: str
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    tensor_parallel: int
    on_cpu: bool
    revision: str | None
    tasks: list[GenerationTask]
    parts: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class EnginePlan:
    """What one engine does.

    Attributes:
        devices: the value of CUDA_VISIBLE_DEVICES; None on the CPU.
        parts: see ``GenerationJob.parts``.
    """

    devices: str | None
    parts: list[tuple[int, int]]


def visible_gpus(count: int, environment: Mapping[str, str]) -> list[str]:
    """The names of this process's GPUs, for CUDA_VISIBLE_DEVICES.

    Args:
        count: the number of GPUs that torch sees.
        environment: the process's environment variables. CUDA_VISIBLE_DEVICES may name GPUs by number or by UUID.
    """
    names = environment.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in names.split(",")][:count] if names else [str(number) for number in range(count)]


def plan_engines(gpus: Sequence[str], tensor_parallel: int, missing: Sequence[tuple[int, int]]) -> list[EnginePlan]:
    """Divide the missing parts among as many engines as the GPUs allow. Without GPUs there is one engine, on the CPU.

    Args:
        gpus: the names of all GPUs.
        tensor_parallel: number of GPUs per engine.
        missing: the parts to generate, at most one engine per part. See ``GenerationJob.parts``.

    Raises:
        ConfigError: the GPUs cannot be divided into groups of ``tensor_parallel``.
    """
    if not gpus:
        return [EnginePlan(None, list(missing))] if missing else []
    if tensor_parallel > len(gpus):
        raise ConfigError(
            f"--tensor-parallel {tensor_parallel}: this machine has {len(gpus)} GPUs. Use at most {len(gpus)}"
        )
    if left_over := len(gpus) % tensor_parallel:
        used = ",".join(gpus[: len(gpus) - left_over])
        raise ConfigError(
            f"--tensor-parallel {tensor_parallel}: {len(gpus)} GPUs are not a multiple of it, so {left_over} would be "
            f"idle. Use another number, or set CUDA_VISIBLE_DEVICES={used}"
        )
    groups = [gpus[start : start + tensor_parallel] for start in range(0, len(gpus), tensor_parallel)]
    count = min(len(groups), len(missing))
    # Neighbouring parts go to different engines: the questions of a benchmark are often ordered by difficulty.
    return [EnginePlan(",".join(groups[engine]), list(missing[engine::count])) for engine in range(count)]


def missing_parts(tasks: Sequence[GenerationTask]) -> list[tuple[int, int]]:
    """(position in ``tasks``, number) of all parts that do not exist yet."""
    return [(position, number) for position, task in enumerate(tasks) for number in task.missing_parts()]


def generate(job: GenerationJob, engines: Sequence[EnginePlan], folder: Path, on_part: Callable[[], None]) -> None:
    """Generate the parts of all ``engines`` at the same time. ``on_part`` is called regularly to update the progress.

    The engines' output goes to ``folder``/generation.log, or generation_I.log for engine I of several.

    Raises:
        ConfigError: an engine failed, and the others were stopped. The message has its last error and names the log.
    """
    processes: list[subprocess.Popen[bytes]] = []
    suffixes = [f"_{number}" if len(engines) > 1 else "" for number in range(len(engines))]
    logs = [folder / f"generation{suffix}.log" for suffix in suffixes]
    files = [folder / f"job{suffix}.json" for suffix in suffixes]
    try:
        with signals_interrupt():
            try:
                for plan, file, log in zip(engines, files, logs, strict=True):
                    processes.append(_start(dataclasses.replace(job, parts=plan.parts), plan.devices, file, log))
                while None in (codes := [process.poll() for process in processes]) and not any(codes):
                    on_part()
                    time.sleep(_POLL_INTERVAL_S)
            finally:
                for process in processes:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        on_part()
    finally:
        for file in files:
            file.unlink(missing_ok=True)
    for code, log in zip(codes, logs, strict=True):
        if code:
            raise ConfigError(_failure(code, log))


def _start(job: GenerationJob, devices: str | None, file: Path, log: Path) -> subprocess.Popen[bytes]:
    compile_cache.protect()
    content = json.dumps(dataclasses.asdict(job)).encode()
    with open_new(file) as job_file:
        job_file.write(content)
    more = {"VERL_GSD_CPU": "1"} if devices is None else {"CUDA_VISIBLE_DEVICES": devices}
    with open_new(log) as log_output:
        return subprocess.Popen(
            module_command("verl_gsd.evaluation.vllm_job", str(file), _digest(content), str(os.getpid())),
            stdin=subprocess.DEVNULL,
            stdout=log_output,
            stderr=subprocess.STDOUT,
            env=os.environ | more,
            start_new_session=True,  # a process group, so that vLLM's own processes can be killed with it
        )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _failure(code: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it printed nothing")
    return f"vLLM ended with code {code}: {last.strip()[:500]}. The whole log is {log}"


def main(job_file: str, expected: str, parent: int) -> None:
    """Generate in this process. Ends when the process ``parent`` ends.

    Args:
        expected: the SHA-256 of what ``parent`` wrote to ``job_file``. Others may be able to write in its folder.

    Raises:
        RuntimeError: the file has other content.
    """
    die_with_parent(parent)
    written = Path(job_file).read_bytes()
    if _digest(written) != expected:
        raise RuntimeError(
            f"{job_file}: this file has been changed since it was written. Use an output folder where only you can "
            "write"
        )
    content = json.loads(written)
    tasks, parts = (
        [GenerationTask(**task) for task in content["tasks"]],
        [(task, part) for task, part in content["parts"]],
    )
    job = GenerationJob(**content | {"tasks": tasks, "parts": parts})
    if job.on_cpu:
        from verl_gsd.cpu import platform

        platform.activate()
    model_files.protect()
    import vllm

    engine = vllm.LLM(
        job.model,
        revision=job.revision,
        tokenizer_revision=job.revision,
        dtype=job.dtype,
        seed=job.seed,
        tensor_parallel_size=job.tensor_parallel,
        max_model_len=max(len(prompt) for task in job.tasks for prompt in task.prompts) + job.max_tokens,
        enforce_eager=job.on_cpu,
        **({"distributed_executor_backend": "uni"} if job.on_cpu else {}),
    )
    generate_parts(engine.llm_engine, job)


def generate_parts(engine: Any, job: GenerationJob) -> None:
    """Generate and write ``job.parts``. Each is written as soon as all of its responses are there.

    Requests of later parts fill the batch while the longest responses of earlier parts are still generated.

    Args:
        engine: vLLM's ``LLMEngine``. It takes requests in order and returns them as they finish.
    """
    requests = _requests(job)
    repeats = [_repeats(task.prompts) for task in job.tasks]
    rows: dict[tuple[int, int], dict[tuple[int, int], dict[str, Any]]] = {part: {} for part in job.parts}
    running: dict[str, tuple[tuple[int, int], int, int]] = {}
    while True:
        for place in itertools.islice(requests, IN_FLIGHT - len(running)):
            (position, _), question, sample = place
            request = "/".join(map(str, (position, question, sample)))
            running[request] = place
            prompt = job.tasks[position].prompts[question]
            sampling = _sampling(job, prompt, sample, repeats[position][question])
            engine.add_request(request, {"prompt_token_ids": prompt}, sampling)
        if not running:
            return
        for output in engine.step():
            if not output.finished:
                continue
            part, question, sample = running.pop(output.request_id)
            task, of_part = job.tasks[part[0]], rows[part]
            of_part[question, sample] = _row(question, sample, output.outputs[0])
            if len(of_part) == len(task.parts()[part[1]]) * task.samples:
                write_part(Path(task.folder), part[1], [of_part[key] for key in sorted(of_part)])
                del rows[part]


def _requests(job: GenerationJob) -> Iterator[tuple[tuple[int, int], int, int]]:
    """(part, question, sample) of all responses, in order."""
    for position, number in job.parts:
        task = job.tasks[position]
        for question in task.parts()[number]:
            for sample in range(task.samples):
                yield (position, number), question, sample


def _repeats(prompts: list[list[int]]) -> list[int]:
    """For each prompt, how many of the prompts before it are equal to it."""
    counts: Counter[tuple[int, ...]] = Counter()
    repeats = []
    for prompt in map(tuple, prompts):
        repeats.append(counts[prompt])
        counts[prompt] += 1
    return repeats


def _sampling(job: GenerationJob, prompt: list[int], sample: int, repeat: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=job.temperature,
        top_p=job.top_p,
        max_tokens=job.max_tokens,
        seed=_seed(job.seed, prompt, sample, repeat) if job.temperature else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _row(question: int, sample: int, completion: Any) -> dict[str, Any]:
    return {
        "question": question,
        "sample": sample,
        "text": completion.text,
        "tokens": len(completion.token_ids),
        "cut_off": completion.finish_reason == "length",
    }


def _seed(seed: int, prompt: list[int], sample: int, repeat: int) -> int:
    """The seed of a sample. Without ``repeat``, rows with equal prompts would have equal samples.

    The first of such rows has the seeds of earlier versions, so that their results can be reproduced.
    """
    content = [seed, prompt, sample, repeat] if repeat else [seed, prompt, sample]
    digest = hashlib.blake2b(json.dumps(content).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
