"""A training set with group sizes of its own: what is said of them, and of settings that do not go with them."""

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_gsd.run.checks.sizes_in_data import dataset_group_sizes

UNSHUFFLED = "data.shuffle=false"


@pytest.fixture
def said(compose_fast, tmp_path):
    def said(sizes, *words):
        path = tmp_path / "planned.parquet"
        pq.write_table(pa.table({"data_source": ["a"] * len(sizes), "__rollout_n__": sizes}), path)
        line = ("algo=grpo", "task=arithmetic", "hardware=cpu", f"data.train_files={path}", *words)
        config, _ = compose_fast(*line, "data.train_batch_size=2", "actor_rollout_ref.rollout.n=8")
        return list(dataset_group_sizes(config))

    return said


def test_batches_that_add_up_are_described_and_no_more(said):
    assert len(said([2, 14, 10, 6, 8], UNSHUFFLED)) == 1, "the last of five rows is in no batch"
    (line,) = said([2, 14, 10, 6], UNSHUFFLED)
    assert re.search("__rollout_n__, 2 to 14, 8 ", line)


@pytest.mark.parametrize(
    ("sizes", "words", "warning"),
    [
        ([2, 6, 4, 4], [UNSHUFFLED], r"planned\.parquet .* 4 .*actor_rollout_ref\.rollout\.n=8"),
        ([2, 10, 14, 6], [UNSHUFFLED], "8 x 2 "),
        ([2, 14, 10, 6], [], "--batch-size 2, .*data.shuffle=false"),
        ([2, 14, 10, 6], ["sampler=disagreement"], r"algorithm\.gsd\.sampler .*__rollout_n__.*sampler=uniform"),
        ([2, 14], [UNSHUFFLED, "algo=dapo"], r"algorithm\.filter_groups\.enable=true .*__rollout_n__"),
        (
            [2, 14],
            [UNSHUFFLED, "trainer.v1.trainer_mode=gsd_colocate_async"],
            r"trainer_mode=gsd_colocate_async .*__rollout_n__.*gsd_sync",
        ),
    ],
)
def test_what_does_not_go_with_them_is_warned_of(said, sizes, words, warning):
    _, *warnings = said(sizes, *words)
    assert any(re.match(f"warning: .*{warning}", text) for text in warnings), warnings


@pytest.mark.parametrize("words", [[UNSHUFFLED], [], ["trainer.v1.trainer_mode=gsd_colocate_async"]])
def test_gvpo_counts_groups_and_has_nothing_to_warn_of(said, words):
    assert len(said([2, 6, 4, 4], "algo=gvpo", *words)) == 1


def test_without_the_column_nothing_is_said(compose_fast, tiny_task):
    assert not list(dataset_group_sizes(compose_fast("algo=grpo", "task=arithmetic", f"task.directory={tiny_task}")[0]))
