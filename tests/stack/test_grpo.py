"""Training on the real stack: verl, Ray and vLLM, nothing replaced. Runs are shared, since a start costs minutes."""

import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from running import (
    BINARIES,
    SURE,
    TASK,
    metrics,
    ray_processes,
    remembered,
    replayed,
    replayed_anchors,
    train_until_killed,
    validated,
    validation_kept,
    verl_gsd,
)

from verl_gsd.evaluation.intervals import paired, wilson
from verl_gsd.records import read_records
from verl_gsd.rundir import RunDirectory
from verl_gsd.trainer.forkserver import workers_forked


@pytest.fixture(scope="module")
def task():
    done = verl_gsd("prepare", "arithmetic")
    assert done.returncode == 0, done.stderr
    return TASK


SAVED, KILLED, STEPS = 30, 31, 40  # as many as the demo's


HELD_OUT = 1024


@pytest.fixture(scope="module")
def grpo(task, tmp_path_factory):
    """GRPO with a KL reference model and TensorBoard; killed in a step, then resumed."""
    run = tmp_path_factory.mktemp("grpo") / "run"
    before = ray_processes()
    code, killed = train_until_killed(
        *("algo=grpo", "task=arithmetic", "hardware=cpu", "logger=tensorboard"),
        *(f"trainer.default_local_dir={run}", f"trainer.total_training_steps={STEPS}"),
        "actor_rollout_ref.actor.use_kl_loss=true",
        *(f"trainer.save_freq={SAVED}", f"trainer.test_freq={STEPS}", validation_kept(run)),
        step=KILLED,
    )
    left = ray_processes() - before
    resumed = verl_gsd("train", f"resume={run}")
    assert resumed.returncode == 0, killed + resumed.stdout + resumed.stderr
    left |= ray_processes() - before
    return SimpleNamespace(run=run, killed=killed, code=code, printed=resumed.stdout, left=left)


def test_a_killed_run_says_how_to_go_on_and_the_resumed_one_ends_with_its_result(grpo):
    assert grpo.code == 1
    assert f"resume={grpo.run}" in re.sub(r"\s", "", grpo.killed)
    seen = metrics(grpo.run, 2)
    table = re.sub(r"\s+", " ", grpo.printed)
    for step in (SAVED, STEPS):
        assert f"{seen[step]['val-core/arithmetic/acc/mean@1']:.3f} [" in table
    assert f"steps of this attempt │ {STEPS - SAVED}" in table.replace("|", "│")
    assert f"run directory {grpo.run}" in grpo.printed


def test_held_out_accuracy_rises_by_more_than_chance_makes_of_the_same_prompts(grpo):
    before, after = validated(grpo.run, 0), validated(grpo.run, STEPS)
    assert len(before) == len(after) == HELD_OUT
    for attempt, step, scores in ((1, 0, before), (2, STEPS, after)):
        assert metrics(grpo.run, attempt)[step]["val-core/arithmetic/acc/mean@1"] == pytest.approx(scores.mean())
    found = paired(before, after)
    assert found.difference.low > 0 and found.p_value < SURE, found


def test_the_reference_model_measures_a_divergence_that_grows_from_zero(grpo):
    run = grpo.run
    seen = metrics(run, 1)
    assert seen[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-5)
    assert seen[KILLED]["actor/kl_loss"] > 1e-3


def test_a_resumed_run_goes_on_where_the_checkpoint_stands(grpo):
    run = grpo.run
    assert sorted(metrics(run, 2)) == list(range(SAVED, STEPS + 1))
    restored = paired(validated(run, 0), validated(run, SAVED))
    assert restored.difference.low > 0, "not the weights the run began with"
    assert metrics(run, 2)[SAVED + 1]["actor/kl_loss"] > 1e-3, "the reference is the first model, not the checkpoint"
    assert RunDirectory(run).latest_checkpoint() == STEPS
    assert sorted(metrics(run, 1))[: KILLED + 1] == list(range(KILLED + 1)), "the first attempt's are untouched"


def test_every_group_of_a_killed_and_resumed_run_is_recorded_once_and_remembered_as_recorded(grpo):
    records = read_records(grpo.run)
    batch = OmegaConf.load(RunDirectory(grpo.run).config).data.train_batch_size
    steps = Counter(records["step"].to_pylist())
    assert steps == dict.fromkeys(range(1, STEPS + 1), batch), "no step without its groups, none twice"
    attempts = dict(zip(records["step"].to_pylist(), records["attempt"].to_pylist(), strict=True))
    assert attempts == {step: 1 if step <= SAVED else 2 for step in steps}
    assert set(records["fate"].to_pylist()) == {"trained"} and set(records["size"].to_pylist()) == {8}
    for step in (SAVED, STEPS):
        assert remembered(grpo.run / f"global_step_{step}") == replayed(records, step)


def test_records_agree_with_what_verl_logs(grpo):
    records = read_records(grpo.run).to_pylist()
    for attempt, step in ((1, 7), (2, STEPS)):
        rows = [row for row in records if row["step"] == step]
        logged = metrics(grpo.run, attempt)[step]
        assert np.mean([row["mean"] for row in rows]) == pytest.approx(logged["critic/score/mean"])
        mean_length = sum(row["tokens"] for row in rows) / sum(row["size"] for row in rows)
        assert mean_length == pytest.approx(logged["response_length/mean"])
        assert logged["group/frac_mixed"] == np.mean([row["kind"] == "mixed" for row in rows])
        assert logged["group/count/trained"] == len(rows)
        assert logged["prompts/known"] == len({row["index"] for row in records if row["step"] <= step})
        assert logged["dial/gain/mean"] == pytest.approx(np.mean([row["gain"] for row in rows]))


def test_tensorboard_has_the_same_scalars(grpo):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = grpo.run
    events = EventAccumulator(str(RunDirectory(run).tensorboard)).Reload()
    for name in ("critic/score/mean", "group/frac_mixed", "timing_s/gsd_read"):
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert logged[7] == pytest.approx(metrics(run, 1)[7][name])


def test_a_finished_run_leaves_no_ray_process(grpo):
    assert grpo.left == set()


def test_a_used_run_directory_is_not_gone_on_with_in_silence(grpo):
    run = grpo.run
    again = verl_gsd("train", "algo=grpo", "task=arithmetic", "hardware=cpu", f"trainer.default_local_dir={run}")
    assert again.returncode == 2 and f"resume={run}" in re.sub(r"\s", "", again.stderr)


def test_verls_own_main_ppo_runs_hadw_over_dapo_and_evicts_silent_groups(task, tmp_path):
    """One flag on an existing launch script; that the workers are forks makes it start in half the time."""
    with workers_forked() as command:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "verl.trainer.main_ppo"),
                *("+algo=hadw_dapo", "+task=arithmetic", "+hardware=cpu", "trainer.logger=[console]"),
                *(f"trainer.default_local_dir={tmp_path}/run", f"hydra.run.dir={tmp_path}/hydra"),
                *("data.train_batch_size=8", "trainer.total_training_steps=3", "trainer.save_freq=-1"),
                *("trainer.val_before_train=false", "trainer.test_freq=-1"),
                f"trainer.rollout_data_dir={tmp_path}/rollouts",
                f"ray_kwargs.ray_init.runtime_env.py_executable='{command}'",
            ],
            env=os.environ | {"VERL_GSD_CPU": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=1800,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    seen = metrics(tmp_path / "run", 1)
    assert sorted(seen) == [1, 2, 3]
    assert sum(data.get("training/filter_groups/evicted_samples", 0) for data in seen.values()) > 0
    for step in seen:
        groups = defaultdict(list)
        for line in (tmp_path / "rollouts" / f"{step}.jsonl").read_text().splitlines():
            row = json.loads(line)
            groups[row["uid"].rsplit("_", 2)[0]].append(row["score"])
        assert [len(scores) for scores in groups.values()] == [8] * 8
        assert all(0 < sum(scores) < 8 for scores in groups.values()), "what is trained on disagrees"

    # Every group generated is in the records, by what became of it.
    table = read_records(tmp_path / "run")
    records = table.to_pylist()
    assert {row["fate"] for row in records} == {"trained", "filtered", "surplus"}
    for step, data in seen.items():
        rows = [row for row in records if row["step"] == step]
        fates = Counter(row["fate"] for row in rows)
        assert fates["trained"] == 8
        assert fates["filtered"] == data.get("training/filter_groups/evicted_samples", 0)
        assert fates["surplus"] == data.get("training/filter_groups/discarded_surplus_samples", 0)
        assert all((row["kind"] == "mixed") == (row["fate"] != "filtered") for row in rows)
        assert data["group/count/filtered"] == fates["filtered"]
        assert data["group/frac_mixed"] == pytest.approx((len(rows) - fates["filtered"]) / len(rows))
        # The anchor saw the evicted groups too.
        accuracy = sum(row["correct"] for row in rows) / sum(row["total"] for row in rows)
        assert data["hadw/accuracy"] == pytest.approx(accuracy)
    assert {row["hadw_anchor"] for row in records if row["step"] == 1} == {None}
    replayed_anchors(tmp_path / "run", table, 3)  # every group met the anchor that the steps before it made


def test_solve_rates_spread_as_group_relative_training_needs(task):
    """16 samples at temperature 1 for each of 512 prompts of the training set."""
    import pyarrow.parquet as pq
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from verl_gsd.tasks.arithmetic import compute_score

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(task / "model")
    tokenizer = AutoTokenizer.from_pretrained(task / "model")
    tokenizer.padding_side = "left"
    rows = pq.read_table(task / "train.parquet").to_pylist()[:512]
    text = [tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False) for row in rows]
    batch = tokenizer(text, return_tensors="pt", padding=True, add_special_tokens=False)
    tokens = model.generate(
        **batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=4, num_return_sequences=16
    )
    answers = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    truth = [row["reward_model"]["ground_truth"] for row in rows for _ in range(16)]
    right = [compute_score("arithmetic", answer, wanted)["acc"] for answer, wanted in zip(answers, truth, strict=True)]
    rates = torch.tensor(right).view(-1, 16).mean(dim=1)
    assert 0.3 <= rates.mean() <= 0.6
    assert (rates < 0.1).float().mean() >= 0.15
    assert (rates > 0.9).float().mean() >= 0.15


SAMPLES, PART = 4, 64


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
    with subprocess.Popen([BINARIES / "verl-gsd", *line], stderr=subprocess.PIPE, text=True) as evaluating:
        while evaluating.poll() is None and not list(responses.glob("part_*.parquet")):
            with suppress(subprocess.TimeoutExpired):
                evaluating.wait(0.05)
        evaluating.terminate()
        _, said = evaluating.communicate()
    words = [process.info["cmdline"] or () for process in psutil.process_iter(["cmdline"])]
    left = [found for found in words if "verl_gsd.trainer.generation" in found]
    parts = {file: file.stat().st_mtime_ns for file in responses.iterdir()}
    return SimpleNamespace(code=evaluating.returncode, said=said, left=left, parts=parts)


def test_an_evaluation_that_is_stopped_leaves_no_process_and_the_same_line_goes_on(evaluated):
    stopped = evaluated.stopped
    assert stopped.code == 130 and "The same line goes on from here" in stopped.said
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
    held_out = wilson(round(metrics(grpo.run, 2)[STEPS]["val-core/arithmetic/acc/mean@1"] * HELD_OUT), HELD_OUT)
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
