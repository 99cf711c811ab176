"""Metrics of a validation, with the names and values that verl gives them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from verl_gsd.lab.training.verifier import Reward


def validation_metrics(prompts: Sequence[tuple[str, Sequence[Reward]]]) -> dict[str, float]:
    """Means over prompts, for each data source.

    As in verl, a response whose reward failed has neither reward nor accuracy. If a data source has accuracies, its
    responses without one count as wrong in ``acc``, and are left out of ``acc_success_only``. The mean over k responses
    of a prompt is part of ``mean@k``, so that prompts with failed rewards have a metric of their own.

    Args:
        prompts: the data source of each prompt, and the rewards of its responses.

    Returns:
        ``val-{core,aux}/<source>/{acc,acc_success_only,reward}/mean@k``. Without accuracies, the reward is the main
        figure of a data source.
    """
    rewards: defaultdict[str, list[Sequence[Reward]]] = defaultdict(list)
    for source, of_prompt in prompts:
        rewards[source].append(of_prompt)
    metrics: dict[str, float] = {}
    for source, of_source in rewards.items():
        given = [[reward for reward in of_prompt if reward.failure is None] for of_prompt in of_source]
        accuracies = [
            [float(reward.info["acc"]) for reward in of_prompt if reward.info.get("acc") is not None]
            for of_prompt in given
        ]
        values = {"reward": [[reward.score for reward in of_prompt] for of_prompt in given]}
        if any(accuracies):
            values["acc_success_only"] = accuracies
            values["acc"] = [
                found + [0.0] * (len(of_prompt) - len(found))
                for found, of_prompt in zip(accuracies, of_source, strict=True)
            ]
        main = "acc" if "acc" in values else "reward"
        for name, by_prompt in values.items():
            means: defaultdict[int, list[float]] = defaultdict(list)
            for numbers in filter(None, by_prompt):
                means[len(numbers)].append(float(np.mean(numbers)))
            for count, of_count in means.items():
                section = "val-core" if name == main and count == max(means) else "val-aux"
                metrics[f"{section}/{source}/{name}/mean@{count}"] = float(np.mean(of_count))
    return metrics
