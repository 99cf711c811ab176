"""Stages: what takes part, in which order, and that a new one needs no other file."""

import pytest
import torch

from verl_gsd import chain, extension
from verl_gsd.dial import dial_advantage
from verl_gsd.extension import ExtensionError

SETTINGS = {"alpha": 0.5, "ddof": 1, "eps": 1e-6}
REWARDS = torch.tensor([1.0, 0.0, 0.0, 3.0, 1.0])
INDEX = ["a", "a", "a", "b", "b"]


@pytest.fixture(autouse=True)
def stages(monkeypatch):
    """Whatever a test registers is forgotten after it."""
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", list(extension._REJECTED))


def test_without_stages_the_chain_is_the_dial():
    mask = torch.tensor([True, True, True, True, False])
    expected = dial_advantage(REWARDS, INDEX, **SETTINGS, mask=mask)
    assert torch.equal(chain.advantages(REWARDS, INDEX, SETTINGS, mask=mask), expected)


def test_a_stage_takes_part_where_the_config_has_its_section():
    @chain.register_stage("doubling", "weight")
    def doubling(rows, advantages, section):
        return torch.full_like(advantages, section["factor"])

    plain = chain.advantages(REWARDS, INDEX, SETTINGS)
    assert torch.equal(chain.advantages(REWARDS, INDEX, SETTINGS | {"doubling": None}), plain)
    assert torch.equal(chain.advantages(REWARDS, INDEX, SETTINGS | {"doubling": {"factor": 2.0}}), 2 * plain)


def test_a_centring_stage_replaces_the_mean_and_sigma_stays_that_of_the_rewards():
    @chain.register_stage("from_zero", "centre")
    def from_zero(rows, section):
        return rows.rewards

    got = chain.advantages(REWARDS, INDEX, SETTINGS | {"from_zero": {}})
    sigma = torch.tensor([3**-0.5] * 3 + [2**0.5] * 2)
    torch.testing.assert_close(got, REWARDS / (sigma + 1e-6) ** 0.5)


def test_the_floor_of_sigma_has_the_scale_of_the_rewards_and_not_of_what_a_stage_returns():
    @chain.register_stage("tenfold", "centre")
    def tenfold(rows, section):
        return 10 * rows.rewards

    settings, mask = SETTINGS | {"alpha": 2.0}, torch.tensor([True, True, True, True, True, False])
    rewards, index = torch.tensor([0.5, 0.501, 0.5, 0.0, 1.0, 50.0]), ["a", "a", "a", "b", "b", "pad"]
    plain = chain.advantages(rewards, index, settings, mask=mask)
    assert torch.equal(plain, dial_advantage(rewards, index, **settings, mask=mask))
    got = chain.advantages(rewards, index, settings | {"tenfold": {}}, mask=mask)
    floor = 1 / (2 * 3**0.5) + 1e-6
    assert got[0].item() == pytest.approx(10 * 0.5 / floor**2, rel=1e-4)


def test_weights_see_what_stands_before_them_in_the_order_that_they_state():
    seen = []
    for name, order in (("a_second", 2), ("b_first", 1), ("c_third", 2)):

        @chain.register_stage(name, "weight", order=order)
        def stage(rows, advantages, section, name=name):
            seen.append((name, advantages[0].item()))
            return torch.full_like(advantages, 10.0)

    plain = chain.advantages(REWARDS, INDEX, SETTINGS)[0].item()
    chain.advantages(REWARDS, INDEX, SETTINGS | {"a_second": {}, "b_first": {}, "c_third": {}})
    met = [("b_first", plain), ("a_second", 10 * plain), ("c_third", 100 * plain)]
    assert seen == [(name, pytest.approx(value)) for name, value in met], "ascending, and equal ones by name"


def test_two_centring_stages_are_refused():
    for name in ("one", "two"):
        chain.register_stage(name, "centre")(lambda rows, section, name=name: rows.rewards)
    with pytest.raises(ValueError, match=r"algorithm\.gsd\b.*\bone\b.*\btwo\b"):
        chain.advantages(REWARDS, INDEX, SETTINGS | {"one": {}, "two": {}})


def test_a_name_is_registered_once_and_registering_the_same_function_again_is_harmless():
    def mine(rows, advantages, section):
        return advantages

    for _ in range(2):
        chain.register_stage("mine", "weight")(mine)
    with pytest.raises(ValueError, match="'mine'"):
        chain.register_stage("mine", "weight")(lambda rows, advantages, section: advantages)


def test_a_stage_says_which_column_it_misses():
    @chain.register_stage("hungry", "weight")
    def hungry(rows, advantages, section):
        return rows.column("accuracy", "hungry")

    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.hungry\b.*\bweight\b.*\baccuracy\b"):
        chain.advantages(REWARDS, INDEX, SETTINGS | {"hungry": {}})
    ones = torch.ones(5)
    got = chain.advantages(REWARDS, INDEX, SETTINGS | {"hungry": {}}, columns={"accuracy": ones})
    assert torch.equal(got, chain.advantages(REWARDS, INDEX, SETTINGS))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.ones(5, 1), r"bad\b.*\(5, 1\).*\(5,\)"),
        (torch.tensor([1, 1, float("nan"), 1, 1]), r"bad\[2\].*nan"),
    ],
)
def test_what_a_stage_returns_is_checked(returned, message):
    chain.register_stage("bad", "weight")(lambda rows, advantages, section: returned)
    with pytest.raises(ValueError, match=message):
        chain.advantages(REWARDS, INDEX, SETTINGS | {"bad": {}})


def test_a_stage_changes_neither_the_dtype_nor_a_row_of_no_group():
    factor = torch.tensor([2, 2, 2, float("nan"), 2], dtype=torch.float64)
    chain.register_stage("wide", "weight")(lambda rows, advantages, section: factor)
    mask = torch.tensor([True, True, True, False, True])
    got = chain.advantages(REWARDS, INDEX, SETTINGS | {"wide": {}}, mask=mask)
    assert got.dtype == torch.float32 and got[3] == 0


def test_a_stage_needs_a_place_and_a_name_of_its_own():
    with pytest.raises(ValueError, match=r"place='center'.*centre, weight"):
        chain.register_stage("mine", "center")
    with pytest.raises(ValueError, match=r"algorithm\.gsd\.alpha\b"):
        chain.register_stage("alpha", "weight")
