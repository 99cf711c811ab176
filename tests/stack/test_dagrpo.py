"""DaGRPO on the real stack, against vLLM's own OpenAI server: judged, and shown what an expert and what the policy
itself got right."""

import numpy as np
import pytest
import torch
from dagrpo_runs import BATCH, SAVED, SIZE, shown_of_its_own, train_judged, write_problems
from gvpo_cases import log_probs
from running import TASK, remembered, replayed

STEPS = 4
GAMMA = 0.1


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="module")
def run(problems, tmp_path_factory):
    return train_judged(tmp_path_factory.mktemp("dagrpo"), problems, last=STEPS)


def test_groups_whose_outcomes_differ_are_judged_by_that_server_and_no_other_is(run):
    assert run.again and [judged.score for judged in run.early[:8]] == run.again
    for row in run.records.to_pylist():
        assert (row["dagrpo_pairs"] is not None) == (row["kind"] == "mixed")
        if row["kind"] == "mixed":
            assert row["judge_failed"] == 0 and 0 <= row["judge_score"] <= 10
            assert row["dagrpo_pairs"] == row["correct"] * (row["total"] - row["correct"])
    for seen in run.seen.values():
        assert seen["judge/responses"] > 0 and seen["judge/failures/any"] == 0


def test_the_mask_keeps_some_pairs_and_drops_others_as_the_scores_in_the_cache_say(run):
    """Every group's pairs counted again from what the cache holds of its prompt."""
    kept = sum(row["dagrpo_pairs_kept"] or 0 for row in run.records.to_pylist())
    pairs = sum(row["dagrpo_pairs"] or 0 for row in run.records.to_pylist())
    assert 0 < kept < pairs
    for step, seen in run.seen.items():
        rows = [row for row in run.records.to_pylist() if row["step"] == step and row["dagrpo_pairs"]]
        assert seen["dagrpo/pairs/kept"] == pytest.approx(
            sum(row["dagrpo_pairs_kept"] for row in rows) / sum(row["dagrpo_pairs"] for row in rows)
        )


def test_groups_that_failed_have_an_experts_demonstration_or_what_the_policy_got_right_before(run, problems):
    assert shown_of_its_own(run, problems)
    assert {(row["size"], row["total"]) for row in run.records.to_pylist()} == {(SIZE, SIZE)}, "what it replaced counts"
    for step, seen in run.seen.items():
        rows = [row for row in run.records.to_pylist() if row["step"] == step]
        assert seen["dagrpo/demonstrations/wanted"] == sum(row["kind"] == "all_wrong" for row in rows) > 0
        assert seen["dagrpo/demonstrations/found"] == sum(row["demonstrations"] for row in rows)
        assert seen["dagrpo/demonstrations/share"] == seen["dagrpo/demonstrations/found"] / (BATCH * SIZE)
    ages = [seen["dagrpo/demonstrations/age"] for seen in run.seen.values() if "dagrpo/demonstrations/age" in seen]
    assert ages and min(ages) >= 1, "steps since the policy's own success"


def test_the_experts_tokens_reach_the_loss_exactly(run, problems):
    """At the first step the policy is the model on disk and every ratio is 1: a group's own rows add up to -A of its
    demonstration, and its demonstration to -A f(p). What verl logs as the loss is then known from the outside."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(TASK / "model", dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(TASK / "model")
    rows = [row for row in run.records.to_pylist() if row["step"] == 1 and row["demonstrations"]]
    # Rewards 0 seven times and 1 once, centred over their pairs and divided by the sample's sigma.
    advantage = (SIZE - 1) / SIZE / (np.sqrt(1 / SIZE) + 1e-6)
    loss, probabilities = 0.0, []
    for row in rows:
        problem = problems.by_index[row["index"]]
        prompt = tokenizer.apply_chat_template(problem["prompt"], add_generation_prompt=True, return_dict=False)
        response = [*tokenizer.encode(problem["demonstration"], add_special_tokens=False), tokenizer.eos_token_id]
        with torch.no_grad():
            p = log_probs(model, {"prompt": torch.tensor(prompt), "response": torch.tensor(response)}).exp()
        loss += advantage * (1 - float((p / (p + GAMMA)).mean())) / (BATCH * SIZE)
        probabilities += p.tolist()
    assert loss > 0
    assert run.seen[1]["actor/pg_loss"] == pytest.approx(loss, rel=1e-3)
    assert run.seen[1]["dagrpo/demonstrations/token_probability"] == pytest.approx(np.mean(probabilities), rel=1e-4)


def test_what_verl_reports_of_rewards_is_of_the_policys_own_responses(run):
    for step, seen in run.seen.items():
        rows = [row for row in run.records.to_pylist() if row["step"] == step]
        shown = sum(row["demonstrations"] for row in rows)
        # The responses that were replaced failed: they are missing in verl's mean, and no expert is in it.
        assert seen["critic/score/mean"] == pytest.approx(sum(row["correct"] for row in rows) / (BATCH * SIZE - shown))
        assert 0 < seen["actor/grad_norm"] < np.inf


def test_the_cache_and_the_memory_keep_what_was_seen(run):
    questions = [judged.question for judged in run.early]
    assert len(set(questions)) == len(questions)
    assert sum(seen["judge/cache_hits"] for seen in run.seen.values()) > 0, "the same prompts at every step"
    for step in (SAVED, STEPS):
        assert remembered(run.path / f"global_step_{step}") == replayed(run.records, step)


def test_gradients_are_probed_on_the_steps_asked_for(run):
    for step, seen in run.seen.items():
        assert ("dagrpo/probe/cosine" in seen) == (step % 2 == 0)
        if step % 2 == 0:
            assert -1 <= seen["dagrpo/probe/cosine"] <= 1
