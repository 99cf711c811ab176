r"""GVPO: the squared difference between the implicit and the actual rewards of a group, both centred.

Paper: "GVPO: Group Variance Policy Optimization", arXiv 2504.19599. k responses y_i to one prompt have rewards R_i and
log-ratios s_i = log pi_theta(y_i) - log pi_theta'(y_i), summed over the response's tokens. The loss of the group is

    L = 1/2 sum_i (beta (s_i - mean s) - A_i)^2,    A_i = R_i - mean R

    grad L = -beta sum_i w_i grad log pi_theta(y_i),    w_i = A_i - beta (s_i - mean s)          (Equation 8)

The weights of a group sum to zero. The gradient is therefore the same whether mean s is differentiated or not, and a
loss only needs the *detached* weights of a group. Given these, the responses of a group can be spread over any
micro-batches and workers. By Theorems 3.1 and 3.2 the only optimum is pi_theta' exp(R / beta) / Z. It does not depend
on the policy that sampled the responses, if this policy can generate every response.

A group may therefore contain responses that the policy did not generate: its own earlier ones, or demonstrations of an
expert. They need no importance weight, ratio or clip. Each counts like any other row of its group: its reward is in
mean R, its s_i in mean s, and the weights sum to zero over all rows of the group. Its s_i is computed from the
log-probabilities of its tokens under pi_theta', as for all rows, and not from those of its author.

Demonstrations may even be chosen by the rewards of the group's other rows ("only if all failed"). At the optimum,
beta s_i - R_i is the same number for all responses to a prompt. The loss of *every* group is then 0, and no choice of
rows can move this minimum. It is the only one if every response still has a chance to be in a group with others, which
the policy's own samples give it. All this needs rewards that are a function of the response. If rewards have noise, a
choice by rewards keeps unlucky draws, and a verified demonstration is a lucky one: both move the optimum.

How this differs from the paper:

- We divide a group's sum by k - 1, as the authors' listing does (Equation 8 does not), and average over the groups of
  two or more responses. The loss of a batch is then an unbiased estimate of half of Equation 9, and groups with more
  responses do not weigh more. ``normalizer`` offers the two alternatives.
- A group of one response has no centre and is ignored. The authors' listing would divide 0 by 0.
- The terms Var(log pi_theta) and Cov(log pi_theta, log pi_theta') can be left out of the weights, to reproduce the
  paper's Table 2.
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
    """The mean, over groups of two or more responses, of 1/2 sum_i (beta (s_i - mean s) - A_i)^2 / (k - 1).

    Args:
        log_ratio: (N,), s_i, with a gradient: the sum over a response's tokens, not their mean.
        rewards: (N,), one per response.
        index: N hashable labels; rows with equal labels are one group.
        beta: weight of the divergence from pi_theta', above 0.
        normalizer: the divisor of a group's sum: "k-1", "k" or "none".
        mask: (N,) bool; False marks a row of no group. A group is then centred over its remaining rows.

    Returns:
        The loss, a scalar in ``log_ratio``'s dtype, float32 at least (0 if every group has one response), and the
        metrics of ``gvpo_metrics``.

    Raises:
        ValueError: a setting is out of range, ``groups.group_stats`` rejects the batch, or the log-ratio of a row that
            counts is not finite; the message names the row.
    """
    check_gvpo_settings(beta, normalizer)
    log_ratio = float_rows(log_ratio, "log_ratio")
    float_rows(rewards, "rewards")
    rewards = rewards.to(log_ratio.device, torch.float64)  # float32 would round large integers
    require_rows(len(log_ratio), rewards=rewards)
    stats = group_stats(rewards, index, mask)
    group, counted = stats.group, stats.group >= 0
    require_finite(log_ratio.detach(), "log_ratio", where=counted)
    s = torch.where(counted, log_ratio, 0).double()
    advantages = (rewards - stats.per_row(stats.mean)).masked_fill(~counted, 0)
    residual = beta * centred(s, group) - advantages
    loss = 0.5 * (group_coefficients(group, normalizer) * residual.square()).sum()
    metrics = gvpo_metrics(s.detach(), advantages, group, beta=beta)
    if groups_of_one := int(metrics["gvpo/groups_of_one"]):
        warnings.warn(
            f"GVPO ignores {groups_of_one} of {len(stats.size)} groups, which have only one response", stacklevel=2
        )
    return loss.to(log_ratio.dtype), metrics


def gvpo_row_loss(
    log_prob: torch.Tensor,
    response_mask: torch.Tensor,
    weights: torch.Tensor,
    coefficients: torch.Tensor,
    *,
    beta: float,
) -> torch.Tensor:
    """-beta sum_i c_i w_i sum_t log pi_theta(y_it), a loss for any subset of the rows.

    However the rows are divided, the gradients of the parts add up to the gradient of ``gvpo_loss``. The value of this
    loss has no meaning.

    Args:
        log_prob: (B, T), with a gradient: log-probabilities of the responses' tokens.
        response_mask: (B, T), 1 on tokens that count.
        weights: (B,), w_i, which ``gvpo_weights`` computed over whole groups. They are detached.
        coefficients: (B,), c_i, which ``group_coefficients`` computed over the whole mini-batch.

    Returns:
        A scalar in ``log_prob``'s dtype, float32 at least.

    Raises:
        ValueError: shapes do not match.
    """
    if log_prob.ndim != 2 or response_mask.shape != log_prob.shape:
        raise ValueError(
            f"log_prob has shape {tuple(log_prob.shape)} and response_mask {tuple(response_mask.shape)}. Both need the "
            "same shape (B, T)."
        )
    require_rows(len(log_prob), weights=weights, coefficients=coefficients)
    log_prob = log_prob.to(torch.promote_types(log_prob.dtype, torch.float32))
    sequence_log_prob = torch.where(response_mask.bool(), log_prob, 0).sum(dim=-1)
    return -beta * ((coefficients.double() * weights.double()).detach().to(log_prob.dtype) * sequence_log_prob).sum()


def gvpo_weights(advantages: torch.Tensor, term: torch.Tensor, group: torch.Tensor, *, beta: float) -> torch.Tensor:
    """w_i = A_i - beta (term_i - mean term), which sum to zero within each group.

    Args:
        advantages: (N,), A_i = R_i - mean R over the group's rows.
        term: (N,), the result of ``log_ratio_term``, by default s_i. All values of a group must come from one forward
            pass.
        group: (N,) int64, the number of each row's group; -1 marks a row of no group, which gets 0.

    Returns:
        (N,) in the wider of both dtypes, float32 at least.

    Raises:
        ValueError: shapes do not match.
    """
    require_rows(len(group), advantages=advantages, term=term)
    return (float_rows(advantages, "advantages") - beta * centred(term, group)).masked_fill(group < 0, 0)


def log_ratio_term(
    log_ratio: torch.Tensor, log_reference: torch.Tensor, *, var: bool = True, cov: bool = True
) -> torch.Tensor:
    """The term of the weights that depends on the policy: s_i = l_i - l'_i, or one of its two parts (Table 2).

    Var(l) contributes l_i to the weights, and Cov(l, l') contributes -l'_i. Without both, the loss is REINFORCE.

    Args:
        log_ratio: (N,), s_i.
        log_reference: (N,), l'_i = log pi_theta'(y_i).
    """
    if var and cov:
        return log_ratio  # (s + l') - l' would lose digits of s
    return var * (log_ratio + log_reference) - cov * log_reference


def group_coefficients(group: torch.Tensor, normalizer: str = "k-1") -> torch.Tensor:
    """c_i = 1 / ((k_g - 1) P), (N,) float64.

    k_g is the size of the row's group g, and P is the number of groups of two or more. Rows of no group and of groups
    of one get 0.

    Args:
        group: (N,) int64, the number of each row's group in one mini-batch over all workers; -1 marks a row of no
            group.
        normalizer: see ``gvpo_loss``.

    Raises:
        ValueError: the normalizer does not exist.
    """
    check_gvpo_settings(1.0, normalizer)
    size = _sizes(group)
    divisor = {"k-1": size - 1, "k": size, "none": torch.ones_like(size)}[normalizer].clamp(min=1)
    several = size >= 2
    by_group = several / (divisor * several.sum().clamp(min=1)).double()
    return _per_row(by_group, group)


def centred(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """``values`` minus the mean of their group, (N,), float32 at least; 0 in rows of no group."""
    values = float_rows(values, "values")
    size = _sizes(group)
    member = group >= 0
    sums = values.new_zeros(len(size)).index_add(0, group[member], values[member])
    return torch.where(member, values - _per_row(sums / size.clamp(min=1).to(values.dtype), group), 0)


def gvpo_metrics(
    log_ratio: torch.Tensor,
    advantages: torch.Tensor,
    group: torch.Tensor,
    *,
    beta: float,
    tokens: torch.Tensor | None = None,
) -> dict[str, float]:
    """Metrics of one mini-batch, computed in float64. All tensors have shape (N,).

    Returns:
        - ``gvpo/groups_of_one``, the number of groups with one response. The other metrics ignore these groups, and
          rows of no group:
        - ``gvpo/mse``, the mean over groups of sum (beta (s - mean s) - A)^2 / (k - 1), in units of the reward squared
        - ``gvpo/s_std``, the mean over groups of the standard deviation of s, with divisor k - 1, in nats
        - ``gvpo/beta_s_std``, beta times that
        - ``gvpo/sequence_kl``, the mean of -s in nats; an unbiased estimate of KL(pi_theta' || pi_theta) if pi_theta'
          generated the responses
        - if defined, ``gvpo/pull_over_push``: the mean of |beta (s - mean s)| divided by the mean of |A|
        - if defined, ``gvpo/s_length_correlation``: the correlation of s with the responses' ``tokens``
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
