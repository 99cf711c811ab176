"""Generation without vLLM: how parts are divided among GPUs, and how an engine is kept busy."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest

from verl_gsd.errors import ConfigError
from verl_gsd.evaluation import vllm_job
from verl_gsd.evaluation.answers import part_file, read_answers
from verl_gsd.evaluation.vllm_job import (
    EnginePlan,
    GenerationJob,
    GenerationTask,
    generate,
    generate_parts,
    missing_parts,
    plan_engines,
    visible_gpus,
)


def parts(count):
    return [(0, number) for number in range(count)]


@pytest.mark.parametrize(
    ("count", "variable", "names"),
    [
        (3, None, ["0", "1", "2"]),
        (2, "2, 5", ["2", "5"]),
        (2, "GPU-8932f937,GPU-d4d2bf21", ["GPU-8932f937", "GPU-d4d2bf21"]),
        (1, "3,-1,4", ["3"]),  # CUDA ignores what follows an invalid name
        (0, None, []),
    ],
)
def test_gpus_are_named_as_in_the_environment(count, variable, names):
    assert visible_gpus(count, {"CUDA_VISIBLE_DEVICES": variable} if variable else {}) == names


def test_every_gpu_has_an_engine_and_parts_are_dealt_out():
    gpus = ["0", "1", "2", "3"]
    plans = plan_engines(gpus, 1, parts(10))
    assert [plan.devices for plan in plans] == gpus
    assert [[number for _, number in plan.parts] for plan in plans] == [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]
    plans = plan_engines(gpus, 2, parts(3))
    assert [(plan.devices, len(plan.parts)) for plan in plans] == [("0,1", 2), ("2,3", 1)]
    assert [plan.devices for plan in plan_engines(gpus, 1, parts(2))] == ["0", "1"], "no engine without work"
    assert plan_engines(gpus, 1, []) == []


def test_without_gpus_there_is_one_engine():
    assert plan_engines([], 1, parts(3)) == [EnginePlan(None, parts(3))]
    assert plan_engines([], 1, []) == []


@pytest.mark.parametrize(
    ("tensor_parallel", "message"),
    [(4, r"--tensor-parallel 4: .*3 GPUs.*at most 3"), (2, r"--tensor-parallel 2: .*CUDA_VISIBLE_DEVICES=5,6")],
)
def test_gpus_that_cannot_be_divided_are_an_error(tensor_parallel, message):
    with pytest.raises(ConfigError, match=message):
        plan_engines(["5", "6", "7"], tensor_parallel, parts(3))


class EngineStub:
    """Replaces vLLM's engine. It computes ``batch`` requests at a time; request number N takes ``steps[N]`` steps."""

    def __init__(self, steps, batch, on_step=lambda engine: None):
        self._steps, self._batch, self._on_step, self._waiting = steps, batch, on_step, []
        self.added, self.most_unfinished, self.batches, self.sampling = [], 0, [], {}

    def add_request(self, request_id, prompt, sampling):
        self._waiting.append([request_id, self._steps[len(self.added)]])
        self.added.append(prompt["prompt_token_ids"])
        self.sampling[request_id] = sampling
        self.most_unfinished = max(self.most_unfinished, len(self._waiting))

    def step(self):
        self._on_step(self)
        batch = self._waiting[: self._batch]
        self.batches.append(len(batch))
        for request in batch:
            request[1] -= 1
        finished = [request_id for request_id, left in batch if not left]
        self._waiting = [request for request in self._waiting if request[1]]
        completion = SimpleNamespace(token_ids=[1, 2], finish_reason="stop")
        return [
            SimpleNamespace(
                request_id=request_id,
                finished=True,
                outputs=[SimpleNamespace(text=f"to {request_id}", **vars(completion))],
            )
            for request_id in finished
        ]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """130 questions with one sample each, in parts of 64, 64 and 2."""
    monkeypatch.setattr(vllm_job, "_sampling", lambda job, *request: (job.seed, *request))
    task = GenerationTask(str(tmp_path / "mini"), [[number, 7] for number in range(130)], 1)
    return GenerationJob("m", "float32", 1.0, 1.0, 8, 0, 1, True, None, [task], missing_parts([task]))


def test_the_longest_responses_of_a_part_do_not_hold_up_the_next_part(job):
    """By parts, one after another, the batch of 64 would wait 50 steps for one response, three times."""
    steps = [50 if number in (3, 70, 129) else 1 for number in range(130)]
    engine = EngineStub(steps, 64)
    generate_parts(engine, job)
    assert engine.added == job.tasks[0].prompts and len(engine.batches) == 52
    answers = read_answers(part_file(Path(job.tasks[0].folder), 0).parents[1], 130, 1)
    assert answers.texts[129] == ["to 0/129/0"] and answers.texts[64] == ["to 0/64/0"]


def test_a_part_is_written_as_soon_as_its_responses_are_there(job):
    written = []
    task = job.tasks[0]
    steps = [9 if number == 3 else 1 for number in range(130)]
    generate_parts(EngineStub(steps, 200, lambda engine: written.append(task.missing_parts())), job)
    assert written[0] == [0, 1, 2] and written[1] == [0] == written[8] and task.missing_parts() == []
    rows = pq.read_table(part_file(Path(task.folder), 0)).to_pylist()
    assert [row["question"] for row in rows] == list(range(64))


def test_an_engine_has_a_bounded_number_of_requests(job, monkeypatch):
    monkeypatch.setattr(vllm_job, "IN_FLIGHT", 100)
    engine = EngineStub([1] * 130, 10)
    generate_parts(engine, job)
    assert engine.most_unfinished == 100 and set(engine.batches) == {10}


def test_an_engine_generates_its_own_parts_only(job):
    engine = EngineStub([1] * 130, 200)
    generate_parts(engine, replace(job, parts=[(0, 2)]))
    assert engine.added == [[128, 7], [129, 7]] and job.tasks[0].missing_parts() == [0, 1]


def test_rows_with_equal_prompts_have_seeds_of_their_own(job, tmp_path):
    """A part alone has the same seeds as the whole, and the first of equal rows has those of earlier versions."""
    task = GenerationTask(str(tmp_path / "repeated"), [[number % 50, 7] for number in range(130)], 2)
    whole, last = EngineStub([1] * 260, 300), EngineStub([1] * 260, 300)
    generate_parts(whole, replace(job, tasks=[task], parts=missing_parts([task])))
    generate_parts(last, replace(job, tasks=[task], parts=[(0, task.part_count() - 1)]))
    seeds = {request: vllm_job._seed(*sampling) for request, sampling in whole.sampling.items()}
    assert len(set(seeds.values())) == len(seeds) == 260
    assert last.sampling.items() <= whole.sampling.items() and len(last.sampling) < 260
    digest = hashlib.blake2b(b"[0, [3, 7], 1]", digest_size=4).digest()
    assert seeds["0/3/1"] == int.from_bytes(digest, "big")


ENGINE = """
import json, os, sys, time
job = json.load(open(sys.argv[-3]))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), job["parts"], flush=True)
if job["parts"] == [[0, 1]]:
    sys.exit("RuntimeError: no memory")
time.sleep(3600)
"""


def test_if_one_engine_fails_the_others_are_stopped_and_the_error_names_its_log(job, tmp_path, monkeypatch):
    """The first engine would run for an hour."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}{ENGINE}")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    plans = plan_engines(["4", "5"], 1, [(0, 0), (0, 1)])
    (theirs := tmp_path / "bashrc").write_text("precious")
    for name in ("job_0.json", "generation_0.log", "job_1.json", "generation_1.log"):
        (tmp_path / name).symlink_to(theirs)
    with pytest.raises(ConfigError, match=r"RuntimeError: no memory.*generation_1\.log"):
        generate(job, plans, tmp_path, lambda: None)
    assert (tmp_path / "generation_1.log").read_text().startswith("5 [[0, 1]]")
    assert not list(tmp_path.glob("job*.json"))
    assert theirs.read_text() == "precious", "links that were there before are not followed"
    assert not [
        process for process in psutil.process_iter(["cmdline"]) if str(program) in (process.info["cmdline"] or ())
    ]


def test_a_complete_evaluation_starts_no_engine(job, tmp_path):
    generate(job, [], tmp_path, lambda: None)
    assert not list(tmp_path.glob("generation*"))


def test_a_job_that_somebody_changed_after_it_was_written_is_not_done(tmp_path):
    (file := tmp_path / "job.json").write_text('{"model": "theirs"}')
    digest = hashlib.sha256(b'{"model": "mine"}').hexdigest()
    code = (
        f"import os; from verl_gsd.evaluation import vllm_job; vllm_job.main({str(file)!r}, {digest!r}, os.getppid())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and f"{file}: this file has been changed since it was written" in done.stderr
