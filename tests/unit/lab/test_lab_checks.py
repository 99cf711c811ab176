"""The laboratory trains what it can honour, and rejects everything else with the key and the remedy."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from verl_gsd import config as groups
from verl_gsd.errors import ConfigError
from verl_gsd.lab.training import checks
from verl_gsd.planning.memory import SHAPES
from verl_gsd.run import compose

LINE = ("algo=grpo", "task=arithmetic")

pytestmark = pytest.mark.usefixtures("composing_is_fast")


def composed(*words):
    line = compose.parse_line(["hardware=cpu", *words])
    return compose.compose_config(line), line


def problems(*words):
    return list(checks.unsupported(*composed(*words)))


@pytest.mark.parametrize("algo", groups.choices("algo"))
def test_every_choice_of_algorithm_task_budget_and_sampler_is_honoured(algo):
    """Each choice sets its own keys, so that a budget and a sampler together set no others than each by itself."""
    assert {*groups.choices("budget"), *groups.choices("sampler")} == {"uniform", "adaptive", "disagreement"}
    assert groups.choices("silent_groups") == ["counted", "left_out"]
    for task in groups.choices("task"):
        assert problems(f"algo={algo}", f"task={task}", "budget=adaptive", "sampler=disagreement") == []
    assert problems(f"algo={algo}", "task=arithmetic", "budget=uniform", "sampler=uniform") == []
    assert problems(f"algo={algo}", "task=arithmetic", "silent_groups=left_out") == []


@pytest.mark.parametrize("recipe", groups.choices("recipe"))
def test_a_recipe_is_rejected_for_its_model_its_reward_model_and_its_adapter_alone(recipe, monkeypatch):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")
    monkeypatch.setattr(checks, "flops_per_second", lambda: 2e10)

    def rejected(*words):
        return {problem.partition("=")[0] for problem in problems(f"recipe={recipe}", *words)}

    adapter = {f"actor_rollout_ref.{key}" for key in ("model.lora_rank", "model.lora_alpha", "rollout.load_format")}
    adapter = adapter if recipe.endswith("_lora") else set()
    reward_model = {"reward.reward_model.enable"} if recipe == "gvpo/summarisation" else set()
    assert rejected() == adapter | reward_model
    assert rejected("task=arithmetic") == adapter
    config, _ = composed(f"recipe={recipe}")
    (problem,) = checks.check_model_size(compose.resolve(config))
    path = config.actor_rollout_ref.model.path
    reason = "would take about" if path in SHAPES else "is not known here"
    assert problem.startswith("actor_rollout_ref.model.path=") and reason in problem


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.v1.trainer_mode=gsd_colocate_async", "synchronous.*Set trainer.v1.trainer_mode=gsd_sync"),
        ("algorithm.adv_estimator=grpo", "Set algorithm.adv_estimator=gsd"),
        ("algorithm.adv_estimator=gae", "Set algorithm.adv_estimator=gsd"),
        ("model_engine=megatron", "Set model_engine=dp"),
        ("reward.reward_model.enable=true", "no reward models.*Set reward.reward_model.enable=false"),
        ("reward.reward_manager.name=dapo", "Set reward.reward_manager.name=naive"),
        ("actor_rollout_ref.rollout.name=sglang", "without vLLM. Remove it"),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size=2", "without vLLM. Remove it"),
        ("actor_rollout_ref.rollout.gpu_memory_utilization=0.5", "without vLLM. Remove it"),
        ("actor_rollout_ref.rollout.multi_turn.enable=true", "without tools and agent loops"),
        ("actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent", "without tools and agent loops"),
        ("actor_rollout_ref.rollout.enable_rollout_routing_replay=true", "without vLLM"),
        ("actor_rollout_ref.rollout.calculate_log_probs=false", "one model"),
        ("trainer.n_gpus_per_node=4", "one process"),
        ("trainer.nnodes=2", "one process"),
        ("critic.enable=true", "no critic"),
        ("trainer.v1.sampler.custom_sampler.path=x", "synchronous"),
        ("algorithm.rollout_correction.bypass_mode=true", "nothing has to be corrected"),
        ("algorithm.rollout_correction.rollout_is=token", "nothing has to be corrected"),
        ("actor_rollout_ref.model.lora_rank=8", "all weights"),
        ("+actor_rollout_ref.model.override_config.attention_dropout=0.1", "all weights"),
        ("trainer.save_freq=10", "no checkpoints.*Remove it"),
        ("trainer.resume_mode=resume_path", "no checkpoints"),
        ("algorithm.gsd.state=fresh", "no checkpoints"),
        ("algorithm.gsd.limits.reward_seconds=9", "one process"),
        ("algorithm.gsd.limits.quiet_seconds=900", "one process"),
        ("logger=wandb", "trainer.logger.*files of the run. Leave out logger=wandb"),
        ("distillation.enabled=true", "no distillation"),
        ("data.truncation=left", "does not truncate"),
        ("data.gen_batch_size=4", "fetches as many prompts at a time"),
        ("trainer.val_only=true", "does not read this key"),
        ("+trainer.unknown=1", "does not read this key. Remove it, or train on the stack"),
    ],
)
def test_what_the_laboratory_cannot_honour_is_rejected_with_the_key_and_the_remedy(word, message):
    found = problems(*LINE, word)
    assert len(found) == 1, found
    key, _, value = word.lstrip("+").partition("=")
    if key != "logger":
        assert found[0].startswith(f"{key}={value}: the laboratory ")
    assert re.search(message, found[0]), found[0]


def test_values_of_verls_config_and_what_only_changes_speed_are_accepted():
    assert problems(*LINE, "trainer.n_gpus_per_node=1", "actor_rollout_ref.rollout.tensor_model_parallel_size=1") == []
    assert problems(*LINE, "data.dataloader_num_workers=4", "actor_rollout_ref.model.use_remove_padding=true") == []
    assert problems(*LINE, "+algorithm.gsd.cap={limit: 1.0}", "actor_rollout_ref.actor.optim.lr=1e-3") == []


def test_the_limit_of_failed_rewards_is_honoured_and_the_other_limits_are_not():
    assert problems(*LINE, "algorithm.gsd.limits.failed_rewards=0.2") == []
    assert problems(*LINE, "algorithm.gsd.limits={failed_rewards: 0.2}") == [], "the section keeps its other keys"
    assert problems(*LINE, "algorithm.gsd={alpha: 0.5, limits: {failed_rewards: 0.2}}") == []
    (problem,) = problems(*LINE, "algorithm.gsd.limits={failed_rewards: 0.2, reward_seconds: 9}")
    assert problem.startswith("algorithm.gsd.limits.reward_seconds=9: ") and "Remove it" in problem


def test_a_key_is_in_one_table():
    tables = (checks.HONOURED, checks.WITHOUT_EFFECT, checks.ONLY_BY_GROUPS)
    keys = [key for table in tables for key in table]
    assert len(keys) == len(set(keys))


def test_every_key_of_the_tables_exists_in_a_config():
    config, _ = composed("recipe=gvpo/qwen2.5_math_7b", "task=arithmetic", "budget=adaptive")
    missing = object()
    tables = (checks.HONOURED, checks.WITHOUT_EFFECT, checks.ONLY_BY_GROUPS, checks.REQUIRED, checks.STUDIED)
    keys = [key for table in tables for key in table]
    plain = OmegaConf.to_container(config)
    for key in keys:
        node = plain
        for name in key.split("."):
            node = node.get(name, missing) if isinstance(node, dict) else missing
        assert node is not missing, key


def not_studied(*words, reads=(), has_model=False):
    config, line = composed(*words)
    return list(checks.not_studied(config, line, reads=reads, has_model=has_model))


@pytest.mark.parametrize(
    "word",
    [
        "actor_rollout_ref.actor.optim.lr=1",
        "trainer.test_freq=5",
        "trainer.test_freq=40",  # the value that the task sets, too
        "trainer.total_training_steps=5",
        "trainer.default_local_dir=runs/a",
        "algorithm.filter_groups.enable=true",
        "algorithm.gsd.alpha=0.5",
        "data.train_batch_size=8",
        "data.val_files=other.parquet",
        "actor_rollout_ref.rollout.val_kwargs.n=4",
        "actor_rollout_ref.model.custom_chat_template=x",
        "actor_rollout_ref.actor.use_kl_loss=true",
    ],
)
def test_a_key_that_only_training_reads_is_rejected_on_the_line_of_a_study(word):
    (problem,) = not_studied(*LINE, word)
    assert problem == f"{word}: this command trains nothing, and does not read this key. Remove it."
    assert problems(*LINE, word) == []


def test_keys_that_a_study_reads_or_that_change_no_result_are_accepted():
    words = [f"{key}={value}" for key, value in (("data.seed", 3), ("actor_rollout_ref.rollout.n", 4))]
    words += ["data.train_max_samples=8", "reward.custom_reward_function.path=a.py", "task.directory=folder"]
    words += ["data.dataloader_num_workers=4", "trainer.experiment_name=x", "actor_rollout_ref.model.path=model"]
    words += ["algorithm.adv_estimator=gsd", "actor_rollout_ref.rollout.temperature=0.9", "trainer.save_freq=-1"]
    assert not_studied(*LINE, *words) == []


def test_a_study_reads_the_settings_of_its_own_algorithm_and_no_others():
    reads = ("algorithm.gsd.hadw.preset",)
    assert not_studied("algo=hadw", "task=arithmetic", "algorithm.gsd.hadw.preset=soft", reads=reads) == []
    line = ("algo=grpo", "task=arithmetic", "+algorithm.gsd.hadw={preset: soft, n_min: 5}")
    (problem,) = not_studied(*line, reads=reads)
    assert problem.startswith("algorithm.gsd.hadw.n_min=5: this command trains nothing")


def test_keys_that_options_of_a_study_set_are_rejected_with_the_option():
    (problem,) = not_studied(*LINE, "actor_rollout_ref.rollout.seed=3")
    assert problem.startswith("actor_rollout_ref.rollout.seed=3: ") and problem.endswith("use --seed.")
    (problem,) = not_studied(*LINE, "actor_rollout_ref.model.path=model", has_model=True)
    assert problem.startswith("actor_rollout_ref.model.path=model: ") and problem.endswith("or --model.")
    with pytest.raises(ConfigError, match=r"^hardware=gpu: the laboratory trains on one core\. Remove it"):
        checks.parse_lab_line([*LINE, "hardware=gpu"])


def test_a_study_may_have_fewer_prompts_than_a_batch(tmp_path):
    row = {"data_source": "x", "prompt": [{"role": "user", "content": "1"}], "reward_model": {"ground_truth": "1"}}
    pq.write_table(pa.Table.from_pylist([row] * 3), tmp_path / "few.parquet")
    config, line = composed(*LINE, f"data.train_files={tmp_path / 'few.parquet'}")
    with pytest.raises(ConfigError, match=r"data\.train_batch_size=24: .*only 3 rows"):
        checks.check_lab(config, line)
    checks.check_study(config, line)


def test_checks_of_the_stack_run_too(tmp_path):
    config, line = composed(*LINE, "data.train_batch_size=0", "algorithm.gsd.alpha=x")
    with pytest.raises(ConfigError, match=r"(?s)data\.train_batch_size=0.*alpha"):
        checks.check_lab(config, line)


@pytest.fixture
def model(tmp_path):
    """A folder with tensors of 10M parameters."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    save_file(
        {"a": np.zeros((1000, 6000), np.float16), "b": np.zeros(4_000_000, np.float16)}, tmp_path / "model.safetensors"
    )
    return tmp_path


def test_a_model_too_large_is_rejected_with_the_seconds_of_a_step(model, monkeypatch):
    monkeypatch.setattr(checks, "flops_per_second", lambda: 1e9)
    path = f"actor_rollout_ref.model.path={model}"
    config = compose.resolve(composed(*LINE, path)[0])
    # 24 x (24 + 8 x 8) tokens, 2 for generation and 6 for the update.
    assert checks.parameters_of(str(model)) == 10_000_000
    assert checks.step_flops(config, 10_000_000) == 10_000_000 * 24 * 88 * 8
    (problem,) = checks.check_model_size(config)
    assert "10M parameters" in problem and "24 x 8 responses of up to 8 tokens would take about 3 min" in problem
    assert "data.max_response_length" in problem
    (problem,) = checks.check_model_size(config, checks._SMALLER_STUDY)
    assert "data.train_batch_size" not in problem and "Set the key to a smaller model, or set a smaller" in problem
    with_kl = composed(*LINE, path, "actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.ppo_epochs=2")
    assert checks.step_flops(compose.resolve(with_kl[0]), 1) == 24 * 88 * 16
    smaller = composed(*LINE, path, "data.train_batch_size=8")[0]
    assert list(checks.check_model_size(compose.resolve(smaller))) == []


def test_a_model_of_unknown_size_is_rejected():
    config = compose.resolve(composed(*LINE, "actor_rollout_ref.model.path=some/model")[0])
    (problem,) = checks.check_model_size(config)
    assert problem.startswith("actor_rollout_ref.model.path=some/model: ") and "Download it" in problem


@pytest.mark.parametrize(
    ("fields", "active"),
    [
        ({"model_type": "llama", "attention_dropout": 0.1}, "attention_dropout=0.1"),
        ({"model_type": "llama", "layerdrop": 0.05}, "layerdrop=0.05"),
        ({"model_type": "llama", "hidden_dropout": 1}, "hidden_dropout=1"),
        ({"model_type": "gemma3", "text_config": {"attention_dropout": 0.25}}, "text_config.attention_dropout=0.25"),
        # GPT-2's defaults apply to fields that the file does not have.
        ({"model_type": "gpt2", "embd_pdrop": 0, "summary_first_dropout": 0}, "resid_pdrop=0.1, attn_pdrop=0.1"),
    ],
)
def test_a_model_with_dropout_is_rejected_with_field_and_value(model, fields, active):
    (model / "config.json").write_text(json.dumps(fields))
    line = composed(*LINE, f"actor_rollout_ref.model.path={model}")
    with pytest.raises(ConfigError) as rejected:
        checks.check_lab(*line)
    (problem,) = str(rejected.value).splitlines()
    assert f"actor_rollout_ref.model.path={model}: the model has dropout: {active}. verl" in problem
    assert "to 0 in the model's config.json, or train on the stack with verl-gsd train." in problem


def test_a_model_without_dropout_is_accepted(model):
    config = compose.resolve(composed(*LINE, f"actor_rollout_ref.model.path={model}")[0])
    settings = {"attention_dropout": 0.0, "hidden_dropout": None, "drop_tokens": True, "token_drop_policy": "probs"}
    (model / "config.json").write_text(json.dumps({"model_type": "llama"} | settings))
    assert list(checks.check_dropout(config)) == []
    (model / "config.json").unlink()
    assert list(checks.check_dropout(config)) == []


def test_a_model_whose_config_cannot_be_read_is_rejected(model):
    config = compose.resolve(composed(*LINE, f"actor_rollout_ref.model.path={model}")[0])
    for content, reason in (("{", "not a valid JSON file"), ('{"model_type": "unheard-of"}', "does not recognize")):
        (model / "config.json").write_text(content)
        (problem,) = checks.check_dropout(config)
        assert problem.startswith(f"actor_rollout_ref.model.path={model}: its config.json cannot be read: ")
        assert reason in problem and problem.endswith("Set the key to another model.")


def test_the_speed_of_this_machine_is_measured():
    assert 1e8 < checks.flops_per_second() < 1e14


def test_an_own_module_that_python_does_not_find_is_named(composing_is_fast, monkeypatch):
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "json,absent_module_of_a_test")
    line = compose.parse_line(["hardware=cpu", "algo=grpo", "task=arithmetic"])
    with pytest.raises(ConfigError, match=r"=absent_module_of_a_test: there is no such module\. Add its folder"):
        checks.check_lab(compose.compose_config(line), line)
