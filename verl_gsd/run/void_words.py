"""Words of a stored line that new words make void, so that a resume can switch off what the run was started with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.run import compose
from verl_gsd.run.compose import Line, parse_line, resolve
from verl_gsd.unused_keys import unused_keys


def void_words(stored: Sequence[str], line: Line) -> list[str]:
    """The stored overrides whose keys do not exist, or have no effect, under the new words.

    ``resume=RUN budget=uniform`` has no use for a stored ``algorithm.gsd.budget.half_life=200``. On a new line, both
    together are a mistake. Here the user has typed the new word alone.

    Args:
        stored: the words of the run to resume.
        line: the new line. If it has no words besides ``resume`` and ``trust``, no stored word is void.
    """
    void: set[str] = set()
    if line.words_given:
        joined = parse_line([*stored, *line.words_given])
        void |= _without_section(parse_line([*stored, f"resume={line.resume}"]), joined) - set(line.keys)
        while True:
            pairs = [pair for pair in zip(joined.overrides, joined.keys, strict=True) if pair[1] not in void]
            keys = [key for _, key in pairs if key not in line.keys]
            left = replace(joined, overrides=tuple(override for override, _ in pairs))
            try:
                config = resolve(compose.compose_config(left))
            except ConfigError as error:  # begins with the key that does not exist
                found = {key for key in keys if str(error).startswith(f"{key}: ")}
            else:
                found = {key for key in keys if any(unused.unused(config) for unused in unused_keys(key))}
            if not found:
                break
            void |= found
    return [word for word in stored if word.lstrip("+~").partition("=")[0] in void]


def _without_section(stored: Line, joined: Line) -> set[str]:
    """The keys of stored words with ``+`` whose section the stored choices of groups have, and the new ones do not.

    ``++algorithm.gsd.budget.half_life=200`` would bring the budget back after ``budget=uniform``.
    """
    keys = {key for word, key in zip(stored.overrides, stored.keys, strict=True) if word.startswith("+")}
    if not keys:
        return set()
    before, after = (compose.compose_config(replace(line, overrides=())) for line in (stored, joined))

    def has(config: DictConfig, key: str) -> bool:
        return OmegaConf.select(config, key.rpartition(".")[0]) is not None

    return {key for key in keys if has(before, key) and not has(after, key)}
