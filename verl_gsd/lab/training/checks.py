"""Rejects what the laboratory cannot honour, before it trains or studies a policy.

A config differs from verl's own config with ``hardware=cpu`` in some keys, which the command line and the config groups
set. The laboratory reads some of them (``HONOURED``), and others cannot change its results (``WITHOUT_EFFECT``). The
groups set a few keys for the stack that a user must not set here (``ONLY_BY_GROUPS``). Every other difference is an
error, so that no setting is ignored in silence.

A study trains nothing, and reads fewer keys (``STUDIED``). The groups may set the others, but not the command line.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors import safe_open

from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.planning.memory import SHAPES
from verl_gsd.run import compose
from verl_gsd.run.checks.validate import (
    OF_THIS_ENVIRONMENT,
    check_batch_size,
    check_disk_space,
    made_on_first_use,
    raise_problems,
    validate,
)
from verl_gsd.run.compose import Line, resolve
from verl_gsd.scalars import as_yaml, is_whole

_ACTOR, _ROLLOUT, _MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
#: verl imports the modules that this variable names.
_MODULES = "VERL_USE_EXTERNAL_MODULES"
_OTHERWISE = "or train on the stack with verl-gsd train"

#: Keys and sections that the laboratory reads -> what reads them.
HONOURED = {
    "algorithm.adv_estimator": "our estimator",
    "algorithm.gsd": "the chain and the extensions",
    "algorithm.gsd.limits.failed_rewards": "the monitor of rewards",
    "algorithm.use_kl_in_reward": "the trainer, with verl's penalty",
    "algorithm.kl_penalty": "the same",
    "algorithm.kl_ctrl": "the same",
    "algorithm.filter_groups": "the buffer, by verl's rules",
    "data.train_files": "verl's dataset",
    "data.val_files": "the same",
    "data.train_max_samples": "the same",
    "data.val_max_samples": "the same",
    "data.prompt_key": "the same",
    "data.filter_overlong_prompts": "the same",
    "data.custom_cls": "the same",
    "data.seed": "verl's data loader",
    "data.shuffle": "the same",
    "data.train_batch_size": "the trainer",
    "data.max_prompt_length": "the encoder of prompts, which rejects longer ones",
    "data.max_response_length": "the sampler of responses",
    "data.apply_chat_template_kwargs": "the encoder of prompts",
    "reward.custom_reward_function": "the verifier",
    f"{_MODEL}.path": "the engine",
    f"{_MODEL}.tokenizer_path": "verl's model config",
    f"{_MODEL}.custom_chat_template": "the same",
    f"{_MODEL}.external_lib": "the same",
    f"{_ACTOR}.ppo_mini_batch_size": "verl's worker",
    f"{_ACTOR}.ppo_epochs": "the same",
    f"{_ACTOR}.shuffle": "the same",
    f"{_ACTOR}.data_loader_seed": "the same",
    f"{_ACTOR}.use_dynamic_bsz": "the engine, which splits mini-batches as verl's engines do",
    f"{_ACTOR}.ppo_max_token_len_per_gpu": "the same",
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": "the same",
    f"{_ACTOR}.clip_ratio": "the policy loss",
    f"{_ACTOR}.clip_ratio_low": "the same",
    f"{_ACTOR}.clip_ratio_high": "the same",
    f"{_ACTOR}.clip_ratio_c": "the same",
    f"{_ACTOR}.tau_pos": "the same",
    f"{_ACTOR}.tau_neg": "the same",
    f"{_ACTOR}.policy_loss": "the same",
    f"{_ACTOR}.loss_agg_mode": "the same",
    f"{_ACTOR}.loss_scale_factor": "the same",
    f"{_ACTOR}.entropy_coeff": "the same",
    f"{_ACTOR}.calculate_entropy": "the same",
    f"{_ACTOR}.use_kl_loss": "the same",
    f"{_ACTOR}.kl_loss_coef": "the same",
    f"{_ACTOR}.kl_loss_type": "the same",
    f"{_ACTOR}.optim": "the engine",
    f"{_ROLLOUT}.n": "the trainer",
    f"{_ROLLOUT}.seed": "the sampler of responses",
    f"{_ROLLOUT}.temperature": "the same",
    f"{_ROLLOUT}.top_k": "the same",
    f"{_ROLLOUT}.top_p": "the same",
    f"{_ROLLOUT}.val_kwargs": "the same",
    "trainer.total_epochs": "the trainer",
    "trainer.total_training_steps": "the same",
    "trainer.test_freq": "the same",
    "trainer.val_before_train": "the same",
    "trainer.default_local_dir": "the same",
    "trainer.v1.trainer_mode": "the checks: the trainer has the steps of gsd_sync",
}

#: Keys and sections that a study reads -> what reads them. It also reads those of its own algorithm.
STUDIED = {
    "data.train_files": "verl's dataset",
    "data.train_max_samples": "the same",
    "data.seed": "the same, for the choice of train_max_samples",
    "data.shuffle": "the same, for the choice of train_max_samples",
    "data.prompt_key": "the same",
    "data.filter_overlong_prompts": "the same",
    "data.custom_cls": "the same",
    "data.max_prompt_length": "the encoder of prompts, which rejects longer ones",
    "data.max_response_length": "the sampler of responses",
    "data.apply_chat_template_kwargs": "the encoder of prompts",
    "reward.custom_reward_function": "the verifier",
    f"{_MODEL}.path": "the study, without --model",
    f"{_ROLLOUT}.n": "the study",
    f"{_ROLLOUT}.temperature": "the sampler of responses",
    f"{_ROLLOUT}.top_k": "the same",
    f"{_ROLLOUT}.top_p": "the same",
}

_SPEED = "it changes speed or memory on the stack"
_PROCESSES = "it is a number of processes on the stack"
#: Keys and sections that cannot change a result -> why.
WITHOUT_EFFECT = {
    f"{_MODEL}.use_remove_padding": _SPEED,
    f"{_MODEL}.enable_gradient_checkpointing": _SPEED,
    f"{_MODEL}.enable_activation_offload": _SPEED,
    f"{_ACTOR}.use_torch_compile": _SPEED,
    **{
        f"actor_rollout_ref.{role}.fsdp_config.{name}": _SPEED
        for role in ("actor", "ref")
        for name in (
            "param_offload",
            "optimizer_offload",
            "offload_policy",
            "reshard_after_forward",
            "forward_prefetch",
        )
    },
    **{
        f"actor_rollout_ref.{role}.{name}": "log-probabilities do not depend on how rows are divided"
        for role in ("rollout", "ref")
        for name in (
            "log_prob_micro_batch_size",
            "log_prob_micro_batch_size_per_gpu",
            "log_prob_use_dynamic_bsz",
            "log_prob_max_token_len_per_gpu",
        )
    },
    f"{_ROLLOUT}.agent.num_workers": _PROCESSES,
    "reward.num_workers": _PROCESSES,
    "data.dataloader_num_workers": _PROCESSES,
    "data.filter_overlong_prompts_workers": _PROCESSES,
    "data.val_batch_size": "every prompt is validated by itself",
    "trainer.project_name": "it is a name",
    "trainer.experiment_name": "it is a name",
    "task": "other keys refer to it",
    "recipe": "other keys refer to it",
    "hardware": "it describes the stack",
}

_NO_CHECKPOINTS = "saves no checkpoints, because a run takes seconds. An interrupted run starts again"
#: Keys and sections that groups may set for the stack, but not the command line -> what the laboratory does instead.
ONLY_BY_GROUPS = {
    "trainer.save_freq": _NO_CHECKPOINTS,
    "trainer.max_actor_ckpt_to_keep": _NO_CHECKPOINTS,
    "algorithm.gsd.state": _NO_CHECKPOINTS,
    "algorithm.gsd.limits.quiet_seconds": "does not watch a run, which has one process",
    "algorithm.gsd.limits.reward_seconds": "calls the reward function in one process, and cannot end a call",
    "algorithm.gsd.poll_interval": "has no queue to look into",
    "algorithm.norm_adv_by_std_in_grpo": "has no other estimator than gsd",
    f"{_ROLLOUT}.calculate_log_probs": "has one model, which both samples and trains",
    f"{_ACTOR}.grad_clip": f"reads {_ACTOR}.optim.clip_grad instead",
    "reward.reward_model": "has no reward models",
}

#: Keys with the only value that the laboratory accepts -> (the value, what the laboratory does).
REQUIRED = {
    "model_engine": ("dp", "has its own training engine"),
    "algorithm.adv_estimator": ("gsd", "has no other estimator"),
    "trainer.v1.trainer_mode": ("gsd_sync", "makes the steps of the synchronous trainer"),
    "reward.reward_model.enable": (False, "has no reward models, and no judge that scores with one"),
    "reward.reward_manager.name": ("naive", "calls the reward function itself"),
    "trainer.resume_mode": ("auto", _NO_CHECKPOINTS),
}

#: Sections with settings that are rejected -> what the laboratory does. The longest name that fits counts.
_REASONS = {
    "": "does not read this key",
    "critic": "has no critic",
    "trainer.critic_warmup": "has no critic",
    "trainer": "does not read this key",
    "trainer.logger": "writes only the files of the run",
    "trainer.nnodes": "trains in one process on one core",
    "trainer.n_gpus_per_node": "trains in one process on one core",
    "trainer.device": "trains in one process on one core",
    "trainer.v1": "makes the steps of the synchronous trainer, with verl's own order of prompts",
    **{
        f"trainer.{name}": _NO_CHECKPOINTS
        for name in (
            "resume_from_path",
            "checkpoint_callback_class",
            "default_hdfs_dir",
            "del_local_ckpt_after_load",
            "max_critic_ckpt_to_keep",
        )
    },
    f"{_ACTOR}.checkpoint": _NO_CHECKPOINTS,
    f"{_ACTOR}.strategy": "has its own training engine",
    f"{_ACTOR}.fsdp_config": "trains in one process, in float32 and without FSDP",
    f"{_ACTOR}.router_replay": "has no routes to replay",
    f"{_MODEL}": "trains all weights of the model as they are, in float32",
    f"{_ROLLOUT}": "samples responses itself, without vLLM",
    f"{_ROLLOUT}.multi_turn": "generates one response per prompt, without tools and agent loops",
    f"{_ROLLOUT}.agent": "generates one response per prompt, without tools and agent loops",
    "data": "reads only text prompts, in verl's order",
    "data.truncation": "does not truncate prompts",
    "data.gen_batch_size": "fetches as many prompts at a time as verl's synchronous trainer",
    "data.tool_config_path": "generates one response per prompt, without tools and agent loops",
    "data.function_tool_path": "generates one response per prompt, without tools and agent loops",
    "reward": "calls the reward function itself, as verl's reward manager naive does",
    "algorithm.rollout_correction": "has one model, which both samples and trains, so that nothing has to be corrected",
    "distillation": "has no distillation",
    "ray_kwargs": "does not start Ray",
    "transfer_queue": "has no queue",
}

#: The choices of groups with which every config of the laboratory is compared.
_BASE = {"hardware": "cpu", "logger": "console"}

#: Checks of the stack that do not concern the laboratory: vLLM's build, flash-attn, and room for checkpoints and Ray.
_LEFT_OUT = (*OF_THIS_ENVIRONMENT, check_disk_space)

#: Longest time that a step may take, in seconds. The embedded task needs a fraction of a second.
LONGEST_STEP_S = 60.0
#: What to set instead of a smaller model.
_SMALLER_STEP = f"set a smaller data.train_batch_size or data.max_response_length, {_OTHERWISE}"
_SMALLER_STUDY = f"or set a smaller {_ROLLOUT}.n or data.max_response_length"


def parse_lab_line(words: Sequence[str]) -> Line:
    """The line with ``hardware=cpu``.

    Raises:
        ConfigError: the line is wrong, or has other hardware.
    """
    line = compose.parse_line(["hardware=cpu", *words])
    if line.trust is not None:
        raise ConfigError(f"trust={line.trust}: the laboratory runs nothing from a folder. Remove it.")
    if line.choices["hardware"] != "cpu":
        raise ConfigError(
            f"hardware={line.choices['hardware']}: the laboratory trains on one core. Remove it, {_OTHERWISE}."
        )
    return line


def check_lab(composed: DictConfig, line: Line) -> None:
    """Check a run of the laboratory without importing verl.

    Args:
        composed: the config of ``line`` with ``hardware=cpu``. Its interpolations are unresolved.

    Raises:
        ConfigError: lists all problems.
    """
    config = resolve(composed)
    problems = [*_check_external_modules(), *unsupported(composed, line), *_check_seed(config)]
    raise_problems([*problems, *check_model_size(config), *check_dropout(config)])
    validate(config, line, leave_out=_LEFT_OUT)


def check_study(composed: DictConfig, line: Line, *, reads: Sequence[str] = (), has_model: bool = False) -> None:
    """Check a study of a policy without importing verl.

    Args:
        composed: see ``check_lab``.
        reads: keys of ``algorithm`` that this study reads.
        has_model: whether the command has the option --model.

    Raises:
        ConfigError: lists all problems.
    """
    config = resolve(composed)
    problems = [*_check_external_modules(), *unsupported(composed, line)]
    problems += not_studied(composed, line, reads=reads, has_model=has_model)
    raise_problems([*problems, *check_model_size(config, _SMALLER_STUDY)])
    validate(config, line, leave_out=(*_LEFT_OUT, check_batch_size))  # a study has no batches


def not_studied(composed: DictConfig, line: Line, *, reads: Sequence[str], has_model: bool) -> Iterator[str]:
    """Yield one sentence per key on the line that training reads and a study does not.

    Args:
        composed, reads, has_model: see ``check_study``.
    """
    of_algorithm = dict.fromkeys(reads, "the study")
    for key in line.leaf_keys:
        value = as_yaml(_plain(composed, key))
        if key == f"{_ROLLOUT}.seed":
            yield f"{key}={value}: --seed is the seed of this command. Remove the key, and use --seed."
        elif key == f"{_MODEL}.path" and has_model:
            yield f"{key}={value}: --model sets another policy. Remove the key, or --model."
        elif (
            _entry(HONOURED, key) is not None
            and _entry(STUDIED | of_algorithm, key) is None
            and _entry(ONLY_BY_GROUPS, key) is None
            and key not in REQUIRED
        ):
            yield f"{key}={value}: this command trains nothing, and does not read this key. Remove it."


def _check_external_modules() -> Iterator[str]:
    for name in filter(None, os.environ.get(_MODULES, "").split(",")):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            yield f"{_MODULES}={name}: there is no such module. Add its folder to PYTHONPATH."


def _check_seed(config: DictConfig) -> Iterator[str]:
    seed = config.actor_rollout_ref.rollout.seed
    if seed is not None and not (is_whole(seed, 0) and seed < 2**32):
        yield f"{_ROLLOUT}.seed={seed}: not a seed. Set it to a whole number from 0 to {2**32 - 1}."


def unsupported(composed: DictConfig, line: Line) -> Iterator[str]:
    """Yield one sentence per setting that the laboratory does not honour.

    Args:
        composed: see ``check_lab``.
    """
    for key, (only, does) in REQUIRED.items():
        if (value := _plain(composed, key)) != only:
            yield f"{key}={as_yaml(value)}: the laboratory {does}. Set {key}={as_yaml(only)}, {_OTHERWISE}."
            if key == "model_engine":  # another engine has other keys
                return
    for key in _differences(composed):
        if key in REQUIRED:
            continue
        value = as_yaml(_plain(composed, key))
        if (reason := _entry(ONLY_BY_GROUPS, key)) is not None:
            if line.sets(key):
                yield f"{key}={value}: the laboratory {reason}. Remove it."
        elif _entry(HONOURED, key) is None and _entry(WITHOUT_EFFECT, key) is None:
            does = _entry(_REASONS, key) or _REASONS[""]
            remedy = "Remove it" if line.sets(key) else f"Leave out {_source(key, line)}, which sets it"
            yield f"{key}={value}: the laboratory {does}. {remedy}, {_OTHERWISE}."


def _differences(composed: DictConfig) -> list[str]:
    """The keys that something sets to another value than verl's config with ``hardware=cpu`` has.

    A key whose interpolation is verl's own is not one of them: the keys that it refers to are.
    """
    base = _base()
    return [key for key in _unequal(base, composed) if _plain(base, key) != _plain(composed, key)]


@functools.cache
def _base() -> DictConfig:
    return compose.compose_config(Line(_BASE, ()))


def _unequal(first: DictConfig, second: DictConfig) -> list[str]:
    """The keys whose values differ between two configs. Unresolved interpolations are compared as texts."""
    before, after = (dict(dotted_leaves(OmegaConf.to_container(config))) for config in (first, second))
    return [key for key in {**before, **after} if before.get(key) != after.get(key)]


def _plain(config: DictConfig, key: str) -> Any:
    """The resolved value of a key; None if there is no such key."""
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _entry(table: Mapping[str, str], key: str) -> str | None:
    """The value of the longest name in ``table`` that is ``key`` or a section that contains it."""
    names = key.split(".")
    sections = (".".join(names[:count]) for count in range(len(names), 0, -1))
    return next((table[section] for section in sections if section in table), None)


def _source(key: str, line: Line) -> str:
    """The group that sets a key, as on the command line."""
    words = (
        f"{group}={name}"
        for group, name in reversed(line.choices.items())
        if key in _unequal(_base(), compose.compose_config(Line(_BASE | {group: name}, ())))
    )
    return next(words, "the setting")


def check_model_size(config: DictConfig, smaller: str = _SMALLER_STEP) -> Iterator[str]:
    """Report a model with which a step would take longer than ``LONGEST_STEP_S``, with the estimate.

    Args:
        smaller: what to set instead of a smaller model.
    """
    path = str(config.actor_rollout_ref.model.path)
    sizes = (
        config.data.train_batch_size,
        config.data.max_prompt_length,
        config.data.max_response_length,
        config.actor_rollout_ref.rollout.n,
        config.actor_rollout_ref.actor.ppo_epochs,
    )
    if made_on_first_use(config)(path) or not all(is_whole(size, 1) for size in sizes):
        return  # other checks report sizes that are not whole numbers
    parameters = parameters_of(path)
    if parameters is None:
        yield (
            f"{_MODEL}.path={path}: the size of this model is not known here. Download it, and set the key to the "
            "folder with its config.json and *.safetensors."
        )
        return
    seconds = step_flops(config, parameters) / flops_per_second()
    if seconds > LONGEST_STEP_S:
        data, n = config.data, config.actor_rollout_ref.rollout.n
        yield (
            f"{_MODEL}.path={path}: {parameters / 1e6:,.0f}M parameters. A step of {data.train_batch_size} x {n} "
            f"responses of up to {data.max_response_length} tokens would take about {_duration(seconds)} on one core "
            f"here. Set the key to a smaller model, {smaller}."
        )


def check_dropout(config: DictConfig) -> Iterator[str]:
    """Report a model with dropout. verl's engine applies it in updates, and the laboratory's engine does not.

    Dropout of whole layers (``layerdrop``) counts, because it is also active in updates and nowhere else.
    """
    from transformers import AutoConfig

    path = str(config.actor_rollout_ref.model.path)
    folder = Path(path).expanduser()
    if not (folder / "config.json").is_file():
        return  # the model of an embedded task, which is made on first use, or one that another check reports
    try:
        # It knows the defaults of fields that the file does not have. Those of GPT-2 are 0.1.
        fields = AutoConfig.from_pretrained(folder, trust_remote_code=False).to_dict()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        yield f"{_MODEL}.path={path}: its config.json cannot be read: {reason} Set the key to another model."
        return
    active = [
        f"{field}={value:g}"
        for field, value in dotted_leaves(fields)
        if "drop" in field.rpartition(".")[2].lower() and type(value) in (int, float) and value > 0
    ]
    if active:
        yield (
            f"{_MODEL}.path={path}: the model has dropout: {', '.join(active)}. verl's engine applies it in updates, "
            f"and the laboratory does not. Set {'this field' if len(active) == 1 else 'these fields'} to 0 in the "
            f"model's config.json, {_OTHERWISE}."
        )


def parameters_of(path: str) -> int | None:
    """The number of parameters of a model in a local folder or of a recipe; None if it is not known."""
    files = sorted(Path(path).expanduser().glob("*.safetensors"))
    if not files:
        return SHAPES[path].parameters if path in SHAPES else None
    count = 0
    for file in files:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- not a dict
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                count += size
    return count


def step_flops(config: DictConfig, parameters: int) -> float:
    """An upper bound of the floating-point operations of a step: every response has the maximum length.

        2 P per token and forward pass, and 4 P per token and backward pass (arXiv 2001.08361, section 2.1)

    Generation is one forward pass, a reference model another, and each epoch of the update a forward and a backward
    pass. The prompt of a group is read once per pass.
    """
    data, actor = config.data, config.actor_rollout_ref.actor
    tokens = data.train_batch_size * (
        data.max_prompt_length + config.actor_rollout_ref.rollout.n * data.max_response_length
    )
    has_reference = actor.use_kl_loss or config.algorithm.use_kl_in_reward
    return parameters * tokens * (2 + 2 * bool(has_reference) + 6 * actor.ppo_epochs)


def flops_per_second() -> float:
    """Floating-point operations per second of one core, measured with products of float32 matrices (0.1 s)."""
    import torch

    size, best = 512, 0.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    matrix = torch.rand(size, size)
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return best


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
