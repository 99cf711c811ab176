"""Earlier responses in verl's own replay buffer over a real queue."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from tensordict import NonTensorStack, TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.algorithms.gvpo.replayed import PLANNED, SESSIONS, History, history_size
from verl_gsd.responses import ResponseStore
from verl_gsd.trainer import replay
from verl_gsd.trainer.rows import GENERATED_IN

pytestmark = pytest.mark.usefixtures("queue")

KEY, SIZE = ("maths", 7), 4


class Listener:
    def __init__(self, history):
        self.history, self.whole, self.left = history, [], []

    def key_of(self, uid):
        return KEY

    def complete(self, uids, rows):
        return self.history.complete(uids, rows, self.key_of)

    def amend(self, groups, rows):
        return {}

    def on_look(self, detail, state):
        pass

    def on_failures(self, chosen):
        pass

    def on_rewards(self, rewards):
        pass

    def on_choosing(self):
        pass

    def on_finished(self, group):
        self.whole.append(group)

    def is_ready(self, group):
        return True

    def on_left(self, group, fate):
        self.left.append((group, fate))


def watched(history):
    settings = {"refill_fn": lambda count: None, "filter_groups_metric": None, "train_batch_size": 1}
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    buffer = ReplayBuffer(trainer_mode="sync", trainer_config=None, gen_batch_size=1, **sampler, **settings)
    buffer.poll_interval = 0.01
    listener = Listener(history)
    replay.watch(buffer, listener)
    return buffer, listener


def submitted(history, uid, own=None):
    """Sessions that verl is asked for."""
    columns = {"uid": NonTensorStack(uid)} | ({SESSIONS: torch.tensor([own])} if own else {})
    batch = TensorDict(columns, batch_size=[1])
    history.plan([uid], [KEY], batch)
    return int(batch[SESSIONS][0])


def answered(uid, sessions, step, outputs=1, tag=None, **further):
    """Rows as agent loop workers write them: response ``session`` has ``2 + session`` tokens, the second a tool's."""
    keys, fields, tags = [], [], []
    for session in sessions:
        for output in range(outputs):
            prompt, response = torch.arange(5), torch.arange(2 + session) + 100 * step
            mask, scores = torch.ones(2 + session, dtype=torch.int64), torch.zeros(2 + session)
            mask[1], scores[-1] = 0, session / 2
            ids = torch.cat([prompt, response])
            keys.append(f"{uid}_{session}_{output}")
            fields.append(
                {
                    "prompts": prompt,
                    "responses": response,
                    "response_mask": mask,
                    "loss_mask": mask,
                    "input_ids": ids,
                    "position_ids": torch.arange(len(ids)),
                    "rm_scores": scores,
                    "metrics": {"compute_score": 0.5},
                    "extra_fields": {"raw": "kept", "reward_extra_info": {"acc": session / 2, "why": "text"}},
                    "multi_modal_inputs": {},
                    "session_id": session,
                    "uid": uid,
                }
                | further
            )
            lengths = {"prompt_len": 5, "response_len": 2 + session, "seq_len": 7 + session}
            tags.append({"status": "success", "global_steps": step, **lengths, **(tag or {})})
    if keys:
        tq.kv_batch_put(keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id="train")
    tq.kv_put(key=uid, partition_id="train", tag={"is_prompt": True, "status": "finished", "global_steps": step})


def trained(history, buffer, step, groups=1):
    batch, _ = buffer.sample(global_steps=step, partition_id="train", batch_size=groups)
    uid = batch.keys[0].split("_")[0]
    return batch, history.remember(batch.keys, batch.tags, {uid: KEY}, step)


def visited_once(share=0.5, store=None):
    history = History(share, SIZE, 100, ResponseStore() if store is None else store)
    buffer, listener = watched(history)
    assert submitted(history, "first") == SIZE
    answered("first", range(SIZE), step=1)
    _, metrics = trained(history, buffer, step=1)
    assert metrics["gvpo/history/share"] == 0 and metrics["gvpo/history/first_visits"] == 1
    assert metrics["gvpo/history/prompts"] == 1 and "gvpo/history/age" not in metrics
    return history, buffer, listener


def test_from_the_second_visit_on_earlier_responses_take_sessions_places():
    history, buffer, _ = visited_once()
    assert submitted(history, "second") == 2
    answered("second", range(2), step=3)
    batch, metrics = trained(history, buffer, step=3)
    assert sorted(batch.keys) == [f"second_{session}_0" for session in (0, 1, 4, 5)]
    data = tq.kv_batch_get(keys=["second_4_0", "second_5_0"], partition_id="train")
    for at, session in enumerate((0, 1)):
        row, tokens = data[at], list(range(100, 102 + session))
        assert row["responses"].tolist() == tokens and row["input_ids"].tolist() == [*range(5), *tokens]
        assert row["position_ids"].tolist() == list(range(7 + session))
        assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1, 0, 1][: 2 + session]
        assert row["rm_scores"].tolist() == [0.0] * (1 + session) + [session / 2]
        extra = getattr(row["extra_fields"], "data", row["extra_fields"])
        assert extra == {"raw": "kept", "reward_extra_info": {"acc": session / 2}}
        assert int(row["session_id"]) == 4 + session
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    assert (
        tags["second_5_0"] | {GENERATED_IN: 1, "response_len": 3, "seq_len": 8, "global_steps": 3} == tags["second_5_0"]
    )
    assert metrics == {
        "gvpo/history/share": 0.5,
        "gvpo/history/responses_saved": 2,
        "gvpo/history/tokens_saved": 5,
        "gvpo/history/first_visits": 0,
        "gvpo/history/shortage": 0,
        "gvpo/history/prompts": 1,
        "gvpo/history/age": 2,
    }


def test_the_group_has_their_rewards_and_counts_them_nowhere_else():
    history, buffer, listener = visited_once()
    submitted(history, "second")
    answered("second", range(2), step=2)
    trained(history, buffer, step=2)
    group, fate = listener.left[1]
    assert fate == "trained" and sorted(group.rewards.tolist()) == [0, 0, 0.5, 0.5]
    assert sorted(group.accuracies[group.accuracies == group.accuracies].tolist()) == [0, 0.5], "two are of this visit"
    assert sorted(group.tokens.tolist()) == [0, 0, 2, 3]


def test_what_is_remembered_is_of_the_latest_visit():
    for share, new, steps in ((0.5, 2, [2, 2]), (0.75, 1, [2, 1, 1])):  # older ones where one is not enough
        store = ResponseStore()
        history, buffer, _ = visited_once(share, store)
        submitted(history, f"second{share}")
        answered(f"second{share}", range(new), step=2)
        trained(history, buffer, step=2)
        assert [response.step for response in store.recall(KEY)] == steps


def test_a_larger_group_of_the_data_sets_own_is_completed_behind_its_sessions():
    history, buffer, listener = visited_once()
    generated = submitted(history, "second", own=9)
    assert generated == 7
    answered("second", range(generated), step=2)
    batch, metrics = trained(history, buffer, step=2)
    assert {"second_9_0", "second_10_0"} <= set(batch.keys) and len(listener.left[1][0].rewards) == 9
    assert metrics["gvpo/history/shortage"] == 0


def test_prompts_submitted_without_a_history_get_none():
    history, buffer, listener = visited_once()
    history.take_up(["second"], [KEY], TensorDict({"uid": NonTensorStack("second")}, batch_size=[1]))
    answered("second", range(SIZE), step=2)
    buffer._sync_metadata_from_transfer_queue()
    assert len(listener.whole[1].rewards) == SIZE


def test_responses_longer_than_this_run_allows_are_not_used():
    store = ResponseStore()
    visited_once(store=store)
    shorter = History(0.5, SIZE, 2, store)
    assert submitted(shorter, "second") == SIZE - 1, "one of two tokens is left, one of three is too long"


@pytest.mark.parametrize("acc", [np.bool_(True), torch.tensor(1.0), 1, True])
def test_a_verdict_of_any_kind_of_number_is_kept(acc):
    store = ResponseStore()
    history = History(0.5, SIZE, 100, store)
    buffer, _ = watched(history)
    answered("first", range(SIZE), step=1, extra_fields={"reward_extra_info": {"acc": acc, "why": "text"}})
    trained(history, buffer, step=1)
    assert store.recall(KEY)[0].verdict == {"acc": 1.0}


def test_earlier_responses_have_the_age_they_have():
    history, buffer, _ = visited_once()
    submitted(history, "second")
    versions = {"min_global_steps": 8, "max_global_steps": 8}
    answered("second", range(2), step=9, extra_fields={"reward_extra_info": {}} | versions, tag=versions)
    batch, _ = trained(history, buffer, step=9)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    assert tags["second_0_0"]["max_global_steps"] == 8
    assert tags["second_4_0"]["min_global_steps"] == tags["second_4_0"]["max_global_steps"] == 0
    extra = tq.kv_batch_get(keys=["second_4_0"], partition_id="train")[0]["extra_fields"]
    assert getattr(extra, "data", extra)["max_global_steps"] == 0


def test_a_data_sets_own_number_of_sessions_is_lessened_and_one_is_always_new():
    history, _, _ = visited_once(share=0.75)
    assert [submitted(history, f"again{n}", own=n) for n in (6, 3, 1)] == [3, 1, 1]


def test_a_group_without_a_session_that_answered_is_left_short_and_counted():
    history, buffer, listener = visited_once()
    submitted(history, "second")
    answered("second", (), step=2)
    submitted(history, "third")
    answered("third", range(2), step=2)
    buffer._sync_metadata_from_transfer_queue()
    assert {group.uid: len(group.rewards) for group in listener.whole[1:]} == {"second": 0, "third": 4}
    _, metrics = trained(history, buffer, step=2, groups=2)
    assert {group.uid: fate for group, fate in listener.left[1:]} == {"second": "failed", "third": "trained"}
    assert metrics["gvpo/history/shortage"] == 2


def test_responses_forgotten_meanwhile_are_counted():
    store = ResponseStore()
    history, buffer, _ = visited_once(store=store)
    submitted(history, "second")
    store.forget(KEY)
    answered("second", range(2), step=2)
    batch, metrics = trained(history, buffer, step=2)
    assert len(batch.keys) == 2 and metrics["gvpo/history/shortage"] == 2


def test_a_group_that_a_checkpoint_held_is_completed_once():
    history, _, _ = visited_once()
    resumed, listener = watched(history)
    prompts = TensorDict({SESSIONS: torch.tensor([2]), PLANNED: torch.tensor([2])}, batch_size=[1])
    history.take_up(["second"], [KEY], prompts)
    answered("second", range(2), step=2)
    resumed._sync_metadata_from_transfer_queue()
    again, told = watched(history)
    history.take_up(["second"], [KEY], prompts)
    again._sync_metadata_from_transfer_queue()
    assert len(told.whole[0].rewards) == len(listener.whole[0].rewards) == SIZE


def test_sessions_of_several_outputs_are_not_remembered():
    history = History(0.5, SIZE, 100, ResponseStore())
    buffer, _ = watched(history)
    answered("first", range(SIZE), step=1, outputs=2)
    _, metrics = trained(history, buffer, step=1)
    assert metrics["gvpo/history/prompts"] == 0


@pytest.mark.parametrize("further", [{"rollout_log_probs": torch.zeros(2)}, {"multi_modal_inputs": {"image": 1}}])
def test_columns_that_cannot_be_remade_are_refused(further):
    history, buffer, _ = visited_once()
    submitted(history, "second")
    answered("second", range(2), step=2, **further)
    with pytest.raises(ValueError, match=rf"{next(iter(further))}.*history_fraction=0"):
        buffer._sync_metadata_from_transfer_queue()


def test_a_share_is_rounded_and_leaves_one_new_response():
    assert [history_size(share, 8) for share in (0, 0.05, 0.0625, 0.25, 0.5, 0.99)] == [0, 0, 1, 2, 4, 7]
