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
    ],
)
def test_a_mistake_is_named(composing_is_fast, command, words, key):
    code, text = lab(command, *words)
    assert code == 2 and key in text


def test_the_bias_needs_a_factor(composing_is_fast):
    for words, key in (
        (("algo=grpo", "task=arithmetic"), "algorithm.gsd.hadw"),
        ((*WORDS, "algorithm.gsd.hadw.preset=off"), "preset=off"),
        ((*WORDS, "algorithm.gsd.hadw.lambda_scale=-1"), "lambda_scale=-1"),
    ):
        code, text = lab("bias", *words)
        assert code == 2 and key in text
