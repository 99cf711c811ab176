"""A policy at its current weights, the exact solve rates of its training prompts, and groups that it samples.

``verl-gsd lab identity`` and the commands of extensions study a policy in this way. Nothing is trained.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.lab.training.checks import check_study, parse_lab_line
from verl_gsd.lab.training.exact import ExactRates, ExactSolver, joined, why_not_exact
from verl_gsd.lab.training.policy import Tokens, TokenSampling, continue_prompts, end_tokens, read_prompts
from verl_gsd.lab.training.quiet import quiet
from verl_gsd.run.compose import resolve
from verl_gsd.run.own_data import compose_here
from verl_gsd.trainer.reward_failures import Failure

#: Prompts and responses per pass, at most. More responses would be slower, because they do not fit into caches.
_PROMPTS, _RESPONSES = 128, 1024


@dataclass(frozen=True, eq=False)
class StudyGroup:
    """One sampled group of G responses.

    Attributes:
        prompt: the number of its prompt.
        responses: token ids.
        rewards, accuracies: (G,) float64, the verifier's score and its ``acc``.
    """

    prompt: int
    responses: list[list[int]]
    rewards: np.ndarray
    accuracies: np.ndarray


def study_config(words: Sequence[str], *, reads: Sequence[str] = (), model: Path | None = None) -> DictConfig:
    """The resolved config of the words of ``verl-gsd train``, where hardware= is not needed.

    Args:
        reads: keys of ``algorithm`` that the study reads.
        model: the option --model.

    Raises:
        ConfigError: the words are wrong or have a key that the study does not read, groups have one response, or exact
            solve rates cannot be computed.
    """
    os.environ["VERL_GSD_CPU"] = "1"  # before anything imports verl
    line = parse_lab_line(words)
    if line.resume is not None:
        raise ConfigError(f"resume={line.resume}: nothing is trained here. Set --model to the folder of a policy.")
    composed, _ = compose_here(line)
    check_study(composed, line, reads=reads, has_model=model is not None)
    config = resolve(composed)
    if (size := int(config.actor_rollout_ref.rollout.n)) < 2:
        raise ConfigError(f"actor_rollout_ref.rollout.n={size}: a group needs two responses. Set it to 2 or more.")
    if reason := why_not_exact(config, _sampling(config)):
        raise ConfigError(f"Exact solve rates cannot be computed: {reason}")
    return config


class StudyPolicy:
    """A policy and its training prompts.

    Args:
        config: see ``study_config``.
        folder: a Hugging Face model; None for that of the config.

    Attributes:
        path: the model's folder.
        model: in float32, in the mode ``eval``.
        prompts: ids of N prompts.
        temperature: that of rollouts.

    Raises:
        ConfigError: the folder has no model.
    """

    def __init__(self, config: DictConfig, folder: Path | None = None) -> None:
        self._sampling = _sampling(config)
        self.temperature = self._sampling.temperature
        self.path = _model_folder(config, folder)
        with quiet():
            # These modules import verl, which takes seconds. The checks above do not need it.
            from transformers import AutoTokenizer

            from verl_gsd.lab.training.engine import load_model
            from verl_gsd.lab.training.prompts import all_training_prompts
            from verl_gsd.lab.training.verifier import InlineVerifier

            self.model: Any = load_model(str(self.path))
            tokenizer = AutoTokenizer.from_pretrained(self.path, trust_remote_code=False)
            self._prompts = all_training_prompts(config, tokenizer)
            self._verifier = InlineVerifier(config, tokenizer)
        self.prompts: Sequence[Tokens] = self._prompts.ids
        self._ends, self._longest = end_tokens(str(self.path)), int(config.data.max_response_length)
        self._solver = ExactSolver(
            self.model, tokenizer, max_tokens=self._longest, ends=self._ends, temperature=self.temperature
        )

    @torch.no_grad()
    def measure(
        self, groups: int, size: int, seed: int, on_prompts: Callable[[int], None] = lambda count: None
    ) -> tuple[ExactRates, list[StudyGroup]]:
        """Exact solve rates of all N prompts, and ``groups`` groups of ``size`` responses to each, in their order.

        Args:
            on_prompts: called after each pass with its number of prompts.

        Raises:
            ConfigError: the reward function failed. A study of fewer responses would be about other groups.
        """
        generator = torch.Generator().manual_seed(seed)
        rates: list[ExactRates] = []
        sampled_groups: list[StudyGroup] = []
        per_pass = max(1, min(_PROMPTS, _RESPONSES // (groups * size)))
        for start in range(0, len(self.prompts), per_pass):
            part = self._prompts.part(start, start + per_pass)
            prefix = read_prompts(self.model, part.ids)
            rates.append(self._solver.rates_of_read(prefix, part.answers))
            sampled = continue_prompts(
                self.model,
                prefix,
                [groups * size] * len(part),
                max_tokens=self._longest,
                ends=self._ends,
                sampling=self._sampling,
                generator=generator,
            )
            for number in range(len(part)):
                row = part.row(number)
                verdicts: dict[tuple[int, ...], tuple[float, float]] = {}
                for group in range(groups):
                    first = (number * groups + group) * size
                    responses = [response.tokens for response in sampled[first : first + size]]
                    for response in map(tuple, responses):
                        if response not in verdicts:
                            reward = self._verifier.reward(row, response)
                            if reward.failure is not None:
                                raise ConfigError(_failed_reward(reward.failure, *part.keys[number]))
                            verdicts[response] = reward.score, float(reward.info["acc"])
                    figures = np.array([verdicts[tuple(response)] for response in responses])
                    sampled_groups.append(StudyGroup(start + number, responses, figures[:, 0], figures[:, 1]))
            on_prompts(len(part))
        return joined(rates), sampled_groups


def _failed_reward(failure: Failure, source: str, index: int) -> str:
    return (
        f"data.train_files: the reward function {failure.describe()} (data_source={source}, index={index}). Correct "
        "this prompt, or remove it from the data."
    )


def _sampling(config: DictConfig) -> TokenSampling:
    rollout = config.actor_rollout_ref.rollout
    return TokenSampling(float(rollout.temperature), int(rollout.top_k), float(rollout.top_p))


def _model_folder(config: DictConfig, folder: Path | None) -> Path:
    """The folder of the policy.

    Raises:
        ConfigError: it has no model.
    """
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"--model {folder}: there is no model in this folder (it has no config.json). Use the folder of a "
                "Hugging Face model."
            )
        return folder
    path = Path(config.actor_rollout_ref.model.path)
    if not (path / "config.json").is_file():
        name = OmegaConf.select(config, "task.name")
        raise ConfigError(
            f"actor_rollout_ref.model.path={path}: there is no model in this folder. Run verl-gsd prepare {name}, or "
            "use --model FOLDER."
        )
    return path
