"""What a report advises is followed on the line of the run: no check rejects it, and no warning is new."""

import shlex
from dataclasses import replace
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import report_runs
from omegaconf import OmegaConf

from verl_gsd.algorithms.dagrpo.checks import check_demonstration_column
from verl_gsd.audit import audit
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.report.advice import accepted_overrides
from verl_gsd.report.findings import collect_findings
from verl_gsd.report.findings.lengths import MAX_PROMPT, MAX_RESPONSE, doubled
from verl_gsd.report.reading import read_run
from verl_gsd.report.steps import step_table
from verl_gsd.run.checks.memory import check_memory
from verl_gsd.run.checks.validate import OF_THIS_MACHINE, validate
from verl_gsd.run.compose import compose_config, parse_line, resolve
from verl_gsd.run.sizing import apply_sizing

STEPS = 30
ACTOR, REWARDS = "actor_rollout_ref.actor", "reward.reward_model"
LOSS, MODEL = f"{ACTOR}.policy_loss.loss_mode", "actor_rollout_ref.model.path"
SEVEN = ("recipe=gsd/qwen2.5_math_7b", "hardware=8xa100_80g")
SMALL = ("algo=grpo", "task=arithmetic", "hardware=cpu")
REWARD_MODEL = (
    f"{REWARDS}.enable=true",
    f"{REWARDS}.model_path=a/model",
    f"{REWARDS}.enable_resource_pool=true",
    f"{REWARDS}.nnodes=1",
    f"{REWARDS}.n_gpus_per_node=1",
    f"{REWARDS}.rollout.name=vllm",
    "reward.custom_reward_function.path=null",
)
FILTER, ANCHORS, MASK, SAMPLER = (
    "algorithm.filter_groups.enable=true",
    "algo=dagrpo_anchors",
    "algo=dagrpo_mask",
    "sampler=",
)
AVERAGE, CONTEXT = f"{ACTOR}.loss_agg_mode", "actor_rollout_ref.rollout.max_model_len"
OVERLONG, PENALIZED = "reward.reward_kwargs.overlong_buffer_cfg.enable", "reward.reward_kwargs.max_resp_len"
TRIED = (FILTER, ANCHORS, MASK, SAMPLER, f"{MAX_PROMPT}=", f"{MAX_RESPONSE}=")


def troubled(**other):
    """A run with silent groups, responses that are cut off, prompts that are too long, and a gradient that spikes."""
    norms = np.exp(0.2 * np.resize([1.0, -1.0, 0.5], STEPS))
    norms[20] = 1e10
    values = {
        "silent": 0.8,
        "all_wrong": 0.6,
        "all_right": 0.2,
        "groups": 128,
        "failed": 0.1,
        "rollouts": 1024,
        "lost_rewards": 1,
        "reward/failures/prompt_too_long": 1,
        "response_length/max": 1e6,
        "response_length/clip_ratio": 0.6,
        "actor/grad_norm": norms,
    } | other
    columns = {name: np.broadcast_to(value, STEPS).astype(float) for name, value in values.items()}
    return {"step": np.arange(1, STEPS + 1)} | columns


def composed(compose, words):
    """(config, problems and warnings that do not depend on this machine)."""
    config, line = compose(*words)
    problems: set[str] = set()
    try:
        validate(config, line, OF_THIS_MACHINE)
    except ConfigError as error:
        problems |= set(str(error).splitlines())
    return config, problems | set(audit(config).warnings)


def advised(config, words, **columns):
    leaves = dict(dotted_leaves(OmegaConf.to_container(config)))
    findings = collect_findings(troubled(**columns), leaves, words)
    return [override for finding in findings for override in finding.overrides]


#: (words of a run, starts of overrides that it gets, starts of overrides that it does not get).
RUNS = [
    (SMALL, [FILTER, ANCHORS, MASK, SAMPLER], []),
    (SEVEN, [FILTER, ANCHORS, MASK, SAMPLER, f"{MODEL}=..."], [MAX_RESPONSE, MAX_PROMPT]),
    ((*SEVEN, "data.max_response_length=1000"), [f"{MAX_RESPONSE}=2000 ", f"{MAX_PROMPT}=2048 "], [MODEL]),
    ((*SEVEN, "data.max_response_length=2000"), [f"{MAX_RESPONSE}=3072 ", f"{MAX_PROMPT}=2048 "], [MODEL]),
    (
        (*SEVEN, "data.max_response_length=1000", f"{CONTEXT}=2024", f"+{PENALIZED}=1000", f"+{OVERLONG}=true"),
        [f"{MAX_RESPONSE}=2000 {CONTEXT}=3024 {PENALIZED}=2000 "],
        [MODEL],
    ),
    (("algo=grpo", "task=arithmetic_graded", "hardware=cpu"), [f"{FILTER} algorithm.filter_groups.metric=score "], []),
    ((*SMALL, *REWARD_MODEL), [MASK], [FILTER, ANCHORS, SAMPLER]),
    ((*SMALL, "data.dataloader_num_workers=8"), [FILTER, ANCHORS], [SAMPLER]),
    ((*SMALL, f"{LOSS}=sapo"), [FILTER, MASK, SAMPLER], [ANCHORS]),
    (("algo=gspo", *SMALL[1:]), [FILTER, ANCHORS], []),
    (
        (*SMALL, "algorithm.adv_estimator=grpo", "trainer.v1.trainer_mode=sync"),
        [FILTER],
        [ANCHORS, MASK, SAMPLER],
    ),
    ((*SMALL, "silent_groups=left_out"), [SAMPLER], [FILTER]),
    ((*SMALL, "budget=adaptive"), [SAMPLER], [FILTER]),
    (("algo=gvpo", *SMALL[1:]), [FILTER], [ANCHORS, MASK, SAMPLER]),
    ((*SMALL, "algorithm.use_kl_in_reward=true"), [], [FILTER, ANCHORS, MASK, SAMPLER]),
]


@pytest.mark.parametrize(("words", "given", "withheld"), RUNS, ids=lambda words: " ".join(words)[-60:])
def test_advice_is_accepted_by_the_line_of_the_run(compose_fast, words, given, withheld):
    config, before = composed(compose_fast, words)
    overrides = advised(config, words)
    for start in given:
        assert any(override.startswith(start) for override in overrides), (start, overrides)
    for start in withheld:
        assert not any(override.startswith(start) for override in overrides), (start, overrides)
    for override in overrides:
        changes = shlex.split(override.partition("#")[0])
        if not override.startswith(TRIED):
            continue  # test_report_findings.py tries the others
        names = {change.partition("=")[0] for change in changes}
        others = [word for word in words if word.partition("=")[0] not in names]
        judge = ["algorithm.gsd.dagrpo.judge.scorer=stub"] if MASK in override else []
        _, after = composed(compose_fast, [*others, *changes, *judge])
        assert after <= before, override


NO_ACC, OUTSIDE = {"unrated": 1.0, "without_acc": 1.0}, {"unrated": 1.0, "without_acc": 0.0}
METRIC = f"{FILTER} algorithm.filter_groups.metric="
PENALTY = (f"+{PENALIZED}=512", f"+{OVERLONG}=true")


@pytest.mark.parametrize(
    ("columns", "words", "metric", "reads_accuracy"),
    [
        ({"unrated": 0.0, "without_acc": 0.0}, (), "acc", True),
        (NO_ACC, (), "reward", False),
        (NO_ACC, PENALTY, "score", False),
        (NO_ACC, REWARD_MODEL, "reward", False),
        ({name: 0.1 for name in NO_ACC}, (), "reward", False),  # one source of ten
        ({"unrated": 0.0, "without_acc": 0.1}, (), "reward", False),  # responses without an answer count as wrong
        (OUTSIDE, (), "acc", False),  # a plain number of 1 or -1, of which verl stores no other value
        (OUTSIDE | {"shaped": 0.1}, (), "reward", False),  # acc of 1 and -1, and a score with partial credit
        ({"shaped": 0.1}, (), "reward", True),  # one data source may return a number, and so no score
    ],
)
def test_advice_for_silent_groups_suits_what_the_verifier_returns(compose_fast, columns, words, metric, reads_accuracy):
    """verl fails at a response without the metric, and extensions fail at a response without an accuracy."""
    line = (*SMALL, *words)
    config, before = composed(compose_fast, line)
    overrides = advised(config, line, **columns)
    (filters,) = [override for override in overrides if override.startswith(FILTER)]
    assert filters.startswith(f"{METRIC}{metric} ")
    for name in (ANCHORS, SAMPLER):
        assert any(override.startswith(name) for override in overrides) == reads_accuracy, (name, overrides)
    _, after = composed(compose_fast, [*line, *shlex.split(filters.partition("#")[0])])
    # The audit does not know what the verifier returns.
    assert [text for text in after - before if not text.endswith("verdict, if the reward function returns it.")] == []


@pytest.mark.parametrize(
    ("values", "unrated", "without_acc"),
    [
        ([1.0, 0.0, 0.5], 0, 0),
        ([np.nan] * 3, 1, 1),
        ([1.0, np.nan, np.nan], 0, 2 / 3),  # they count as wrong
        ([1.0, -1.0, -1.0], 1, 0),
    ],
)
def test_the_records_tell_what_the_verifier_returns(tmp_path, values, unrated, without_acc):
    one = report_runs.group([1.0, 0.0, 0.0])
    report_runs.records(tmp_path, 1, (replace(one, accuracies=np.array(values)), "trained"))
    steps = step_table(read_run(tmp_path, "run"))
    assert steps["unrated"].tolist() == pytest.approx([unrated])
    assert steps["without_acc"].tolist() == pytest.approx([without_acc])


@pytest.mark.parametrize("has_column", [True, False])
def test_an_experts_demonstrations_are_advised_only_for_data_that_has_them(compose_fast, tmp_path, has_column):
    """The check of the advised run reads the files."""
    source = "demonstration" if has_column else "solution"
    files = [str(tmp_path / f"{name}.parquet") for name in ("one", "two")]
    for file in files:
        pq.write_table(pa.table({"prompt": ["1 + 1"], source: ["2"]}), file)
    words = (*SMALL, f"data.train_files=[{','.join(files)}]")
    config, _ = composed(compose_fast, words)
    (anchors,) = [override for override in advised(config, words) if override.startswith(ANCHORS)]
    assert ("source=self" in anchors) != has_column
    changes = shlex.split(anchors.partition("#")[0])
    others = [word for word in words if not word.startswith("algo=")]
    assert list(check_demonstration_column(*compose_fast(*others, *changes))) == []


def test_without_the_words_a_choice_of_a_group_sets_all_its_keys(compose_fast):
    words = (*SMALL, "data.dataloader_num_workers=8")
    config, _ = composed(compose_fast, words)
    assert any(override.startswith(SAMPLER) for override in advised(config, ()))


def test_a_key_of_the_line_stays_if_a_group_is_chosen_anew():
    config = {LOSS: "sapo", "algorithm.adv_estimator": "gsd"}
    assert accepted_overrides((ANCHORS,), config, ("recipe=no/such",)) == (ANCHORS,)
    assert accepted_overrides((ANCHORS,), config, (f"{LOSS}=sapo",)) == ()
    assert accepted_overrides((ANCHORS,), config, (f"+{LOSS}=sapo",)) == ()
    assert accepted_overrides((ANCHORS,), config, (f"{ACTOR}.policy_loss={{loss_mode: sapo}}",)) == ()


@pytest.mark.parametrize("override", ["a word", "'open", "algo=not_installed  # x", "a.b=...  # y", "a.b={  # z"])
def test_what_cannot_be_tried_is_kept(override):
    assert accepted_overrides((override,), {"a.b": 1}, ()) == (override,)


def test_texts_of_a_config_are_not_resolved():
    """Each of these keys doubles the work of the one before. A text could also name a variable of the environment."""
    read = []
    OmegaConf.register_new_resolver("test_read", read.append)
    doubling = {f"x.a{n}": f"${{x.a{n - 1}}}${{x.a{n - 1}}}" for n in range(1, 10)} | {"x.a0": "${test_read:doubled}"}
    config = {
        "algorithm.gsd.alpha": 1,
        "algorithm.adv_estimator": "${x.a9}",
        "critic.enable": "${test_read:text}",
        "algorithm.norm_adv_by_std_in_grpo": [{"a": ["${test_read:list}"]}],
    }
    assert accepted_overrides(("algorithm.gsd.alpha=0",), config | doubling, ()) == ("algorithm.gsd.alpha=0",)
    assert read == []


#: Values of YAML that OmegaConf rejects, or that the readers of a config do not expect.
HOSTILE = [
    *(date(2001, 1, 1), datetime(2001, 1, 1), {1}, b"x", ("a", 1), [("a", 1)], [[date(2001, 1, 1)]], [{"a": {1}}]),
    *("${", "${a", "${a:" * 2000, "???", "~nobody/x", "x" * 5000, "a\0b", "", 10**400, -(10**400), 0, float("inf")),
    *(1e308, -1e308),
    *(float("nan"), True, None, [], {}, [1], [None]),
]


#: Keys that finders and the advice read.
READ = [
    *("algorithm.adv_estimator", "algorithm.gsd.alpha", "algorithm.gsd.dagrpo.judge", "algorithm.filter_groups.enable"),
    *("algorithm.filter_groups.max_inflight_gen_batches", "algorithm.gsd.limits.reward_seconds", "algorithm.lam"),
    *("algorithm.norm_adv_by_std_in_grpo", "algorithm.use_kl_in_reward", "trainer.v1.trainer_mode", "critic.enable"),
    *("trainer.v1.sampler.max_off_policy_threshold", "trainer.v1.sampler.max_off_policy_strategy", "data.shuffle"),
    *("data.train_files", "data.train_batch_size", "reward.reward_model.enable", "reward.num_workers", "task.name"),
    *("reward.custom_reward_function.path", "actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.temperature"),
    *(f"{ACTOR}.optim.lr", f"{ACTOR}.clip_ratio_high", f"{ACTOR}.entropy_coeff", f"{ACTOR}.ppo_epochs"),
    *(f"{ACTOR}.ppo_mini_batch_size", f"{ACTOR}.use_dynamic_bsz", f"{ACTOR}.grad_clip", AVERAGE, LOSS, MODEL, CONTEXT),
    *(MAX_PROMPT, MAX_RESPONSE, OVERLONG, PENALIZED),
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: f"{type(value).__name__}-{value!r:.20}")
def test_no_value_of_a_config_ends_a_report(value):
    steps, usual = troubled(), dict.fromkeys(READ, 1)
    assert collect_findings(steps, dict.fromkeys(READ, value), SMALL)
    assert collect_findings(steps, dict.fromkeys(READ, value) | {"algorithm.adv_estimator": "gsd"}, SMALL)
    for key in ("algorithm", "algorithm.gsd", "reward"):
        others = {name: other for name, other in usual.items() if not name.startswith(f"{key}.")}
        assert collect_findings(steps, others | {key: value}, SMALL)


@pytest.mark.parametrize("config", [{f"a.b{n}": 1 for n in range(10_000)}, {"a": [[1]] * 10_000}])
def test_advice_is_left_out_if_a_config_is_huge(config):
    """Each override is tried in a copy, and copying 10,000 values takes seconds."""
    assert accepted_overrides((FILTER,), config, ()) == ()


@pytest.mark.parametrize("key", ["", ".", "a..b", "a." * 5000 + "b", "a[0]", "a\0b", "${a}", "algorithm.gsd.x.y"])
def test_no_key_of_a_config_ends_a_report(key):
    assert collect_findings(troubled(), {key: 1, "algorithm.adv_estimator": "gsd"})


def test_the_words_of_a_run_are_read(tmp_path):
    (tmp_path / "overrides.yaml").write_text("[algo=grpo, a.b=1]")
    assert read_run(tmp_path, "run").words == ("algo=grpo", "a.b=1")
    (tmp_path / "overrides.yaml").write_text("a: 1")
    assert read_run(tmp_path, "run").words == ()
    (tmp_path / "overrides.yaml").write_text("[")
    run = read_run(tmp_path, "run")
    assert run.words == () and "overrides.yaml" in run.skipped[0]


def test_a_length_stays_within_the_context_of_a_local_model(tmp_path):
    """The context is that in the model's folder, whatever its name."""
    config = {MAX_PROMPT: 1024, MAX_RESPONSE: 1024, MODEL: str(tmp_path)}
    assert doubled(config, MAX_RESPONSE, "why") == (
        f"{MAX_RESPONSE}=2048  # why, if the model's context allows it; it is 1024",
    )
    sizes = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"]
    content = ", ".join(f'"{size}": 8' for size in sizes)
    (tmp_path / "config.json").write_text(f'{{{content}, "max_position_embeddings": 2500}}')
    assert doubled(config, MAX_RESPONSE, "why") == (f"{MAX_RESPONSE}=1476  # why, it is 1024",)
    assert doubled(config | {MAX_PROMPT: 1476}, MAX_RESPONSE, "why")[0].startswith(f"{MODEL}=...  # a model with")
    overridden = config | {"actor_rollout_ref.model.override_config.max_position_embeddings": 8000}
    assert doubled(overridden, MAX_RESPONSE, "why") == (f"{MAX_RESPONSE}=2048  # why, it is 1024",)
    (tmp_path / "config.json").write_text("{")
    assert "if the model's context allows it" in doubled(config, MAX_PROMPT, "why")[0]


def test_a_longer_response_gets_the_micro_batch_that_it_needs():
    config = {MAX_PROMPT: 1024, MAX_RESPONSE: 8192, f"{ACTOR}.use_dynamic_bsz": True}
    key = f"{ACTOR}.ppo_max_token_len_per_gpu"
    assert f" {key}=17408  #" in doubled(config | {key: 16384}, MAX_RESPONSE, "why")[0]
    assert key not in doubled(config | {key: 17408}, MAX_RESPONSE, "why")[0]
    assert key not in doubled(config | {key: 16384, f"{ACTOR}.use_dynamic_bsz": False}, MAX_RESPONSE, "why")[0]


def test_a_longer_response_raises_the_limits_of_log_probabilities_too():
    config = {MAX_PROMPT: 1024, MAX_RESPONSE: 2048, f"{ACTOR}.use_dynamic_bsz": True}
    room, own, reference = (
        f"{ACTOR}.ppo_max_token_len_per_gpu",
        "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu",
        "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    )
    (advice,) = doubled(config | {room: 3072, own: 4096, reference: 4096}, MAX_RESPONSE, "why")
    assert f" {room}=5120 {own}=5120  #" in advice, "there is no reference policy"
    for kl in ("actor_rollout_ref.actor.use_kl_loss", "algorithm.use_kl_in_reward"):
        (advice,) = doubled(config | {room: 3072, own: 9000, reference: 4096, kl: True}, MAX_RESPONSE, "why")
        assert f" {room}=5120 {reference}=5120  #" in advice
    kl = {"actor_rollout_ref.actor.use_kl_loss": True, room: 9000, own: 9000, reference: 4096}
    (advice,) = doubled(config | kl | {"actor_rollout_ref.model.lora_rank": 8}, MAX_RESPONSE, "why")
    assert reference not in advice, "the actor without its adapter is the reference"
    split = {f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": 4}
    (advice,) = doubled(config | kl | split, MAX_RESPONSE, "why")
    assert f" {reference}=5120  #" in advice, "the reference has a size of its own"
    (parallel,) = doubled(
        config | {room: 768, own: 768, f"{ACTOR}.ulysses_sequence_parallel_size": 4}, MAX_RESPONSE, "why"
    )
    assert f" {room}=1280 {own}=1280  #" in parallel, "each of four GPUs has a quarter of a sequence"


@pytest.mark.parametrize("algo", ["grpo", "dapo", "gvpo"])
@pytest.mark.parametrize("kl", ["true", "false"])
def test_the_advice_on_longer_responses_is_accepted_with_and_without_a_reference_policy(algo, kl, compose_fast):
    words = (f"algo={algo}", "task=arithmetic", "hardware=8xa100_80g", f"{MODEL}=someone/new", f"{MAX_RESPONSE}=8192")
    words += (f"{ACTOR}.ppo_max_token_len_per_gpu=10240", f"{ACTOR}.use_kl_loss={kl}")
    config, _ = compose_fast(*words)
    advice = doubled(dict(dotted_leaves(OmegaConf.to_container(config))), MAX_RESPONSE, "why")
    assert accepted_overrides(advice, dict(dotted_leaves(OmegaConf.to_container(config))), words) == advice
    followed = shlex.split(advice[0].partition("#")[0])
    assert list(check_memory(*compose_fast(*words[:-3], words[-1], *followed))) == []


@pytest.mark.parametrize("size", ["7B", "32B"])
def test_what_the_command_chose_for_the_length_is_chosen_anew(size, configs_parsed_once):
    """A number in the advice would be the user's: with 32e9 parameters, nothing would fit."""
    words = ["hardware=8xa100_80g", f"{MODEL}=Qwen/Qwen2.5-{size}", f"{MAX_PROMPT}=1024", f"{MAX_RESPONSE}=12000"]

    def sized(*changes):
        line = parse_line(["algo=grpo", "task=arithmetic", *words, *changes])
        config = compose_config(line)
        apply_sizing(config, line)
        return resolve(config), line

    config, _ = sized()
    values = dict(dotted_leaves(OmegaConf.to_container(config)))
    (advice,) = doubled(values, MAX_RESPONSE, "why")
    followed = shlex.split(advice.partition("#")[0])
    assert followed == [f"{MAX_RESPONSE}=24000"]
    words.remove(f"{MAX_RESPONSE}=12000")
    assert list(check_memory(*sized(*followed))) == []


def test_a_longer_response_raises_the_other_limits_of_its_length():
    """vLLM cuts a sequence at its own limit, and DAPO's penalty grows with each token above max_resp_len."""
    config = {MAX_PROMPT: 1024, MAX_RESPONSE: 8192, CONTEXT: 9216, OVERLONG: True, PENALIZED: 8192}
    (override,) = doubled(config, MAX_RESPONSE, "why")
    assert override.startswith(f"{MAX_RESPONSE}=16384 {CONTEXT}=17408 {PENALIZED}=16384  #")
    (override,) = doubled(config, MAX_PROMPT, "why")
    assert override.startswith(f"{MAX_PROMPT}=2048 {CONTEXT}=10240  #")
    for others in ({CONTEXT: 32768, OVERLONG: False}, {CONTEXT: None, PENALIZED: 16384}):
        (override,) = doubled(config | others, MAX_RESPONSE, "why")
        assert override.startswith(f"{MAX_RESPONSE}=16384  #")


def columns_of_all_steps(**columns):
    return {"step": np.arange(1, STEPS + 1)} | columns


SHORTER = columns_of_all_steps(tokens_per_response=np.linspace(400, 50, STEPS))
SHIFTED = columns_of_all_steps(accuracy=np.repeat([0.1, 0.9], STEPS // 2) + 0.01 * np.resize([1, -1, 0.5], STEPS))
TOO_SLOW = columns_of_all_steps(
    **{name: np.ones(STEPS) for name in ("lost_rewards", "rollouts", "reward/failures/too_slow")}
)
LIMIT = "algorithm.gsd.limits.reward_seconds"
PER_RESPONSE = f"{AVERAGE}=seq-mean-token-mean"


@pytest.mark.parametrize(
    ("steps", "words", "key", "is_given"),
    [
        (SHORTER, (*SMALL, PER_RESPONSE), AVERAGE, True),
        (SHORTER, ("algo=gvpo", *SMALL[1:], PER_RESPONSE), AVERAGE, False),
        (SHORTER, ("algo=gvpo", *SMALL[1:], PER_RESPONSE, f"{ACTOR}.entropy_coeff=0.01"), AVERAGE, True),
        (SHIFTED, (*SMALL, "data.shuffle=false"), "data.shuffle", True),
        (TOO_SLOW, SMALL, LIMIT, True),
        (TOO_SLOW, (*SMALL, "algorithm.adv_estimator=grpo", "trainer.v1.trainer_mode=sync"), LIMIT, False),
        (SHIFTED, (*SMALL, "data.shuffle=false", "sampler=disagreement"), "data.shuffle", False),
    ],
)
def test_a_key_without_effect_is_not_advised(compose_fast, steps, words, key, is_given):
    """The checks before a run reject such a key."""
    config, _ = compose_fast(*words)
    findings = collect_findings(steps, dict(dotted_leaves(OmegaConf.to_container(config))), words)
    overrides = [override for finding in findings for override in finding.overrides]
    assert any(override.startswith(f"{key}=") for override in overrides) == is_given, overrides


def test_a_key_stays_advised_if_the_config_does_not_tell_whether_it_has_an_effect():
    sampler = {"algorithm.gsd.sampler.explore": 0.1, "data.shuffle": False}
    rows = {"data.train_max_samples": -1, "data.val_max_samples": -1}
    advice = ("data.shuffle=true  # why",)
    assert accepted_overrides(advice, sampler, ()) == advice
    assert accepted_overrides(advice, sampler | rows, ()) == ()
    beta = (f"{ACTOR}.policy_loss.beta=...  # why",)
    assert accepted_overrides(beta, {}, ()) == beta
    assert accepted_overrides(beta, {f"{ACTOR}.policy_loss.beta": None, LOSS: "vanilla"}, ()) == ()
