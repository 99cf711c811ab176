"""The estimator ``gsd`` as verl calls it, and against verl's own ``grpo``."""

import itertools

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

pytest.importorskip("verl")
from verl.protocol import DataProto
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage, compute_grpo_vectorized_outcome_advantage
from verl.trainer.ppo.ray_trainer import compute_advantage

from verl_gsd.trainer.estimator import batch_context, gsd_advantage

TOKENS = 3


def algorithm(**gsd):
    return OmegaConf.create({"adv_estimator": "gsd", "gsd": {"alpha": 1.0, "ddof": 1, "eps": 1e-6, **gsd}})


def batch(rewards, mask=None):
    """Rewards on the last token, (N, T); without ``mask`` all tokens count."""
    rewards = torch.as_tensor(rewards, dtype=torch.float32)
    tokens = torch.zeros(len(rewards), TOKENS)
    tokens[:, -1] = rewards
    return {
        "token_level_rewards": tokens,
        "response_mask": torch.ones(len(rewards), TOKENS, dtype=torch.int64) if mask is None else torch.tensor(mask),
    }


def labels(*sizes):
    return np.array([f"uid{i}" for i, size in enumerate(sizes) for _ in range(size)], dtype=object)


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 16, 31, 64])
def test_alpha_1_is_bit_for_bit_verls_grpo_for_binary_rewards_in_equal_groups(size):
    """The batch has one group for each number of right answers from none to all."""
    rewards = list(itertools.chain.from_iterable([1.0] * k + [0.0] * (size - k) for k in range(size + 1)))
    index = labels(*[size] * (size + 1))
    ours, returns = gsd_advantage(**batch(rewards), index=index, config=algorithm())
    theirs, _ = compute_grpo_outcome_advantage(**batch(rewards), index=index)
    assert returns is ours
    assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [2, 5, 8, 16])
def test_alpha_0_is_bit_for_bit_verls_dr_grpo(size):
    rewards = list(itertools.chain.from_iterable([1.0] * k + [0.0] * (size - k) for k in range(size + 1)))
    index = labels(*[size] * (size + 1))
    ours, _ = gsd_advantage(**batch(rewards), index=index, config=algorithm(alpha=0.0))
    theirs, _ = compute_grpo_outcome_advantage(**batch(rewards), index=index, norm_adv_by_std_in_grpo=False)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("other", [compute_grpo_outcome_advantage, compute_grpo_vectorized_outcome_advantage])
def test_graded_rewards_in_unequal_groups_agree_with_verl(other):
    generator = torch.Generator().manual_seed(5)
    sizes = [2, 9, 4, 8, 3, 16, 5]
    rewards = torch.rand(sum(sizes), generator=generator)
    order = torch.randperm(sum(sizes), generator=generator).numpy()
    index = labels(*sizes)[order]
    ours, _ = gsd_advantage(**batch(rewards), index=index, config=algorithm())
    theirs, _ = other(**batch(rewards), index=index)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_unanimous_group_of_float_rewards_gets_zero_where_verl_is_wrong():
    ours, _ = gsd_advantage(**batch([0.7] * 7), index=labels(7), config=algorithm())
    theirs, _ = compute_grpo_outcome_advantage(**batch([0.7] * 7), index=labels(7))
    assert not ours.any()
    assert theirs.abs().max() > 0.05, "verl mends this one day: then drop the exception from README and dial.py"


def test_a_group_of_one_gets_zero_where_verl_is_wrong():
    ours, _ = gsd_advantage(**batch([0.5]), index=labels(1), config=algorithm())
    theirs, _ = compute_grpo_outcome_advantage(**batch([0.5]), index=labels(1))
    assert not ours.any()
    assert theirs[0, 0] == pytest.approx(0.5), (
        "verl mends this one day: then drop the exception from README and dial.py"
    )


def test_padding_rows_form_no_group_and_a_rejected_row_still_counts():
    mask = [[1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 0]]  # the second was rejected, the last one is padding
    index = np.array(["a", "a", "a", "pad0123"], dtype=object)
    ours, _ = gsd_advantage(**batch([1.0, 0.0, 0.0, 0.0], mask), index=index, config=algorithm())
    alone, _ = gsd_advantage(**batch([1.0, 0.0, 0.0]), index=index[:3], config=algorithm())
    assert torch.equal(ours, torch.cat([alone, torch.zeros(1, TOKENS)]) * torch.tensor(mask))
    assert not ours[1].any() and ours[0, 0] == pytest.approx(2 / 3 / 3**-0.5, rel=1e-5)


def test_verl_finds_and_calls_it_by_name_with_the_raw_config():
    index = labels(2, 2)
    data = DataProto.from_dict(tensors=batch([1.0, 0.0, 1.0, 1.0]), non_tensors={"uid": index})
    got = compute_advantage(data, adv_estimator="gsd", config=algorithm(alpha=0.0)).batch
    assert got["advantages"][:, 0].tolist() == [0.5, -0.5, 0, 0]
    assert torch.equal(got["advantages"], got["returns"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (OmegaConf.create({}), r"algorithm\.gsd\.alpha.*algo=gsd"),
        (OmegaConf.create({"gsd": {"alpha": 1.0, "ddof": 1}}), r"algorithm\.gsd\.eps"),
        (algorithm(alpha="much"), "alpha=much"),
    ],
)
def test_a_stock_trainer_without_our_settings_fails_at_the_first_call(config, message):
    with pytest.raises(ValueError, match=message):
        gsd_advantage(**batch([1.0, 0.0]), index=labels(2), config=config)


def test_a_reward_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"rewards\[1\] is nan"):
        gsd_advantage(**batch([1.0, float("nan")]), index=labels(2), config=algorithm())


def advantage_a_row(rewards, uids):
    return gsd_advantage(**batch(rewards), index=np.array(uids, dtype=object), config=algorithm())[0][:, -1]


def test_a_session_with_several_outputs_counts_once_and_all_outputs_get_its_advantage():
    """The advantages equal those of the last outputs alone, copied to all rows. verl does this only for its grpo."""
    keys = ["a_0_0", "a_1_1", "a_0_1", "a_1_0", "a_2_0", "b_0_10", "b_0_9", "b_1_0"]
    rewards, uids = [1, 0, 1, 0, 0, 1, 1, 0], [key[0] for key in keys]
    last = [2, 1, 4, 5, 7]
    single = advantage_a_row([rewards[row] for row in last], [uids[row] for row in last])
    with batch_context(keys, {}, {}):
        several = advantage_a_row(rewards, uids)
    assert torch.equal(several, single[[0, 1, 0, 1, 2, 3, 3, 4]])
    assert not torch.equal(several, advantage_a_row(rewards, uids))


def test_the_metrics_of_the_floor_are_those_of_the_batch_without_padding():
    """A row of padding must not set the scale of the rewards."""
    rewards, uids = [0.5, 0.5001, 1.0, 0.0, -100.0], ["a", "a", "b", "b", "pad"]
    keys = ["a_0_0", "a_1_0", "b_0_0", "b_1_0", "pad_0_0"]
    with batch_context(keys, {}, {}) as context:
        gsd_advantage(**batch(rewards), index=np.array(uids, dtype=object), config=algorithm(alpha=2.0))
    assert context.metrics == {
        "dial/floor/reward_scale": 1,
        "dial/floor/sigma": pytest.approx(1 / (2 * 2**0.5)),
        "dial/floor/groups": 1,
    }


def test_sessions_with_one_output_each_change_nothing_and_padding_is_excluded():
    rewards, uids = [1, 0, 0, 0], ["a", "a", "a", "pad"]
    alone = advantage_a_row(rewards, uids)
    with batch_context(["a_0_0", "a_1_0", "a_2_0", "pad_0_0"], {}, {}):
        assert torch.equal(advantage_a_row(rewards, uids), alone)
    with batch_context(["a_0_0", "a_0_1", "a_2_0", "pad_0_0"], {}, {}):
        assert advantage_a_row(rewards, uids)[3] == 0
