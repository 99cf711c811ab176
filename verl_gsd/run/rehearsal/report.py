"""What a rehearsal found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.rehearsal.config import PRESERVED, Replacement

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
    """

    worked: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stand_ins: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        yield "seen to work:"
        yield from _bullets(self.worked or ["nothing: the rehearsal ended before its run started"])
        yield "found wrong:"
        yield from _bullets(self.wrong or ["nothing"])
        yield "a rehearsal cannot know:"
        yield from _bullets(
            [*CANNOT_KNOW, *self.unchecked, *(f"what a stand-in hides: {text}" for text in self.stand_ins)]
        )


def preserved_lines(config: DictConfig, updates: int) -> Iterator[str]:
    """One line per title in ``PRESERVED``, with the values that are set."""
    yield "preserved:"
    for title, keys in PRESERVED.items():
        values = {key: OmegaConf.select(config, key) for key in keys}
        texts = [_setting(key, value) for key, value in values.items() if value is not None]
        if texts:
            yield f"  {title}: {', '.join(texts)}"
    yield f"  updates per step: {updates}"
    yield "  the data's columns, the reward function, validation, checkpoint and resume"


def replaced_lines(replacements: Sequence[Replacement]) -> Iterator[str]:
    """One line per reason, with the keys that it explains."""
    yield "replaced:"
    for reason in dict.fromkeys(replacement.reason for replacement in replacements):
        changes = [
            f"{replacement.key} {_text(replacement.before)} -> {_text(replacement.after)}"
            for replacement in replacements
            if replacement.reason == reason
        ]
        yield f"  {reason}: {'; '.join(changes)}"


def _bullets(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        yield from (f"  {'- ' if number == 0 else '  '}{line}" for number, line in enumerate(text.splitlines()))


def _setting(key: str, value: Any) -> str:
    """A key with its value; for a section, the names in it that are set."""
    if not isinstance(value, DictConfig):
        return f"{key}={_text(value)}"
    return f"{key} ({', '.join(str(name) for name in value if value[name] is not None and name != '_target_')})"


def _text(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"...{text[-_LONGEST:]}"
