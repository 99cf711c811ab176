"""The config of a rehearsal: the config of a run, with everything replaced that needs GPUs or hours.

``rehearsal_config`` is a pure function. Replacements are made in the unresolved config, so that keys that follow from
others by interpolation still do. The list of replacements is the difference between the two resolved configs. A
difference therefore cannot be missing from the list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_gsd import config as groups
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import OUR_MODES, ConfigError
from verl_gsd.run.checks.data_files import has_own_dataset
from verl_gsd.run.cluster_lock import accelerators
from verl_gsd.run.compose import resolve
from verl_gsd.run.engines import engine_of
from verl_gsd.scalars import is_whole

#: Data-parallel workers, the smallest number with which gradients and weights travel between workers.
WORKERS = 2
#: Prompts per step if a step has one update. In a smaller step, all groups may be of the same kind.
PROMPTS = 8
#: Steps of the first attempt, which ends with a checkpoint, and of both attempts.
FIRST_STEPS, ALL_STEPS = 2, 3
#: Shortest limit of responses, in tokens. A longer demonstration raises it.
RESPONSE_TOKENS = 16
#: The section of the reward function that a rehearsal configures.
REWARD_FUNCTION = "reward.custom_reward_function"
_SEEDED = "pkg://verl_gsd.run.rehearsal.seeded_rewards"
#: The judge of any extension; a part of a key that is * stands for any name.
_JUDGE = "algorithm.gsd.*.judge"
_REWARD_MODEL = "reward.reward_model"

#: What a rehearsal preserves: title -> keys, each with everything below it.
PRESERVED: dict[str, tuple[str, ...]] = {
    "estimator": ("algorithm.adv_estimator", "algorithm.gamma", "algorithm.lam", "algorithm.norm_adv_by_std_in_grpo"),
    "stages": ("algorithm.gsd",),
    "loss": (
        "actor_rollout_ref.actor.policy_loss",
        "actor_rollout_ref.actor.loss_agg_mode",
        "actor_rollout_ref.actor.clip_ratio",
        "actor_rollout_ref.actor.clip_ratio_low",
        "actor_rollout_ref.actor.clip_ratio_high",
        "actor_rollout_ref.actor.entropy_coeff",
        "actor_rollout_ref.actor.optim",
    ),
    "trainer mode": ("trainer.v1", "trainer.use_v1"),
    "filters": ("algorithm.filter_groups", "algorithm.rollout_correction"),
    "KL terms": (
        "actor_rollout_ref.actor.use_kl_loss",
        "actor_rollout_ref.actor.kl_loss_coef",
        "actor_rollout_ref.actor.kl_loss_type",
        "algorithm.use_kl_in_reward",
        "algorithm.kl_ctrl",
        "algorithm.kl_penalty",
    ),
    "LoRA": (
        "actor_rollout_ref.model.lora_rank",
        "actor_rollout_ref.model.lora_alpha",
        "actor_rollout_ref.model.target_modules",
        "actor_rollout_ref.model.exclude_modules",
    ),
    "responses per prompt": ("actor_rollout_ref.rollout.n", "actor_rollout_ref.rollout.temperature"),
    "chat template": ("actor_rollout_ref.model.custom_chat_template", "data.apply_chat_template_kwargs"),
    "dataset class": ("data.custom_cls.path", "data.custom_cls.name"),
    "data columns": ("data.prompt_key", "data.reward_fn_key", "data.filter_overlong_prompts", "data.truncation"),
    "reward manager": ("reward.reward_manager",),
    "validation": ("actor_rollout_ref.rollout.val_kwargs", "trainer.val_before_train"),
    "checkpoint": ("actor_rollout_ref.actor.checkpoint", "trainer.max_actor_ckpt_to_keep"),
}
#: Keys below those of ``PRESERVED`` that a rehearsal replaces all the same.
EXCEPTIONS = (
    "algorithm.gsd.poll_interval",
    f"{_JUDGE}.base_url",
    f"{_JUDGE}.model",
    f"{_JUDGE}.cache",
    "actor_rollout_ref.actor.optim.total_training_steps",
)

_WEIGHTS = "the weights are those of a tiny random model"
_LENGTHS = "prompts and responses are short"
_PROMPTS = "a step has few prompts, and as many updates as before"
_DEVICE = f"the device is a CPU, with {WORKERS} workers and float32"
_STEPS = f"{FIRST_STEPS} steps, a checkpoint, a resume and one more step"
_REWARDS = "the real reward function runs first, then seeded scores replace its score"
_FILES = "files are in the rehearsal's folder"
_SERVERS = "a local stand-in answers in place of a model"
#: Key -> why a rehearsal replaces it. A key stands for everything below it; the longest key wins.
REASONS = {
    "hardware": _DEVICE,
    "ray_kwargs": _DEVICE,
    "transfer_queue": _DEVICE,
    "trainer.device": _DEVICE,
    "trainer.nnodes": _DEVICE,
    "trainer.n_gpus_per_node": _DEVICE,
    "algorithm.gsd.poll_interval": _DEVICE,
    "actor_rollout_ref": _DEVICE,
    "critic": _DEVICE,
    "data.dataloader_num_workers": _DEVICE,
    "reward.num_workers": _DEVICE,
    "distillation": _DEVICE,
    "distillation.teacher_models.teacher_model.inference.prompt_length": _LENGTHS,
    "distillation.teacher_models.teacher_model.inference.response_length": _LENGTHS,
    "actor_rollout_ref.model.path": _WEIGHTS,
    "actor_rollout_ref.rollout.prometheus.served_model_name": _WEIGHTS,
    "actor_rollout_ref.model.hf_config_path": _WEIGHTS,
    "actor_rollout_ref.model.tokenizer_path": _WEIGHTS,
    "actor_rollout_ref.model.lora_adapter_path": _WEIGHTS,
    "critic.model.path": _WEIGHTS,
    "critic.model.tokenizer_path": _WEIGHTS,
    "data.train_files": "the first rows of the data, with all columns",
    "data.val_files": "the first rows of the data, with all columns",
    "data.train_max_samples": _PROMPTS,
    "data.val_max_samples": _PROMPTS,
    "data.val_batch_size": _PROMPTS,
    "data.train_batch_size": _PROMPTS,
    "data.gen_batch_size": _PROMPTS,
    "actor_rollout_ref.actor.ppo_mini_batch_size": _PROMPTS,
    "critic.ppo_mini_batch_size": _PROMPTS,
    "data.max_prompt_length": _LENGTHS,
    "data.max_response_length": _LENGTHS,
    "actor_rollout_ref.rollout.prompt_length": _LENGTHS,
    "actor_rollout_ref.rollout.response_length": _LENGTHS,
    "actor_rollout_ref.rollout.max_model_len": _LENGTHS,
    "actor_rollout_ref.actor.loss_scale_factor": _LENGTHS,
    "critic.loss_scale_factor": _LENGTHS,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": _LENGTHS,
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu": _LENGTHS,
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu": _LENGTHS,
    "reward.reward_model.rollout": _DEVICE,
    "reward.reward_model.rollout.prompt_length": _LENGTHS,
    "reward.reward_model.rollout.response_length": _LENGTHS,
    **dict.fromkeys(("reward.reward_kwargs", "reward_model.reward_kwargs"), _LENGTHS),
    "trainer.total_epochs": _STEPS,
    "trainer.total_training_steps": _STEPS,
    "actor_rollout_ref.actor.optim.total_training_steps": _STEPS,
    "critic.optim.total_training_steps": _STEPS,
    "trainer.save_freq": _STEPS,
    "trainer.test_freq": _STEPS,
    "trainer.resume_mode": _STEPS,
    "trainer.resume_from_path": _STEPS,
    REWARD_FUNCTION: _REWARDS,
    "custom_reward_function": _REWARDS,
    "trainer.default_local_dir": _FILES,
    "trainer.default_hdfs_dir": _FILES,
    "trainer.project_name": _FILES,
    "trainer.experiment_name": _FILES,
    "actor_rollout_ref.rollout.trace.experiment_name": _FILES,
    "trainer.rollout_data_dir": _FILES,
    "trainer.validation_data_dir": _FILES,
    "trainer.logger": "metrics are written to a file only",
    "global_profiler": _FILES,
    _JUDGE: _SERVERS,
    _REWARD_MODEL: _SERVERS,
}


@dataclass(frozen=True)
class Sizes:
    """The batch of a rehearsal.

    Attributes:
        updates: updates per step, as in the original run.
        mini_batch: prompts per update.
        workers: data-parallel workers.
    """

    updates: int
    mini_batch: int
    workers: int

    @property
    def batch(self) -> int:
        """Prompts per step."""
        return self.updates * self.mini_batch


@dataclass(frozen=True)
class Files:
    """What a rehearsal made for its run.

    Attributes:
        run: the run directory.
        model: folder of the tiny model, with its tokenizer.
        train, val: data files. A dataset class of the user reads the run's own files.
        train_rows: number of rows for training.
        train_samples, val_samples: limits of rows for a dataset class of the user; -1 for none.
        prompt_tokens, response_tokens: the longest prompt, and the limit of responses.
        rewards: the file to which the seeded reward function appends one line per call.
        accepted_score: the lowest score of an accepted reference; None if none was accepted.
        seed: of the seeded scores.
        judge_url: URL of the judge's stand-in; None if the run asks no judge over HTTP.
        judge_cache: the file for the judge's scores.
        reward_model: folder of the tiny reward model; None if the run has no reward model.
    """

    run: Path
    model: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    train_rows: int
    prompt_tokens: int
    response_tokens: int
    rewards: Path
    accepted_score: float | None = None
    seed: int = 0
    judge_url: str | None = None
    judge_cache: Path | None = None
    reward_model: Path | None = None
    train_samples: int = -1
    val_samples: int = -1


@dataclass(frozen=True)
class Replacement:
    """One key whose value differs in the rehearsal. None also stands for a key that does not exist."""

    key: str
    before: Any
    after: Any
    reason: str


def check_rehearsable(config: DictConfig) -> None:
    """Raise a ConfigError for a run of which a CPU cannot run what a rehearsal should show."""
    if engine_of(config) != "dp":
        raise ConfigError(
            f"model_engine={engine_of(config)}: a rehearsal runs on a CPU, which supports only FSDP2. Rehearse with "
            "model_engine=dp, or start the run without --rehearse."
        )
    if config.trainer.v1.trainer_mode in ("separate_async", OUR_MODES["separate_async"]):
        raise ConfigError(
            f"trainer.v1.trainer_mode={config.trainer.v1.trainer_mode}: its weights travel over NCCL, which a CPU does "
            f"not have. Rehearse with trainer.v1.trainer_mode={OUR_MODES['colocate_async']}, or start the run without "
            "--rehearse."
        )


def sizes_of(config: DictConfig) -> Sizes:
    """The batch of a rehearsal of the resolved ``config``, with as many updates per step."""
    batch, mini, n = (
        OmegaConf.select(config, key)
        for key in (
            "data.train_batch_size",
            "actor_rollout_ref.actor.ppo_mini_batch_size",
            "actor_rollout_ref.rollout.n",
        )
    )
    updates = max(1, batch // mini)
    mini_batch = min(mini, max(WORKERS, PROMPTS // updates))
    return Sizes(updates, mini_batch, WORKERS if mini_batch * n % WORKERS == 0 else 1)


def judge_keys(config: DictConfig) -> list[str]:
    """The sections of the judges that the run asks over HTTP, for example ``algorithm.gsd.NAME.judge``."""
    keys = [f"algorithm.gsd.{name}.judge" for name in OmegaConf.select(config, "algorithm.gsd") or {}]
    return [key for key in keys if OmegaConf.select(config, f"{key}.scorer") == "openai"]


def has_reward_model(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, f"{_REWARD_MODEL}.enable"))


def has_reward_function(config: DictConfig) -> bool:
    """Whether a function computes rewards: the user's, or verl's own for known data sources."""
    return OmegaConf.select(config, f"{REWARD_FUNCTION}.path") is not None or not has_reward_model(config)


def rehearsal_config(composed: DictConfig, files: Files) -> tuple[DictConfig, list[Replacement]]:
    """The resolved config of a rehearsal, and everything in which it differs from the run's.

    Args:
        composed: the run's config with unresolved interpolations. It stays unchanged.
        files: what the rehearsal made.
    """
    original = resolve(composed)
    sizes = sizes_of(original)
    overlay = groups.load("hardware", "cpu")
    base = composed.copy()
    OmegaConf.set_struct(base, False)
    with open_dict(base):
        base.hardware = {}
        config = OmegaConf.merge(base, overlay)
    assert isinstance(config, DictConfig)
    for key, value in _replacements(original, files, sizes).items():
        OmegaConf.update(config, key, value, force_add=True)
    resolved = resolve(config)
    resolved.ray_kwargs.ray_init.num_gpus = accelerators(resolved)
    OmegaConf.set_struct(resolved, True)
    return resolved, differences(original, resolved)


def _replacements(original: DictConfig, files: Files, sizes: Sizes) -> dict[str, Any]:
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    tokens = files.prompt_tokens + files.response_tokens
    before = original.data.max_prompt_length + original.data.max_response_length
    # As many whole sequences per micro-batch as before: it decides whether groups fit into micro-batches.
    room = -(-original.actor_rollout_ref.actor.ppo_max_token_len_per_gpu * tokens // before)
    values: dict[str, Any] = {
        "trainer.n_gpus_per_node": sizes.workers,
        "trainer.default_local_dir": str(files.run),
        "trainer.default_hdfs_dir": None,
        "trainer.experiment_name": files.run.parent.name,
        "trainer.logger": ["console", "file"],
        "trainer.total_epochs": 1_000,
        "trainer.total_training_steps": FIRST_STEPS,
        "trainer.save_freq": FIRST_STEPS,
        "trainer.test_freq": FIRST_STEPS,
        "trainer.resume_mode": "auto",
        "trainer.resume_from_path": None,
        "data.train_max_samples": files.train_samples,
        "data.val_max_samples": files.val_samples,
        "data.train_batch_size": sizes.batch,
        "data.max_prompt_length": files.prompt_tokens,
        "data.max_response_length": files.response_tokens,
        f"{actor}.ppo_mini_batch_size": sizes.mini_batch,
        f"{actor}.ppo_max_token_len_per_gpu": max(room, tokens),
        f"{rollout}.max_model_len": None,
        "actor_rollout_ref.model.path": str(files.model),
        "actor_rollout_ref.model.use_fused_kernels": False,
        **_shorter_overlong_buffer(original, files.response_tokens),
        **dict.fromkeys(_present(original, "actor_rollout_ref.model", _OTHER_FOLDERS)),
        **dict.fromkeys(_present(original, "trainer", ("rollout_data_dir", "validation_data_dir"))),
        **dict.fromkeys(_present(original, rollout, ("data_parallel_size", "pipeline_model_parallel_size")), 1),
    }
    if not has_own_dataset(original):
        values |= {"data.train_files": list(files.train), "data.val_files": list(files.val)}
    for role in (actor, "actor_rollout_ref.ref"):
        values |= dict.fromkeys(_present(original, role, ("ulysses_sequence_parallel_size",)), 1)
        engine = f"{role}.fsdp_config"
        values |= dict.fromkeys(_present(original, engine, ("ulysses_sequence_parallel_size",)), 1)
        values |= dict.fromkeys(_present(original, engine, _OFFLOADS), False)
        values |= dict.fromkeys(_present(original, engine, ("use_torch_compile",)), False)
    rows = sizes.mini_batch * original.actor_rollout_ref.rollout.n // sizes.workers
    for key in (
        f"{actor}.ppo_micro_batch_size_per_gpu",
        f"{rollout}.log_prob_micro_batch_size_per_gpu",
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
    ):
        if is_whole(size := OmegaConf.select(original, key), 1):
            values[key] = max(divisor for divisor in range(1, min(rows, size) + 1) if rows % divisor == 0)
    for judge in judge_keys(original):
        values |= {f"{judge}.base_url": files.judge_url, f"{judge}.cache": str(files.judge_cache)}
        values[f"{judge}.model"] = None
    if has_reward_model(original):
        values |= {
            f"{_REWARD_MODEL}.model_path": str(files.reward_model),
            f"{_REWARD_MODEL}.nnodes": 1,
            f"{_REWARD_MODEL}.n_gpus_per_node": 1,
            f"{_REWARD_MODEL}.rollout.prompt_length": 2 * tokens + 64,  # in the tokens of another tokenizer
        }
        cpu = groups.load("hardware", "cpu").actor_rollout_ref.rollout
        for key in ("name", "dtype", "enforce_eager", "enable_sleep_mode", "free_cache_engine", "engine_kwargs"):
            values[f"{_REWARD_MODEL}.rollout.{key}"] = cpu[key]
        values[f"{_REWARD_MODEL}.rollout.tensor_model_parallel_size"] = 1
        values[f"{_REWARD_MODEL}.rollout.gpu_memory_utilization"] = cpu.gpu_memory_utilization
    if has_reward_function(original):
        function = original.reward.custom_reward_function
        values |= {
            f"{REWARD_FUNCTION}.path": _SEEDED,
            f"{REWARD_FUNCTION}.name": "compute_score",
            f"{REWARD_FUNCTION}.reward_kwargs": {
                "rehearsal": {
                    "path": function.path,
                    "name": function.name,
                    "kwargs": OmegaConf.to_container(OmegaConf.create(function.get("reward_kwargs") or {})),
                    "seed": files.seed,
                    "accepted_score": files.accepted_score,
                    "log": str(files.rewards),
                }
            },
        }
    return values


def _shorter_overlong_buffer(original: DictConfig, response_tokens: int) -> dict[str, int]:
    """The lengths of DAPO's penalty on long responses, so that it starts in the same part of a response as before.

    verl does not derive them from the limit of responses, and fails if the buffer is longer than that limit. verl also
    accepts its older section ``reward_model``.
    """
    limit = original.data.max_response_length
    names = ("max_resp_len", "overlong_buffer_cfg.len")
    sizes = {
        key: OmegaConf.select(original, key)
        for section in ("reward", "reward_model")
        for key in (f"{section}.reward_kwargs.{name}" for name in names)
    }
    return {key: max(1, round(size * response_tokens / limit)) for key, size in sizes.items() if is_whole(size, 1)}


_OTHER_FOLDERS = ("hf_config_path", "tokenizer_path", "lora_adapter_path")
_OFFLOADS = ("offload_policy", "param_offload", "optimizer_offload")


def _present(config: DictConfig, section: str, names: Sequence[str]) -> list[str]:
    """The dotted keys among ``names`` of a section that have a value other than null."""
    keys = [f"{section}.{name}" for name in names]
    return [key for key in keys if OmegaConf.select(config, key) is not None]


def differences(original: DictConfig, rehearsal: DictConfig) -> list[Replacement]:
    """The keys whose values differ between two resolved configs, with the reasons."""
    before, after = (dict(_leaves(config)) for config in (original, rehearsal))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [Replacement(key, before.get(key), after.get(key), reason_for(key)) for key in keys]


def reason_for(key: str) -> str:
    """Why a rehearsal replaces ``key``.

    Raises:
        ValueError: no reason is known, which is a mistake in this module.
    """
    known = longest(key, REASONS)
    if known is None:
        raise ValueError(f"{key}: a rehearsal replaces this key without a reason. This is a bug of verl-gsd.")
    return REASONS[known]


def longest(key: str, keys: Sequence[str] | Mapping[str, Any]) -> str | None:
    """The longest of ``keys`` that is ``key`` or a section that contains it; None if there is none."""
    return max((other for other in keys if _contains(other, key)), key=len, default=None)


def _contains(section: str, key: str) -> bool:
    parts, names = section.split("."), key.split(".")
    return len(parts) <= len(names) and all(part in ("*", name) for part, name in zip(parts, names, strict=False))


def _leaves(config: DictConfig) -> list[tuple[str, Any]]:
    return list(dotted_leaves(OmegaConf.to_container(config)))
