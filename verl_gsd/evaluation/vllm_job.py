"""Responses of a model to benchmarks by vLLM, in a process of its own: ``python -m verl_gsd.evaluation.vllm_job JOB``.

JOB is a JSON file of a ``Job``. Parts that are there already are not generated again; a sample's seed is a function of
the job's, of the question and of the sample alone, so that neither the parts before it nor a restart changes it.
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
from verl_gsd.evaluation.answers import part_file, parts, write_part
from verl_gsd.run.launch import signals_interrupt

#: Seconds between two looks at what is done.
_LOOK_INTERVAL = 0.5


@dataclass(frozen=True)
class Task:
    """A benchmark's part of a job.

    Attributes:
        folder: OUTPUT/BENCH, where parts are written.
        prompts: token ids, a list a question.
        samples: responses a question.
    """

    folder: str
    prompts: list[list[int]]
    samples: int

    def parts(self) -> int:
        """How many there will be."""
        return len(parts(len(self.prompts)))

    def missing(self) -> list[int]:
        """Numbers of the parts that are not there."""
        return [number for number in range(self.parts()) if not part_file(Path(self.folder), number).is_file()]


@dataclass(frozen=True)
class Job:
    """What to generate.

    Attributes:
        model: a folder in Hugging Face's form, or a name on the hub.
        dtype: vLLM's word for the precision it computes in.
        temperature, top_p, max_tokens: of sampling; at temperature 0 the most probable token is taken.
        seed: of all sampling.
        tensor_parallel: GPUs that one model is spread over.
        on_cpu: whether there is no GPU.
        revision: of a model on the hub.
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
    tasks: list[Task]


def generate(job: Job, log: Path, on_part: Callable[[], None]) -> None:
    """Write all parts of all tasks, calling ``on_part`` now and then.

    Raises:
        ConfigError: vLLM failed; the message has its last error, and where the rest is.
    """
    if not any(task.missing() for task in job.tasks):
        return
    file = log.with_name("job.json")
    file.write_text(json.dumps(dataclasses.asdict(job)), encoding="utf-8")
    environment = os.environ | ({"VERL_GSD_CPU": "1"} if job.on_cpu else {})
    try:
        with signals_interrupt(), log.open("wb") as written:
            process = subprocess.Popen(
                [sys.executable, "-m", "verl_gsd.evaluation.vllm_job", str(file), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # with the processes that vLLM starts it can be ended as a whole
            )
            try:
                while process.poll() is None:
                    on_part()
                    time.sleep(_LOOK_INTERVAL)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        on_part()
    finally:
        file.unlink(missing_ok=True)
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it printed nothing")
        raise ConfigError(f"vLLM ended with {process.returncode}: {said.strip()[:500]}. All of it is in {log}")


def main(job_file: str, parent: int) -> None:
    """The process that generates."""
    die_with_parent(parent)
    content = json.loads(Path(job_file).read_text(encoding="utf-8"))
    job = Job(**content | {"tasks": [Task(**task) for task in content["tasks"]]})
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
        for number in task.missing():
            write_part(Path(task.folder), number, _part(engine, job, task, parts(len(task.prompts))[number]))


def _part(engine: Any, job: Job, task: Task, questions: range) -> list[dict[str, Any]]:
    from vllm import SamplingParams

    asked = [(question, sample) for question in questions for sample in range(task.samples)]
    sampling = [
        SamplingParams(
            temperature=job.temperature,
            top_p=job.top_p,
            max_tokens=job.max_tokens,
            seed=_seed(job.seed, task.prompts[question], sample) if job.temperature else None,
        )
        for question, sample in asked
    ]
    prompts = [{"prompt_token_ids": task.prompts[question]} for question, _ in asked]
    done = engine.generate(prompts, sampling, use_tqdm=False)
    return [
        {
            "question": question,
            "sample": sample,
            "text": made.outputs[0].text,
            "tokens": len(made.outputs[0].token_ids),
            "cut_off": made.outputs[0].finish_reason == "length",
        }
        for (question, sample), made in zip(asked, done, strict=True)
    ]


def _seed(seed: int, prompt: list[int], sample: int) -> int:
    digest = hashlib.blake2b(json.dumps([seed, prompt, sample]).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
