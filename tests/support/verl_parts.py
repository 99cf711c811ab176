"""verl's classes without what their constructors start, and calls of its code with small inputs."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import torch
import verl
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import agent_loop_tq, get_trainer_cls, trainer_base
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig
from verl.workers.utils.losses import ppo_loss

AGENT_LOOP_WORKER = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class


def bare(kind, **attributes):
    """An instance of ``kind`` whose constructor did not run. It has ``attributes`` and nothing else."""
    made = object.__new__(kind)
    vars(made).update(attributes)
    return made


def bare_trainer(mode="sync", **attributes):
    """verl's own trainer of a mode. ``attributes`` is what the method that a test calls needs."""
    return bare(get_trainer_cls(mode), **{"trainer_mode": mode, "global_steps": 1, "use_critic": False} | attributes)


def names_of_calls(calls):
    """The names of a mock's calls, in order."""
    return [name for name, *_ in calls.mock_calls]


def fit(monkeypatch, steps, steps_per_epoch=99):
    """Run ``fit`` of verl's trainer for some steps with a mock in the place of each of its parts.

    Returns:
        ``calls``, the mock that recorded all calls in order; ``batches``, what each step returned; and ``steps``, the
        number of the step in which verl stepped, saved and logged.
    """
    calls, seen_at = Mock(), []
    for name in ("SkipManager", "Tracking", "ValidationGenerationsLogger", "DapoFilteredRewardTableLogger", "tq"):
        monkeypatch.setattr(trainer_base, name, getattr(calls, name))
    settings = {"project_name": "p", "experiment_name": "e", "logger": ["console"], "val_before_train": False}
    settings |= {"total_epochs": steps, "save_freq": 1, "test_freq": 1}
    methods = ("step", "_save_checkpoint", "_validate", "_compute_metrics", "_shutdown_dump_executor")
    trainer = bare_trainer(
        config=OmegaConf.create({"trainer": settings, "global_profiler": {"steps": None}}),
        **{name: getattr(calls, name) for name in (*methods, "checkpoint_manager")},
        **{name: Mock() for name in ("_start_profiling", "_stop_profiling")},
        **{"global_steps": 0, "steps_per_epoch": steps_per_epoch, "total_training_steps": steps},
    )
    for method in (calls.step, calls._save_checkpoint, calls.Tracking.return_value.log):
        method.side_effect = lambda *_, **__: seen_at.append(trainer.global_steps)
    batches = [KVBatchMeta(partition_id="train", keys=[f"row{step}"], tags=[{}]) for step in range(1, steps + 1)]
    calls.step.side_effect = lambda *_: seen_at.append(trainer.global_steps) or batches[trainer.global_steps - 1]
    calls._validate.return_value = {}
    trainer.fit(Mock())
    return SimpleNamespace(calls=calls, steps=seen_at, batches=batches)


def compute_metrics(queue, rewards, used, global_steps=1, times=1):
    """(metrics, trainer) of verl's ``_compute_metrics`` for the first ``used`` of rows with these rewards.

    The trainer has the attributes that this method needs and no others.
    """
    for number, reward in enumerate(rewards):
        ones = torch.ones(2)
        row = {name: ones for name in ("prompts", "responses", "response_mask", "advantages", "returns")}
        queue.kv_put(f"u_{number}_0", "train", row | {"rm_scores": torch.tensor([0.0, reward]), "num_turns": 2})
    trainer = bare_trainer(
        config=OmegaConf.create({"actor_rollout_ref": {"rollout": {}, "model": {}}}),
        _rollout_moe_lb_metrics_accumulator=MagicMock(),
        _get_n_gpus_for_throughput=lambda: 1,
    )
    keys = [f"u_{number}_0" for number in range(used)]
    tags = [{"min_global_steps": 0, "max_global_steps": 0} for _ in keys]
    batch = KVBatchMeta(partition_id="train", keys=keys, tags=tags)
    for _ in range(times):
        metrics = {}
        trainer._compute_metrics(batch, metrics, {"step": 2.0}, global_steps=global_steps, epoch=0)
    return metrics, trainer


def actor_config(**settings):
    return FSDPActorConfig(rollout_n=2, ppo_micro_batch_size_per_gpu=1, **settings)


def micro_batch(lengths, prompt=2, **columns):
    """Rows of responses of these lengths, as verl's engines pass them to a loss; ``columns`` has a list per column."""

    def nested(rows):
        return torch.nested.as_nested_tensor([torch.as_tensor(row) for row in rows], layout=torch.jagged)

    ones = [torch.ones(length) for length in lengths]
    made = {"prompts": [torch.ones(prompt, dtype=torch.int64)] * len(lengths), "responses": ones}
    made |= {"response_mask": ones, "old_log_probs": [-row for row in ones], "advantages": ones} | columns
    data = TensorDict({name: nested(rows) for name, rows in made.items()}, batch_size=[len(lengths)])
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=None, global_batch_size=None)
    return data


def loss_of(config, data, log_prob=-1.0, entropy=None):
    """verl's ``ppo_loss`` where the policy gives each token ``log_prob``."""
    lengths = (data["prompts"].offsets().diff() + data["responses"].offsets().diff()).tolist()

    def nested(value):
        return torch.nested.as_nested_tensor([torch.full((n,), value) for n in lengths], layout=torch.jagged)

    output = {"log_probs": nested(log_prob)} | ({} if entropy is None else {"entropy": nested(entropy)})
    return ppo_loss(config, output, data)[0]


def text_of_module_that_cannot_be_imported(path):
    """verl's text, for code of packages that are not installed here, such as Megatron. Call everything else."""
    return (Path(verl.__file__).parent / path).read_text()
