"""Plain GRPO on the real stack: forty steps teach, and its checkpoint is evaluated against the model it began with."""

import json
import os
import subprocess
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pyarrow.parquet as pq
import pytest
from places import BINARIES
from running import SURE, TASK, Started, metrics, validated, validation_kept, verl_gsd

from verl_gsd.evaluation.intervals import paired_test, proportion
from verl_gsd.records import read_records

STEPS, HELD_OUT = 40, 1024


@pytest.fixture(scope="module")
def grpo(tmp_path_factory):
    run = tmp_path_factory.mktemp("grpo") / "run"
    done = verl_gsd(
        *("train", "algo=grpo", "task=arithmetic", "hardware=cpu", f"trainer.default_local_dir={run}"),
        *(f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={STEPS}", f"trainer.test_freq={STEPS}"),
        validation_kept(run),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(run=run)


def test_held_out_accuracy_rises_by_more_than_chance_makes_of_the_same_prompts(grpo):
    found = paired_test(validated(grpo.run, 0), validated(grpo.run, STEPS))
    assert found.difference.low > 0 and found.p_value < SURE, found


def test_every_group_has_as_many_responses(grpo):
    assert set(read_records(grpo.run)["size"].to_pylist()) == {8}


SAMPLES, PART = 4, 16


@pytest.fixture(scope="module")
def evaluated(grpo, tmp_path_factory):
    """The warm-started model and the checkpoint on the held-out problems as a table of a user's own."""
    folder = tmp_path_factory.mktemp("evaluated")
    rows = pq.read_table(TASK / "test.parquet").to_pylist()
    with (folder / "sums.jsonl").open("w") as table:
        for row in rows:
            answer = row["reward_model"]["ground_truth"]
            table.write(json.dumps({"problem": row["prompt"][0]["content"], "answer": answer}) + "\n")
    model = ("--model", str(TASK / "model"))
    table = ("--input", str(folder / "sums.jsonl"), "--split", "test", "--suffix", "", "--data", str(folder))
    made = verl_gsd("prepare", "sums", *table, *model)
    assert made.returncode == 0, made.stderr
    how = ("--bench", "sums", "--data", str(folder), "--samples", str(SAMPLES), "--temperature", "1")
    before, after = folder / "before", folder / "after"
    line = ("eval", "--checkpoint", str(TASK / "model"), *how, "--max-tokens", "8", "--output", str(before))
    stopped = evaluate_until_stopped(line, before / "sums" / "responses")
    first = verl_gsd(*line)
    assert first.returncode == 0, first.stdout + first.stderr
    line = ("eval", "--checkpoint", str(grpo.run / f"global_step_{STEPS}"), *how, "--output", str(after))
    second = verl_gsd(*line, "--against", str(before), env=os.environ | {"COLUMNS": "200"})
    assert second.returncode == 0, second.stdout + second.stderr
    return SimpleNamespace(before=before, after=after, line=line, printed=second.stdout, stopped=stopped)


def evaluate_until_stopped(line, responses):
    """Send SIGTERM when the first part of the responses is there: what is left, and what there is."""
    with Started([BINARIES / "verl-gsd", *line], stderr=subprocess.PIPE, text=True) as evaluating:
        while evaluating.poll() is None and not list(responses.glob("part_*.parquet")):
            with suppress(subprocess.TimeoutExpired):
                evaluating.wait(0.05)
        evaluating.terminate()
        _, said = evaluating.communicate()
    words = [process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"])]
    left = [found for found in words if "verl_gsd.evaluation.vllm_job" in found]
    parts = {file: file.stat().st_mtime_ns for file in responses.iterdir()}
    return SimpleNamespace(code=evaluating.returncode, said=said, left=left, parts=parts)


def test_an_evaluation_that_is_stopped_leaves_no_process_and_the_same_line_goes_on(evaluated):
    stopped = evaluated.stopped
    assert stopped.code == 130 and "Run the same command to resume" in stopped.said
    assert not stopped.left, "vLLM would keep the memory that the next line needs"
    assert 1 <= len(stopped.parts) < HELD_OUT // PART
    assert {file: file.stat().st_mtime_ns for file in stopped.parts} == stopped.parts, "not generated again"
    assert json.loads((evaluated.before / "results.json").read_text())["sums"]["questions"] == HELD_OUT


def test_the_merged_checkpoint_answers_better_than_what_it_began_with(evaluated):
    found = json.loads((evaluated.after / "results.json").read_text())["sums"]
    against = found["against"]
    assert against["difference"]["low"] > 0 and against["p_value"] < SURE, found
    assert found["pass_at_k"]["4"]["value"] > found["pass_at_k"]["2"]["value"] > found["average"]["value"]
    assert found["unverified"] == 0 and f"avg@{SAMPLES}" in evaluated.printed


def test_the_evaluation_agrees_with_the_runs_own_validation(grpo, evaluated):
    """On the same weights, bfloat16 aside, and on the same problems at the same temperature."""
    held_out = proportion(round(metrics(grpo.run, 1)[STEPS]["val-core/arithmetic/acc/mean@1"] * HELD_OUT), HELD_OUT)
    found = json.loads((evaluated.after / "results.json").read_text())["sums"]["average"]
    assert found["low"] < held_out.high and held_out.low < found["high"]


def test_a_part_that_is_missing_is_generated_again_as_it_was(evaluated):
    """As after a stop: the other parts stay, and what is drawn anew does not depend on them."""
    folder = evaluated.after / "sums"
    files = sorted((folder / "responses").iterdir())
    assert len(files) == HELD_OUT // PART
    before = {file: (file.stat().st_mtime_ns, pq.read_table(file).to_pylist()) for file in files}
    result = json.loads((folder / "result.json").read_text())
    files[1].unlink()
    again = verl_gsd(*evaluated.line)
    assert again.returncode == 0, again.stdout + again.stderr
    after = {file: (file.stat().st_mtime_ns, pq.read_table(file).to_pylist()) for file in files}
    assert [file for file in files if after[file][0] != before[file][0]] == [files[1]]
    assert {file: rows for file, (_, rows) in after.items()} == {file: rows for file, (_, rows) in before.items()}
    assert json.loads((folder / "result.json").read_text()) == result
