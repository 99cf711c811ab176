r"""HA-DW reweights advantages by how hard a prompt is, compared with the policy's past accuracy.

Paper: "Your Group-Relative Advantage Is Biased", arXiv 2601.08521. p_hat is the share of right responses in a group.
The anchor C is the policy's running accuracy before the current batch. The advantage A of a response is multiplied by

    Phi = lambda_scale * exp(D * M),    D = -sgn(A) sgn(p_hat - C),    M = |p_hat - C|

On prompts harder than the anchor (p_hat < C), right responses count for more and wrong ones for less. On easier prompts
it is the reverse. Phi is positive. Multiplying A before a clipped objective therefore equals multiplying it inside the
objective: the clip region stays the same, and one factor works for GRPO, GSPO and DAPO.

The anchor observes the accuracy y = (right responses) / (all responses) of every batch. The batch includes groups that
dynamic sampling evicts. There are two update rules. The soft one is the paper's method (Section 3.1, Equations 7 to
12) and our default. The hard one is a variant in its Appendix F, and the one that the authors' code runs:

    soft   C+ = (1 - eta_t) C + eta_t y,  eta_t = clip(eta * sigma_t, floor, cap),  sigma_t: std of C's last m values
    hard   C+ = mean of the last h batch accuracies

How this differs from the paper:

- The paper does not state eta, m, h or C_0. We use eta = 20 and m = h = 10. C_0 is the accuracy of the first batch.
- Equation 134 also writes the hard rule as ((h - 1) / h) C + y / h. This equals the mean of the last h accuracies only
  if C is the mean of the h - 1 before. We use the mean.
- We bound eta_t by a floor (0.05) and a cap (0.2). Under the paper's rule, sigma_t = 0 is a fixed point for every eta,
  and without a cap eta_t amplifies its own noise. floor = 0, cap = 1, seeds = 2 is the paper's rule.
- C is the value before the current batch, as the paper defines it. The authors' code includes the current batch.
- In a mixture of data sets, each data set has its own anchor (``AnchorBank``).
- If a budget or the data gives prompts different numbers of responses, y is the mean over prompts.
- We do not claim unbiasedness. Conditioning on mixed groups rescales a prompt's gradient but does not change its
  direction. For G >= 4, the paper's lambda_scale of 1.3 never lies in the joint interval for right and wrong responses.

``anchors.py`` has the anchors. ``extension.py`` keeps them between the steps of a run.
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
    """Phi, one number per response.

    Args:
        advantages: (N,) float, the advantages that Phi will multiply.
        group_accuracy: (N,), p_hat of each row's group, in [0, 1].
        anchor: C, a number or one per row. NaN means that nothing was observed yet; Phi is then 1.
        lambda_scale: above 0.

    Returns:
        (N,) in the advantages' dtype, all above 0.

    Raises:
        ValueError: lambda_scale is not above 0, or the accuracy of a row whose advantage is not 0 is outside [0, 1].
    """
    if not 0 < lambda_scale < math.inf:
        raise ValueError(f"lambda_scale={lambda_scale}: out of range. Set it to a finite number above 0.")
    accuracy = group_accuracy.double()
    bad = torch.nonzero((advantages != 0) & ~((accuracy >= 0) & (accuracy <= 1)))
    if len(bad):
        row = int(bad[0])
        raise ValueError(f"group_accuracy[{row}] is {group_accuracy[row].item()}. Set it to an accuracy in [0, 1].")
    distance = accuracy - torch.as_tensor(anchor, dtype=torch.float64, device=accuracy.device)
    phi = lambda_scale * torch.exp(-advantages.sign().double() * distance)
    return torch.where(distance.isnan(), 1.0, phi).to(advantages.dtype)
