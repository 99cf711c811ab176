"""What the auditor reads off a config, and the contradictions it names."""

import re

import pytest

from verl_gsd.audit import RATES, audit
from verl_gsd.planning import gain


@pytest.fixture
def audited(compose_fast):
    return lambda *words: audit(compose_fast("task=arithmetic", "hardware=cpu", *words)[0])


@pytest.mark.parametrize(
    ("words", "alpha", "ddof", "eps", "said"),
    [
        (["algo=grpo"], 1, 1, 1e-6, "divides by sigma (GRPO)"),
        (["algo=dr_grpo"], 0, 1, 1e-6, "keeps sigma (Dr. GRPO)"),
        (["algo=gspo"], 1, 1, 1e-6, "divides by sigma (GRPO)"),
        (["algo=gsd", "algorithm.gsd.alpha=-1", "algorithm.gsd.ddof=0", "algorithm.gsd.eps=0"], -1, 0, 0, "sigma^-1"),
        (["algo=gsd", "algorithm.gsd.alpha=2"], 2, 1, 1e-6, "all mixed groups weigh the same"),
        (["algo=grpo", "algorithm.adv_estimator=grpo"], 1, 1, 1e-6, "divides by sigma (GRPO)"),
        (["algo=dr_grpo", "algorithm.adv_estimator=grpo_vectorized"], 0, 1, 1e-6, "keeps sigma (Dr. GRPO)"),
        (["algo=grpo", "algorithm.adv_estimator=rloo"], 0, 1, 0, "G/(G-1) times Dr. GRPO"),
    ],
)
def test_the_operation_on_sigma_is_read_off_the_config(audited, words, alpha, ddof, eps, said):
    seen = audited(*words)
    operation = seen.operation
    assert (operation.alpha, operation.ddof, operation.eps) == (alpha, ddof, eps)
    assert said in operation.words and said in "\n".join(seen.lines())
    assert seen.warnings == ()
    curve = gain(RATES, 8, alpha, ddof=ddof, eps=eps)
    assert seen.gains == pytest.approx((curve / curve[-1]).tolist())


def test_gains_tell_grpo_from_dr_grpo_where_it_matters(audited):
    hard = RATES.index(0.05)
    assert audited("algo=grpo").gains[hard] > 1.3 * audited("algo=dr_grpo").gains[hard]


def test_other_estimators_are_not_described(audited):
    seen = audited("algo=grpo", "algorithm.adv_estimator=reinforce_plus_plus")
    assert seen.operation is None and "is not described here" in "\n".join(seen.lines())


def test_dapo_evicts_silent_groups(audited):
    assert "evicted and replaced" in "\n".join(audited("algo=dapo").lines())
    assert "kept, with gain 0" in "\n".join(audited("algo=grpo").lines())


@pytest.mark.parametrize(
    ("words", "warning"),
    [
        (["algo=grpo", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm"], "is Dr. GRPO's"),
        (
            [
                "algo=grpo",
                "algorithm.adv_estimator=grpo",
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            ],
            "Write algorithm.norm_adv_by_std_in_grpo=false",
        ),
        (["algo=dr_grpo", "actor_rollout_ref.actor.loss_scale_factor=null"], "longest response of each micro-batch"),
        (["algo=dapo", "algorithm.filter_groups.metric=reward"], "filter_groups.metric=reward: a shaped score"),
        (["algo=dapo", "reward.custom_reward_function.path=null"], "with verl's own scorers"),
        (["algo=grpo", "algorithm.use_kl_in_reward=true"], "less a KL penalty"),
        (["algo=grpo", "actor_rollout_ref.rollout.n=1"], "every group is silent"),
    ],
)
def test_contradictions_are_named_with_what_to_write(audited, words, warning):
    found = [text for text in audited(*words).warnings if warning in text]
    assert len(found) == 1
    assert any(remedy in found[0] for remedy in ("Write ", "name a ", "Filter with ")), "it says what to do"


def test_a_reward_model_without_a_verifier_gets_no_advice_about_acc(audited):
    """Its groups have none: own_section.py rejects the metrics that would read one."""
    for metric in ("acc", "reward"):
        words = ["reward.reward_model.enable=true", f"algorithm.filter_groups.metric={metric}"]
        found = audited("algo=dapo", "reward.custom_reward_function.path=null", *words).warnings
        assert not any("filter_groups.metric" in text for text in found)


def test_a_sampler_is_said_to_change_what_is_trained(audited):
    (said,) = (text for text in audited("algo=grpo", "sampler=disagreement").lines() if text.startswith("prompts: "))
    assert "the average over what is drawn; 0.1 of the chance is the same for all" in said
    assert not any(text.startswith("prompts: ") for text in audited("algo=grpo", "sampler=uniform").lines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["data.train_files=/mine.parquet"],
            r"task=arithmetic with another data\.train_files: the verifier \(reward\.custom_reward_function\.path="
            r"pkg://verl_gsd\.tasks\.arithmetic\) and the held-out set \(data\.val_files=.*/arithmetic/test\.parquet\) "
            r"are the task's\. Set these keys to change that\.",
        ),
        (
            ["data.train_files=/mine.parquet", "data.val_files=[/a.parquet,/b.parquet]"],
            r"task=arithmetic with another data\.train_files and another data\.val_files: the verifier \(.*\) is the "
            r"task's\. Set this key to change that\.",
        ),
        (
            ["reward.custom_reward_function.path=mine.py"],
            r"with another reward\.custom_reward_function\.path: the held-out set \(.*\) is the",
        ),
        (
            ["actor_rollout_ref.model.path=/mine"],
            r"with another actor_rollout_ref\.model\.path: the verifier \(.*\) and",
        ),
        (["recipe=gsd/qwen2.5_math_1.5b"], r"task=arithmetic with a recipe: the verifier \(.*tasks\.arithmetic\) and"),
        (
            ["recipe=gsd/qwen2.5_math_1.5b", "data.train_files=/mine.parquet"],
            r"task=arithmetic with a recipe and another data\.train_files: the verifier",
        ),
    ],
)
def test_a_task_with_other_data_says_what_stays_the_tasks(audited, words, said):
    assert len([line for line in audited("algo=grpo", *words).lines() if re.search(said, line)]) == 1


def test_a_task_alone_or_replaced_as_a_whole_says_nothing(audited, compose_fast):
    replaced = ["data.train_files=/a", "data.val_files=/b", "reward.custom_reward_function.path=c.py"]
    assert audited("algo=grpo").task == audited("algo=grpo", *replaced).task == ""
    config, _ = compose_fast("recipe=gsd/qwen2.5_math_1.5b", "hardware=cpu", "data.train_files=/mine.parquet")
    assert audit(config).task == ""


def test_hadw_is_said_to_weigh(audited):
    assert "then weighed by HA-DW's factor (arXiv 2601.08521), anchor hard" in list(audited("algo=hadw_dapo").lines())
    off = audited("algo=hadw", "algorithm.gsd.hadw.preset=off")
    assert not any("weighed" in line for line in off.lines())
