"""``train --rehearse`` up to the start of its run: the faults that it finds before Ray, and what it prints."""

import json
import re

import pyarrow.parquet as pq
import pytest
import rehearsal_data
from omegaconf import OmegaConf
from places import SUPPORT
from typer.testing import CliRunner

from verl_gsd.cli import rehearse
from verl_gsd.cli.main import app
from verl_gsd.run import footprint
from verl_gsd.run.checks.prompt_tokens import prompt_tokens_of
from verl_gsd.run.rehearsal.model import write_tiny_model

KEY = "reward.custom_reward_function"
MODEL = "actor_rollout_ref.model.path"
TWO_SMALL_GPUS = ("hardware.gpus_per_node=2", "hardware.gpu_memory_gib=22", "actor_rollout_ref.model.lora_rank=8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rehearsal_data.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def rehearsed(data, tmp_path, monkeypatch):
    """(words) -> (exit code, what was printed, the configs whose run would have started)."""
    monkeypatch.setenv("VERL_GSD_DATA", str(data))
    monkeypatch.setenv("COLUMNS", "5000")
    started = []
    monkeypatch.setattr(rehearse, "_train", lambda rehearsed, *others: started.append(rehearsed))

    recipe = ("recipe=gsd/qwen2.5_math_1.5b", "hardware=8xa100_80g", f"trainer.default_local_dir={tmp_path}/run")

    def run(*words, line=(*recipe, f"{MODEL}={data}/models/Qwen2.5-Math-7B-16k")):
        done = CliRunner().invoke(app, ["train", *line, *words, "--rehearse"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output, started

    return run


def wrong(output):
    """The lines below ``found wrong``."""
    return re.search(r"found wrong:\n(.*?)\na rehearsal cannot know:", output, re.DOTALL)[1]


def test_a_right_config_starts_its_run_and_both_lists_are_printed(rehearsed, tmp_path):
    code, output, (config,) = rehearsed()
    assert code == 0 and wrong(output).strip() == "- nothing"
    assert config.trainer.device == "cpu" and config.trainer.total_training_steps == 2
    preserved, replaced = re.search(r"preserved:\n(.*?)\nreplaced:\n(.*?)\nseen to work:", output, re.DOTALL).groups()
    assert "algorithm.adv_estimator=gsd" in preserved and "updates per step: 1" in preserved
    assert "data.max_response_length 3072 -> 16" in replaced
    assert "the estimated memory fits the GPUs" in output and "NCCL" in output
    rows = pq.read_table(config.data.train_files[0])
    assert rows.column_names == ["data_source", "prompt", "reward_model", "extra_info"] and len(rows) == 16
    assert (tmp_path / "run-rehearsal" / "report.txt").is_file()
    code, output, _ = rehearsed()
    assert code == 2 and "run-rehearsal" in output, "an earlier rehearsal is not overwritten"


def test_a_line_with_own_data_is_rehearsed_with_its_files_its_verifier_and_its_sizes(rehearsed, data, tmp_path):
    rows = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(64)]
    for split, part in (("test", rows[:8]), ("train", rows[8:])):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        words = ("--input", f"{tmp_path}/rows.jsonl", "--data", str(tmp_path), "--split", split)
        assert CliRunner().invoke(app, ["prepare", "mine", *words]).exit_code == 0
    model = f"{data}/models/Qwen2.5-Math-7B-16k"
    line = ("algo=grpo", f"data={tmp_path}/mine", f"model={model}", f"trainer.default_local_dir={tmp_path}/run")
    code, output, (config,) = rehearsed(line=(*line, "hardware=gpu", *TWO_SMALL_GPUS))
    assert code == 0, output
    function = config.reward.custom_reward_function.reward_kwargs.rehearsal
    assert (function.path, function.name) == ("pkg://verl_gsd.tasks.maths", "compute_score")
    assert set(pq.read_table(config.data.train_files[0])["data_source"].to_pylist()) == {"mine"}
    assert "data.train_batch_size 8 -> 8" not in output and "updates per step: 1" in output
    assert "whether memory fits" not in output and "the estimated memory fits" in output


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-4B-Base", "meta-llama/Llama-3.2-3B-Instruct"]
)
def test_verl_builds_prompts_with_the_stand_in_for_a_model_that_cannot_be_loaded(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = OmegaConf.create({"actor_rollout_ref": {"model": {"path": name}}, "data": {}})
    assert write_tiny_model(config, tmp_path / "model").stand_ins
    config.actor_rollout_ref.model.path = str(tmp_path / "model")
    tokens = prompt_tokens_of(config)
    (length,) = tokens.lengths([[{"role": "user", "content": "1 + 1"}]], 100)
    assert length > len("1 + 1")


def test_checks_that_could_not_be_made_are_not_seen_to_work(rehearsed, monkeypatch):
    monkeypatch.setattr(footprint, "shape_of", lambda config: None)
    code, output, _ = rehearsed("hardware.gpu_memory_gib=null")
    assert code == 0 and "the estimated memory fits" not in output and "the model's positions" not in output
    assert "whether lengths and memory fit, because the sizes of" in output


def test_a_wrong_column_is_found(rehearsed):
    code, output, started = rehearsed("data.prompt_key=question")
    assert code == 1 and not started
    assert "no column question" in wrong(output) and "data.prompt_key" in wrong(output)


def test_a_batch_that_does_not_divide_is_found(rehearsed):
    words = ("actor_rollout_ref.actor.ppo_mini_batch_size=3", "actor_rollout_ref.rollout.n=5")
    code, output, started = rehearsed(*words)
    assert code == 1 and not started
    assert "actor_rollout_ref.actor.ppo_mini_batch_size=3" in wrong(output) and "Set another" in wrong(output)


@pytest.mark.parametrize("name", ["compute_score_returns_none", "compute_score_raises"])
def test_a_reward_function_that_returns_none_or_raises_is_found(rehearsed, name):
    code, output, started = rehearsed(f"{KEY}.path={SUPPORT}/rehearsal_rewards.py", f"{KEY}.name={name}")
    assert code == 1 and not started
    assert f"{KEY}.name={name}" in wrong(output)


def test_references_that_the_reward_function_rejects_are_found(rehearsed, tmp_path):
    table = rehearsal_data.table("bigmath", "train", 256)
    rows = table.to_pylist()
    rows[5]["reward_model"]["ground_truth"] = ""
    path = tmp_path / "train.parquet"
    pq.write_table(table.from_pylist(rows, table.schema), path)
    code, output, _ = rehearsed(f"data.train_files={path}")
    assert code == 1 and "row 5: ''" in wrong(output)


def test_a_template_without_a_generation_prompt_is_found(rehearsed, tmp_path):
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    model = rehearsal_data.write_model(tmp_path / "model", 4096, template)
    code, output, _ = rehearsed(f"{MODEL}={model}")
    assert code == 1
    assert "generation prompt" in wrong(output) and "custom_chat_template" in wrong(output)


def test_lengths_beyond_the_models_positions_are_found(rehearsed):
    code, output, started = rehearsed("data.max_response_length=20000")
    assert code == 1 and not started and "supports 16384" in wrong(output)


def test_data_that_is_missing_is_found(rehearsed):
    code, output, started = rehearsed("data.train_files=/nowhere/train.parquet")
    assert code == 1 and not started and "verl-gsd prepare" in wrong(output)


@pytest.mark.parametrize("word", ["--dry-run", "resume=somewhere"])
def test_what_does_not_go_with_a_rehearsal_is_rejected(rehearsed, word):
    code, output, started = rehearsed(word)
    assert code == 2 and not started and word.partition("=")[0] in output
