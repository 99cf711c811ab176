"""What can be known to be wrong before Ray starts.

Each check is a function from (config, line) to the problems it sees, and all of them run, so that a user mends a line
once and not once per mistake. ``validate`` knows files and strings and takes no time; ``validate_with_verl`` asks verl,
which takes seconds to import, and so runs in the training process, before it starts Ray.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_gsd.algorithms.settings import DIAL_SETTINGS, dial_settings
from verl_gsd.trainer.config import ConfigError, Line

#: What a run writes at the very least: logs, metrics, Ray's session. Checkpoints come on top.
MINIMUM_FREE_BYTES = 1 << 30
#: Ray refuses to spill objects, and then hangs or fails, above this share of a disk.
FULLEST_DISK = 0.95

_SECRET_NAME = re.compile(r"api_?key|(^|_)(key|token|secret|password|passwd|credentials?)($|_)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|xox[bp]-|AKIA)[A-Za-z0-9_-]{12,}|://[^/@\s]+:[^/@\s]+@")
PLUGIN = "verl_gsd.trainer.plugin"
_REQUIRED_COLUMNS = ("data_source", "prompt", "reward_model")


def validate(config: DictConfig, line: Line) -> None:
    """Raise one ``ConfigError`` that lists every problem found in the resolved ``config``, without importing verl."""
    _raise([problem for check in CHECKS for problem in check(config, line)])


def validate_with_verl(config: DictConfig) -> None:
    """Raise a ``ConfigError`` for a plugin verl did not load, names and settings nobody knows, what verl refuses."""
    _raise(
        list(plugin_absent())
        or [*_unknown_names(config), *_reward_function_missing(config), *_own_keys_unknown(config)]
        or list(_verl_refuses(config))
    )


def _raise(problems: list[str]) -> None:
    if problems:
        raise ConfigError("\n".join(problems))


def _files_exist(config: DictConfig, line: Line) -> Iterator[str]:
    made = _made_on_first_use(config)
    model = str(config.actor_rollout_ref.model.path)
    if _is_local(model) and not made(model) and not (Path(model).expanduser() / "config.json").is_file():
        yield f"actor_rollout_ref.model.path={model}: no model there (no config.json). Write a folder or a hub name."
    for key in ("data.train_files", "data.val_files"):
        for file in _as_list(OmegaConf.select(config, key)):
            if file is None:
                yield f"{key}=null: write one Parquet file or a list of them."
                continue
            path = Path(file).expanduser()
            if made(file):
                continue
            if not path.is_file():
                yield f"{key}={file}: no such file. Write a Parquet file with columns {', '.join(_REQUIRED_COLUMNS)}."
            elif path.suffix == ".parquet":
                try:
                    missing = [c for c in _REQUIRED_COLUMNS if c not in pq.read_schema(path).names]
                except (pa.ArrowException, OSError) as error:
                    yield f"{key}={file}: no Parquet file ({str(error).splitlines()[0]}). Write one that is whole."
                    continue
                if missing:
                    yield f"{key}={file}: no column {', '.join(missing)}. Rename yours to what verl reads."


def _made_on_first_use(config: DictConfig) -> Callable[[str], bool]:
    """Whether a path belongs to the embedded task, which the launcher makes once the rest has been found right."""
    task = config.get("task", {})
    made = ("train.parquet", "test.parquet", "model") if task.get("name") == "arithmetic" else ()
    return lambda path: str(path) in [f"{task.directory}/{name}" for name in made]


def _accelerator_present(config: DictConfig, line: Line) -> Iterator[str]:
    if config.trainer.device == "cpu":
        if os.environ.get("VERL_GSD_CPU") != "1":
            yield "trainer.device=cpu: needs more than the name. Add hardware=cpu, which sets all of it."
        return
    if os.environ.get("RAY_ADDRESS"):
        return
    import torch

    if not (torch.cuda.is_available() or hasattr(torch, "npu")):
        yield (
            f"trainer.device={config.trainer.device}: no accelerator on this machine. Add hardware=cpu, or set "
            "RAY_ADDRESS to a cluster that has one."
        )


def _disk_has_room(config: DictConfig, line: Line) -> Iterator[str]:
    places = {
        "trainer.default_local_dir": Path(config.trainer.default_local_dir),
        "RAY_TMPDIR": ray_folder(),
    }
    if OmegaConf.select(config, "task.directory"):
        places["task.directory"] = Path(config.task.directory)
    for key, place in places.items():
        existing = next(p for p in (place.absolute(), *place.absolute().parents) if p.exists())
        usage = shutil.disk_usage(existing)
        if usage.free < MINIMUM_FREE_BYTES:
            yield f"{key}={place}: {usage.free / 2**30:.2f} GiB free, at least 1 is needed. Free some or move it."
        elif 1 - usage.free / usage.total > FULLEST_DISK:
            yield (
                f"{key}={place}: the disk is {1 - usage.free / usage.total:.0%} full and Ray stops spilling at "
                f"{FULLEST_DISK:.0%}. Free some or move it."
            )


def ray_folder() -> Path:
    """Where Ray writes its session: RAY_TMPDIR, else TMPDIR, else /tmp."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")


def _modes_allowed(config: DictConfig, line: Line) -> Iterator[str]:
    if not config.trainer.use_v1:
        yield "trainer.use_v1=false: verl's old trainer loads none of our modes. Leave it true."
    if "file" not in _as_list(config.trainer.logger):
        yield (
            f"trainer.logger={config.trainer.logger}: without file there is no RUN/metrics, hence no progress and no "
            "result. Write logger=console | tensorboard | wandb, or add file to the list."
        )


def _no_secrets(config: DictConfig, line: Line) -> Iterator[str]:
    """verl prints its whole config and sends it to every logger."""
    written = set(line.keys)
    for key, value in _leaves(config):
        # By name only where a user wrote it: verl's own keys have harmless names such as prompt_key.
        own = key in written or ".env_vars." in key
        named = own and _SECRET_NAME.search(key.rpartition(".")[2]) and not key.startswith("data.")
        if isinstance(value, str) and value and (named or _SECRET_VALUE.search(value)):
            yield f"{key}: looks like a secret, and verl logs its whole config. Export it in the environment instead."


@dataclass(frozen=True)
class _Idle:
    """A key (or everything below it) that has no effect while ``idle`` holds."""

    prefix: str
    idle: Callable[[DictConfig], bool]
    because: str


def _no_reference(config: DictConfig) -> bool:
    return not (config.actor_rollout_ref.actor.use_kl_loss or config.algorithm.use_kl_in_reward)


def _no_kl_loss(config: DictConfig) -> bool:
    return not config.actor_rollout_ref.actor.use_kl_loss


def _no_critic(config: DictConfig) -> bool:
    return not (config.algorithm.adv_estimator == "gae" if config.critic.enable is None else config.critic.enable)


_IDLE_KEYS = (
    _Idle(
        "algorithm.norm_adv_by_std_in_grpo",
        lambda c: c.algorithm.adv_estimator not in ("grpo", "grpo_vectorized", "grpo_passk"),
        "only grpo, grpo_vectorized and grpo_passk read it; write algorithm.gsd.alpha, 1 to divide and 0 not to",
    ),
    *(
        _Idle(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.adv_estimator != "gsd",
            "only the estimator gsd reads it; write algorithm.adv_estimator=gsd",
        )
        for name in DIAL_SETTINGS
    ),
    *(
        _Idle(
            f"algorithm.gsd.{name}",
            lambda c: c.algorithm.gsd.alpha == 0,
            "alpha=0 divides by nothing",
        )
        for name in ("ddof", "eps")
    ),
    _Idle(
        "algorithm.filter_groups.metric",
        lambda c: not c.algorithm.filter_groups.enable,
        "algorithm.filter_groups.enable is false",
    ),
    _Idle(
        "algorithm.filter_groups.max_inflight_gen_batches",
        lambda c: not c.algorithm.filter_groups.enable,
        "algorithm.filter_groups.enable is false",
    ),
    _Idle(
        "algorithm.filter_groups.max_num_gen_batches",
        lambda c: True,
        "verl's V1 replay buffer ignores it; write algorithm.filter_groups.max_inflight_gen_batches",
    ),
    _Idle("algorithm.kl_ctrl", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"),
    _Idle("algorithm.kl_penalty", lambda c: not c.algorithm.use_kl_in_reward, "algorithm.use_kl_in_reward is false"),
    _Idle("algorithm.lam", lambda c: c.algorithm.adv_estimator != "gae", "only the estimator gae reads it"),
    _Idle(
        "algorithm.gsd.poll_interval",
        lambda c: not str(c.trainer.v1.trainer_mode).startswith("gsd_"),
        "only our trainer modes read it; write trainer.v1.trainer_mode=gsd_sync",
    ),
    _Idle("actor_rollout_ref.actor.kl_loss_coef", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    _Idle("actor_rollout_ref.actor.kl_loss_type", _no_kl_loss, "actor_rollout_ref.actor.use_kl_loss is false"),
    _Idle("actor_rollout_ref.ref", _no_reference, "no KL term is on, so there is no reference model"),
    _Idle(
        "actor_rollout_ref.actor.clip_ratio",
        lambda c: (
            c.actor_rollout_ref.actor.clip_ratio_low is not None
            and c.actor_rollout_ref.actor.clip_ratio_high is not None
        ),
        "clip_ratio_low and clip_ratio_high are set and win; write those",
    ),
    _Idle(
        "actor_rollout_ref.actor.loss_scale_factor",
        lambda c: c.actor_rollout_ref.actor.loss_agg_mode != "seq-mean-token-sum-norm",
        "only loss_agg_mode=seq-mean-token-sum-norm reads it",
    ),
    _Idle("critic", _no_critic, "the estimator needs no critic and critic.enable is not true"),
)


def _keys_have_effect(config: DictConfig, line: Line) -> Iterator[str]:
    for key in line.keys:
        for idle in _IDLE_KEYS:
            below = key == idle.prefix or key.startswith(idle.prefix + ".")
            if below and key != "critic.enable" and idle.idle(config):
                yield f"{key}={OmegaConf.select(config, key)} does nothing: {idle.because}."
                break


def _dial_settings_in_range(config: DictConfig, line: Line) -> Iterator[str]:
    if config.algorithm.adv_estimator == "gsd":
        try:
            dial_settings(OmegaConf.select(config, "algorithm.gsd") or {})
        except ValueError as error:
            yield f"algorithm.gsd: {error}"


def _poll_interval_positive(config: DictConfig, line: Line) -> Iterator[str]:
    interval = OmegaConf.select(config, "algorithm.gsd.poll_interval")
    if interval is not None and not (isinstance(interval, int | float) and interval > 0):
        yield f"algorithm.gsd.poll_interval={interval}: write a number of seconds above 0, or null for verl's 2 s."


CHECKS = (
    _modes_allowed,
    _dial_settings_in_range,
    _poll_interval_positive,
    _accelerator_present,
    _files_exist,
    _disk_has_room,
    _no_secrets,
    _keys_have_effect,
)


#: verl's own modes and ours. Asking the registry imports vLLM, so it is asked about other names alone.
_TRAINER_MODES = ("gsd_sync", "sync", "colocate_async", "separate_async")


def plugin_absent() -> Iterator[str]:
    """verl loads plugins on import and swallows what they raise: import it once more for its exception to be seen."""
    importlib.import_module("verl")
    if PLUGIN in sys.modules:
        return
    policy = os.environ.get("VERL_USE_EXTERNAL_PLUGINS", "auto")
    try:
        importlib.import_module(PLUGIN)
    except Exception as error:  # whatever it is, it is what verl hid
        yield f"verl could not load {PLUGIN}: {type(error).__name__}: {error}"
    else:
        yield (
            f"verl did not load {PLUGIN} (VERL_USE_EXTERNAL_PLUGINS={policy}). Install this package where verl is, and "
            "leave that variable unset or let it name verl_gsd."
        )


def _unknown_names(config: DictConfig) -> Iterator[str]:
    """Names that verl would only look up in a worker."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.utils.tracking import Tracking

    mode = config.trainer.v1.trainer_mode
    modes: Collection[str] = _TRAINER_MODES
    if mode not in modes:
        from verl.trainer.ppo.v1 import trainer_base

        modes = trainer_base.TRAINER_REGISTRY
    loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
    for key, known, value in (
        ("trainer.v1.trainer_mode", modes, mode),
        ("algorithm.adv_estimator", ADV_ESTIMATOR_REGISTRY, config.algorithm.adv_estimator),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", POLICY_LOSS_REGISTRY, loss),
        *(("trainer.logger", Tracking.supported_backend, name) for name in _as_list(config.trainer.logger)),
    ):
        if value not in known:
            yield f"{key}={value}: no such name. Write one of {', '.join(sorted(map(str, known)))}."


def _reward_function_missing(config: DictConfig) -> Iterator[str]:
    """verl loads it in its reward workers and then goes on over groups that all fail."""
    from verl.utils.import_utils import load_extern_object

    function = config.reward.custom_reward_function
    if function.path:
        try:
            load_extern_object(module_path=function.path, object_name=function.name)
        except Exception as error:  # the user's module is imported: it may raise anything
            reason = f"{type(error).__name__}: {error}"
            yield f"reward.custom_reward_function.path={function.path} name={function.name}: {reason}"


def own_problems(config: DictConfig) -> list[str]:
    """What is wrong with our own section ``algorithm.gsd``, for a trainer that verl's own command started."""
    line = Line({}, ())
    return [*_own_keys_unknown(config), *_dial_settings_in_range(config, line), *_poll_interval_positive(config, line)]


def _own_keys_unknown(config: DictConfig) -> Iterator[str]:
    """Needs the plugins loaded: a stage of somebody else's package has a section of its own under algorithm.gsd."""
    from verl_gsd.algorithms import chain

    gsd = OmegaConf.select(config, "algorithm.gsd") or {}
    known = {*DIAL_SETTINGS, "poll_interval", *chain.registered()}
    for name in set(gsd) - known:
        yield f"algorithm.gsd.{name}: no such key. Keys are {', '.join(sorted(known))}."


def _verl_refuses(config: DictConfig) -> Iterator[str]:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        validate_config(config, need_reference_policy(config), need_critic(config))
    except Exception as error:  # assertions, type errors, whatever verl's dataclasses raise: all say what is wrong
        yield f"verl refuses this config: {error}"


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", ".")) or path.count("/") != 1


def _as_list(value: object) -> list:
    return list(value) if isinstance(value, list | tuple | ListConfig) else [value]


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every leaf; a mandatory value not given appears as "???"."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node)
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _leaves(value, f"{prefix}[{position}]")
    else:
        yield prefix, node
