"""What the auditor reads off a config, and the contradictions it names."""

import itertools
import math
import re

import numpy as np
import pytest

from verl_gsd.audit import RATES, audit
from verl_gsd.planning import gain

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"


@pytest.fixture
def audited(compose_fast):
    return lambda *words: audit(compose_fast("task=arithmetic", "hardware=cpu", *words)[0])


@pytest.mark.parametrize(
    ("words", "alpha", "ddof", "eps", "said"),
    [
        (["algo=grpo"], 1, 1, 1e-6, r"\(GRPO\)"),
        (["algo=dr_grpo"], 0, 1, 1e-6, r"\(Dr\. GRPO\)"),
        (["algo=gspo"], 1, 1, 1e-6, r"\(GRPO\)"),
        (["algo=gsd", "algorithm.gsd.alpha=-1", "algorithm.gsd.ddof=0", "algorithm.gsd.eps=0"], -1, 0, 0, r"sigma\^-1"),
        (["algo=gsd", "algorithm.gsd.alpha=2"], 2, 1, 1e-6, r"sigma\^2"),
        (["algo=grpo", "algorithm.adv_estimator=grpo"], 1, 1, 1e-6, r"\(GRPO\)"),
        (["algo=dr_grpo", "algorithm.adv_estimator=grpo_vectorized"], 0, 1, 1e-6, r"\(Dr\. GRPO\)"),
        (["algo=grpo", "algorithm.adv_estimator=rloo"], 0, 1, 0, r"G/\(G-1\)"),
    ],
)
def test_the_operation_on_sigma_is_read_off_the_config(audited, words, alpha, ddof, eps, said):
    seen = audited(*words)
    operation = seen.operation
    assert (operation.alpha, operation.ddof, operation.eps) == (alpha, ddof, eps)
    assert re.search(said, operation.description) and operation.description in "\n".join(seen.lines())
    assert seen.warnings == ()
    divisor = {0: "G (ddof 0)", 1: "G - 1 (ddof 1)"}[ddof]
    assert f"; sigma has the divisor {divisor}" in "\n".join(seen.lines())
    curve = gain(RATES, 8, alpha, ddof=ddof, eps=eps)
    assert seen.gains == pytest.approx((curve / curve[-1]).tolist())


def test_gains_tell_grpo_from_dr_grpo_where_it_matters(audited):
    hard = RATES.index(0.05)
    assert audited("algo=grpo").gains[hard] > 1.3 * audited("algo=dr_grpo").gains[hard]


def test_other_estimators_are_not_described(audited):
    seen = audited("algo=grpo", "algorithm.adv_estimator=reinforce_plus_plus")
    assert seen.operation is None and not any(line.startswith("gain ") for line in seen.lines())
    assert any(line.startswith("reinforce_plus_plus: ") for line in seen.lines())
    assert "gain 0" not in seen.silent_groups and "trained on" in seen.silent_groups


def test_rloo_has_its_factor_in_the_formula(audited):
    assert any("A = 1.14 (R - mu)" in line for line in audited("algo=grpo", "algorithm.adv_estimator=rloo").lines())


@pytest.mark.parametrize(("mode", "shown"), [("all_fail", 1), ("all_fail", 2), ("always", 1), ("always", 3)])
def test_gains_include_demonstrations(audited, mode, shown):
    """All 2^8 outcomes of a group at each rate, with the demonstrations in the places of its last failures or rows."""
    section = "algorithm.gsd.dagrpo.demonstrations"
    seen = audited("algo=dagrpo_anchors", f"{section}.mode={mode}", f"{section}.per_group={shown}")
    operation, size = seen.operation, seen.group_size
    expected = []
    for rate in RATES:
        total = 0.0
        for outcome in itertools.product((0, 1), repeat=size):
            chance = math.prod(rate if right else 1 - rate for right in outcome)
            rewards = np.array(outcome, float)
            if mode == "always" or not any(outcome):
                rewards[size - shown :] = 1
            sigma = rewards.std()
            if sigma:
                divisor = rewards.std(ddof=operation.ddof) + operation.eps
                total += chance * sigma**2 / divisor**operation.alpha
        expected.append(total)
    assert seen.gains == pytest.approx([value / expected[-1] for value in expected])
    assert any("if every such group gets its demonstration" in line for line in seen.lines())
    assert "every rollout failed" in seen.silent_groups


def test_the_first_p_of_the_audit_is_named(audited):
    page = "\n".join(audited("algo=grpo").lines())
    assert page.index("by solve rate p,") < page.index("p=")
    assert "unanimous" not in page, "one word for one thing: silent"


def test_dapo_evicts_silent_groups(audited):
    assert re.search(r"silent groups: removed and replaced\b", "\n".join(audited("algo=dapo").lines()))
    assert re.search("silent groups: .*gain 0", "\n".join(audited("algo=grpo").lines()))


def silent_line(audited, *words):
    (line,) = (line for line in audited(*words).lines() if line.startswith("silent groups: "))
    return line


@pytest.mark.parametrize(
    ("words", "unit"),
    [
        (["algo=grpo"], "responses"),
        (["algo=dr_grpo"], "responses"),
        (["algo=grpo", f"{ACTOR}.loss_agg_mode=token-mean"], "tokens"),
        (["algo=grpo", f"{ACTOR}.loss_agg_mode=token-mean", f"{ACTOR}.policy_loss.loss_mode=sapo"], "responses"),
    ],
)
def test_what_silent_groups_do_to_the_denominator(audited, words, unit):
    line = silent_line(audited, *words)
    assert re.search(rf"divided by the {unit} of these groups.*factor 1 - s .*silent_groups=left_out", line)
    line = silent_line(audited, *words, "silent_groups=left_out")
    assert re.search(rf"left out of the denominator.*by the {unit} of the other groups.*KL and entropy", line)
    assert re.search(r"1 / \(1 - s\) times verl's.*dynamic sampling.*Adam.*clip_grad", line)


def test_a_denominator_that_counts_nothing_is_not_described(audited):
    assert silent_line(audited, "algo=grpo", f"{ACTOR}.loss_agg_mode=token-sum") == "silent groups: kept, with gain 0"
    line = silent_line(audited, "algo=grpo", "algorithm.adv_estimator=rloo")
    assert "factor 1 - s" in line and "silent_groups=left_out" not in line, "that needs the estimator gsd"
    line = silent_line(audited, "algo=gvpo")
    assert "denominator" not in line and "factor 1 - s" not in line, "its silent groups have a gradient"


@pytest.mark.parametrize("mode", ["geo_mean", "clip_cov", "kl_cov", "dro"])
def test_leaving_silent_groups_out_is_not_suggested_where_it_is_rejected(audited, mode):
    line = silent_line(audited, "algo=grpo", f"{ACTOR}.policy_loss.loss_mode={mode}")
    assert "left_out" not in line
    has_gradient = mode in ("kl_cov", "dro")
    assert ("still has a gradient" in line) == has_gradient and ("gain 0" in line) != has_gradient


def test_no_group_is_silent_with_a_kl_penalty_in_the_reward(audited):
    line = silent_line(audited, "algo=grpo", "algorithm.use_kl_in_reward=true")
    assert "trained on" in line and "gain 0" not in line and "left_out" not in line


def test_a_denominator_under_a_budget_is_said_to_count_every_prompt_alike(audited):
    words = ("algo=grpo", "silent_groups=left_out", "data.dataloader_num_workers=0")
    assert "counts n / the prompt's rollouts" in silent_line(audited, *words, "budget=adaptive")
    assert "counts n / the prompt's rollouts" not in silent_line(audited, *words)


def test_dynamic_sampling_leaves_nothing_to_leave_out(audited):
    seen = audited("algo=dapo", "silent_groups=left_out")
    assert "removed and replaced" in "\n".join(seen.lines())
    (warning,) = (text for text in seen.warnings if text.startswith("algorithm.gsd.silent_groups "))
    assert "silent_groups=counted" in warning and "algorithm.filter_groups.enable=false" in warning


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (
            ["algo=grpo", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm"],
            "loss_agg_mode=seq-mean-token-sum-norm.*algorithm.gsd.alpha=0",
        ),
        (
            [
                "algo=grpo",
                "algorithm.adv_estimator=grpo",
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            ],
            "loss_agg_mode=seq-mean-token-sum-norm.*algorithm.norm_adv_by_std_in_grpo=false",
        ),
        (  # as scripts of verl's set them, and such keys win over +algo=gspo
            ["algo=gspo", f"{ACTOR}.clip_ratio_low=0.2", f"{ACTOR}.clip_ratio_high=0.28"],
            r"clip_ratio_low=0\.2 and .*clip_ratio_high=0\.28 .*loss_mode=gspo.*clip_ratio_low=0\.0003",
        ),
        (
            ["algo=dr_grpo", "actor_rollout_ref.actor.loss_scale_factor=null"],
            "factor=null.*data.max_response_length",
        ),
        (["algo=dapo", "algorithm.filter_groups.metric=reward"], r"filter_groups.metric=reward: .*group\. .*\bacc\b"),
        (
            [
                "algo=dapo",
                "algorithm.filter_groups.metric=reward",
                "reward.reward_manager.name=dapo",
                "+reward.reward_kwargs.overlong_buffer_cfg.enable=true",
            ],
            r"metric=reward: .*, with the overlong penalty of reward\.reward_kwargs\.overlong_buffer_cfg\. .*\bacc\b",
        ),
        (
            ["algo=dapo", "algorithm.filter_groups.metric=reward", "algorithm.use_kl_in_reward=true"],
            r"metric=reward: .*, without the KL penalty\. .*\bacc\b",
        ),
        (
            ["algo=dapo", "algorithm.filter_groups.metric=score"],
            r"metric=score: .*before a penalty.*plain number.*\bacc",
        ),
        (["algo=dapo", "algorithm.filter_groups.metric=format"], r"metric=format: .*must return .*\bacc\b"),
        (
            ["algo=dapo", "task=arithmetic_graded"],
            r"filter_groups\.metric=acc: .*even if their scores.*Set it to score",
        ),
        (
            ["algo=dapo", "reward.custom_reward_function.path=null"],
            r"metric=acc\b.*reward.custom_reward_function\b",
        ),
        (["algo=grpo", "algorithm.use_kl_in_reward=true"], "algorithm.use_kl_in_reward=true.*use_kl_loss=true"),
        (["algo=grpo", "actor_rollout_ref.rollout.n=1"], r"rollout.n=1\b.*\b2\b"),
        (
            ["algo=grpo", "data.train_batch_size=100", f"{ACTOR}.ppo_mini_batch_size=64"],
            r"has 100 prompts.*padding for 28 prompts.*these rows count.*batch_size=50, or .*batch_size=64\.",
        ),
        (
            [
                *["algo=grpo", "data.train_batch_size=100", f"{ACTOR}.ppo_mini_batch_size=32", f"{ROLLOUT}.n=4"],
                "trainer.n_gpus_per_node=8",
            ],
            r"padding for 28 prompts.*batch_size=20, or .*batch_size=96\.",
        ),
        (
            [
                *["algo=grpo", "data.train_batch_size=101", f"{ACTOR}.ppo_mini_batch_size=32", f"{ROLLOUT}.n=4"],
                "trainer.n_gpus_per_node=8",
            ],
            r"these rows count\. Set data\.train_batch_size=96\.",
        ),
        (
            ["algo=dapo", "data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=256"],
            r"has 64 prompts.*padding for 192 prompts, which have no loss\. Set .*batch_size=64, or .*batch_size=256\.",
        ),
        (
            [
                "algo=grpo",
                "trainer.v1.trainer_mode=gsd_colocate_async",
                "trainer.v1.colocate_async.parameter_sync_step=2",
                "data.train_batch_size=64",
                f"{ACTOR}.ppo_mini_batch_size=64",
            ],
            r"each part of a step \(trainer\.v1\.colocate_async\.parameter_sync_step=2\) has 32 prompts"
            r".* Set actor_rollout_ref\.actor\.ppo_mini_batch_size=32, or "
            r"data\.train_batch_size=128 and actor_rollout_ref\.actor\.ppo_mini_batch_size=64\.$",
        ),
    ],
)
def test_contradictions_are_named_with_what_to_write(audited, words, warning):
    assert len([text for text in audited(*words).warnings if re.search(warning, text)]) == 1


def test_an_algorithm_that_places_its_own_groups_has_no_rows_of_verls_padding(audited):
    for words in (["data.train_batch_size=30"], ["data.train_batch_size=24", f"{ACTOR}.ppo_mini_batch_size=16"]):
        assert not any("padding" in text for text in audited("algo=gvpo", *words).warnings)


@pytest.mark.parametrize(
    "words",
    [
        ["reward.custom_reward_function.path=mine.py"],
        ["task=arithmetic_graded"],
        ["reward.reward_model.enable=true", "reward.custom_reward_function.path=null"],
        ["+reward.reward_kwargs.overlong_buffer_cfg.enable=true"],
    ],
)
def test_alpha_above_1_with_rewards_that_may_be_graded_is_warned_of(audited, words):
    def warned(alpha, *words):
        texts = audited("algo=gsd", f"algorithm.gsd.alpha={alpha}", *words).warnings
        return [text for text in texts if text.startswith(f"algorithm.gsd.alpha={alpha} ")]

    (text,) = warned(1.5, *words)
    assert "floor" in text and "alpha to 1 or less" in text
    assert not warned(1, *words) and not warned(1.5)


def test_the_filter_that_the_audit_advises_for_partial_credit_has_no_warning(audited):
    words = ["algo=dapo", "task=arithmetic_graded", "algorithm.filter_groups.metric=score"]
    assert not any("filter_groups.metric" in text for text in audited(*words).warnings)


def test_a_reward_model_without_a_verifier_gets_no_advice_about_acc(audited):
    """Its groups have none: gsd_section.py rejects the metrics that would read one."""
    for metric in ("acc", "reward"):
        words = ["reward.reward_model.enable=true", f"algorithm.filter_groups.metric={metric}"]
        found = audited("algo=dapo", "reward.custom_reward_function.path=null", *words).warnings
        assert not any("filter_groups.metric" in text for text in found)


def test_a_sampler_is_said_to_change_what_is_trained(audited):
    (said,) = (text for text in audited("algo=grpo", "sampler=disagreement").lines() if text.startswith("prompts: "))
    assert re.search(r"\b0\.1\b", said)
    assert not any(text.startswith("prompts: ") for text in audited("algo=grpo", "sampler=uniform").lines())


TRAINED, HELD_OUT = "data.train_files", "data.val_files"
VERIFIER, MODEL = "reward.custom_reward_function.path", "actor_rollout_ref.model.path"


@pytest.mark.parametrize(
    ("words", "others", "kept"),
    [
        ([f"{TRAINED}=/mine.parquet"], {TRAINED}, {VERIFIER, HELD_OUT}),
        ([f"{TRAINED}=/mine.parquet", f"{HELD_OUT}=[/a.parquet,/b.parquet]"], {TRAINED, HELD_OUT}, {VERIFIER}),
        ([f"{VERIFIER}=mine.py"], {VERIFIER}, {HELD_OUT}),
        ([f"{MODEL}=/mine"], {MODEL}, {VERIFIER, HELD_OUT}),
        (["recipe=gsd/qwen2.5_math_1.5b"], {"recipe"}, {VERIFIER, HELD_OUT}),
        (["recipe=gsd/qwen2.5_math_1.5b", f"{TRAINED}=/mine.parquet"], {"recipe", TRAINED}, {VERIFIER, HELD_OUT}),
    ],
)
def test_a_task_with_other_data_says_what_stays_the_tasks(audited, words, others, kept):
    seen = audited("algo=grpo", *words)
    of_line, of_task = seen.task.split(": ", 1)
    assert of_line.startswith("task=arithmetic ") and any(seen.task in line for line in seen.lines())
    named = {"recipe", TRAINED, HELD_OUT, VERIFIER, MODEL}
    assert {name for name in named if name in of_line} == others
    values = {VERIFIER: "pkg://verl_gsd.tasks.arithmetic", HELD_OUT: ".*/arithmetic/test.parquet"}
    assert {name for name in named if re.search(f"{name}={values.get(name, '')}", of_task)} == kept


def test_a_task_alone_or_replaced_as_a_whole_says_nothing(audited, compose_fast):
    replaced = ["data.train_files=/a", "data.val_files=/b", "reward.custom_reward_function.path=c.py"]
    assert audited("algo=grpo").task == audited("algo=grpo", *replaced).task == ""
    config, _ = compose_fast("recipe=gsd/qwen2.5_math_1.5b", "hardware=cpu", "data.train_files=/mine.parquet")
    assert audit(config).task == ""


def test_hadw_is_said_to_weigh(audited):
    assert any(re.search(r"2601\.08521.*\bsoft\b", line) for line in audited("algo=hadw_dapo").lines())
    off = audited("algo=hadw", "algorithm.gsd.hadw.preset=off")
    assert not any("2601.08521" in line for line in off.lines())


@pytest.mark.parametrize(
    ("words", "remedies"),
    [
        (["algo=grpo", f"{ROLLOUT}.n=1"], [f"{ROLLOUT}.n=2"]),
        (
            ["algo=dr_grpo", "algorithm.gsd.alpha=1"],
            ["algorithm.gsd.alpha=0", f"{ACTOR}.loss_agg_mode=seq-mean-token-mean"],
        ),
        (
            ["algo=dr_grpo", "algorithm.adv_estimator=grpo", "algorithm.norm_adv_by_std_in_grpo=true"],
            ["algorithm.norm_adv_by_std_in_grpo=false"],
        ),
        (["algo=dr_grpo", f"{ACTOR}.loss_scale_factor=null"], [f"{ACTOR}.loss_scale_factor=6"]),
        (["algo=gspo", f"{ACTOR}.clip_ratio_high=0.28"], [f"{ACTOR}.clip_ratio_high=0.0004"]),
        (["algo=grpo", "algorithm.use_kl_in_reward=true"], ["algorithm.use_kl_in_reward=false"]),
        (["algo=dapo", "algorithm.filter_groups.metric=reward"], ["algorithm.filter_groups.metric=acc"]),
        (
            ["algo=gvpo", "data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=64"],
            [f"{ACTOR}.ppo_mini_batch_size=16"],
        ),
        (
            ["algo=grpo", "data.train_batch_size=90", f"{ACTOR}.ppo_mini_batch_size=64"],
            [f"{ACTOR}.ppo_mini_batch_size=45", "data.train_batch_size=64"],
        ),
        (["algo=gvpo", f"{ROLLOUT}.top_p=0.9"], [f"{ROLLOUT}.top_p=1"]),
        (["algo=gvpo", f"{ROLLOUT}.top_k=5"], [f"{ROLLOUT}.top_k=-1"]),
        (
            ["algo=gvpo", "algorithm.gsd.gvpo.history_fraction=0.25", "trainer.total_epochs=1"],
            ["trainer.total_epochs=2", "algorithm.gsd.gvpo.history_fraction=0"],
        ),
        (["algo=gvpo", f"{ACTOR}.policy_loss.var=false"], [f"{ACTOR}.policy_loss.var=true"]),
        (["algo=grpo", "budget=adaptive", "trainer.total_epochs=1"], ["trainer.total_epochs=2", "budget=uniform"]),
    ],
)
def test_a_warning_ends_if_its_remedy_is_followed(audited, words, remedies):
    assert len(audited(*words).warnings) == 1
    for remedy in remedies:
        name = remedy.partition("=")[0]
        others = [word for word in words if word.partition("=")[0] != name]
        assert audited(*others, remedy).warnings == (), remedy
