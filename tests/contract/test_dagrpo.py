"""What DaGRPO assumes of verl, a fact a test: an upgrade that changes one fails here, by name."""

import inspect
import re

import pytest

pytest.importorskip("verl")
from verl.experimental.agent_loop import agent_loop
from verl.experimental.reward_loop import reward_loop
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer, trainer_base
from verl.workers.engine import base as engine_base
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils import losses

from verl_gsd.trainer.verifying import as_data

source = inspect.getsource


def test_agent_loops_ask_a_random_reward_worker_about_one_response_as_we_do():
    text = source(agent_loop.AgentLoopWorker._compute_score)
    assert "random.choice(self.reward_loop_worker_handles)" in text and ".compute_score.remote(data)" in text
    ours = as_data({"data_source": "x", "raw_prompt": [1]}, [1, 2], [3])
    for name in (*ours.batch.keys(), "__num_turns__", "tool_extra_fields", "prompt_len", "response_len"):
        assert f'"{name}"' in text, name
    assert set(ours.non_tensor_batch) == {
        *("data_source", "raw_prompt", "__num_turns__", "tool_extra_fields", "prompt_len", "response_len")
    }
    assert ours.batch["responses"].tolist() == [[3]] and ours.non_tensor_batch["raw_prompt"].tolist() == [[1]]


def test_a_reward_worker_scores_by_the_reward_model_whatever_function_gives_the_reward():
    text = source(reward_loop.RewardLoopWorker.compute_score_disrm)
    assert 'return {"reward_score": rm_score}' in text
    prepared = source(reward_loop.RewardLoopWorker._preprocess_reward_inputs)
    used = set(re.findall(r'(?:batch|non_tensor_batch)\["(\w+)"\]', prepared))
    assert used == {"raw_prompt", "responses", "attention_mask"}


def test_the_number_of_sessions_is_read_off_a_column_of_the_prompt():
    assert 'prompt.pop("__rollout_n__", config.n' in source(agent_loop_tq)


def test_rows_have_two_masks_that_begin_equal():
    assert 'field["loss_mask"] = field["response_mask"]' in source(agent_loop_tq)


def test_losses_are_masked_by_one_and_tokens_counted_by_the_other():
    """A demonstration whose response mask is empty until the update counts in no figure of verl's, and then in both."""
    assert 'data["response_mask"].to(bool)' in source(losses.ppo_loss) and "loss_mask" not in source(
        losses.ppo_loss
    ).replace("loss_mask=response_mask", "")
    assert 'data["loss_mask"].sum()' in source(transformer_impl.FSDPEngine.forward_backward_batch)


def test_old_log_probabilities_are_cut_by_the_masks_lengths_and_not_its_values():
    text = source(trainer_base.PPOTrainer._compute_old_log_prob)
    assert 'response_from_nested(data.pop("log_probs"), data["response_mask"])' in text
    from verl.workers.utils.padding import response_from_nested

    assert "offsets()" in source(response_from_nested) and "values()" in source(response_from_nested)


def test_an_empty_mask_leaves_a_row_out_of_entropy_and_of_the_comparison_of_engines():
    text = source(trainer_base.PPOTrainer._compute_old_log_prob)
    assert 'loss_mask=data.batch["response_mask"]' in text and "calculate_debug_metrics(data)" in text
    from verl.utils.debug import metrics

    assert 'batch["response_mask"]' in source(metrics.calculate_debug_metrics)


def test_rewards_are_not_masked_on_their_way_to_the_estimator():
    text = source(trainer_base.PPOTrainer._compute_advantage)
    assert 'data.batch["token_level_scores"] = data.batch["rm_scores"]' in text


def test_dynamic_sampling_reads_the_verdict_beside_the_reward():
    assert 'extra_fields.get("reward_extra_info", {})' in source(replay_buffer.ReplayBuffer._dapo_filtered_keys)


def test_metrics_of_a_step_are_of_the_rows_it_is_given():
    parameters = list(inspect.signature(trainer_base.PPOTrainer._compute_metrics).parameters)
    assert parameters[:2] == ["self", "batch"]
    text = source(trainer_base.PPOTrainer._compute_metrics)
    assert "keys=batch.keys" in text and "self.replay_buffer" not in text
    assert "self._compute_metrics(batch, metrics, self.timing_raw" in source(trainer_base.PPOTrainer.fit)


def test_an_update_begins_by_forgetting_gradients_so_that_the_probe_leaves_none():
    text = source(engine_base.BaseEngine.train_batch)
    assert text.index("self.optimizer_zero_grad()") < text.index("self.forward_backward_batch(")
