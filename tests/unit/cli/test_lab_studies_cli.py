"""Mistakes on the lines of ``verl-gsd lab identity`` and ``lab bias``, which are found before verl is imported."""

import pytest
from typer.testing import CliRunner

from verl_gsd.cli.main import app

WORDS = ("algo=hadw", "task=arithmetic")


def lab(*words):
    result = CliRunner().invoke(app, ["lab", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize("command", ["identity", "bias"])
@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("algo=hadw",), "task is missing"),
        ((*WORDS, "resume=runs/mine"), "resume=runs/mine"),
        ((*WORDS, "task.directory=absent"), "absent/model"),
        ((*WORDS, "reward.custom_reward_function.path=pkg://verl_gsd.tasks.maths"), "pkg://verl_gsd.tasks.maths"),
        ((*WORDS, "actor_rollout_ref.rollout.top_p=0.9"), "top_p=0.9"),
        ((*WORDS, "--model", "absent"), "--model absent"),
        ((*WORDS, "--output", "page.txt"), "--output page.txt"),
        ((*WORDS, "actor_rollout_ref.rollout.n=1"), "rollout.n=1: a group needs two responses"),
        ((*WORDS, "trainer.nnodes=7"), "trainer.nnodes=7: the laboratory"),
        ((*WORDS, "hardware=gpu"), "hardware=gpu: the laboratory trains on one core"),
        ((*WORDS, "actor_rollout_ref.actor.optim.lr=1"), "optim.lr=1: this command trains nothing"),
        ((*WORDS, "trainer.test_freq=5"), "trainer.test_freq=5: this command trains nothing"),
        ((*WORDS, "algorithm.filter_groups.enable=true"), "filter_groups.enable=true: this command trains nothing"),
        ((*WORDS, "algorithm.gsd.hadw.n_min=2"), "algorithm.gsd.hadw.n_min=2: this command trains nothing"),
        ((*WORDS, "actor_rollout_ref.rollout.seed=2"), "Remove the key, and use --seed"),
        ((*WORDS, "--model", "absent", "actor_rollout_ref.model.path=other"), "model.path=other: --model sets another"),
    ],
)
def test_a_mistake_is_named(composing_is_fast, command, words, key):
    code, text = lab(command, *words)
    assert code == 2 and key in text


def test_the_identity_reads_no_setting_of_the_algorithm(composing_is_fast):
    code, text = lab("identity", *WORDS, "algorithm.gsd.hadw.preset=soft", "task.directory=absent")
    assert code == 2 and "algorithm.gsd.hadw.preset=soft: this command trains nothing" in text
    _, text = lab("bias", *WORDS, "algorithm.gsd.hadw.preset=soft", "task.directory=absent")
    assert "absent/model" in text, "and nothing else is wrong"


def test_the_bias_needs_a_factor(composing_is_fast):
    for words, key in (
        (("algo=grpo", "task=arithmetic"), "algorithm.gsd.hadw"),
        ((*WORDS, "algorithm.gsd.hadw.preset=off"), "preset=off"),
        ((*WORDS, "algorithm.gsd.hadw.lambda_scale=-1"), "lambda_scale=-1"),
    ):
        code, text = lab("bias", *words)
        assert code == 2 and key in text
