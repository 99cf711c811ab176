"""The loss of a run with demonstrations: verl's own on the policy's rows, bit for bit, and -A f(p) on the others."""

import math

import pytest
import torch

pytest.importorskip("verl")
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig

from verl_gsd.algorithms.dagrpo.loss import DagrpoLossConfig
from verl_gsd.trainer.loss_context import with_context
from verl_gsd.trainer.rows import DEMONSTRATION

MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]
NAMES = {"actor/pg_clipfrac", "actor/ppo_kl", "actor/pg_clipfrac_lower"}
#: Of the whole mini-batch, of which a test's rows are a part: 23 sequences with 117 tokens on two workers.
GLOBAL = {"dp_size": 2, "batch_num_tokens": 117, "global_batch_size": 23, "loss_scale_factor": None}
COLUMNS = ("old_log_prob", "log_prob", "advantages", "response_mask")
ROWS, WIDTH = 6, 7


def actor(**settings):
    policy_loss = DagrpoLossConfig(**settings)
    config = FSDPActorConfig(rollout_n=4, ppo_micro_batch_size_per_gpu=1, policy_loss=policy_loss)
    config.global_batch_info.update(GLOBAL)
    return config


def batch(seed=0, dtype=torch.float32):
    """Rows of several lengths, one with tool tokens; ratios of tokens and of whole responses on both sides of the clip,
    advantages of both signs."""
    generator = torch.Generator().manual_seed(seed)
    old = -0.5 - 3 * torch.rand(ROWS, WIDTH, generator=generator, dtype=dtype)
    noise = 0.3 * torch.randn(ROWS, WIDTH, generator=generator, dtype=dtype)
    noise[4] += 0.5  # a whole response beyond the clip
    noise[3, 0] = 2.0  # so far that verl's dual clip is at work, its advantage being negative
    mask = torch.arange(WIDTH) < torch.tensor([7, 1, 4, 6, 3, 5]).unsqueeze(1)
    mask[0, 2:4] = False
    # One advantage a response, as the estimator has it.
    advantage = torch.tensor([1.3, -0.7, 0.4, -2.0, 0.9, -0.2], dtype=dtype).unsqueeze(1)
    log_prob = (old + noise).clamp(max=-0.01)
    return {"old_log_prob": old, "log_prob": log_prob, "advantages": advantage * mask, "response_mask": mask}


def evaluated(loss_mode, of, config, *, demonstrations=(), rows=slice(None), loss_agg_mode="token-mean", weights=None):
    """(loss, metrics, gradient by log_prob) of the registered loss, called as verl's ``ppo_loss`` does."""
    columns = {name: of[name][rows] for name in COLUMNS}
    column = torch.tensor([row in demonstrations for row in range(ROWS)])[rows]
    log_prob = columns["log_prob"].clone().requires_grad_()

    def loss_fn(model_output, data, dp_group):
        return get_policy_loss_fn(loss_mode)(
            **columns | {"log_prob": model_output},
            loss_agg_mode=loss_agg_mode,
            config=config,
            rollout_is_weights=None if weights is None else weights[rows],
        )

    data = TensorDict({DEMONSTRATION: column}, batch_size=len(column))
    loss, metrics = with_context(loss_fn, {}, model_output=log_prob, data=data)
    loss.backward()
    return loss.detach(), metrics, log_prob.grad


def coefficients(mask, loss_agg_mode):
    """What each token's loss is multiplied by: the aggregation, spelled out."""
    found = torch.zeros(mask.shape, dtype=torch.float64)
    for row, col in mask.nonzero().tolist():
        found[row, col] = (
            GLOBAL["dp_size"]
            * {
                "token-mean": 1 / GLOBAL["batch_num_tokens"],
                "token-sum": 1,
                "seq-mean-token-sum": 1 / GLOBAL["global_batch_size"],
                "seq-mean-token-sum-norm": 1 / GLOBAL["global_batch_size"] / mask.shape[1],
                "seq-mean-token-mean": 1 / GLOBAL["global_batch_size"] / int(mask[row].sum()),
            }[loss_agg_mode]
        )
    return found


def of_demonstrations(of, demonstrations, loss_agg_mode, ratio="shaped", gamma=0.1):
    """(loss, gradient) of -A f(p) on the demonstrations' tokens, by plain autograd in float64."""
    log_prob = of["log_prob"].double().clone().requires_grad_()
    p = log_prob.exp()
    f = p / (p + gamma) if ratio == "shaped" else p / p.detach()
    shown = torch.tensor([row in demonstrations for row in range(ROWS)]).unsqueeze(1)
    loss = (coefficients(of["response_mask"], loss_agg_mode) * shown * -of["advantages"].double() * f).sum()
    (gradient,) = torch.autograd.grad(loss, log_prob)
    return loss.detach(), gradient


@pytest.mark.parametrize("loss_agg_mode", MODES)
@pytest.mark.parametrize("on_policy", ["vanilla", "gspo"])
@pytest.mark.parametrize("ratio", ["shaped", "one"])
def test_without_demonstrations_it_is_verls_loss_bit_for_bit(on_policy, ratio, loss_agg_mode):
    config, of = actor(on_policy=on_policy, ratio=ratio), batch()
    expected, its_metrics, its_gradient = evaluated(on_policy, of, config, loss_agg_mode=loss_agg_mode)
    loss, metrics, gradient = evaluated("dagrpo", of, config, loss_agg_mode=loss_agg_mode)
    assert torch.equal(loss, expected) and metrics == its_metrics and set(metrics) == NAMES
    assert torch.equal(gradient, its_gradient) and gradient.any()
    assert 0 < metrics["actor/pg_clipfrac"] < 1, "ratios are on both sides of the clip"
    assert on_policy == "gspo" or metrics["actor/pg_clipfrac_lower"] > 0, "and beyond the dual one"


def test_the_two_losses_of_own_rows_differ():
    of = batch()
    vanilla, gspo = (evaluated("dagrpo", of, actor(on_policy=name))[2] for name in ("vanilla", "gspo"))
    assert not torch.allclose(vanilla, gspo)


@pytest.mark.parametrize("loss_agg_mode", MODES)
@pytest.mark.parametrize("on_policy", ["vanilla", "gspo"])
def test_beside_demonstrations_own_rows_have_verls_gradient_bit_for_bit(on_policy, loss_agg_mode):
    config, of, shown, own = actor(on_policy=on_policy), batch(), (1, 3, 5), [0, 2, 4]
    gradient = evaluated("dagrpo", of, config, demonstrations=shown, loss_agg_mode=loss_agg_mode)[2]
    of_all = evaluated(on_policy, of, config, loss_agg_mode=loss_agg_mode)[2]
    of_own = evaluated(on_policy, of, config, rows=own, loss_agg_mode=loss_agg_mode)[2]
    assert torch.equal(gradient[own], of_all[own]) and torch.equal(gradient[own], of_own)
    assert gradient[own].any()


@pytest.mark.parametrize("loss_agg_mode", MODES)
@pytest.mark.parametrize("settings", [{}, {"gamma": 0.4}, {"ratio": "one"}, {"on_policy": "gspo"}], ids=str)
def test_on_a_demonstrations_tokens_it_is_minus_the_advantage_times_the_ratio(settings, loss_agg_mode):
    config, of, shown, own = actor(**settings), batch(dtype=torch.float64), [1, 3, 5], [0, 2, 4]
    loss, _, gradient = evaluated("dagrpo", of, config, demonstrations=shown, loss_agg_mode=loss_agg_mode)
    wanted = {name: value for name, value in settings.items() if name != "on_policy"}
    expected, its_gradient = of_demonstrations(of, shown, loss_agg_mode, **wanted)
    torch.testing.assert_close(gradient[shown], its_gradient[shown], rtol=1e-7, atol=1e-15)
    assert ((gradient[shown] != 0) == of["response_mask"][shown]).all(), "every token of theirs and no other"
    on_policy = settings.get("on_policy", "vanilla")
    of_own = evaluated(on_policy, of, config, rows=own, loss_agg_mode=loss_agg_mode)[0]
    torch.testing.assert_close(loss, expected + of_own, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("on_policy", ["vanilla", "gspo"])
@pytest.mark.parametrize("distance", [-30.0, -3.0, 3.0, 30.0])
def test_nothing_is_clipped_on_a_demonstrations_tokens_and_the_old_policy_does_not_matter(on_policy, distance):
    """With either sign of the advantage, where verl's loss clips all of one sign."""
    config, of, shown = actor(on_policy=on_policy), batch(dtype=torch.float64), [2, 3]
    moved = of | {"old_log_prob": of["old_log_prob"].clone()}
    moved["old_log_prob"][shown] = moved["log_prob"][shown] - distance
    clipped = evaluated(on_policy, moved, config)[2][shown]
    assert (clipped == 0).all(dim=1).any(), "verl's own loss has no gradient there for one sign of the advantage"
    loss, metrics, gradient = evaluated("dagrpo", moved, config, demonstrations=shown)
    wanted = evaluated("dagrpo", of, config, demonstrations=shown)
    assert torch.equal(loss, wanted[0]) and torch.equal(gradient, wanted[2])
    assert metrics == wanted[1], "nor are the figures of the policy's drift those of demonstrations"
    expected = of_demonstrations(of, shown, "token-mean")[1][shown]
    torch.testing.assert_close(gradient[shown], expected, rtol=1e-9, atol=0)
    assert gradient[shown][of["response_mask"][shown]].all()


@pytest.mark.parametrize("loss_agg_mode", MODES)
@pytest.mark.parametrize("on_policy", ["vanilla", "gspo"])
@pytest.mark.parametrize("division", [[[0, 1, 2], [3, 4, 5]], [[1, 3, 5], [0, 2, 4]], [[5], [0], [3], [1], [2], [4]]])
def test_micro_batches_add_up_to_the_whole(on_policy, division, loss_agg_mode):
    config, of, shown = actor(on_policy=on_policy), batch(dtype=torch.float64), [1, 3, 5]
    settings = {"demonstrations": shown, "loss_agg_mode": loss_agg_mode}
    whole, _, its_gradient = evaluated("dagrpo", of, config, **settings)
    total, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(its_gradient)
    for rows in division:
        loss, metrics, part = evaluated("dagrpo", of, config, rows=rows, **settings)
        total += loss
        gradient[rows] = part
        assert set(metrics) == NAMES
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, its_gradient, rtol=1e-12, atol=0)


@pytest.mark.parametrize("on_policy", ["vanilla", "gspo"])
def test_weights_that_correct_for_the_rollout_are_for_own_rows_alone(on_policy):
    config, of, shown, own = actor(on_policy=on_policy), batch(), [1, 3], [0, 2, 4, 5]
    weights = torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5
    gradient = evaluated("dagrpo", of, config, demonstrations=shown, weights=weights)[2]
    unweighed = evaluated("dagrpo", of, config, demonstrations=shown)[2]
    assert torch.equal(gradient[shown], unweighed[shown]) and gradient[shown].any()
    assert torch.equal(gradient[own], evaluated(on_policy, of, config, weights=weights)[2][own])
    assert not torch.allclose(gradient[own], unweighed[own])


@pytest.mark.parametrize("loss_agg_mode", MODES)
@pytest.mark.parametrize("on_policy", ["vanilla", "gspo"])
def test_demonstrations_alone_and_none_of_them_have_the_same_figures_all_finite(on_policy, loss_agg_mode):
    config, of = actor(on_policy=on_policy), batch()
    alone, none = (
        evaluated("dagrpo", of, config, demonstrations=shown, loss_agg_mode=loss_agg_mode)
        for shown in (range(ROWS), ())
    )
    assert set(alone[1]) == set(none[1]) == NAMES
    for loss, metrics, gradient in (alone, none):
        assert loss.isfinite() and gradient.isfinite().all() and all(map(math.isfinite, metrics.values()))
    assert all(value == 0 for value in alone[1].values())
    torch.testing.assert_close(
        alone[2].double(), of_demonstrations(of, range(ROWS), loss_agg_mode)[1], rtol=1e-5, atol=1e-8
    )


def test_tokens_that_nobody_looks_at_have_no_gradient_whatever_stands_there():
    config, of, shown = actor(), batch(), [0, 3]
    expected = evaluated("dagrpo", of, config, demonstrations=shown)
    noise = torch.where(of["response_mask"], of["log_prob"], torch.tensor(-1e4))
    loss, metrics, gradient = evaluated("dagrpo", of | {"log_prob": noise}, config, demonstrations=shown)
    assert torch.equal(loss, expected[0]) and metrics == expected[1] and torch.equal(gradient, expected[2])
    assert not gradient[~of["response_mask"]].any()


def test_a_demonstrations_token_that_the_policy_thinks_impossible_makes_no_nan():
    config, of = actor(), batch()
    of["log_prob"] = torch.full_like(of["log_prob"], -1e4)
    loss, _, gradient = evaluated("dagrpo", of, config, demonstrations=range(ROWS))
    assert loss == 0 and not gradient.any()


def test_without_our_trainer_it_refuses():
    config, of = actor(), batch()
    call = get_policy_loss_fn("dagrpo")
    words = r"policy_loss\.loss_mode=dagrpo"
    with pytest.raises(RuntimeError, match=words):
        call(**of, config=config)

    def inside(config, **columns):
        data = TensorDict(columns, batch_size=ROWS)
        return with_context(lambda **_: call(**of, config=config), {}, model_output=None, data=data)

    with pytest.raises(RuntimeError, match=words):
        inside(config, other=torch.zeros(ROWS))
    with pytest.raises(RuntimeError, match=words):
        inside(None, demonstration=torch.zeros(ROWS, dtype=torch.bool))
    assert inside(config, demonstration=torch.zeros(ROWS, dtype=torch.bool))[0].isfinite()
    with pytest.raises(RuntimeError, match=words):
        call(**of, config=config)  # the micro-batch is forgotten again


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"on_policy": "gvpo"}, "on_policy=gvpo.*vanilla, gspo"),
        ({"on_policy": "dagrpo"}, "on_policy=dagrpo"),
        ({"ratio": "plain"}, "ratio=plain.*shaped, one"),
        ({"gamma": 0}, "gamma=0"),
        ({"gamma": math.nan}, "gamma=nan"),
    ],
)
def test_a_setting_of_the_loss_out_of_range_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        DagrpoLossConfig(**settings)
