r"""GSD's identity on a real policy: the gradient of a group is sigma^(2 - alpha) times the score difference.

A group has G responses to one prompt with rewards R_i, mean mu and population standard deviation sigma. s_i is the
score of a response: the gradient of its log-probability, summed over its tokens, with respect to all weights. The
gradient of the group under the dial (``dial.py``, with ddof = 0 and eps = 0) is

    g = (1/G) \sum_i A_i s_i,    A_i = (R_i - mu) / sigma^alpha.

For binary rewards g = sigma^(2 - alpha) (s+ - s-), where s+ and s- are the mean scores of the right and of the wrong
responses (arXiv 2607.00152, Theorem 1, for alpha = 1). For other rewards g = sigma^(2 - alpha) b, where
b = Cov(R, s) / Var(R) is the slope of the regression of the scores on the rewards. That generalization is ours. The
identity holds for the first update after sampling (the ratio is 1), without KL or entropy terms. For alpha = 2,
sigma must be above the dial's floor. In a group by itself it always is, unless the rewards differ by less than a
fourteenth of their size.

Both sides are computed by separate backward passes. Weights and log-probabilities are in float64, but models can have
parts that always compute in float32, such as the RMSNorm of Llama. Relative errors are then about 1e-7, not 1e-15.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl_gsd.dial import dial_advantage
from verl_gsd.lab.summary import START_EDGES
from verl_gsd.lab.training.policy import Tokens, read_prompts, response_logits

ALPHAS = (0.0, 1.0, 2.0)


@dataclass(frozen=True)
class IdentityOfGroup:
    """Both sides of the identity for one group.

    Attributes:
        rate: the exact solve rate of its prompt.
        sigma: population standard deviation of its rewards.
        difference: the norm of s+ - s-, or of b for rewards other than 0 and 1.
        norms: the norm of g for each alpha.
        errors: the norm of g - sigma^(2 - alpha) (s+ - s-), relative to that of g, for each alpha.
    """

    rate: float
    sigma: float
    difference: float
    norms: tuple[float, ...]
    errors: tuple[float, ...]


def spread_over_rates(rates: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of up to ``count`` of N rates, (n,) int64, equally many from each interval between ``START_EDGES``.

    An interval with fewer rates provides all of them, so that the result can be shorter than ``count``.
    """
    rng = np.random.default_rng(seed)
    interval = interval_of(rates)
    shuffled = [rng.permutation(np.flatnonzero(interval == number)) for number in range(len(START_EDGES) - 1)]
    each = -(-count // len(shuffled))
    return np.concatenate([indices[:each] for indices in shuffled])[:count]


def interval_of(rates: np.ndarray) -> np.ndarray:
    """(N,) the number of each rate's interval between ``START_EDGES``. A rate on an edge belongs to the one above."""
    return np.asarray(np.digitize(rates, START_EDGES[1:-1]))


class IdentityMeter:
    """Measures groups of one policy.

    Args:
        model: the policy. A copy in float64 is used.
        temperature: divides the logits, as in sampling.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        self._model, self._temperature = copy.deepcopy(model).double(), temperature
        self._weights = [weight for weight in self._model.parameters() if weight.requires_grad]

    def measure(self, prompt: Tokens, responses: Sequence[Tokens], rewards: np.ndarray, rate: float) -> IdentityOfGroup:
        """Measure one group.

        Args:
            prompt: token ids.
            responses: token ids of G responses.
            rewards: (G,), not all equal.
            rate: copied to the result.

        Raises:
            ValueError: all rewards are equal.
        """
        values = torch.as_tensor(rewards, dtype=torch.float64)
        if values.min() == values.max():
            raise ValueError(f"All rewards of the group are {values[0].item():g}. Use a group with different rewards.")
        log_probs = self._log_probs(prompt, responses)
        sigma = float(values.std(correction=0))
        if set(values.tolist()) == {0.0, 1.0}:
            right = values == 1
            slope = self._gradient(log_probs[right].mean()) - self._gradient(log_probs[~right].mean())
        else:
            scores = torch.stack([self._gradient(log_prob) for log_prob in log_probs])
            design = torch.stack([torch.ones_like(values), values], dim=1)
            slope = torch.linalg.pinv(design)[1] @ scores
        norms, errors = [], []
        for alpha in ALPHAS:
            advantages = dial_advantage(values, [0] * len(values), alpha=alpha, ddof=0, eps=0)
            gradient = self._gradient((advantages * log_probs).mean())
            norms.append(float(gradient.norm()))
            errors.append(float((gradient - sigma ** (2 - alpha) * slope).norm() / gradient.norm()))
        return IdentityOfGroup(rate, sigma, float(slope.norm()), tuple(norms), tuple(errors))

    def _log_probs(self, prompt: Tokens, responses: Sequence[Tokens]) -> torch.Tensor:
        """(G,) log pi of whole responses, with a graph."""
        rows = [torch.as_tensor(response) for response in responses]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        is_token = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows]).unsqueeze(1)
        prompt_of = torch.zeros(len(rows), dtype=torch.int64)
        logits = response_logits(self._model, read_prompts(self._model, [prompt]), prompt_of, padded)
        log_probs = torch.log_softmax(logits / self._temperature, dim=-1)
        return (log_probs.gather(-1, padded.unsqueeze(-1)).squeeze(-1) * is_token).sum(dim=1)

    def _gradient(self, value: torch.Tensor) -> torch.Tensor:
        """(W,) the gradient with respect to all weights."""
        parts = torch.autograd.grad(value, self._weights, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])
