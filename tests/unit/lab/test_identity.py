"""GSD's identity on the embedded policy, against gradients of plain passes over whole rows."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_gsd.charts import render_page
from verl_gsd.lab import identity_page as page
from verl_gsd.lab.identity import ALPHAS, IdentityMeter, interval_of, spread_over_rates

TEMPERATURE = 0.8
ANSWERS = ["12", "7", "12", "?", "3", "12"]
BINARY = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
GRADED = [1.0, 0.5, 1.0, 0.0, 0.1, 1.0]


@pytest.fixture(scope="module")
def policy(tiny_task):
    model = AutoModelForCausalLM.from_pretrained(tiny_task / "model", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_task / "model")


@pytest.fixture(scope="module")
def rows(policy):
    _, tokenizer = policy
    chat = [{"role": "user", "content": "3+9="}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    return prompt, [[*tokenizer.encode(answer), tokenizer.eos_token_id] for answer in ANSWERS]


@pytest.fixture(scope="module")
def meter(policy):
    return IdentityMeter(policy[0], TEMPERATURE)


@pytest.fixture(scope="module")
def groups(meter, rows):
    return {
        name: meter.measure(*rows, np.array(rewards), 0.5) for name, rewards in (("binary", BINARY), ("graded", GRADED))
    }


def plain_gradient(model, rows, advantages):
    """The gradient of mean_i A_i log pi(y_i), by one pass per whole row."""
    prompt, responses = rows
    model.zero_grad()
    for response, advantage in zip(responses, advantages, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        log_probs = torch.log_softmax(model(ids).logits[0, len(prompt) - 1 : -1] / TEMPERATURE, dim=-1)
        own = log_probs.gather(1, torch.tensor(response).unsqueeze(1)).sum()
        (own * advantage / len(responses)).backward()
    return torch.cat([weight.grad.flatten().double() for weight in model.parameters()])


@pytest.mark.parametrize("name", ["binary", "graded"])
def test_the_identity_holds(groups, name):
    group = groups[name]
    assert max(group.errors) < 1e-5
    for alpha, norm in zip(ALPHAS, group.norms, strict=True):
        assert norm == pytest.approx(group.sigma ** (2 - alpha) * group.difference, rel=1e-5)
    assert group.sigma == pytest.approx(np.std(BINARY if name == "binary" else GRADED))
    assert abs(group.norms[1] / group.sigma - 1) > 0.1, "sigma is not the norm of the gradient"


@pytest.mark.parametrize(("name", "rewards"), [("binary", BINARY), ("graded", GRADED)])
def test_norms_are_those_of_plain_passes(policy, rows, groups, name, rewards):
    rewards = np.array(rewards)
    for number, alpha in enumerate(ALPHAS):
        advantages = (rewards - rewards.mean()) / rewards.std() ** alpha
        gradient = plain_gradient(policy[0], rows, advantages)
        assert groups[name].norms[number] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_binary_rewards_are_a_case_of_graded_ones(meter, rows, groups):
    """The regression's slope for rewards of 0 and 2 is half of that for 0 and 1."""
    doubled = meter.measure(*rows, 2 * np.array(BINARY), 0.5)
    assert doubled.difference == pytest.approx(groups["binary"].difference / 2, rel=1e-6)


def test_a_unanimous_group_has_no_identity(meter, rows):
    with pytest.raises(ValueError, match=r"0\.7"):
        meter.measure(*rows, np.full(6, 0.7), 0.5)


def test_measuring_leaves_the_policy_as_it_is(policy, groups):
    assert {weight.dtype for weight in policy[0].parameters()} == {torch.float32}


def test_groups_are_spread_over_solve_rates():
    rates = np.concatenate([np.full(100, 0.01), np.full(2, 0.3), np.full(50, 0.95)])
    chosen = spread_over_rates(rates, 18, seed=0)
    counts = np.bincount(interval_of(rates[chosen]), minlength=6)
    assert counts.tolist() == [3, 0, 2, 0, 0, 3]
    assert len(set(chosen.tolist())) == len(chosen)
    assert spread_over_rates(rates, 18, seed=0).tolist() == chosen.tolist()
    assert len(spread_over_rates(rates, 1, seed=0)) == 1
    assert interval_of(np.array([0.0, 0.1, 0.999, 1.0])).tolist() == [0, 1, 5, 5]


@pytest.mark.parametrize(("name", "symbol"), [("binary", "s+ and s-"), ("graded", "b = Cov(R, s)")])
def test_the_page_and_the_table(groups, name, symbol):
    study = page.IdentityStudy("folder<b>", 6, name == "binary", 5, 8, 0.001, [groups[name]])
    html = render_page(page.TITLE, page.sections(study))
    assert "folder&lt;b&gt;" in html and "0.5 to 0.75" in html
    assert symbol in page.legend(study)
    (row,) = page.rows(study)
    assert len(row) == len(page.HEADER) and row[1] == "1"
    assert "undefined" in page.findings(study)[1], "one group has no correlation"
