"""HA-DW over DAPO in the asynchronous mode under verl's own ``main_ppo``: two workers, and sessions and rewards that
fail on purpose."""

import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from running import metrics, remembered, replayed, replayed_anchors, verl_gsd, weights
from safetensors.torch import load_file

from verl_gsd.cpu import before_verl as cpu_before_verl
from verl_gsd.cpu.forkserver import workers_forked
from verl_gsd.evaluation import merge as merging
from verl_gsd.records import read_records
from verl_gsd.run.job import VERLS_ENVIRONMENT

BATCH, SIZE, SAVED, STEPS = 8, 8, 2, 5

FAULTS = """
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl_gsd.tasks import arithmetic

class FaultyLoopStub(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        output = await super().run(sampling_params, **kwargs)
        return [] if kwargs["session_id"] == 7 and kwargs["index"] % 3 == 0 else output

def faulty_score_stub(data_source, solution_str, ground_truth, extra_info=None, **_):
    if extra_info["index"] % 5 == 1:
        raise ArithmeticError("broken on purpose")
    return arithmetic.compute_score(data_source, solution_str, ground_truth)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One flag on an existing launch script. Its workers are forks, so that it starts in half the time."""
    folder = tmp_path_factory.mktemp("hadw")
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    (folder / "faults_stub.py").write_text(FAULTS)
    (folder / "loops.yaml").write_text("- {name: faulty_stub, _target_: faults_stub.FaultyLoopStub}\n")
    environment = cpu_before_verl.ENVIRONMENT | os.environ | {"PYTHONPATH": str(folder), "VERL_GSD_CPU": "1"}
    with workers_forked(environment=environment | VERLS_ENVIRONMENT) as command:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "verl.trainer.main_ppo", "+algo=hadw_dapo", "+task=arithmetic"),
                *("+hardware=cpu", "trainer.logger=[console]", "trainer.n_gpus_per_node=2"),
                "trainer.v1.trainer_mode=gsd_colocate_async",
                *(f"trainer.default_local_dir={folder}/run", f"hydra.run.dir={folder}/hydra"),
                *(f"data.train_batch_size={BATCH}", f"trainer.total_training_steps={STEPS}"),
                *(f"trainer.save_freq={SAVED}", "trainer.val_before_train=false", "trainer.test_freq=-1"),
                f"trainer.rollout_data_dir={folder}/rollouts",
                "reward.custom_reward_function.path=pkg://faults_stub",
                "reward.custom_reward_function.name=faulty_score_stub",
                # Every fifth prompt's rewards fail on purpose. By default a twentieth would stop the run.
                "++algorithm.gsd.limits.failed_rewards=0.5",
                "actor_rollout_ref.rollout.agent.default_agent_loop=faulty_stub",
                f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/loops.yaml",
                f"ray_kwargs.ray_init.runtime_env.py_executable='{command}'",
            ],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=1800,
        )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return SimpleNamespace(
        path=folder / "run",
        seen=metrics(folder / "run", 1),
        records=read_records(folder / "run"),
        rollouts={
            step: [json.loads(line) for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
            for step in range(1, STEPS + 1)
        },
    )


def is_failing(row):
    return row["index"] % 5 == 1


def size_of(row):
    return SIZE - 1 if row["index"] % 3 == 0 else SIZE


def test_the_run_has_its_config_although_verls_command_started_it(run):
    """A report reads the limits of lengths, the clip and dynamic sampling from it."""
    for name in ("config.yaml", "configs/attempt_1.yaml"):
        config = yaml.safe_load((run.path / name).read_text())
        assert config["trainer"]["v1"]["trainer_mode"] == "gsd_colocate_async"
        assert config["algorithm"]["filter_groups"]["enable"] is True
        assert config["data"]["prompt_key"] == "prompt"


def test_each_step_trains_whole_groups_that_disagree_and_every_other_group_is_recorded_by_its_fate(run):
    assert sorted(run.seen) == list(range(1, STEPS + 1))
    for step, seen in run.seen.items():
        rows = [row for row in run.records.to_pylist() if row["step"] == step]
        fates = Counter(row["fate"] for row in rows)
        assert fates["trained"] == BATCH
        assert fates["filtered"] == seen.get("training/filter_groups/evicted_samples", 0)
        assert fates["failed"] == seen.get("training/rollout_failure/evicted_samples", 0)
        assert seen["group/count/filtered"] == fates["filtered"]
        answered = [row for row in rows if row["fate"] != "failed"]
        assert all((row["kind"] == "mixed") == (row["fate"] == "trained") for row in answered)
        assert seen["group/frac_mixed"] == pytest.approx(np.mean([row["kind"] == "mixed" for row in answered]))
        # The loss is a mean over tokens, so that verl's metric is, too.
        assert seen["policy/entropy"] == pytest.approx(seen["actor/entropy"], rel=1e-4)
        groups = defaultdict(list)
        for row in run.rollouts[step]:
            if not row["uid"].startswith("pad"):  # rows without which two workers would have unequal parts
                groups[row["uid"].rsplit("_", 2)[0]].append(row["score"])
        trained = sorted(row["size"] for row in rows if row["fate"] == "trained")
        assert sorted(map(len, groups.values())) == trained
        assert all(0 < sum(scores) < len(scores) for scores in groups.values())
    assert {row["fate"] for row in run.records.to_pylist()} == {"trained", "filtered", "failed"}


def test_failed_sessions_and_sessions_without_a_response_are_seen_for_what_they_are(run):
    for row in run.records.to_pylist():
        assert (row["fate"] == "failed") == is_failing(row)
        if is_failing(row):
            assert row["size"] == 0 and row["kind"] is None and row["failed_rewards"] == size_of(row)
        else:
            assert row["size"] == row["total"] == size_of(row) and row["failed_rewards"] == 0
    counted = [seen["reward/failed"] for seen in run.seen.values()]
    assert [seen["reward/failures/raised"] for seen in run.seen.values()] == counted
    # Rewards are counted when they come, groups when they leave.
    assert sum(counted) >= sum(row["failed_rewards"] for row in run.records.to_pylist()) > 0


def test_two_workers_trained_and_their_weights_changed(run):
    early, late = (weights(run.path / f"global_step_{step}", rank_count=2) for step in (SAVED, 2 * SAVED))
    for rank in range(2):
        assert early[rank].keys() == late[rank].keys()
        assert sum(not torch.equal(early[rank][name], late[rank][name]) for name in early[rank]) > 10


def test_the_shards_of_two_workers_merge_into_one_model(run, tmp_path):
    """Each worker's rows, one after the other, in the bfloat16 that verl's merger writes."""
    checkpoint = run.path / f"global_step_{STEPS}"
    merging.merge(checkpoint, tmp_path / "model")
    merged = load_file(tmp_path / "model" / "model.safetensors")
    first, second = weights(checkpoint, rank_count=2)
    assert len(merged) > 10
    for name, tensor in merged.items():
        assert torch.equal(tensor, torch.cat([first[name], second[name]]).bfloat16()), name


def test_nothing_is_lost_or_counted_twice(run):
    # 40 prompts of the first pass over the data: a prompt that left twice would be recorded twice.
    assert max(Counter(run.records["index"].to_pylist()).values()) == 1
    # What was fetched from the data set was recorded or still waits at the end.
    fetched = torch.load(run.path / f"global_step_{STEPS}" / "data.pt", weights_only=False)["_num_yielded"]
    assert fetched == len(run.records) + run.seen[STEPS]["group/count/waiting"]
    for step in (SAVED, STEPS):
        assert remembered(run.path / f"global_step_{step}") == replayed(run.records, step)


def test_every_group_met_the_anchor_that_the_steps_before_it_made_evicted_groups_included(run):
    path = replayed_anchors(run.path, run.records, STEPS)
    for step, value in path.items():
        rows = [row for row in run.records.to_pylist() if row["step"] == step and row["total"]]
        accuracy = sum(row["correct"] for row in rows) / sum(row["total"] for row in rows)
        assert run.seen[step]["hadw/accuracy"] == pytest.approx(accuracy)
        assert run.seen[step]["hadw/anchor/after"] == value
    assert len(set(path.values())) == STEPS, "it moves"
    assert {row["hadw_anchor"] for row in run.records.to_pylist() if row["step"] == 1} == {None}


def test_factors_are_applied_from_the_second_step_on(run):
    assert "hadw/phi/mean" in run.seen[2] and "hadw/phi/mean" not in run.seen[1]
    for row in run.records.to_pylist():
        if row["step"] > 1 and row["total"]:
            distance = row["correct"] / row["total"] - row["hadw_anchor"]
            assert row["hadw_factor_right"] == pytest.approx(1.3 * np.exp(-distance))
            assert row["hadw_factor_wrong"] == pytest.approx(1.3 * np.exp(distance))
