"""The metric of the policy's entropy against a slow reference."""

import pytest
import torch

from verl_gsd.lab.training.rows import DictRows
from verl_gsd.trainer.metrics import entropy_metric


def rows_of(*responses):
    rows = DictRows()
    for number, (entropy, mask) in enumerate(responses):
        row = {"entropy": torch.tensor(entropy), "response_mask": torch.tensor(mask)}
        rows.put({f"u_{number}_0": row}, {f"u_{number}_0": {}})
    return rows


def test_every_token_of_the_policy_counts_once():
    responses = [([0.5, 1.5, 9.0], [1, 1, 0]), ([0.25], [1]), ([7.0, 7.0], [0, 0])]
    tokens = [value for entropy, mask in responses for value, counts in zip(entropy, mask, strict=True) if counts]
    rows = rows_of(*responses)
    assert entropy_metric(rows, list(rows.tags)) == {"policy/entropy": pytest.approx(sum(tokens) / len(tokens))}


def test_without_a_token_there_is_no_metric():
    assert entropy_metric(rows_of(([1.0], [0])), ["u_0_0"]) == {} == entropy_metric(rows_of(), [])
