"""Counts the prompts that are longer than the run allows, before Ray starts.

If data.filter_overlong_prompts is true, verl's dataset drops such prompts. Otherwise verl's agent loop cuts them on the
left, whatever data.truncation says. Under our trainer modes, ``prompt_truncation.py`` makes it obey data.truncation.
This module tells the user how many prompts are affected. It reads every prompt, so it also finds prompts that verl
cannot read.

docs/data.md says how many prompts it reads per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import DictConfig

from verl_gsd.run.checks.data_files import FILE_KEYS, files_of, has_own_dataset, prompt_column, prompt_problem
from verl_gsd.run.checks.data_reading import DataFile, DataReport, check_same_types, open_files, without_progress_bars
from verl_gsd.run.checks.gsd_section import uses_our_trainer
from verl_gsd.run.checks.prompt_tokens import NotCountableError, PromptTokens, prompt_tokens_of, tools_of
from verl_gsd.run.remote_paths import scheme_of
from verl_gsd.run.truncation import is_obeyed
from verl_gsd.scalars import is_whole

#: verl's own agent loops. Both build prompts with the continuous token builder; only the second passes tools to it.
_PLAIN_LOOP, _TOOL_LOOP = "single_turn_agent", "tool_agent"
#: data.truncation -> where the agent loop cuts a prompt.
_SIDES = {"left": "on the left", "right": "on the right", "middle": "in the middle"}


def check_prompts(
    config: DictConfig,
    *,
    remote: bool | None = None,
    counts: bool = True,
    tokenizer: Any = None,
    processor: Any = None,
) -> DataReport:
    """Read the prompts of data.train_files and data.val_files, and count those that are too long.

    Args:
        remote: False skips remote files with a note, True checks only remote files, None checks all files.
        counts: False opens the files but counts no prompts, because there is no tokenizer. The caller says so.
        tokenizer: the model's tokenizer, as verl loads it. None: it is loaded here, with the processor.
        processor: the model's processor, if there is one and ``tokenizer`` is not None.
    """
    report = DataReport()
    if remote and not any(scheme_of(file) for key in FILE_KEYS for file in files_of(config, key)):
        return report
    if has_own_dataset(config):
        report.note(
            f"data.custom_cls.path={config.data.custom_cls.path}: the prompts of a custom dataset class are not counted"
        )
        return report
    with without_progress_bars():
        files = {key: list(open_files(key, config, remote, report)) for key in FILE_KEYS}
        for of_key in files.values():
            check_same_types(of_key, report)
        if report.problems or not any(files.values()) or not counts:
            return report
        try:
            tokens = prompt_tokens_of(config, tokenizer, processor)
            counter = _Counter(config, tokens, tools_of(config))
        except NotCountableError as error:
            report.warn(f"prompts are not counted, and may be longer than data.max_prompt_length: {error}")
            return report
        if tokens.has_no_template:
            report.problems.append(
                f"actor_rollout_ref.model.path={config.actor_rollout_ref.model.path}: the tokenizer has no chat "
                "template, and verl applies one to every prompt. Use a model with a chat template, for example its "
                "instruct version, or set actor_rollout_ref.model.custom_chat_template."
            )
            return report
        _check_lengths(config, files, counter, report)
    return report


@dataclass
class _Lengths:
    """The lengths of those prompts of a file that the run uses.

    Attributes:
        rows: (prompts,) their rows in the file.
        tokens: (prompts,) number of tokens that the agent loop passes to the policy; 0 if it is not known.
        filtered: (prompts,) number of tokens by which verl's dataset filters prompts; 0 if it is not known.
        uncounted: number of prompts with images, videos or audio, or of an agent loop that is not verl's.
        rejected: row and reason of each prompt that the chat template rejects.
    """

    rows: np.ndarray
    tokens: np.ndarray
    filtered: np.ndarray
    uncounted: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)


class _Counter:
    """Counts the tokens of prompts as verl's dataset and agent loops build them.

    Args:
        tools: name -> schema of the run's tools.
    """

    def __init__(self, config: DictConfig, tokens: PromptTokens, tools: Mapping[str, dict]) -> None:
        data, rollout = config.data, config.actor_rollout_ref.rollout
        self._tokens, self._tools = tokens, tools
        self._prompt = prompt_column(config)
        self._media = [data.get(f"{kind}_key", f"{kind}s") for kind in ("image", "video", "audio")]
        self._loop = str(rollout.agent.default_agent_loop)
        self._filters = bool(data.filter_overlong_prompts)
        self._fits = min(int(data.max_prompt_length), int(rollout.prompt_length))

    def lengths(self, file: DataFile, rows: np.ndarray | None, report: DataReport) -> _Lengths | None:
        """The lengths of the prompts in ``rows`` of ``file``; None if it may have images or has an invalid prompt.

        Args:
            rows: the rows that the run uses, ascending. None: all rows.
        """
        if media := [name for name in self._media if name in file.columns and not file.is_null(name)]:
            report.note(f"{file}: prompts are not counted, because they may have {', '.join(media)}")
            return None
        wanted = [self._prompt]
        wanted += ["agent_name"] if "agent_name" in file.columns else []
        wanted += ["extra_info"] if self._tools and "extra_info" in file.columns else []
        rows = np.arange(file.count) if rows is None else rows
        lengths = _Lengths(rows, np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64))
        start = 0
        for batch in file.rows(wanted):
            positions = np.flatnonzero((rows >= start) & (rows < start + len(batch))).tolist()
            used = [(position, batch[rows[position] - start]) for position in positions]
            for position, row in used:
                if problem := prompt_problem(row[self._prompt]):
                    report.problems.append(f"{file}: row {rows[position]} (the first is 0): {self._prompt} {problem}")
                    return None
            self._count(used, lengths)
            start += len(batch)
        return lengths

    def _count(self, used: list[tuple[int, dict[str, Any]]], lengths: _Lengths) -> None:
        all_tools = tuple(self._tools)
        by_tools: dict[tuple[str, ...], list[tuple[int, list]]] = {}
        for position, row in used:
            loop, chat = row.get("agent_name") or self._loop, row[self._prompt]
            if loop not in (_PLAIN_LOOP, _TOOL_LOOP) or _has_media(chat):
                lengths.uncounted += 1
                continue
            chosen = (row.get("extra_info") or {}).get("tool_selection") or all_tools
            tools = tuple(name for name in chosen if name in self._tools) if loop == _TOOL_LOOP else ()
            by_tools.setdefault(tools, []).append((position, chat))
        for tools, group in by_tools.items():
            positions, chats = zip(*group, strict=True)
            counted = self._tokens.lengths(chats, self._fits, [self._tools[name] for name in tools])
            filtered = counted
            if self._filters and tools != all_tools:  # verl's dataset counts every prompt with all tools
                filtered = self._tokens.lengths(chats, self._fits, list(self._tools.values()))
            for position, length, by_dataset in zip(positions, counted, filtered, strict=True):
                if isinstance(length, str) or isinstance(by_dataset, str):
                    lengths.rejected.append((int(lengths.rows[position]), str(length)))
                else:
                    lengths.tokens[position], lengths.filtered[position] = length, by_dataset


def _has_media(chat: list[dict[str, Any]]) -> bool:
    parts = [part for message in chat if isinstance(message.get("content"), list) for part in message["content"]]
    return any(part["type"] != "text" for part in parts)


def _rows_used(counts: Sequence[int], most: Any, data: DictConfig) -> list[np.ndarray | None]:
    """The rows of each file that verl's dataset uses.

    Args:
        most: data.train_max_samples or data.val_max_samples.

    Returns:
        One entry per file. None: all rows, or verl samples them without a seed so that they are not known.
    """
    total = sum(counts)
    if not is_whole(most, 1) or most >= total or (data.get("shuffle") and data.get("seed") is None):
        return [None] * len(counts)
    drawn = np.random.default_rng(data.seed).choice(total, size=most, replace=False) if data.get("shuffle") else None
    rows = np.arange(most) if drawn is None else np.sort(drawn)
    starts = np.cumsum([0, *counts])
    return [
        rows[(rows >= start) & (rows < start + count)] - start for start, count in zip(starts, counts, strict=False)
    ]


def _check_lengths(
    config: DictConfig, files: Mapping[str, list[DataFile]], counter: _Counter, report: DataReport
) -> None:
    longest, too_long = 0, []
    for key, of_key in files.items():
        is_whole_split = len(of_key) == len(files_of(config, key))
        most = config.data.get("train_max_samples" if key == FILE_KEYS[0] else "val_max_samples", -1)
        used = _rows_used([file.count for file in of_key], most if is_whole_split else -1, config.data)
        kept: list[int | None] = []
        for file, rows in zip(of_key, used, strict=True):
            lengths = counter.lengths(file, rows, report)
            if lengths is None:
                kept.append(None)
                continue
            stays = _report_dropped(file, lengths, config, report)
            kept.append(int(stays.sum()))
            too_long += _report_cut(file, lengths, stays, config, report)
            longest = max(longest, int(lengths.tokens.max(initial=0)))
        counted = [count for count in kept if count is not None]
        if is_whole_split and len(counted) == len(kept):
            _check_enough(key, sum(counted), config, report)
    report.problems += [
        f"{text} Set {_limit(config)[0]}={longest} to keep all prompts complete, data.filter_overlong_prompts=true to "
        "drop the longer ones, or data.truncation=left, right or middle to cut them."
        for text in too_long
    ]


def _limit(config: DictConfig) -> tuple[str, int]:
    """The config key that limits the length of prompts in agent loops, and its value in tokens."""
    length = int(config.actor_rollout_ref.rollout.prompt_length)
    same = length == config.data.max_prompt_length
    return "data.max_prompt_length" if same else "actor_rollout_ref.rollout.prompt_length", length


def _report_dropped(file: DataFile, lengths: _Lengths, config: DictConfig, report: DataReport) -> np.ndarray:
    """Report prompts that verl's dataset drops, that the chat template rejects, and that were not counted.

    Returns:
        (prompts,) bool: which prompts verl keeps.
    """
    total, limit, filters = len(lengths.rows), config.data.max_prompt_length, config.data.filter_overlong_prompts
    stays = lengths.filtered <= limit if filters else np.ones(total, bool)
    because = "verl drops them, because data.filter_overlong_prompts=true"
    if dropped := total - int(stays.sum()):
        report.warn(
            f"{file}: {dropped} of {total} prompts are longer than data.max_prompt_length={limit} tokens (the longest "
            f"has {lengths.filtered.max()}): {because}"
        )
    if lengths.rejected:
        row, reason = lengths.rejected[0]
        text = f"the chat template rejects {len(lengths.rejected)} of {total} prompts; the first is row {row}: {reason}"
        if filters:
            stays &= ~np.isin(lengths.rows, [row for row, _ in lengths.rejected])
            report.warn(f"{file}: {text}; {because}")
        else:
            report.problems.append(
                f"{file}: {text}. Correct these rows, or set actor_rollout_ref.model.custom_chat_template to a "
                "template that accepts them."
            )
    if lengths.uncounted:
        report.note(
            f"{file}: {lengths.uncounted} of {total} prompts are not counted, because they have images, videos or "
            "audio, or because an agent loop that is not verl's builds them"
        )
    return stays


def _report_cut(
    file: DataFile, lengths: _Lengths, stays: np.ndarray, config: DictConfig, report: DataReport
) -> list[str]:
    """Report prompts that the agent loop cuts. If data.truncation=error, return the problem instead."""
    key, limit = _limit(config)
    cut = np.flatnonzero(stays & (lengths.tokens > limit))
    if not len(cut):
        return []
    text = f"{len(cut)} of {len(lengths.rows)} prompts are longer than {key}={limit} tokens"
    most, truncation = lengths.tokens[cut].max(), config.data.truncation
    if not (uses_our_trainer(config) or is_obeyed(config)):  # a running trainer of ours has reset the mode to verl's
        because = f"trainer.v1.trainer_mode={config.trainer.v1.trainer_mode} ignores data.truncation={truncation}"
        report.warn(
            f"{file}: {text} (the longest has {most}): verl cuts them on the left, because {because}. Set {key}={most} "
            "to keep all prompts complete, or data.filter_overlong_prompts=true to drop the longer ones."
        )
        return []
    if truncation == "error":
        row, tokens = lengths.rows[cut[0]], lengths.tokens[cut[0]]
        return [f"{file}: {text}: the longest has {most}, the first is row {row} (counted from 0) with {tokens}."]
    side = f"verl cuts them {_SIDES[truncation]}, because data.truncation={truncation}"
    report.warn(f"{file}: {text} (the longest has {most}): {side}")
    return []


def _check_enough(key: str, kept: int, config: DictConfig, report: DataReport) -> None:
    batch, limit = config.data.train_batch_size, config.data.max_prompt_length
    after = f" after verl dropped those longer than data.max_prompt_length={limit}"
    after = after if config.data.filter_overlong_prompts else ""
    if not kept:
        report.problems.append(f"{key}: no prompt is left{after}. Set data.max_prompt_length to a larger number.")
    elif key == FILE_KEYS[0] and is_whole(batch, 1) and kept < batch:
        report.problems.append(
            f"data.train_batch_size={batch}: {key} has only {kept} prompts{after}. Set it to {kept} or less."
        )
