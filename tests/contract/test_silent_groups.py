"""Silent groups left out of the denominator, with verl's own losses and aggregation: every mode, however the rows of a
mini-batch are divided, against a slow reference in float64. tests/engine/test_silent_groups.py does the same on verl's
engine.
"""

import pytest
import torch

pytest.importorskip("verl")
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.workers.config import FSDPActorConfig, PolicyLossConfig

from verl_gsd.algorithms.silent_groups.conflicts import CONFLICTS
from verl_gsd.algorithms.silent_groups.denominator import in_silent_group, scale, unit_counts
from verl_gsd.conflicts import Condition
from verl_gsd.denominators import divided_by

MODES = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
ALLOWED = Condition.parse(CONFLICTS[0].setting).values
#: verl's losses that are rejected. Ours are registered in some processes only.
REJECTED = {"dro", "kl_cov", "clip_cov", "geo_mean"}
OURS = {"gvpo", "dagrpo"}
WIDTH, CLIP, DUAL_CLIP = 7, 0.2, 3.0
#: Groups of unequal sizes. The last row is padding.
LABELS = [*"aaaa", *"bb", *"ccc", "d", "padding"]
ROWS = len(LABELS)
#: name -> worker -> micro-batch -> rows
DIVISIONS = {
    "in one piece": [[[*range(ROWS)]]],
    "row by row": [[[row] for row in range(ROWS)]],
    "by tokens": [[[0, 5, 9], [1, 2, 3, 4], [10], [6, 7, 8]]],
    "two workers": [[[0, 2, 4, 6, 8]], [[1, 3, 5, 7, 9, 10]]],
    "three workers, micro-batches": [[[0], [1, 10]], [[2, 3, 4, 5]], [[6, 9], [7], [8]]],
}
#: name -> the silent groups
SILENT = {"none": "", "some": "bd", "all but a small one": "acd", "all": "abcd"}


def batch(silent, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(WIDTH) < torch.randint(1, WIDTH + 1, (ROWS, 1), generator=generator)
    mask[0, 1] = mask[5, 0] = False  # a tool's tokens
    mask[-1] = False
    old = -0.5 - 3 * torch.rand(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    noise = 0.4 * torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    advantages = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    advantages[[label in silent or label == "padding" for label in LABELS]] = 0
    noise[0], advantages[0] = 1.5, min(advantages[0], -advantages[0])  # beyond the dual clip, unless it is silent
    return {"old_log_prob": old, "log_prob": (old + noise).clamp(max=-0.01), "row": advantages, "response_mask": mask}


def actor(loss_mode, rollout_correction=None, **info):
    policy_loss = PolicyLossConfig(loss_mode=loss_mode, dro_beta=0.1, rollout_correction=rollout_correction)
    config = FSDPActorConfig(rollout_n=4, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss)
    config.global_batch_info.update(info)
    return config


def gradient(of, division, loss_mode, mode, factor=None, norm=9):
    """The gradient by log_prob that workers average. Each of them adds up micro-batches.

    ``factor`` multiplies the advantages. None: silent groups are left out.
    """
    if factor is None:
        is_response = torch.tensor([label != "padding" for label in LABELS])
        silent = in_silent_group(of["row"], LABELS, is_response)
        tokens = of["response_mask"].sum(dim=1)
        of_workers = [[row for rows in worker for row in rows] for worker in division]
        counts = sum(unit_counts(silent[rows], tokens[rows], torch.ones(len(rows))) for rows in of_workers)
        factor = scale(counts, divided_by(loss_mode, mode))
    info = {"dp_size": len(division), "batch_num_tokens": int(of["response_mask"].sum())}
    config = actor(loss_mode, **info, global_batch_size=ROWS, loss_scale_factor=norm)
    log_prob = of["log_prob"].clone().requires_grad_()
    for worker in division:
        for rows in worker:
            loss, _ = get_policy_loss_fn(loss_mode)(
                old_log_prob=of["old_log_prob"][rows],
                log_prob=log_prob[rows],
                advantages=(of["row"][rows] * factor).unsqueeze(1) * of["response_mask"][rows],
                response_mask=of["response_mask"][rows],
                loss_agg_mode=mode,
                config=config,
                rollout_is_weights=None,
            )
            loss.backward()
    return log_prob.grad / len(division)


def token_loss(advantage, log_prob, old):
    """PPO's clipped loss of one token, with verl's dual clip."""
    ratio = (log_prob - old).exp()
    loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP))
    return torch.minimum(loss, -DUAL_CLIP * advantage) if advantage < 0 else loss


def reference(of, silent, mode, norm=9):
    """The gradient of the loss over the rows of groups that are not silent, one token at a time, in one piece."""
    log_prob = of["log_prob"].clone().requires_grad_()
    rows = [row for row, label in enumerate(LABELS) if label not in silent]
    losses = [
        [token_loss(of["row"][row], log_prob[row, t], of["old_log_prob"][row, t]) for t in range(WIDTH) if kept[t]]
        for row in rows
        for kept in [of["response_mask"][row]]
    ]
    if mode == "token-mean":
        loss = sum(map(sum, losses)) / max(sum(map(len, losses)), 1)
    else:
        divide = {"seq-mean-token-sum": lambda n: 1, "seq-mean-token-mean": lambda n: n}.get(mode, lambda n: norm)
        loss = sum(sum(of_row) / divide(len(of_row)) for of_row in losses if of_row) / len(rows)
    return torch.autograd.grad(loss, log_prob)[0] if isinstance(loss, torch.Tensor) else torch.zeros_like(log_prob)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("division", DIVISIONS.values(), ids=DIVISIONS)
@pytest.mark.parametrize("silent", SILENT.values(), ids=SILENT)
def test_the_gradient_is_that_of_the_loss_without_the_silent_groups(silent, division, mode):
    of = batch(silent)
    found = gradient(of, division, "vanilla", mode)
    torch.testing.assert_close(found, reference(of, silent, mode), rtol=1e-7, atol=1e-12)
    assert found.isfinite().all() and bool(found.any()) == (silent != "abcd")


@pytest.mark.parametrize("mode", MODES)
def test_verls_own_gradient_shrinks_with_the_silent_share(mode):
    """Otherwise the equalities above would say nothing. Without silent groups, the two are equal bit for bit."""
    for silent, factor in (("", 1), ("bd", None)):
        of = batch(silent)
        verls = gradient(of, DIVISIONS["two workers"], "vanilla", mode, factor=1.0)
        ours = gradient(of, DIVISIONS["two workers"], "vanilla", mode)
        if factor == 1:
            assert torch.equal(verls, ours)
            continue
        of_row = of["response_mask"].sum(dim=1) if mode == "token-mean" else torch.ones(ROWS)
        share = sum(float(of_row[row]) for row in range(ROWS) if LABELS[row] in silent) / float(of_row.sum())
        torch.testing.assert_close(verls, (1 - share) * ours)
        assert 0.1 < share < 0.9


def test_a_horizon_instead_of_a_constant_stays_verls():
    """verl divides by the width of the micro-batch if loss_scale_factor is null. This is no count, and stays."""
    of, mode = batch("bd"), "seq-mean-token-sum-norm"
    found = gradient(of, DIVISIONS["row by row"], "vanilla", mode, norm=None)
    torch.testing.assert_close(found, reference(of, "bd", mode, norm=WIDTH))


def test_every_loss_of_verl_is_allowed_or_rejected_on_purpose():
    assert set(ALLOWED) - OURS <= POLICY_LOSS_REGISTRY.keys()
    assert POLICY_LOSS_REGISTRY.keys() - OURS == {*ALLOWED, *REJECTED} - OURS


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss_mode", sorted({*ALLOWED} - OURS - {"bypass_mode"}))
def test_an_allowed_loss_is_proportional_to_its_advantages_and_divided_by_its_count(loss_mode, mode):
    of = batch("bd")
    for division in DIVISIONS.values():
        found = gradient(of, division, loss_mode, mode)
        without = [row for row, label in enumerate(LABELS) if label not in "bd"]
        assert not found[[row for row in range(ROWS) if row not in without]].any(), "silent rows have no gradient"
        # verl's loss on the rows that are left, in one piece, with their own counts.
        mask = of["response_mask"][without]
        info = {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": len(without)}
        log_prob = of["log_prob"][without].requires_grad_()
        loss, _ = get_policy_loss_fn(loss_mode)(
            old_log_prob=of["old_log_prob"][without],
            log_prob=log_prob,
            advantages=of["row"][without].unsqueeze(1) * mask,
            response_mask=mask,
            loss_agg_mode=mode,
            config=actor(loss_mode, **info, loss_scale_factor=9),
        )
        (expected,) = torch.autograd.grad(loss, log_prob)
        torch.testing.assert_close(found[without], expected, rtol=1e-7, atol=1e-12)
        assert expected.any()


@pytest.mark.parametrize("loss_type", ["ppo_clip", "reinforce"])
def test_the_losses_of_verls_bypass_mode_are_proportional_to_their_advantages(loss_type):
    of = batch("")
    found = []
    for factor in (1.0, 3.0, 0.0):
        correction = {"loss_type": loss_type, "rollout_is": "token"}
        info = {"dp_size": 1, "batch_num_tokens": 30, "global_batch_size": ROWS, "loss_scale_factor": None}
        config = actor("bypass_mode", correction, **info)
        log_prob = of["log_prob"].clone().requires_grad_()
        loss, _ = get_policy_loss_fn("bypass_mode")(
            old_log_prob=of["old_log_prob"],
            log_prob=log_prob,
            advantages=factor * of["row"].unsqueeze(1) * of["response_mask"],
            response_mask=of["response_mask"],
            loss_agg_mode="token-mean",
            config=config,
        )
        found.append(torch.autograd.grad(loss, log_prob)[0])
    torch.testing.assert_close(3 * found[0], found[1])
    assert found[0].any() and not found[2].any()


@pytest.mark.parametrize("loss_mode", ["dro", "kl_cov"])
def test_a_rejected_loss_has_a_gradient_in_silent_groups(loss_mode):
    assert gradient(batch("abcd"), DIVISIONS["in one piece"], loss_mode, "token-mean").any()


def test_the_other_rejected_losses_are_not_divided_by_a_count_or_not_proportional():
    of = batch("")
    whole, parts = (
        gradient(of, DIVISIONS[name], "geo_mean", "token-mean", factor=1.0) for name in ("in one piece", "row by row")
    )
    assert not torch.allclose(whole, parts)
    one, large = (gradient(of, DIVISIONS["in one piece"], "clip_cov", "token-mean", factor) for factor in (0.1, 10.0))
    assert not torch.allclose(100 * one, large)
