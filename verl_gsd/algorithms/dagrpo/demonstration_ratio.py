r"""The policy ratio on the tokens of a demonstration, whose author is not the policy.

Paper: "Learning to Reason under Off-Policy Guidance" (LUFFY), arXiv 2504.14945. DaGRPO (arXiv 2512.06337) takes its
anchors from LUFFY. DaGRPO's own equations were not available to us; that it uses LUFFY's ratio is our reading.

If the expert's probability is taken as 1, the ratio of a token is p = pi_theta(token), without clipping. LUFFY shapes
this ratio:

    f(p) = p / (p + gamma),   gamma = 0.1,       grad(A f) = A gamma p / (p + gamma)^2 grad log p

The weight of a token has its maximum A/4 at p = gamma. It is 0.083 A at p = 1 and at p = 0.01, and 0.0098 A at
p = 0.001. The policy therefore still learns from tokens that it finds unlikely. Above p = 0.216, the weight is smaller
than that of the unshaped ratio.

The alternative ``one`` is exp(log p - detach(log p)). It has the value 1 and the gradient A grad log p, which is
advantage-weighted supervised fine-tuning.
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from verl_gsd.algorithms.dagrpo.settings import check_ratio


def demonstration_ratio(log_prob: torch.Tensor, *, ratio: Literal["shaped", "one"], gamma: float = 0.1) -> torch.Tensor:
    """The ratio that replaces pi_theta / pi_old on a demonstration's tokens.

    Args:
        log_prob: any shape: log pi_theta of each token, with a gradient.
        ratio: ``shaped`` or ``one``.
        gamma: parameter of ``shaped``, above 0.

    Returns:
        A tensor with the shape and dtype of ``log_prob``.

    Raises:
        ValueError: a setting is out of range.
    """
    check_ratio(ratio, gamma)
    if ratio == "one":
        return torch.exp(log_prob - log_prob.detach())
    # p / (p + gamma) = sigmoid(log p - log gamma), which divides no two tiny numbers.
    return torch.sigmoid(log_prob - math.log(gamma))
