"""Every mistake under DaGRPO that can be seen before Ray starts, and what the audit says of it."""

import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from evaluation_runs import random_model

from verl_gsd.audit import audit
from verl_gsd.errors import ConfigError
from verl_gsd.judge.agreement import measure_agreement
from verl_gsd.judge.encoder import Encoder, fingerprint
from verl_gsd.judge.head import DistilledJudge, Head
from verl_gsd.run.checks import validate as validation

DAGRPO, POLICY = "algorithm.gsd.dagrpo", "actor_rollout_ref.actor.policy_loss"
JUDGE, SHOWN = f"{DAGRPO}.judge", f"{DAGRPO}.demonstrations"


@pytest.fixture
def check(compose_fast, tiny_task):
    def check(*words, algo="dagrpo"):
        words = [f"algo={algo}", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words]
        validation.validate(*compose_fast(*words))

    return check


@pytest.mark.parametrize(
    ("algo", "words"),
    [
        ("dagrpo", ()),
        ("dagrpo_mask", (f"{DAGRPO}.delta={{quantile:0.25}}", f"{DAGRPO}.mask=mean", f"{JUDGE}.scorer=stub")),
        ("dagrpo_anchors", (f"{SHOWN}.mode=always", f"{SHOWN}.per_group=3", f"{POLICY}.on_policy=gspo")),
        ("dagrpo", (f"{SHOWN}.source=self", f"{DAGRPO}.delta={{from:1,to:5,steps:9}}", f"{DAGRPO}.probe_every=5")),
        ("dagrpo_anchors", ("+algorithm.gsd.hadw.preset=hard", f"{SHOWN}.source=expert_or_self")),
        ("dagrpo", (f"{JUDGE}.api_key_env=OPENAI_API_KEY",)),
    ],
)
def test_right_lines_pass(check, algo, words):
    check(*words, algo=algo)


#: Lines with as many mistakes as go together, each with what is said of it: all are named at once. Where a section of
#: DaGRPO by itself is wrong, its other checks do not run.
LINES = [
    {
        f"{JUDGE}.timeout_s=0": r"judge\.timeout_s=0: ",
        f"{SHOWN}.mode=never": r"demonstrations\.mode=never: .*all_fail, always",
    },
    {
        f"{SHOWN}.per_group=8": r"per_group=8 with actor_rollout_ref\.rollout\.n=8: ",
        f"{POLICY}.ratio=two": r"policy_loss\.ratio=two: .*shaped, one",
        "algorithm.rollout_correction.bypass_mode=true": r"bypass_mode=true: .*bypass_mode=false",
        "critic.enable=true": r"critic\.enable=true: .*critic\.enable=false",
    },
    {
        f"{JUDGE}.scorer=stub": "",
        f"{JUDGE}.base_url=http://judge/v1": r"base_url=http://judge/v1 .*judge\.scorer=openai",
        f"{SHOWN}.source=self": "",
        f"{SHOWN}.column=solution": r"column=solution .*source=self",
        f"{POLICY}.ratio=one": "",
        f"{POLICY}.gamma=0.2": r"gamma=0\.2 .*policy_loss\.ratio=one",
    },
    {f"{JUDGE}.base_url=http://me:hunter2@judge/v1": r"judge\.base_url: "},
    {f"{POLICY}.on_policy=clip_cov": r"policy_loss\.on_policy=clip_cov: .*vanilla, gspo"},
    {f"{POLICY}.gamma=0": r"policy_loss\.gamma=0: .*0"},
    {f"{JUDGE}.scorer=oracle": r"judge\.scorer=oracle: .*openai, reward_model, distilled, stub"},
    {f"{JUDGE}.scorer=distilled": r"judge\.model=null: .*head\.json"},
    {f"{JUDGE}.scorer=reward_model": r"judge\.scorer=reward_model with reward\.reward_model\.enable=False"},
    {f"{JUDGE}.base_url='http://judge/v1?key=hunter2'": r"judge\.base_url: "},
    {f"{JUDGE}.base_url=judge": r"judge\.base_url: "},
    {f"{JUDGE}.api_key_env=sk-hunter2": r"judge\.api_key_env: "},
    {"algorithm.use_kl_in_reward=true": r"use_kl_in_reward=true: .*use_kl_loss=true"},
    {
        f"{DAGRPO}.probe_every=5": "",
        "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2": r"probe_every=5 .*2 workers.*FSDP",
    },
    {f"{DAGRPO}=3": r"algorithm\.gsd\.dagrpo=3: .*null"},
    {f"{JUDGE}=false": r"judge=false: .*null"},
    {f"{SHOWN}=false": r"demonstrations=false: .*null"},
    {f"{JUDGE}.scorer=null": r"judge\.scorer=null: "},
    {f"{JUDGE}.budget_s=null": r"judge\.budget_s=null: "},
    {f"{JUDGE}.cache=/": r"judge\.cache=/: .*null"},
    {f"{DAGRPO}.delta=11": r"delta=11: .* 0 to 10, .*no judged pair .*11"},
    {f"{DAGRPO}.delta=-10": r"delta=-10: .* 0 to 10, .*every pair .*-10"},
    {f"{DAGRPO}.delta={10**400}": r"delta=10+: "},
    {f"{JUDGE}.concurrency=0": r"judge\.concurrency=0: "},
    {f"+{JUDGE}.urls=x": r"judge\.urls: .*base_url"},
    {f"+{JUDGE}.budget=5": r"judge\.budget: .*Did you mean budget_s\?"},
    {f"+{SHOWN}.kolumn=x": r"demonstrations\.kolumn: .*column"},
    {f"{DAGRPO}.delta=high": r"algorithm\.gsd\.dagrpo\.delta=high: "},
    {f"{DAGRPO}.delta=-inf": r"delta=-inf with algorithm\.gsd\.dagrpo\.judge: "},
    {f"{JUDGE}=null": r"delta=3 without algorithm\.gsd\.dagrpo\.judge: .*delta=-\.inf"},
    {f"{SHOWN}=null": r"loss_mode=dagrpo without algorithm\.gsd\.dagrpo\.demonstrations"},
    {f"{POLICY}.loss_mode=vanilla": r"loss_mode=vanilla: algorithm\.gsd\.dagrpo\.demonstrations .*loss_mode=dagrpo"},
    {f"{DAGRPO}.probe_every=0": r"probe_every=0: "},
    {f"{DAGRPO}.mask=median": r"mask=median: .*pairs, min, mean, max.*Did you mean mean\?"},
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: next(iter(line)))
def test_mistakes_are_named_with_what_to_write(check, line):
    with pytest.raises(ConfigError) as refused:
        check(*line)
    said = str(refused.value).splitlines()
    for message in filter(None, line.values()):
        assert any(re.search(message, one) for one in said), said
    assert "hunter2" not in str(refused.value)


def test_a_column_that_is_not_there_is_named_with_those_that_are(check, tiny_task, tmp_path):
    copy = tmp_path / "train.parquet"
    pq.write_table(pq.read_table(tiny_task / "train.parquet"), copy)
    check(f"data.train_files={copy}")
    with pytest.raises(ConfigError, match=r"column=solution: data\.train_files=.*ability"):
        check(f"data.train_files={copy}", f"{SHOWN}.column=solution")
    with pytest.raises(ConfigError, match=r"column=extra_info: .*struct<"):
        check(f"data.train_files={copy}", f"{SHOWN}.column=extra_info")


def test_knobs_of_a_mask_that_nobody_judges_for_do_nothing(check):
    with pytest.raises(ConfigError, match=r"mask=min does nothing"):
        check(f"+{DAGRPO}.mask=min", algo="dagrpo_anchors")


def test_keys_of_parts_that_are_not_there_are_answered_and_not_stumbled_over(check):
    with pytest.raises(ConfigError, match=r"delta=-inf with algorithm\.gsd\.dagrpo\.judge"):
        check(f"+{JUDGE}.cache_mb=4", algo="dagrpo_anchors")
    with pytest.raises(ConfigError, match=r"cache_mb=4 .*algorithm\.gsd\.dagrpo\.judge\.cache is null"):
        check(f"{JUDGE}.cache_mb=4", f"{JUDGE}.cache=null")


def test_gvpo_goes_with_no_mask(check):
    with pytest.raises(ConfigError, match=r"algorithm\.gsd\.dagrpo\.judge: .*GVPO"):
        check(f"+{DAGRPO}.delta=3", f"+{JUDGE}.scorer=stub", algo="gvpo")


@pytest.mark.parametrize(("algo", "part"), [("dagrpo_mask", "judge"), ("dagrpo_anchors", "demonstrations")])
def test_both_parts_need_the_advantages_of_the_dial(check, algo, part):
    with pytest.raises(ConfigError, match=rf"adv_estimator=grpo: algorithm\.gsd\.dagrpo\.{part} does not work with it"):
        check("algorithm.adv_estimator=grpo", algo=algo)


def test_a_cache_that_is_there_or_can_be_made_is_right(check, tmp_path):
    there = tmp_path / "there.sqlite"
    there.touch()
    for file in (there, tmp_path / "not" / "yet" / "there.sqlite"):
        check(f"{JUDGE}.cache={file}")


def test_a_distilled_judge_is_rejected_if_a_step_would_take_longer_than_its_budget(check, tmp_path):
    model, folder = random_model(tmp_path / "model"), tmp_path / "head"
    width = Encoder(model).width
    ones = np.ones(width)
    agreement = measure_agreement(*(np.arange(4.0),) * 2, np.zeros(4, int), 4)
    head = Head(ones, ones, ones, 5.0, whole=True)
    DistilledJudge("a judge", model, fingerprint(model), head, 1.0, agreement).save(folder)
    words = [f"{JUDGE}.scorer=distilled", f"{JUDGE}.model={folder}"]
    check(*words)
    pattern = (
        r"judge\.model=.*one CPU core.* [\d,]+ responses .* would take about [\d,]+ s, and .*budget_s=1e-05 allows 0"
    )
    with pytest.raises(ConfigError, match=pattern):
        check(*words, f"{JUDGE}.budget_s=0.00001")
    (model / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"judge\.model=.*model\.safetensors: cannot be read"):
        check(*words)


def test_a_task_that_is_made_anew_is_not_asked_for_its_columns(check, tmp_path):
    check(f"task.directory={tmp_path}/task")


def test_the_audit_says_what_is_masked_and_who_is_shown(compose_fast, tiny_task):
    def words(algo, *further):
        config, _ = compose_fast(f"algo={algo}", "task=arithmetic", "hardware=cpu", *further)
        return "\n".join(audit(config).lines())

    both = words("dagrpo", "+algorithm.gsd.hadw.preset=soft")
    assert re.search(r"judge \(openai\) .*3", both) and "expert's response" in both
    places = [both.index(words) for words in ("response replaces", "judge (openai)", "(GRPO)", "HA-DW's factor")]
    assert places == sorted(places), "demonstrations join before rewards are centred, and weights come last"
    anchors = words("dagrpo_anchors", f"{SHOWN}.source=self", f"{SHOWN}.mode=always")
    assert "judge" not in anchors and "expert's response" not in anchors and "every group" in anchors
    assert "judge" not in words("grpo")


def test_the_arithmetic_data_has_a_demonstration_that_its_own_verifier_accepts(tiny_task):
    from verl_gsd.tasks.arithmetic import compute_score

    for row in pq.read_table(tiny_task / "train.parquet").to_pylist():
        truth = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], row["demonstration"], truth)["acc"] == 1.0


class TestTheJudge:
    """Asked before Ray starts whether it is there."""

    def problems(self, compose_fast, url, *words):
        from verl_gsd.run.checks.gsd_section import check_extension_services

        config, _ = compose_fast("algo=dagrpo", "task=arithmetic", "hardware=cpu", f"{JUDGE}.base_url={url}", *words)
        return "".join(check_extension_services(config))

    def test_no_server(self, compose_fast):
        said = self.problems(compose_fast, "http://127.0.0.1:9/v1")
        assert re.search(r"judge\.base_url=http://127\.0\.0\.1:9/v1: .*scorer=stub", said)

    def test_another_kind_of_scorer_is_not_looked_for(self, compose_fast):
        assert self.problems(compose_fast, "http://127.0.0.1:9/v1", f"{JUDGE}.scorer=stub") == ""
