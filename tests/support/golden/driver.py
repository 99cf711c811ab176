"""Replay recorded batches through our real trainer in this process, without Ray, vLLM and a model.

This is the only file of the golden traces that knows the names of our classes and functions. What a replay returns is
plain data (``traces.Trace``), so that the kept files and the comparison survive a change of names.

Real are the trainer and its loop, the replay buffer, the estimator, the stages, the losses, the training worker, the
records, the metrics and the checkpoints. These stand in for the rest:

- ``Queue``: verl's TransferQueue is a dictionary.
- ``AgentLoop``: responses come from the recording, by prompt, visit and session. A budget, a sampler or a history that
  asks for other rollouts therefore gets other rows.
- ``TableEngine``: the model is a table of log-probabilities by a token and the one before it. No update changes it; the
  next update sees the next recorded table.
- ``RecordedScorer`` and ``RewardWorker``: the judge and the verifier of demonstrations answer what was recorded.
- Prompts get uids by number, and groups of one step are chosen in the order of their uids.
"""

import contextlib
import copy
import functools
import itertools
import json
import math
import os
import pickle
import shutil
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pyarrow.parquet as pq
import ray
import torch
import transfer_queue as tq
from golden.traces import DATA, Trace, saved_state
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors.numpy import load_file
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer, trainer_base
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.profiler import DistProfiler
from verl.utils.skip import SkipManager
from verl.workers.engine import BaseEngine
from verl.workers.engine.utils import postprocess_batch_func, prepare_micro_batches
from verl.workers.utils.losses import ppo_loss

from verl_gsd.algorithms.dagrpo import judging
from verl_gsd.judge.scorer import JudgementError
from verl_gsd.records import read_records
from verl_gsd.run.compose import compose_config, parse_line, resolve
from verl_gsd.state import save_state
from verl_gsd.tasks.byte_llama import build_tokenizer
from verl_gsd.trainer import verifying
from verl_gsd.trainer.watchdog import Watchdog

PROMPTS = DATA / "prompts.parquet"

#: Steps of a run, and the step after which it is saved, ended and resumed.
STEPS, SAVED = 5, 3
GROUP, BATCH, UPDATES = 6, 6, 2
#: Rows and columns of a table of log-probabilities: a token counts modulo this number.
ALPHABET = 16

_COMMON = (
    *("task=arithmetic", "hardware=cpu", f"data.train_files={PROMPTS}", f"data.val_files={PROMPTS}"),
    *(f"data.train_batch_size={BATCH}", "data.max_prompt_length=24", "data.max_response_length=8"),
    *("data.shuffle=false", "data.seed=7", f"actor_rollout_ref.rollout.n={GROUP}"),
    *(f"actor_rollout_ref.actor.ppo_mini_batch_size={BATCH // UPDATES}", "trainer.logger=[file]"),
    *(f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVED}", "trainer.test_freq=-1"),
    *("trainer.val_before_train=false", "algorithm.gsd.poll_interval=0.05"),
)
_DYNAMIC = (
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=200",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=200",
)
_FIXED = (
    "actor_rollout_ref.actor.use_dynamic_bsz=false",
    f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={GROUP}",
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false",
    f"actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu={GROUP}",
    f"actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu={GROUP}",
)
_GVPO = (
    "algo=gvpo",
    "algorithm.gsd.gvpo.history_fraction=0.34",
    "actor_rollout_ref.actor.policy_loss.reference=ref",
)
#: Run -> the words of its command line.
RUNS = {
    "grpo": ("algo=grpo", "budget=adaptive", "algorithm.gsd.budget.maximum=7", "sampler=disagreement", *_DYNAMIC),
    "hadw_dapo": ("algo=hadw_dapo", "algorithm.gsd.hadw.preset=soft", "algorithm.gsd.hadw.n_min=24", *_DYNAMIC),
    "dagrpo": (
        *("algo=dagrpo", "algorithm.gsd.dagrpo.delta={from: 1, to: 3, steps: 4}", "algorithm.gsd.dagrpo.rescale=true"),
        *("algorithm.gsd.dagrpo.probe_every=2", "algorithm.gsd.dagrpo.judge.cache=null"),
        "algorithm.gsd.dagrpo.judge.budget_s=3600",  # no judgement is given up on a busy machine
        *("algorithm.gsd.dagrpo.demonstrations.source=expert_or_self", *_DYNAMIC),
    ),
    "gvpo_whole": (*_GVPO, "algorithm.gsd.gvpo.grouping=whole", *_FIXED),
    "gvpo_prepass": (*_GVPO, "algorithm.gsd.gvpo.grouping=prepass", *_DYNAMIC),
}


@dataclass(frozen=True)
class Recording:
    """What was recorded once; see ``make.py``.

    Attributes:
        prompts: rows of the data set.
        responses: (data source, index, visit) -> a row per session.
        tables: log-probabilities ``policy`` (U + 1, A, A), by updates done, and ``reference`` (A, A); ``entropy`` (A,).
        verdicts: the text of a demonstration -> its accuracy.
    """

    prompts: list
    responses: dict
    tables: dict
    verdicts: dict

    @classmethod
    def load(cls):
        rows = {}
        for row in pq.read_table(DATA / "responses.parquet").to_pylist():
            rows.setdefault((row["data_source"], row["index"], row["visit"]), []).append(row)
        verdicts = json.loads((DATA / "verdicts.json").read_text())
        return cls(pq.read_table(PROMPTS).to_pylist(), rows, load_file(DATA / "tables.safetensors"), verdicts)


def replay(name, run, checkpoint=None, *, recording=None, words=()):
    """Run ``name`` in the empty folder ``run``, which is saved, ended and resumed in the middle.

    Args:
        checkpoint: a folder to resume from, an older one of the same run; None: from what the run itself has saved.
        words: added to the command line.
    """
    trace = Trace()
    with stand_ins(recording or Recording.load()) as world:
        world.fit(name, run, SAVED, words, trace)
        own = run / f"global_step_{SAVED}"
        trace.states["saved"] = saved_state(own)
        if checkpoint is not None:
            shutil.rmtree(own / "gsd")
            shutil.copytree(checkpoint, own, dirs_exist_ok=True)
        world.fit(name, run, STEPS, words, trace)
    trace.metrics = {
        line["step"]: line["data"]
        for path in sorted((run / "metrics").glob("attempt_*.jsonl"))
        for line in map(json.loads, path.read_text().splitlines())
    }
    trace.records = read_records(run)
    trace.states["restored"] = saved_state(run / "restored")
    trace.states["ended"] = saved_state(run / f"global_step_{STEPS}")
    return trace


@contextlib.contextmanager
def stand_ins(recording):
    """Within it verl's queue, Ray's answers and what is random are ours."""
    threads = torch.get_num_threads()
    world = World(recording)
    answers = SimpleNamespace(
        get=lambda answer, timeout=None: answer,
        wait=lambda answers, timeout=None: (answers, []),
        exceptions=ray.exceptions,
    )
    with contextlib.ExitStack() as stack:
        replaced = [
            (tq, name, getattr(world.queue, name))
            for name in ("kv_put", "kv_batch_put", "kv_batch_get", "kv_list", "kv_clear")
        ]
        replaced += [
            (trainer_base, "uuid", SimpleNamespace(uuid4=world.next_uid)),
            (replay_buffer.ReplayBuffer, "_select_prompt_uids", _select_in_order(replay_buffer.ReplayBuffer)),
            (judging, "build_scorer", lambda settings: RecordedScorer(recording, world.tokenizer)),
            (verifying, "ray", answers),
            (Watchdog, "look", lambda self, wait: None),
            (Watchdog, "explain", lambda self, error: None),
        ]
        replaced += [(SkipManager, name, getattr(SkipManager, name)) for name in ("config", "step", "skip_instances")]
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(mock.patch.dict(os.environ))
        for name in ("VERL_FILE_LOGGER_PATH", "VERL_GSD_ATTEMPT"):
            os.environ.pop(name, None)
        torch.set_num_threads(1)
        stack.callback(torch.set_num_threads, threads)
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        stack.callback(torch.distributed.destroy_process_group)
        yield world


def _select_in_order(buffer):
    """verl orders groups of one step as a set of texts does, which differs from process to process."""
    select = buffer._select_prompt_uids

    def in_order(self, partition_id, sampleable_keys, batch_size):
        return select(self, partition_id, sorted(sampleable_keys), batch_size)

    return in_order


class World:
    """Builds trainers over one recording; the agent loop's visits and uids go on when a run is resumed."""

    def __init__(self, recording):
        self.recording, self.tokenizer, self.queue = recording, tokenizer(), Queue()
        self.visits = Counter()
        self._uids = itertools.count()

    def next_uid(self):
        return f"u{next(self._uids):03d}"

    def fit(self, name, run, last, words, trace):
        """Train up to step ``last``; what was restored is saved again into the folder ``restored`` of the run."""
        trainer = self.start(name, run, words, trace)
        if trainer.global_steps:
            save_state(run / "restored", trainer.memories, trainer._settings)
        trainer.total_training_steps = last
        trainer.fit(AgentLoop(self, trainer))

    def start(self, name, run, words, trace):
        """A trainer of the run ``name``, ready to fit: what verl's ``init`` makes, in its order."""
        os.environ.pop("VERL_FILE_LOGGER_PATH", None)
        config = pickle.loads(_resolved((*_COMMON, *RUNS[name], *words)))
        config.trainer.default_local_dir = str(run)
        trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
        trainer.tokenizer, trainer.processor = self.tokenizer, None
        trainer._init_dataloader()
        trainer._init_dump_executor()
        trainer._init_resource_pool_mgr()
        trainer.resource_pool_manager = SimpleNamespace(get_n_gpus=lambda: 1)
        trainer.ref_in_actor = False
        trainer.actor_rollout_wg = trainer.ref_policy_wg = Workers(trainer, self, trace)
        trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[RewardWorker(self)])
        trainer.teacher_model_manager = trainer.distillation_config = None
        trainer.checkpoint_manager = SimpleNamespace(sleep_replicas=lambda: None, update_weights=lambda step: None)
        trainer._load_checkpoint()
        trainer.on_init_end()
        return trainer


@functools.cache
def tokenizer():
    return build_tokenizer()


@functools.cache
def _composed(choices):
    return compose_config(parse_line(choices))


@functools.cache
def _resolved(words):
    """The config of a command line, pickled: a trainer changes its config, and other copies take much longer.

    Hydra composes a choice of groups once; single keys are set on a copy of that.
    """
    line = parse_line(words)
    config = _composed(tuple(f"{group}={name}" for group, name in line.choices.items())).copy()
    for override in map(OverridesParser.create().parse_override, line.overrides):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return pickle.dumps(resolve(config))


class Queue:
    """verl's TransferQueue as its callers see it: rows by key, with a tag each, in the order they were put."""

    def __init__(self):
        self._rows, self._tags = {}, {}  # partition -> key -> columns, tag

    def put_row(self, key, columns, tag):
        """Put a row of the training partition as it is."""
        self._rows.setdefault("train", {})[key], self._tags.setdefault("train", {})[key] = columns, tag

    def kv_put(self, key, partition_id, fields=None, tag=None):
        return self.kv_batch_put([key], partition_id, fields, None if tag is None else [tag])

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        rows, own = self._rows.setdefault(partition_id, {}), self._tags.setdefault(partition_id, {})
        cells = {} if fields is None else {name: _cells(fields[name]) for name in fields.keys()}  # noqa: SIM118
        for number, key in enumerate(keys):
            rows.setdefault(key, {}).update({name: of[number] for name, of in cells.items()})
            own[key] = own.get(key, {}) if tags is None else dict(tags[number])
        names = sorted(set().union(*(rows[key] for key in keys)))
        return KVBatchMeta(keys=list(keys), tags=[own[key] for key in keys], partition_id=partition_id, fields=names)

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        keys = [keys] if isinstance(keys, str) else keys
        rows = [self._rows[partition_id][key] for key in keys]
        names = [name for name in rows[0] if select_fields is None or name in select_fields]
        return TensorDict({name: _column([row[name] for row in rows]) for name in names}, batch_size=[len(keys)])

    def numbers(self, batch):
        """The columns of ``batch`` that are tensors: all that a loss can use."""
        row = self._rows[batch.partition_id][batch.keys[0]]
        return [name for name, value in row.items() if isinstance(value, torch.Tensor)]

    def kv_list(self, partition_id=None):
        partitions = [partition_id] if partition_id else list(self._tags)
        return {
            name: {key: dict(tag) for key, tag in self._tags[name].items()}
            for name in partitions
            if self._tags.get(name)
        }

    def kv_clear(self, keys, partition_id):
        for key in [keys] if isinstance(keys, str) else keys:
            self._rows[partition_id].pop(key, None)
            self._tags[partition_id].pop(key, None)


def _cells(column):
    if isinstance(column, torch.Tensor):
        return [value.clone() for value in column.unbind()]
    return [copy.deepcopy(getattr(value, "data", value)) for value in column]


def _column(values):
    if not all(isinstance(value, torch.Tensor) for value in values):
        return NonTensorStack(*values)
    if all(value.dim() == 0 for value in values):
        return torch.stack(values)
    return torch.nested.as_nested_tensor(values, layout=torch.jagged)


class AgentLoop:
    """Answers every prompt with what was recorded for this visit to it."""

    def __init__(self, world, trainer):
        self._world, self._trainer = world, trainer

    def generate_sequences(self, batch):
        names = [name for name in batch.keys() if not isinstance(batch.get(name), NonTensorData)]  # noqa: SIM118
        columns = {name: list(batch[name]) for name in names}
        for number in range(len(batch)):
            self._answer({name: getattr(of[number], "data", of[number]) for name, of in columns.items()})

    def _answer(self, prompt):
        world, step, uid = self._world, self._trainer.global_steps, prompt["uid"]
        key = prompt["data_source"], int(prompt["index"])
        recorded = world.recording.responses[(*key, world.visits[key])]
        world.visits[key] += 1
        sessions = recorded[: int(prompt.get("__rollout_n__", GROUP))]
        ids = world.tokenizer.apply_chat_template(prompt["raw_prompt"], add_generation_prompt=True, return_dict=False)
        for row in sessions:
            if row["fails"]:
                continue
            columns = prompt | _agent_row(ids, row)
            if self._trainer.config.actor_rollout_ref.rollout.calculate_log_probs:
                before, after = ([*ids, *row["tokens"]][at:][: len(row["tokens"])] for at in (len(ids) - 1, len(ids)))
                table = torch.from_numpy(world.recording.tables["reference"])
                columns["rollout_log_probs"] = table[torch.tensor(before) % ALPHABET, torch.tensor(after) % ALPHABET]
            lengths = {"prompt_len": len(ids), "response_len": len(row["tokens"])}
            lengths["seq_len"] = sum(lengths.values())
            weights = {"min_global_steps": step - 1, "max_global_steps": step - 1}
            tag = {"status": "success", "global_steps": step} | lengths | weights
            world.queue.put_row(f"{uid}_{row['session']}_0", columns, tag)
        status = "failure" if any(row["fails"] for row in sessions) else "finished"
        tq.kv_put(key=uid, partition_id="train", tag={"is_prompt": True, "status": status, "global_steps": step})


def _agent_row(prompt, row):
    """A response as verl's agent loop workers write it."""
    response, mask = torch.tensor(row["tokens"]), torch.tensor(row["mask"]).long()
    ids, scores = torch.cat([torch.tensor(prompt), response]), torch.zeros(len(row["tokens"]))
    scores[-1] = row["reward"]
    info = {"acc": row["accuracy"]} | ({} if row["unverified"] is None else {"unverified": row["unverified"]})
    return {
        "prompts": torch.tensor(prompt),
        "responses": response,
        "response_mask": mask,
        "loss_mask": mask,
        "input_ids": ids,
        "position_ids": torch.arange(len(ids)),
        "rm_scores": scores,
        "metrics": {"compute_score": 0.5},
        "extra_fields": {"reward_extra_info": info},
        "session_id": row["session"],
        "num_turns": 2,
    }


class RewardWorker:
    """A reward worker of verl's that knows the recorded demonstrations."""

    def __init__(self, world):
        self._world = world
        self.compute_score = SimpleNamespace(remote=self._score)

    def _score(self, data):
        text = self._world.tokenizer.decode(data.batch["responses"][0], skip_special_tokens=True)
        accuracy = self._world.recording.verdicts[text]
        return {"reward_score": accuracy, "reward_extra_info": {"acc": accuracy}}


class RecordedScorer:
    """A judge that answers with the recorded score of a response; a score that is NaN is a failed judgement."""

    identity = "recorded"

    def __init__(self, recording, tokenizer):
        questions = {
            (of["data_source"], of["extra_info"]["index"]): of["prompt"][0]["content"] for of in recording.prompts
        }
        self._scores = {}  # response -> question -> score
        for (source, index, _), rows in recording.responses.items():
            for row in rows:
                response = tokenizer.decode(row["tokens"], skip_special_tokens=True)
                self._scores.setdefault(response, {})[questions[source, index]] = row["score"]

    async def score(self, question):
        (score,) = (score for text, score in self._scores[question.response].items() if text in question.problem)
        if math.isnan(score):
            raise JudgementError("server_error")
        return score

    async def close(self):
        pass


class Workers:
    """verl's worker group, of one worker in this process: the one that the trainer would start with Ray."""

    def __init__(self, trainer, world, trace):
        self._trainer, self._trace, self._queue = trainer, trace, world.queue
        self._dispatch_info = {"actor": [0]}
        self._engine = TableEngine(world.recording.tables)
        (started,) = (
            worker
            for role, worker in trainer.role_worker_mapping.items()
            if role in (Role.ActorRollout, Role.ActorRolloutRef)
        )
        actor = omega_conf_to_dataclass(trainer.config.actor_rollout_ref.actor)
        rollout = trainer.config.actor_rollout_ref.rollout
        worker_class = started.__ray_metadata__.modified_class.actor_worker_cls
        self._worker = object.__new__(worker_class)
        self._worker.engine, self._worker.device_name = self._engine, "cpu"
        self._worker.model_config, self._worker.profiler = {}, DistProfiler(rank=0)
        self._worker.flops_counter = SimpleNamespace(estimate_flops=lambda *args, **kwargs: (1.0, 1.0))
        self._worker.engine_config = SimpleNamespace(
            forward_only=False,
            use_dynamic_bsz=actor.use_dynamic_bsz,
            use_fused_kernels=False,
            max_token_len_per_gpu=actor.ppo_max_token_len_per_gpu,
            micro_batch_size_per_gpu=actor.ppo_micro_batch_size_per_gpu,
            infer_max_token_len_per_gpu=rollout.log_prob_max_token_len_per_gpu,
            infer_micro_batch_size_per_gpu=rollout.log_prob_micro_batch_size_per_gpu,
        )
        self._worker.set_loss_fn(partial(ppo_loss, config=actor))

    def compute_log_prob(self, batch):
        self._engine.update = UPDATES * (self._trainer.global_steps - 1)
        return self._infer(batch, self._engine.policy())

    def compute_ref_log_prob(self, batch):
        return self._infer(batch, self._engine.reference)

    def _infer(self, batch, table):
        rows = tq.kv_batch_get(batch.keys, batch.partition_id, ["input_ids"])
        fields = self._engine.log_probs_of(rows, table.detach())
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=TensorDict(fields, len(rows)))

    def update_actor(self, batch):
        rows = tq.kv_batch_get(batch.keys, batch.partition_id, [*self._queue.numbers(batch), "uid", "session_id"])
        step = self._trainer.global_steps
        self._trace.advantages[step] = {
            key: advantages.numpy()
            for key, advantages in zip(batch.keys, rows["advantages"].unbind(), strict=True)
            if not key.startswith("pad")
        }
        self._engine.seen = self._trace.updates[step] = []
        tu.assign_non_tensor(rows, **batch.extra_info)
        return self._worker.train_mini_batch(rows)

    def save_checkpoint(self, *args, **kwargs):
        pass

    load_checkpoint = save_checkpoint


class TableEngine(BaseEngine):
    """An engine whose model is a table: the log-probability of a token after another one."""

    def __init__(self, tables):
        self._policies = [torch.nn.Parameter(torch.from_numpy(table.copy())) for table in tables["policy"]]
        self.reference, self._entropy = torch.from_numpy(tables["reference"]), torch.from_numpy(tables["entropy"])
        self.update = 0  # updates done
        self.seen = []
        self._training = False

    def policy(self):
        return self._policies[self.update]

    @property
    def module(self):
        return SimpleNamespace(parameters=lambda: [self.policy()])

    @property
    def is_param_offload_enabled(self):
        return False

    is_optimizer_offload_enabled = is_param_offload_enabled

    def train_mode(self, **kwargs):
        return contextlib.nullcontext()

    eval_mode = train_mode

    def get_data_parallel_size(self):
        return 1

    def get_data_parallel_rank(self):
        return 0

    def get_data_parallel_group(self):
        return torch.distributed.group.WORLD

    def is_mp_src_rank_with_outputs(self):
        return True

    def optimizer_zero_grad(self):
        for table in self._policies:
            table.grad = None

    def optimizer_step(self):
        norm = self.policy().grad.double().norm()
        self.update += 1
        return norm

    def lr_scheduler_step(self):
        return 0.0

    def train_batch(self, data, loss_function):
        self._training = True
        self.seen.append([])
        try:
            return super().train_batch(data, loss_function)
        finally:
            self._training = False

    def log_probs_of(self, rows, table):
        """Columns of ``rows``, nested (N, j): each token's entropy and the log-probability of the token after it."""
        values, offsets = rows["input_ids"].values() % ALPHABET, rows["input_ids"].offsets()
        found = {"log_probs": table[values, values.roll(-1)], "entropy": self._entropy[values]}
        return {name: torch.nested.nested_tensor_from_jagged(column, offsets) for name, column in found.items()}

    def forward_backward_batch(self, data, loss_function, forward_only=False):
        tu.assign_non_tensor(data, sp_size=1, batch_num_tokens=int(data["loss_mask"].values().sum()), dp_size=1)
        micro_batches, indices = prepare_micro_batches(data=data, dp_group=self.get_data_parallel_group())
        outputs = []
        for rows in micro_batches:
            columns = self.log_probs_of(rows, self.policy())
            model_output = {"log_probs": columns["log_probs"]}
            if tu.get(rows, "calculate_entropy", default=False):
                model_output["entropy"] = columns["entropy"]
            loss, metrics = torch.zeros(()), {}
            if loss_function is not None:
                columns["log_probs"].retain_grad()
                loss, metrics = loss_function(
                    model_output=model_output, data=rows, dp_group=self.get_data_parallel_group()
                )
            if not forward_only:
                loss.backward()
                self._note(rows, loss, columns["log_probs"].grad)
            kept = {name: column.detach() for name, column in model_output.items()} if forward_only else {}
            outputs.append({"model_output": kept, "loss": loss.detach().item(), "metrics": metrics})
        return postprocess_batch_func(output_lst=outputs, indices=indices, data=data)

    def _note(self, rows, loss, gradient):
        if not self._training:
            return
        real = [
            f"{uid}_{session}_0"
            for uid, session in zip(rows["uid"], rows["session_id"], strict=True)
            if not uid.startswith("pad")
        ]
        norm = gradient.values().double().norm().item()
        self.seen[-1].append({"rows": real, "loss": loss.item(), "gradient_norm": norm})
