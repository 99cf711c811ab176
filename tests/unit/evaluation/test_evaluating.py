"""Evaluation of a checkpoint without vLLM: files, resume, comparison, and the LLM verifier."""

import json
import os
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_runs import (
    answer_all,
    answers_of,
    evaluate,
    prepared_sums,
    random_model,
    rows_of,
    unmerged_checkpoint,
)
from filelock import FileLock

from verl_gsd.evaluation import benches, run
from verl_gsd.evaluation.answers import part_file, part_ranges, read_answers, verify, write_part
from verl_gsd.evaluation.intervals import mean_by_question
from verl_gsd.evaluation.llm_verifier import verify_with_llm
from verl_gsd.evaluation.results import build_result
from verl_gsd.evaluation.vllm_job import GenerationTask
from verl_gsd.judge.prompt import VERDICT_VERSION

SETTINGS = {"model": {"checkpoint": "a"}, "bench": "mini", "temperature": 0.6}


@pytest.fixture
def mini(tmp_path):
    return prepared_sums(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


# Responses on disk


def test_responses_are_verified_and_unverified_responses_are_counted(mini, monkeypatch):
    texts = [f"It is \\boxed{{{n + 1 + (n % 2)}}}." for n in range(70)]
    progress = []
    verdicts = verify(mini, answers_of(mini, texts), progress.append)
    assert verdicts.correct.tolist() == [[n % 2 == 0] * 2 for n in range(70)] and progress[-1] == 140
    assert not verdicts.unverified.any()

    module = benches.importlib.import_module(mini.verifier)
    given_up = lambda source, text, truth: {"score": 0.0, "acc": 0.0, "unverified": float(truth == "1")}  # noqa: E731
    monkeypatch.setattr(module, "compute_score", given_up)
    answers = answers_of(mini, texts)
    verdicts = verify(mini, answers, progress.append)
    result = build_result(SETTINGS, mini.questions, answers, verdicts, {"second": 1.0})
    assert result.figures == {"unverified": 1 / 70, "cut_off": 0.0, "tokens": 3.0, "second": 1.0}


def test_parts_are_read_in_order_and_errors_name_the_part(tmp_path):
    assert [len(part) for part in part_ranges(70, 1)] == [64, 6]
    assert [len(part) for part in part_ranges(3, 32)] == [2, 1], "64 responses"
    assert [len(part) for part in part_ranges(2, 65)] == [1, 1], "at least one question"
    assert [len(part) for part in part_ranges(70, 2)] == [32, 32, 6]
    for number, part in enumerate(part_ranges(70, 2)):
        write_part(tmp_path, number, rows_of(part, 2))
    answers = read_answers(tmp_path, 70, 2)
    assert answers.texts[69] == ["69 0", "69 1"] and answers.cut_off.sum() == 70 and answers.tokens.sum() == 420
    task = GenerationTask(str(tmp_path), [[1]] * 70, 2)
    assert task.missing_parts() == [] and task.part_count() == 3
    part_file(tmp_path, 1).unlink()
    assert task.missing_parts() == [1]
    with pytest.raises(ValueError, match=r"part_00001\.parquet: "):
        read_answers(tmp_path, 70, 2)
    write_part(tmp_path, 1, rows_of(range(32, 63), 2))
    with pytest.raises(ValueError, match=r"part_00001\.parquet: .*question"):
        read_answers(tmp_path, 70, 2)
    part_file(tmp_path, 1).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"part_00001\.parquet: "):
        read_answers(tmp_path, 70, 2)


def test_a_complete_evaluation_and_its_resume(tmp_path, mini, model, monkeypatch):
    jobs = []
    monkeypatch.setattr(run, "generate", lambda job, *more: (jobs.append(job), answer_all(job, *more)))
    line = ["--checkpoint", model, "--bench", "mini", "--data", tmp_path / "data", "--output", tmp_path / "o"]
    output = evaluate(*line, "--samples", "2", "--max-tokens", "8")
    assert "avg@2 │ 1.000" in output and "0.7% cut off" in output
    (job,) = jobs
    assert (job.temperature, job.top_p, job.max_tokens, job.model) == (0.6, 1.0, 8, str(model))
    assert bytes(token for token in job.tasks[0].prompts[3] if token < 256) and len(job.tasks[0].prompts) == 70
    written = json.loads((tmp_path / "o" / "mini" / "result.json").read_text())
    assert written["settings"]["first_prompt"] == "<|user|>0+1?<|assistant|>"
    assert written["settings"]["verifier"] == "verl_gsd.tasks.maths" and written["settings"]["samples"] == 2
    assert set(written["settings"]["model"]["files"]) == {"model.safetensors"}
    summed = json.loads((tmp_path / "o" / "results.json").read_text())
    assert summed["mini"]["average"]["value"] == 1.0

    # The same command resumes; a command with other settings is rejected.
    evaluate(*line, "--samples", "2", "--max-tokens", "8", "--against", tmp_path / "o")
    output = evaluate(*line, "--samples", "2", "--max-tokens", "8", "--seed", "1", code=2)
    assert re.search(r"/o/mini: .*seed=0\b.*\b1\b.*--output", output)
    output = evaluate(*line, "--samples", "3", "--max-tokens", "8", "--against", tmp_path / "o", code=2)
    assert re.search(r"mini: samples\b.*\b2\b.*\b3\b", output) and len(jobs) == 2, "before anything is generated"
    with FileLock(tmp_path / "o" / ".lock"):
        output = evaluate(*line, "--samples", "2", "--max-tokens", "8", code=2)
    assert f"--output {tmp_path / 'o'}: " in output
    output = evaluate(*line, "--samples", "2", "--max-tokens", "9", code=2)
    assert re.search(r"/o/mini: .*max_tokens=8\b.*\b9\b", output)
    os.utime(model / "model.safetensors")
    output = evaluate(*line, "--samples", "2", "--max-tokens", "8", code=2)
    assert re.search(r"/o/mini: .*model=", output), "other weights"


@pytest.fixture
def two_models(tmp_path, model, monkeypatch):
    """Two models in folders of the same name. Every third answer of the second is wrong."""
    folders = [tmp_path / "a" / "m", tmp_path / "b" / "m"]
    for folder in folders:
        shutil.copytree(model, folder)

    def generate(job, *more):
        answer_all(job, *more)
        for task in job.tasks if job.model == str(folders[1]) else ():
            for number in range(task.part_count()):
                rows = pq.read_table(part_file(Path(task.folder), number)).to_pylist()
                spoilt = [row | ({"text": "no number"} if row["question"] % 3 == 0 else {}) for row in rows]
                write_part(Path(task.folder), number, spoilt)

    monkeypatch.setattr(run, "generate", generate)
    monkeypatch.chdir(tmp_path)
    return folders


def test_against_a_checkpoint_uses_that_checkpoints_evaluation(tmp_path, mini, two_models):
    good, bad = two_models
    line = ["--bench", "mini", "--data", tmp_path / "data", "--samples", "2", "--max-tokens", "8"]
    evaluate("--checkpoint", good, *line)
    output = evaluate("--checkpoint", bad, *line, "--output", "o", "--against", good)
    assert str(good) in output and "0, 46, 24" in output, "24 of 70 went worse"
    figures = json.loads((tmp_path / "o" / "results.json").read_text())["mini"]
    assert figures["model"] == str(bad) and (figures["temperature"], figures["max_tokens"]) == (0.6, 8)
    assert figures["against"]["model"] == str(good)
    assert figures["against"]["difference"]["value"] == pytest.approx(-24 / 70)
    output = evaluate("--checkpoint", good, *line, "--output", "p", "--against", bad, code=2)
    assert re.search(rf"--against {bad}: evaluation/m .*{good}", output)
    os.utime(good / "model.safetensors")
    output = evaluate("--checkpoint", bad, *line, "--output", "o", "--against", good, code=2)
    assert re.search(rf"--against {good}: .*evaluation/m .*{good}", output)


def test_an_output_folder_belongs_to_one_model(tmp_path, mini, two_models):
    good, bad = two_models
    shutil.copytree(tmp_path / "data" / "mini", tmp_path / "data" / "other")
    line = ["--data", tmp_path / "data", "--samples", "2", "--max-tokens", "8", "--output", "o"]
    evaluate("--checkpoint", good, "--bench", "mini", *line)
    output = evaluate("--checkpoint", bad, "--bench", "other", *line, code=2)
    assert re.search(rf"--output o: .*mini .*{good}.*{bad}.*o/mini", output)
    assert not (tmp_path / "o" / "other").exists()
    evaluate("--checkpoint", good, "--bench", "other", *line)
    assert list(json.loads((tmp_path / "o" / "results.json").read_text())) == ["mini", "other"]


@pytest.mark.parametrize("link", ["evaluation", "evaluation/global_step_4", "evaluation/global_step_4/model"])
def test_a_link_in_somebody_elses_run_makes_eval_remove_nothing_elsewhere(tmp_path, mini, model, monkeypatch, link):
    """eval replaces OUTPUT/model. Here, a link leads to a folder of the user who evaluates."""
    checkpoint = unmerged_checkpoint(tmp_path / "gift", model)
    mine = tmp_path / "mine"
    for folder in (mine, mine / "model", mine / "global_step_4" / "model"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "precious").touch()
    before = sorted(mine.rglob("*"))
    place = tmp_path / "gift" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(mine / "model" if place.name == "model" else mine)

    def stub_that_writes_a_model(checkpoint, folder, *_):
        shutil.copytree(model, folder, dirs_exist_ok=True)

    monkeypatch.setattr("verl_gsd.evaluation.merge.write_model", stub_that_writes_a_model)
    monkeypatch.setattr(run, "generate", answer_all)
    line = ["--checkpoint", checkpoint, "--bench", "mini", "--data", tmp_path / "data", "--max-tokens", "8"]
    message = evaluate(*line, code=2)
    expected = f"{place} is a link. Remove it" if place.name == "model" else f"a link leads from there to {mine}"
    assert expected in message
    assert sorted(mine.rglob("*")) == before
    evaluate(*line, "--output", tmp_path / "output")
    assert (tmp_path / "output" / "mini" / "result.json").is_file()


def test_another_evaluation_is_not_read_through_a_link_in_somebody_elses_folder(tmp_path, mini, two_models):
    good, bad = two_models
    line = ["--bench", "mini", "--data", tmp_path / "data", "--samples", "2", "--max-tokens", "8"]
    evaluate("--checkpoint", good, *line, "--output", "private")
    (tmp_path / "gift" / "mini").mkdir(parents=True)
    (tmp_path / "gift" / "mini" / "result.json").symlink_to(tmp_path / "private" / "mini" / "result.json")
    output = evaluate("--checkpoint", bad, *line, "--output", "o", "--against", tmp_path / "gift", code=2)
    assert f"a link leads out of {tmp_path}/gift" in output


def test_a_prompt_that_exceeds_the_context_is_rejected(tmp_path, mini, model):
    line = ["--checkpoint", model, "--bench", "mini", "--data", tmp_path / "data", "--output", tmp_path / "o"]
    output = evaluate(*line, "--max-tokens", "4090", code=2)
    assert re.search(r"--max-tokens 4090: mini, row 69\b.*\b7\b.*\b4096\b.*--max-tokens 4089\b", output)
    assert not (tmp_path / "o" / "mini").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bench", "absent"], "--bench absent: .*verl-gsd prepare absent"),
        (["--bench", "arithmetic"], "--bench arithmetic: .*verl-gsd prepare arithmetic"),
        (["--bench", "arithmetic_hard"], "cache/arithmetic_hard.*verl-gsd prepare arithmetic_hard"),
        (["--bench", "mini", "--samples", "2", "--temperature", "0"], "--samples 2: .*temperature 0"),
        (["--bench", "mini", "--top-p", "0"], r"--top-p 0\.0: "),
        (["--bench", "mini", "--verifier-url", "http://x"], r"--verifier-url\b.*--verifier-model\b"),
        (["--bench", "mini", "--against", "nowhere"], "--against nowhere: .*evaluation/nowhere"),
    ],
)
def test_invalid_options_are_rejected(tmp_path, mini, model, monkeypatch, words, message):
    monkeypatch.setenv("VERL_GSD_CACHE", str(tmp_path / "cache"))
    output = evaluate("--checkpoint", model, "--data", tmp_path / "data", "--output", tmp_path / "o", *words, code=2)
    assert re.search(message, output)


# An LLM verifier


def test_llm_verdicts_are_counted_and_reused(mini, tmp_path):
    answers = answers_of(mini, [str(n + 1) for n in range(70)])
    verdicts = verify(mini, answers, lambda _: None)
    asked = []

    def ask(questions, on_done):
        """Agrees with the verifier, except for two questions without a verdict and five wrong verdicts."""
        asked.append(len(questions))
        on_done(len(questions))
        verdict_list = []
        for question in questions:
            number = int(question.reference) - 1
            assert question.problem == f"{number}+1?"
            verdict_list.append(None if number < 2 and len(asked) < 3 else number not in range(60, 65))
        return verdict_list, Counter({"timed_out": verdict_list.count(None)} if None in verdict_list else {})

    progress = []
    figures = verify_with_llm(mini, tmp_path, answers, verdicts, "v", ask, progress.append)
    whose = {"second_model": "v", "second_prompt": VERDICT_VERSION}
    right = mean_by_question(np.repeat([1.0, 0.0], [63, 5]))  # of two questions nothing is known
    accuracy = {"second_accuracy": 126 / 136, "second_accuracy_low": right.low, "second_accuracy_high": right.high}
    shares = {"second_failed": 4 / 140, **accuracy, "second_agreement": 126 / 136}
    assert figures == whose | shares | {"second_failed_timed_out": 4.0}
    assert asked == [128, 12] and progress[-1] == 140 and progress == sorted(progress)
    figures = verify_with_llm(mini, tmp_path, answers, verdicts, "v", ask, progress.append)
    assert asked == [128, 12, 4], "what failed alone"
    assert figures["second_accuracy_low"] > right.low, "of more questions"
    assert (figures["second_failed"], figures["second_accuracy"], figures["second_agreement"]) == (
        0.0,
        13 / 14,
        13 / 14,
    )
    others = answers_of(mini, [str(n + 1) + ("." if n == 69 else "") for n in range(70)])
    verify_with_llm(mini, tmp_path, others, verdicts, "v", ask, progress.append)
    assert asked[3:] == [12], "other texts than it was asked about"
    asked[3:] = []
    verify_with_llm(mini, tmp_path, answers, verdicts, "another", ask, progress.append)
    assert asked[3:] == [128, 12], "another model's are not its"
    silent = lambda questions, on_done: ([None] * len(questions), Counter(refused=len(questions)))  # noqa: E731
    figures = verify_with_llm(mini, tmp_path, answers, verdicts, "silent", silent, progress.append)
    assert (figures["second_failed"], figures["second_failed_refused"]) == (
        1.0,
        140.0,
    ) and "second_accuracy" not in figures
    file = tmp_path / "opinion" / "part_00001.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"verdicts": [True]}))
    with pytest.raises(ValueError, match=r"part_00001\.json: .*12"):
        verify_with_llm(mini, tmp_path, answers, verdicts, "silent", silent, progress.append)


def test_the_interval_of_llm_verdicts_counts_repeated_questions_once(mini, tmp_path):
    repeated = replace(mini, questions=[mini.questions[number % 10] for number in range(40)])
    answers = answers_of(repeated, [question.truth for question in repeated.questions])
    ask = lambda questions, on_done: ([int(of.reference) % 2 == 0 for of in questions], Counter())  # noqa: E731
    figures = verify_with_llm(
        repeated, tmp_path, answers, verify(repeated, answers, lambda _: None), "v", ask, lambda _: None
    )
    shares = np.array([int(question.truth) % 2 == 0 for question in repeated.questions], float)
    expected = mean_by_question(shares, questions=[number % 10 for number in range(40)])
    found = tuple(figures[f"second_accuracy{end}"] for end in ("", "_low", "_high"))
    assert found == pytest.approx((expected.value, expected.low, expected.high))
    assert expected.low < mean_by_question(shares).low - 0.05, "the interval of 40 questions is narrower"


def test_a_missing_llm_verifier_is_rejected_before_anything_is_generated(tmp_path, mini, model, monkeypatch):
    monkeypatch.setattr(run, "generate", lambda *_: pytest.fail("generated"))
    words = ["--verifier-url", "http://127.0.0.1:9/v1", "--verifier-model", "v"]
    output = evaluate("--checkpoint", model, "--bench", "mini", "--data", tmp_path / "data", *words, code=2)
    assert re.search("--verifier-url, --verifier-model: .*http://127.0.0.1:9/v1", output)
