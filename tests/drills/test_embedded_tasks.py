"""How often the warm-started policies of the embedded tasks are right.

A solve rate is exact here: it is the probability that the policy generates the tokens of the answer and then ends.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from running import verl_gsd
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_gsd.tasks import embedded
from verl_gsd.tasks.arithmetic_graded import TOLERANCE, compute_score


class MadeTask:
    """A task in the cache or in ``folder``: its policy, its training prompts and their answers."""

    def __init__(self, name, prompts=None, folder=None):
        if folder is None:
            assert verl_gsd("prepare", name).returncode == 0
            folder = Path(os.environ["VERL_GSD_CACHE"]) / name
        self.model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        rows = pq.read_table(folder / "train.parquet").to_pylist()[:prompts]  # shuffled
        self.answers = [row["reward_model"]["ground_truth"] for row in rows]
        self.prompts = [
            self.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
            for row in rows
        ]

    @torch.no_grad()
    def probabilities(self, responses):
        """(Q,) the probability of one response per prompt at temperature 1."""
        endings = [[*self.tokenizer.encode(text), self.tokenizer.eos_token_id] for text in responses]
        probabilities = []
        for start in range(0, len(endings), 512):
            pairs = list(zip(self.prompts[start : start + 512], endings[start : start + 512], strict=True))
            tokens = torch.zeros(len(pairs), max(len(prompt) + len(ending) for prompt, ending in pairs), dtype=int)
            counts = torch.zeros(tokens.shape, dtype=bool)
            for row, (prompt, ending) in enumerate(pairs):
                tokens[row, : len(prompt) + len(ending)] = torch.tensor(prompt + ending)
                counts[row, len(prompt) : len(prompt) + len(ending)] = True
            logs = self.model(tokens).logits[:, :-1].log_softmax(-1)
            of_tokens = logs.gather(-1, tokens[:, 1:, None])[..., 0]
            probabilities.append((of_tokens * counts[:, 1:]).sum(-1).exp())
        return torch.cat(probabilities).numpy()


@pytest.mark.minutes(3)
def test_most_prompts_of_arithmetic_hard_are_hard_and_few_are_hopeless():
    task = MadeTask("arithmetic_hard")
    rates = task.probabilities(task.answers)
    assert len(rates) == 2560
    assert 0.08 < rates.mean() < 0.12, rates.mean()
    assert 0.28 < np.mean(rates < 0.02) < 0.40, np.mean(rates < 0.02)
    assert np.mean(1 - rates**8 - (1 - rates) ** 8) > 0.3, "groups of 8 that have right and wrong responses"


@pytest.mark.minutes(3)
def test_groups_of_arithmetic_graded_have_several_rewards_and_few_are_silent():
    task = MadeTask("arithmetic_graded", prompts=640)
    shares = np.zeros((len(task.answers), TOLERANCE + 1))  # of the rewards 0, 0.1, ..., 1
    for offset in range(1 - TOLERANCE, TOLERANCE):
        responses = [str(int(answer) + offset) for answer in task.answers]
        score = compute_score("arithmetic_graded", responses[0], task.answers[0])["score"]
        shares[:, round(score * TOLERANCE)] += task.probabilities(responses)
    shares[:, 0] = 1 - shares[:, 1:].sum(1)
    exact = shares[:, -1]
    silent, silent_if_binary = (shares**8).sum(1), exact**8 + (1 - exact) ** 8
    assert silent.mean() < 0.1 < silent_if_binary.mean(), (silent.mean(), silent_if_binary.mean())
    assert (1 - (1 - shares) ** 8).sum(1).mean() > 2.8, "distinct rewards in a group of 8"


@pytest.mark.minutes(3)
def test_a_warm_start_on_this_machine_is_about_as_good_as_that_of_the_package(tmp_path, monkeypatch):
    """Processors round in different ways, so that the two differ. Those of two machines differed by 0.025."""
    packaged = MadeTask("arithmetic")
    monkeypatch.setattr(embedded, "STARTS", tmp_path)
    own = MadeTask("arithmetic", folder=embedded.ensure(tmp_path / "task"))
    difference = own.probabilities(own.answers).mean() - packaged.probabilities(packaged.answers).mean()
    assert abs(difference) < 0.06, difference
