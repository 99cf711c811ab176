"""The laboratory's trainer: the steps of verl's synchronous trainer in one process.

Only generation, the queue and the placement of processes are ours. verl's data code draws the prompts, verl's worker
makes the updates (with ``engine.LabEngine``), and our extensions, losses, records and metrics are the objects that run
on the stack.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl import DataProto
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.metric_utils import compute_data_metrics
from verl.trainer.ppo.ray_trainer import apply_kl_penalty
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict
from verl.workers.engine_workers import ActorRolloutRefWorker

from verl_gsd import extension, records
from verl_gsd.audit import audit
from verl_gsd.errors import ConfigError
from verl_gsd.extension import ROLLOUTS, UnplacedRows, Update
from verl_gsd.lab.training.buffer import GroupBuffer
from verl_gsd.lab.training.engine import DEVICE, load_model
from verl_gsd.lab.training.exact import ExactRates, exact_solver, joined
from verl_gsd.lab.training.policy import (
    Prefix,
    Sampled,
    TokenSampling,
    continue_prompts,
    end_tokens,
    read_many_prompts,
    read_prompts,
    score_responses,
)
from verl_gsd.lab.training.prompts import PromptBatch, TrainingPrompts, held_out_prompts
from verl_gsd.lab.training.rows import DictRows
from verl_gsd.lab.training.validation import validation_metrics
from verl_gsd.lab.training.verifier import InlineVerifier, Reward
from verl_gsd.prompts import PromptStore, question_labels
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.rundir import EXACT, TRAINED, RunDirectory
from verl_gsd.trainer import estimator
from verl_gsd.trainer.batching import PADDING
from verl_gsd.trainer.metrics import (
    doubt,
    entropy_metric,
    group_metrics,
    held_out_counts,
    held_out_outside,
    strip_actor_prefix,
)
from verl_gsd.trainer.reward_monitor import LostReward, RewardMonitor, index_to_show
from verl_gsd.trainer.rows import is_own, uid_of
from verl_gsd.trainer.seam import Seam
from verl_gsd.trainer.step_end import HALF_LIFE, end_step, rated_sources, step_table
from verl_gsd.trainer.worker import actor_worker
from verl_gsd.writing import open_new

logger = logging.getLogger(__name__)

#: The columns that verl's worker reads of every row, each nested over the tokens of the row.
_COLUMNS = ("prompts", "responses", "response_mask", "loss_mask", "input_ids", "position_ids", "old_log_probs")
#: Prompts per pass of a validation.
_VALIDATION_PROMPTS = 512


class LabServices:
    """What the laboratory provides to its extensions; see ``extension.Services``."""

    def __init__(self, config: DictConfig, tokenizer: Any) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.rows, self.prompts = DictRows(), PromptStore(half_life=HALF_LIFE)
        self.verifier = InlineVerifier(config, tokenizer)
        self.step = 0


class LabBatch:
    """The rows of an update: verl's ``KVBatchMeta`` without a queue.

    Attributes:
        keys, tags: one per row, including padding.
    """

    def __init__(self, keys: Sequence[str], tags: Sequence[Mapping[str, Any]]) -> None:
        self.keys, self.tags = list(keys), list(tags)


class LabTrainer:
    """Trains in this process and writes records and metrics to the run's folder.

    Args:
        config: the resolved config of a run, which ``lab.training.checks`` has accepted. It is changed as verl changes
            it: the number of steps is filled in.
        on_step: called after each step, and before the first one, with the step's number and metrics.

    Attributes:
        module: the model that is trained.
        tokenizer, held_out: see ``prompts.PromptBatch``.
    """

    def __init__(
        self, config: DictConfig, on_step: Callable[[int, Mapping[str, float]], None] = lambda *_: None
    ) -> None:
        self._config, self._on_step = config, on_step
        self._run = RunDirectory(Path(config.trainer.default_local_dir))
        model = omega_conf_to_dataclass(config.actor_rollout_ref.model)
        self.tokenizer = model.tokenizer
        self._services = LabServices(config, self.tokenizer)
        extensions = extension.build(config.algorithm.gsd, self._services)
        self._rows, rollout = self._services.rows, config.actor_rollout_ref.rollout
        self.seam = Seam(extensions, self._services.prompts, self._rows, int(rollout.n))
        operation = audit(config).operation
        self._alpha = operation.alpha if operation else None
        self._training_prompts = TrainingPrompts(config, self.tokenizer, self.seam)
        self.held_out = held_out_prompts(config, self.tokenizer)
        self._held_out_labels = question_labels(self.held_out.columns)
        self._messages = MessageWriter(self._run.messages(1))
        self._rewards = RewardMonitor.from_config(
            config, self._messages, batch_groups=int(config.data.train_batch_size), overlaps=False
        )
        self._buffer = GroupBuffer(config, self.seam, self._rewards, self._submit, self._training_prompts.per_epoch)
        with open_dict(config):
            config.trainer.total_training_steps = _total_steps(config, self._training_prompts.per_epoch)
        self._worker = _worker(config)  # after the number of steps, on which its learning rate depends
        self.module = self._worker.actor.engine.module
        self._reference = load_model(model.local_path) if _has_reference(config) else None
        self._sampling = TokenSampling(float(rollout.temperature), int(rollout.top_k), float(rollout.top_p))
        # As in verl's agent loop, which does not read ``val_kwargs.do_sample``.
        held_out = rollout.val_kwargs
        self._held_out_sampling = TokenSampling(float(held_out.temperature), int(held_out.top_k), float(held_out.top_p))
        self._ends = end_tokens(model.local_path)
        self._solver = exact_solver(config, self.module, self.tokenizer, self._ends, self._held_out_sampling)
        self._seed = int(rollout.seed or 0)
        self._generator = torch.Generator().manual_seed(self._seed)
        self._kl_controller = (
            core_algos.get_kl_controller(config.algorithm.kl_ctrl) if config.algorithm.use_kl_in_reward else None
        )
        self._generated: dict[str, Sampled] = {}  # by key, of the current step
        self._visits = 0

    def train(self) -> None:
        """Train for all steps, with validations as the config says.

        Raises:
            RunStoppedError: too many rewards failed. The message is also in RUN/messages.
            NoMixedGroupError, ExtensionError: see there.
        """
        trainer = self._config.trainer
        last = trainer.total_training_steps
        self._run.metrics(1).parent.mkdir(parents=True, exist_ok=True)
        with TextIOWrapper(open_new(self._run.metrics(1)), encoding="utf-8") as file:

            def write(step: int, metrics: Mapping[str, float]) -> None:
                file.write(json.dumps({"step": step, "data": metrics}) + "\n")
                file.flush()
                self._on_step(step, metrics)

            try:
                if trainer.val_before_train:
                    write(0, self.validate())
                for step in range(1, last + 1):
                    self._services.step = step
                    metrics = self._step()
                    if trainer.test_freq > 0 and (step == last or step % trainer.test_freq == 0):
                        metrics |= self.validate()
                    write(step, metrics)
            except RunStoppedError as error:
                self._messages.write("stop", str(error))
                raise
            finally:
                for name, part in self.seam.extensions.items():
                    try:
                        part.close()
                    except Exception:  # must not hide the error that ended the run
                        logger.exception("algorithm.gsd.%s could not be closed", name)

    # A step

    def _step(self) -> dict[str, float]:
        step, start = self._services.step, time.perf_counter()
        metrics: dict[str, Any] = {TRAINED: step}
        with _timed(metrics, "step"):
            with _timed(metrics, "gen"):
                self._generated = {}
                uids = self._buffer.sample(step)
                batch = self._batch(uids, metrics)
            with _timed(metrics, "old_log_prob"):
                self._old_log_probs(batch, metrics)
            if self._reference is not None:
                with _timed(metrics, "ref"):
                    self._reference_log_probs(batch)
            with _timed(metrics, "adv"):
                padded = self._advantages(batch, metrics)
            with _timed(metrics, "update_actor"):
                self._update(batch, metrics)
            self.seam.observe_trained(batch)
            kl_in_reward = self._config.algorithm.use_kl_in_reward
            left, table = step_table(self.seam, step=step, attempt=1, alpha=self._alpha, kl_in_reward=kl_in_reward)
            records.write_step(self._run.path, table, step=step, attempt=1)
            groups = [entry.group for entry in left]
            metrics |= group_metrics(table) | doubt(groups)
            self._rewards.report_unrated(step, groups, rated_sources(self.seam))
            metrics |= self._rewards.end_step(step, time.perf_counter() - start)
            metrics |= end_step(self.seam, step)  # saved state changes here
            metrics |= self._data_metrics(batch, padded)
        self._rows.drop([key for key in self._rows.tags])
        return {name: float(value) for name, value in metrics.items()}

    def _submit(self, count: int) -> list[str]:
        """Generate rollouts of the next ``count`` prompts, verify them, and put them into the row store."""
        prompts = self._training_prompts.next(count)
        uids = [f"visit{self._visits + number}" for number in range(len(prompts))]
        self._visits += len(prompts)
        columns = prompts.columns | {"uid": uids}
        added = self.seam.before_rollout(dict(zip(uids, prompts.keys, strict=True)), columns)
        columns |= {name: values.tolist() for name, values in added.items()}
        n = int(self._config.actor_rollout_ref.rollout.n)
        copies = [int(value) for value in columns.pop(ROLLOUTS, [n] * len(uids))]
        sampled = iter(self._sample(prompts, copies, self._sampling))
        rows: dict[str, dict[str, Any]] = {}
        tags: dict[str, dict[str, Any]] = {}
        for number, (uid, count) in enumerate(zip(uids, copies, strict=True)):
            row = {name: values[number] for name, values in columns.items()}
            for session in range(count):
                key, response = f"{uid}_{session}_0", next(sampled)
                reward = self._services.verifier.reward(row, response.tokens)
                rows[key] = row | self._row(prompts.ids[number], response, reward, session)
                tags[key] = self._tag(len(prompts.ids[number]), len(response.tokens))
                self._generated[key] = response
        self._rows.put(rows, tags)
        return uids

    def _sample(self, prompts: PromptBatch, copies: Sequence[int], sampling: TokenSampling) -> list[Sampled]:
        with torch.no_grad():
            prefix = read_prompts(self.module, prompts.ids)
        return self._continue(prefix, copies, sampling, self._generator)

    def _continue(
        self, prefix: Prefix, copies: Sequence[int], sampling: TokenSampling, generator: torch.Generator
    ) -> list[Sampled]:
        return continue_prompts(
            self.module,
            prefix,
            copies,
            max_tokens=int(self._config.data.max_response_length),
            ends=self._ends,
            sampling=sampling,
            generator=generator,
        )

    def _row(self, prompt: list[int], response: Sampled, reward: Reward, session: int) -> dict[str, Any]:
        """The columns that verl's agent loop adds to those of the data set."""
        ids = torch.tensor(prompt + response.tokens)
        mask = torch.ones(len(response.tokens), dtype=torch.int64)
        scores = torch.zeros(len(mask))
        scores[-1] = reward.score
        version = self._services.step - 1
        return {
            "prompts": ids[: len(prompt)],
            "responses": ids[len(prompt) :],
            "response_mask": mask,
            "loss_mask": mask,
            "input_ids": ids,
            "position_ids": torch.arange(len(ids)),
            "rm_scores": scores,
            "extra_fields": {
                "reward_extra_info": dict(reward.info),
                "min_global_steps": version,
                "max_global_steps": version,
            },
            "metrics": {},
            "num_turns": 2,
            "multi_modal_inputs": {},
            "session_id": session,
        }

    def _tag(self, prompt_length: int, response_length: int) -> dict[str, Any]:
        step = self._services.step
        return {
            "status": "success",
            "prompt_len": prompt_length,
            "response_len": response_length,
            "seq_len": prompt_length + response_length,
            "global_steps": step,
            "min_global_steps": step - 1,
            "max_global_steps": step - 1,
        }

    def _batch(self, uids: Sequence[str], metrics: dict[str, Any]) -> LabBatch:
        """The rows of the chosen groups, placed into mini-batches and filled up with padding.

        As on the stack, rows have the order in which they were put into the row store, whatever their groups.
        """
        chosen = set(uids)
        keys = [key for key in self._rows.tags if uid_of(key) in chosen]
        actor = self._config.actor_rollout_ref.actor
        if self.seam.owner("place") is None:
            mini_batch = int(actor.ppo_mini_batch_size) * int(self._config.actor_rollout_ref.rollout.n)
            places = [*range(len(keys)), *[PADDING] * (-len(keys) % mini_batch)]
        else:
            lengths = [self._rows.tags[key]["seq_len"] for key in keys]
            places, placement = self.seam.place(
                UnplacedRows(
                    keys,
                    lengths,
                    lengths,
                    prompts=int(self._config.data.train_batch_size),
                    padding_tokens=2,
                    workers=1,
                )
            )
            metrics |= placement
        placed = []
        for number, row in enumerate(places):
            key = f"pad_{number}_0" if row == PADDING else keys[row]
            if row == PADDING:
                self._put_padding(key, template=keys[0])
            placed.append(key)
        return LabBatch(placed, [self._rows.tags[key] for key in placed])

    def _put_padding(self, key: str, template: str) -> None:
        """A row that no loss and no metric counts."""
        eos, nothing = torch.full((2,), self.tokenizer.eos_token_id), torch.zeros(1, dtype=torch.int64)
        (row,) = self._rows.read([template])
        row |= {
            "prompts": eos[:1],
            "responses": eos[1:],
            "response_mask": nothing,
            "loss_mask": nothing,
            "input_ids": eos,
            "position_ids": torch.arange(2),
            "rm_scores": torch.zeros(1),
        }
        self._rows.put({key: row}, {key: self._tag(1, 1) | {"is_padding": True}})

    def _old_log_probs(self, batch: LabBatch, metrics: dict[str, Any]) -> None:
        """Log-probabilities under the policy before the update.

        Those of rollouts are known from sampling, because the weights have not changed since. Those of demonstrations
        and of earlier responses are computed.
        """
        known: dict[str, Sampled] = {}
        for key, tag in zip(batch.keys, batch.tags, strict=True):
            if key in self._generated and is_own(tag):
                known[key] = self._generated[key]
        others = [key for key in batch.keys if key not in known]
        columns = {
            key: {"old_log_probs": torch.tensor(response.log_probs), "entropy": torch.tensor(response.entropy)}
            for key, response in known.items()
        }
        for key, (log_probs, entropy) in self._scored(self.module, others, with_entropy=True).items():
            columns[key] = {"old_log_probs": log_probs, "entropy": entropy}
        self._rows.put(columns)
        rows, actor = self._rows.read(batch.keys, ["entropy", "response_mask"]), self._config.actor_rollout_ref.actor
        mean = core_algos.agg_loss(
            loss_mat=_padded([row["entropy"] for row in rows]),
            loss_mask=_padded([row["response_mask"] for row in rows]),
            loss_agg_mode=actor.loss_agg_mode,
            loss_scale_factor=actor.loss_scale_factor,
        )
        metrics["actor/entropy"] = float(mean)
        metrics.update(entropy_metric(self._rows, list(known)))

    def _reference_log_probs(self, batch: LabBatch) -> None:
        scored = self._scored(self._reference, batch.keys, with_entropy=False)
        self._rows.put({key: {"ref_log_prob": log_probs} for key, (log_probs, _) in scored.items()})

    @torch.no_grad()
    def _scored(
        self, model: Any, keys: Sequence[str], *, with_entropy: bool
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor | None]]:
        """key -> log-probabilities of its j tokens under ``model``, (j,), and entropies (j,) if requested."""
        if not keys:
            return {}
        rows = self._rows.read(keys, ["prompts", "responses"])
        prompts = [tuple(row["prompts"].tolist()) for row in rows]
        number = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        scores = score_responses(
            model,
            read_prompts(model, list(number)),
            torch.tensor([number[prompt] for prompt in prompts]),
            _padded([row["responses"] for row in rows]),
            temperature=self._sampling.temperature,
            with_entropy=with_entropy,
        )
        found = {}
        for place, (key, row) in enumerate(zip(keys, rows, strict=True)):
            length = len(row["responses"])
            entropy = None if scores.entropy is None else scores.entropy[place, :length].clone()
            found[key] = scores.log_probs[place, :length].clone(), entropy
        return found

    def _advantages(self, batch: LabBatch, metrics: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Compute advantages and the columns of the loss, and put them into the rows.

        Returns:
            The batch's columns as padded tensors (N, T), for metrics.
        """
        names = ["response_mask", "rm_scores", "old_log_probs", *(["ref_log_prob"] if self._reference else [])]
        rows = self._rows.read(batch.keys, names)
        padded = {name: _padded([row[name] for row in rows]) for name in names}
        padded["token_level_scores"] = padded["token_level_rewards"] = padded["rm_scores"]
        if self._kl_controller is not None:
            data = DataProto(batch=TensorDict(padded, batch_size=len(rows)))
            data, kl_metrics = apply_kl_penalty(
                data, kl_ctrl=self._kl_controller, kl_penalty=self._config.algorithm.kl_penalty
            )
            metrics |= kl_metrics
            padded["token_level_rewards"] = data.batch["token_level_rewards"]
        columns = self.seam.stage_inputs(batch)
        uids = np.array([uid_of(key) for key in batch.keys], dtype=object)
        with estimator.batch_context(batch.keys, columns, self.seam.extensions) as context:
            advantages, _ = estimator.gsd_advantage(
                padded["token_level_rewards"], padded["response_mask"], uids, self._config.algorithm
            )
        metrics |= context.metrics
        lengths = [len(row["response_mask"]) for row in rows]
        self._rows.put(
            {
                key: {"advantages": values[:length]}
                for key, values, length in zip(batch.keys, advantages, lengths, strict=True)
            }
        )
        self.seam.on_advantages(batch, context.advantages)
        loss_columns = self.seam.loss_columns(batch, context.advantages)
        self._rows.put(
            {key: {name: values[n] for name, values in loss_columns.items()} for n, key in enumerate(batch.keys)}
        )
        padded["advantages"] = padded["returns"] = advantages
        self._loss_columns = tuple(loss_columns)
        return padded

    def _update(self, batch: LabBatch, metrics: dict[str, Any]) -> None:
        actor, rollout = self._config.actor_rollout_ref.actor, self._config.actor_rollout_ref.rollout
        names = [*_COLUMNS, "advantages", *(["ref_log_prob"] if self._reference else [])]
        rows = self._rows.read(batch.keys, [*names, *self._loss_columns])
        data = TensorDict(
            {name: torch.nested.as_nested_tensor([row[name] for row in rows], layout=torch.jagged) for name in names}
            | {name: torch.stack([row[name] for row in rows]) for name in self._loss_columns},
            batch_size=len(rows),
        )
        mini_batch = int(actor.ppo_mini_batch_size) * int(rollout.n)
        flags: dict[str, Any] = {
            "calculate_entropy": bool(actor.calculate_entropy or actor.entropy_coeff),
            "distillation_use_topk": False,
            "distillation_only": False,
            "global_batch_size": mini_batch,
            "mini_batch_size": mini_batch,
            "epochs": actor.ppo_epochs,
            "seed": actor.data_loader_seed,
            "dataloader_kwargs": {"shuffle": actor.shuffle},
            "temperature": rollout.temperature,
        }
        flags |= self.seam.worker_flags(Update(self._services.step, is_first=True))
        skipped = self._worker.actor.engine.skipped_updates
        tu.assign_non_tensor(data, **flags)
        output = rename_dict(tu.get(self._worker.update_actor(data), "metrics"), "actor/")
        output.pop("actor/mfu", None)
        output["actor/skipped_updates"] = self._worker.actor.engine.skipped_updates - skipped
        metrics |= strip_actor_prefix(reduce_metrics(output), self.seam.extensions)

    def _data_metrics(self, batch: LabBatch, padded: Mapping[str, torch.Tensor]) -> dict[str, float]:
        """verl's metrics of the batch. They include only rows that the policy generated in this step."""
        own = [number for number, tag in enumerate(batch.tags) if is_own(tag) and not tag.get("is_padding")]
        columns = {name: values[own] for name, values in padded.items()}
        rows = self._rows.read([batch.keys[number] for number in own], ["prompts", "responses"])
        for name in ("prompts", "responses"):
            columns[name] = _padded([row[name] for row in rows])
        columns["prompt_length"] = torch.tensor([float(len(row["prompts"])) for row in rows])
        columns["response_length"] = torch.tensor([float(len(row["responses"])) for row in rows])
        data = DataProto(batch=TensorDict(columns, batch_size=len(own)))
        return compute_data_metrics(data, use_critic=False)

    # Validation

    def validate(self) -> dict[str, float]:
        """Accuracy and reward on the held-out prompts, sampled as the config says.

        If each prompt has one right answer (``tasks.one_answer``), there are also ``exact/accuracy`` and
        ``exact/level/NAME``, the probability of this answer, averaged over all prompts and over those of a level
        (``extra_info.level``). It is what the sampled accuracy would be with infinitely many responses, less at most
        ``exact/slack``, the mean slack of all prompts (``exact.py``). They are absent under greedy sampling, which has
        no noise, and if ``top_k`` or ``top_p`` excludes tokens.

        Raises:
            RunStoppedError: too many rewards failed.
        """
        sampling, count = self._held_out_sampling, int(self._config.actor_rollout_ref.rollout.val_kwargs.n)
        step, rewards, exact = self._services.step, list[tuple[str, list[Reward]]](), list[ExactRates]()
        # A generator of its own for each validation, so that training does not depend on how often it is validated.
        (state,) = np.random.SeedSequence([self._seed, step]).generate_state(1)
        generator = torch.Generator().manual_seed(int(state))
        for start in range(0, len(self.held_out), _VALIDATION_PROMPTS):
            part = self.held_out.part(start, start + _VALIDATION_PROMPTS)
            prefix = read_many_prompts(self.module, part.ids)
            sampled = iter(self._continue(prefix, [count] * len(part), sampling, generator))
            for number, (source, _) in enumerate(part.keys):
                row = part.row(number)
                of_prompt = [self._services.verifier.reward(row, next(sampled).tokens) for _ in range(count)]
                rewards.append((source, of_prompt))
                failures = [reward.failure for reward in of_prompt if reward.failure is not None]
                lost = [LostReward(source, index_to_show(row["index"]), failure) for failure in failures]
                self._rewards.on_validation_rewards(step, count, lost)
            if self._solver is not None:
                exact.append(self._solver.rates_of_read(prefix, part.answers))
        sources = [source for source, _ in rewards]
        metrics = validation_metrics(rewards) | held_out_counts(sources, self._held_out_labels)
        rated = [(source, of.info.get("acc")) for source, of_prompt in rewards for of in of_prompt if not of.failure]
        metrics |= held_out_outside([source for source, _ in rated], [accuracy for _, accuracy in rated])
        metrics |= self._rewards.end_validation(step)
        return metrics | (_exact_metrics(joined(exact), self.held_out) if exact else {})


def _exact_metrics(rates: ExactRates, prompts: PromptBatch) -> dict[str, float]:
    metrics = {EXACT: float(rates.p.mean()), "exact/slack": float(rates.slack.mean())}
    levels = np.array(prompts.levels)
    for level in sorted(set(prompts.levels) - {""}):
        metrics[f"exact/level/{level}"] = float(rates.p[levels == level].mean())
    return metrics


def _padded(values: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values), batch_first=True)


def _total_steps(config: DictConfig, prompts: int) -> int:
    """The number of steps of a run, from the number of training prompts where the config does not say it."""
    total, epochs = config.trainer.total_training_steps, int(config.trainer.total_epochs)
    available = prompts // int(config.data.train_batch_size) * epochs
    if total is not None and total > available:
        raise ConfigError(
            f"trainer.total_training_steps={total}: trainer.total_epochs={epochs} of {prompts} prompts have only "
            f"{available} steps. Set trainer.total_training_steps={available}, or a larger trainer.total_epochs."
        )
    return available if total is None else int(total)


def _has_reference(config: DictConfig) -> bool:
    return bool(config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def _worker(config: DictConfig) -> Any:
    """verl's actor with ``LabEngine``, our worker extensions, and the loss of the config."""
    # verl's worker reads these variables. The address is not used, because the process group exists already.
    os.environ |= {"VERL_ENGINE_DEVICE": DEVICE, "WORLD_SIZE": "1", "RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if not torch.distributed.is_initialized():  # verl's worker needs a process group, even if it is alone
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    with open_dict(config):
        optim = config.actor_rollout_ref.actor.optim
        optim.total_training_steps = config.trainer.total_training_steps
    kind = actor_worker(extension.active(config.algorithm.gsd), separate=False) or ActorRolloutRefWorker
    worker = kind(config=config.actor_rollout_ref, role="actor")
    worker.init_model()
    return worker


@contextmanager
def _timed(metrics: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    metrics[f"timing_s/{name}"] = time.perf_counter() - start
