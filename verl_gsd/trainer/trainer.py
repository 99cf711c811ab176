"""Our trainer modes: verl's three V1 trainers, which also track whole groups, remember prompts and write records.

One mixin extends all three trainers. It copies no method of verl, but calls ``super()``.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import AdvantageEstimator
from verl.trainer.ppo.padding_utils import SYNTHETIC_PADDING_SEQ_LEN
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.seqlen_balancing import calculate_workload, log_seqlen_unbalance

from verl_gsd import extension, records
from verl_gsd.audit import audit
from verl_gsd.dial import FLOOR_GROUPS
from verl_gsd.errors import OUR_MODES, ConfigError
from verl_gsd.extension import UnplacedRows, Update
from verl_gsd.prompts import PromptKey, PromptStore, prompt_hash, question_labels
from verl_gsd.run import lost_metrics
from verl_gsd.run.checks.gsd_section import checkpoint_to_resume, gsd_section_problems, memory_settings
from verl_gsd.run.checks.limits import seconds_for_a_reward
from verl_gsd.run.checks.parallelism import attention_reason
from verl_gsd.run.checks.prompt_lengths import check_prompts
from verl_gsd.run.checks.sizes_in_data import dataset_group_sizes
from verl_gsd.run.checks.steps_left import finished
from verl_gsd.run.checks.verls_command import check_verls_command
from verl_gsd.run.dataset import UNKNOWN_SOURCE, indices_are_unique, prompt_keys
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.run.own_config import without_secrets, write_own_config
from verl_gsd.run.truncation import obey_truncation
from verl_gsd.run.verl_hooks import reject_if_failed, reject_if_unfit
from verl_gsd.rundir import SIZES_IN_DATA, RunDirectory
from verl_gsd.solve_rates.dumps import ORIGIN, REPLACED_SCORE
from verl_gsd.state import Memory, remove_rotated_states, restore_state, save_state
from verl_gsd.trainer import estimator, replay
from verl_gsd.trainer.batching import PADDING
from verl_gsd.trainer.checkpoint_loading import weights_only
from verl_gsd.trainer.data_loader import discard_foreign_sampler_state, replace_sampler
from verl_gsd.trainer.evictions import Evictions
from verl_gsd.trainer.finished import NOTHING_TO_DO, FinishedError, replace_agent_loops
from verl_gsd.trainer.histograms import Histograms, table_is_due
from verl_gsd.trainer.metrics import (
    doubt,
    entropy_metric,
    group_metrics,
    held_out_counts,
    held_out_outside,
    strip_actor_prefix,
)
from verl_gsd.trainer.monitor import RunMonitor
from verl_gsd.trainer.reward_failures import mark_failures
from verl_gsd.trainer.reward_monitor import RewardMonitor
from verl_gsd.trainer.row_store import BatchColumns, QueueRows
from verl_gsd.trainer.rows import PARTITION, is_own, origin, replaced_reward
from verl_gsd.trainer.seam import Seam
from verl_gsd.trainer.step_end import HALF_LIFE, end_step, rated_sources, step_table
from verl_gsd.trainer.verifying import RewardWorkers
from verl_gsd.trainer.worker import actor_worker

logger = logging.getLogger(__name__)

_ACTORS = {Role.Actor, Role.ActorRollout, Role.ActorRolloutRef}


class TrainerServices:
    """What a trainer provides to its extensions; see ``extension.Services``."""

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
    """The code that all our trainer modes add to verl's.

    A subclass also inherits from verl's trainer and sets ``verl_mode`` to verl's mode. Algorithms are extensions, which
    ``self.seam`` calls. Saved state changes only at the end of a step. It is saved before a checkpoint is announced,
    and restored with the checkpoint.

    Raises:
        ConfigError: ``algorithm.gsd`` is wrong. ``verl-gsd train`` finds this before the run starts; verl's own
            ``main_ppo`` does not. Or a part of this package does not fit the installed verl.
    """

    verl_mode: ClassVar[str]
    is_finished = False  # under verl's ``main_ppo``: the run was finished before it was resumed, and nothing started
    _dumped_tags: dict[str, dict[str, Any]] | None = None  # by row key, while verl dumps a batch
    _held_out_labels: Sequence[int] = ()  # of the rows of the current validation
    total_training_steps: int
    train_dataloader: Any
    val_dataloader: Any
    _rollout_moe_lb_metrics_accumulator: Any

    def __init__(self, config: DictConfig):
        reject_if_unfit()
        problems = gsd_section_problems(config)
        if not problems and not _is_launched_by_us():
            problems = list(check_verls_command(config, [estimator.value for estimator in AdvantageEstimator]))
        if problems:
            raise ConfigError("\n".join(problems))
        self._run = RunDirectory(Path(config.trainer.default_local_dir))
        self._attempt = _attempt(self._run)
        # Before verl's changes, such as the mode below.
        self._own_config = None if _is_launched_by_us() else without_secrets(config)
        audited = audit(config)
        self.messages = MessageWriter(self._run.messages(self._attempt))
        self.monitor = RunMonitor(config, self.messages, lambda: self.global_steps)
        self._alpha = audited.operation.alpha if audited.operation else None
        for warning in (*audited.warnings, *dataset_group_sizes(config)):
            logger.warning(warning.removeprefix("warning: "))
        print(f"verl-gsd: attention: {audited.attention or 'the engine decides'}", *attention_reason(config), sep="\n")
        services, gsd = TrainerServices(self, config), OmegaConf.select(config, "algorithm.gsd") or {}
        extensions = extension.build(gsd, services)
        group_size = int(config.actor_rollout_ref.rollout.n)
        self.seam = Seam(extensions, services.prompts, services.rows, group_size)
        saved = {declaration.name for declaration in extension.active(gsd) if declaration.saves}
        self._saved_extensions = {name: part for name, part in extensions.items() if name in saved}
        self.memories: dict[str, Memory] = {"prompts": self.seam.prompts, **self._saved_extensions}
        self._histograms = Histograms(self.seam.prompts, self.seam.prompts.prior)
        # (batch, metrics) in ``_balance_batch``. verl then calls ``_get_required_batch_multiple`` without either.
        self._unplaced: tuple[Any, dict[str, Any]] | None = None
        self._places: list[int] = []
        self._workers = 1
        self._saved_steps: list[int] = []  # checkpoints that this process saved
        self._count_names = {FLOOR_GROUPS, *(name for declared in extension.active(gsd) for name in declared.counts)}
        self._counts: Counter[str] = Counter()  # of the current step
        self._current_step: tuple[Any, dict, dict, float] | None = None  # batch, metrics, timing_raw, start of the step
        with open_dict(config):
            # verl compares this string with "sync" in several places, and it reads the options of a mode by its name.
            config.trainer.v1.trainer_mode = self.verl_mode
            config.trainer.logger = _with_file(config.trainer.logger)
        mark_failures(config, seconds_for_a_reward(config))
        obey_truncation(config)
        super().__init__(config)
        batch_groups = config.data.train_batch_size // self.parameter_sync_step
        self.monitor.rewards = RewardMonitor.from_config(
            config, self.messages, batch_groups=batch_groups, overlaps=self.verl_mode != "sync"
        )
        self.monitor.evictions = Evictions(self.messages, config.data.train_batch_size, lambda: self.global_steps)

    def init(self):
        self.monitor.start()
        try:
            super().init()
        except Exception as error:
            if isinstance(error, FinishedError) and not _is_launched_by_us():
                self.is_finished = True
                self.messages.write("note", f"{NOTHING_TO_DO}\n{error}")
                replace_agent_loops(self.config)
            else:
                self.monitor.explain(error)
            self.monitor.end()
            if not self.is_finished:
                raise

    # verl's task runner passes these three to the agent loops.

    def get_llm_client(self):
        return None if self.is_finished else super().get_llm_client()

    def get_teacher_client(self):
        return None if self.is_finished else super().get_teacher_client()

    def get_reward_handles(self):
        return [] if self.is_finished else super().get_reward_handles()

    def fit(self, agent_loop_manager):
        if self.is_finished:
            return
        reject_if_failed()  # verl imports its rollout only after it has created the trainer
        # verl's file logger writes to this path and does not create the folder. verl-gsd or the user may have set it.
        metrics = self._run.metrics(self._attempt)
        if Path(os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(metrics))) == metrics:
            metrics.parent.mkdir(parents=True, exist_ok=True)
        elif not _is_launched_by_us():
            self.messages.write(
                "warning",
                f"VERL_FILE_LOGGER_PATH={os.environ['VERL_FILE_LOGGER_PATH']}: verl writes the metrics there. Reports, "
                f"compare and the console read {metrics}. Unset the variable before you start the next run.",
            )
        if self._own_config is not None:
            write_own_config(self._own_config, self._run, self._attempt)
        self.messages.write("steps", str(self.total_training_steps))
        try:
            super().fit(agent_loop_manager)
        except Exception as error:
            self.monitor.explain(error)
            raise
        finally:
            self.monitor.end()
            for name, part in self.seam.extensions.items():
                try:
                    part.close()
                except Exception:  # must not hide the error that ended the run
                    logger.exception("algorithm.gsd.%s could not be closed", name)

    def _end_with_the_epochs(self) -> None:
        """Let the last step be the last one of ``trainer.total_epochs``, if ``trainer.total_training_steps`` is later.

        verl saves and validates at the end only if it reaches the latter. It would lose the steps since the last
        checkpoint.
        """
        trainer, last = self.config.trainer, self.steps_per_epoch * self.config.trainer.total_epochs
        if not 0 < last < self.total_training_steps:
            return
        self.messages.write(
            "warning",
            f"trainer.total_training_steps={self.total_training_steps}: trainer.total_epochs={trainer.total_epochs} "
            f"of {self.steps_per_epoch} steps each end earlier, so that the run has {last} steps. For more, set a "
            "larger trainer.total_epochs.",
        )
        self.total_training_steps = last
        with open_dict(self.config):
            for optimizer in ("actor_rollout_ref.actor.optim", "critic.optim"):
                if optim := OmegaConf.select(self.config, optimizer):
                    optim.total_training_steps = last * self.parameter_sync_step

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
        if problems := list(finished(self.config, self.steps_per_epoch)):  # the dataset may have dropped long prompts
            raise FinishedError("\n".join(problems))
        self._end_with_the_epochs()
        self._unique_indices = indices_are_unique(self.train_dataset)
        self._settings = memory_settings(self.config) | {
            "prompts are known by": "data_source and index" if self._unique_indices else "data_source and text",
            **extension.fingerprints(self._saved_extensions),
        }
        if owner := self.seam.owner("draw_prompts"):
            keys = prompt_keys(self.train_dataset, self._unique_indices)
            count, seed = self.config.data.train_batch_size, self.config.data.seed or 0
            sampler = extension.call_hook(*owner, "draw_prompts", keys, count, seed)
            self.train_dataloader = replace_sampler(self.train_dataloader, sampler)

    def _examine_prompts(self) -> None:
        """Count the tokens of the prompts that ``verl-gsd`` has not counted. Under verl's ``main_ppo``, that is all."""
        examined = check_prompts(
            self.config,
            remote=True if _is_launched_by_us() else None,
            tokenizer=self.tokenizer,
            processor=self.processor,
        )
        for message in examined.messages:
            self.messages.write(message.kind, message.text)
        if examined.problems:
            raise RunStoppedError("\n".join(examined.problems))

    def _submit_batch_to_rollout(self, batch):
        columns = self.seam.before_rollout(self._prompts_of(list(batch["uid"]), batch), BatchColumns(batch))
        for name, values in columns.items():
            batch[name] = torch.from_numpy(values)
        return super()._submit_batch_to_rollout(batch)

    def _prompts_of(self, uids: Sequence[str], batch: TensorDict) -> dict[str, PromptKey]:
        """uid -> prompt, for the visits in ``batch``."""
        columns = set(batch.keys())  # ``in`` on a TensorDict does not look up keys
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
        self._unplaced, unpadded_keys = (batch, metrics), list(batch.keys)
        batch = super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)  # adds padding
        position = {key: number for number, key in enumerate(batch.keys)}
        padding = iter(position.keys() - set(unpadded_keys))
        batch.reorder([position[next(padding) if row == PADDING else unpadded_keys[row]] for row in self._places])
        lengths = [tag["seq_len"] for tag in batch.tags]
        share = len(lengths) // self._workers
        shares = [list(range(start, start + share)) for start in range(0, len(lengths), share)]
        metrics.update(log_seqlen_unbalance(lengths, shares, logging_prefix))
        return batch

    def _get_required_batch_multiple(self, dp_size):
        """verl pads the batch to a multiple of this number. If an extension places rows, return how many it places."""
        if self.seam.owner("place") is None:
            return super()._get_required_batch_multiple(dp_size)
        assert self._unplaced is not None
        unplaced, metrics = self._unplaced
        lengths = [tag["seq_len"] for tag in unplaced.tags]
        self._workers = dp_size
        self._places, placement_metrics = self.seam.place(
            UnplacedRows(
                unplaced.keys,
                lengths,
                [calculate_workload(length) for length in lengths],
                prompts=self.config.data.train_batch_size // self.parameter_sync_step,
                padding_tokens=SYNTHETIC_PADDING_SEQ_LEN,
                workers=dp_size,
            )
        )
        metrics.update(placement_metrics)
        return len(self._places)

    def _compute_advantage(self, batch, metrics):
        columns = self.seam.stage_inputs(batch)
        with estimator.batch_context(batch.keys, columns, self.seam.extensions) as context:
            batch = super()._compute_advantage(batch, metrics)
        metrics.update(context.metrics)
        self.seam.on_advantages(batch, context.advantages)
        loss_columns = self.seam.loss_columns(batch, context.advantages)
        if loss_columns:
            fields = TensorDict(loss_columns, batch_size=len(batch.keys))
            batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return batch

    def _compute_old_log_prob(self, batch, metrics):
        self.monitor.begin("computing log-probabilities", self._tokens_each(batch))
        batch = super()._compute_old_log_prob(batch, metrics)
        if "actor/entropy" in metrics:  # not if the log-probabilities of vLLM are used, which have no entropies
            own = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if is_own(tag)]
            metrics.update(entropy_metric(self.seam.rows, own))
        return batch

    def _compute_ref_log_prob(self, batch, metrics):
        self.monitor.begin("computing log-probabilities of the reference model", self._tokens_each(batch))
        return super()._compute_ref_log_prob(batch, metrics)

    def _tokens_each(self, batch: Any) -> float:
        """The number of tokens of a batch per accelerator that trains."""
        trainer = self.config.trainer
        return float(sum(tag["seq_len"] for tag in batch.tags) / (trainer.nnodes * trainer.n_gpus_per_node))

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
        epochs = self.config.actor_rollout_ref.actor.ppo_epochs
        self.monitor.begin("updating the actor", epochs * self._tokens_each(batch))
        batch.extra_info.update(self.seam.worker_flags(Update(self.global_steps, self.local_trigger_step == 0)))
        actor_metrics: dict[str, Any] = {}
        batch = super()._update_actor(batch, actor_metrics)
        metrics.update(strip_actor_prefix(actor_metrics, self.seam.extensions))
        return batch

    def _step_once(self, metrics, timing_raw, sample_batch_size):
        batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        for name in self._count_names & metrics.keys():  # verl would average them over the batches of the step
            self._counts[name] += metrics.pop(name)
        return batch

    def step(self, metrics, timing_raw):
        step_start = start = time.perf_counter()
        self._counts.clear()
        batch = super().step(metrics, timing_raw)
        metrics.update(self._counts)
        seconds, start = time.perf_counter() - start, time.perf_counter()
        self.seam.observe_trained(batch)
        left, table = step_table(
            self.seam,
            step=self.global_steps,
            attempt=self._attempt,
            alpha=self._alpha,
            kl_in_reward=self.config.algorithm.use_kl_in_reward,
        )
        records.write_step(self._run.path, table, step=self.global_steps, attempt=self._attempt)
        metrics.update(group_metrics(table))
        groups = [entry.group for entry in left]
        metrics.update(doubt(groups))
        self.monitor.rewards.report_unrated(self.global_steps, groups, rated_sources(self.seam))
        metrics.update(self.monitor.rewards.end_step(self.global_steps, seconds))
        metrics["group/count/waiting"] = float(self.seam.waiting)  # being generated, or generated and not used yet
        if self.seam.sizes_in_data:
            metrics[SIZES_IN_DATA] = 1.0
        metrics.update(end_step(self.seam, self.global_steps))  # saved state changes here
        for name, spent in self.seam.seconds().items():
            timing_raw[f"gsd_{name}"] = spent
            metrics[f"{name}/share_of_step"] = spent / seconds
        timing_raw["gsd_read"], self.replay_buffer.read_seconds = self.replay_buffer.read_seconds, 0.0
        timing_raw["gsd_write"], start = time.perf_counter() - start, time.perf_counter()
        due = table_is_due(self.config, self.global_steps, self.total_training_steps)
        self._histograms.show(self.logger.logger, self.global_steps, table, groups, prompts_too=due)
        timing_raw["gsd_show"] = time.perf_counter() - start
        self._current_step = batch, metrics, timing_raw, step_start
        return batch

    def _validate(self):
        # verl gives each row a uid of its own, so that the uids do not tell which rows have the same prompt.
        loader, labels = self.val_dataloader, list[int]()
        self.val_dataloader, self._held_out_labels = _with_labels(loader, labels), labels
        try:
            metrics = super()._validate()
        finally:
            self.val_dataloader = loader
        return metrics | self.monitor.rewards.end_validation(self.global_steps)

    def _val_metrics_update(
        self, data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=None
    ):
        metrics = super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, expected_acc_counts=expected_acc_counts
        )
        if "acc" in reward_extra_infos_dict:
            metrics |= held_out_outside(data_sources, reward_extra_infos_dict["acc"])
        # The files do not tell the number of prompts, because verl's dataset drops those that are too long.
        sources = [source for source, _ in expected_acc_counts or {}]  # of the rows, in the order of the labels
        known = len(self._held_out_labels) == len(sources)
        return metrics | held_out_counts(sources, self._held_out_labels if known else None)

    # verl's metrics of a batch only include rows that the policy generated in this step.

    def _compute_metrics(self, batch, *args, **kwargs):
        return super()._compute_metrics(_own_rows(batch), *args, **kwargs)

    # Dumps have all rows of a batch. Two columns tell which of them the policy generated in this step.

    def _log_rollout_data(self, batch, timing_raw, rollout_data_dir):
        self._dumped_tags = dict(zip(batch.keys, batch.tags, strict=True))
        try:
            super()._log_rollout_data(batch, timing_raw, rollout_data_dir)
        finally:
            self._dumped_tags = None

    def _dump_generations(self, inputs, outputs, gts, scores, reward_extra_infos_dict, dump_path):
        if self._dumped_tags is not None:  # else it is a validation
            tags = [self._dumped_tags[key] for key in reward_extra_infos_dict["uid"]]
            columns = {
                ORIGIN: [origin(tag) for tag in tags],
                REPLACED_SCORE: [replaced_reward(tag) for tag in tags],
            }
            reward_extra_infos_dict = {**reward_extra_infos_dict, **columns}
        super()._dump_generations(inputs, outputs, gts, scores, reward_extra_infos_dict, dump_path)

    # Checkpoints

    def _save_checkpoint(self):
        self.monitor.begin("saving a checkpoint")
        checkpoint = self._run.checkpoint(self.global_steps)
        save_state(checkpoint, self.memories, self._settings)
        if self._current_step is not None:
            lost_metrics.save(checkpoint, self._attempt, self.global_steps, self._metrics_so_far(*self._current_step))
        super()._save_checkpoint()  # announces the checkpoint at the end
        self._saved_steps.append(self.global_steps)
        trainer = self.config.trainer
        keep = 1 if trainer.get("remove_previous_ckpt_in_save") else trainer.max_actor_ckpt_to_keep
        remove_rotated_states(self._run, self._saved_steps, keep)

    def _metrics_so_far(self, batch, metrics, timing_raw, step_start) -> dict[str, Any]:
        """The metrics that verl will log for the step, as far as they exist before the checkpoint is announced."""
        metrics, timing = dict(metrics), {**timing_raw, "step": time.perf_counter() - step_start}
        epoch = (self.global_steps - 1) // self.steps_per_epoch
        accumulator = self._rollout_moe_lb_metrics_accumulator
        self._rollout_moe_lb_metrics_accumulator = copy.deepcopy(accumulator)  # verl will add the batch itself
        try:
            self._compute_metrics(batch, metrics, timing, global_steps=self.global_steps, epoch=epoch)
        finally:
            self._rollout_moe_lb_metrics_accumulator = accumulator
        return metrics

    def _load_checkpoint(self):
        checkpoint = checkpoint_to_resume(self.config)
        if checkpoint is not None and OmegaConf.select(self.config, "algorithm.gsd.state") != "fresh":
            restore_state(checkpoint, self.memories, self._settings)
            self.monitor.rewards.report_restored(self.seam.prompts.unrated)
        with weights_only(str(checkpoint)):  # the workers load their shards themselves; this is for data.pt
            super()._load_checkpoint()
        discard_foreign_sampler_state(self.train_dataloader)
        if checkpoint is not None and self.verl_mode != "sync":
            self._remember_restored_prompts()

    def _remember_restored_prompts(self) -> None:
        """Restore the prompts of groups in flight, which asynchronous modes store in the checkpoint's queue."""
        tags = (tq.kv_list(PARTITION) or {}).get(PARTITION, {})
        uids = [key for key, tag in tags.items() if tag.get("is_prompt")]
        if uids:
            prompts = tq.kv_batch_get(uids, PARTITION)
            self.seam.restore_in_flight(self._prompts_of(uids, prompts), BatchColumns(prompts))


def _with_labels(loader: Iterable[dict[str, Any]], labels: list[int]) -> Iterator[dict[str, Any]]:
    """The batches of ``loader``. The labels of their rows are added to ``labels``."""
    for batch in loader:
        labels += question_labels(batch)
        yield batch


def _is_launched_by_us() -> bool:
    """Whether ``verl-gsd`` started the run, and not verl's own ``main_ppo``."""
    return "VERL_GSD_ATTEMPT" in os.environ


def _attempt(run: RunDirectory) -> int:
    """The attempt number that ``verl-gsd`` set. If it is unset or already has records, the next number."""
    number = int(os.environ.get("VERL_GSD_ATTEMPT") or 0)
    return number if number and not run.records(number).exists() else 1 + max(run.attempts(), default=0)


def _own_rows(batch: Any) -> Any:
    """``batch``, a ``KVBatchMeta``, without demonstrations and earlier responses, but with padding."""
    return batch.select_keys([key for key, tag in zip(batch.keys, batch.tags, strict=True) if is_own(tag)])


def _with_file(logger: Any) -> list[str]:
    """The loggers, with verl's file logger, which writes one line of metrics per step."""
    names = [logger] if isinstance(logger, str) else list(logger)
    return names if "file" in names else [*names, "file"]


@register_trainer(OUR_MODES["sync"])
class GSDTrainerSync(GroupTrainer, PPOTrainerSync):
    """verl's mode ``sync``: rollout and update alternate."""

    verl_mode = "sync"


@register_trainer(OUR_MODES["colocate_async"])
class GSDTrainerColocateAsync(GroupTrainer, PPOTrainerColocateAsync):
    """verl's mode ``colocate_async``: rollout and update share devices, and a step may interrupt rollouts."""

    verl_mode = "colocate_async"


@register_trainer(OUR_MODES["separate_async"])
class GSDTrainerSeparateAsync(GroupTrainer, PPOTrainerSeparateAsync):
    """verl's mode ``separate_async``: rollout and update use separate devices.

    Contract tests cover this mode, but our tests do not run it, because it needs NCCL.
    """

    verl_mode = "separate_async"
