"""Training and held-out prompts. verl's own data code reads them, in the order of a run on the stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torchdata.stateful_dataloader import StatefulDataLoader
from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
from verl.utils.dataset.rl_dataset import collate_fn

from verl_gsd import extension
from verl_gsd.errors import ConfigError
from verl_gsd.extension import ROLLOUTS
from verl_gsd.prompts import PromptKey, prompt_hash
from verl_gsd.run.dataset import UNKNOWN_SOURCE, indices_are_unique, prompt_keys
from verl_gsd.trainer.data_loader import replace_sampler
from verl_gsd.trainer.seam import Seam

#: verl's agent loop for one response to one prompt, which the laboratory stands in for.
_LOOP = "single_turn_agent"


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """N prompts.

    Attributes:
        keys: the key of each prompt.
        ids: the token ids of each prompt.
        columns: columns of the data set, one entry per prompt.
    """

    keys: list[PromptKey]
    ids: list[list[int]]
    columns: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def answers(self) -> list[str]:
        """The ground truth of each prompt."""
        return [str(model["ground_truth"]) for model in self.columns["reward_model"]]

    @property
    def levels(self) -> list[str]:
        """The level of difficulty of each prompt; empty for a prompt without a level."""
        infos = self.columns.get("extra_info") or [None] * len(self)
        return [str((info or {}).get("level") or "") for info in infos]

    def part(self, start: int, end: int) -> PromptBatch:
        """The prompts from ``start`` up to, but not including, ``end``."""
        columns = {name: values[start:end] for name, values in self.columns.items()}
        return PromptBatch(self.keys[start:end], self.ids[start:end], columns)

    def row(self, number: int) -> dict[str, Any]:
        """The columns of one prompt."""
        return {name: values[number] for name, values in self.columns.items()}


class TrainingPrompts:
    """An endless stream of training prompts.

    The order depends on ``data.seed`` and is that of verl's data loader. An extension with the hook ``draw_prompts``
    replaces the order.
    """

    def __init__(self, config: DictConfig, tokenizer: Any, seam: Seam) -> None:
        self._encode = _Encoder(config, tokenizer, "train")
        dataset = create_rl_dataset(
            config.data.train_files,
            config.data,
            tokenizer,
            None,
            is_train=True,
            max_samples=config.data.get("train_max_samples", -1),
        )
        self.per_epoch = len(dataset)
        self._unique = indices_are_unique(dataset)
        # With dynamic sampling, verl fetches single prompts.
        self._fetch_size = 1 if config.algorithm.filter_groups.enable else int(config.data.train_batch_size)
        if self.per_epoch < self._fetch_size:
            raise ConfigError(
                f"data.train_batch_size={self._fetch_size}: the training set has {self.per_epoch} prompts. Set it to "
                f"{self.per_epoch} or less."
            )
        self._loader = StatefulDataLoader(
            dataset=dataset,
            batch_size=self._fetch_size,
            drop_last=True,
            collate_fn=collate_fn,
            sampler=create_rl_sampler(config.data, dataset),
        )
        if owner := seam.owner("draw_prompts"):
            keys = prompt_keys(dataset, self._unique)
            count, seed = config.data.train_batch_size, config.data.seed or 0
            sampler = extension.call_hook(*owner, "draw_prompts", keys, count, seed)
            self._loader = replace_sampler(self._loader, sampler)
        self._iterator = iter(self._loader)

    def next(self, count: int) -> PromptBatch:
        """The next ``count`` prompts, a multiple of what verl fetches at once."""
        columns: dict[str, list[Any]] = {}
        for _ in range(count // self._fetch_size):
            for name, values in self._fetch().items():
                columns.setdefault(name, []).extend(values)
        return _prompts(columns, self._encode, self._unique)

    def _fetch(self) -> dict[str, Any]:
        batch = next(self._iterator, None)
        if batch is None:
            self._iterator = iter(self._loader)
            batch = next(self._iterator)
        return batch


def held_out_prompts(config: DictConfig, tokenizer: Any) -> PromptBatch:
    """All prompts on which the config validates."""
    return _all_prompts(config, tokenizer, "val")


def all_training_prompts(config: DictConfig, tokenizer: Any) -> PromptBatch:
    """All prompts of the training set, in the order of its files."""
    return _all_prompts(config, tokenizer, "train")


def _all_prompts(config: DictConfig, tokenizer: Any, split: str) -> PromptBatch:
    files = config.data[f"{split}_files"]
    dataset = create_rl_dataset(
        files,
        config.data,
        tokenizer,
        None,
        is_train=split == "train",
        max_samples=config.data.get(f"{split}_max_samples", -1),
    )
    if not len(dataset):
        raise ConfigError(f"data.{split}_files={files}: there are no prompts. Set the key to a file with prompts.")
    columns = {name: list(values) for name, values in collate_fn([dataset[n] for n in range(len(dataset))]).items()}
    if ROLLOUTS in columns:
        number = {"train": "actor_rollout_ref.rollout.n", "val": "actor_rollout_ref.rollout.val_kwargs.n"}[split]
        raise ConfigError(
            f"data.{split}_files={files}: the column {ROLLOUTS} sets the number of responses per prompt, and here all "
            f"prompts have the same number. Remove the column, and set {number}."
        )
    return _prompts(columns, _Encoder(config, tokenizer, split), indices_are_unique(dataset))


class _Encoder:
    """Tokens of prompts, as verl's single-turn agent loop makes them.

    Args:
        split: ``train`` or ``val``, the split that the prompts belong to.

    Attributes:
        files_key: the key of the prompts' files, for messages.
    """

    def __init__(self, config: DictConfig, tokenizer: Any, split: str) -> None:
        self.files_key = f"data.{split}_files"
        self._tokenizer, self._longest = tokenizer, int(config.data.max_prompt_length)
        self._options = dict(config.data.get("apply_chat_template_kwargs") or {})

    def __call__(self, chat: Sequence[Any], key: PromptKey) -> list[int]:
        if not all(isinstance(message["content"], str) for message in chat):
            source, index = key
            raise ConfigError(
                f"{self.files_key}: the prompt data_source={source}, index={index} has images or other parts that are "
                "not text, and the laboratory reads only text. Use text prompts, or train on the stack with verl-gsd "
                "train."
            )
        ids = self._tokenizer.apply_chat_template(
            list(chat), add_generation_prompt=True, tokenize=True, return_dict=False, **self._options
        )
        if len(ids) > self._longest:
            source, index = key
            raise ConfigError(
                f"data.max_prompt_length={self._longest}: the prompt data_source={source}, index={index} has "
                f"{len(ids)} tokens, and the laboratory does not truncate. Set data.max_prompt_length={len(ids)} or "
                "more, or data.filter_overlong_prompts=true."
            )
        return ids


def _prompts(columns: dict[str, list[Any]], encode: _Encoder, unique: bool) -> PromptBatch:
    count = len(columns["raw_prompt"])
    for name in set(columns.get("agent_name", [])) - {_LOOP}:
        raise ConfigError(
            f"{encode.files_key}: the column agent_name has the value {name}, and the laboratory has no agent loops. "
            f"Remove the column, or set all its values to {_LOOP}."
        )
    sources = columns.setdefault("data_source", [UNKNOWN_SOURCE] * count)
    labels = columns["index"] if unique else [prompt_hash(chat) for chat in columns["raw_prompt"]]
    keys = [(str(source), int(label)) for source, label in zip(sources, labels, strict=True)]
    ids = [encode(chat, key) for chat, key in zip(columns["raw_prompt"], keys, strict=True)]
    return PromptBatch(keys, ids, columns)
