"""The config of a rehearsal: what it preserves of every recipe, and that it lists everything else."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from recipe_configs import RECIPES, composed, problems

from verl_gsd import config as groups
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.run.rehearsal.config import (
    EXCEPTIONS,
    PRESERVED,
    Files,
    check_rehearsable,
    longest,
    reason_for,
    rehearsal_config,
    sizes_of,
)
from verl_gsd.scalars import is_whole

FILES = Files(
    run=Path("/rehearsal/run"),
    model=Path("/rehearsal/model"),
    train=("/rehearsal/train.parquet",),
    val=("/rehearsal/val.parquet",),
    train_rows=32,
    prompt_tokens=100,
    response_tokens=16,
    rewards=Path("/rehearsal/rewards.jsonl"),
    accepted_score=1.0,
    judge_url="http://127.0.0.1:1/v1",
    judge_cache=Path("/rehearsal/judge.sqlite"),
    reward_model=Path("/rehearsal/reward_model"),
)
MACHINE = "hardware=8xa100_80g"
ALGORITHMS = groups.choices("algo")


@pytest.fixture(autouse=True)
def _data(monkeypatch, configs_parsed_once):
    monkeypatch.setenv("VERL_GSD_DATA", "/data")


def rehearsed(recipe, *words):
    """(the run's resolved config, the rehearsal's, replacements)."""
    config, replacements = rehearsal_config(composed(recipe, MACHINE, *words, resolved=False), FILES)
    return composed(recipe, MACHINE, *words), config, replacements


def below(config, key):
    """The values at and below a key, without those that a rehearsal replaces all the same."""
    value = OmegaConf.select(config, key)
    if not OmegaConf.is_config(value):
        return value
    leaves = dotted_leaves(OmegaConf.to_container(value))
    return {name: entry for name, entry in leaves if not longest(f"{key}.{name}", EXCEPTIONS)}


CASES = [(recipe,) for recipe in RECIPES] + [(RECIPES[1], f"algo={algo}") for algo in ALGORITHMS]


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_what_is_preserved_is_equal_and_every_other_difference_has_a_reason(words):
    original, config, replacements = rehearsed(*words)
    for keys in PRESERVED.values():
        for key in keys:
            assert below(config, key) == below(original, key), key
    for replacement in replacements:
        assert replacement.reason == reason_for(replacement.key)
        exempt = longest(replacement.key, EXCEPTIONS)
        assert exempt or not longest(replacement.key, [key for keys in PRESERVED.values() for key in keys])
    values = [dict(dotted_leaves(OmegaConf.to_container(one))) for one in (original, config)]
    changed = {key for key in {**values[0], **values[1]} if values[0].get(key) != values[1].get(key)}
    assert {one.key for one in replacements} == changed
    listed = {one.key: (one.before, one.after) for one in replacements}
    assert listed["trainer.device"] == ("cuda", "cpu")
    assert listed["actor_rollout_ref.model.path"][1] == "/rehearsal/model"


@pytest.mark.parametrize("words", CASES, ids=" ".join)
def test_the_rehearsal_passes_the_checks_of_a_cpu_and_has_as_many_updates_per_step(words):
    original, config, _ = rehearsed(*words)
    with_files = ("no such", "does not exist", "not a folder")
    assert [text for text in problems(config) if not any(part in text for part in with_files)] == []
    actor = "actor_rollout_ref.actor.ppo_mini_batch_size"
    updates = original.data.train_batch_size // OmegaConf.select(original, actor)
    assert config.data.train_batch_size == updates * OmegaConf.select(config, actor)
    assert config.trainer.device == "cpu" and config.trainer.n_gpus_per_node == 2
    assert config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu >= 116


def test_groups_fit_into_micro_batches_where_they_did_before():
    """GVPO's grouping depends on it."""
    for tokens in (16384, 65536):
        key = f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={tokens}"
        original, config, _ = rehearsed("gvpo/qwen2.5_math_1.5b", key)
        sequences = [
            one.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
            // (one.data.max_prompt_length + one.data.max_response_length)
            for one in (original, config)
        ]
        assert sequences[0] == sequences[1]


@pytest.mark.parametrize("section", ["reward", "reward_model"])
@pytest.mark.parametrize("limit", ["${data.max_response_length}", 3072])
def test_the_penalty_on_long_responses_starts_in_the_same_part_of_a_response(section, limit):
    """16 of 3,072 tokens: a buffer of 768 becomes 4."""
    original = composed("gsd/qwen2.5_math_1.5b", MACHINE, "data.max_response_length=3072", resolved=False).copy()
    buffer = {"enable": True, "len": 768, "penalty_factor": 1.0}
    values = {"max_resp_len": limit, "overlong_buffer_cfg": buffer}
    OmegaConf.update(original, f"{section}.reward_kwargs", values, force_add=True)
    config, replacements = rehearsal_config(original, FILES)
    assert config[section].reward_kwargs == {"max_resp_len": 16, "overlong_buffer_cfg": buffer | {"len": 4}}
    listed = {one.key: (one.before, one.after, one.reason) for one in replacements}
    key = f"{section}.reward_kwargs.overlong_buffer_cfg.len"
    assert listed[key] == (768, 4, "prompts and responses are short")


def test_the_real_reward_function_and_its_arguments_reach_the_seeded_one():
    _, config, _ = rehearsed("gsd/qwen2.5_math_1.5b")
    function = config.reward.custom_reward_function
    assert function.path == "pkg://verl_gsd.run.rehearsal.seeded_rewards"
    real = function.reward_kwargs.rehearsal
    assert (real.path, real.name) == ("pkg://verl_gsd.tasks.maths", "compute_score")
    assert real.accepted_score == 1.0 and real.log == "/rehearsal/rewards.jsonl"


def test_a_reward_model_without_a_function_keeps_scoring():
    _, config, _ = rehearsed("gvpo/summarisation")
    assert config.reward.custom_reward_function.path is None
    assert config.reward.reward_model.model_path == "/rehearsal/reward_model"
    assert config.ray_kwargs.ray_init.num_gpus == 3, "two workers and the reward model"


def test_the_judge_is_the_stand_in_and_shares_no_cache():
    _, config, _ = rehearsed("dagrpo/qwen2.5_math_7b")
    judge = config.algorithm.gsd.dagrpo.judge
    assert judge.scorer == "openai" and judge.base_url == FILES.judge_url
    assert judge.cache == "/rehearsal/judge.sqlite"


def test_offload_parallelism_and_adapters_of_the_machine_are_gone():
    words = ("actor_rollout_ref.actor.ulysses_sequence_parallel_size=2", "actor_rollout_ref.model.lora_rank=8")
    _, config, replacements = rehearsed("gsd/qwen2.5_math_1.5b", *words)
    assert config.actor_rollout_ref.actor.ulysses_sequence_parallel_size == 1
    assert config.actor_rollout_ref.model.lora_rank == 8
    assert "actor_rollout_ref.model.lora_rank" not in {one.key for one in replacements}
    config, _ = rehearsal_config(composed("gsd/qwen2.5_math_7b", "hardware=1xh200", resolved=False), FILES)
    assert config.actor_rollout_ref.actor.fsdp_config.offload_policy is False


@pytest.mark.parametrize(
    ("batch", "mini", "n", "expected"),
    [(128, 128, 8, (1, 8, 2)), (1024, 256, 5, (4, 2, 2)), (256, 16, 8, (16, 2, 2)), (3, 1, 5, (3, 1, 1))],
)
def test_a_step_is_small_and_keeps_its_updates(batch, mini, n, expected):
    config = OmegaConf.create(
        {
            "data": {"train_batch_size": batch},
            "actor_rollout_ref": {"actor": {"ppo_mini_batch_size": mini}, "rollout": {"n": n}},
        }
    )
    sizes = sizes_of(config)
    assert (sizes.updates, sizes.mini_batch, sizes.workers) == expected
    assert is_whole(sizes.batch, 1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.v1.trainer_mode", "gsd_separate_async"),
        ("model_engine", "megatron"),
    ],
)
def test_what_a_cpu_cannot_run_is_rejected_by_its_key(key, value):
    config = composed("gsd/qwen2.5_math_1.5b", MACHINE).copy()
    check_rehearsable(config)
    OmegaConf.update(config, key, value, force_add=True)
    with pytest.raises(ConfigError, match=f"{key}={value}.*[Rr]ehearse"):
        check_rehearsable(config)


def test_a_replacement_without_a_reason_is_a_bug():
    with pytest.raises(ValueError, match=r"nobody\.knows"):
        reason_for("nobody.knows")
