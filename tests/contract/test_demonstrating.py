"""Demonstrations in verl's own replay buffer over a real queue, verified by verl's own reward worker."""

import functools
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
from agent_rows import answer, columns_of, demonstrations_in, plan, prompts, sampled, services_of, texts_of, watched
from omegaconf import OmegaConf

from verl_gsd.algorithms.dagrpo.demonstrations import LEFT_OUT, DemonstrationExtension
from verl_gsd.algorithms.dagrpo.pools import ExpertPool
from verl_gsd.extension import ROLLOUTS, ExtensionError, Visits
from verl_gsd.prompts import PromptStore
from verl_gsd.trainer.row_store import BatchColumns
from verl_gsd.trainer.rows import DEMONSTRATED_BY, DEMONSTRATED_IN, DEMONSTRATION, REPLACED, uid_of
from verl_gsd.trainer.verifying import RewardWorkers

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
    ray.get(actor.__ray_ready__.remote())  # it imports for long on a busy machine, and an answer may take 60 s only
    yield actor
    ray.kill(actor)


class Verifier(RewardWorkers):
    """The run's own, which also keeps the answers that it was asked for."""

    def __init__(self, workers):
        super().__init__(workers)
        self.answers = []

    def submit(self, columns, prompt, response):
        self.answers.append(super().submit(columns, prompt, response))
        return self.answers[-1]


class Run:
    """Demonstrations as a trainer has them, in verl's buffer; uid ``a2`` is a visit to problem 2.

    Args:
        longest: tokens of a response at most.
        known: what an earlier run remembers of prompts.
        settings: of the section.
    """

    def __init__(self, problems, tokenizer, worker, *, filtering=None, longest=8, known=None, **settings):
        self.problems, self.verifier = problems, Verifier([worker])
        self.services = services_of(
            config=OmegaConf.create({"data": {"max_response_length": longest}}),
            tokenizer=tokenizer,
            verifier=self.verifier,
            prompts=PromptStore() if known is None else known,
        )
        extensions = {"dagrpo.demonstrations": DemonstrationExtension(settings, self.services)}
        self.buffer, self.seam = watched(
            extensions, self.services, key_of=self.key_of, group_size=SIZE, filtering=filtering
        )

    def key_of(self, uid):
        return "arithmetic", self.problems[int(uid[1:])]["index"]

    def planned(self, *uids, changed=None):
        """The batch of these visits when rollouts are requested; ``changed`` replaces columns of every problem."""
        batch = prompts(uids, [self.problems[int(uid[1:])] | (changed or {}) for uid in uids])
        plan(self.seam, {uid: self.key_of(uid) for uid in uids}, batch)
        return batch

    def trained(self, batch, step=1):
        """Metrics of the end of a step that trained on ``batch``; the end alone changes what is remembered."""
        store, keys = self.services.prompts.responses, [self.key_of(uid_of(key)) for key in batch.keys]
        self.services.step, known = step, [list(store.recall(key)) for key in keys]
        self.seam.observe_trained(batch)
        assert [list(store.recall(key)) for key in keys] == known
        return self.seam.end_step()

    def group(self, uid):
        """As it left."""
        return self.seam.gone[uid][0]


@pytest.fixture
def begin(worker, tokenizer, problems):
    """(arguments of ``Run``) -> a run whose verifier is ``worker``."""
    return functools.partial(Run, problems, tokenizer, worker)


@pytest.fixture
def experts(worker, tokenizer, problems):
    """(experts' demonstrations by themselves; their services; uid -> a visit to problem 0)."""
    services = services_of(tokenizer=tokenizer, verifier=Verifier([worker]))
    columns = {name: [value] for name, value in problems[0].items()}

    def visit(uid):
        return Visits([uid], [("arithmetic", problems[0]["index"])], columns, SIZE)

    return ExpertPool("demonstration", longest=8, services=services, template={}), services, visit


WRONG = ["x", "y", "zz", "wrong"]


def test_where_every_rollout_failed_the_verified_demonstration_takes_the_last_ones_place(begin, problems, tokenizer):
    run = begin(filtering="acc")
    run.planned("a0", "a1", "a2")
    truth = problems[0]["reward_model"]["ground_truth"]
    answer("a0", problems[0], tokenizer, WRONG)
    answer("a1", problems[1], tokenizer, ["x", problems[1]["demonstration"], "y", "z"])
    batch, rows = sampled(run.buffer, 2)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"]}, "and a group that did not fail has none"
    texts = texts_of(rows, tokenizer)
    assert [texts[f"a0_{session}"] for session in range(4)] == ["x<eos>", "y<eos>", "zz<eos>", f"{truth}<eos>"]
    row, tag = rows["a0_3_0"], dict(zip(batch.keys, batch.tags, strict=True))["a0_3_0"]
    assert float(row["rm_scores"].sum()) == 1.0 and row["rm_scores"][-1] == 1.0
    assert row["input_ids"].tolist() == [*row["prompts"].tolist(), *row["responses"].tolist()]
    assert row["loss_mask"].tolist() == [1] * len(row["responses"]) and not row["response_mask"].any()
    assert tag["seq_len"] == len(row["input_ids"]) and tag["response_len"] == len(row["responses"])
    assert tag[DEMONSTRATED_BY] == "expert" and tag[DEMONSTRATED_IN] == 0
    group, fate = run.seam.gone["a0"]
    assert fate == "trained", "dynamic sampling sees a group whose outcomes differ"
    assert group.rewards.tolist() == [0.0] * 4 and group.demonstrations == 1, "what it replaced still counts"
    assert group.tokens.tolist() == [2, 2, 3, 6]


def test_a_group_that_failed_without_a_demonstration_is_evicted_as_ever(begin, problems, tokenizer):
    run = begin(filtering="acc")
    run.planned("a0", changed={"demonstration": ""})
    run.planned("a1")
    answer("a0", problems[0], tokenizer, WRONG)
    answer("a1", problems[1], tokenizer, WRONG)
    sampled(run.buffer, 1)
    assert dict(run.seam.fates) == {"a0": "filtered", "a1": "trained"}


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
def test_what_is_no_demonstration_is_counted_by_its_reason(begin, problems, tokenizer, text, reason):
    run = begin(longest=99 if reason == "failed_verification" else 8)
    run.planned("a0", changed={"demonstration": text})
    answer("a0", problems[0], tokenizer, WRONG)
    batch, _ = sampled(run.buffer, 1)
    assert demonstrations_in(batch) == {} and run.group("a0").demonstrations == 0
    found = run.trained(batch)
    rejected = {name.rpartition("/")[2]: value for name, value in found.items() if "/rejected/" in name}
    assert rejected.pop(reason) == 1.0 and set(rejected.values()) == {0.0}
    assert found["dagrpo/demonstrations/wanted"] == 1 and found["dagrpo/demonstrations/found"] == 0


def test_a_verifier_that_fails_rejects_and_does_not_stop_training(begin, problems, tokenizer):
    run = begin()
    run.planned("a0", changed={"reward_model": {"style": "rule"}})  # without ground_truth: a KeyError there
    answer("a0", problems[0], tokenizer, WRONG)
    batch, _ = sampled(run.buffer, 1)
    found = run.trained(batch)
    assert demonstrations_in(batch) == {} and found["dagrpo/demonstrations/rejected/unverified"] == 1.0


def test_a_prompt_seen_again_needs_no_verifier(begin, problems, tokenizer):
    run = begin()
    for uid in ("a0", "b0"):
        run.planned(uid)
        answer(uid, problems[0], tokenizer, WRONG)
        batch, _ = sampled(run.buffer, 1)
        assert demonstrations_in(batch) == {uid: [f"{uid}_3_0"]}
        assert len(run.verifier.answers) == 1, "not asked again"


def test_a_word_that_nobody_needed_is_known_at_the_next_visit(experts):
    pool, services, visit = experts
    pool.look_up(visit("a0"))
    ray.wait(services.verifier.answers)
    pool.forget("a0")
    pool.look_up(visit("b0"))
    assert len(pool.demonstrations("b0", 0.0)) == 1 == len(services.verifier.answers), "not asked again"


def test_several_texts_of_one_prompt_fill_as_many_places_and_leave_one_response(begin, problems, tokenizer):
    run = begin(per_group=7)
    truth = problems[0]["demonstration"]
    run.planned("a0", changed={"demonstration": [truth, "wrong", f" {truth}", f"{truth} ", f" {truth} "]})
    answer("a0", problems[0], tokenizer, WRONG)
    batch, _ = sampled(run.buffer, 1)
    assert sorted(demonstrations_in(batch)["a0"]) == ["a0_1_0", "a0_2_0", "a0_3_0"]
    assert run.group("a0").demonstrations == 3 and len(run.group("a0").rewards) == 4


def test_a_session_of_several_outputs_is_replaced_whole(begin, problems, tokenizer):
    run = begin()
    run.planned("a0")
    answer("a0", problems[0], tokenizer, WRONG, outputs=2)
    batch, _ = sampled(run.buffer, 1)
    assert sorted(batch.keys) == ["a0_0_0", "a0_0_1", "a0_1_0", "a0_1_1", "a0_2_0", "a0_2_1", "a0_3_0"]
    assert "a0_3_1" not in tq.kv_list("train")["train"]
    assert run.group("a0").tokens.tolist() == [4, 4, 6, 12]


@pytest.mark.parametrize("mode", ["all_fail", "always"])
def test_in_sessions_of_several_outputs_a_demonstration_answers_the_prompt_itself(begin, problems, tokenizer, mode):
    run = begin(mode=mode)
    run.planned("a0")
    answer("a0", problems[0], tokenizer, WRONG[:3] if mode == "always" else WRONG, outputs=3)
    batch, rows = sampled(run.buffer, 1)
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


def test_the_first_session_is_the_template_where_it_failed_too(begin, problems, tokenizer):
    """Session 0 gave nothing, and the others are in the queue in no order."""
    run = begin(per_group=3)
    truth = problems[0]["demonstration"]
    run.planned("a0", changed={"demonstration": [truth, f" {truth}"]})
    answer("a0", problems[0], tokenizer, WRONG, outputs=2)
    tq.kv_clear(keys=["a0_0_0", "a0_0_1"], partition_id="train")
    batch, rows = sampled(run.buffer, 1)
    assert sorted(batch.keys) == ["a0_1_0", "a0_1_1", "a0_2_0", "a0_3_0"]
    for key in ("a0_2_0", "a0_3_0"):
        assert rows[key]["prompts"].tolist() == rows["a0_1_0"]["prompts"].tolist()


def test_always_leaves_a_session_out_and_adds_the_demonstration(begin, problems, tokenizer):
    run = begin(mode="always")
    batch = run.planned("a0", "a1")
    assert batch[ROLLOUTS].tolist() == [3, 3] and batch[LEFT_OUT].tolist() == [1, 1]
    batch = run.planned("a2", changed={"demonstration": "wrong"})
    assert batch[ROLLOUTS].tolist() == [4], "nothing to put there"
    answer("a0", problems[0], tokenizer, WRONG[:3])
    answer("a1", problems[1], tokenizer, [problems[1]["demonstration"]] * 3)
    batch, _ = sampled(run.buffer, 2)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"], "a1": ["a1_3_0"]}
    assert REPLACED not in dict(zip(batch.keys, batch.tags, strict=True))["a0_3_0"]
    assert [len(run.group(uid).rewards) for uid in ("a0", "a1")] == [3, 3], "a demonstration is no response"


def test_a_restart_finds_a_group_as_it_was(begin, problems, tokenizer):
    run = begin()
    run.planned("a0")
    answer("a0", problems[0], tokenizer, WRONG)
    run.buffer._sync_metadata_from_transfer_queue()
    again = begin()
    batch, _ = sampled(again.buffer, 1)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"]}
    group = again.group("a0")
    assert (group.rewards.tolist(), group.tokens.tolist()) == ([0.0] * 4, [2, 2, 3, 6])
    assert group.accuracies.tolist() == [0.0] * 4 and group.demonstrations == 1


def test_prompts_that_waited_through_a_restart_are_looked_up_again(begin, problems, tokenizer):
    run = begin(mode="always")
    batch = run.planned("a0")
    again = begin(mode="always")
    again.seam.restore_in_flight({"a0": again.key_of("a0")}, BatchColumns(batch))
    answer("a0", problems[0], tokenizer, WRONG[:3])
    assert demonstrations_in(sampled(again.buffer, 1)[0]) == {"a0": ["a0_3_0"]}


def test_for_the_update_its_tokens_are_unmasked_with_their_advantage_and_the_others_are_left(
    begin, problems, tokenizer
):
    run = begin()
    run.planned("a0")
    answer("a0", problems[0], tokenizer, WRONG)
    batch, rows = sampled(run.buffer, 1)
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    before = [
        {
            "old_log_probs": torch.full((len(rows[key]["responses"]),), -0.7 if key == "a0_3_0" else -0.2),
            "advantages": torch.full((len(rows[key]["responses"]),), 9.0),
            "returns": torch.full((len(rows[key]["responses"]),), 9.0),
        }
        for key in batch.keys
    ]
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=list_of_dict_to_tensordict(before))
    advantages = torch.tensor([3.0 if key == "a0_3_0" else -1.0 for key in batch.keys])
    columns = run.seam.loss_columns(batch, advantages)
    assert [key for key, shown in zip(batch.keys, columns[DEMONSTRATION].tolist(), strict=True) if shown] == ["a0_3_0"]
    for key, row in columns_of(batch.keys).items():
        mask, shown = row["loss_mask"], key == "a0_3_0"
        assert row["response_mask"].tolist() == mask.tolist() == [1] * len(mask)
        assert row["advantages"].tolist() == row["returns"].tolist() == [3.0 if shown else 9.0] * len(mask)
    found = run.trained(batch)
    assert found["dagrpo/demonstrations/token_probability"] == pytest.approx(np.exp(-0.7))
    assert found["dagrpo/demonstrations/own_token_probability"] == pytest.approx(np.exp(-0.2))
    assert found["dagrpo/demonstrations/share"] == 0.25


def test_the_policys_own_success_stands_for_an_expert_after_a_restart_too(begin, problems, tokenizer):
    run = begin(source="self")
    run.planned("a0")
    answer("a0", problems[0], tokenizer, [*WRONG[:3], problems[0]["demonstration"]])
    batch, _ = sampled(run.buffer, 1)
    found = run.trained(batch, step=5)
    assert found["dagrpo/demonstrations/known"] == 1 and demonstrations_in(batch) == {}
    restored = PromptStore()
    state = run.services.prompts.state_dict()
    values = json.loads(json.dumps({name: value for name, value in state.items() if not isinstance(value, np.ndarray)}))
    restored.load_state_dict(values | {name: value for name, value in state.items() if isinstance(value, np.ndarray)})
    run = begin(source="self", known=restored)
    run.planned("b0", "b1")
    answer("b0", problems[0], tokenizer, WRONG, step=7)
    answer("b1", problems[1], tokenizer, WRONG, step=7)
    batch, rows = sampled(run.buffer, 2, step=7)
    assert demonstrations_in(batch) == {"b0": ["b0_3_0"]}
    assert texts_of(rows, tokenizer)["b0_3"] == problems[0]["demonstration"] + "<eos>"
    found = run.trained(batch, step=7)
    assert found["dagrpo/demonstrations/age"] == 2 and found["dagrpo/demonstrations/rejected/missing"] == 1
    assert found["dagrpo/demonstrations/known"] == 1, "a demonstration is no new success"


def test_the_policys_own_success_is_shown_where_no_expert_is(begin, problems, tokenizer):
    run = begin(source="expert_or_self")
    right = [problem["reward_model"]["ground_truth"] for problem in problems]
    for uids, texts, step in ((("a0", "a1"), [[right[0]], [right[1]]], 3), (("b0", "b1"), [["x"] * 3] * 2, 5)):
        run.planned(uids[0])
        run.planned(uids[1], changed={"demonstration": "wrong"})
        for uid, of in zip(uids, texts, strict=True):
            answer(uid, problems[int(uid[1:])], tokenizer, ["x", *of], step=step)
        batch, rows = sampled(run.buffer, 2, step=step)
        found = run.trained(batch, step)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    assert (tags["b0_3_0"][DEMONSTRATED_BY], tags["b1_3_0"][DEMONSTRATED_BY]) == ("expert", "self")
    assert texts_of(rows, tokenizer)["b1_3"] == f"{right[1]}<eos>" and found["dagrpo/demonstrations/age"] == 2
    assert found["dagrpo/demonstrations/rejected/missing"] == 0


def test_a_verifier_without_a_verdict_is_named(begin, problems, tokenizer):
    run = begin()
    run.planned("a0")
    answer("a0", problems[0], tokenizer, WRONG, verdicts=[-3.0, 0.0, 0.0, 0.0])
    with pytest.raises(ExtensionError, match=r"on_groups_complete.*acc.*index=\d+ has acc=-3\.0") as raised:
        sampled(run.buffer, 1)
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_column_that_is_not_there_is_named_with_those_that_are(begin):
    with pytest.raises(ExtensionError, match=r"before_rollout.*column=solution.*\bdemonstration\b") as raised:
        begin(column="solution").planned("a0")
    assert isinstance(raised.value.__cause__, ValueError)


def test_the_verifier_is_waited_for_until_the_deadline_and_no_longer(experts, worker):
    @ray.remote(num_cpus=0)
    class StubWorker:
        """Stands for a reward worker that does not answer."""

        def compute_score(self, data):
            threading.Event().wait()

    pool, services, visit = experts
    stub = StubWorker.remote()
    services.verifier = RewardWorkers([stub])
    pool.look_up(visit("a0"))
    assert pool.demonstrations("a0", time.monotonic()) == []
    assert pool.rejected["unverified"] == 1
    pool.forget("a0")
    services.verifier = RewardWorkers([worker])
    pool.look_up(visit("b0"))
    assert len(pool.demonstrations("b0", time.monotonic() + 60)) == 1, "and is asked again at the next visit"
    ray.kill(stub)
