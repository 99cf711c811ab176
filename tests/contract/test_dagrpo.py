"""What DaGRPO assumes of verl, a fact a test: an upgrade that changes one fails here, by name."""

import asyncio
import json
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("verl")
from memory_queue import MemoryQueue
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.utils import tensordict_utils as tu
from verl.workers.engine import base as engine_base
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils.padding import response_from_nested
from verl_parts import (
    AGENT_LOOP_WORKER,
    actor_config,
    bare,
    bare_trainer,
    compute_metrics,
    fit,
    loss_of,
    micro_batch,
    names_of_calls,
)

from verl_gsd.trainer.verifying import as_data


@pytest.fixture
def queue(monkeypatch):
    return MemoryQueue.installed(monkeypatch)


@pytest.fixture(scope="module")
def tokenizer():
    from verl_gsd.tasks.byte_llama import build_tokenizer

    return build_tokenizer()


# Rewards


def test_agent_loops_ask_a_random_reward_worker_about_one_response_as_we_do():
    asked, columns = [], {"data_source": "x", "raw_prompt": [1]}

    def handle(number):
        async def score(data):
            asked.append((number, data))
            return {"reward_score": 1.0, "reward_extra_info": {}}

        return SimpleNamespace(compute_score=SimpleNamespace(remote=score))

    handles = [handle(0), handle(1)]
    worker = bare(AGENT_LOOP_WORKER, processor=None, mm_processor_kwargs={}, reward_loop_worker_handles=handles)
    for _ in range(40):
        output = AgentLoopOutput(
            prompt_ids=[1, 2], response_ids=[3], response_mask=[1], num_turns=2, metrics=AgentLoopMetrics()
        )
        asyncio.run(worker._compute_score([output], columns))
    assert {number for number, _ in asked} == {0, 1}
    theirs, ours = asked[0][1], as_data(columns, [1, 2], [3])
    assert ours.batch.keys() == theirs.batch.keys()
    assert ours.non_tensor_batch.keys() == theirs.non_tensor_batch.keys()
    for name, column in theirs.batch.items():
        assert torch.equal(ours.batch[name], column), name
    for name, column in theirs.non_tensor_batch.items():
        assert ours.non_tensor_batch[name].tolist() == column.tolist() or name in ("tool_extra_fields", "__num_turns__")


def test_a_reward_worker_scores_by_the_reward_model_whatever_function_gives_the_reward(tokenizer):
    """And it reads three columns of a response, so that we give it no others."""
    function, model = {"path": "mine.py"}, {"model_path": "rm", "rollout": {"name": "vllm"}}
    config = OmegaConf.create({"reward": {"custom_reward_function": function, "reward_model": model}})
    worker, posted = bare(RewardLoopWorker, config=config), []
    worker.input_tokenizer = worker.reward_model_tokenizer = tokenizer

    async def post(payload, endpoint):
        posted.append(payload["input"])
        return {"data": [{"probs": [0.25]}]}

    worker._post_request = post
    data = as_data({"raw_prompt": [{"role": "user", "content": "3+8="}]}, [1], tokenizer.encode("11"))
    data = data.select(batch_keys=["responses", "attention_mask"], non_tensor_batch_keys=["raw_prompt"])
    assert asyncio.run(worker.compute_score_disrm(data))["reward_score"] == 0.25
    assert "3+8=" in posted[0] and "11" in posted[0]


# Masks


def test_the_loss_is_masked_by_the_response_mask_alone():
    """A demonstration whose response mask is empty until the update counts in no figure of verl's, and then in both."""
    ones, zeros = [torch.ones(3), torch.ones(2)], [torch.ones(3), torch.zeros(2)]
    advantages = [torch.ones(3), torch.full((2,), 5.0)]
    config = actor_config()
    both, by_one = (
        loss_of(config, micro_batch([3, 2], advantages=advantages, loss_mask=mask)) for mask in (ones, zeros)
    )
    assert both == by_one
    masked = loss_of(config, micro_batch([3, 2], advantages=advantages, response_mask=zeros, loss_mask=ones))
    assert masked == loss_of(config, micro_batch([3])) != both


def test_the_engine_counts_tokens_by_the_loss_mask_alone(monkeypatch):
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, **_: tensor)
    monkeypatch.setattr(transformer_impl, "prepare_micro_batches", lambda data, **_: ([], None))
    monkeypatch.setattr(transformer_impl, "postprocess_batch_func", lambda data, **_: data)
    data = micro_batch([3, 2], loss_mask=[torch.ones(3), torch.zeros(2)])
    parts = {"get_data_parallel_group": lambda: None, "get_data_parallel_size": lambda: 1}
    engine = SimpleNamespace(ulysses_sequence_parallel_size=1, **parts)
    counted = transformer_impl.FSDPEngine.forward_backward_batch(engine, data, loss_function=None)
    assert tu.get(counted, "batch_num_tokens") == 3


def test_log_probabilities_are_cut_by_the_masks_lengths_and_not_its_values():
    def nested(*rows):
        return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)

    whole = nested([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0])
    cut = [response_from_nested(whole, mask) for mask in (nested([1, 1], [1]), nested([0, 0], [0]))]
    assert [[row.tolist() for row in each] for each in cut] == 2 * [[[2, 3], [6]]]


def old_log_probs(queue, of_the_masked_row):
    """(figures, the masked row's old log-probabilities) of verl's step for two rows of which one has an empty mask."""
    rollout = {"temperature": 1.0, "calculate_log_probs": True}
    actor = {"loss_agg_mode": "token-mean", "loss_scale_factor": None}
    config = {"algorithm": {}, "actor_rollout_ref": {"rollout": rollout, "actor": actor}}
    for key, mask, value in (("u_0_0", [1, 1], -1.0), ("u_1_0", [0, 0, 0], of_the_masked_row)):
        row = {"response_mask": torch.tensor(mask), "responses": torch.ones(len(mask), dtype=torch.int64)}
        row |= {name: torch.full((2 + len(mask),), value) for name in ("log_probs", "entropy")}
        row["log_probs"] = row["log_probs"] * torch.linspace(1, 2, len(row["log_probs"]))
        queue.kv_put(key, "train", row | {"rollout_log_probs": torch.linspace(-0.5, -0.25, len(mask))}, {})
    workers, metrics = Mock(compute_log_prob=lambda batch: batch), {}
    batch = KVBatchMeta(partition_id="train", keys=["u_0_0", "u_1_0"], tags=[{}, {}])
    bare_trainer(config=OmegaConf.create(config), actor_rollout_wg=workers)._compute_old_log_prob(batch, metrics)
    return metrics, queue.columns("u_1_0")["old_log_probs"].tolist()


def test_an_empty_mask_leaves_a_row_out_of_entropy_and_of_the_comparison_of_engines(queue):
    metrics, found = old_log_probs(queue, -2.0)
    others, other = old_log_probs(queue, -9.0)
    assert metrics == others and {"actor/entropy", "training/rollout_probs_diff_max"} < metrics.keys()
    assert len(found) == len(other) == 3 and found != other, "but it has log-probabilities"


# Steps


def test_metrics_of_a_step_are_of_the_rows_it_is_given(monkeypatch):
    """verl's trainer gives them the batch that the step returned, and no replay buffer."""
    ran = fit(monkeypatch, steps=2)
    assert [call.args[0] for call in ran.calls._compute_metrics.call_args_list] == ran.batches
    metrics, _ = compute_metrics(MemoryQueue.installed(monkeypatch), [1.0, 0.0, 5.0], used=2)
    assert metrics["critic/score/mean"] == 0.5 and metrics["critic/score/max"] == 1


def test_dumps_of_rollouts_mark_the_rows_that_the_policy_did_not_generate_in_this_step(queue, tokenizer, tmp_path):
    """``verl-gsd plan`` and ``verify`` leave them out. verl sorts the rows. Dumps of validations stay as they are."""
    from verl_gsd.trainer.rows import DEMONSTRATED_BY, GENERATED_IN, REPLACED
    from verl_gsd.trainer.trainer import GSDTrainerSync

    rows = [("u_2_0", "earlier", {GENERATED_IN: 1}), ("u_1_0", "theirs", {DEMONSTRATED_BY: "expert"})]
    rows += [("u_0_0", "wrong", {}), ("u_3_0", "mine", {DEMONSTRATED_BY: "self", REPLACED: [0.25, 0.0, 3.0]})]
    for key, text, tag in rows:
        ids = torch.tensor(tokenizer.encode(text))
        row = {"uid": key, "prompts": ids, "responses": ids, "rm_scores": torch.zeros(len(ids))}
        queue.kv_put(key, "train", row | {"reward_model": {"ground_truth": "5"}}, tag)
    tags = [queue.tag(key) for key, _, _ in rows]
    batch = KVBatchMeta(partition_id="train", keys=[key for key, _, _ in rows], tags=tags)
    trainer = bare(GSDTrainerSync, global_steps=3, tokenizer=tokenizer)
    trainer._init_dump_executor()
    trainer._log_rollout_data(batch, {}, str(tmp_path))
    trainer._dump_generations(["in"], ["out"], ["5"], [1.0], {"uid": ["v"]}, str(tmp_path / "validation"))
    trainer._shutdown_dump_executor()
    dumped = [json.loads(line) for line in (tmp_path / "3.jsonl").open()]
    assert [(row["output"], row["gsd_origin"], row["gsd_replaced_score"]) for row in dumped] == [
        ("wrong", "policy", None),
        ("theirs", "expert", None),
        ("earlier", "earlier", None),
        ("mine", "self", 0.25),
    ]
    (validated,) = map(json.loads, (tmp_path / "validation" / "3.jsonl").open())
    assert validated.keys() == {"input", "output", "gts", "score", "step", "uid"}


def test_an_update_begins_by_forgetting_gradients_so_that_the_probe_leaves_none():
    engine = Mock()
    engine.is_mp_src_rank_with_outputs.return_value = False
    engine_base.BaseEngine.train_batch(engine, {}, None)
    order = [name for name in names_of_calls(engine) if name.startswith(("optimizer", "forward"))]
    assert order == ["optimizer_zero_grad", "forward_backward_batch", "optimizer_step"]
