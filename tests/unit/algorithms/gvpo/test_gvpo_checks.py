"""Every mistake under GVPO that can be seen before Ray starts, and what is warned of."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_gsd.audit import audit
from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate

POLICY = "actor_rollout_ref.actor.policy_loss"
GVPO = "algorithm.gsd.gvpo"
DAGRPO = "algorithm.gsd.dagrpo"
SHOWN = f"{DAGRPO}.demonstrations"


@pytest.fixture
def check(compose_fast, tiny_task):
    def check(*words, algo="gvpo"):
        words = [f"algo={algo}", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words]
        validate.validate(*compose_fast(*words))

    return check


@pytest.mark.parametrize(
    "words",
    [
        (f"{POLICY}.reference=ref", f"{GVPO}.grouping=whole", f"{GVPO}.history_fraction=0.5"),
        ("algorithm.use_kl_in_reward=true", f"{GVPO}.allow_second_kl=true"),
        ("actor_rollout_ref.actor.entropy_coeff=0.01", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean"),
    ],
)
def test_right_lines_pass(check, words):
    check(*words)


#: Lines with as many mistakes as go together, each with what is said of it: all are named at once. Where the section by
#: itself is wrong, the other checks of GVPO do not run.
LINES = [
    {
        f"{GVPO}.grouping=some": r"gvpo\.grouping=some: .*auto, whole, prepass",
        f"{GVPO}.history_fraction=1": r"gvpo\.history_fraction=1: .*0.* 1",
        f"+{GVPO}.fraction=1": r"algorithm\.gsd\.gvpo\.fraction: .*history_fraction\?",
    },
    {
        f"{GVPO}.history_fraction=nan": r"gvpo\.history_fraction=nan: ",
        f"{GVPO}.allow_second_kl=no": r"allow_second_kl=no: .*true.*false",
    },
    {
        f"{POLICY}.beta=0": r"policy_loss\.beta=0: .*0",
        f"{POLICY}.var=1": r"policy_loss\.var=1: .*true.*false",
        "algorithm.gsd.alpha=1": r"algorithm\.gsd\.alpha=1: .*algorithm\.gsd\.alpha=0",
        "+algorithm.gsd.hadw.preset=hard": r"algorithm\.gsd\.hadw: .*GVPO",
        "actor_rollout_ref.actor.shuffle=true": r"actor\.shuffle=true: .*shuffle=false",
        "algorithm.rollout_correction.bypass_mode=true": r"bypass_mode=true: .*bypass_mode=false",
        "algorithm.rollout_correction.rollout_is=token": r"rollout_is=token: ",
        "algorithm.rollout_correction.rollout_rs=token_k1": r"rollout_rs=token_k1: ",
        "algorithm.use_kl_in_reward=true": r"use_kl_in_reward=true: .*allow_second_kl=true",
        "actor_rollout_ref.actor.clip_ratio_high=0.3": r"clip_ratio_high=0\.3 .*GVPO",
        "actor_rollout_ref.actor.loss_agg_mode=token-mean": r"loss_agg_mode=token-mean .*GVPO",
    },
    {
        f"{POLICY}.normalizer=n": r"policy_loss\.normalizer=n: .*k-1, k, none",
        "actor_rollout_ref.actor.use_kl_loss=true": "",
        "actor_rollout_ref.actor.kl_loss_coef=0.1": r"kl_loss_coef=0\.1: .*use_kl_loss=false .*allow_second_kl=true",
        f"{POLICY}.beta=-1": r"policy_loss\.beta=-1",
        f"{GVPO}.grouping=whole": "",
        "actor_rollout_ref.actor.use_dynamic_bsz=false": "",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4": r"_per_gpu=4: .* 8",
        "trainer.n_gpus_per_node=2": "",
        "actor_rollout_ref.actor.ppo_mini_batch_size=3": r"ppo_mini_batch_size=3: .* 2",
    },
    {
        f"{POLICY}.reference=base": r"policy_loss\.reference=base: .*old, ref",
        f"{GVPO}.history_fraction=0.05": r"history_fraction=0\.05 of .*rollout\.n=8 .*0\.0625",
        "actor_rollout_ref.rollout.calculate_log_probs=true": r"calculate_log_probs=true: .*history_fraction=0",
    },
    {
        f"{POLICY}.reference=ref": "",
        "actor_rollout_ref.actor.use_kl_loss=false": r"actor\.use_kl_loss=false: .*reference=ref .*use_kl_loss=true",
    },
    {
        "actor_rollout_ref.rollout.n=5": "",
        "trainer.n_gpus_per_node=2": "",
        "actor_rollout_ref.actor.ppo_mini_batch_size=5": r"25 rows, .*2 workers",
        "critic.enable=true": r"critic\.enable=true: .*false",
    },
    {
        "actor_rollout_ref.actor.use_dynamic_bsz=false": "",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32": r"_per_gpu=32: .*48 rows",
    },
    {
        f"{GVPO}.grouping=whole": "",
        "trainer.n_gpus_per_node=two": r"trainer\.n_gpus_per_node=two: ",
        "actor_rollout_ref.rollout.top_p=x": "",
        "actor_rollout_ref.actor.ppo_epochs=two": r"ppo_epochs=two: ",
        "data.train_files=null": r"data\.train_files=null",
    },
    {"algorithm.gsd.gvpo=null": r"loss_mode=gvpo without algorithm\.gsd\.gvpo"},
    {f"{POLICY}.loss_mode=null": r"loss_mode=None with algorithm\.gsd\.gvpo"},
    {f"{POLICY}.loss_mode=vanilla": r"loss_mode=vanilla: algorithm\.gsd\.gvpo does not .*use another algo"},
]


@pytest.mark.parametrize("line", LINES)
def test_mistakes_are_named_with_what_to_write(check, line):
    with pytest.raises(ConfigError) as refused:
        check(*line)
    for message in filter(None, line.values()):
        assert re.search(message, str(refused.value)), message


@pytest.mark.parametrize(
    "words", [(), (f"{SHOWN}.mode=always", f"{SHOWN}.per_group=3"), (f"{SHOWN}.source=self", f"{POLICY}.reference=ref")]
)
def test_demonstrations_go_with_gvpo(check, words):
    check(*words, algo="gvpo_demonstrations")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((f"+{POLICY}.ratio=shaped",), r"policy_loss\.ratio=shaped does nothing: only .*loss_mode=dagrpo reads it"),
        ((f"+{POLICY}.gamma=0.1",), r"policy_loss\.gamma=0\.1 does nothing: only .*loss_mode=dagrpo reads it"),
        ((f"{SHOWN}.per_group=8",), r"per_group=8 with actor_rollout_ref\.rollout\.n=8: "),
        ((f"{DAGRPO}.delta=2",), r"delta=2 without algorithm\.gsd\.dagrpo\.judge"),
        (
            (f"{DAGRPO}.delta=2", f"+{DAGRPO}.judge.scorer=stub"),
            r"algorithm\.gsd\.dagrpo\.judge: algorithm\.gsd\.gvpo .*sum to zero",
        ),
        ((f"+{DAGRPO}.probe_every=5",), r"probe_every=5: algorithm\.gsd\.gvpo .*probe_every=null"),
        ((f"{GVPO}.history_fraction=0.5",), r"dagrpo\.demonstrations: algorithm\.gsd\.gvpo .*history_fraction=0"),
        (("algorithm.adv_estimator=grpo",), r"adv_estimator=grpo: algorithm\.gsd\.dagrpo\.demonstrations does not"),
        (
            (f"{POLICY}.loss_mode=vanilla",),
            r"loss_mode=vanilla: algorithm\.gsd\.dagrpo\.demonstrations .*loss_mode=dagrpo",
        ),
    ],
)
def test_what_does_not_go_with_both_is_named(check, words, message):
    with pytest.raises(ConfigError) as refused:
        check(*words, algo="gvpo_demonstrations")
    assert re.search(message, str(refused.value))


def test_the_audit_says_who_is_shown_and_what_becomes_of_silent_groups(compose_fast):
    def lines(*words):
        config, _ = compose_fast("algo=gvpo_demonstrations", "task=arithmetic", "hardware=cpu", *words)
        return "\n".join(audit(config).lines())

    found = lines()
    assert "an expert's response replaces a rollout in a group in which every rollout failed" in found
    assert "fits 0.1 times the log-ratio to the policy before the step" in found
    (silent,) = re.findall(r"^silent groups: .*", found, re.M)
    assert silent == "silent groups: kept; their only effect is a pull towards the policy before the step"
    one_update = "actor_rollout_ref.actor.ppo_mini_batch_size=24"
    assert re.search(
        r"^warning: .*REINFORCE.* A demonstration is then a response with a positive", lines(one_update), re.M
    )


@pytest.mark.parametrize(
    ("words", "is_warned"),
    [
        ([], False),  # a quarter of the batch
        (["+trainer.v1.sync.parameter_sync_step=4"], True),  # each part has an old policy and one update
        (["+trainer.v1.sync.parameter_sync_step=4", "actor_rollout_ref.actor.ppo_mini_batch_size=3"], False),
    ],
)
def test_the_audit_warns_of_gvpo_with_one_update_per_old_policy(compose_fast, words, is_warned):
    config, _ = compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu", *words)
    assert any("REINFORCE" in line for line in audit(config).lines()) is is_warned


def test_gvpos_loss_under_another_algorithm_is_refused(check):
    with pytest.raises(ConfigError, match=r"loss_mode=gvpo without algorithm\.gsd\.gvpo: .*algo=gvpo"):
        check(f"{POLICY}.loss_mode=gvpo", algo="grpo")


def test_groups_of_several_sizes_are_refused_under_whole(check, tiny_task, tmp_path):
    table = pq.read_table(tiny_task / "train.parquet")
    file = tmp_path / "train.parquet"
    pq.write_table(table.append_column("__rollout_n__", pa.array([4] * len(table))), file)
    check(f"data.train_files={file}")
    with pytest.raises(ConfigError, match=r"__rollout_n__: .*grouping=prepass"):
        check(f"data.train_files={file}", f"{GVPO}.grouping=whole")


def warnings(compose_fast, *words):
    return audit(compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu", *words)[0]).warnings


def test_the_audit_says_what_gvpo_does(compose_fast):
    found = audit(compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu", f"{POLICY}.reference=ref")[0])
    lines = "\n".join(found.lines())
    assert "fits 0.1 times the log-ratio to the reference model" in lines
    assert "their only effect is a pull towards the reference model" in lines
    assert not found.warnings
    found = audit(compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu")[0])
    assert "their only effect is a pull towards the policy before the step" in "\n".join(found.lines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("actor_rollout_ref.actor.ppo_mini_batch_size=24",), "REINFORCE"),
        (("actor_rollout_ref.rollout.top_p=0.9",), "Theorem 3.2"),
        (("actor_rollout_ref.rollout.top_k=20",), "Theorem 3.2"),
        ((f"{POLICY}.var=false",), "policy_loss.var=False"),
        ((f"{GVPO}.history_fraction=0.5", "trainer.total_epochs=1"), "total_epochs=1"),
    ],
)
def test_what_runs_and_may_surprise_is_warned_of(compose_fast, words, message):
    (warning,) = warnings(compose_fast, *words)
    assert message in warning


def test_two_epochs_or_a_fixed_reference_are_no_reinforce(compose_fast):
    one = "actor_rollout_ref.actor.ppo_mini_batch_size=24"
    assert not warnings(compose_fast, one, "actor_rollout_ref.actor.ppo_epochs=2")
    assert not warnings(compose_fast, one, f"{POLICY}.reference=ref")
