"""What a budget assumes of verl: how many sessions it starts, what it waits for, pads and averages over."""

import inspect

import pytest

pytest.importorskip("verl")
import torch
from hypothesis import given
from hypothesis import strategies as st
from transfer_queue import KVBatchMeta
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer, trainer_base, trainer_sync

from verl_gsd.algorithms.budget import equal_prompts
from verl_gsd.groups import group_stats

TRAINER = trainer_base.PPOTrainer


def source(thing):
    return inspect.getsource(thing)


def test_a_prompts_own_number_of_sessions_is_read_where_they_are_started():
    text = source(agent_loop_tq)
    assert 'n = prompt.pop("__rollout_n__", config.n if not trajectory["validate"] else config.val_kwargs.n)' in text
    assert "for i in range(n):" in text and "session_id=i" in text
    assert 'keys.append(f"{uid}_{session_id}_{i}")' in text
    assert list(range(torch.tensor([5, 3])[1])) == [0, 1, 2], "a row of our column, as a worker has it"


def test_a_group_has_ended_when_as_many_have_and_nobody_counts_them_against_the_config():
    text = source(agent_loop_tq)
    assert text.index("await _settle_session_tasks(tasks)") < text.index('status = "finished"')
    assert "rollout.n" not in source(replay_buffer) and "__rollout_n__" not in source(replay_buffer)


def test_a_step_submits_one_batch_and_trains_on_all_of_it():
    assert source(TRAINER.prepare_step).count("_add_batch_to_generate()") == 1
    assert "prepare_step" not in source(trainer_sync), "the synchronous mode keeps it"
    assert source(TRAINER._add_batch_to_generate).count("self._submit_batch_to_rollout(batch)") == 1
    text = source(replay_buffer.ReplayBuffer.sample)
    assert text.count("self.refill_fn(") == 2
    assert "if not dapo_enabled and failed_count > 0" in text and "if self.sync_refill_failed_groups" in source(
        replay_buffer.ReplayBuffer._terminal_eviction_reasons
    ), "the two ways to further prompts, both refused"


def test_rows_are_padded_to_mini_batches_of_n_rows_a_prompt_and_a_full_batch_is_not():
    text = source(TRAINER._get_required_batch_multiple)
    assert "actor.ppo_mini_batch_size" in text and "actor_global_mini_batch_size *= self.config" in text
    full = KVBatchMeta(partition_id="train", keys=[f"u_{n}_0" for n in range(96)], tags=[{} for _ in range(96)])
    assert upsample_batch_to_divisible_size(full, 48, eos_token_id=0) is full


def test_validation_submits_for_itself_and_reads_a_column_of_its_own_files():
    text = source(TRAINER._validate)
    assert "_submit_batch_to_rollout" not in text and '"__rollout_n__", [self' in text
    assert "self.agent_loop_manager.generate_sequences(batch)" in text


def parts(mode, sizes, lengths, **constants):
    """Of one update, each prompt's part: verl's loss over the rows of all prompts, its gradient by the prompts' own."""
    labels = [number for number, size in enumerate(sizes) for _ in range(size)]
    weight = equal_prompts(
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
