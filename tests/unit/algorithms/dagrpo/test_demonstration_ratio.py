"""The ratio on a demonstration's tokens: against p / (p + gamma) itself, and the figures of the paper."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.algorithms.dagrpo.demonstration_ratio import demonstration_ratio

probabilities = st.floats(1e-12, 1.0)
gammas = st.floats(1e-3, 10.0)


def value_and_gradient(log_prob, **settings):
    """f and d f / d log p, two lists."""
    log_prob = torch.as_tensor(log_prob, dtype=torch.float64).requires_grad_()
    ratio = demonstration_ratio(log_prob, **settings)
    ratio.sum().backward()
    return ratio.tolist(), log_prob.grad.tolist()


def weight(*p, gamma=0.1):
    return value_and_gradient([math.log(value) for value in p], ratio="shaped", gamma=gamma)[1]


@given(st.lists(probabilities, min_size=1, max_size=5), gammas)
def test_it_is_p_over_p_plus_gamma_and_so_is_its_gradient(p, gamma):
    found, gradient = value_and_gradient([math.log(value) for value in p], ratio="shaped", gamma=gamma)
    assert found == pytest.approx([value / (value + gamma) for value in p], rel=1e-9)
    assert gradient == pytest.approx([gamma * value / (value + gamma) ** 2 for value in p], rel=1e-9)


def test_the_papers_gamma_is_the_default():
    (found,), _ = value_and_gradient([0.0], ratio="shaped")
    assert found == pytest.approx(1 / 1.1)


def test_the_figures_of_the_paper():
    assert weight(0.1) == pytest.approx([0.25])
    assert weight(1.0, 0.01) == pytest.approx([0.083, 0.083], abs=5e-4)
    assert weight(0.001) == pytest.approx([0.0098], abs=5e-5)


@pytest.mark.parametrize("gamma", [0.02, 0.1, 0.5])
def test_the_gradient_is_greatest_at_gamma(gamma):
    grid = torch.linspace(1e-4, 1.0, 2001, dtype=torch.float64)
    of_grid = weight(*grid.tolist(), gamma=gamma)
    assert grid[of_grid.index(max(of_grid))] == pytest.approx(gamma, abs=1e-3)
    assert max(of_grid) <= weight(gamma, gamma=gamma)[0] == pytest.approx(0.25)


@given(st.floats(1e-6, 1.0))
def test_it_teaches_more_than_the_plain_ratio_only_below_a_probability_of_216_thousandths(p):
    """The plain ratio p has the gradient p grad log p."""
    border = math.sqrt(0.1) - 0.1
    assert border == pytest.approx(0.216, abs=5e-4)
    if abs(p - border) > 1e-9:
        assert (weight(p)[0] > p) == (p < border)


@given(st.lists(st.floats(-1e4, 0), min_size=1, max_size=5), st.floats(-3, 3))
def test_one_has_the_value_one_and_the_gradient_of_log_p_times_the_advantage(log_prob, advantage):
    log_prob = torch.tensor(log_prob, dtype=torch.float64, requires_grad=True)
    ratio = demonstration_ratio(log_prob, ratio="one")
    assert ratio.tolist() == [1.0] * len(log_prob)
    (advantage * ratio).sum().backward()
    assert log_prob.grad.tolist() == [advantage] * len(log_prob)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", ["shaped", "one"])
def test_however_unlikely_a_token_is_nothing_becomes_nan_and_shape_and_dtype_stay(ratio, dtype):
    log_prob = torch.tensor([[-1e4, -200.0], [-90.0, 0.0]], dtype=dtype, requires_grad=True)
    found = demonstration_ratio(log_prob, ratio=ratio)
    found.sum().backward()
    assert found.dtype == dtype and found.shape == (2, 2)
    assert found.isfinite().all() and log_prob.grad.isfinite().all()
    if ratio == "shaped":
        assert found[0, 0] == log_prob.grad[0, 0] == 0 and found[1, 1] > 0.9


def test_a_token_of_a_tiny_probability_still_has_a_gradient_in_float32():
    log_prob = torch.tensor([-80.0], requires_grad=True)
    demonstration_ratio(log_prob, ratio="shaped").sum().backward()
    assert log_prob.grad.item() == pytest.approx(10 * math.exp(-80), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ratio": "plain"}, "ratio=plain: .*shaped, one"),
        ({"ratio": None}, "ratio=None"),
        ({"ratio": ["one"]}, r"ratio=\['one'\]"),
        ({"ratio": "shaped", "gamma": 0}, r"gamma=0\b"),
        ({"ratio": "shaped", "gamma": -0.1}, r"gamma=-0\.1"),
        ({"ratio": "shaped", "gamma": math.nan}, "gamma=nan"),
        ({"ratio": "shaped", "gamma": math.inf}, "gamma=inf"),
        ({"ratio": "shaped", "gamma": True}, "gamma=True"),
        ({"ratio": "shaped", "gamma": "0.1"}, r"gamma=0\.1"),
        ({"ratio": "one", "gamma": None}, "gamma=None"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        demonstration_ratio(torch.zeros(1), **settings)
