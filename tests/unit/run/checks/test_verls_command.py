"""Checks of runs that verl's own command starts. They see a config and not the words of a line."""

import pytest
from omegaconf import OmegaConf
from prepare_runs import lines, run

from verl_gsd.run.checks.verls_command import check_verls_command
from verl_gsd.run.own_config import without_secrets, write_own_config
from verl_gsd.rundir import RunDirectory

VERLS = ("gae", "grpo", "grpo_vectorized", "rloo", "reinforce_plus_plus")
ALPHA, ESTIMATOR = "algorithm.gsd.alpha", "algorithm.adv_estimator"
SWITCH, MODE = "algorithm.norm_adv_by_std_in_grpo", "trainer.v1.trainer_mode=gsd_sync"


@pytest.fixture
def problems(compose_fast, tmp_path):
    """(words) -> what the trainer rejects."""

    def found(*words):
        folder = f"trainer.default_local_dir={tmp_path}/run"
        return list(check_verls_command(compose_fast("task=arithmetic", "hardware=cpu", folder, *words)[0], VERLS))

    return found


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        (["algo=gsd", f"{ESTIMATOR}=grpo"], [f"{ESTIMATOR}=gsd", f"{ALPHA}=null"]),
        (["algo=gsd", f"{ESTIMATOR}=gae"], [f"{ESTIMATOR}=gsd", f"{ALPHA}=null"]),
        (["algo=grpo", f"{ESTIMATOR}=rloo"], [f"{ESTIMATOR}=gsd", f"{ALPHA}=null"]),
        (["algo=grpo", f"{ALPHA}=0", f"{ESTIMATOR}=grpo"], [f"{ESTIMATOR}=gsd", f"{ALPHA}=null"]),
        (["algo=grpo", f"{SWITCH}=false"], [f"{ALPHA}=0", f"{SWITCH}=true"]),
        (["algo=hadw", f"{SWITCH}=false"], [f"{ALPHA}=0", f"{SWITCH}=true"]),
    ],
)
def test_a_script_that_trains_another_alpha_than_the_algorithm_is_rejected(problems, words, remedies):
    (problem,) = problems(*words)
    for remedy in remedies:
        assert remedy in problem or f"Remove {ESTIMATOR}" in problem
        assert problems(*words, remedy) == []


@pytest.mark.parametrize(
    "words",
    [
        ["algo=grpo"],
        ["algo=dr_grpo"],
        ["algo=gsd"],
        ["algo=gvpo"],
        ["algo=grpo", f"{ESTIMATOR}=grpo"],
        ["algo=dr_grpo", f"{ESTIMATOR}=grpo_vectorized"],
        ["algo=grpo", f"{ESTIMATOR}=of_another_package"],
    ],
)
def test_a_script_whose_alpha_is_that_of_the_algorithm_passes(problems, words):
    assert problems(*words) == []


def test_a_folder_with_the_run_of_another_algorithm_is_rejected(problems, compose_fast, tmp_path):
    folder = RunDirectory(tmp_path / "run")
    before, _ = compose_fast("task=arithmetic", "hardware=cpu", "algo=grpo", MODE)
    write_own_config(without_secrets(before), folder, 1)
    folder.metrics(1).parent.mkdir()
    folder.metrics(1).write_text('{"step": 20, "data": {}}\n')
    assert problems("algo=dr_grpo") == [], "it has no checkpoint"
    folder.checkpoint(20).mkdir()
    folder.marker.write_text("20")
    for word in ("algo=dr_grpo", "algo=gspo", "algo=hadw", "algo=gvpo", "algo=dapo"):
        (problem,) = problems(word)
        assert "had another algorithm" in problem and str(folder.checkpoint(20)) in problem
        path = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={folder.checkpoint(20)}"]
        assert problems(word, *path) == problems(word, "trainer.resume_mode=disable") == []
    assert problems("algo=grpo") == problems("algo=grpo", "actor_rollout_ref.actor.optim.lr=0.5") == []
    assert problems("algo=grpo", "budget=adaptive", "sampler=disagreement") == []


def test_prepared_data_without_its_verifier_is_rejected(problems, tmp_path):
    """verl has a scorer of its own for some sources, which rejects right answers in other notations."""
    run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})))
    words = ["algo=grpo", f"data.train_files={tmp_path}/data/mine/train.parquet"]
    (problem,) = problems(*words, "reward.custom_reward_function.path=null")
    assert problem.startswith("data.train_files=") and "no reward function is set" in problem
    assert problems(*words, "reward.custom_reward_function.path=pkg://verl_gsd.tasks.maths") == []


def test_a_run_that_is_restored_from_yaml_equals_its_config(compose_fast, tmp_path):
    config, _ = compose_fast("task=arithmetic", "hardware=cpu", "algo=hadw")
    folder = RunDirectory(tmp_path)
    write_own_config(without_secrets(config), folder, 1)
    assert OmegaConf.create(folder.read_yaml(folder.config)).algorithm.gsd == config.algorithm.gsd
