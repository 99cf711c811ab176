"""Our trainer modes: verl's three V1 trainers, with groups seen whole, remembered and written down.

One mixin over all of them, and no method of verl's copied: what is asked of verl is done by ``super()``.
"""

from __future__ import annotations

import copy
import logging
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1.trainer_base import PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from verl_gsd import records
from verl_gsd.algorithms import chain
from verl_gsd.audit import audit
from verl_gsd.groups import Group, Member
from verl_gsd.prompts import PromptKey, PromptStore, prompt_hash
from verl_gsd.rundir import RunDirectory
from verl_gsd.trainer import advantage, budget_section, lost_metrics, replay
from verl_gsd.trainer.budget_section import budget_of
from verl_gsd.trainer.budgeting import Budgeting
from verl_gsd.trainer.config import OUR_MODES, ConfigError
from verl_gsd.trainer.dagrpo_parts import dagrpo_parts
from verl_gsd.trainer.dataset import UNKNOWN_SOURCE, indices_are_unique, prompt_keys
from verl_gsd.trainer.gvpo_trainer import GVPOSteps
from verl_gsd.trainer.history import History, history_size
from verl_gsd.trainer.keys import DEMONSTRATED_BY, PARTITION, is_own, session_of, uid_of
from verl_gsd.trainer.layout import attention_reason
from verl_gsd.trainer.limits_section import judge_budget, limits_of, seconds_for_a_reward
from verl_gsd.trainer.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer.metrics import group_metrics, own_names, with_prediction
from verl_gsd.trainer.own_section import checkpoint_to_resume, memory_settings, own_problems
from verl_gsd.trainer.parts import Part
from verl_gsd.trainer.pictures import Pictures, table_is_due
from verl_gsd.trainer.planned_sizes import planned_sizes
from verl_gsd.trainer.progress import LEAST, WAITING, Progress
from verl_gsd.trainer.prompt_lengths import examine
from verl_gsd.trainer.prompt_truncation import obey_truncation
from verl_gsd.trainer.reward_failures import mark_failures
from verl_gsd.trainer.reward_monitor import RewardMonitor
from verl_gsd.trainer.sampler import DisagreementSampler, forget_anothers_place, loader_of
from verl_gsd.trainer.sampler_section import sampler_of
from verl_gsd.trainer.state import Memory, remove_rotated_states, restore_state, save_state
from verl_gsd.trainer.watchdog import Watchdog
from verl_gsd.trainer.worker import actor_worker

logger = logging.getLogger(__name__)

#: Steps after which a visit counts half in what is expected of a prompt, unless a budget or a sampler says otherwise.
HALF_LIFE = 100.0

_ACTORS = {Role.Actor, Role.ActorRollout, Role.ActorRolloutRef}


class GroupTrainer(GVPOSteps, PPOTrainer):
    """What every trainer mode of ours adds to verl's; listens to the replay buffer (``replay.GroupListener``).

    A subclass names verl's trainer as its next base and verl's mode in ``verl_mode``. What learns from groups is a
    memory in ``self.memories``: saved before a checkpoint is announced, restored with it. Everything observed in a step
    is committed once, at the step's end.

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
        limits = limits_of(config)
        # A reward that hangs is no progress until it counts as failed, a judge that hangs until its budget is spent.
        patience = max(seconds_for_a_reward(config), judge_budget(config))
        self._progress = Progress(limits.quiet_seconds, least=max(LEAST, 2 * patience))
        self._watchdog = Watchdog(self._progress, self.messages)
        self._sessions_failed = False  # told once
        self._alpha = found.operation.alpha if found.operation else None
        for warning in (*found.warnings, *planned_sizes(config)):
            logger.warning(warning.removeprefix("warning: "))
        print(f"verl-gsd: attention: {found.attention or 'the engine decides'}", *attention_reason(config), sep="\n")
        self._prompt_of: dict[str, PromptKey] = {}  # by uid, of every group that has not left the buffer
        self._left: list[tuple[Group, records.Fate]] = []  # in the step at hand
        self._training: dict[str, Group] = {}  # by uid, the groups of the batch at hand
        # What is expected of prompts, with a budget or without one: the policy moves on either way.
        self._expected = budget_of(config) or budget_section.Settings(half_life=HALF_LIFE)
        self._drawing = sampler_of(config)
        self._sampler: DisagreementSampler | None = None  # where prompts are drawn by what is known of them
        self.prompts = PromptStore(half_life=(self._drawing or self._expected).half_life)
        self._pictures = Pictures(self.prompts, self._expected.prior)
        gsd = OmegaConf.select(config, "algorithm.gsd") or {}
        self._parts: list[Part] = [
            *self._budgeting(config),
            *_history(config, self.prompts),
            *dagrpo_parts(config, self),
        ]
        self._stages = {name: chain.build_memory(name, gsd) for name in chain.needing_groups(gsd)}
        self.memories: dict[str, Memory] = {"prompts": self.prompts, **self._stages}
        self._saved_steps: list[int] = []  # of this process
        self._at_hand: tuple[Any, dict, dict, float] | None = None  # the step's batch, verl's metrics, its start
        with open_dict(config):
            # verl compares this string with "sync" in several places and reads the mode's options under its name.
            config.trainer.v1.trainer_mode = self.verl_mode
            config.trainer.logger = _with_file(config.trainer.logger)
        mark_failures(config, seconds_for_a_reward(config))
        obey_truncation(config)
        super().__init__(config)
        self._rewards = RewardMonitor.of(
            config,
            self.messages,
            batch_groups=config.data.train_batch_size // self.parameter_sync_step,
            overlaps=self.verl_mode != "sync",
        )

    def init(self):
        self._watchdog.start()
        try:
            super().init()
        except Exception as error:
            self._explain(error)
            self._watchdog.end()
            raise

    def _explain(self, error: Exception) -> None:
        """Tell the user why ``error`` ends the run, if we know more than the error says."""
        if not isinstance(error, RunStoppedError):
            self._watchdog.explain(error)
        elif str(error) != self._watchdog.fault:  # which the user knows already
            self.messages.write("stop", str(error))

    def fit(self, agent_loop_manager):
        # Where verl's file logger writes; it makes no folder. verl-gsd has said so already, and a user may have.
        metrics = self._run.metrics(self._attempt)
        if Path(os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(metrics))) == metrics:
            metrics.parent.mkdir(parents=True, exist_ok=True)
        try:
            super().fit(agent_loop_manager)
        except Exception as error:
            self._explain(error)
            raise
        finally:
            self._watchdog.end()
            for part in self._parts:
                try:
                    part.close()
                except Exception:  # the run's own end, good or bad, is what is to be seen
                    logger.exception("%s could not be closed", type(part).__name__)

    def _budgeting(self, config: DictConfig) -> list[Part]:
        budget, size = budget_of(config), int(config.actor_rollout_ref.rollout.n)
        return [Budgeting(budget, size, self.prompts, lambda: self.global_steps)] if budget else []

    # Groups

    def key_of(self, uid: str) -> PromptKey:
        return self._prompt_of[uid]

    def complete(self, uids: Sequence[str], rows: Mapping[str, Mapping[str, Any]]) -> Mapping[str, dict[str, Any]]:
        put: dict[str, dict[str, Any]] = {}
        for part in self._parts:
            put |= part.complete(uids, {**rows, **put}, self.key_of)
        return put

    def on_look(self, detail: str, state: Hashable) -> None:
        self._progress.look(detail, state)
        self._watchdog.check()

    def on_failures(self, chosen: bool) -> None:
        self._watchdog.look(wait=chosen)
        if not self._sessions_failed:
            self._sessions_failed = True
            self.messages.write(
                "warning",
                f"sessions failed in step {self.global_steps}, and every process of the run is alive: an agent loop "
                "raised. Their responses are lost. Search the log for _run_prompt; docs/metrics.md says what verl does "
                "with their groups.",
            )

    def on_rewards(self, rewards: replay.Rewards) -> None:
        if rewards.partition == PARTITION:
            self._rewards.saw(self.global_steps, rewards.groups, rewards.responses, rewards.lost, rewards.seconds)
        else:
            self._rewards.saw_validation(self.global_steps, rewards.responses, rewards.lost)

    def on_choosing(self) -> None:
        self._rewards.check(self.global_steps)

    def on_finished(self, group: Group) -> None:
        """A group is whole; what only looks does it here."""

    def amend(self, groups: Sequence[Group], rows: Mapping[str, Mapping[str, Any]]) -> Mapping[str, dict | None]:
        changes: dict[str, dict[str, Any] | None] = {}
        for part in self._parts:
            changes |= part.amend(groups, rows)
        return changes

    def is_ready(self, group: Group) -> bool:
        """Whether a whole group may be used; one that is not is held back, however full the buffer."""
        return all([part.is_ready(group) for part in self._parts])

    def on_left(self, group: Group, fate: records.Fate) -> None:
        del self._prompt_of[group.uid]
        for part in self._parts:
            group = part.leave(group)
        for stage in self._stages.values():
            group = stage.adopt(group)
        self._left.append((group, fate))
        if fate == "trained":
            self._training[group.uid] = group

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        replay.watch(buffer, self)
        poll_interval = OmegaConf.select(self.config, "algorithm.gsd.poll_interval")
        if poll_interval is not None:
            buffer.poll_interval = float(poll_interval)
        return buffer

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        worker = actor_worker(self.config, separate=self.verl_mode == "separate_async")
        for role in self.role_worker_mapping.keys() & _ACTORS if worker else ():
            self.role_worker_mapping[role] = ray.remote(worker)

    def _init_dataloader(self):
        self._examine_prompts()
        super()._init_dataloader()
        self._unique_indices = indices_are_unique(self.train_dataset)
        self._settings = memory_settings(self.config) | {
            "prompts are known by": "data_source and index" if self._unique_indices else "data_source and text",
            **{f"algorithm.gsd.{name}": stage.depends_on() for name, stage in self._stages.items()},
        }
        if self._drawing is not None:
            self._sampler = DisagreementSampler(
                prompt_keys(self.train_dataset, self._unique_indices),
                self.prompts,
                count=self.config.data.train_batch_size,
                explore=self._drawing.explore,
                seed=self.config.data.seed or 0,
                step=lambda: self.global_steps,
                prior=self._expected.prior,
            )
            self.train_dataloader = loader_of(self.train_dataloader, self._sampler)

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
        uids = list(batch["uid"])
        self._remember_prompts(uids, batch)
        for part in self._parts:
            part.plan(uids, [self._prompt_of[uid] for uid in uids], batch)
        return super()._submit_batch_to_rollout(batch)

    def _remember_prompts(self, uids: Sequence[str], batch: Any) -> None:
        columns = set(batch.keys())  # of a TensorDict, which takes ``in`` for something else
        sources = list(batch["data_source"]) if "data_source" in columns else [UNKNOWN_SOURCE] * len(uids)
        values = list(batch["index" if self._unique_indices else "raw_prompt"])
        for uid, source, value in zip(uids, sources, values, strict=True):
            self._prompt_of[uid] = (str(source), int(value) if self._unique_indices else prompt_hash(value))

    # Steps

    def _compute_advantage(self, batch, metrics):
        rows = self._members(batch)
        left = [group for group, _ in self._left]
        columns = {name: of for stage in self._stages.values() for name, of in stage.columns(rows, left).items()}
        columns |= {name: of for part in self._parts for name, of in part.known(rows).items()}
        with advantage.batch_of(batch.keys, columns) as at_hand:
            batch = super()._compute_advantage(batch, metrics)
        further = {name: of for part in self._parts for name, of in part.columns(batch, at_hand.advantages).items()}
        if further:
            fields = TensorDict(further, batch_size=len(batch.keys))
            batch = tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)
        return self._put_columns(batch, at_hand.advantages)

    def _members(self, batch: Any) -> list[Member | None]:
        """What each row of ``batch`` is; None: verl's padding."""
        places = {
            uid: {session_of(key): place for place, key in enumerate(group.keys)}
            for uid, group in self._training.items()
        }
        rows: list[Member | None] = []
        for key, tag in zip(batch.keys, batch.tags, strict=True):
            group = self._training.get(uid_of(key))
            place = None if group is None or DEMONSTRATED_BY in tag else places[group.uid][session_of(key)]
            rows.append(None if group is None else Member(group, place))
        return rows

    def _compute_old_log_prob(self, batch, metrics):
        self._progress.begin("computing log-probabilities")
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_ref_log_prob(self, batch, metrics):
        self._progress.begin("computing log-probabilities of the reference model")
        return super()._compute_ref_log_prob(batch, metrics)

    def on_sample_begin(self):
        self._progress.begin(WAITING)
        super().on_sample_begin()

    def on_validate_begin(self):
        self._progress.begin("validating")
        super().on_validate_begin()

    def on_step_end(self):
        self._progress.begin("sending the weights to vLLM")
        super().on_step_end()
        self._progress.begin("ending the step")

    def _update_actor(self, batch, metrics):
        self._progress.begin("updating the actor")
        for part in self._parts:
            batch.extra_info.update(part.instructions(self.global_steps))
        found: dict[str, Any] = {}
        batch = super()._update_actor(batch, found)
        metrics.update(own_names(found))
        return batch

    def step(self, metrics, timing_raw):
        begun = start = time.perf_counter()
        batch = super().step(metrics, timing_raw)
        seconds, start = time.perf_counter() - start, time.perf_counter()
        stages = self._stages.values()
        left = [records.Left(group, fate, self._further(group)) for group, fate in self._left]
        trained = {uid: (group.data_source, group.index) for uid, group in self._training.items()}
        for part in self._parts:
            metrics.update(part.remember(batch.keys, batch.tags, trained, self.global_steps))
            for name, spent in part.timing().items():
                timing_raw[f"gsd_{name}"] = spent
                metrics[f"{name}/share_of_step"] = spent / seconds
        self._left, self._training = [], {}
        table = records.describe(left, step=self.global_steps, attempt=self._attempt, alpha=self._alpha)
        table = with_prediction(table, self.prompts, self.global_steps, self._expected.prior)
        records.write_step(self._run.path, table, step=self.global_steps, attempt=self._attempt)
        metrics.update(group_metrics(table))
        metrics.update(self._rewards.end_step(self.global_steps, seconds))
        metrics["group/count/waiting"] = float(len(self._prompt_of))  # generated, being generated, not used yet
        for row in table.select(["data_source", "index", "correct", "total"]).to_pylist():
            if row["total"]:
                self.prompts.observe(
                    (row["data_source"], row["index"]), row["correct"], row["total"], self.global_steps
                )
        metrics.update(self.prompts.metrics())
        for stage in stages:
            stage.commit([entry.group for entry in left])
            metrics.update(stage.metrics())
        if self._sampler is not None:
            metrics.update(self._sampler.metrics())
            timing_raw["gsd_draw"], self._sampler.seconds = self._sampler.seconds, 0.0
        timing_raw["gsd_read"], self.replay_buffer.read_seconds = self.replay_buffer.read_seconds, 0.0
        timing_raw["gsd_write"], start = time.perf_counter() - start, time.perf_counter()
        due = table_is_due(self.config, self.global_steps, self.total_training_steps)
        groups = [entry.group for entry in left]
        self._pictures.show(self.logger.logger, self.global_steps, table, groups, prompts_too=due)
        timing_raw["gsd_show"] = time.perf_counter() - start
        self._at_hand = batch, metrics, timing_raw, begun
        return batch

    def _further(self, group: Group) -> dict[str, float | None]:
        """What stages and parts have to say of ``group`` in its record."""
        told = [stage.record(group) for stage in self._stages.values()] + [part.record(group) for part in self._parts]
        return {name: value for columns in told for name, value in columns.items()}

    def _validate(self):
        metrics = super()._validate()
        return metrics | self._rewards.end_validation(self.global_steps)

    # What verl reports of a batch is of the policy's own rows.

    def _compute_metrics(self, batch, *args, **kwargs):
        return super()._compute_metrics(_own_rows(batch), *args, **kwargs)

    # Checkpoints

    def _save_checkpoint(self):
        self._progress.begin("saving a checkpoint")
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
        forget_anothers_place(self.train_dataloader)
        if checkpoint is not None and self.verl_mode != "sync":
            self._remember_restored_prompts()

    def _remember_restored_prompts(self) -> None:
        """Groups that a checkpoint held in the queue: asynchronous modes store their prompts there."""
        tags = (tq.kv_list(PARTITION) or {}).get(PARTITION, {})
        uids = [key for key, tag in tags.items() if tag.get("is_prompt")]
        if uids:
            prompts = tq.kv_batch_get(uids, PARTITION)
            self._remember_prompts(uids, prompts)
            for part in self._parts:
                part.take_up(uids, [self._prompt_of[uid] for uid in uids], prompts)


def _attempt(run: RunDirectory) -> int:
    """The number verl-gsd gave this attempt, if none of its records are there; otherwise the next one."""
    given = int(os.environ.get("VERL_GSD_ATTEMPT") or 0)
    return given if given and not run.records(given).exists() else 1 + max(run.attempts(), default=0)


def _own_rows(batch: Any) -> Any:
    """``batch``, a ``KVBatchMeta``, without demonstrations and earlier responses; padding stays."""
    return batch.select_keys([key for key, tag in zip(batch.keys, batch.tags, strict=True) if is_own(tag)])


def _history(config: DictConfig, prompts: PromptStore) -> list[Part]:
    share = OmegaConf.select(config, "algorithm.gsd.gvpo.history_fraction") or 0.0
    size, longest = int(config.actor_rollout_ref.rollout.n), int(config.data.max_response_length)
    return [History(share, size, longest, prompts.responses)] if history_size(share, size) else []


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
