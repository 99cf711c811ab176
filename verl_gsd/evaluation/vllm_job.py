"""Generates responses with vLLM in a subprocess: ``python -m verl_gsd.evaluation.vllm_job JOB PARENT_PID``.

JOB is a JSON file with a ``GenerationJob``. Parts that exist are not generated again. A sample's seed depends only on
the job's seed, the question and the sample's number, so that a restart does not change the sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_gsd.cpu.forkserver import die_with_parent
from verl_gsd.errors import ConfigError
from verl_gsd.evaluation.answers import part_file, part_ranges, write_part
from verl_gsd.run.launch import signals_interrupt

#: Seconds between two calls of ``on_part``.
_POLL_INTERVAL_S = 0.5


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

    def part_count(self) -> int:
        """Number of parts, existing or not."""
        return len(part_ranges(len(self.prompts)))

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


def generate(job: GenerationJob, log: Path, on_part: Callable[[], None]) -> None:
    """Generate all missing parts of all tasks. ``on_part`` is called regularly to update the progress.

    Raises:
        ConfigError: vLLM failed. The message has its last error and names the log.
    """
    if not any(task.missing_parts() for task in job.tasks):
        return
    file = log.with_name("job.json")
    file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    environment = os.environ | ({"VERL_GSD_CPU": "1"} if job.on_cpu else {})
    try:
        with signals_interrupt(), log.open("wb") as log_output:
            process = subprocess.Popen(
                [sys.executable, "-m", "verl_gsd.evaluation.vllm_job", str(file), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log_output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a process group, so that vLLM's own processes can be killed with it
            )
            try:
                while process.poll() is None:
                    on_part()
                    time.sleep(_POLL_INTERVAL_S)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        on_part()
    finally:
        file.unlink(missing_ok=True)
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it printed nothing")
        raise ConfigError(f"vLLM ended with code {process.returncode}: {last.strip()[:500]}. The whole log is {log}")


def main(job_file: str, parent: int) -> None:
    """Generate in this process. Ends when the process ``parent`` ends."""
    die_with_parent(parent)
    content = json.loads(Path(job_file).read_text(encoding="utf-8"))
    job = GenerationJob(**content | {"tasks": [GenerationTask(**task) for task in content["tasks"]]})
    if job.on_cpu:
        from verl_gsd.cpu import platform

        platform.activate()
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
    for task in job.tasks:
        for number in task.missing_parts():
            positions = part_ranges(len(task.prompts))[number]
            write_part(Path(task.folder), number, _generate_part(engine, job, task, positions))


def _generate_part(engine: Any, job: GenerationJob, task: GenerationTask, questions: range) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    requests = [(question, sample) for question in questions for sample in range(task.samples)]
    sampling = [
        SamplingParams(
            temperature=job.temperature,
            top_p=job.top_p,
            max_tokens=job.max_tokens,
            seed=_seed(job.seed, task.prompts[question], sample) if job.temperature else None,
        )
        for question, sample in requests
    ]
    prompts = [{"prompt_token_ids": task.prompts[question]} for question, _ in requests]
    outputs = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        {
            "question": question,
            "sample": sample,
            "text": output.outputs[0].text,
            "tokens": len(output.outputs[0].token_ids),
            "cut_off": output.outputs[0].finish_reason == "length",
        }
        for (question, sample), output in zip(requests, outputs, strict=True)
    ]


def _seed(seed: int, prompt: list[int], sample: int) -> int:
    digest = hashlib.blake2b(json.dumps([seed, prompt, sample]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
