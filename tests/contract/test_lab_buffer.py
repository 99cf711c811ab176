"""The laboratory's buffer treats groups as verl's replay buffer does, on generated cases.

Both are built from one config. All prompts finish at once, in both of them. verl chooses the groups of a batch in the
order of a set of texts, which is arbitrary. Here it chooses them in the order in which they were submitted.
"""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

pytest.importorskip("verl")

import transfer_queue as tq
from agent_rows import StubMonitor
from memory_queue import MemoryQueue
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_gsd.extension import Extension
from verl_gsd.lab.training import buffer as lab_buffer
from verl_gsd.lab.training.rows import DictRows
from verl_gsd.prompts import PromptStore
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.trainer import replay
from verl_gsd.trainer.reward_failures import Failure
from verl_gsd.trainer.row_store import QueueRows
from verl_gsd.trainer.rows import uid_of
from verl_gsd.trainer.seam import Seam

SETTINGS = (
    *("algo=dapo", "task=arithmetic", "hardware=cpu"),
    *("data.train_files=unread.parquet", "data.val_files=unread.parquet"),
)


@dataclass(frozen=True)
class Visit:
    """A visit to a prompt: rewards and accuracies of its responses, and for how many looks it is held back.

    The rewards of the responses ``lost`` failed.
    """

    rewards: tuple[float, ...]
    accuracies: tuple[float, ...]
    held_back: int = 0
    lost: frozenset[int] = frozenset()


FAILURE = Failure("raised", "KeyError")

#: What all visits after the generated ones are like, so that each batch is filled at some time.
MIXED = Visit((1.0, 0.0), (1.0, 0.0))


@dataclass(frozen=True)
class Case:
    """Steps of one run. ``metric`` is that of dynamic sampling; None: it is off."""

    visits: tuple[Visit, ...]
    batch_size: int = 2
    batches_in_flight: int = 1
    metric: str | None = "acc"
    steps: int = 1


@st.composite
def visits(draw):
    size = draw(st.integers(1, 5))

    def some_of(values):
        """Often all are equal. The standard deviation of three times 0.7 is not 0 in float64."""
        return st.one_of(
            st.sampled_from(values).map(lambda value: (value,) * size),
            st.lists(st.sampled_from(values), min_size=size, max_size=size).map(tuple),
        )

    held_back = draw(st.sampled_from([0, 0, 0, 1, 2, 5]))
    lost = draw(st.one_of(st.just(set()), st.just(set(range(size))), st.sets(st.integers(0, size - 1))))
    return Visit(draw(some_of([0.0, 0.7, 1.0])), draw(some_of([0.0, 1.0])), held_back, frozenset(lost))


CASES = st.builds(
    Case,
    visits=st.lists(visits(), max_size=24).map(tuple),
    batch_size=st.integers(1, 5),
    batches_in_flight=st.integers(1, 3),
    metric=st.sampled_from([None, "acc", "reward"]),
    steps=st.integers(1, 3),
)


@dataclass
class Judge(Extension):
    """Holds groups back and lists all events that an extension with a memory sees, in their order."""

    visit_of: dict[str, Visit]
    rows: object
    events: list = field(default_factory=list)

    def __post_init__(self):
        self._looks, self._complete_at = 0, {}

    def _event(self, *event):
        self.events.append((*event, sorted({uid_of(key) for key in self.rows.tags})))

    def add_rows(self, uids):
        self._event("add_rows", *uids)

    def on_groups_complete(self, groups):
        self._event("complete", *((group.uid, group.keys, group.rewards.tolist()) for group in groups))
        self._complete_at |= {group.uid: self._looks for group in groups}

    def poll(self, now):
        self._event("look")
        self._looks += 1

    def is_ready(self, group):
        return self._looks - self._complete_at[group.uid] > self.visit_of[group.uid].held_back

    def on_group_left(self, group, fate):
        self._event("left", group.uid, fate)
        return group


class Run:
    """Visits to prompts that finish as soon as they are submitted.

    Attributes:
        events: see ``Judge``; "submitted" with the number of prompts, "batch" with the uids of its rows, and "no batch"
            if there are no rows, which ends a run.
        counted: groups, responses and failed rewards of each report to the monitor of rewards.
        checks: how often a batch was about to be chosen.
    """

    def __init__(self, case, rows, put):
        self._visits, self._number, self._put = itertools.chain(case.visits, itertools.repeat(MIXED)), 0, put
        self.judge = Judge({}, rows)
        self.events = self.judge.events
        self.seam = Seam({"judge": self.judge}, PromptStore(), rows, group_size=4)
        self.counted, self.checks = [], 0

    def submit(self, count):
        uids = [f"visit{self._number + place:04d}" for place in range(count)]
        self.events.append(("submitted", count))
        self.seam.before_rollout({uid: ("math", self._number + place) for place, uid in enumerate(uids)}, {})
        self._number += count
        for uid in uids:
            visit = self.judge.visit_of[uid] = next(self._visits)
            rows = {}
            for session, (reward, accuracy) in enumerate(zip(visit.rewards, visit.accuracies, strict=True)):
                info = {"acc": accuracy}
                if session in visit.lost:
                    reward, info = 0.0, FAILURE.as_extra_info()
                columns = {"rm_scores": torch.tensor([0.0, reward]), "metrics": {}, "num_turns": 2}
                rows[f"{uid}_{session}_0"] = columns | {"extra_fields": {"reward_extra_info": info}}
            self._put(uid, rows, {key: {"status": "success", "response_len": 2} for key in rows})
        return uids


def with_verls_buffer(case, config):
    queue = MemoryQueue()
    with pytest.MonkeyPatch.context() as patched:
        for name in ("kv_put", "kv_batch_put", "kv_batch_get", "kv_list", "kv_clear"):
            patched.setattr(tq, name, getattr(queue, name))
        select = ReplayBuffer._select_prompt_uids
        patched.setattr(
            ReplayBuffer, "_select_prompt_uids", lambda self, name, uids, count: select(self, name, sorted(uids), count)
        )

        def put(uid, rows, tags):
            for key in rows:
                queue.kv_put(key, "train", rows[key], tags[key])
            queue.kv_put(uid, "train", tag={"is_prompt": True, "status": "finished", "global_steps": 1})

        run = Run(case, QueueRows(), put)
        trainer = object.__new__(PPOTrainerSync)
        trainer.config, trainer.trainer_mode, trainer._add_prompts_to_generate = config, "sync", run.submit
        buffer = trainer._build_replay_buffer()
        buffer.poll_interval = 0
        monitor = StubMonitor()
        replay.watch(buffer, run.seam, monitor)
        for step in range(1, case.steps + 1):
            run.submit(case.batch_size)
            try:
                batch, _ = buffer.sample(global_steps=step, partition_id="train", batch_size=case.batch_size)
            except RuntimeError as error:
                assert "no materializable trajectories" in str(error)
                run.events.append(("no batch",))
                break
            run.events.append(("batch", list(dict.fromkeys(map(uid_of, batch.keys)))))
            queue.kv_clear(batch.keys, "train")
        run.counted = [(rewards.groups, rewards.responses, rewards.lost) for rewards in monitor.rewards]
        run.checks = monitor.chosen
    return run


class StubRewards:
    """Stands for the laboratory's monitor of rewards, and tells ``run`` what it is told."""

    def __init__(self, run):
        self._run = run

    def on_rewards(self, step, groups, responses, lost, seconds):
        self._run.counted.append((groups, responses, lost))

    def check(self, step):
        self._run.checks += 1


def with_the_labs_buffer(case, config):
    rows = DictRows()
    run = Run(case, rows, lambda uid, columns, tags: rows.put(columns, tags))
    buffer = lab_buffer.GroupBuffer(config, run.seam, StubRewards(run), run.submit, training_prompts=10**9)
    for step in range(1, case.steps + 1):
        try:
            run.events.append(("batch", buffer.sample(step)))
        except RunStoppedError as error:
            assert f"In step {step}, all responses of the batch lost their reward" in str(error)
            run.events.append(("no batch",))
            break
        rows.drop(list(rows.tags))
    return run


@pytest.fixture(scope="module", autouse=True)
def no_waiting():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lab_buffer, "POLL_S", 0)
        yield


@pytest.fixture(scope="module")
def configured(compose_fast):
    base, _ = compose_fast(*SETTINGS)

    def config(case):
        made = base.copy()
        OmegaConf.set_struct(made, False)
        made.data.train_batch_size = case.batch_size
        made.algorithm.filter_groups.enable = case.metric is not None
        made.algorithm.filter_groups.metric = case.metric
        made.algorithm.filter_groups.max_inflight_gen_batches = case.batches_in_flight
        return made

    return config


SILENT = Visit((1.0, 1.0), (1.0, 1.0))
LOSES_ONE = Visit((1.0, 0.0, 0.0), (1.0, 0.0, 0.0), lost=frozenset({1}))
LOSES_ALL = Visit((1.0, 0.0), (1.0, 0.0), lost=frozenset({0, 1}))


@example(Case((SILENT, MIXED, SILENT, SILENT), batches_in_flight=2))
@example(Case((SILENT,) * 7, batch_size=3, batches_in_flight=2))
@example(Case((Visit((1.0, 0.0), (1.0, 0.0), held_back=4), SILENT), steps=2))
@example(Case((Visit((0.7,) * 3, (1.0, 0.0, 1.0)),), batch_size=1, metric="reward"))
@example(Case((LOSES_ALL, MIXED, LOSES_ONE, MIXED), steps=2))
@example(Case((LOSES_ALL, MIXED, LOSES_ONE, MIXED), steps=2, metric=None))
@example(Case((LOSES_ALL, LOSES_ALL)))
@given(CASES)
def test_groups_meet_the_same_fates_in_the_same_order(configured, case):
    config = configured(case)
    verls, labs = with_verls_buffer(case, config), with_the_labs_buffer(case, config)
    assert labs.events == verls.events
    assert (labs.counted, labs.checks) == (verls.counted, verls.checks)
    assert labs.seam.waiting == verls.seam.waiting
    assert labs.seam.waiting == 0 or labs.events[-1] == ("no batch",)


def test_a_group_without_rewards_takes_a_place_in_the_batch_and_has_no_rows_in_it(configured):
    case = Case((LOSES_ALL, LOSES_ONE), metric=None)
    run = with_the_labs_buffer(case, configured(case))
    assert [event for event in run.events if event[0] == "batch"] == [("batch", ["visit0001"])]
    assert [event[1:3] for event in run.events if event[0] == "left"] == [
        ("visit0000", "failed"),
        ("visit0001", "trained"),
    ]
    ((groups, responses, lost),) = run.counted
    assert (groups, responses, [(loss.data_source, loss.index) for loss in lost]) == (
        2,
        5,
        [("math", 0)] * 2 + [("math", 1)],
    )
    (complete,) = (event[1:3] for event in run.events if event[0] == "complete")
    assert [keys for _, keys, _ in complete] == [(), ("visit0001_0_0", "visit0001_2_0")]


def test_the_cases_meet_every_fate_and_more_than_one_refill(configured):
    """Otherwise the equality above could be one of empty lists."""
    held_back = Visit((1.0, 0.0), (1.0, 0.0), held_back=3)
    case = Case((SILENT, MIXED, SILENT, SILENT, held_back), batches_in_flight=2)
    run = with_the_labs_buffer(case, configured(case))
    fates = [event[2] for event in run.events if event[0] == "left"]
    assert fates == ["filtered"] * 3 + ["surplus"] * 3 + ["trained"] * 2
    assert [event[1] for event in run.events if event[0] == "submitted"] == [2, 2, 4]
    assert sum(event[0] == "look" for event in run.events) > 4, "held back for some of them"
