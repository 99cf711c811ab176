"""Groups in verl's own replay buffer over a real queue: told of once when whole and once, by fate, on leaving."""

import itertools
import math
from collections import Counter

import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.trainer import replay
from verl_gsd.trainer.config import ConfigError

pytestmark = [pytest.mark.stack, pytest.mark.usefixtures("queue")]


class Listener:
    """Writes down what it is told; holds back whose uid is in ``unready``."""

    def __init__(self):
        self.whole, self.left, self.unready = [], [], set()

    def key_of(self, uid):
        return "math", int(uid.strip("abcdefghijklmnopqrstuvwxyz"))

    def complete(self, uids, rows):
        return {}

    def amend(self, groups, rows):
        return {}

    def on_finished(self, group):
        self.whole.append(group)

    def is_ready(self, group):
        return group.uid not in self.unready

    def on_left(self, group, fate):
        self.left.append((group.uid, fate))


def buffer(kind=ReplayBuffer, listener=None, **settings):
    """As verl's trainer builds it."""
    settings = {"refill_fn": lambda count: None, "filter_groups_metric": None} | settings
    if kind is ReplayBuffer:
        settings = {"train_batch_size": 2, "gen_batch_size": 1} | settings
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    built = kind(trainer_mode="sync", trainer_config=None, **sampler | settings)
    built.poll_interval = 0.01
    listener = listener or Listener()
    replay.watch(built, listener)
    return built, listener


ACCURACY = object()


def put(uid, scores, *, step=1, status="finished", partition="train", outputs=1, verdict=ACCURACY, unverified=None):
    """A prompt's rows and status, as an agent loop worker writes them."""
    keys, fields, tags = [], [], []
    for (session, score), output in itertools.product(enumerate(scores), range(outputs)):
        keys.append(f"{uid}_{session}_{output}")
        # An accuracy that is the score; the reward is spread over two tokens.
        tokens = torch.tensor([0.0, score]) if output == outputs - 1 else torch.tensor([9.0, 9.0])
        said = score if verdict is ACCURACY else verdict
        info = {"acc": said} if unverified is None else {"acc": said, "unverified": unverified[session]}
        fields.append({"rm_scores": tokens, "extra_fields": {"reward_extra_info": info}})
        tags.append({"status": "success", "response_len": 2 + session})
    if keys:
        tq.kv_batch_put(keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id=partition)
    tq.kv_put(key=uid, partition_id=partition, tag={"is_prompt": True, "status": status, "global_steps": step})


def test_a_whole_group_is_told_once_with_its_figures():
    built, listener = buffer()
    put("a1", [1.0, 0.0, 0.5])
    put("b2", [1.0], status="running")
    for _ in range(3):
        built._sync_metadata_from_transfer_queue()
    (group,) = listener.whole
    assert (group.uid, group.data_source, group.index) == ("a1", "math", 1)
    assert group.rewards.tolist() == group.accuracies.tolist() == [1.0, 0.0, 0.5]
    assert group.tokens.tolist() == [2, 3, 4]
    assert built.read_seconds > 0


def test_the_last_output_speaks_for_a_session():
    built, listener = buffer()
    put("a1", [1.0, 0.0], outputs=11)
    built._sync_metadata_from_transfer_queue()
    assert listener.whole[0].rewards.tolist() == [1.0, 0.0]
    assert listener.whole[0].tokens.tolist() == [22, 33], "the tokens of all its outputs count"


def test_dynamic_sampling_filters_silent_groups_and_drops_the_surplus():
    waiting = [("d4", [0.0, 0.0]), ("e5", [1.0, 0.0]), ("f6", [1.0, 0.0])]

    def refill(count):
        for _ in range(min(count, len(waiting))):
            put(*waiting.pop(0))

    built, listener = buffer(refill_fn=refill, filter_groups_metric="acc", max_inflight_gen_batches=2)
    put("a1", [1.0, 1.0])
    put("b2", [1.0, 0.0])
    put("c3", [0.0, 0.0])
    batch, metrics = built.sample(global_steps=1, partition_id="train", batch_size=2)
    fates = dict(listener.left)
    assert len(listener.left) == len(fates) == 6
    assert Counter(fates.values()) == {"filtered": 3, "trained": 2, "surplus": 1}
    assert {uid for uid, fate in fates.items() if fate == "filtered"} == {"a1", "c3", "d4"}
    assert {key.split("_")[0] for key in batch.keys} == {uid for uid, fate in fates.items() if fate == "trained"}
    assert metrics["training/filter_groups/evicted_samples"] == 3
    assert metrics["training/filter_groups/discarded_surplus_samples"] == 1


def test_a_group_that_is_not_ready_is_held_back_and_dynamic_sampling_waits_for_it():
    """Selected without it, a step would leave it to the next one."""
    listener = Listener()
    listener.unready = {"b2"}
    looks = itertools.count()

    def is_ready(group):
        if next(looks) > 20:
            listener.unready.clear()
        return group.uid not in listener.unready

    listener.is_ready = is_ready
    built, _ = buffer(listener=listener, filter_groups_metric="acc")
    put("a1", [1.0, 0.0])
    put("b2", [1.0, 0.0])
    put("c3", [0.0, 1.0])
    built.sample(global_steps=1, partition_id="train", batch_size=2)
    assert next(looks) > 20, "sampled while b2 was not ready"
    assert sorted(fate for _, fate in listener.left) == ["surplus", "trained", "trained"]
    assert [group.uid for group in listener.whole] == ["a1", "b2", "c3"]


def test_failed_groups():
    built, listener = buffer()
    put("a1", [], status="failure")
    put("b2", [1.0], status="failure")  # some sessions gave a response: verl trains on what there is
    batch, _ = built.sample(global_steps=1, partition_id="train", batch_size=2)
    assert dict(listener.left) == {"a1": "failed", "b2": "trained"} and batch.keys == ["b2_0_0"]

    refilled = []
    built, listener = buffer(sync_refill_failed_groups=True, refill_fn=lambda count: refilled.append(put("d4", [1.0])))
    put("c3", [], status="failure")
    built.sample(global_steps=1, partition_id="train", batch_size=1)
    assert len(refilled) == 1 and listener.left == [("c3", "failed"), ("d4", "trained")]


def test_asynchronous_eviction_names_the_strongest_reason():
    refilled = []
    built, listener = buffer(
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
    assert dict(listener.left) == {"a1": "stale", "b2": "filtered", "c3": "failed", "d4": "trained"}
    assert sum(refilled) == 3


@pytest.mark.parametrize("verdict", [None, "correct", [1, 0], torch.ones(2)])
def test_a_verdict_that_is_no_number_is_none(verdict):
    built, listener = buffer()
    put("a1", [1.0, 0.0], verdict=verdict)
    built._sync_metadata_from_transfer_queue()
    assert all(math.isnan(accuracy) for accuracy in listener.whole[0].accuracies)


def test_what_could_not_be_verified_is_counted_where_the_verifier_says_so():
    built, listener = buffer()
    put("a1", [1.0, 0.0, 0.0], unverified=[0.0, 1.0, 1.0])
    put("b2", [1.0, 0.0], unverified=[0.0, 0.0])
    put("c3", [1.0, 0.0])
    put("d4", [1.0, 0.0], unverified=["?", None])
    built._sync_metadata_from_transfer_queue()
    assert {group.uid: group.unverified for group in listener.whole} == {"a1": 2, "b2": 0, "c3": None, "d4": None}


def test_a_reward_that_is_no_number_is_named_by_its_prompt():
    built, _ = buffer()
    put("a17", [1.0, math.nan])
    with pytest.raises(ValueError, match=r"data_source=math, index=17 is nan"):
        built._sync_metadata_from_transfer_queue()


def test_nothing_is_kept_of_groups_that_left():
    built, listener = buffer(filter_groups_metric="acc", refill_fn=lambda count: put(f"r{next(numbers)}", [1.0, 0.0]))
    numbers = itertools.count()
    for step in range(200):
        put(f"s{next(numbers)}", [1.0, 1.0], step=step)
        built.sample(global_steps=step, partition_id="train", batch_size=1)
        assert built._whole == {}
    assert len(listener.left) == len(dict(listener.left)) == next(numbers)


def test_a_sampler_of_its_own_may_choose_and_may_not_take_past_verls_methods():
    class Newest(ReplayBuffer):
        def _select_prompt_uids(self, partition_id, sampleable_keys, batch_size):
            chosen, partition, steps = super()._select_prompt_uids(partition_id, sampleable_keys, len(sampleable_keys))
            return chosen[-batch_size:], partition, steps

    class Thief(ReplayBuffer):
        def sample(self, global_steps, partition_id, batch_size):
            self._sync_metadata_from_transfer_queue()
            tq.kv_clear(keys=["a1"], partition_id=partition_id)

    built, listener = buffer(Newest, train_batch_size=2, gen_batch_size=1)
    put("a1", [1.0, 0.0], step=1)
    put("b2", [1.0, 0.0], step=2)
    built.sample(global_steps=2, partition_id="train", batch_size=1)
    assert listener.left == [("b2", "trained")]

    built, _ = buffer(Thief, train_batch_size=2, gen_batch_size=1)
    built.sample(global_steps=1, partition_id="train", batch_size=1)
    with pytest.raises(RuntimeError, match="WatchedThief took 1 groups out of the queue"):
        built.sample(global_steps=2, partition_id="train", batch_size=1)


def test_validation_is_not_looked_at():
    built, listener = buffer()
    put("a1", [1.0], partition="val")
    built.sample(global_steps=1, partition_id="val", batch_size=1)
    assert listener.whole == listener.left == []


def test_one_read_of_the_queue_serves_all_groups_of_a_look(monkeypatch):
    reads = []
    read = tq.kv_batch_get
    monkeypatch.setattr(replay.tq, "kv_batch_get", lambda *a, **k: reads.append(1) or read(*a, **k))
    built, listener = buffer()
    for number in range(20):
        put(f"a{number}", [1.0, 0.0])
    built._sync_metadata_from_transfer_queue()
    built._sync_metadata_from_transfer_queue()
    assert len(listener.whole) == 20 and len(reads) == 1


def test_a_sampler_that_is_not_verls_is_refused():
    class Sampler:
        pass

    with pytest.raises(ConfigError, match=r"custom_sampler\.name=Sampler: .* Write a subclass"):
        replay.watch(Sampler(), Listener())
