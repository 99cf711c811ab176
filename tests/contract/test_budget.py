"""What a budget assumes of verl: how many sessions it starts, what it waits for, pads and averages over."""

import asyncio
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("verl")
import torch
from hypothesis import given
from hypothesis import strategies as st
from memory_queue import MemoryQueue
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl_parts import AGENT_LOOP_WORKER, bare, bare_trainer

from verl_gsd.algorithms.rollouts.group_size_weights import group_size_weights
from verl_gsd.groups import group_stats


@pytest.fixture
def queue(monkeypatch):
    return MemoryQueue.installed(monkeypatch)


def sessions_of(queue, validate=False, session=None, **columns):
    """(sessions that verl's worker starts for a prompt with ``columns``, status when each began)."""
    rollout = OmegaConf.create({"rollout": {"n": 4, "val_kwargs": {"n": 2}}})
    worker, started = bare(AGENT_LOOP_WORKER, config=SimpleNamespace(actor_rollout_ref=rollout)), []
    partition = "val" if validate else "train"

    async def run(sampling, trajectory, trace, session_id, **prompt):
        started.append(session_id)
        await asyncio.sleep(0)
        assert queue.tag("a", partition)["status"] == "running"
        if session is not None:
            await session(session_id)

    worker._run_agent_loop = run
    asyncio.run(worker._run_prompt({"uid": "a"} | columns, {}, {"validate": validate}))
    return started, queue.tag("a", partition)["status"]


def test_a_prompts_own_number_of_sessions_is_read_where_they_are_started(queue):
    ours = torch.tensor([5, 3])[1]  # a row of our column, as a worker has it
    assert sessions_of(queue, __rollout_n__=ours) == ([0, 1, 2], "finished")
    assert sessions_of(queue) == ([0, 1, 2, 3], "finished")
    assert sessions_of(queue, validate=True) == ([0, 1], "finished")
    assert sessions_of(queue, validate=True, __rollout_n__=ours) == ([0, 1, 2], "finished")


def test_a_group_has_ended_when_all_its_sessions_have(queue):
    ended = []

    async def fails_at_once_or_ends_later(session):
        if session == 0:
            raise RuntimeError
        for _ in range(session * 5):
            await asyncio.sleep(0)
            assert queue.tag("a")["status"] == "running"
        ended.append(session)

    started, status = sessions_of(queue, session=fails_at_once_or_ends_later, __rollout_n__=torch.tensor(6))
    assert len(started) == 6 and ended == [1, 2, 3, 4, 5] and status == "failure"


def test_rows_are_known_by_their_prompt_session_and_output_and_their_two_masks_begin_equal(queue):
    outputs = [
        AgentLoopOutput(
            prompt_ids=[1, 2],
            response_ids=[3, 4, 5],
            response_mask=[1, 0, 1],
            num_turns=2,
            reward_score=1.0,
            metrics=AgentLoopMetrics(),
            extra_fields={"reward_extra_info": {}},
        )
        for _ in range(2)
    ]
    worker = bare(AGENT_LOOP_WORKER, processor=None, distillation_enabled=False, reward_loop_worker_handles=None)
    asyncio.run(worker._agent_loop_postprocess(outputs, False, uid="a", session_id=3, global_steps=1))
    assert set(queue.partitions["train"]) == {"a_3_0", "a_3_1"}
    for key in queue.partitions["train"]:
        row = queue.columns(key)
        assert row["loss_mask"].tolist() == row["response_mask"].tolist() == [1, 0, 1]


def buffer(**settings):
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    settings = {"train_batch_size": 2, "gen_batch_size": 1} | settings
    return ReplayBuffer(trainer_mode="sync", trainer_config=None, **sampler | settings)


def test_nobody_counts_a_groups_rows_against_the_config(queue):
    queue.put_group("a", [1.0, 0.0, 1.0, 0.0, 1.0])
    queue.put_group("b", [1.0])
    batch, _ = buffer(refill_fn=lambda count: pytest.fail("a short group is replaced")).sample(1, "train", 2)
    assert len(batch.keys) == 6


def test_a_step_submits_one_batch():
    submitted = []
    trainer = bare_trainer(_next_train_batch=lambda: "batch", _submit_batch_to_rollout=submitted.append)
    assert get_trainer_cls("sync").prepare_step is PPOTrainer.prepare_step
    trainer.config = OmegaConf.create({"skip": {"rollout_tq": {"enable": False}}})
    trainer.prepare_step()
    assert submitted == ["batch"]


@pytest.mark.parametrize(
    "settings", [{}, {"sync_refill_failed_groups": True}, {"filter_groups_metric": "acc"}], ids=str
)
def test_further_prompts_come_from_two_settings_which_a_budget_rejects(queue, settings):
    """One group has rows that dynamic sampling drops, and without it one fails without rows."""
    asked, is_filtered = [], "filter_groups_metric" in settings

    def refill(count):
        asked.append(count)
        queue.put_group(f"r{len(asked)}", [1.0, 0.0])

    queue.put_group("a", [1.0, 1.0])
    if not is_filtered:
        queue.put_group("b", [], status="failure")
    buffer(refill_fn=refill, **settings).sample(1, "train", 1 if is_filtered else 2)
    assert bool(asked) is bool(settings)


def test_rows_are_padded_to_mini_batches_of_n_rows_a_prompt_and_a_full_batch_is_not():
    actor, rollout = {"ppo_mini_batch_size": 6}, {"n": 8}
    config = {"trainer": {"critic_warmup": 0}, "actor_rollout_ref": {"actor": actor, "rollout": rollout}}
    assert bare_trainer(config=OmegaConf.create(config))._get_required_batch_multiple(dp_size=2) == 48
    full = KVBatchMeta(partition_id="train", keys=[f"u_{n}_0" for n in range(96)], tags=[{} for _ in range(96)])
    assert upsample_batch_to_divisible_size(full, 48, eos_token_id=0) is full


def test_validation_submits_for_itself_and_reads_a_column_of_its_own_files(queue):
    """A budget's column is therefore never in a batch of a validation, and one of the user's own stays."""
    submitted = []

    def generate(batch):
        submitted.append(batch)
        for uid in batch["uid"]:
            row = {"prompts": torch.ones(2), "responses": torch.ones(2), "rm_scores": torch.ones(2), "uid": uid}
            row |= {"num_turns": 2, "reward_model": {"ground_truth": "1"}, "data_source": "s", "extra_fields": {}}
            queue.kv_put(f"{uid}_0_0", "val", row, {"status": "success"})
            queue.kv_put(uid, "val", tag={"status": "finished"})

    settings = {"trainer": {"log_val_generations": 0}, "actor_rollout_ref": {"rollout": {"val_kwargs": {"n": 2}}}}
    parts = {"tokenizer": Mock(pad_token_id=0), "replay_buffer": buffer(), "reward_loop_manager": Mock()}
    told = Mock(return_value={})
    trainer = bare_trainer(
        config=OmegaConf.create(settings),
        agent_loop_manager=Mock(generate_sequences=generate),
        _submit_batch_to_rollout=lambda batch: pytest.fail("it submits as a step of training does"),
        _val_metrics_update=told,
        **parts,
    )
    prompts = {"raw_prompt": np.array(["p", "q"], dtype=object), "data_source": np.array(["s", "s"], dtype=object)}
    trainer.val_dataloader = [dict(prompts), prompts | {"__rollout_n__": torch.tensor([3, 5])}]
    trainer._validate()
    assert ["__rollout_n__" in batch for batch in submitted] == [False, True]
    assert list(told.call_args.kwargs["expected_acc_counts"].values()) == [2, 2, 3, 5]


def parts(mode, sizes, lengths, **constants):
    """Of one update, each prompt's part: verl's loss over the rows of all prompts, its gradient by the prompts' own."""
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    weight = group_size_weights(
        torch.tensor([sizes[label] for label in labels]), group_stats(torch.zeros(len(labels)), labels)
    )
    of_prompt = torch.ones(len(sizes), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[n < lengths[label] for n in range(max(lengths))] for label in labels], dtype=torch.float64)
    losses = (weight * of_prompt[torch.tensor(labels)])[:, None] * mask
    loss = core_algos.agg_loss(losses, mask, mode, **constants)
    return torch.autograd.grad(loss, of_prompt)[0]


@given(st.data())
def test_weighed_rows_give_each_prompt_the_part_that_it_has_with_equal_groups(data):
    prompts, size = data.draw(st.integers(1, 5)), 6
    cuts = data.draw(st.lists(st.integers(1, size - 1), min_size=prompts, max_size=prompts))
    sizes = [cut for cut in cuts] + [2 * size - cut for cut in cuts]  # their mean is ``size``
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=len(sizes), max_size=len(sizes)))
    rows = sum(sizes)
    for mode in ("seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"):
        adaptive, equal = (parts(mode, of, lengths, global_batch_size=rows) for of in (sizes, [size] * len(sizes)))
        torch.testing.assert_close(adaptive, equal, rtol=1e-6, atol=0)
    adaptive, equal = (parts("token-mean", of, lengths) for of in (sizes, [size] * len(sizes)))
    torch.testing.assert_close(adaptive / adaptive.sum(), equal / equal.sum(), rtol=1e-6, atol=0)
