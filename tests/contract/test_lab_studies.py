"""``verl-gsd lab identity`` and ``lab bias`` on a small policy, with verl's own reading of the data."""

import re
import shutil
from types import SimpleNamespace

import pytest
from transformers import GenerationConfig
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.lab.training.study import StudyPolicy, study_config
from verl_gsd.lab.training.verifier import Reward
from verl_gsd.trainer.reward_failures import Failure


@pytest.fixture(scope="module")
def little_trained(tmp_path_factory):
    """The embedded task with a policy that has learned to answer with a number, and guesses some of them."""
    from verl_gsd.tasks import embedded

    specification = embedded.Specification(train_per_level=8, test_per_level=1, warm_start_steps=60)
    return embedded.ensure(tmp_path_factory.mktemp("little") / "task", specification)


def lab(*words):
    result = CliRunner().invoke(app, ["lab", *map(str, words)], env={"COLUMNS": "200"})
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("command", "algo", "charts"),
    [("bias", "hadw", {"baseline", "factor"}), ("identity", "grpo", {"score-difference", "gradient-norm"})],
)
def test_a_study_prints_and_draws(composing_is_fast, little_trained, tmp_path, command, algo, charts):
    words = [command, f"algo={algo}", "task=arithmetic", f"task.directory={little_trained}", "--groups", "6"]
    code, text = lab(*words, "--output", tmp_path / "page.html", "--png", tmp_path / "png")
    assert code == 0, text
    assert "64 " in text and "mixed" in text.replace("different rewards", "mixed")
    assert {path.stem for path in (tmp_path / "png").iterdir()} == charts
    assert "<html" in (tmp_path / "page.html").read_text(encoding="utf-8")
    if command == "identity":
        (error,) = re.findall(r"largest relative error of a group is ([\d.e+-]+\d)", text)
        assert float(error) < 1e-5
    else:
        rate, accuracy = map(
            float, re.search(r"solve rate is ([\d.]+)\. Of the .*?, ([\d.]+) are right", text).groups()
        )
        assert abs(rate - accuracy) < 5 * (rate / (64 * 6 * 8)) ** 0.5


@pytest.mark.parametrize(("command", "algo"), [("bias", "hadw"), ("identity", "grpo")])
def test_a_policy_without_a_mixed_group_is_named(composing_is_fast, little_trained, tiny_task, command, algo):
    """The words name one policy and --model another one, whose responses are noise."""
    words = [command, f"algo={algo}", "task=arithmetic", f"task.directory={little_trained}"]
    code, text = lab(*words, "--model", tiny_task / "model", "--groups", "1", "actor_rollout_ref.rollout.n=2")
    assert code == 2 and "actor_rollout_ref.rollout.n" in text and "--model" in text


def test_a_study_ends_responses_at_every_end_token_of_the_generation_config(
    composing_is_fast, little_trained, tmp_path
):
    """Here each token ends a response, so that a response is right only if the answer has one token."""
    folder = tmp_path / "model"
    shutil.copytree(little_trained / "model", folder)
    GenerationConfig(eos_token_id=list(range(288))).save_pretrained(folder)
    words = ["algo=grpo", "task=arithmetic", f"task.directory={little_trained}"]
    policy = StudyPolicy(study_config(words), folder)
    rates, groups = policy.measure(1, 8, seed=1)
    assert {len(response) for group in groups for response in group.responses} == {1}
    assert (rates.p == 0).any() and (rates.p > 0).any()


def test_a_study_names_a_prompt_whose_reward_failed(composing_is_fast, little_trained):
    policy = StudyPolicy(study_config(["algo=grpo", "task=arithmetic", f"task.directory={little_trained}"]))
    failed = Reward(0.0, Failure("none", "returned None").as_extra_info())
    policy._verifier = SimpleNamespace(reward=lambda row, response: failed)
    with pytest.raises(ConfigError, match=r"returned None \(data_source=arithmetic, index=\d+\)\. Correct this prompt"):
        policy.measure(1, 2, seed=1)


def test_validation_reports_exact_accuracy(compose_fast, little_trained, tmp_path):
    from verl_gsd.lab.training.trainer import LabTrainer

    words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={little_trained}"]
    sizes = ["data.train_batch_size=4", "trainer.total_training_steps=1", f"trainer.default_local_dir={tmp_path}"]
    config, _ = compose_fast(*words, *sizes)
    trainer = LabTrainer(config)
    metrics = trainer.validate()
    levels = {name.split("/")[-1]: value for name, value in metrics.items() if name.startswith("exact/level/")}
    assert levels.keys() == {"add_3", "add_4", "add_5", "add_6", "add_7", "add_8", "mixed_3", "mixed_4"}
    assert metrics["exact/accuracy"] == pytest.approx(sum(levels.values()) / 8), "one prompt per level"
    assert 0 < metrics["exact/accuracy"] < 1 and 0 < metrics["exact/slack"] < 1
    assert not [name for name in metrics if re.search("max|min|sum|total", name)]

    assert not [name for name in metrics if name.startswith("val/outside/")]

    (tmp_path / "signed.py").write_text("def compute_score(*args, **kwargs):\n    return -1.0\n")
    config, _ = compose_fast(*words, *sizes, f"reward.custom_reward_function.path={tmp_path}/signed.py")
    signed = LabTrainer(config).validate()
    assert signed["val-core/arithmetic/acc/mean@1"] == -1
    assert signed["val/outside/arithmetic"] == signed["val/prompts/arithmetic"], "one response per prompt"

    config, _ = compose_fast(*words, *sizes, "reward.custom_reward_function.path=pkg://verl_gsd.tasks.maths")
    assert not [name for name in LabTrainer(config).validate() if name.startswith("exact/")]
