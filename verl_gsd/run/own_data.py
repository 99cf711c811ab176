"""Turns ``data=FOLDER`` and ``model=PATH_OR_HUB_NAME`` into config values, and chooses sizes that fit the data.

``verl-gsd prepare`` writes a manifest, which names the verifier of each split. From it follow the training file, the
validation file and the reward function. With ``recipe=`` or ``task=``, these replace those of the recipe or the task,
and all its sizes stay. Without both, ``config/task/_own_data.yaml`` has the defaults, and three sizes follow from the
data:

- ``data.max_prompt_length`` from the prompts' lengths in tokens;
- ``data.max_response_length`` from the default, limited by the model's positions;
- ``data.train_batch_size`` from the number of prompts.

A key on the command line always overrides a value from here. This module reads files of the machine that starts the
run. ``compose_elsewhere`` composes the same line for another machine.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from verl_gsd import config as groups
from verl_gsd.dotted_keys import dotted_leaves, value_at
from verl_gsd.errors import USE_REWARD_MODEL, ConfigError
from verl_gsd.preparation.chats import ChatTemplate
from verl_gsd.preparation.commands import data_folder, prepare_command
from verl_gsd.preparation.manifest import PreparedDataset, read_manifest
from verl_gsd.preparation.sources import MATHS, SOURCES
from verl_gsd.run import compose
from verl_gsd.run.checks.data_files import FILE_KEYS, files_of, has_own_dataset, prompt_column
from verl_gsd.run.checks.data_sources import is_chosen_by_source
from verl_gsd.run.checks.memory import shape_of
from verl_gsd.run.compose import OWN_DATA, Line
from verl_gsd.run.dataset import count_rows
from verl_gsd.run.remote_paths import scheme_of
from verl_gsd.scalars import is_whole

#: The largest batch, and the number of steps that an epoch has with a smaller one, if there are enough prompts.
MOST_PROMPTS, STEPS_PER_EPOCH = 128, 8
#: The smallest batch that is chosen for the sake of steps. Fewer prompts make a noisy update.
FEWEST_PROMPTS = 8
#: ``data.max_prompt_length`` is a multiple of this many tokens.
LENGTH_STEP = 64
#: If the longest prompt has more than this many times the tokens of the 99th percentile, it does not set the limit.
OUTLIER = 2
#: At most this many prompts are tokenized, evenly spaced in the order of their bytes, and a tenth as many of the
#: longest.
SAMPLED = 2000
#: The estimate without a tokenizer: bytes per token, and tokens that the chat template adds. English text has about
#: four bytes per token, and formulas have two to three.
BYTES_PER_TOKEN, TEMPLATE_TOKENS = 2, 64

_SPLITS = {"data.train_files": "train", "data.val_files": "test"}
_FUNCTION = "reward.custom_reward_function"
#: The values of data with a verifier, besides its module. They disable the reward model of a recipe.
_VERIFIED: dict[str, object] = {
    f"{_FUNCTION}.name": "compute_score",
    "reward.reward_model.enable": False,
    "reward.reward_model.enable_resource_pool": False,
}
_PROMPT, _RESPONSE, _BATCH = "data.max_prompt_length", "data.max_response_length", "data.train_batch_size"


@dataclass(frozen=True)
class Choice:
    """A value that was chosen for a line, and why."""

    key: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"chosen: {self.key}={self.value}: {self.reason}"


@dataclass(frozen=True)
class PromptLengths:
    """The lengths of prompts in tokens, with the chat template.

    Attributes:
        prompts: the number of prompts.
        p99: the 99th percentile.
        longest: the longest prompt.
        model: the model whose tokenizer counted the tokens; None for an estimate.
        counted: how the tokens were counted, in words.
    """

    prompts: int
    p99: int
    longest: int
    model: str | None
    counted: str


def compose_here(line: Line) -> tuple[DictConfig, list[str]]:
    """Compose the config of a line whose data is on this machine.

    Returns:
        The config, with interpolations unresolved, and one line per value that was chosen, to print.

    Raises:
        ConfigError: Hydra rejects the line, ``data=`` is not a data set with the splits that the run needs, or the
            model has no chat template or too few positions for the prompts.
    """
    dataset = None if line.data is None else _read_dataset(Path(line.data), line)
    config = _composed(line, _file_values(line, dataset))
    if dataset is not None and is_chosen_by_source(config):
        raise ConfigError(
            f"data={dataset.folder}: it was prepared without a verifier (--judged-by-model), and no reward is set. Set "
            f"{' '.join(USE_REWARD_MODEL)}, or set {_FUNCTION}.path=FILE."
        )
    lines = [] if dataset is None else [_describe(dataset, line)]
    if not line.has_own_data:
        return config, lines
    choices = list(_choose_sizes(config, line, dataset))
    return config, [*lines, *map(str, choices), _describe_defaults(config, line)]


def sizes_of_run(line: Line, config: Mapping[str, object]) -> list[str]:
    """The sizes that were chosen when a run started, as words for its resume, so that they stay if the data changes.

    Args:
        line: the line of the run.
        config: the config of the run, as its file has it. Interpolations in it must not be resolved: nobody signs the
            file, and one could put a variable of the environment into the words.

    Raises:
        ConfigError: a size is no whole number.
    """
    chosen = [key for key in (_PROMPT, _RESPONSE, _BATCH) if line.has_own_data and not line.sets(key)]
    sizes = {key: value_at(config, key) for key in chosen}
    for key, size in sizes.items():
        if type(size) is not int:
            raise ConfigError(f"{key}={size!a}: not a whole number. Repair the file, or start a new run.")
    return [f"{key}={size}" for key, size in sizes.items()]


def compose_elsewhere(line: Line) -> tuple[DictConfig, list[str]]:
    """Compose the config of a line for a check on this machine. The data is on the machine that will start the run.

    The checks assume the verifier of mathematics, which is that of ``verl-gsd prepare`` for a table with answers, and
    the sizes of ``config/task/_own_data.yaml``.

    Returns:
        As ``compose_here``.
    """
    values: dict[str, object] = {} if line.model is None else {"actor_rollout_ref.model.path": line.model}
    if line.data is not None:
        values |= {key: f"{line.data}/{split}.parquet" for key, split in _SPLITS.items()} | _reward_values(MATHS)
    where = line.data if line.data is not None else "data.train_files"
    lines = [f"data: sizes that fit {where} are chosen where the run starts"] if line.has_own_data else []
    return _composed(line, values), lines


def _composed(line: Line, values: Mapping[str, object]) -> DictConfig:
    """The config with ``values``, which override all groups, but not the keys of the line."""
    config = compose.compose_config(line)
    for key, value in values.items():
        if not line.sets(key):
            OmegaConf.update(config, key, value)
    return config


def _read_dataset(folder: Path, line: Line) -> PreparedDataset:
    """The prepared data set in ``folder``.

    Raises:
        ConfigError: there is none, or a split is missing that the line does not replace.
    """
    if folder.is_file():
        raise ConfigError(
            f"data={folder}: this is a file. Run `verl-gsd prepare NAME --input {shlex.quote(str(folder))}`, and set "
            "data= to the folder that the command prints. For files in verl's columns, set data.train_files=, "
            f"data.val_files= and {_FUNCTION}.path= instead."
        )
    if not folder.is_dir():
        usual = data_folder() / folder.name
        if usual.is_dir():
            raise ConfigError(f"data={folder}: the folder does not exist. Did you mean data={usual}?")
        raise ConfigError(
            f"data={folder}: the folder does not exist. Run `{prepare_command(folder)}` to make it, or set data= to a "
            "folder that verl-gsd prepare wrote."
        )
    try:
        dataset = read_manifest(folder)
        if dataset is None:
            raise ConfigError(
                f"data={folder}: the folder has no manifest.json. Set data= to a folder that verl-gsd prepare wrote, "
                f"or make it from a table with `{prepare_command(folder)}`. For Parquet files in verl's columns, set "
                f"data.train_files=, data.val_files= and {_FUNCTION}.path= instead."
            )
        for key, split in _SPLITS.items():
            if not line.sets(key):
                _check_split(dataset, key, split)
    except ConfigError:
        raise
    except ValueError as error:  # of the manifest and of the files
        raise ConfigError(f"data={folder}: {error}.") from error
    return dataset


def _check_split(dataset: PreparedDataset, key: str, split: str) -> None:
    source = SOURCES.get(dataset.name)
    is_possible = source is None or split in source.splits
    make = f" Or run `{prepare_command(dataset.folder, split)}`, which makes the split." if is_possible else ""
    if split not in dataset.splits:
        raise ConfigError(
            f"data={dataset.folder}: the data set has no {split} split, only {', '.join(dataset.splits)}. Set "
            f"{key}= to a Parquet file, for example the {split}.parquet of another prepared data set.{make}"
        )
    if not dataset.splits[split].get("rows"):
        raise ConfigError(f"data={dataset.folder}: the {split} split has no rows. Set {key}= to a Parquet file.{make}")
    dataset.file(split)


def _file_values(line: Line, dataset: PreparedDataset | None) -> dict[str, object]:
    """The config values of ``model=`` and of ``data=``.

    Raises:
        ConfigError: the two splits have different verifiers, or a verifier is not one of this package.
    """
    values: dict[str, object] = {} if line.model is None else {"actor_rollout_ref.model.path": line.model}
    if dataset is None:
        return values
    splits = {key: split for key, split in _SPLITS.items() if not line.sets(key)}
    values |= {key: str(dataset.folder / f"{split}.parquet") for key, split in splits.items()}
    if line.sets(f"{_FUNCTION}.path"):  # the line's function replaces the verifier
        is_verified = any(dataset.splits[split].get("verifier") is not None for split in splits.values())
        return values | (_VERIFIED if is_verified else {})
    verifiers = {_verifier(dataset, split) for split in splits.values()}
    if len(verifiers) > 1:
        named = " and ".join(f"{split} has {_verifier(dataset, split)}" for split in splits.values())
        raise ConfigError(
            f"data={dataset.folder}: the splits have different verifiers ({named}), and a run has one. Set "
            f"data.val_files= to a file with the verifier of the training split, or set {_FUNCTION}.path=."
        )
    return values | (_reward_values(verifiers.pop()) if verifiers else {})


def _verifier(dataset: PreparedDataset, split: str) -> str | None:
    try:
        return dataset.verifier(split)
    except ValueError as error:
        raise ConfigError(
            f"data={dataset.folder}: {error}. If you trust that code, set {_FUNCTION}.path= to it. Otherwise prepare "
            "the data set again."
        ) from None


def _reward_values(verifier: str | None) -> dict[str, object]:
    """The reward of a verifier's module; for None, which means a reward model, no function."""
    if verifier is None:
        return {f"{_FUNCTION}.path": None}
    return {f"{_FUNCTION}.path": f"pkg://{verifier}", **_VERIFIED}


def _describe(dataset: PreparedDataset, line: Line) -> str:
    splits = [split for key, split in _SPLITS.items() if not line.sets(key)]
    rows = ", ".join(f"{split} {dataset.splits[split]['rows']} rows" for split in splits)
    if line.sets(f"{_FUNCTION}.path"):
        judged = f"verified by {_FUNCTION}.path of the command"
    else:
        verifier = dataset.verifier(splits[0]) if splits else None
        judged = f"verified by {verifier}" if verifier else "judged by a reward model"
    return f"data: {dataset.folder}: {rows or 'its files are replaced on the line'}; {judged}"


def _choose_sizes(config: DictConfig, line: Line, dataset: PreparedDataset | None) -> Iterator[Choice]:
    """Set the three sizes in ``config`` that the line does not set, and yield each with its reason."""
    if not line.sets(_PROMPT):
        yield _chosen(config, _prompt_choice(config, dataset))
    if not line.sets(_RESPONSE):
        yield _chosen(config, _response_choice(config))
    if not line.sets(_BATCH):
        yield _chosen(config, _batch_choice(config))


def _chosen(config: DictConfig, choice: Choice) -> Choice:
    OmegaConf.update(config, choice.key, choice.value)
    return choice


def _prompt_choice(config: DictConfig, dataset: PreparedDataset | None) -> Choice:
    lengths = prompt_lengths(config, dataset)
    if lengths is None:
        return Choice(_PROMPT, config.data.max_prompt_length, "the default, because the prompts cannot be read here")
    covers_all = lengths.longest <= OUTLIER * lengths.p99
    holds = lengths.longest if covers_all else lengths.p99
    value = math.ceil(holds / LENGTH_STEP) * LENGTH_STEP
    reason = f"the longest of {lengths.prompts} prompts has {lengths.longest} tokens"
    if not covers_all:
        reason = (
            f"99% of {lengths.prompts} prompts have at most {lengths.p99} tokens, and the longest has "
            f"{lengths.longest}; verl leaves out those that are longer than the limit"
        )
    return Choice(_PROMPT, value, f"{reason} ({lengths.counted})")


def _response_choice(config: DictConfig) -> Choice:
    default, prompt, shape = config.data.max_response_length, config.data.max_prompt_length, shape_of(config)
    if shape is None or not is_whole(prompt, 1) or prompt + default <= shape.positions:
        return Choice(_RESPONSE, default, "the default for tasks with a short derivation; raise it for long reasoning")
    room = shape.positions - prompt
    if room < 1:
        raise ConfigError(
            f"{_PROMPT}={prompt}: the model {config.actor_rollout_ref.model.path} has {shape.positions} positions, "
            f"which leaves none for responses. Set a smaller {_PROMPT}, or model= to a model with a longer context."
        )
    return Choice(_RESPONSE, room, f"the rest of the model's {shape.positions} positions")


def _batch_choice(config: DictConfig) -> Choice:
    default, most = config.data.train_batch_size, config.data.train_max_samples
    rows = None if has_own_dataset(config) else count_rows(files_of(config, "data.train_files"))
    if not rows:  # the checks of files report one that is missing or empty
        return Choice(_BATCH, default, "the default, because the number of training prompts is not known here")
    prompts = min(rows, most) if is_whole(most, 1) else rows
    value = batch_size(prompts)
    return Choice(_BATCH, value, f"{prompts} training prompts make {prompts // value} steps per epoch")


def batch_size(prompts: int) -> int:
    """The prompts per step for a training set of ``prompts`` prompts.

    A power of two, at most ``MOST_PROMPTS``, so that an epoch has ``STEPS_PER_EPOCH`` steps or more. Small training
    sets have fewer steps, with ``FEWEST_PROMPTS`` prompts each, or with as many as there are.
    """
    wanted = max(prompts // STEPS_PER_EPOCH, FEWEST_PROMPTS)
    return 1 << (min(MOST_PROMPTS, wanted, prompts).bit_length() - 1)


def _describe_defaults(config: DictConfig, line: Line) -> str:
    """The values of the defaults of lines with own data, as far as neither the data nor the line determines them."""
    chosen = (*FILE_KEYS, _PROMPT, _RESPONSE, _BATCH, "actor_rollout_ref.model.path")
    keys = [key for key, _ in dotted_leaves(OmegaConf.to_container(groups.load("task", OWN_DATA)))]
    values = (f"{key}={OmegaConf.select(config, key)}" for key in keys if key not in chosen and not line.sets(key))
    return f"defaults for your own data, which a key on the line overrides: {', '.join(values)}"


def prompt_lengths(config: DictConfig, dataset: PreparedDataset | None) -> PromptLengths | None:
    """The lengths of the training and validation prompts; None if they cannot be read here.

    The tokens are counted, in this order of preference:

    1. by ``verl-gsd prepare --model`` with the run's model (the manifest);
    2. here with the tokenizer of the run's model, if it is a local folder or in the hub's cache;
    3. by ``verl-gsd prepare --model`` with another model;
    4. from the number of bytes, which is an estimate on the high side.

    Raises:
        ConfigError: the model's tokenizer cannot be loaded, or its chat template is missing or not fit for training.
    """
    model = config.actor_rollout_ref.model
    path = str(OmegaConf.select(model, "tokenizer_path") or model.path)
    own_template = OmegaConf.select(model, "custom_chat_template") is not None or bool(model.trust_remote_code)
    options = OmegaConf.to_container(OmegaConf.create(config.data.get("apply_chat_template_kwargs") or {}))
    assert isinstance(options, dict)
    manifest = _lengths_in_manifest(config, dataset)
    if manifest is not None and manifest.model == path and not options and not own_template:
        return manifest
    chats = _chats(config)
    if chats is None:
        return manifest
    sizes = np.array([sum(len(message["content"].encode()) for message in chat) for chat in chats])
    try:
        template = None if own_template else _local_template(path, {str(k): v for k, v in options.items()})
        if template is not None:
            return _count(chats, sizes, template, path)
    except ValueError as error:
        raise ConfigError(f"{error}.") from error
    if manifest is not None:
        return manifest
    tokens = sizes / BYTES_PER_TOKEN + TEMPLATE_TOKENS
    counted = (
        f"estimated as bytes / {BYTES_PER_TOKEN} + {TEMPLATE_TOKENS}, because the tokenizer of {path} is not on this "
        "machine"
    )
    return PromptLengths(len(chats), math.ceil(np.quantile(tokens, 0.99)), math.ceil(tokens.max()), None, counted)


def _lengths_in_manifest(config: DictConfig, dataset: PreparedDataset | None) -> PromptLengths | None:
    """What ``verl-gsd prepare --model`` counted, if the run reads exactly the files of the data set."""
    if dataset is None:
        return None
    files = {str(dataset.folder / f"{split}.parquet"): dataset.splits.get(split, {}) for split in _SPLITS.values()}
    named = [file for key in FILE_KEYS for file in files_of(config, key)]
    entries = [files.get(file, {}) for file in named]
    counted = [entry for entry in entries if entry.get("model") and {"p99", "longest"} <= entry["prompt_tokens"].keys()]
    tokens = [entry["prompt_tokens"] for entry in counted]
    if not tokens or len(tokens) < len(entries):
        return None
    models = sorted({str(entry["model"]) for entry in entries})
    return PromptLengths(
        sum(int(entry["rows"]) for entry in entries),
        max(int(count["p99"]) for count in tokens),
        max(int(count["longest"]) for count in tokens),
        models[0] if len(models) == 1 else None,
        f"counted by verl-gsd prepare with the tokenizer of {' and '.join(models)}",
    )


def _chats(config: DictConfig) -> list[list[dict[str, Any]]] | None:
    """The prompts of all files; None unless all files are Parquet files here whose prompts are messages of text."""
    column, chats = prompt_column(config), []
    if has_own_dataset(config):
        return None
    for name in (file for key in FILE_KEYS for file in files_of(config, key)):
        path = Path(name).expanduser()
        if scheme_of(name) or path.suffix != ".parquet":
            return None
        try:
            chats += pq.read_table(path, columns=[column]).column(column).to_pylist()
        except (OSError, KeyError, pa.ArrowException):  # the checks of files report it
            return None
    return chats if chats and all(map(_is_text, chats)) else None


def _is_text(chat: Any) -> bool:
    return (
        isinstance(chat, list)
        and bool(chat)
        and all(isinstance(message, Mapping) and isinstance(message.get("content"), str) for message in chat)
    )


def _local_template(path: str, options: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template of a model on this machine; None if the model is not here."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not Path(path).expanduser().is_dir():
        try:
            cached = try_to_load_from_cache(path, "tokenizer_config.json")
        except HFValidationError:  # not a hub name; the checks report it
            return None
        if not isinstance(cached, str):
            return None
        local = Path(cached).parent  # so that nothing is asked of the hub
    else:
        local = Path(path).expanduser()
        if not (local / "config.json").is_file():
            return None  # the checks report that this is no model
    return ChatTemplate(str(local), options=options, label=f"model={path}")


def _count(
    chats: Sequence[list[dict[str, Any]]], sizes: np.ndarray, template: ChatTemplate, path: str
) -> PromptLengths:
    """Tokenize the prompts, or ``SAMPLED`` of them.

    Args:
        sizes: (prompts,) the prompts' bytes.
    """
    by_size, longest = np.argsort(sizes), min(SAMPLED // 10, len(chats))
    spaced = np.unique(np.linspace(0, len(chats) - 1, min(len(chats), SAMPLED)).astype(int))
    tokens = np.array([len(template.tokens(chats[row])) for row in by_size[spaced]])
    most = max(len(template.tokens(chats[row])) for row in by_size[len(chats) - longest :])
    how_many = "counted" if len(spaced) == len(chats) else f"{len(spaced)} prompts counted"
    return PromptLengths(
        len(chats),
        math.ceil(np.quantile(tokens, 0.99)),
        max(most, int(tokens.max())),
        path,
        f"{how_many} with the tokenizer of {path}",
    )
