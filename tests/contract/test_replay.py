"""Groups in verl's own replay buffer over a real queue: told of once when whole and once, by fate, on leaving."""

import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from agent_rows import StubMonitor, WrittenSeam, services_of
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.errors import ConfigError
from verl_gsd.extension import Extension
from verl_gsd.run.messages import RunStoppedError
from verl_gsd.trainer import replay
from verl_gsd.trainer.reward_failures import Failure
from verl_gsd.trainer.reward_monitor import LostReward

pytestmark = pytest.mark.usefixtures("queue")


def key_of(uid):
    return "math", int(uid.strip("abcdefghijklmnopqrstuvwxyz"))


def buffer(kind=ReplayBuffer, extensions=None, monitor=None, **settings):
    """One as verl's trainer builds it, watched; its seam; its monitor."""
    settings = {"refill_fn": lambda count: None, "filter_groups_metric": None} | settings
    if kind is ReplayBuffer:
        settings = {"train_batch_size": 2, "gen_batch_size": 1} | settings
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    built = kind(trainer_mode="sync", trainer_config=None, **sampler | settings)
    built.poll_interval = 0.01
    seam = WrittenSeam(extensions or {}, services_of(), key_of=key_of, group_size=4)
    monitor = monitor or StubMonitor()
    replay.watch(built, seam, monitor)
    return built, seam, monitor


ACCURACY = object()
MEASURED = {"generate_sequences": 1.0, "compute_score": 0.5}


FAILURE = Failure("raised", "KeyError", "'x'", "Traceback ...")


def put(
    uid,
    scores,
    *,
    step=1,
    status="finished",
    partition="train",
    outputs=1,
    verdict=ACCURACY,
    unverified=None,
    lost=(),
    doubtful=None,
    tools=(),
):
    """A prompt's rows and status, as an agent loop worker writes them; the rewards of sessions ``lost`` failed.

    ``tools`` has the number of tokens per response that a tool wrote.
    """
    keys, fields, tags = [], [], []
    for (session, score), output in itertools.product(enumerate(scores), range(outputs)):
        keys.append(f"{uid}_{session}_{output}")
        # An accuracy that is the score; the reward is spread over two tokens.
        tokens = torch.tensor([0.0, score]) if output == outputs - 1 else torch.tensor([9.0, 9.0])
        said = score if verdict is ACCURACY else verdict
        info = {"acc": said} if unverified is None else {"acc": said, "unverified": unverified[session]}
        info |= {} if doubtful is None else {"doubtful": doubtful[session]}
        info = FAILURE.as_extra_info() if session in lost else info
        prompt = {"data_source": "math", "index": 17}
        mask = torch.ones(2 + session, dtype=torch.int64)
        mask[: tools[session] if tools else 0] = 0
        columns = {"rm_scores": tokens, "response_mask": mask, "num_turns": 4 if tools else 2, "metrics": MEASURED}
        fields.append(prompt | columns | {"extra_fields": {"reward_extra_info": info}})
        tags.append({"status": "success", "response_len": 2 + session})
    if keys:
        tq.kv_batch_put(keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id=partition)
    tq.kv_put(key=uid, partition_id=partition, tag={"is_prompt": True, "status": status, "global_steps": step})


def test_an_extension_sees_the_rows_of_every_look_and_the_buffer_what_it_drops():
    class Looking(Extension):
        def poll(self, now):
            self.seen = set(self.services.rows.tags)
            self.services.rows.drop([key for key in self.seen if key == "b2_1_0"])

    services = SimpleNamespace()
    looking = Looking({}, services)
    built, seam, _ = buffer(extensions={"looking": looking})
    services.rows = seam.rows
    put("a1", [1.0, 0.0])
    put("b2", [1.0, 0.5], status="running")
    for _ in range(2):  # nothing is new at the second
        built._sync_metadata_from_transfer_queue()
        assert "b2_1_0" not in built.partitions["train"]
    assert looking.seen == {"a1_0_0", "a1_1_0", "b2_0_0"}
    batch, _ = built.sample(global_steps=1, partition_id="train", batch_size=1)
    tq.kv_clear(keys=["a1", *batch.keys], partition_id="train")  # as a trainer does at the end of a step
    built._sync_metadata_from_transfer_queue()
    assert looking.seen == {"b2_0_0"}, "what was trained on is gone"


def test_a_whole_group_is_told_once_with_its_figures():
    built, seam, _ = buffer()
    put("a1", [1.0, 0.0, 0.5])
    put("b2", [1.0], status="running")
    for _ in range(3):
        built._sync_metadata_from_transfer_queue()
    (group,) = seam.whole
    assert (group.uid, group.data_source, group.index) == ("a1", "math", 1)
    assert group.rewards.tolist() == group.accuracies.tolist() == [1.0, 0.0, 0.5]
    assert group.tokens.tolist() == [2, 3, 4]
    assert built.read_seconds > 0


def test_the_last_output_speaks_for_a_session():
    built, seam, _ = buffer()
    put("a1", [1.0, 0.0], outputs=11)
    built._sync_metadata_from_transfer_queue()
    assert seam.whole[0].rewards.tolist() == [1.0, 0.0]
    assert seam.whole[0].tokens.tolist() == [22, 33], "the tokens of all its outputs count"


@pytest.mark.parametrize("outputs", [1, 3])
def test_tokens_are_those_that_the_policy_wrote(outputs):
    built, seam, _ = buffer()
    put("a1", [1.0, 0.0, 0.5], outputs=outputs, tools=[1, 0, 3])
    put("b2", [1.0, 0.0])
    built._sync_metadata_from_transfer_queue()
    assert [group.tokens.tolist() for group in seam.whole] == [[1 * outputs, 3 * outputs, 1 * outputs], [2, 3]]


def test_dynamic_sampling_filters_silent_groups_and_drops_the_surplus():
    waiting = [("d4", [0.0, 0.0]), ("e5", [1.0, 0.0]), ("f6", [1.0, 0.0])]

    def refill(count):
        for _ in range(min(count, len(waiting))):
            put(*waiting.pop(0))

    built, seam, monitor = buffer(refill_fn=refill, filter_groups_metric="acc", max_inflight_gen_batches=2)
    put("a1", [1.0, 1.0])
    put("b2", [1.0, 0.0])
    put("c3", [0.0, 0.0])
    batch, metrics = built.sample(global_steps=1, partition_id="train", batch_size=2)
    fates = dict(seam.fates)
    assert len(seam.fates) == len(fates) == 6
    assert Counter(fates.values()) == {"filtered": 3, "trained": 2, "surplus": 1}
    assert {uid for uid, fate in fates.items() if fate == "filtered"} == {"a1", "c3", "d4"} == set(monitor.evicted)
    assert {key.split("_")[0] for key in batch.keys} == {uid for uid, fate in fates.items() if fate == "trained"}
    assert metrics["training/filter_groups/evicted_samples"] == 3
    assert metrics["training/filter_groups/discarded_surplus_samples"] == 1


def test_a_group_that_is_not_ready_is_held_back_and_dynamic_sampling_waits_for_it():
    """Selected without it, a step would leave it to the next one."""

    class Slow(Extension):
        """Has b2 ready at the 21st look."""

        looks = 0

        def poll(self, now):
            self.looks += 1

        def is_ready(self, group):
            return group.uid != "b2" or self.looks > 20

    slow = Slow({})
    built, seam, monitor = buffer(extensions={"slow": slow}, filter_groups_metric="acc")
    put("a1", [1.0, 0.0])
    put("b2", [1.0, 0.0])
    put("c3", [0.0, 1.0])
    built.sample(global_steps=1, partition_id="train", batch_size=2)
    assert slow.looks > 20, "sampled while b2 was not ready"
    assert "1 prompts are being judged" in monitor.looks[2][0], "held back at the look before"
    assert sorted(fate for _, fate in seam.fates) == ["surplus", "trained", "trained"]
    assert [group.uid for group in seam.whole] == ["a1", "b2", "c3"]


def test_failed_groups():
    built, seam, _ = buffer()
    put("a1", [], status="failure")
    put("b2", [1.0], status="failure")  # some sessions gave a response: verl trains on what there is
    batch, _ = built.sample(global_steps=1, partition_id="train", batch_size=2)
    assert dict(seam.fates) == {"a1": "failed", "b2": "trained"} and batch.keys == ["b2_0_0"]

    refilled = []
    built, seam, _ = buffer(sync_refill_failed_groups=True, refill_fn=lambda count: refilled.append(put("d4", [1.0])))
    put("c3", [], status="failure")
    built.sample(global_steps=1, partition_id="train", batch_size=1)
    assert len(refilled) == 1 and seam.fates == [("c3", "failed"), ("d4", "trained")]


def test_asynchronous_eviction_names_the_strongest_reason():
    refilled = []
    built, seam, _ = buffer(
        ReplayBufferAsync,
        filter_groups_metric="acc",
        max_off_policy_threshold=2,
        refill_fn=refilled.append,
    )
    put("a1", [1.0, 1.0], step=1)  # too old, and silent
    put("b2", [1.0, 1.0], step=5)
    put("c3", [1.0, 0.0], step=5, status="failure")
    put("d4", [1.0, 0.0], step=5)
    built.sample(global_steps=5, partition_id="train", batch_size=1)
    assert dict(seam.fates) == {"a1": "stale", "b2": "filtered", "c3": "failed", "d4": "trained"}
    assert sum(refilled) == 3


@pytest.mark.parametrize("verdict", [None, "correct", [1, 0], torch.ones(2)])
def test_a_verdict_that_is_no_number_is_none(verdict):
    built, seam, _ = buffer()
    put("a1", [1.0, 0.0], verdict=verdict)
    built._sync_metadata_from_transfer_queue()
    assert [math.isnan(accuracy) for accuracy in seam.whole[0].accuracies] == [True, True]


def test_what_could_not_be_verified_is_counted_where_the_verifier_says_so():
    built, seam, _ = buffer()
    put("a1", [1.0, 0.0, 0.0], unverified=[0.0, 1.0, 1.0])
    put("b2", [1.0, 0.0], unverified=[0.0, 0.0])
    put("c3", [1.0, 0.0])
    put("d4", [1.0, 0.0], unverified=["?", None])
    built._sync_metadata_from_transfer_queue()
    assert {group.uid: group.unverified for group in seam.whole} == {"a1": 2, "b2": 0, "c3": None, "d4": None}
    assert {group.doubtful for group in seam.whole} == {None}


def test_verdicts_that_no_rule_was_sure_of_are_counted_where_the_verifier_says_so():
    built, seam, _ = buffer()
    put("a1", [1.0, 0.0, 0.0], doubtful=[0.0, 1.0, 0.0])
    put("b2", [1.0, 0.0], doubtful=[0.0, 0.0], unverified=[0.0, 1.0])
    put("c3", [1.0, 0.0], doubtful=["?", None])
    built._sync_metadata_from_transfer_queue()
    assert {group.uid: group.doubtful for group in seam.whole} == {"a1": 1, "b2": 0, "c3": None}
    assert {group.uid: group.unverified for group in seam.whole} == {"a1": None, "b2": 1, "c3": None}


def rows_in_queue(partition="train"):
    return {key for key, tag in tq.kv_list().get(partition, {}).items() if not tag.get("is_prompt")}


def test_a_response_whose_reward_failed_leaves_its_group_and_the_rest_is_trained_on():
    built, seam, monitor = buffer()
    put("a1", [1.0, 0.0, 0.0], outputs=2, lost=[1])
    put("b2", [1.0, 0.0])
    batch, _ = built.sample(global_steps=1, partition_id="train", batch_size=2)
    whole = {group.uid: group for group in seam.whole}
    assert whole["a1"].failed_rewards == 1 and whole["b2"].failed_rewards == 0
    assert whole["a1"].rewards.tolist() == [1.0, 0.0] and whole["a1"].tokens.tolist() == [4, 8]
    left = {"a1_0_0", "a1_0_1", "a1_2_0", "a1_2_1", "b2_0_0", "b2_1_0"}
    assert set(batch.keys) == left == rows_in_queue(), "no output of the session is left"
    assert dict(seam.fates) == {"a1": "trained", "b2": "trained"}
    (rewards,) = monitor.rewards
    assert (rewards.partition, rewards.groups, rewards.responses, rewards.seconds) == ("train", 2, 5, (0.5,) * 5)
    assert rewards.lost == (LostReward("math", 1, FAILURE),)


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_a_reward_that_the_agent_loop_gave_counts_as_failed_if_it_is_no_number(reward):
    built, seam, monitor = buffer()
    put("a17", [1.0, reward])
    built._sync_metadata_from_transfer_queue()
    assert seam.whole[0].rewards.tolist() == [1.0] and seam.whole[0].failed_rewards == 1
    assert monitor.rewards[0].lost == (
        LostReward("math", 17, Failure("not_finite", f"returned {reward}"), by_agent_loop=True),
    )


@pytest.mark.parametrize("metric", ["acc", "reward"])
def test_a_group_without_rewards_is_a_failed_one_and_dynamic_sampling_goes_on(metric):
    """verl's filter raises on a finished group without rows."""
    built, seam, _ = buffer(filter_groups_metric=metric, max_inflight_gen_batches=2)
    put("a1", [1.0, 0.0], lost=[0, 1])
    put("b2", [1.0, 0.0, 1.0], lost=[0])
    for _ in range(2):
        built._sync_metadata_from_transfer_queue()
        assert built.failure_keys["train"] == {"a1"} and built.finished_keys["train"] == {"b2"}
    assert tq.kv_list()["train"]["a1"]["status"] == "failure"
    batch, _ = built.sample(global_steps=1, partition_id="train", batch_size=2)
    assert set(batch.keys) == {"b2_1_0", "b2_2_0"}
    assert dict(seam.fates) == {"a1": "failed", "b2": "trained"}


def test_a_group_without_rewards_is_replaced_where_verl_replaces_failed_ones():
    refilled = []
    built, seam, _ = buffer(sync_refill_failed_groups=True, refill_fn=lambda count: refilled.append(put("d4", [1.0])))
    put("c3", [1.0], lost=[0])
    built.sample(global_steps=1, partition_id="train", batch_size=1)
    assert len(refilled) == 1 and seam.fates == [("c3", "failed"), ("d4", "trained")]

    built, seam, _ = buffer(ReplayBufferAsync, refill_fn=lambda count: None)
    put("a1", [1.0, 0.0], lost=[0, 1])
    put("b2", [1.0, 0.0], lost=[1])  # verl evicts failed groups, and this one is none
    built.sample(global_steps=1, partition_id="train", batch_size=1)
    assert dict(seam.fates) == {"a1": "failed", "b2": "trained"}


def test_failed_sessions_are_looked_into_when_they_appear_and_before_their_batch_is_used():
    built, _, monitor = buffer()
    put("a1", [1.0, 0.0])
    put("b2", [1.0], status="running")
    built._sync_metadata_from_transfer_queue()
    assert monitor.failures == []
    put("b2", [1.0], status="failure")
    for _ in range(2):
        built._sync_metadata_from_transfer_queue()
    assert monitor.failures == [False], "once for each failure"
    built.sample(global_steps=1, partition_id="train", batch_size=2)
    assert monitor.failures == [False, True]


@pytest.mark.parametrize("partition", ["train", "val"])
def test_a_batch_that_a_death_has_cut_short_is_not_used(partition):
    class Dead(StubMonitor):
        def on_failures(self, chosen):
            if chosen:
                raise RunStoppedError("the engine died")

    built, seam, _ = buffer(monitor=Dead())
    put("a1", [1.0, 0.0], partition=partition)
    put("b2", [1.0], status="failure", partition=partition)
    with pytest.raises(RunStoppedError):
        built.sample(global_steps=1, partition_id=partition, batch_size=2)
    assert not seam.fates and len(tq.kv_list()[partition]) == 5, "everything is still in the queue"


def test_what_the_trainer_waits_for_is_described_and_changes_with_every_response():
    built, _, monitor = buffer()
    put("a1", [1.0], status="running")
    built._sync_metadata_from_transfer_queue()
    put("a1", [1.0, 0.0], status="running")
    for _ in range(2):
        built._sync_metadata_from_transfer_queue()
    details, states = zip(*monitor.looks, strict=True)
    assert details[0] == "train: 1 responses finished, 1 of 1 prompts unfinished"
    assert states[0] != states[1] == states[2]


def test_prompts_that_fail_and_are_replaced_for_ever_are_no_progress():
    class StopError(Exception):
        pass

    class Patient(StubMonitor):
        def on_look(self, detail, state):
            super().on_look(detail, state)
            if len(self.looks) == 20:
                raise StopError

    replaced = itertools.count(2)

    def refill(count):
        for _ in range(count):
            put(f"a{next(replaced)}", [], status="failure")

    built, _, monitor = buffer(ReplayBufferAsync, monitor=Patient(), refill_fn=refill)
    put("a1", [], status="failure")
    with pytest.raises(StopError):
        built.sample(global_steps=1, partition_id="train", batch_size=1)
    assert len({state for _, state in monitor.looks}) == 1 and next(replaced) > 10


def test_a_run_can_be_stopped_before_a_batch_is_chosen():
    class Strict(StubMonitor):
        def on_choosing(self):
            if any(rewards.lost for rewards in self.rewards):
                raise RuntimeError("too many")

    built, seam, _ = buffer(monitor=Strict())
    put("a1", [1.0], lost=[0])  # verl would raise an error of its own on a batch without rows
    with pytest.raises(RuntimeError, match="too many"):
        built.sample(global_steps=1, partition_id="train", batch_size=1)
    assert seam.fates == []


def test_a_validation_does_not_see_responses_whose_reward_failed():
    built, _, monitor = buffer()
    put("a1", [1.0, 0.0], partition="val", outputs=2, lost=[1])
    put("b2", [1.0, math.nan], partition="val")
    batch, _ = built.sample(global_steps=1, partition_id="val", batch_size=2)
    assert set(batch.keys) == {"a1_0_0", "a1_0_1", "b2_0_0"} == rows_in_queue("val")
    (rewards,) = monitor.rewards
    assert (rewards.partition, rewards.responses, monitor.chosen) == ("val", 4, 0)
    assert {(loss.index, loss.failure.what, loss.by_agent_loop) for loss in rewards.lost} == {
        (17, "KeyError", False),
        (17, "returned nan", True),
    }


@pytest.mark.parametrize("reward", [0.0, math.nan])
def test_a_validation_batch_that_lost_all_rewards_keeps_one_response_with_a_reward_of_0(reward):
    """verl cannot read a batch without rows, and takes a session without a verdict for a failed one."""
    built, _, monitor = buffer()
    put("a1", [reward], partition="val", outputs=2, lost=[] if math.isnan(reward) else [0])
    put("b2", [math.nan], partition="val")
    batch, _ = built.sample(global_steps=1, partition_id="val", batch_size=2)
    assert len({key.rsplit("_", 1)[0] for key in batch.keys}) == 1 and set(batch.keys) == rows_in_queue("val")
    assert (monitor.rewards[0].responses, len(monitor.rewards[0].lost)) == (2, 2), "it is counted"
    key = max(batch.keys)
    data = tq.kv_batch_get(keys=[key], partition_id="val", select_fields=["rm_scores", "extra_fields", "data_source"])
    (scores,), (extra,) = list(data["rm_scores"]), list(data["extra_fields"])
    assert scores.tolist() == [0.0, 0.0] and getattr(extra, "data", extra)["reward_extra_info"] == {}
    assert list(data["data_source"]) == ["math"], "its other columns stay"


def test_nothing_is_kept_of_groups_that_left():
    built, seam, _ = buffer(filter_groups_metric="acc", refill_fn=lambda count: put(f"r{next(numbers)}", [1.0, 0.0]))
    numbers = itertools.count()
    for step in range(200):
        put(f"s{next(numbers)}", [1.0, 1.0], step=step)
        built.sample(global_steps=step, partition_id="train", batch_size=1)
        assert built._whole == {} and seam.waiting == 0
    assert len(seam.fates) == len(dict(seam.fates)) == next(numbers)


def test_a_sampler_of_its_own_may_choose_and_may_not_take_past_verls_methods():
    class Newest(ReplayBuffer):
        def _select_prompt_uids(self, partition_id, sampleable_keys, batch_size):
            chosen, partition, steps = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
            return chosen[-batch_size:], partition, steps

    class Thief(ReplayBuffer):
        def sample(self, global_steps, partition_id, batch_size):
            self._sync_metadata_from_transfer_queue()
            tq.kv_clear(keys=["a1"], partition_id=partition_id)

    built, seam, _ = buffer(Newest, train_batch_size=2, gen_batch_size=1)
    put("a1", [1.0, 0.0], step=1)
    put("b2", [1.0, 0.0], step=2)
    built.sample(global_steps=2, partition_id="train", batch_size=1)
    assert seam.fates == [("b2", "trained")]

    built, _, _ = buffer(Thief, train_batch_size=2, gen_batch_size=1)
    built.sample(global_steps=1, partition_id="train", batch_size=1)
    with pytest.raises(RuntimeError, match=r"WatchedThief.* 1 "):
        built.sample(global_steps=2, partition_id="train", batch_size=1)


def test_validation_is_not_looked_at():
    built, seam, _ = buffer()
    put("a1", [1.0], partition="val")
    built.sample(global_steps=1, partition_id="val", batch_size=1)
    assert seam.whole == seam.fates == []


def test_one_read_of_the_queue_serves_all_groups_of_a_look(monkeypatch):
    reads = []
    read = tq.kv_batch_get
    monkeypatch.setattr(replay.tq, "kv_batch_get", lambda *a, **k: reads.append(1) or read(*a, **k))
    built, seam, _ = buffer()
    for number in range(20):
        put(f"a{number}", [1.0, 0.0])
    built._sync_metadata_from_transfer_queue()
    built._sync_metadata_from_transfer_queue()
    assert len(seam.whole) == 20 and len(reads) == 1


def test_a_sampler_that_is_not_verls_is_refused():
    class Sampler:
        pass

    with pytest.raises(ConfigError, match=r"custom_sampler\.name=Sampler"):
        replay.watch(Sampler(), buffer()[1], StubMonitor())
