"""HA-DW over DAPO with two workers, killed and resumed."""

import pytest
from running import TASK, metrics, replayed_anchors, train_until_killed, verl_gsd

from verl_gsd.records import read_records

pytestmark = pytest.mark.minutes(4)


@pytest.fixture(scope="module")
def task():
    done = verl_gsd("prepare", "arithmetic")
    assert done.returncode == 0, done.stderr
    return TASK


SMALL = ("task=arithmetic", "hardware=cpu", "data.train_batch_size=4", "trainer.val_before_train=false")


def test_hadw_over_dapo_with_two_workers_goes_on_exactly_after_a_kill(task, tmp_path):
    run, steps = tmp_path / "run", 5
    code, printed = train_until_killed(
        *("algo=hadw_dapo", *SMALL, "trainer.n_gpus_per_node=2", f"trainer.default_local_dir={run}"),
        *(f"trainer.total_training_steps={steps}", "trainer.save_freq=2", "trainer.test_freq=-1"),
        step=3,
    )
    assert code == 1, printed
    resumed = verl_gsd("train", f"resume={run}")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    records = read_records(run)
    assert set(records["fate"].to_pylist()) >= {"trained", "filtered"}
    path = replayed_anchors(run, records, steps)
    assert len(set(path.values())) == steps, "it moves"
    for step, value in path.items():
        assert metrics(run, 1 if step <= 2 else 2)[step]["hadw/anchor/after"] == value
