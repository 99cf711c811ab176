r"""The policy gradient on a demonstration's tokens: a ratio that an expert's response can have.

Paper: "Learning to Reason under Off-Policy Guidance" (LUFFY), arXiv 2504.14945, from which DaGRPO (arXiv 2512.06337)
takes its anchors; DaGRPO's own equations were not available to us, and that it uses this ratio is our reading. With the
expert's probability taken as 1 a token's ratio would be p = pi_theta(token), unclipped; the paper shapes it:

    f(p) = p / (p + gamma),   gamma = 0.1,       grad(A f) = A gamma p / (p + gamma)^2 grad log p

so that the weight of a token peaks at A/4 for p = gamma, is .083 A at p = 1 and at p = .01, and .0098 A at .001: tokens
that the policy finds unlikely still teach it, and above p = .216 less than the plain ratio would.

``one`` instead is exp(log p - detach(log p)), of value 1 and gradient A grad log p: advantage-weighted supervised
fine-tuning.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from verl_gsd.algorithms.dagrpo.settings import check_ratio


def demonstration_ratio(log_prob: torch.Tensor, *, ratio: Literal["shaped", "one"], gamma: float = 0.1) -> torch.Tensor:
    """What stands in the place of pi_theta / pi_old on a demonstration's tokens.

    Args:
        log_prob: any shape, log pi_theta of each token, with a gradient.
        ratio: ``shaped`` or ``one``.
        gamma: of ``shaped``, above 0.

    Returns:
        The shape and dtype of ``log_prob``.

    Raises:
        ValueError: a setting is out of range.
    """
    check_ratio(ratio, gamma)
    if ratio == "one":
        return torch.exp(log_prob - log_prob.detach())
    # p / (p + gamma) = sigmoid(log p - log gamma): no division of two tiny numbers, however small p is.
    return torch.sigmoid(log_prob - math.log(gamma))
