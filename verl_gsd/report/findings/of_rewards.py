"""Rewards that fail, and rewards that a step waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verl_gsd.report.findings.finding import LIMITS, Finder, Finding, now, percent, scaled
from verl_gsd.report.reading import Columns
from verl_gsd.report.steps import column

_FUNCTION = "reward.custom_reward_function.path=...  # a function that"
_WORKERS = "reward.num_workers"
_KIND = "reward/failures/"


def failing(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Responses of the whole run that lost their reward: of these one is worth knowing."""
    lost, kept = (float(np.nansum(column(table, name))) for name in ("lost_rewards", "rollouts"))
    if not lost:
        return
    counts: dict[str, float] = {
        name.removeprefix(_KIND): float(np.nansum(table[name])) for name in table if name.startswith(_KIND)
    }
    kinds = sorted(((count, kind) for kind, count in counts.items() if count), reverse=True)
    how = f" By kind: {', '.join(f'{kind} {count:.0f}' for count, kind in kinds)}." if kinds else ""
    write: list[str] = []
    if counts.get("too_slow"):
        write += scaled(config, "algorithm.gsd.limits.reward_seconds", 2, "seconds that one call may take")
        write += scaled(config, _WORKERS, 2, "workers that compute rewards")
    if counts.get("prompt_too_long"):
        write += scaled(config, "data.max_prompt_length", 2, "tokens that a prompt may have")
    if not kinds or {kind for _, kind in kinds} - {"too_slow", "prompt_too_long"}:
        write.append(f"{_FUNCTION} returns a finite number, or a dict with score, for every response")
    yield Finding(
        f"{lost:.0f} of {lost + kept:.0f} responses ({percent(lost / (lost + kept))}) lost their reward",
        "Their groups were trained without them, so that what is learnt leaves out the responses that the reward "
        f"function cannot handle and prompts that are too long.{how} RUN/messages has the first case of each.",
        tuple(write),
    )


def slow(table: Columns, config: Mapping[str, Any]) -> Iterator[Finding]:
    """Steps that mostly wait for a reward. In the asynchronous modes they do not wait."""
    share = now(table, "reward/share_of_step")
    if share > LIMITS.reward_of_step and not str(config.get("trainer.v1.trainer_mode")).endswith("async"):
        yield Finding(
            f"The slowest reward takes {percent(share)} of a step",
            "A step waits for the rewards of all its responses.",
            (
                *scaled(config, _WORKERS, 2, "workers that compute rewards"),
                f"{_FUNCTION} is faster, or async if it waits for a server",
            ),
        )


FINDERS: tuple[Finder, ...] = (failing, slow)
