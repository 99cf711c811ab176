"""What a rehearsal found."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.run.checks.validate import as_list
from verl_gsd.run.compose import Line
from verl_gsd.run.rehearsal.config import PRESERVED, Replacement
from verl_gsd.run.remote_paths import FILE_KEYS, MODEL_KEYS

#: What needs the GPUs, the weights or the lengths of the run.
CANNOT_KNOW = (
    "flash-attn and bfloat16",
    "CUDA graphs, and vLLM's sleep and wake",
    "NCCL, tensor parallelism and several nodes",
    "GPU memory, which is only estimated",
    "responses of real lengths, and the time that a step takes",
    "whether the policy learns: the weights are random and the scores are seeded",
)
_LONGEST = 60


@dataclass
class Findings:
    """The result of a rehearsal.

    Attributes:
        worked: what was seen to work.
        wrong: what is wrong, each with its key and the remedy.
        stand_ins: what stands in for a part of the run that could not be had.
        unchecked: what could not be checked, and why.
        settings: what is preserved and what is replaced, with all keys and values. Only the file of the report has it.
        warnings: what the run will lack although it trains, each with its key and the remedy.
    """

    worked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stand_ins: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield "seen to work:"
        yield from _bullets(self.worked or ["nothing: the rehearsal ended before its run started"])
        if self.warnings:
            yield "warnings:"
            yield from _bullets(self.warnings)
        yield "found wrong:"
        yield from _bullets(self.wrong or ["nothing"])
        yield "a rehearsal cannot know:"
        yield from _bullets(
            [*CANNOT_KNOW, *self.unchecked, *(f"what a stand-in hides: {text}" for text in self.stand_ins)]
        )


def preserved_lines(
    config: DictConfig, updates: int, replacements: Sequence[Replacement], defaults: Mapping[str, Any]
) -> Iterator[str]:
    """One line per title in ``PRESERVED``, with keys and values.

    Of a section, these are the values that the line or its groups set, and not those that the rehearsal replaces.

    Args:
        config: the config of the rehearsal.
        defaults: dotted key -> value, in verl's own config.
    """
    replaced = {replacement.key for replacement in replacements}
    yield "preserved:"
    for title, keys in PRESERVED.items():
        texts = [
            f"{name}={_text(value)}"
            for key in keys
            for name, value in _set_leaves(OmegaConf.select(config, key), key, defaults)
            if name not in replaced
        ]
        if texts:
            yield f"  {title}: {', '.join(texts)}"
    yield f"  updates per step: {updates}"
    yield "  the data's columns, the reward function, validation, checkpoint and resume"


def replaced_lines(replacements: Sequence[Replacement]) -> Iterator[str]:
    """One line per reason, with the keys that it explains."""
    yield "replaced:"
    for reason, explained in _by_reason(replacements).items():
        changes = (f"{change.key} {_text(change.before)} -> {_text(change.after)}" for change in explained)
        yield f"  {reason}: {'; '.join(changes)}"


def replaced_summary(replacements: Sequence[Replacement], report: Path) -> Iterator[str]:
    """One line per reason, with the number of keys that it explains.

    Args:
        report: the file with the keys and values.
    """
    yield f"replaced (keys and values: {report}):"
    for reason, explained in _by_reason(replacements).items():
        yield f"  {reason}: {len(explained)} key{'s' if len(explained) > 1 else ''}"


def next_lines(line: Line, config: DictConfig) -> Iterator[str]:
    """How to start the run that was rehearsed, on the machine with GPUs. The last line can be pasted into a shell.

    The files to copy are those on this machine that the run reads: data, the model, and code of the user.
    """
    values = [OmegaConf.select(config, key) for key in (*FILE_KEYS, *MODEL_KEYS)]
    paths = [Path(str(path)) for value in values if value is not None for path in as_list(value)]
    folders = [] if line.data is None else [Path(line.data)]
    files = [path for path in paths if path.expanduser().exists() and path.parent not in folders]
    names = ", ".join(dict.fromkeys(map(str, (*folders, *files))))
    copy = f"copy {names} there, correct paths that differ, then run:" if names else "run:"
    yield f"On the GPU machine: {copy}"
    yield shlex.join(["verl-gsd", "train", *line.words_given])


def _by_reason(replacements: Sequence[Replacement]) -> dict[str, list[Replacement]]:
    reasons: dict[str, list[Replacement]] = {}
    for replacement in replacements:
        reasons.setdefault(replacement.reason, []).append(replacement)
    return reasons


def _set_leaves(value: Any, key: str, defaults: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """A key with its value if it has one; for a section, the dotted keys in it whose values are not verl's own."""
    if not isinstance(value, DictConfig):
        if value is not None:
            yield key, value
        return
    for name, leaf in dotted_leaves(OmegaConf.to_container(value)):
        full = f"{key}.{name}"
        if (
            leaf is not None
            and name.rpartition(".")[2] != "_target_"
            and (full not in defaults or defaults[full] != leaf)
        ):
            yield full, leaf


def _bullets(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from (f"  {'- ' if number == 0 else '  '}{line}" for number, line in enumerate(text.splitlines()))


def _text(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"...{text[-_LONGEST:]}"
