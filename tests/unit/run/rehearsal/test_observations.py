"""What is read from the files of a rehearsal's run."""

import json
import zipfile

import numpy as np
import pytest
from omegaconf import OmegaConf

from verl_gsd.groups import Group
from verl_gsd.records import LeftGroup, step_records, write_step
from verl_gsd.run.rehearsal import observations
from verl_gsd.run.rehearsal.failures import explain
from verl_gsd.run.rehearsal.report import Findings
from verl_gsd.rundir import TRAINED, RunDirectory


@pytest.fixture
def run(tmp_path):
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def findings():
    return Findings()


def write_metrics(run, attempt, steps):
    path = run.metrics(attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in steps.items()))


def trained(**metrics):
    return {TRAINED: 1, "actor/grad_norm": 0.5} | metrics


def write_weights(run, step, *tensors):
    path = run.checkpoint(step) / "actor" / "model_world_size_2_rank_0.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", f"step {step}")
        for number, content in enumerate(tensors):
            archive.writestr(f"model/data/{number}", content)


def write_groups(run, *groups):
    """(verdicts, scores, fate) per group."""
    left = [
        LeftGroup(Group(str(at), "mine", at, np.array(scores), np.array(right), np.zeros(len(right), np.int64)), fate)
        for at, (right, scores, fate) in enumerate(groups)
    ]
    write_step(run.path, step_records(left, step=1, attempt=1, alpha=1.0), step=1, attempt=1)


def config(**keys):
    made = OmegaConf.create({"reward": {"custom_reward_function": {"path": "mine.py"}, "reward_model": {}}})
    for key, value in keys.items():
        OmegaConf.update(made, key.replace("__", "."), value, force_add=True)
    return made


def test_steps_and_validation_of_the_first_attempt(run, findings):
    write_metrics(run, 1, {0: {"val-core/mine/acc/mean@1": 0.0}, 1: trained(), 2: trained()})
    observations.observe_first_attempt(run, findings)
    said = "\n".join(findings.worked)
    assert "validation: 1 metrics" in said and "steps 1 to 2" in said
    assert len(findings.wrong) == 1 and "trainer.save_freq" in findings.wrong[0], "there is no checkpoint"


@pytest.mark.parametrize(
    ("steps", "key"),
    [
        ({1: trained()}, "trainer.total_training_steps"),
        ({1: trained(), 2: trained(**{"actor/grad_norm": 0.0})}, "actor/grad_norm"),
        ({1: trained(), 2: trained(**{"actor/pg_loss": None})}, "actor/pg_loss"),
        ({1: {TRAINED: 1}, 2: {TRAINED: 1}}, "actor/grad_norm"),
        ({1: trained(), 2: trained()}, "data.val_files"),
    ],
)
def test_what_is_missing_or_not_finite_is_wrong(run, findings, steps, key):
    write_metrics(run, 1, steps)
    observations.observe_first_attempt(run, findings)
    assert any(key in text for text in findings.wrong)


def test_weights_that_change_and_those_that_do_not(run, findings):
    write_weights(run, 2, b"a", b"b")
    before = observations.weight_checksums(run.checkpoint(2))
    write_weights(run, 3, b"a", b"c")
    write_metrics(run, 2, {3: trained()})
    observations.observe_resume(run, before, findings)
    said = "\n".join(findings.worked)
    assert "1 of 2 tensors changed in step 3. The others are frozen, or their gradient is 0, which is normal" in said
    assert "began with step 3" in said and not findings.wrong
    observations.observe_resume(run, observations.weight_checksums(run.checkpoint(3)), findings)
    assert any("actor_rollout_ref.actor.optim.lr" in text for text in findings.wrong)


def test_an_attempt_that_starts_again_did_not_resume(run, findings):
    write_weights(run, 3, b"a")
    write_metrics(run, 2, {1: trained(), 2: trained(), 3: trained()})
    observations.observe_resume(run, {}, findings)
    assert any(text.startswith("resume") for text in findings.wrong)


def test_groups_are_counted_and_a_filter_must_evict(run, findings):
    write_groups(
        run,
        ([1.0, 0.0], [1.0, 0.0], "trained"),
        ([0.0, 0.0], [0.25, 0.5], "trained"),
        ([1.0, 1.0], [1.0, 1.0], "filtered"),
    )
    write_metrics(run, 1, {1: trained()})
    filters = {"algorithm__filter_groups": {"enable": True, "metric": "acc"}}
    observations.observe_groups(run, config(**filters), findings)
    said = "\n".join(findings.worked)
    assert "3 groups" in said and "1 mixed, 1 all_wrong, 1 all_right" in said and "1 with graded scores" in said
    assert "1 groups were evicted" in said and not findings.wrong


def test_a_filter_that_evicts_nothing_and_groups_that_never_differ_are_wrong(run, findings):
    write_groups(run, ([1.0, 1.0], [1.0, 1.0], "trained"))
    write_metrics(run, 1, {1: trained()})
    filters = {"algorithm__filter_groups": {"enable": True, "metric": "reward"}}
    observations.observe_groups(run, config(**filters), findings)
    assert any("algorithm.filter_groups.metric=reward" in text for text in findings.wrong)
    assert any("reward.custom_reward_function" in text for text in findings.wrong)


def test_a_feature_must_log_its_metrics(run, findings):
    write_groups(run, ([1.0, 0.0], [1.0, 0.0], "trained"))
    write_metrics(run, 1, {1: trained(**{"hadw/anchor": 0.5})})
    keys = {"algorithm__gsd__hadw": {"preset": "hard"}, "actor_rollout_ref__actor__use_kl_loss": True}
    observations.observe_groups(run, config(**keys), findings)
    assert any(text.startswith("algorithm.gsd.hadw") for text in findings.worked)
    assert any(text.startswith("actor_rollout_ref.actor.use_kl_loss") for text in findings.wrong)


def test_a_reward_function_that_was_not_called_is_wrong(tmp_path, findings):
    observations.observe_rewards(tmp_path / "none.jsonl", config(), findings)
    assert "reward.custom_reward_function" in findings.wrong[0]
    log = tmp_path / "rewards.jsonl"
    log.write_text(
        '{"real": 0.0, "kind": "mixed", "accepted": false}\n{"real": 1.0, "kind": "right", "accepted": true}\n'
    )
    observations.observe_rewards(log, config(), findings)
    assert "scored 2 responses from 0 to 1" in findings.worked[0]


def test_sections_in_others_have_metrics_under_both_names_or_their_own(run, findings):
    write_metrics(run, 1, {1: trained(**{"judge/failures/any": 0.0, "dagrpo/demonstrations/wanted": 1.0})})
    write_groups(run, ([1.0, 0.0], [1.0, 0.0], "trained"))
    judge, demonstrations = "algorithm.gsd.dagrpo.judge", "algorithm.gsd.dagrpo.demonstrations"
    observations.observe_groups(run, config(algorithm__gsd__dagrpo={"judge": {}, "demonstrations": {}}), findings)
    for key, metric in ((judge, "judge/failures/any"), (demonstrations, "dagrpo/demonstrations/wanted")):
        assert any(text.startswith(f"{key}: 1 metrics, for example {metric}") for text in findings.worked)
    assert not any(text.startswith(f"{judge}:") for text in findings.wrong)


def test_rewards_that_failed_in_the_run_are_wrong_and_counted(tmp_path, findings):
    log = tmp_path / "rewards.jsonl"
    entries = [{"real": 0.0, "kind": "mixed", "accepted": False}, {"failed": "raised KeyError"}]
    log.write_text("".join(json.dumps(entry) + "\n" for entry in [*entries, {"failed": "raised KeyError"}]))
    observations.observe_rewards(log, config(), findings)
    assert "2 of 3 responses (raised KeyError 2 times)" in findings.wrong[0]
    assert "scored 1 responses" in findings.worked[0]


def test_a_judge_that_failed_in_an_early_step_is_wrong(run, findings):
    write_metrics(run, 1, {1: {"judge/failures/any": 1.0}, 2: {"judge/failures/any": 0.0}})
    observations.observe_judge(run, 3, config(algorithm__gsd__dagrpo__judge__scorer="openai"), findings)
    assert findings.wrong and not findings.worked


def test_a_judge_that_is_not_asked_or_fails_is_wrong(run):
    asked = config(algorithm__gsd__dagrpo__judge__scorer="openai")
    for answered, metrics, works in ((3, {}, True), (0, {}, False), (3, {"judge/failures/any": 0.5}, False)):
        findings = Findings()
        write_metrics(run, 1, {1: metrics})
        observations.observe_judge(run, answered, asked, findings)
        assert bool(findings.worked) == works and bool(findings.wrong) != works
    findings = Findings()
    observations.observe_judge(run, 0, config(), findings)
    assert not findings.worked and not findings.wrong


def test_a_loss_that_reads_a_missing_column_is_explained():
    text = 'first exception: KeyError: \'key "mine" not found in TensorDict with keys ["advantages"]\''
    said = explain(text, config(actor_rollout_ref__actor__policy_loss__loss_mode="lacking"))
    assert said.startswith("actor_rollout_ref.actor.policy_loss.loss_mode=lacking: the update reads the column mine")
    assert said.endswith(text)
    assert explain("exit code 1", config()) == "exit code 1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("KeyError: 'level'", "entry level"),
        ("Exception: The current node timed out during startup. This could happen", "Rehearse again"),
    ],
)
def test_other_failures_are_explained(text, said):
    assert said in explain(text, config()).partition("\n")[0]


def test_the_list_of_findings_has_three_parts_and_names_stand_ins():
    lines = list(Findings(["it trained"], ["a: wrong.\nmore"], ["the tokenizer is a stand-in"]).lines())
    assert lines[:5] == ["seen to work:", "  - it trained", "found wrong:", "  - a: wrong.", "    more"]
    assert any("NCCL" in line for line in lines) and "the tokenizer is a stand-in" in lines[-1]
    assert "  - whether memory fits" in Findings(unchecked=["whether memory fits"]).lines()


def test_warnings_are_listed_and_are_no_problems():
    assert list(Findings(["it trained"], warnings=["no acc"]).lines())[2:6] == [
        "warnings:",
        "  - no acc",
        "found wrong:",
        "  - nothing",
    ]
