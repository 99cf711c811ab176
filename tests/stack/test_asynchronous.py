"""colocate_async on the real stack: HA-DW over GSPO, two workers, failing and empty sessions; with ``--killed`` killed
and resumed."""

import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import metrics, remembered, replayed, replayed_anchors, train_through, verl_gsd, weights
from safetensors.torch import load_file

from verl_gsd.records import read_records
from verl_gsd.trainer import merging

BATCH, SAVED, KILLED, STEPS = 8, 2, 3, 5

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
def run(tmp_path_factory, killed):
    folder = tmp_path_factory.mktemp("asynchronous")
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    (folder / "faults_stub.py").write_text(FAULTS)
    (folder / "loops.yaml").write_text("- {name: faulty_stub, _target_: faults_stub.FaultyLoopStub}\n")
    environment = os.environ | {"PYTHONPATH": str(folder)}
    attempts, _ = train_through(
        folder / "run",
        *("algo=hadw_gspo", "task=arithmetic", "hardware=cpu", "trainer.v1.trainer_mode=gsd_colocate_async"),
        *("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc", "trainer.n_gpus_per_node=2"),
        *(f"data.train_batch_size={BATCH}", f"trainer.save_freq={SAVED}"),
        *("trainer.val_before_train=false", "trainer.test_freq=-1"),
        *(
            "reward.custom_reward_function.path=pkg://faults_stub",
            "reward.custom_reward_function.name=faulty_score_stub",
        ),
        # Every fifth prompt's rewards fail on purpose. By default a twentieth would stop the run.
        "algorithm.gsd.limits.failed_rewards=0.5",
        *("actor_rollout_ref.rollout.agent.default_agent_loop=faulty_stub",),
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/loops.yaml",
        last=STEPS,
        killed_after=KILLED if killed else None,
        saved=SAVED,
        env=environment,
    )
    return SimpleNamespace(path=Path(folder / "run"), records=read_records(folder / "run"), attempts=attempts)


def test_each_step_trains_whole_groups_and_every_other_group_is_recorded_by_its_fate(run):
    rows = run.records.to_pylist()
    for step in range(1, STEPS + 1):
        fates = Counter(row["fate"] for row in rows if row["step"] == step)
        logged = metrics(run.path, run.attempts[step])[step]
        assert fates["trained"] == BATCH
        assert fates["filtered"] == logged.get("training/filter_groups/evicted_samples", 0)
        assert fates["failed"] == logged.get("training/rollout_failure/evicted_samples", 0)
    fates = Counter(row["fate"] for row in rows)
    assert fates.keys() == {"trained", "filtered", "failed"}


def test_failed_sessions_and_sessions_without_a_response_are_seen_for_what_they_are(run):
    for row in run.records.to_pylist():
        assert (row["fate"] == "failed") == (row["index"] % 5 == 1)
        if row["fate"] == "failed":
            assert row["size"] == 0 and row["kind"] is None
        else:
            assert row["size"] == row["total"] == (7 if row["index"] % 3 == 0 else 8)


def test_two_workers_trained_and_their_weights_changed(run):
    early, late = (weights(run.path / f"global_step_{step}", rank_count=2) for step in (SAVED, STEPS))
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
    attempts = dict(zip(run.records["step"].to_pylist(), run.records["attempt"].to_pylist(), strict=True))
    assert attempts == run.attempts
    # 40 prompts of the first pass over the data: a prompt that left twice would be recorded twice.
    assert max(Counter(run.records["index"].to_pylist()).values()) == 1
    # What was fetched from the data set was recorded or still waits at the end.
    fetched = torch.load(run.path / f"global_step_{STEPS}" / "data.pt", weights_only=False)["_num_yielded"]
    assert fetched == len(run.records) + metrics(run.path, run.attempts[STEPS])[STEPS]["group/count/waiting"]
    for step in (SAVED, STEPS):
        assert remembered(run.path / f"global_step_{step}") == replayed(run.records, step)


def test_the_anchor_goes_on_from_the_checkpoint_along_the_path_its_records_give(run):
    path = replayed_anchors(run.path, run.records, STEPS)
    for step, value in path.items():
        assert metrics(run.path, run.attempts[step])[step]["hadw/anchor/after"] == value
    assert len(set(path.values())) == STEPS, "it moves"


def test_factors_are_applied_from_the_second_step_on(run):
    assert "hadw/phi/mean" in metrics(run.path, 1)[2] and "hadw/phi/mean" not in metrics(run.path, 1)[1]
    for row in run.records.to_pylist():
        if row["step"] > 1 and row["total"]:
            distance = row["correct"] / row["total"] - row["hadw_anchor"]
            assert row["hadw_factor_right"] == pytest.approx(1.3 * np.exp(-distance))
            assert row["hadw_factor_wrong"] == pytest.approx(1.3 * np.exp(distance))
