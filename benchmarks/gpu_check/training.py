"""The embedded task with verl, Ray and vLLM on the device: verl's own mode and our algorithms.

On a GPU the runs start side by side, each with a Ray cluster of its own: a start takes more than a minute, and a step
about a second. Their step times are therefore those of runs that share a GPU and its cores. In the drill the runs
follow one another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gpu_check import task
from gpu_check.device import device, gpu_gib, hardware, is_drill
from gpu_check.record import CheckFailedError, Report, smi
from verl_gsd.evaluation.summary import summarise
from verl_gsd.run.launch import signals_interrupt
from verl_gsd.rundir import MetricsReader, RunDirectory
from verl_gsd.tasks import arithmetic, embedded

#: Seconds between two looks of our trainers at the replay buffer; verl's own mode looks every 2 s.
_POLL = "algorithm.gsd.poll_interval=0.1"
RUNS: dict[str, list[str]] = {
    "verl": ["algo=grpo", "trainer.v1.trainer_mode=sync", "algorithm.adv_estimator=grpo"],
    "grpo": ["algo=grpo", _POLL],
    "hadw_dapo": ["algo=hadw_dapo", _POLL],
    "dagrpo": ["algo=dagrpo", "algorithm.gsd.dagrpo.judge.scorer=stub", _POLL],
    "gvpo": ["algo=gvpo", _POLL],
}
STEPS, STEPS_OF_DRILL, PROMPTS_OF_DRILL = 40, 3, 64
#: GiB of a GPU that one run takes: contexts of its processes, and vLLM's share.
_RUN_GIB, _VLLM_GIB = 12, 5
_KV_CACHE_BYTES = 1 << 29
_LOG_LINES = 30
_LOOK_INTERVAL, _GRACE = 1.0, 25.0
_EXCEPTION = re.compile(r"(?:first exception|error): .+")


@dataclass
class Run:
    """One ``verl-gsd train``, its process, and what it has logged so far."""

    name: str
    path: Path
    words: list[str]
    started: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    log: BinaryIO | None = None
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    seconds_to_first_line: float | None = None
    reader: MetricsReader | None = None

    @property
    def output(self) -> Path:
        """What the command printed."""
        return self.path.with_suffix(".out")

    def start(self) -> None:
        ray = self.path.with_suffix(".ray")
        ray.mkdir(parents=True)
        self.log = self.output.open("wb")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "verl_gsd.cli", "train", *self.words],
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            # A cluster's files apart from those of the others; and reasons in one line each.
            env=os.environ | {"RAY_TMPDIR": str(ray), "COLUMNS": "500"},
        )
        self.reader = MetricsReader(RunDirectory(self.path).metrics(1))

    def look(self) -> bool:
        """Read what is new; whether the process still runs."""
        assert self.process is not None and self.reader is not None
        is_running = self.process.poll() is None
        self.metrics += self.reader.new()
        if self.metrics and self.seconds_to_first_line is None:
            self.seconds_to_first_line = time.monotonic() - self.started
        return is_running

    def end(self) -> None:
        """Ask the launcher to end its run, as Ctrl-C does, and wait until it has."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
        if self.log is not None:
            self.log.close()

    def found(self, prompts: int) -> dict[str, Any]:
        """The figures of the run, and why it failed if it did."""
        summary = summarise(self.metrics, {arithmetic.DATA_SOURCE: prompts})
        accuracies = summary.held_out[0].accuracies if summary.held_out else ()
        found: dict[str, Any] = {
            "state": self._state(),
            "steps": summary.steps,
            "seconds_to_first_line": self.seconds_to_first_line,
            "seconds_per_step": summary.seconds_per_step,
            "accuracy": [
                {"step": of.step, "value": of.value, "low": of.interval.low, "high": of.interval.high, "n": prompts}
                for of in accuracies
                if of.interval is not None
            ],
            "peak_gib": {name: self._largest(f"actor/perf/max_memory_{name}_gb") for name in ("allocated", "reserved")},
            "words": self.words,
        }
        if found["state"] == "failed":
            lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
            named = [match[0] for line in lines if (match := _EXCEPTION.search(line))]
            found["reason"] = named[-1] if named else (lines or ["nothing was printed"])[-1]
            found["log"] = lines[-_LOG_LINES:]
        return found

    def _state(self) -> str:
        if self.process is None:
            return "not started"
        code = self.process.poll()
        return "running" if code is None else "passed" if code == 0 else "failed"

    def _largest(self, name: str) -> float | None:
        values = [data[name] for _, data in self.metrics if name in data]
        return max(values, default=None)


def check(report: Report) -> str:
    """Train with every algorithm.

    Raises:
        CheckFailedError: a run fails, or its held-out accuracy falls for certain; the other runs go on.
    """
    where, start = device(), time.monotonic()
    made = embedded.ensure(task.folder())
    total_gib = gpu_gib(where)
    at_once = 1 if total_gib is None else max(1, min(len(RUNS), int(total_gib // _RUN_GIB)))
    # Under /tmp whatever TMPDIR says: the path of a socket of Ray's may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="gpu_check_", dir="/tmp"))
    prompts = json.loads((made / embedded.MANIFEST).read_text(encoding="utf-8"))["test_prompts"]
    prompts = min(prompts, PROMPTS_OF_DRILL) if is_drill() else prompts
    runs = [Run(name, folder / name, [*words, *shared_words(folder / name, total_gib)]) for name, words in RUNS.items()]
    results: dict[str, Any] = {"device": str(where), "at_once": at_once, "steps_asked": STEPS}
    results |= {
        "seconds_for_the_task": time.monotonic() - start,
        "gpu_used_mib": _used_mib(),
        "gpu_peak_used_mib": None,
    }
    results["steps_asked"] = STEPS_OF_DRILL if is_drill() else STEPS
    seen = 0
    with signals_interrupt():
        try:
            while waiting := [run for run in runs if run.process is None or run.look()]:
                running = [run for run in waiting if run.process is not None]
                for run in [run for run in waiting if run.process is None][: at_once - len(running)]:
                    run.start()
                    print(f"{run.name}: started", flush=True)
                if (used := _used_mib()) is not None:
                    results["gpu_peak_used_mib"] = max(used, results["gpu_peak_used_mib"] or 0)
                lines = sum(len(run.metrics) for run in runs) + len(waiting)
                if lines != seen:
                    seen = lines
                    report.write(results | {"runs": {run.name: run.found(prompts) for run in runs}})
                time.sleep(_LOOK_INTERVAL)
        finally:
            for run in runs:
                run.end()
            found = {run.name: run.found(prompts) for run in runs}
            report.write(results | {"runs": found})
            for name, of in found.items():
                print(f"{name}: {described(of)}", flush=True)
    wrong = {name: of.get("reason") for name, of in found.items() if of["state"] != "passed"}
    wrong |= {name: "its accuracy fell" for name, of in found.items() if has_fallen(of)}
    if wrong:
        name, reason = next(iter(wrong.items()))
        raise CheckFailedError(
            f"{len(wrong)} of {len(runs)} runs are wrong ({', '.join(wrong)}). The first: {name}: {reason}. "
            f"The run directories are in {folder}"
        )
    shutil.rmtree(folder)
    return "; ".join(f"{name}: {described(of)}" for name, of in found.items())


def has_fallen(found: dict[str, Any]) -> bool:
    """Whether the whole interval of the last accuracy lies below that of the first."""
    accuracy = found["accuracy"]
    return len(accuracy) > 1 and accuracy[-1]["high"] < accuracy[0]["low"]


def described(found: dict[str, Any]) -> str:
    """One run in some words."""
    text = f"{found['state']}, {found['steps']} steps"
    if found["seconds_per_step"] is not None:
        text += f" of {found['seconds_per_step']:.2f} s"
    if found["accuracy"]:
        text += ", accuracy " + " -> ".join(
            f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]" for of in found["accuracy"]
        )
    return text + (f", {found['reason']}" if "reason" in found else "")


def shared_words(path: Path, total_gib: float | None) -> list[str]:
    """Words of every run, on a GPU of ``total_gib`` or, with None, in the drill."""
    rollout, init = "actor_rollout_ref.rollout", "ray_kwargs.ray_init"
    steps = STEPS if total_gib is not None else STEPS_OF_DRILL
    words = ["task=arithmetic", *hardware(total_gib), f"trainer.default_local_dir={path}", "trainer.save_freq=-1"]
    words += [f"trainer.total_training_steps={steps}", f"trainer.test_freq={steps}"]
    if total_gib is None:
        return [*words, f"data.val_max_samples={PROMPTS_OF_DRILL}", "data.train_batch_size=8"]
    # A cluster for each run, with logical CPUs enough for its actors, most of which wait, and few workers: cores and
    # shared memory are those of all runs.
    words += [f"++{init}.address=local", f"++{init}.num_cpus=32", f"++{init}.include_dashboard=false"]
    words += [f"++{init}.object_store_memory=1000000000", f'++{init}.runtime_env.env_vars.OMP_NUM_THREADS="2"']
    words += ["transfer_queue.backend.SimpleStorage.num_data_storage_units=1", "data.dataloader_num_workers=0"]
    words += ["reward.num_workers=1", f"{rollout}.agent.num_workers=2"]
    # Graphs take longer to compile than they save here. vLLM measures how much of the GPU is free and fails where
    # another process frees memory meanwhile, as the other runs do: given the size of its cache, it does not measure.
    words += [f"{rollout}.enforce_eager=true", f"{rollout}.gpu_memory_utilization={_VLLM_GIB / total_gib:.3f}"]
    return [*words, f"++{rollout}.engine_kwargs.vllm.kv_cache_memory_bytes={_KV_CACHE_BYTES}"]


def _used_mib() -> int | None:
    """MiB in use on the first GPU, by anybody; None where nvidia-smi does not say."""
    try:
        return int(smi("memory.used")[0][0].split()[0])
    except (IndexError, ValueError):
        return None
