"""What GVPO assumes of verl, a fact a test: an upgrade that changes one fails here, by name."""

import contextlib
import re
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import pytest
import torch

pytest.importorskip("verl")
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import tensordict_utils as tu
from verl.workers import engine_workers
from verl.workers.config import PolicyLossConfig
from verl.workers.engine.utils import prepare_micro_batches
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss
from verl_parts import (
    actor_config,
    bare,
    bare_trainer,
    loss_of,
    micro_batch,
    names_of_calls,
    text_of_module_that_cannot_be_imported,
)

from verl_gsd import extension
from verl_gsd.trainer.worker import ExtendedTrainingWorker, actor_worker

MEGATRON = "workers/engine/megatron/transformer_impl.py"


# Losses


def test_ppo_loss_asks_the_registry_for_the_policy_loss_and_adds_its_own_terms_to_it(monkeypatch):
    monkeypatch.setitem(core_algos.POLICY_LOSS_REGISTRY, "contract", lambda **_: (torch.tensor(7.0), {}))
    loss = PolicyLossConfig(loss_mode="contract")
    plain, with_terms = (
        actor_config(policy_loss=loss, use_kl_loss=has_terms, kl_loss_coef=0.5, kl_loss_type="k1", entropy_coeff=0.25)
        for has_terms in (False, True)
    )
    data = micro_batch([3, 2], ref_log_prob=[torch.full((3,), -3.0), torch.full((2,), -3.0)])
    assert loss_of(plain, data) == 7
    assert loss_of(with_terms, data, log_prob=-1.0, entropy=4.0) == 7 + 0.5 * (-1 + 3) - 0.25 * 4
    assert core_algos.get_policy_loss_fn("gvpo").__module__ == "verl_gsd.algorithms.gvpo.loss"


def test_a_loss_is_multiplied_by_the_number_of_workers_because_gradients_are_averaged():
    ones = torch.ones(2, 3)
    of_two, of_one = (core_algos.agg_loss(ones, ones, "token-mean", dp_size=n, batch_num_tokens=12) for n in (2, 1))
    assert of_two == 2 * of_one


# Megatron, which is not installed where tests run


def test_megatron_scales_any_loss_by_its_micro_batches_and_asks_for_the_same_sum():
    """So that a loss which is a worker's share of the sum, times dp_size, is right there as under FSDP."""
    text = text_of_module_that_cannot_be_imported(MEGATRON)
    assert 'scaled_loss = loss * data["num_micro_batch"]' in text
    assert "loss, metrics = loss_function(model_output=model_output, data=data, dp_group=" in text
    assert "tu.assign_non_tensor(data, dp_size=self.get_data_parallel_size())" in text


def test_megatron_has_an_empty_output_on_all_pipeline_stages_but_the_last():
    text = text_of_module_that_cannot_be_imported(MEGATRON)
    assert re.search(r"output = \{\}\n.{0,200}?if mpu\.is_pipeline_last_stage\(", text, re.S)


class StageWithoutOutputStub:
    """The engine of such a stage."""

    def eval_mode(self, **_):
        return contextlib.nullcontext()

    def infer_batch(self, data, loss_function):
        return {}


def test_such_a_stage_makes_no_weights_and_goes_on():
    worker = bare(ExtendedTrainingWorker, engine=StageWithoutOutputStub(), model_config={})
    sizes = {name: 1 for name in ("max_token_len_per_gpu", "infer_max_token_len_per_gpu", "micro_batch_size_per_gpu")}
    worker.engine_config = SimpleNamespace(use_fused_kernels=False, use_dynamic_bsz=True, **sizes)
    assert worker.log_probs(TensorDict({"row": torch.arange(2)}, batch_size=2)) is None


# Mini-batches and micro-batches


def mini_batches(rows, **told):
    """(rows, whether the learning rate moves on) of each mini-batch of verl's worker, one of two."""
    engine, seen = MagicMock(), []
    engine.get_data_parallel_size.return_value, engine.get_data_parallel_rank.return_value = 2, 0
    engine.is_mp_src_rank_with_outputs.return_value = False
    worker = bare(TrainingWorker, engine=engine, profiler=Mock())
    worker.train_batch = lambda data: seen.append((data["row"].tolist(), tu.get(data, "update_lr_scheduler")))
    data = TensorDict({"row": torch.arange(rows)}, batch_size=rows)
    tu.assign_non_tensor(data, dataloader_kwargs={"shuffle": False}, seed=1, **told)
    worker.train_mini_batch(data)
    return seen


def test_a_mini_batch_is_the_same_slice_of_every_workers_share_and_the_rate_moves_on_after_the_last():
    slices = [([0, 1, 2, 3], False), ([4, 5, 6, 7], False), ([8, 9, 10, 11], False)]
    assert mini_batches(12, mini_batch_size=8, epochs=2) == [*slices, *slices[:2], (slices[2][0], True)]


def test_verl_reads_a_number_of_mini_batches_where_there_is_no_size_in_rows():
    assert [rows for rows, _ in mini_batches(6, num_mini_batch=3)] == [[0, 1], [2, 3], [4, 5]]
    assert [rows for rows, _ in mini_batches(6, num_mini_batch=3, mini_batch_size=12)] == [[0, 1, 2, 3, 4, 5]]


def test_verls_trainer_sets_the_size_alone():
    """So that our number is what a worker finds when it has dropped the size."""
    actor = {"ppo_mini_batch_size": 3, "calculate_entropy": False, "entropy_coeff": 0.0, "ppo_epochs": 1}
    actor |= {"data_loader_seed": 1, "shuffle": False}
    config = {"actor_rollout_ref": {"actor": actor, "rollout": {"n": 4, "temperature": 1.0}}}
    workers = Mock(**{"update_actor.return_value": {"metrics": {"mfu": [1.0]}}})
    batch = KVBatchMeta(partition_id="train")
    bare_trainer(config=OmegaConf.create(config), actor_rollout_wg=workers)._update_actor(batch, {})
    told = workers.update_actor.call_args.args[0].extra_info
    assert told["mini_batch_size"] == 12 and "num_mini_batch" not in told


def test_fixed_micro_batches_must_leave_no_rest():
    rows = TensorDict({"row": torch.arange(9)}, batch_size=9)
    tu.assign_non_tensor(rows, use_dynamic_bsz=False, micro_batch_size_per_gpu=2)
    with pytest.raises(AssertionError):
        prepare_micro_batches(rows)


def test_a_micro_batch_counts_groups_where_their_size_is_forced():
    rows = TensorDict({"row": torch.arange(8)}, batch_size=8)
    tu.assign_non_tensor(rows, use_dynamic_bsz=False, micro_batch_size_per_gpu=1, force_group_size=4)
    micro_batches, _ = prepare_micro_batches(rows)
    assert [batch["row"].tolist() for batch in micro_batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_worker_keeps_the_sizes_that_a_batch_brings():
    engine = MagicMock()
    engine.is_mp_src_rank_with_outputs.return_value = False
    sizes = {"max_token_len_per_gpu": 99, "micro_batch_size_per_gpu": 7, "use_fused_kernels": False}
    config = SimpleNamespace(forward_only=False, use_dynamic_bsz=True, **sizes)
    worker = bare(TrainingWorker, engine=engine, engine_config=config, model_config={}, loss_fn=Mock())
    rows = TensorDict({"row": torch.arange(8)}, batch_size=8)
    tu.assign_non_tensor(rows, use_dynamic_bsz=False, micro_batch_size_per_gpu=1)
    worker.train_batch(rows)
    used = engine.train_batch.call_args.args[0]
    names = ("use_dynamic_bsz", "micro_batch_size_per_gpu", "max_token_len_per_gpu")
    assert [tu.get(used, name) for name in names] == [False, 1, 99]


# A step of verl's trainer


def test_a_step_samples_its_prompts_in_pieces_of_one_size_and_numbers_them():
    seen = []
    trainer = bare_trainer(config=OmegaConf.create({"data": {"train_batch_size": 12}}), parameter_sync_step=3)

    def piece(metrics, timing, size):
        seen.append((trainer.local_trigger_step, size))
        return KVBatchMeta(partition_id="train", keys=[f"row{len(seen)}"], tags=[{}])

    trainer.prepare_step, trainer._step_once = lambda: seen.append("prepared"), piece
    assert trainer.step({}, {}).keys == ["row2", "row3", "row4"]
    assert seen == ["prepared", (0, 4), (1, 4), (2, 4)]


def test_a_piece_is_balanced_before_old_log_probabilities_and_the_update():
    calls = Mock()
    batch = KVBatchMeta(partition_id="train")
    parts = {"critic_warmup": 0}, {"rollout": {"temperature": 1.0}}
    trainer = bare_trainer(
        config=OmegaConf.create(dict(zip(("trainer", "actor_rollout_ref"), parts, strict=True))),
        replay_buffer=Mock(**{"sample.return_value": (batch, {})}),
        use_reference_policy=False,
        reward_loop_manager=Mock(),
        **{name: Mock() for name in ("on_sample_begin", "on_sample_end")},
    )
    steps = ("_balance_batch", "_compute_old_log_prob", "_compute_advantage", "_update_actor")
    for name in steps:
        getattr(calls, name).side_effect = lambda batch, metrics: batch
        setattr(trainer, name, getattr(calls, name))
    trainer._step_once({}, {}, 4)
    assert names_of_calls(calls) == list(steps)


def test_balancing_asks_for_the_multiple_before_it_pads_and_reorders_before_it_is_done(monkeypatch):
    calls = Mock()
    keys = [f"u_{number}_0" for number in range(4)]
    padded = KVBatchMeta(partition_id="train", keys=keys, tags=[{"seq_len": 9 + number} for number in range(4)])
    monkeypatch.setattr(padded, "reorder", calls.reorder)
    calls.multiple.return_value, calls.pad.return_value = 4, padded
    monkeypatch.setattr(trainer_base, "upsample_batch_to_divisible_size", calls.pad)
    trainer = bare_trainer(
        actor_rollout_wg=SimpleNamespace(_dispatch_info={"actor": [0, 1]}),
        tokenizer=Mock(),
        _get_required_batch_multiple=calls.multiple,
    )
    assert trainer._balance_batch(KVBatchMeta(partition_id="train"), {}) is padded
    assert names_of_calls(calls) == ["multiple", "pad", "reorder"]
    assert calls.multiple.call_args.args == (2,) and calls.pad.call_args.args[1] == 4
    assert sorted(calls.reorder.call_args.args[0]) == [0, 1, 2, 3]


def test_old_log_probabilities_are_the_policys_own_at_the_first_update_of_a_step(monkeypatch):
    """And in separate_async at later ones those of the step's start, where ours takes no short cut."""
    calls = Mock()
    monkeypatch.setattr(
        trainer_base.PPOTrainer, "_compute_old_log_prob", lambda self, batch, metrics: calls.old_log_prob()
    )
    trainer = bare_trainer("separate_async", config=OmegaConf.create({"algorithm": {}}), actor_rollout_wg=calls)
    orders = []
    for update in (0, 2):
        calls.reset_mock()
        trainer.local_trigger_step = update
        trainer._compute_old_log_prob(None, {})
        orders.append([(name, *arguments) for name, arguments, _ in calls.mock_calls])
    assert orders[0] == [("save_model_to_cpu", 0), ("old_log_prob",)]
    begin, end = orders[1].index(("restore_model_from_cpu", 0)), orders[1].index(("restore_model_from_cpu", 2))
    assert begin < orders[1].index(("old_log_prob",)) < end and orders[1][0] == ("save_model_to_cpu", 2)


# Workers


def test_workers_take_their_actor_from_a_class_attribute_and_give_it_verls_loss(monkeypatch, compose_fast, tiny_task):
    assert ActorRolloutRefWorker.actor_worker_cls is TrainingWorker
    made = Mock(**{"return_value.get_dispatch_collect.return_value": {}})

    class Worker(ActorRolloutRefWorker):
        actor_worker_cls = made

    monkeypatch.setattr(engine_workers, "CheckpointEngineRegistry", Mock())
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    config, _ = compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}")
    parts = {"set_dispatch_collect": Mock(), "distillation_enabled": False, "_omega_profiler_config": None}
    worker = bare(Worker, config=config.actor_rollout_ref, role="actor", **parts)
    worker.init_model()
    assert worker.actor is made.return_value and made.call_args.kwargs.keys() == {"config"}
    ((loss,), _) = made.return_value.set_loss_fn.call_args
    assert loss.func is ppo_loss and loss.keywords["config"].policy_loss.loss_mode == "gvpo"


def test_separate_async_has_workers_of_its_own_class(compose_fast):
    config, _ = compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu")
    trainer = bare_trainer("separate_async", config=config)
    trainer._init_resource_pool_mgr()
    assert [
        issubclass(actor.__ray_actor_class__, DetachActorWorker) for actor in trainer.role_worker_mapping.values()
    ] == [True]


@pytest.mark.parametrize(("separate", "verls"), [(False, ActorRolloutRefWorker), (True, DetachActorWorker)])
def test_ours_is_verls_worker_with_an_actor_that_knows_its_extensions(compose_fast, separate, verls):
    def made(*words):
        config, _ = compose_fast("task=arithmetic", "hardware=cpu", *words)
        return actor_worker(extension.active(config.algorithm.gsd), separate=separate)

    worker = made("algo=gvpo")
    assert issubclass(worker, verls) and issubclass(worker.actor_worker_cls, ExtendedTrainingWorker)
    assert worker.actor_worker_cls.declared == (("gvpo", "verl_gsd.algorithms.gvpo.worker:GvpoWorker"),)
    assert made("algo=hadw", "budget=adaptive") is None, "verl's own: nobody has anything to do there"
    with_loss = actor_worker([extension.Declaration("mine", extension.Extension, loss="mine.loss")], separate=separate)
    assert issubclass(with_loss.actor_worker_cls, ExtendedTrainingWorker), "the loss finds its rows"
