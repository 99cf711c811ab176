"""GVPO on the real stack: earlier responses in every group, with a pass before each mini-batch until the run is killed,
and with groups kept whole when it is resumed."""

import json
from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from running import TASK, metrics, remembered, replayed, train_until_killed, verl_gsd

from verl_gsd.prompts import PromptStore
from verl_gsd.records import read_records
from verl_gsd.state import check_state

BATCH, SIZE = 8, 8
COMMON = ("algo=gvpo", "task=arithmetic", "hardware=cpu", f"data.train_batch_size={BATCH}")
SHORT = (
    *("actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.val_before_train=false", "trainer.test_freq=-1"),
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
)


@pytest.fixture(scope="module")
def task():
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    return TASK


SAVED, KILLED, STEPS = 2, 3, 4


@pytest.fixture(scope="module")
def history(task, tmp_path_factory):
    """The same eight prompts at every step; killed in step 4 and resumed from step 2, on the other route."""
    folder = tmp_path_factory.mktemp("history")
    pq.write_table(pq.read_table(task / "train.parquet").take(list(range(0, BATCH * 80, 80))), folder / "train.parquet")
    code, printed = train_until_killed(
        *(*COMMON, *SHORT, "algorithm.gsd.gvpo.grouping=prepass", "algorithm.gsd.gvpo.history_fraction=0.5"),
        *(f"trainer.default_local_dir={folder}/run", f"data.train_files={folder}/train.parquet"),
        *(f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVED}"),
        f"trainer.rollout_data_dir={folder}/rollouts",
        step=KILLED,
    )
    assert code == 1, printed
    resumed = verl_gsd("train", f"resume={folder}/run", "algorithm.gsd.gvpo.grouping=whole")
    assert resumed.returncode == 0, printed + resumed.stdout + resumed.stderr
    dumped = {
        step: [json.loads(line) for line in (folder / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
        for step in range(1, STEPS + 1)
    }
    seen = {step: metrics(folder / "run", 1 if step <= SAVED else 2)[step] for step in range(1, STEPS + 1)}
    return SimpleNamespace(run=folder / "run", seen=seen, dumped=dumped, records=read_records(folder / "run"))


def earlier(row):
    return int(row["uid"].rsplit("_", 2)[1]) >= SIZE


def test_from_the_second_visit_on_half_of_each_group_is_not_generated(history):
    for step, rows in history.dumped.items():
        groups = defaultdict(Counter)
        for row in rows:
            groups[row["uid"].rsplit("_", 2)[0]][earlier(row)] += 1
        expected = {False: SIZE} if step == 1 else {False: SIZE // 2, True: SIZE // 2}
        assert [dict(counts) for counts in groups.values()] == [expected] * BATCH
        seen = history.seen[step]
        assert seen["gvpo/history/share"] == (0 if step == 1 else 0.5)
        assert seen["gvpo/history/responses_saved"] == (0 if step == 1 else BATCH * SIZE / 2)
        assert seen["gvpo/history/shortage"] == 0
        assert seen["gvpo/history/prompts"] == BATCH
        assert (seen["gvpo/history/tokens_saved"] > 0) == (step > 1)


def test_the_earlier_responses_are_those_of_the_visit_before_across_a_kill_and_a_resume(history):
    generated = defaultdict(dict)  # prompt -> step -> its new responses and their scores
    for step, rows in history.dumped.items():
        for row in rows:
            if not earlier(row):
                generated[row["input"]].setdefault(step, Counter())[row["output"], row["score"]] += 1
    for step, rows in history.dumped.items():
        for prompt in {row["input"] for row in rows if earlier(row)}:
            mine = Counter((row["output"], row["score"]) for row in rows if earlier(row) and row["input"] == prompt)
            before = generated[prompt][max(visit for visit in generated[prompt] if visit < step)]
            assert mine.total() == SIZE // 2 and mine <= before


def test_they_are_trained_on_and_counted_where_they_were_made(history):
    for row in history.records.to_pylist():
        assert (row["size"], row["total"]) == (SIZE, SIZE if row["step"] == 1 else SIZE // 2)
    for step in (SAVED, STEPS):
        assert remembered(history.run / f"global_step_{step}") == replayed(history.records, step)
    for step, seen in history.seen.items():
        assert seen["gvpo/route_whole"] == (step > SAVED) and seen["gvpo/missing_sessions"] == 0
        assert seen["gvpo/s_std"] > 0 and 0 < seen["actor/grad_norm"] < np.inf
    assert [history.seen[step]["gvpo/split_groups"] for step in (SAVED + 1, STEPS)] == [0, 0]


def test_the_checkpoint_holds_what_the_next_visit_takes(history):
    values, arrays = check_state(history.run / f"global_step_{STEPS}", {})
    store = PromptStore()
    store.load_state_dict(values["prompts"] | {name.removeprefix("prompts/"): array for name, array in arrays.items()})
    state = store.state_dict()
    assert len(state["response_reward"]) == BATCH * SIZE // 2
    assert set(state["response_step"].tolist()) == {STEPS}
