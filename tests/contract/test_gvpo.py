"""What GVPO assumes of verl, a fact a test: an upgrade that changes one fails here, by name."""

import contextlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("verl")
import verl
from tensordict import TensorDict
from verl.trainer.ppo import core_algos, padding_utils
from verl.trainer.ppo.v1 import trainer_base, trainer_separate_async
from verl.utils import tensordict_utils as tu
from verl.workers import engine_workers
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.utils import losses

from verl_gsd.trainer.worker import GVPOTrainingWorker


def source(thing):
    return inspect.getsource(thing)


def test_ppo_loss_asks_the_registry_for_the_policy_loss_and_adds_its_own_terms_to_it():
    text = source(losses.ppo_loss)
    assert "get_policy_loss_fn(loss_mode)" in text and "policy_loss -= entropy_coeff * entropy_loss" in text
    assert "policy_loss += kl_loss * config.kl_loss_coef" in text
    assert core_algos.get_policy_loss_fn("gvpo").__module__ == "verl_gsd.trainer.losses"


def test_a_loss_is_multiplied_by_the_number_of_workers_because_gradients_are_averaged():
    ones = torch.ones(2, 3)
    of_two, of_one = (core_algos.agg_loss(ones, ones, "token-mean", dp_size=n, batch_num_tokens=12) for n in (2, 1))
    assert of_two == 2 * of_one


def test_megatron_scales_any_loss_by_its_micro_batches_and_asks_for_the_same_sum():
    """So that a loss which is a worker's share of the sum, times dp_size, is right there as under FSDP."""
    file = Path(verl.__file__).parent / "workers/engine/megatron/transformer_impl.py"
    text = file.read_text()
    assert 'scaled_loss = loss * data["num_micro_batch"]' in text
    assert "loss, metrics = loss_function(model_output=model_output, data=data, dp_group=" in text
    assert "tu.assign_non_tensor(data, dp_size=self.get_data_parallel_size())" in text


def test_megatron_has_an_empty_output_on_all_pipeline_stages_but_the_last():
    text = (Path(verl.__file__).parent / "workers/engine/megatron/transformer_impl.py").read_text()
    assert re.search(r"output = \{\}\n.{0,200}?if mpu\.is_pipeline_last_stage\(", text, re.S)


class StageWithoutOutputStub:
    """The engine of such a stage."""

    def eval_mode(self, **_):
        return contextlib.nullcontext()

    def infer_batch(self, data, loss_function):
        return {}


def test_such_a_stage_makes_no_weights_and_goes_on():
    worker = GVPOTrainingWorker.__new__(GVPOTrainingWorker)
    worker.engine, worker.model_config = StageWithoutOutputStub(), {}
    sizes = {"infer_max_token_len_per_gpu": 1, "micro_batch_size_per_gpu": 1}
    worker.engine_config = SimpleNamespace(use_fused_kernels=False, use_dynamic_bsz=True, **sizes)
    assert worker._log_prob_now(TensorDict({"row": torch.arange(2)}, batch_size=2)) is None


def test_a_mini_batch_is_the_same_slice_of_every_workers_share():
    rows = TensorDict({"row": torch.arange(12)}, batch_size=12)
    batches = tu.make_iterator(rows, mini_batch_size=4, epochs=2, seed=1, dataloader_kwargs={"shuffle": False})
    found = [batch["row"].tolist() for batch in batches]
    assert found == 2 * [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    text = source(engine_workers.TrainingWorker.train_mini_batch)
    assert "update_lr_scheduler=batch_idx == total_num_iterations - 1" in text
    assert "actor_output = self.train_batch(mini_batch_td)" in text


def test_a_number_of_mini_batches_is_read_where_there_is_no_size_in_rows():
    """And verl's trainer sets the size alone, so that ours is what a worker finds when it has dropped that."""
    text = source(engine_workers.TrainingWorker.train_mini_batch)
    assert 'num_mini_batch = tu.pop(data, key="num_mini_batch", default=None)' in text
    assert "mini_batch_size_per_gpu = batch_size_per_dp // num_mini_batch" in text
    update = source(trainer_base.PPOTrainer._update_actor)
    assert "mini_batch_size" in update and "num_mini_batch" not in update


def test_fixed_micro_batches_must_leave_no_rest():
    rows = TensorDict({"row": torch.arange(9)}, batch_size=9)
    tu.assign_non_tensor(rows, use_dynamic_bsz=False, micro_batch_size_per_gpu=2)
    with pytest.raises(AssertionError, match="must be divisible"):
        prepare_micro_batches(rows)


def test_a_step_samples_its_prompts_in_pieces_of_one_size():
    text = source(trainer_base.PPOTrainer.step)
    assert "sample_batch_size = train_batch_size // self.parameter_sync_step" in text


def test_a_micro_batch_counts_groups_where_their_size_is_forced():
    rows = TensorDict({"row": torch.arange(8)}, batch_size=8)
    tu.assign_non_tensor(rows, use_dynamic_bsz=False, micro_batch_size_per_gpu=1, force_group_size=4)
    micro_batches, _ = prepare_micro_batches(rows)
    assert [batch["row"].tolist() for batch in micro_batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "if key not in data.keys()" in source(engine_workers.TrainingWorker.train_batch), "ours is not overwritten"


def test_padding_fills_up_to_any_number_of_rows(monkeypatch):
    class Meta(SimpleNamespace):
        def __len__(self):
            return len(self.keys)

    put = []
    monkeypatch.setattr(padding_utils, "KVBatchMeta", Meta)
    monkeypatch.setattr(
        padding_utils, "tq", SimpleNamespace(kv_batch_get=lambda **_: [{}], kv_batch_put=lambda **k: put.append(k))
    )
    monkeypatch.setattr(
        padding_utils, "construct_minimal_padding_template", lambda *_: ({"row": 1}, {"is_padding": True})
    )
    batch = Meta(keys=["u_0_0", "u_1_0"], tags=[{}, {}], partition_id="train", fields=None, extra_info={})
    padded = padding_utils.upsample_batch_to_divisible_size(batch, 7, 0)
    assert len(padded.keys) == 7 and all(key.startswith("pad") for key in padded.keys[2:])


def test_balancing_asks_for_the_multiple_before_it_pads_and_reorders_before_it_is_done():
    text = source(trainer_base.PPOTrainer._balance_batch)
    order = ["self._get_required_batch_multiple(dp_size)", "upsample_batch_to_divisible_size(", "batch.reorder("]
    assert [text.index(step) for step in order] == sorted(text.index(step) for step in order)
    step_once = source(trainer_base.PPOTrainer._step_once)
    assert (
        step_once.index("_balance_batch") < step_once.index("_compute_old_log_prob") < step_once.index("_update_actor")
    )


def test_workers_take_their_actor_from_a_class_attribute():
    assert engine_workers.ActorRolloutRefWorker.actor_worker_cls is engine_workers.TrainingWorker
    text = source(engine_workers.ActorRolloutRefWorker.init_model)
    assert "self.actor_worker_cls(config=actor_training_config)" in text
    assert "self.loss_fn = partial(ppo_loss, config=actor_config)" in text
    separate = source(trainer_separate_async.PPOTrainerSeparateAsync._init_resource_pool_mgr)
    assert "ray.remote(DetachActorWorker)" in separate


def test_old_log_probabilities_are_the_policys_own_at_the_first_update_of_a_step():
    """And in separate_async at later ones those of the step's start, where ours takes no short cut."""
    text = source(trainer_separate_async.PPOTrainerSeparateAsync._compute_old_log_prob)
    assert "if self.local_trigger_step == 0:" in text and "restore_model_from_cpu(0)" in text
    assert "self.local_trigger_step = trigger_idx" in source(trainer_base.PPOTrainer.step)


def test_an_agent_loop_looks_for_its_sessions_in_a_column():
    file = importlib.util.find_spec("verl.trainer.ppo.v1.agent_loop_tq").origin
    assert 'prompt.pop("__rollout_n__", config.n' in Path(file).read_text()
