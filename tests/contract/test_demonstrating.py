"""Demonstrations in verl's own replay buffer over a real queue, verified by verl's own reward worker."""

import json
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import pyarrow.parquet as pq
import ray
import transfer_queue as tq
from agent_rows import answer, columns_of, demonstrations_in, prompts, sampled, texts_of, watched

from verl_gsd.algorithms.dagrpo.demonstration_settings import Settings
from verl_gsd.algorithms.dagrpo.demonstrations import LEFT_OUT, SESSIONS, Demonstrating
from verl_gsd.algorithms.dagrpo.pools import Experts, ExpertsOrOwn, OwnSuccesses
from verl_gsd.prompts import PromptStore
from verl_gsd.trainer import verifying
from verl_gsd.trainer.losses import DEMONSTRATION
from verl_gsd.trainer.rows import DEMONSTRATED_BY, DEMONSTRATED_IN, REPLACED

pytestmark = pytest.mark.usefixtures("queue")

SIZE = 4


@pytest.fixture(scope="module")
def tokenizer():
    from verl_gsd.tasks.byte_llama import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="module")
def problems(tiny_task):
    """Rows of the training data, as verl's data set gives them."""
    rows = pq.read_table(tiny_task / "train.parquet").to_pylist()[:6]
    return [
        row | {"raw_prompt": row.pop("prompt"), "index": row["extra_info"]["index"], "tools_kwargs": {}} for row in rows
    ]


@pytest.fixture(scope="module")
def worker(running_queue, compose_fast, tiny_task):
    """verl's own reward worker, with the task's own verifier."""
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    config, _ = compose_fast(
        *("algo=dagrpo_anchors", "task=arithmetic", "hardware=cpu"),
        *(f"actor_rollout_ref.model.path={tiny_task}/model", "reward.custom_reward_function.name=compute_score"),
    )
    actor = ray.remote(RewardLoopWorker).options(num_cpus=0).remote(config, None)
    yield actor
    ray.kill(actor)


@pytest.fixture
def pool(worker, tokenizer):
    """(settings) -> experts' demonstrations, which ``worker`` verifies."""

    def pool(column="demonstration", longest=8, workers=lambda: [worker]):
        return Experts(column, longest=longest, tokenizer=lambda: tokenizer, template={}, workers=workers)

    return pool


@pytest.fixture
def experts(pool):
    return pool()


def key_of(problems):
    """uid ``a2`` is a visit to problem 2."""
    return lambda uid: ("arithmetic", problems[int(uid[1:])]["index"])


def planned(part, problems, *uids, changed=None):
    """The batch of these visits after ``part`` saw it; ``changed`` replaces columns of every problem."""
    chosen = [problems[int(uid[1:])] | (changed or {}) for uid in uids]
    batch = prompts(uids, chosen)
    part.plan(list(uids), [key_of(problems)(uid) for uid in uids], batch)
    return batch


WRONG = ["x", "y", "zz", "wrong"]


def test_where_every_rollout_failed_the_verified_demonstration_takes_the_last_ones_place(experts, problems, tokenizer):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, listener = watched(part, key_of=key_of(problems), filtering="acc")
    planned(part, problems, "a0", "a1", "a2")
    truth = problems[0]["reward_model"]["ground_truth"]
    answer("a0", problems[0], tokenizer, WRONG)
    answer("a1", problems[1], tokenizer, ["x", problems[1]["demonstration"], "y", "z"])
    batch, rows = sampled(buffer, 2)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"]}, "and a group that did not fail has none"
    texts = texts_of(rows, tokenizer)
    assert [texts[f"a0_{session}"] for session in range(4)] == ["x<eos>", "y<eos>", "zz<eos>", f"{truth}<eos>"]
    row, tag = rows["a0_3_0"], dict(zip(batch.keys, batch.tags, strict=True))["a0_3_0"]
    assert float(row["rm_scores"].sum()) == 1.0 and row["rm_scores"][-1] == 1.0
    assert row["input_ids"].tolist() == [*row["prompts"].tolist(), *row["responses"].tolist()]
    assert row["loss_mask"].tolist() == [1] * len(row["responses"]) and not row["response_mask"].any()
    assert tag["seq_len"] == len(row["input_ids"]) and tag["response_len"] == len(row["responses"])
    assert tag[DEMONSTRATED_BY] == "expert" and tag[DEMONSTRATED_IN] == 0
    group, fate = listener.left["a0"]
    assert fate == "trained", "dynamic sampling sees a group whose outcomes differ"
    assert group.rewards.tolist() == [0.0] * 4 and group.demonstrations == 1, "what it replaced still counts"
    assert group.tokens.tolist() == [2, 2, 3, 6]


def test_a_group_that_failed_without_a_demonstration_is_evicted_as_ever(experts, problems, tokenizer):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, listener = watched(part, key_of=key_of(problems), filtering="acc")
    planned(part, problems, "a0", changed={"demonstration": ""})
    planned(part, problems, "a1")
    answer("a0", problems[0], tokenizer, WRONG)
    answer("a1", problems[1], tokenizer, WRONG)
    sampled(buffer, 1)
    assert {uid: fate for uid, (_, fate) in listener.left.items()} == {"a0": "filtered", "a1": "trained"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "missing"),
        (" ", "empty"),
        ("123456789", "too_long"),
        ("1<eos>1", "template"),
        ("no answer", "failed_verification"),
    ],
)
def test_what_is_no_demonstration_is_counted_by_its_reason(pool, problems, tokenizer, text, reason):
    part = Demonstrating(Settings(), pool(longest=99 if reason == "failed_verification" else 8), SIZE)
    buffer, listener = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0", changed={"demonstration": text})
    answer("a0", problems[0], tokenizer, WRONG)
    batch, _ = sampled(buffer, 1)
    assert demonstrations_in(batch) == {} and listener.left["a0"][0].demonstrations == 0
    found = part.remember(batch.keys, batch.tags, {"a0": key_of(problems)("a0")}, 1)
    rejected = {name.rpartition("/")[2]: value for name, value in found.items() if "/rejected/" in name}
    assert rejected.pop(reason) == 1.0 and set(rejected.values()) == {0.0}
    assert found["dagrpo/demonstrations/wanted"] == 1 and found["dagrpo/demonstrations/found"] == 0


def test_a_verifier_that_fails_rejects_and_does_not_stop_training(experts, problems, tokenizer):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0", changed={"reward_model": {"style": "rule"}})  # without ground_truth: a KeyError there
    answer("a0", problems[0], tokenizer, WRONG)
    batch, _ = sampled(buffer, 1)
    found = part.remember(batch.keys, batch.tags, {"a0": key_of(problems)("a0")}, 1)
    assert demonstrations_in(batch) == {} and found["dagrpo/demonstrations/rejected/unverified"] == 1.0


def test_a_prompt_seen_again_needs_no_verifier(pool, worker, problems, tokenizer):
    handles = [worker]
    part = Demonstrating(Settings(), pool(workers=lambda: handles or pytest.fail("asked again")), SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    for uid in ("a0", "b0"):
        planned(part, problems, uid)
        answer(uid, problems[0], tokenizer, WRONG)
        batch, _ = sampled(buffer, 1)
        assert demonstrations_in(batch) == {uid: [f"{uid}_3_0"]}
        handles.clear()


def test_a_word_that_nobody_needed_is_known_at_the_next_visit(pool, worker, problems, monkeypatch):
    handles, answers = [worker], []
    experts = pool(workers=lambda: handles or pytest.fail("asked again"))
    submit = verifying.submit
    monkeypatch.setattr(verifying, "submit", lambda *asked: answers.append(submit(*asked)) or answers[-1])
    for uid in ("a0", "b0"):
        experts.look_up([uid], [key_of(problems)(uid)], prompts([uid], [problems[0]]))
        if uid == "a0":
            ray.wait(answers)
            experts.forget(uid)
            handles.clear()
    assert len(experts.demonstrations("b0", 0.0)) == 1 == len(answers)


def test_several_texts_of_one_prompt_fill_as_many_places_and_leave_one_response(experts, problems, tokenizer):
    part = Demonstrating(Settings(per_group=7), experts, SIZE)
    buffer, listener = watched(part, key_of=key_of(problems))
    truth = problems[0]["demonstration"]
    planned(part, problems, "a0", changed={"demonstration": [truth, "wrong", f" {truth}", f"{truth} ", f" {truth} "]})
    answer("a0", problems[0], tokenizer, WRONG)
    batch, _ = sampled(buffer, 1)
    assert sorted(demonstrations_in(batch)["a0"]) == ["a0_1_0", "a0_2_0", "a0_3_0"]
    assert listener.left["a0"][0].demonstrations == 3 and len(listener.left["a0"][0].rewards) == 4


def test_a_session_of_several_outputs_is_replaced_whole(experts, problems, tokenizer):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, listener = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0")
    answer("a0", problems[0], tokenizer, WRONG, outputs=2)
    batch, _ = sampled(buffer, 1)
    assert sorted(batch.keys) == ["a0_0_0", "a0_0_1", "a0_1_0", "a0_1_1", "a0_2_0", "a0_2_1", "a0_3_0"]
    assert "a0_3_1" not in tq.kv_list("train")["train"]
    assert listener.left["a0"][0].tokens.tolist() == [4, 4, 6, 12]


@pytest.mark.parametrize("mode", ["all_fail", "always"])
def test_in_sessions_of_several_outputs_a_demonstration_answers_the_prompt_itself(experts, problems, tokenizer, mode):
    part = Demonstrating(Settings(mode=mode), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0")
    answer("a0", problems[0], tokenizer, WRONG[:3] if mode == "always" else WRONG, outputs=3)
    batch, rows = sampled(buffer, 1)
    (key,) = demonstrations_in(batch)["a0"]
    row, tag = rows[key], dict(zip(batch.keys, batch.tags, strict=True))[key]
    prompt = tokenizer.apply_chat_template(problems[0]["raw_prompt"], add_generation_prompt=True, return_dict=False)
    assert row["prompts"].tolist() == prompt
    assert row["input_ids"].tolist() == [*prompt, *row["responses"].tolist()]
    assert row["position_ids"].tolist() == list(range(len(row["input_ids"])))
    assert len(rows["a0_0_2"]["prompts"]) > len(prompt), "a later output's prompt is another one"
    lengths = [len(row[name]) for name in ("prompts", "responses", "input_ids")]
    assert [tag[name] for name in ("prompt_len", "response_len", "seq_len")] == lengths
    assert row["session_id"] == 3 and row["extra_fields"]["reward_extra_info"]["acc"] == 1.0
    assert [other for other in batch.keys if other.startswith("a0_3_")] == [key]


def test_the_first_session_is_the_template_where_it_failed_too(experts, problems, tokenizer):
    """Session 0 gave nothing, and the others are in the queue in no order."""
    part = Demonstrating(Settings(per_group=3), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    truth = problems[0]["demonstration"]
    planned(part, problems, "a0", changed={"demonstration": [truth, f" {truth}"]})
    answer("a0", problems[0], tokenizer, WRONG, outputs=2)
    tq.kv_clear(keys=["a0_0_0", "a0_0_1"], partition_id="train")
    batch, rows = sampled(buffer, 1)
    assert sorted(batch.keys) == ["a0_1_0", "a0_1_1", "a0_2_0", "a0_3_0"]
    for key in ("a0_2_0", "a0_3_0"):
        assert rows[key]["prompts"].tolist() == rows["a0_1_0"]["prompts"].tolist()


def test_always_leaves_a_session_out_and_adds_the_demonstration(experts, problems, tokenizer):
    part = Demonstrating(Settings(mode="always"), experts, SIZE)
    buffer, listener = watched(part, key_of=key_of(problems))
    batch = planned(part, problems, "a0", "a1")
    assert batch[SESSIONS].tolist() == [3, 3] and batch[LEFT_OUT].tolist() == [1, 1]
    batch = planned(part, problems, "a2", changed={"demonstration": "wrong"})
    assert batch[SESSIONS].tolist() == [4], "nothing to put there"
    answer("a0", problems[0], tokenizer, WRONG[:3])
    answer("a1", problems[1], tokenizer, [problems[1]["demonstration"]] * 3)
    batch, _ = sampled(buffer, 2)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"], "a1": ["a1_3_0"]}
    assert REPLACED not in dict(zip(batch.keys, batch.tags, strict=True))["a0_3_0"]
    assert [len(listener.left[uid][0].rewards) for uid in ("a0", "a1")] == [3, 3], "a demonstration is no response"


def test_a_restart_finds_a_group_as_it_was(experts, problems, tokenizer):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0")
    answer("a0", problems[0], tokenizer, WRONG)
    buffer._sync_metadata_from_transfer_queue()
    again = Demonstrating(Settings(), experts, SIZE)
    buffer, listener = watched(again, key_of=key_of(problems))
    batch, _ = sampled(buffer, 1)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"]}
    group = listener.left["a0"][0]
    assert (group.rewards.tolist(), group.tokens.tolist()) == ([0.0] * 4, [2, 2, 3, 6])
    assert group.accuracies.tolist() == [0.0] * 4 and group.demonstrations == 1


def test_prompts_that_waited_through_a_restart_are_looked_up_again(experts, problems, tokenizer):
    part = Demonstrating(Settings(mode="always"), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    batch = planned(part, problems, "a0")
    again = Demonstrating(Settings(mode="always"), experts, SIZE)
    again.take_up(["a0"], [key_of(problems)("a0")], batch)
    buffer, _ = watched(again, key_of=key_of(problems))
    answer("a0", problems[0], tokenizer, WRONG[:3])
    assert demonstrations_in(sampled(buffer, 1)[0]) == {"a0": ["a0_3_0"]}


def test_for_the_update_its_tokens_are_unmasked_with_their_advantage_and_the_others_are_left(
    experts, problems, tokenizer
):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0")
    answer("a0", problems[0], tokenizer, WRONG)
    batch, rows = sampled(buffer, 1)
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    before = [
        {
            "old_log_probs": torch.full((len(rows[key]["responses"]),), -0.7),
            "advantages": torch.full((len(rows[key]["responses"]),), 9.0),
            "returns": torch.full((len(rows[key]["responses"]),), 9.0),
        }
        for key in batch.keys
    ]
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=list_of_dict_to_tensordict(before))
    advantages = torch.tensor([3.0 if key == "a0_3_0" else -1.0 for key in batch.keys])
    columns = part.columns(batch, advantages)
    assert [key for key, shown in zip(batch.keys, columns[DEMONSTRATION].tolist(), strict=True) if shown] == ["a0_3_0"]
    for key, row in columns_of(batch.keys).items():
        mask, shown = row["loss_mask"], key == "a0_3_0"
        assert row["response_mask"].tolist() == mask.tolist() == [1] * len(mask)
        assert row["advantages"].tolist() == row["returns"].tolist() == [3.0 if shown else 9.0] * len(mask)
    found = part.remember(batch.keys, batch.tags, {"a0": key_of(problems)("a0")}, 1)
    assert found["dagrpo/demonstrations/token_probability"] == pytest.approx(np.exp(-0.7))
    assert found["dagrpo/demonstrations/share"] == 0.25


def own(tokenizer, store):
    pool = OwnSuccesses(store, keep=1, longest=8, tokenizer=lambda: tokenizer)
    return Demonstrating(Settings(source="self"), pool, SIZE)


def test_the_policys_own_success_stands_for_an_expert_after_a_restart_too(problems, tokenizer):
    store = PromptStore()
    part = own(tokenizer, store.responses)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0")
    answer("a0", problems[0], tokenizer, [*WRONG[:3], problems[0]["demonstration"]])
    batch, _ = sampled(buffer, 1)
    found = part.remember(batch.keys, batch.tags, {"a0": key_of(problems)("a0")}, 5)
    assert found["dagrpo/demonstrations/known"] == 1 and demonstrations_in(batch) == {}
    restored = PromptStore()
    state = store.state_dict()
    values = json.loads(json.dumps({name: value for name, value in state.items() if not isinstance(value, np.ndarray)}))
    restored.load_state_dict(values | {name: value for name, value in state.items() if isinstance(value, np.ndarray)})
    part = own(tokenizer, restored.responses)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "b0", "b1")
    answer("b0", problems[0], tokenizer, WRONG, step=7)
    answer("b1", problems[1], tokenizer, WRONG, step=7)
    batch, rows = sampled(buffer, 2, step=7)
    assert demonstrations_in(batch) == {"b0": ["b0_3_0"]}
    assert texts_of(rows, tokenizer)["b0_3"] == problems[0]["demonstration"] + "<eos>"
    found = part.remember(batch.keys, batch.tags, {f"b{n}": key_of(problems)(f"b{n}") for n in (0, 1)}, 7)
    assert found["dagrpo/demonstrations/age"] == 2 and found["dagrpo/demonstrations/rejected/missing"] == 1
    assert found["dagrpo/demonstrations/known"] == 1, "a demonstration is no new success"


def test_the_policys_own_success_is_shown_where_no_expert_is(experts, problems, tokenizer):
    store = PromptStore()
    pool = ExpertsOrOwn(experts, OwnSuccesses(store.responses, keep=1, longest=8, tokenizer=lambda: tokenizer))
    part = Demonstrating(Settings(source="expert_or_self"), pool, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    keys = {uid: key_of(problems)(uid) for uid in ("a0", "a1", "b0", "b1")}
    right = [problem["reward_model"]["ground_truth"] for problem in problems]
    for uids, texts, step in ((("a0", "a1"), [[right[0]], [right[1]]], 3), (("b0", "b1"), [["x"] * 3] * 2, 5)):
        planned(part, problems, uids[0])
        planned(part, problems, uids[1], changed={"demonstration": "wrong"})
        for uid, of in zip(uids, texts, strict=True):
            answer(uid, problems[int(uid[1:])], tokenizer, ["x", *of], step=step)
        batch, rows = sampled(buffer, 2, step=step)
        found = part.remember(batch.keys, batch.tags, keys, step)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    assert (tags["b0_3_0"][DEMONSTRATED_BY], tags["b1_3_0"][DEMONSTRATED_BY]) == ("expert", "self")
    assert texts_of(rows, tokenizer)["b1_3"] == f"{right[1]}<eos>" and found["dagrpo/demonstrations/age"] == 2
    assert found["dagrpo/demonstrations/rejected/missing"] == 0


def test_a_verifier_without_a_verdict_is_named(experts, problems, tokenizer):
    part = Demonstrating(Settings(), experts, SIZE)
    buffer, _ = watched(part, key_of=key_of(problems))
    planned(part, problems, "a0")
    answer("a0", problems[0], tokenizer, WRONG, verdicts=[-3.0, 0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"acc.*index=\d+ has -3\.0"):
        sampled(buffer, 1)


def test_a_column_that_is_not_there_is_named_with_those_that_are(pool, problems):
    with pytest.raises(ValueError, match=r"column=solution.*\bdemonstration\b"):
        planned(Demonstrating(Settings(), pool(column="solution"), SIZE), problems, "a0")


def test_the_verifier_is_waited_for_until_the_deadline_and_no_longer(pool, problems, worker):
    @ray.remote(num_cpus=0)
    class StubWorker:
        """Stands for a reward worker that does not answer."""

        def compute_score(self, data):
            threading.Event().wait()

    stub = StubWorker.remote()
    handles = [stub]
    experts = pool(workers=lambda: handles)
    experts.look_up(["a0"], [key_of(problems)("a0")], prompts(["a0"], [problems[0]]))
    assert experts.demonstrations("a0", time.monotonic()) == []
    assert experts.rejected["unverified"] == 1
    experts.forget("a0")
    handles[:] = [worker]
    experts.look_up(["b0"], [key_of(problems)("b0")], prompts(["b0"], [problems[0]]))
    assert len(experts.demonstrations("b0", time.monotonic() + 60)) == 1, "and is asked again at the next visit"
    ray.kill(stub)
