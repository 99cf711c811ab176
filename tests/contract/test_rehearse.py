"""``train --rehearse`` up to the start of its run: the faults that it finds before Ray, and what it prints."""

import json
import re

import pyarrow.parquet as pq
import pytest
import rehearsal_data
import yaml
from omegaconf import OmegaConf
from places import SUPPORT
from typer.testing import CliRunner

from verl_gsd.cli import rehearse
from verl_gsd.cli.main import app
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.run import footprint, launch
from verl_gsd.run.checks.prompt_tokens import prompt_tokens_of
from verl_gsd.run.rehearsal.model import write_tiny_model

KEY = "reward.custom_reward_function"
MODEL = "actor_rollout_ref.model.path"
TWO_SMALL_GPUS = ("hardware.gpus_per_node=2", "hardware.gpu_memory_gib=22", "actor_rollout_ref.model.lora_rank=8")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return rehearsal_data.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def own_data(tmp_path):
    """The folder that ``verl-gsd prepare`` makes of 64 problems of a user."""
    rows = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(64)]
    for split, part in (("test", rows[:8]), ("train", rows[8:])):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        words = ("--input", f"{tmp_path}/rows.jsonl", "--data", str(tmp_path), "--split", split)
        assert CliRunner().invoke(app, ["prepare", "mine", *words]).exit_code == 0
    return tmp_path / "mine"


@pytest.fixture
def rehearsed(data, tmp_path, monkeypatch):
    """(words) -> (exit code, what was printed, the configs whose run would have started)."""
    monkeypatch.setenv("VERL_GSD_DATA", str(data))
    monkeypatch.setenv("COLUMNS", "5000")
    started = []
    monkeypatch.setattr(rehearse, "_train", lambda rehearsed, *others, **named: started.append(rehearsed))

    recipe = ("recipe=gsd/qwen2.5_math_1.5b", "hardware=8xa100_80g", f"trainer.default_local_dir={tmp_path}/run")

    def run(*words, line=(*recipe, f"{MODEL}={data}/models/Qwen2.5-Math-7B-16k")):
        done = CliRunner().invoke(app, ["train", *line, *words, "--rehearse"])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output, started

    return run


def wrong(output):
    """The lines below ``found wrong``."""
    return re.search(r"found wrong:\n(.*?)\na rehearsal cannot know:", output, re.DOTALL)[1]


def report(folder):
    """The file of the report, which has all keys and values."""
    return (folder / "run-rehearsal" / "report.txt").read_text()


def test_a_right_config_starts_its_run_and_both_lists_are_shown(rehearsed, data, tmp_path):
    code, output, (config,) = rehearsed("algorithm.gsd.ddof=1")
    assert code == 0 and wrong(output).strip() == "- nothing"
    assert config.trainer.device == "cpu" and config.trainer.total_training_steps == 2
    title = re.escape(f"replaced (keys and values: {tmp_path}/run-rehearsal/report.txt):")
    preserved, replaced = re.search(rf"preserved:\n(.*?)\n{title}\n(.*?)\nseen to work:", output, re.DOTALL).groups()
    assert "algorithm.adv_estimator=gsd" in preserved and "updates per step: 1" in preserved
    assert "algorithm.gsd.alpha=0.5" in preserved and "algorithm.gsd.ddof=1" in preserved
    assert "algorithm.gsd.poll_interval" not in preserved, "it is replaced"
    assert re.search(r"^  prompts and responses are short: \d+ keys$", replaced, re.MULTILINE) and "->" not in replaced
    assert "data.max_response_length 3072 -> 16" in report(tmp_path) and preserved in report(tmp_path)
    assert "data.max_response_length 3072 -> 16" not in output
    checked = re.search(
        r"accepts all (\d+) that were checked, (\d+) of data.train_files and (\d+) of data.val_f", output
    )
    assert int(checked[1]) == int(checked[2]) + int(checked[3]) and int(checked[2]) == 128
    copy, command = output.rstrip().splitlines()[-2:]
    files = [f"{data}/bigmath/train.parquet", f"{data}/math500/test.parquet", f"{data}/models/Qwen2.5-Math-7B-16k"]
    assert copy == f"On the GPU machine: copy {', '.join(files)} there, correct paths that differ, then run:"
    assert command.startswith("verl-gsd train ")
    assert {"recipe=gsd/qwen2.5_math_1.5b", "hardware=8xa100_80g", "algorithm.gsd.ddof=1"} <= set(command.split())
    assert "--rehearse" not in command
    assert "the estimated memory fits the GPUs" in output and "NCCL" in output
    rows = pq.read_table(config.data.train_files[0])
    assert rows.column_names == ["data_source", "prompt", "reward_model", "extra_info"] and len(rows) == 32
    code, output, _ = rehearsed()
    assert code == 2 and "run-rehearsal" in output, "an earlier rehearsal is not overwritten"


def test_own_data_is_rehearsed_with_its_files_its_verifier_and_its_sizes(rehearsed, data, own_data, tmp_path):
    model = f"{data}/models/Qwen2.5-Math-7B-16k"
    line = ("algo=grpo", f"data={own_data}", f"model={model}", f"trainer.default_local_dir={tmp_path}/run")
    code, output, (config,) = rehearsed(line=(*line, "hardware=gpu", *TWO_SMALL_GPUS))
    assert code == 0, output
    function = config.reward.custom_reward_function.reward_kwargs.rehearsal
    assert (function.path, function.name) == ("pkg://verl_gsd.tasks.maths", "compute_score")
    assert set(pq.read_table(config.data.train_files[0])["data_source"].to_pylist()) == {"mine"}
    assert "data.train_batch_size 8 -> 8" not in report(tmp_path) and "updates per step: 1" in output
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


DAPO = ("recipe=hadw/qwen3_4b_base_dapo", "hardware=8xa100_80g")
LORA = ("recipe=start/gsm8k_qwen2.5_0.5b_lora", "hardware=gpu", *TWO_SMALL_GPUS)
OWN_DATA = ("algo=hadw", "data={own}", "hardware=gpu", *TWO_SMALL_GPUS)
#: What the launcher sets for every run: where its loggers write, and the number of the attempt.
LAUNCHER = "ray_kwargs.ray_init.runtime_env.env_vars."


@pytest.mark.parametrize("line", [DAPO, LORA, OWN_DATA], ids=lambda line: line[0])
def test_every_key_that_differs_from_the_run_is_in_the_report(data, own_data, tmp_path, monkeypatch, line):
    """The config of the run is that of --dry-run. The rehearsal's is the file that its trainer would read."""
    monkeypatch.setenv("VERL_GSD_DATA", str(data))
    started = []

    def stub_that_trains_nothing(run, attempt, config, **callbacks):
        started.append(leaves(run.config.read_text()))

    monkeypatch.setattr(launch, "train", stub_that_trains_nothing)
    model = f"{MODEL}={data}/models/Qwen2.5-Math-7B-16k"
    words = [word.format(own=own_data) for word in (*line, model, f"trainer.default_local_dir={tmp_path}/run")]
    dry_run = CliRunner().invoke(app, ["train", *words, "--dry-run"])
    assert dry_run.exit_code == 0, dry_run.stderr
    CliRunner().invoke(app, ["train", *words, "--rehearse"])
    replaced = re.search(r"\nreplaced:\n(.*?)\n(?! )", report(tmp_path), re.DOTALL)[1]
    original, (first, second) = leaves(dry_run.stdout), started
    for values in (first, second):
        for key in launcher_keys(tmp_path):
            values.pop(key)
    for key in {*original, *first}:
        if original.get(key) != first.get(key):
            change = f"{key} {shown(original.get(key))} -> {shown(first.get(key))}"
            assert f": {change}" in replaced or f"; {change}" in replaced
    assert {key for key in {*first, *second} if first.get(key) != second.get(key)} == {"trainer.total_training_steps"}
    assert first["trainer.total_training_steps"] == 2 and second["trainer.total_training_steps"] == 3
    assert "2 steps, a checkpoint, a resume and one more step: " in replaced


def leaves(text):
    return dict(dotted_leaves(yaml.safe_load(text)))


def launcher_keys(folder):
    return [f"{LAUNCHER}{name}" for name in launch._logger_environment(launch.RunDirectory(folder), 1)]


def shown(value):
    """A value as the list of replacements shows it: the end of a long one."""
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"...{text[-60:]}"


def with_own_dataset(folder, name, rows=200):
    """The words for a dataset class of a user and its files of 200 rows."""
    table = [{"question": f"What is {n} + {n}?", "result": str(2 * n), "number": n} for n in range(rows)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    files = [f"data.{split}_files={folder}/questions.jsonl" for split in ("train", "val")]
    return (*files, f"data.custom_cls.path={SUPPORT}/rehearsal_datasets.py", f"data.custom_cls.name={name}")


def test_a_dataset_class_of_the_user_reads_the_users_files_with_a_limit(rehearsed, tmp_path):
    code, output, (config,) = rehearsed(*with_own_dataset(tmp_path, "Questions"))
    assert code == 0, output
    assert config.data.custom_cls.name == "Questions" and "data.custom_cls.name=Questions" in output
    assert config.data.train_files == f"{tmp_path}/questions.jsonl"
    assert not re.search(r"data\.train_files \S+ ->", report(tmp_path))
    assert config.data.train_max_samples == 32 and config.data.val_max_samples == 4
    assert "data.train_max_samples -1 -> 32" in report(tmp_path)
    assert 0 < config.data.max_prompt_length < 300, "that of the prompts of the class"
    assert "the reward function accepts all 36 that were checked" in output


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("EndlessQuestions", (), "has 200 rows, although its argument max_samples was 32"),
        ("BrokenQuestions", (), "RuntimeError: the index is damaged"),
        ("Nothing", (), "AttributeError"),
        ("Questions", ("data.shuffle=true", "data.seed=null"), "Set data.seed=1"),
        ("Questions", ("data.prompt_key=problem",), "has no rows for data.train_files"),
    ],
)
def test_a_dataset_class_that_cannot_be_rehearsed_is_found(rehearsed, tmp_path, name, words, said):
    code, output, started = rehearsed(*with_own_dataset(tmp_path, name), *words)
    assert code == 1 and not started and said in wrong(output)


def test_a_small_data_set_need_not_be_limited_by_the_class(rehearsed, tmp_path):
    code, output, _ = rehearsed(*with_own_dataset(tmp_path, "EndlessQuestions", rows=100))
    assert code == 0, output
    assert "the reward function accepts all 200 that were checked" in output


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
    assert "actor_rollout_ref.actor.ppo_mini_batch_size=3" in wrong(output) and "Set actor_rollout_ref" in wrong(output)


@pytest.mark.parametrize("name", ["compute_score_returns_none", "compute_score_raises"])
def test_a_reward_function_that_returns_none_or_raises_is_found(rehearsed, name):
    code, output, started = rehearsed(f"{KEY}.path={SUPPORT}/rehearsal_rewards.py", f"{KEY}.name={name}")
    assert code == 1 and not started
    assert f"{KEY}.name={name}" in wrong(output)


def test_a_reward_function_without_the_verdict_that_the_sampler_reads_is_found(rehearsed):
    function = (f"{KEY}.path={SUPPORT}/rehearsal_rewards.py", f"{KEY}.name=compute_score_without_acc")
    code, output, started = rehearsed(*function, "sampler=disagreement")
    assert code == 1 and not started
    assert "algorithm.gsd.sampler reads acc" in wrong(output) and "returns no acc" in wrong(output)


def test_a_reward_function_without_a_verdict_that_nothing_reads_is_warned_of(rehearsed):
    function = (f"{KEY}.path={SUPPORT}/rehearsal_rewards.py", f"{KEY}.name=compute_score_without_acc")
    code, output, started = rehearsed(*function)
    assert code == 0 and started and wrong(output).strip() == "- nothing"
    assert re.search(rf"\nwarnings:\n  - {KEY}: it returns no acc for row 0 .*no pass@K.*\nfound wrong:", output)


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


@pytest.mark.parametrize(
    ("word", "why", "remedy"),
    [
        ("trainer.v1.trainer_mode=gsd_separate_async", "NCCL", "trainer.v1.trainer_mode=gsd_colocate_async"),
        ("model_engine=megatron", "only FSDP2", "model_engine=dp"),
    ],
)
def test_what_a_cpu_cannot_run_is_rejected_and_the_named_setting_can_be_rehearsed(rehearsed, word, why, remedy):
    code, output, started = rehearsed(word)
    assert code == 1 and not started
    assert f"{word}: " in wrong(output) and why in wrong(output) and f"Rehearse with {remedy}" in wrong(output)
    code, output, started = rehearsed(remedy)
    assert code == 0 and started, output


@pytest.mark.parametrize("word", ["--dry-run", "resume=somewhere"])
def test_what_does_not_go_with_a_rehearsal_is_rejected(rehearsed, word):
    code, output, started = rehearsed(word)
    assert code == 2 and not started and word.partition("=")[0] in output
