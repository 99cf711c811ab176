"""Adaptive budgets on the real stack, killed and resumed: every allocation is recomputed from the run's own records."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from running import TASK, metrics, remembered, replayed, train_until_killed, verl_gsd

from verl_gsd.planning import posterior_silent_rate
from verl_gsd.prompts import PromptStore
from verl_gsd.records import read_records
from verl_gsd.trainer.budget_section import Settings
from verl_gsd.trainer.budgeting import rollouts_of
from verl_gsd.trainer.state import restore_state

#: A drill: stack/test_sampler.py has a budget in every run of the tests, and this one without a sampler.
PER_LEVEL, BATCH, SIZE, SAVED, KILLED, STEPS = 3, 12, 8, 4, 5, 6
PASS = 8 * PER_LEVEL // BATCH
BUDGET = Settings(half_life=3, maximum=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    folder = tmp_path_factory.mktemp("budget")
    rows = pq.read_table(TASK / "train.parquet")
    levels = np.array([extra["level"] for extra in rows["extra_info"].to_pylist()])
    chosen = np.concatenate([np.flatnonzero(levels == level)[:PER_LEVEL] for level in np.unique(levels)])
    pq.write_table(rows.take(chosen), folder / "train.parquet")
    path = folder / "run"
    code, printed = train_until_killed(
        *(
            "algo=grpo",
            "budget=adaptive",
            "task=arithmetic",
            "hardware=cpu",
            f"data.train_files={folder}/train.parquet",
        ),
        *(f"algorithm.gsd.budget.half_life={BUDGET.half_life}", f"algorithm.gsd.budget.maximum={BUDGET.maximum}"),
        *(f"data.train_batch_size={BATCH}", f"actor_rollout_ref.rollout.n={SIZE}", f"trainer.default_local_dir={path}"),
        *("trainer.val_before_train=false", "trainer.test_freq=-1", "data.val_max_samples=16"),
        *(f"trainer.save_freq={SAVED}", f"trainer.total_training_steps={STEPS}"),
        step=KILLED,
    )
    assert code == 1, printed
    resumed = verl_gsd("train", f"resume={path}")
    assert resumed.returncode == 0, printed + resumed.stdout + resumed.stderr
    seen = {step: metrics(path, 1 if step <= SAVED else 2)[step] for step in range(1, STEPS + 1)}
    records = read_records(path)
    by_step = {step: [row for row in records.to_pylist() if row["step"] == step] for step in seen}
    return SimpleNamespace(path=path, records=records, seen=seen, rows=by_step)


def replay(run):
    """(step, its records, what a fresh memory fed from the records knew of their prompts before it) of every step."""
    store = PromptStore(half_life=BUDGET.half_life)
    for step, rows in run.rows.items():
        yield step, rows, store.recent([(row["data_source"], row["index"]) for row in rows], step)
        for row in rows:
            store.observe((row["data_source"], row["index"]), row["correct"], row["total"], step)


def test_every_step_has_as_many_rollouts_as_with_equal_groups_and_none_is_padding(run):
    for step, rows in run.rows.items():
        assert len(rows) == BATCH and {row["attempt"] for row in rows} == {1 if step <= SAVED else 2}
        assert sum(row["asked"] for row in rows) == BATCH * SIZE
        assert [row["size"] for row in rows] == [row["total"] for row in rows] == [row["asked"] for row in rows]
        seen = run.seen[step]
        tokens = seen["prompt_length/mean"] + seen["response_length/mean"]  # of real rows
        assert seen["global_seqlen/mean"] == pytest.approx(BATCH * SIZE * tokens), "of all rows of the one worker"
        assert seen["critic/score/mean"] == pytest.approx(sum(row["correct"] for row in rows) / (BATCH * SIZE))


def test_sizes_are_what_earlier_visits_make_of_them_across_the_resume(run):
    for step, rows, (correct, total) in replay(run):
        asked = [row["asked"] for row in rows]
        expected = rollouts_of(correct, total, SIZE, BUDGET)
        # Which of two prompts with equal counts has one more is the order of the batch, which records do not keep.
        pairs, again = (sorted(zip(correct, total, sizes, strict=True)) for sizes in (asked, expected.tolist()))
        assert pairs == again
        assert (set(asked) == {SIZE}) == (step <= PASS), "nobody is known in the first pass"
        assert BUDGET.minimum <= min(asked) and max(asked) <= BUDGET.maximum


def test_the_checkpoints_memory_is_that_of_the_records(run):
    for checkpoint in (SAVED, STEPS):
        folder = run.path / f"global_step_{checkpoint}"
        assert remembered(folder) == replayed(run.records, checkpoint)
        saved, fresh = PromptStore(half_life=BUDGET.half_life), PromptStore(half_life=BUDGET.half_life)
        restore_state(folder, {"prompts": saved}, {})
        for row in run.records.to_pylist():
            if row["step"] <= checkpoint:
                fresh.observe((row["data_source"], row["index"]), row["correct"], row["total"], row["step"])
        keys = sorted({(row["data_source"], row["index"]) for row in run.records.to_pylist()})
        assert np.array_equal(saved.recent(keys, STEPS), fresh.recent(keys, STEPS))


def test_silence_is_predicted_from_earlier_visits_in_records_and_metrics_alike(run):
    for step, rows, (correct, total) in replay(run):
        found = [row["silent_predicted"] for row in rows]
        if step <= PASS:
            assert set(found) == {None} and "group/silent/predicted" not in run.seen[step]
            continue
        expected = posterior_silent_rate(correct, total, [row["size"] for row in rows], BUDGET.prior)
        assert found == pytest.approx(expected.tolist())
        assert run.seen[step]["group/silent/predicted"] == pytest.approx(np.mean(found))
        assert run.seen[step]["group/silent/observed"] == np.mean([row["kind"] != "mixed" for row in rows])
        assert run.seen[step]["budget/mixed/expected"] == pytest.approx(1 - np.mean(found))


def test_a_groups_rows_weigh_as_much_less_as_there_are_more_of_them(run):
    """The largest advantage of a step, from counts alone: that of a right answer in the group that has fewest for its
    size, times n over the group's size."""
    for step, rows in run.rows.items():
        largest = [0.0]
        for row in rows:
            size, rate = row["size"], row["correct"] / row["size"]
            if 0 < rate < 1:
                sigma = np.sqrt(rate * (1 - rate) * size / (size - 1))
                largest.append(SIZE / size * (1 - rate) / (sigma + 1e-6))
        assert run.seen[step]["critic/advantages/max"] == pytest.approx(max(largest), rel=1e-5)
        assert 0 < run.seen[step]["actor/grad_norm"] < np.inf


def test_metrics_say_who_got_how_many(run):
    for step, rows in run.rows.items():
        asked, seen = [row["asked"] for row in rows], run.seen[step]
        for percent in (10, 50, 90):
            assert seen[f"budget/rollouts/p{percent}"] == pytest.approx(np.percentile(asked, percent))
        assert seen["budget/share/floor"] == asked.count(BUDGET.minimum) / BATCH
        assert seen["budget/share/cap"] == asked.count(BUDGET.maximum) / BATCH
        assert seen["budget/share/known"] == (step > PASS)
