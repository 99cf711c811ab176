"""GVPO on the real stack: whole groups over two workers with sessions missing, and forty steps that learn."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from running import SURE, TASK, course, metrics, validated, validation_kept, verl_gsd

from verl_gsd.evaluation.intervals import paired_test
from verl_gsd.records import read_records

BATCH, SIZE = 8, 8
COMMON = ("algo=gvpo", "task=arithmetic", "hardware=cpu", f"data.train_batch_size={BATCH}")
SHORT = (
    *("actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.val_before_train=false", "trainer.test_freq=-1"),
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
)
FAULTS = """
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

class SilentLoopStub(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        output = await super().run(sampling_params, **kwargs)
        return [] if kwargs["session_id"] > 4 and kwargs["index"] % 2 else output
"""


@pytest.fixture(scope="module")
def task():
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    return TASK


@pytest.fixture(scope="module")
def whole(task, tmp_path_factory):
    """Three steps of two mini-batches with two workers; of every second prompt three sessions say nothing."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "silent_stub.py").write_text(FAULTS)
    (folder / "loops.yaml").write_text("- {name: silent_stub, _target_: silent_stub.SilentLoopStub}\n")
    done = verl_gsd(
        *("train", *COMMON, *SHORT, "algorithm.gsd.gvpo.grouping=whole", "trainer.n_gpus_per_node=2"),
        *(f"trainer.default_local_dir={folder}/run", "trainer.total_training_steps=3", "trainer.save_freq=-1"),
        "actor_rollout_ref.rollout.agent.default_agent_loop=silent_stub",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={folder}/loops.yaml",
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return SimpleNamespace(seen=metrics(folder / "run", 1), records=read_records(folder / "run").to_pylist())


@pytest.mark.minutes(3)
def test_groups_are_kept_whole_and_missing_sessions_filled_and_counted(whole):
    for step, seen in whole.seen.items():
        assert seen["gvpo/route_whole"] == 1 and seen["gvpo/split_groups"] == 0
        rows = [row for row in whole.records if row["step"] == step]
        missing = sum(SIZE - row["size"] for row in rows)
        assert missing == 3 * sum(row["index"] % 2 for row in rows) > 0
        assert seen["gvpo/missing_sessions"] == seen["gvpo/padding_rows"] == missing


@pytest.mark.minutes(3)
def test_the_second_mini_batch_is_tilted_by_what_the_first_one_changed(whole):
    for seen in whole.seen.values():
        assert seen["gvpo/s_std"] > 0 and seen["gvpo/pull_over_push"] > 0
        assert seen["gvpo/beta_s_std"] == pytest.approx(0.1 * seen["gvpo/s_std"])
        assert 0 < seen["actor/grad_norm"] < np.inf and seen["gvpo/mse"] > 0


@pytest.mark.minutes(8)
def test_gvpo_learns(task, tmp_path):
    """The mean over the second half counts: between two updates the accuracy moves by up to 0.1, up as well as down."""
    run = tmp_path / "run"
    kept = (f"trainer.default_local_dir={run}", "trainer.save_freq=-1", validation_kept(run))
    done = verl_gsd("train", *COMMON[:3], "trainer.test_freq=4", *kept)
    assert done.returncode == 0, done.stdout + done.stderr
    second_half = np.mean([validated(run, step) for step in range(20, 41, 4)], axis=0)
    found = paired_test(validated(run, 0), second_half)
    assert found.difference.low > 0 and found.p_value < SURE, f"{found}\n{course(run)}"
