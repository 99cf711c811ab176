r"""HA-DW: advantages reweighted by how hard a prompt is for the policy as it was so far.

Paper: "Your Group-Relative Advantage Is Biased", arXiv 2601.08521. With p_hat the share of right responses in a group
and C an anchor, the policy's running accuracy before this batch, a response's advantage A is multiplied by

    Phi = lambda_scale * exp(D * M),    D = -sgn(A) sgn(p_hat - C),    M = |p_hat - C|

so that on prompts harder than the anchor right responses count for more and wrong ones for less, and on easier prompts
the reverse. Phi is positive, so that multiplying A before a clipped objective is multiplying it inside: the clip region
does not move, and one factor serves GRPO, GSPO and DAPO.

The anchor observes y = (right responses) / (all responses) of every batch, dynamic sampling's evicted groups included:

    soft   C+ = (1 - eta_t) C + eta_t y,  eta_t = clip(eta * sigma_t, floor, cap),  sigma_t: std of C's last m values
    hard   C+ = mean of the last h batch accuracies

How this differs from the paper:
- It states neither eta, m, h nor C_0. Ours: eta = 20, m = h = 10, and the first batch's accuracy.
- eta_t has a floor and a cap. sigma_t = 0 is a fixed point of the paper's rule for every eta, and without a cap eta_t
  feeds on its own noise. floor = 0, cap = 1, seeds = 2 is the rule as written.
- C is the value before the current batch, as the paper defines it; the authors' code includes the batch.
- Mixtures of data sets have an anchor each (``AnchorBank``).
- Where a budget gives prompts different numbers of responses, y is the mean over prompts.
- We do not claim unbiasedness: conditioning on mixed groups rescales a prompt's gradient, it does not turn it, and the
  paper's lambda_scale of 1.3 lies in the joint interval for right and wrong responses nowhere from G = 4 on.

``anchors.py`` has the anchors, ``extension.py`` what a trainer keeps of them between steps.
"""

from __future__ import annotations

import math

import torch


def hadw_factor(
    advantages: torch.Tensor,
    group_accuracy: torch.Tensor,
    anchor: float | torch.Tensor,
    *,
    lambda_scale: float = 1.3,
) -> torch.Tensor:
    """Phi, one number a response.

    Args:
        advantages: (N,) float, what Phi will multiply.
        group_accuracy: (N,), p_hat of each row's group, in [0, 1].
        anchor: C, or one a row; where it is NaN nothing was observed yet, and Phi is 1.
        lambda_scale: above 0.

    Returns:
        (N,) in the advantages' dtype, all above 0.

    Raises:
        ValueError: lambda_scale is not above 0, or the accuracy of a row whose advantage is not 0 is outside [0, 1].
    """
    if not 0 < lambda_scale < math.inf:
        raise ValueError(f"lambda_scale={lambda_scale}: out of range. Set it to a finite number above 0")
    accuracy = group_accuracy.double()
    bad = torch.nonzero((advantages != 0) & ~((accuracy >= 0) & (accuracy <= 1)))
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"group_accuracy[{row}] is {group_accuracy[row].item()}; write an accuracy in [0, 1]")
    distance = accuracy - torch.as_tensor(anchor, dtype=torch.float64, device=accuracy.device)
    phi = lambda_scale * torch.exp(-advantages.sign().double() * distance)
    return torch.where(distance.isnan(), 1.0, phi).to(advantages.dtype)
