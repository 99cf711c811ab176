"""The lists of a rehearsal: what is preserved, what is replaced, and what to run next."""

import shlex
from pathlib import Path

from omegaconf import OmegaConf

from verl_gsd.run.compose import parse_line
from verl_gsd.run.rehearsal.config import Replacement
from verl_gsd.run.rehearsal.report import next_lines, preserved_lines, replaced_lines, replaced_summary

CHANGES = [
    Replacement("data.max_response_length", 3072, 16, "short"),
    Replacement("trainer.device", "cuda", "cpu", "a CPU"),
    Replacement("data.max_prompt_length", 1024, 100, "short"),
]


def preserved(values, replacements=(), **defaults):
    config = OmegaConf.create()
    for key, value in values.items():
        OmegaConf.update(config, key, value, force_add=True)
    return list(preserved_lines(config, 3, replacements, {key.replace("__", "."): defaults[key] for key in defaults}))


def test_preserved_sections_have_the_values_that_the_line_and_its_groups_set():
    optim = {"lr": 1e-6, "betas": [0.9, 0.999], "_target_": "verl.Optim", "clip": None}
    lines = preserved(
        {"algorithm.gsd": {"alpha": 0.5, "hadw": {"eta": 1.0}}, "actor_rollout_ref.actor.optim": optim},
        actor_rollout_ref__actor__optim__betas=[0.9, 0.999],
        actor_rollout_ref__actor__optim__lr=1e-5,
    )
    assert lines[1:4] == [
        "  stages: algorithm.gsd.alpha=0.5, algorithm.gsd.hadw.eta=1.0",
        "  loss: actor_rollout_ref.actor.optim.lr=1e-06",
        "  updates per step: 3",
    ]


def test_a_replaced_key_is_not_preserved():
    replacements = [Replacement("algorithm.gsd.poll_interval", 1.0, 0.1, "a CPU")]
    lines = preserved({"algorithm.gsd": {"alpha": 0.5, "poll_interval": 0.1}}, replacements)
    assert lines[1] == "  stages: algorithm.gsd.alpha=0.5"


def test_replaced_keys_are_in_the_file_and_their_number_on_the_terminal():
    assert list(replaced_lines(CHANGES)) == [
        "replaced:",
        "  short: data.max_response_length 3072 -> 16; data.max_prompt_length 1024 -> 100",
        "  a CPU: trainer.device cuda -> cpu",
    ]
    assert list(replaced_summary(CHANGES, Path("/r/report.txt"))) == [
        "replaced (keys and values: /r/report.txt):",
        "  short: 2 keys",
        "  a CPU: 1 key",
    ]


def test_the_command_for_the_gpu_machine_is_the_line_itself(tmp_path):
    train, test, rewards = (tmp_path / name for name in ("train.parquet", "test.parquet", "rewards.py"))
    for path in (train, test, rewards):
        path.touch()
    config = OmegaConf.create(
        {
            "data": {"train_files": [str(train)], "val_files": str(test)},
            "actor_rollout_ref": {"model": {"path": "lab/public"}},
            "reward": {"custom_reward_function": {"path": "pkg://mine"}},
        }
    )
    copy, command = next_lines(parse_line(["algo=grpo", "task=arithmetic", "hardware=8xa100_80g", "+a='b c'"]), config)
    assert copy == f"On the GPU machine: copy {train}, {test} there, correct paths that differ, then run:"
    assert shlex.split(command)[:2] == ["verl-gsd", "train"]
    assert set(shlex.split(command)[2:]) == {"algo=grpo", "task=arithmetic", "hardware=8xa100_80g", "+a='b c'"}
    config.actor_rollout_ref.model.path, config.reward.custom_reward_function.path = str(tmp_path), str(rewards)
    copy, _ = next_lines(parse_line(["algo=grpo", "task=arithmetic"]), config)
    assert f"copy {train}, {test}, {rewards}, {tmp_path} there" in copy
    copy, _ = next_lines(parse_line(["algo=grpo", f"data={tmp_path}", "model=a/b"]), config)
    assert f"copy {tmp_path} there" in copy, "the folder contains the files"
    copy, _ = next_lines(
        parse_line(["algo=grpo", "task=arithmetic"]), OmegaConf.create({"data": {"train_files": "hdfs://a/b.parquet"}})
    )
    assert copy == "On the GPU machine: run:"
