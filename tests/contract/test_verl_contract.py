"""Every name and parameter of verl and its queue that we use, one test each. ``verl-gsd contract`` lists the same."""

import pytest
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.run import verl_contract

SOURCE = verl_contract.source_of()
NAMES, KEYS = verl_contract.assumptions(), verl_contract.config_keys()
ALL = [*NAMES, *KEYS]


@pytest.mark.parametrize("assumption", NAMES, ids=lambda one: f"{one.used_in}: {one}")
def test_holds(assumption):
    assert SOURCE.is_read(assumption.module)
    assert verl_contract.check(SOURCE, [assumption]) == []


def test_verls_config_has_the_keys_that_our_files_set():
    assert len(KEYS) > 50 and verl_contract.check_config(SOURCE, KEYS) == []
    gone = verl_contract.Assumption("config/algo/x.yaml", verl_contract.CONFIG, "actor_rollout_ref.actor.gone")
    (broken,) = verl_contract.check_config(SOURCE, [*KEYS, gone])
    assert (broken.assumption, broken.problem) == (gone, "verl's config does not have this key")


@pytest.mark.parametrize(
    "key",
    [
        "data.train_max_samples",
        "trainer.max_actor_ckpt_to_keep",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
        "actor_rollout_ref.actor.ppo_epochs",
        "actor_rollout_ref.actor.fsdp_config.model_dtype",
        "reward.reward_model.n_gpus_per_node",
        "skip.rollout_tq.enable",
    ],
)
def test_keys_that_our_code_reads_are_assumptions(key):
    """Without them, a command would end with a ConfigAttributeError of OmegaConf."""
    assert key in {assumption.path for assumption in KEYS}


def test_the_command_says_so():
    done = CliRunner().invoke(app, ["contract"])
    assert done.exit_code == 0, done.output
    assert f"verl {verl_contract.version_in(SOURCE)}: all {len(ALL)} assumptions hold." in done.output


def test_a_checkout_without_a_trainer_breaks_what_the_trainer_needs(tmp_path):
    (tmp_path / "verl" / "version").mkdir(parents=True)
    (tmp_path / "verl" / "__init__.py").write_text("")
    (tmp_path / "verl" / "version" / "version").write_text("9.9\n")
    done = CliRunner().invoke(app, ["contract", "--verl", str(tmp_path)])
    assert done.exit_code == 1 and f"of {len(ALL)} assumptions do not hold" in done.output
    assert "verl 9.9" in done.output and "this module does not exist" in done.output
    assert "Runs that use verl-gsd are rejected with this verl." in done.output


def test_a_folder_without_verl_is_rejected(tmp_path):
    done = CliRunner().invoke(app, ["contract", "--verl", str(tmp_path)])
    assert done.exit_code == 2 and f"--verl {tmp_path}: no package verl in this folder." in " ".join(
        done.stderr.split("\n")
    )
