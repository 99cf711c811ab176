r"""GVPO: the difference between implicit and actual rewards, centred within a group and squared.

Paper: "GVPO: Group Variance Policy Optimization", arXiv 2504.19599. For k responses y_i to one prompt, with rewards R_i
and s_i = log pi_theta(y_i) - log pi_theta'(y_i), summed over the response's tokens,

    L = 1/2 sum_i (beta (s_i - mean s) - A_i)^2,    A_i = R_i - mean R

    grad L = -beta sum_i w_i grad log pi_theta(y_i),    w_i = A_i - beta (s_i - mean s)          (Equation 8)

The weights of a group sum to zero, so that the gradient is the same whether mean s is differentiated or not, and a loss
needs no more of a group than its *detached* weights: then responses may be spread over micro-batches and workers as one
likes. By Theorems 3.1 and 3.2 the one optimum is pi_theta' exp(R / beta) / Z whatever the responses were sampled from,
if only that could have given any response.

How this differs from the paper:
- A group is divided by k - 1, as in the authors' listing (Equation 8 does not), and a batch is the mean over its groups
  of two or more: then the batch's loss is an unbiased estimate of half of Equation 9, and no group weighs more for
  having more responses. ``normalizer`` has the other two.
- A group of one response has no centre and counts nowhere. The listing would divide 0 by 0.
- Var(log pi_theta) and Cov(log pi_theta, log pi_theta') can be left out of the weights, for the paper's Table 2.
"""

from __future__ import annotations

import warnings

import torch

from verl_gsd.algorithms.gvpo.settings import check_gvpo_settings
from verl_gsd.groups import Labels, float_rows, group_stats, require_finite, require_rows


def gvpo_loss(
    log_ratio: torch.Tensor,
    rewards: torch.Tensor,
    index: Labels,
    *,
    beta: float = 0.1,
    normalizer: str = "k-1",
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The mean over groups of two or more of 1/2 sum_i (beta (s_i - mean s) - A_i)^2 / (k - 1).

    Args:
        log_ratio: (N,), s_i, with a gradient; the sum over a response's tokens, not their mean.
        rewards: (N,), one a response.
        index: N hashable labels; rows with equal labels are one group.
        beta: weight of the divergence from pi_theta', above 0.
        normalizer: what a group's sum is divided by: "k-1", "k" or "none".
        mask: (N,) bool; False is a row of no group. A group is then centred over the rows that are left.

    Returns:
        The loss, a scalar in ``log_ratio``'s dtype, float32 at least (0 where every group is of one), and ``metrics``,
        see ``describe``.

    Raises:
        ValueError: a setting is out of range, ``groups.group_stats`` refuses the batch, or a log-ratio that counts is
            no finite number; the message names the row.
    """
    check_gvpo_settings(beta, normalizer)
    log_ratio = float_rows(log_ratio, "log_ratio")
    float_rows(rewards, "rewards")
    rewards = rewards.to(log_ratio.device, torch.float64)  # whole numbers beyond float32's are exact
    require_rows(len(log_ratio), rewards=rewards)
    stats = group_stats(rewards, index, mask)
    group, counted = stats.group, stats.group >= 0
    require_finite(log_ratio.detach(), "log_ratio", where=counted)
    s = torch.where(counted, log_ratio, 0).double()
    advantages = (rewards - stats.per_row(stats.mean)).masked_fill(~counted, 0)
    residual = beta * centred(s, group) - advantages
    loss = 0.5 * (group_coefficients(group, normalizer) * residual.square()).sum()
    metrics = describe(s.detach(), advantages, group, beta=beta)
    if alone := int(metrics["gvpo/groups_of_one"]):
        warnings.warn(f"GVPO: {alone} of {len(stats.size)} groups are of one response and teach nothing", stacklevel=2)
    return loss.to(log_ratio.dtype), metrics


def gvpo_row_loss(
    log_prob: torch.Tensor,
    response_mask: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """-beta sum_i c_i w_i sum_t log pi_theta(y_it): the same gradient, a share of it for any share of the rows.

    Its gradients add up to that of ``gvpo_loss`` over any division of the rows; its value means nothing.

    Args:
        log_prob: (B, T), with a gradient, of the responses' tokens.
        response_mask: (B, T), 1 on tokens that count.
        weights: (B,), w_i of ``gvpo_weights`` over whole groups; used detached.
        coefficients: (B,), c_i of ``group_coefficients`` over the whole mini-batch.

    Returns:
        A scalar in ``log_prob``'s dtype, float32 at least.

    Raises:
        ValueError: shapes do not match.
    """
    if log_prob.ndim != 2 or response_mask.shape != log_prob.shape:
        raise ValueError(
            f"log_prob is {tuple(log_prob.shape)} and response_mask {tuple(response_mask.shape)}: write (B, T)"
        )
    require_rows(len(log_prob), weights=weights, coefficients=coefficients)
    log_prob = log_prob.to(torch.promote_types(log_prob.dtype, torch.float32))
    of_response = torch.where(response_mask.bool(), log_prob, 0).sum(dim=-1)
    return -beta * ((coefficients.double() * weights.double()).detach().to(log_prob.dtype) * of_response).sum()


def gvpo_weights(advantages: torch.Tensor, tilt: torch.Tensor, group: torch.Tensor, *, beta: float) -> torch.Tensor:
    """w_i = A_i - beta (tilt_i - mean tilt), which sum to zero within each group.

    Args:
        advantages: (N,), A_i = R_i - mean R over the group's rows.
        tilt: (N,), s_i, or what ``tilt_of`` leaves of it; both it and its mean from the same pass over the model.
        group: (N,) int64, numbers of groups; -1 is a row of no group and gets 0.

    Returns:
        (N,) in the wider of both dtypes, float32 at least.

    Raises:
        ValueError: shapes do not match.
    """
    require_rows(len(group), advantages=advantages, tilt=tilt)
    return (float_rows(advantages, "advantages") - beta * centred(tilt, group)).masked_fill(group < 0, 0)


def tilt_of(
    log_ratio: torch.Tensor, log_reference: torch.Tensor, *, var: bool = True, cov: bool = True
) -> torch.Tensor:
    """What a weight is tilted by: s_i = l_i - l'_i, or one of its two terms alone (Table 2).

    The gradient of Var(l) is that of l_i, that of Cov(l, l') is -l'_i; leaving out both leaves REINFORCE.

    Args:
        log_ratio: (N,), s_i.
        log_reference: (N,), l'_i = log pi_theta'(y_i).
    """
    if var and cov:
        return log_ratio  # not (s + l') - l', which loses the digits that s keeps
    return var * (log_ratio + log_reference) - cov * log_reference


def group_coefficients(group: torch.Tensor, normalizer: str = "k-1") -> torch.Tensor:
    """c_i = 1 / ((k_g - 1) P) of the row's group g, where P groups have two rows or more; (N,) float64, 0 elsewhere.

    Args:
        group: (N,) int64, numbers of groups of one mini-batch over all workers; -1 is a row of no group.
        normalizer: see ``gvpo_loss``.

    Raises:
        ValueError: there is no such normaliser.
    """
    check_gvpo_settings(1.0, normalizer)
    size = _sizes(group)
    divisor = {"k-1": size - 1, "k": size, "none": torch.ones_like(size)}[normalizer].clamp(min=1)
    several = size >= 2
    of_group = several / (divisor * several.sum().clamp(min=1)).double()
    return _per_row(of_group, group)


def centred(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """``values`` less the mean of their group, (N,), float32 at least; 0 in rows of no group."""
    values = float_rows(values, "values")
    size = _sizes(group)
    member = group >= 0
    sums = values.new_zeros(len(size)).index_add(0, group[member], values[member])
    return torch.where(member, values - _per_row(sums / size.clamp(min=1).to(values.dtype), group), 0)


def describe(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    group: torch.Tensor,
    *,
    beta: float,
    tokens: torch.Tensor | None = None,
) -> dict[str, float]:
    """Figures of one mini-batch, (N,) each, in float64; groups of one and rows of no group count in one figure alone.

    Returns:
        ``gvpo/groups_of_one``, and of the other groups:
        ``gvpo/mse``, the mean over groups of sum (beta (s - mean s) - A)^2 / (k - 1), in units of the reward squared;
        ``gvpo/s_std``, the mean over groups of the standard deviation of s, divisor k - 1, in nats;
        ``gvpo/beta_s_std``;
        ``gvpo/sequence_kl``, the mean of -s in nats, which for responses from pi_theta' estimates
        KL(pi_theta' || pi_theta) without bias;
        and where they are defined ``gvpo/pull_over_push``, mean |beta (s - mean s)| over mean |A|, and
        ``gvpo/s_length_correlation``, of s with the response's ``tokens``.
    """
    size = _sizes(group)
    metrics = {"gvpo/groups_of_one": float((size == 1).sum())}
    kept = _per_row(size, group) >= 2
    if not kept.any():
        return metrics
    share = group_coefficients(group)
    s, pull, push = log_ratio.double(), beta * centred(log_ratio.double(), group), advantages.double()
    per_group = torch.zeros(len(size), dtype=torch.float64, device=group.device)
    variance = per_group.index_add(0, group[kept], (share * centred(s, group).square())[kept])  # / P each
    several = (size >= 2).sum()
    s_std = float((variance * several).sqrt().sum() / several)
    metrics |= {
        "gvpo/mse": float((share * (pull - push).square())[kept].sum()),
        "gvpo/s_std": s_std,
        "gvpo/beta_s_std": beta * s_std,
        "gvpo/sequence_kl": float(-s[kept].mean()),
    }
    if push[kept].any():
        metrics["gvpo/pull_over_push"] = float(pull[kept].abs().mean() / push[kept].abs().mean())
    if tokens is not None:
        pair = torch.stack([s[kept], tokens[kept].double()])
        if (pair.amax(dim=1) > pair.amin(dim=1)).all():
            metrics["gvpo/s_length_correlation"] = float(torch.corrcoef(pair)[0, 1])
    return metrics


def _sizes(group: torch.Tensor) -> torch.Tensor:
    return torch.bincount(group[group >= 0], minlength=1)


def _per_row(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    return values[group.clamp(min=0)].masked_fill(group < 0, 0)
