"""Our trainer modes: verl's three V1 trainers, with groups seen whole, remembered and written down.

One mixin over all of them, and no method of verl's copied: what is asked of verl is done by ``super()``.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import SYNTHETIC_PADDING_SEQ_LEN
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.seqlen_balancing import calculate_workload, log_seqlen_unbalance

from verl_gsd import extension, records
from verl_gsd.audit import audit
from verl_gsd.errors import OUR_MODES, ConfigError
from verl_gsd.extension import UnplacedRows, Update
from verl_gsd.prompts import PromptKey, PromptStore, prompt_hash
from verl_gsd.run import lost_metrics
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume, memory_settings, own_problems
from verl_gsd.run.checks.limits import seconds_for_a_reward
from verl_gsd.run.checks.parallelism import attention_reason
from verl_gsd.run.checks.prompt_lengths import examine
from verl_gsd.run.checks.sizes_in_data import planned_sizes
from verl_gsd.run.dataset import UNKNOWN_SOURCE, indices_are_unique, prompt_keys
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.run.truncation import obey_truncation
from verl_gsd.rundir import RunDirectory
from verl_gsd.state import Memory, remove_rotated_states, restore_state, save_state
from verl_gsd.trainer import estimator, replay
from verl_gsd.trainer.batching import PADDING
from verl_gsd.trainer.data_loader import drop_position_of_another_sampler, loader_with
from verl_gsd.trainer.histograms import Histograms, table_is_due
from verl_gsd.trainer.metrics import group_metrics, own_names, with_prediction
from verl_gsd.trainer.monitor import RunMonitor
from verl_gsd.trainer.reward_failures import mark_failures
from verl_gsd.trainer.reward_monitor import RewardMonitor
from verl_gsd.trainer.row_store import BatchColumns, QueueRows
from verl_gsd.trainer.rows import PARTITION, is_own
from verl_gsd.trainer.seam import Seam
from verl_gsd.trainer.verifying import RewardWorkers
from verl_gsd.trainer.worker import actor_worker

logger = logging.getLogger(__name__)

#: Steps after which a visit counts half in what is expected of a prompt, unless an extension says otherwise.
HALF_LIFE = 100.0

_ACTORS = {Role.Actor, Role.ActorRollout, Role.ActorRolloutRef}


class TrainerServices:
    """What a trainer offers to its extensions; see ``extension.Services``."""

    def __init__(self, trainer: GroupTrainer, config: DictConfig) -> None:
        self._trainer, self.config = trainer, config
        self.rows, self.prompts = QueueRows(), PromptStore(half_life=HALF_LIFE)

    @property
    def tokenizer(self) -> Any:
        return self._trainer.tokenizer

    @property
    def verifier(self) -> RewardWorkers:
        return RewardWorkers(self._trainer.reward_loop_manager.reward_loop_worker_handles)

    @property
    def step(self) -> int:
        return self._trainer.global_steps


class GroupTrainer(PPOTrainer):
    """What every trainer mode of ours adds to verl's.

    A subclass names verl's trainer as its next base and verl's mode in ``verl_mode``. What an algorithm adds is an
    extension, which ``self.seam`` calls. Saved state changes once, at the end of a step; it is written before a
    checkpoint is announced and restored with it.

    Raises:
        ConfigError: ``algorithm.gsd`` is wrong. ``verl-gsd train`` says so earlier; verl's own ``main_ppo`` does not.
    """

    verl_mode: ClassVar[str]
    train_dataloader: Any
    _rollout_moe_lb_metrics_accumulator: Any

    def __init__(self, config: DictConfig):
        if problems := own_problems(config):
            raise ConfigError("\n".join(problems))
        self._run = RunDirectory(Path(config.trainer.default_local_dir))
        self._attempt = _attempt(self._run)
        found = audit(config)
        self.messages = MessageWriter(self._run.messages(self._attempt))
        self.monitor = RunMonitor(config, self.messages, lambda: self.global_steps)
        self._alpha = found.operation.alpha if found.operation else None
        for warning in (*found.warnings, *planned_sizes(config)):
            logger.warning(warning.removeprefix("warning: "))
        print(f"verl-gsd: attention: {found.attention or 'the engine decides'}", *attention_reason(config), sep="\n")
        services, gsd = TrainerServices(self, config), OmegaConf.select(config, "algorithm.gsd") or {}
        extensions = extension.build(gsd, services)
        group_size = int(config.actor_rollout_ref.rollout.n)
        self.seam = Seam(extensions, services.prompts, services.rows, group_size)
        saved = {declaration.name for declaration in extension.active(gsd) if declaration.saves}
        self._saved_extensions = {name: of for name, of in extensions.items() if name in saved}
        self.memories: dict[str, Memory] = {"prompts": self.seam.prompts, **self._saved_extensions}
        self._histograms = Histograms(self.seam.prompts, self.seam.prompts.prior)
        # Of the batch that is being balanced: verl asks for its size halfway, with neither at hand.
        self._unplaced: tuple[Any, dict[str, Any]] | None = None
        self._places: list[int] = []
        self._workers = 1
        self._saved_steps: list[int] = []  # of this process
        self._at_hand: tuple[Any, dict, dict, float] | None = None  # the step's batch, verl's metrics, its start
        with open_dict(config):
            # verl compares this string with "sync" in several places and reads the mode's options under its name.
            config.trainer.v1.trainer_mode = self.verl_mode
            config.trainer.logger = _with_file(config.trainer.logger)
        mark_failures(config, seconds_for_a_reward(config))
        obey_truncation(config)
        super().__init__(config)
        self.monitor.rewards = RewardMonitor.of(
            config,
            self.messages,
            batch_groups=config.data.train_batch_size // self.parameter_sync_step,
            overlaps=self.verl_mode != "sync",
        )

    def init(self):
        self.monitor.start()
        try:
            super().init()
        except Exception as error:
            self.monitor.explain(error)
            self.monitor.end()
            raise

    def fit(self, agent_loop_manager):
        # Where verl's file logger writes; it makes no folder. verl-gsd has said so already, and a user may have.
        metrics = self._run.metrics(self._attempt)
        if Path(os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(metrics))) == metrics:
            metrics.parent.mkdir(parents=True, exist_ok=True)
        try:
            super().fit(agent_loop_manager)
        except Exception as error:
            self.monitor.explain(error)
            raise
        finally:
            self.monitor.end()
            for name, of in self.seam.extensions.items():
                try:
                    of.close()
                except Exception:  # the run's own end, good or bad, is what is to be seen
                    logger.exception("algorithm.gsd.%s could not be closed", name)

    # Groups

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        replay.watch(buffer, self.seam, self.monitor)
        poll_interval = OmegaConf.select(self.config, "algorithm.gsd.poll_interval")
        if poll_interval is not None:
            buffer.poll_interval = float(poll_interval)
        return buffer

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        gsd = OmegaConf.select(self.config, "algorithm.gsd")
        worker = actor_worker(extension.active(gsd), separate=self.verl_mode == "separate_async")
        for role in self.role_worker_mapping.keys() & _ACTORS if worker else ():
            self.role_worker_mapping[role] = ray.remote(worker)

    def _init_dataloader(self):
        self._examine_prompts()
        super()._init_dataloader()
        self._unique_indices = indices_are_unique(self.train_dataset)
        self._settings = memory_settings(self.config) | {
            "prompts are known by": "data_source and index" if self._unique_indices else "data_source and text",
            **{f"algorithm.gsd.{name}": _as_json(of.fingerprint()) for name, of in self._saved_extensions.items()},
        }
        if owner := self.seam.owner("draw_prompts"):
            keys = prompt_keys(self.train_dataset, self._unique_indices)
            count, seed = self.config.data.train_batch_size, self.config.data.seed or 0
            sampler = extension.call_hook(*owner, "draw_prompts", keys, count, seed)
            self.train_dataloader = loader_with(self.train_dataloader, sampler)

    def _examine_prompts(self) -> None:
        """Count the prompts that verl-gsd's own command has not counted: all under verl's ``main_ppo``."""
        launched = "VERL_GSD_ATTEMPT" in os.environ
        found = examine(
            self.config, remote=True if launched else None, tokenizer=self.tokenizer, processor=self.processor
        )
        for message in found.messages:
            self.messages.write(message.kind, message.text)
        if found.problems:
            raise RunStoppedError("\n".join(found.problems))

    def _submit_batch_to_rollout(self, batch):
        columns = self.seam.before_rollout(self._prompts_of(list(batch["uid"]), batch), BatchColumns(batch))
        for name, values in columns.items():
            batch[name] = torch.from_numpy(values)
        return super()._submit_batch_to_rollout(batch)

    def _prompts_of(self, uids: Sequence[str], batch: TensorDict) -> dict[str, PromptKey]:
        """uid -> the prompt, of the visits in ``batch``."""
        columns = set(batch.keys())  # of a TensorDict, which takes ``in`` for something else
        sources = list(batch["data_source"]) if "data_source" in columns else [UNKNOWN_SOURCE] * len(uids)
        values = list(batch["index" if self._unique_indices else "raw_prompt"])
        return {
            uid: (str(source), int(value) if self._unique_indices else prompt_hash(value))
            for uid, source, value in zip(uids, sources, values, strict=True)
        }

    # Steps

    def _balance_batch(self, batch, metrics, logging_prefix="global_seqlen", keep_minibatch=False):
        if self.seam.owner("place") is None:
            return super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)
        self._unplaced, real = (batch, metrics), list(batch.keys)
        batch = super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)  # pads it
        at = {key: place for place, key in enumerate(batch.keys)}
        padding = iter(at.keys() - set(real))
        batch.reorder([at[next(padding) if row == PADDING else real[row]] for row in self._places])
        lengths = [tag["seq_len"] for tag in batch.tags]
        share = len(lengths) // self._workers
        shares = [list(range(start, start + share)) for start in range(0, len(lengths), share)]
        metrics.update(log_seqlen_unbalance(lengths, shares, logging_prefix))
        return batch

    def _get_required_batch_multiple(self, dp_size):
        """Where an extension places the rows, as many as it places: verl pads to a multiple of what is returned."""
        if self.seam.owner("place") is None:
            return super()._get_required_batch_multiple(dp_size)
        assert self._unplaced is not None
        unplaced, metrics = self._unplaced
        lengths = [tag["seq_len"] for tag in unplaced.tags]
        self._workers = dp_size
        self._places, found = self.seam.place(
            UnplacedRows(
                unplaced.keys,
                lengths,
                [calculate_workload(length) for length in lengths],
                prompts=self.config.data.train_batch_size // self.parameter_sync_step,
                padding_tokens=SYNTHETIC_PADDING_SEQ_LEN,
                workers=dp_size,
            )
        )
        metrics.update(found)
        return len(self._places)

    def _compute_advantage(self, batch, metrics):
        columns = self.seam.stage_inputs(batch)
        with estimator.batch_of(batch.keys, columns, self.seam.extensions) as at_hand:
            batch = super()._compute_advantage(batch, metrics)
        further = self.seam.loss_columns(batch, at_hand.advantages)
        if further:
            fields = TensorDict(further, batch_size=len(batch.keys))
            batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def _compute_old_log_prob(self, batch, metrics):
        self.monitor.begin("computing log-probabilities")
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch, metrics):
        self.monitor.begin("computing log-probabilities of the reference model")
        return super()._compute_ref_log_prob(batch, metrics)

    def on_sample_begin(self):
        self.monitor.begin_waiting()
        super().on_sample_begin()

    def on_validate_begin(self):
        self.monitor.begin("validating")
        super().on_validate_begin()

    def on_step_end(self):
        self.monitor.begin("sending the weights to vLLM")
        super().on_step_end()
        self.monitor.begin("ending the step")

    def _update_actor(self, batch, metrics):
        self.monitor.begin("updating the actor")
        batch.extra_info.update(self.seam.worker_flags(Update(self.global_steps, self.local_trigger_step == 0)))
        found: dict[str, Any] = {}
        batch = super()._update_actor(batch, found)
        metrics.update(own_names(found, self.seam.extensions))
        return batch

    def step(self, metrics, timing_raw):
        begun = start = time.perf_counter()
        batch = super().step(metrics, timing_raw)
        seconds, start = time.perf_counter() - start, time.perf_counter()
        self.seam.observe_trained(batch)
        left = [records.LeftGroup(group, fate, self.seam.record(group)) for group, fate in self.seam.left]
        table = records.step_records(left, step=self.global_steps, attempt=self._attempt, alpha=self._alpha)
        prompts = self.seam.prompts
        table = with_prediction(table, prompts, self.global_steps, prompts.prior)
        records.write_step(self._run.path, table, step=self.global_steps, attempt=self._attempt)
        metrics.update(group_metrics(table))
        metrics.update(self.monitor.rewards.end_step(self.global_steps, seconds))
        metrics["group/count/waiting"] = float(self.seam.waiting)  # generated, being generated, not used yet
        # From here on saved state changes.
        for row in table.select(["data_source", "index", "correct", "total"]).to_pylist():
            if row["total"]:
                prompts.observe((row["data_source"], row["index"]), row["correct"], row["total"], self.global_steps)
        metrics.update(prompts.metrics())
        metrics.update(self.seam.end_step())
        for name, spent in self.seam.seconds().items():
            timing_raw[f"gsd_{name}"] = spent
            metrics[f"{name}/share_of_step"] = spent / seconds
        timing_raw["gsd_read"], self.replay_buffer.read_seconds = self.replay_buffer.read_seconds, 0.0
        timing_raw["gsd_write"], start = time.perf_counter() - start, time.perf_counter()
        due = table_is_due(self.config, self.global_steps, self.total_training_steps)
        groups = [entry.group for entry in left]
        self._histograms.show(self.logger.logger, self.global_steps, table, groups, prompts_too=due)
        timing_raw["gsd_show"] = time.perf_counter() - start
        self._at_hand = batch, metrics, timing_raw, begun
        return batch

    def _validate(self):
        metrics = super()._validate()
        return metrics | self.monitor.rewards.end_validation(self.global_steps)

    # What verl reports of a batch is of the policy's own rows.

    def _compute_metrics(self, batch, *args, **kwargs):
        return super()._compute_metrics(_own_rows(batch), *args, **kwargs)

    # Checkpoints

    def _save_checkpoint(self):
        self.monitor.begin("saving a checkpoint")
        checkpoint = self._run.checkpoint(self.global_steps)
        save_state(checkpoint, self.memories, self._settings)
        if self._at_hand is not None:
            lost_metrics.save(checkpoint, self._attempt, self.global_steps, self._metrics_so_far(*self._at_hand))
        super()._save_checkpoint()  # announces the checkpoint at its end
        self._saved_steps.append(self.global_steps)
        trainer = self.config.trainer
        keep = 1 if trainer.get("remove_previous_ckpt_in_save") else trainer.max_actor_ckpt_to_keep
        remove_rotated_states(self._run, self._saved_steps, keep)

    def _metrics_so_far(self, batch, metrics, timing_raw, begun) -> dict[str, Any]:
        """What verl will log of the step, as far as it is known before the checkpoint is announced."""
        metrics, timing = dict(metrics), {**timing_raw, "step": time.perf_counter() - begun}
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        counted = self._rollout_moe_lb_metrics_accumulator
        self._rollout_moe_lb_metrics_accumulator = copy.deepcopy(counted)  # verl will count the batch itself
        try:
            self._compute_metrics(batch, metrics, timing, global_steps=self.global_steps, epoch=epoch)
        finally:
            self._rollout_moe_lb_metrics_accumulator = counted
        return metrics

    def _load_checkpoint(self):
        checkpoint = checkpoint_to_resume(self.config)
        if checkpoint is not None and OmegaConf.select(self.config, "algorithm.gsd.state") != "fresh":
            restore_state(checkpoint, self.memories, self._settings)
        super()._load_checkpoint()
        drop_position_of_another_sampler(self.train_dataloader)
        if checkpoint is not None and self.verl_mode != "sync":
            self._remember_restored_prompts()

    def _remember_restored_prompts(self) -> None:
        """Groups that a checkpoint held in the queue: asynchronous modes store their prompts there."""
        tags = (tq.kv_list(PARTITION) or {}).get(PARTITION, {})
        uids = [key for key, tag in tags.items() if tag.get("is_prompt")]
        if uids:
            prompts = tq.kv_batch_get(uids, PARTITION)
            self.seam.restore_in_flight(self._prompts_of(uids, prompts), BatchColumns(prompts))


def _attempt(run: RunDirectory) -> int:
    """The number verl-gsd gave this attempt, if none of its records are there; otherwise the next one."""
    given = int(os.environ.get("VERL_GSD_ATTEMPT") or 0)
    return given if given and not run.records(given).exists() else 1 + max(run.attempts(), default=0)


def _own_rows(batch: Any) -> Any:
    """``batch``, a ``KVBatchMeta``, without demonstrations and earlier responses; padding stays."""
    return batch.select_keys([key for key, tag in zip(batch.keys, batch.tags, strict=True) if is_own(tag)])


def _as_json(value: Any) -> Any:
    """``value`` as a checkpoint gives it back: tuples are lists there."""
    return json.loads(json.dumps(value))


def _with_file(logger: Any) -> list[str]:
    """The loggers and, last, verl's file logger, which keeps a line of metrics a step."""
    names = [logger] if isinstance(logger, str) else list(logger)
    return names if "file" in names else [*names, "file"]


@register_trainer(OUR_MODES["sync"])
class GSDTrainerSync(GroupTrainer, PPOTrainerSync):
    """verl's ``sync``: rollout and update take turns."""

    verl_mode = "sync"


@register_trainer(OUR_MODES["colocate_async"])
class GSDTrainerColocateAsync(GroupTrainer, PPOTrainerColocateAsync):
    """verl's ``colocate_async``: on the same devices, with rollouts that a step may interrupt."""

    verl_mode = "colocate_async"


@register_trainer(OUR_MODES["separate_async"])
class GSDTrainerSeparateAsync(GroupTrainer, PPOTrainerSeparateAsync):
    """verl's ``separate_async``: on devices of their own. Held by contract tests; not run by ours: it needs NCCL."""

    verl_mode = "separate_async"
