"""DaGRPO on the real stack, against vLLM's own OpenAI server: judged, shown what an expert and what the policy itself
got right, killed and resumed."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dagrpo_problems import BATCH, SHORT, SIZE, write_problems
from gvpo_cases import log_probs
from judge_server import build_judge, serving
from running import TASK, metrics, remembered, replayed, train_through

from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.openai_scorer import OpenAIScorer
from verl_gsd.records import read_records

SAVED, KILLED, STEPS = 2, 3, 5
DELTA, GAMMA = 2, 0.1
JUDGE = "algorithm.gsd.dagrpo.judge"


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_problems(tmp_path_factory.mktemp("problems"))


@pytest.fixture(scope="module")
def run(problems, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dagrpo")
    build_judge(folder / "judge")
    cache = folder / "cache.sqlite"
    with serving(folder / "judge", folder / "judge.log") as url:
        at_kill = []

        def keep_scores():
            with ScoreCache(cache) as scores:
                at_kill.extend(scores.rows())

        attempts, _ = train_through(
            folder / "run",
            *("algo=dagrpo", *SHORT, f"data.train_files={problems.file}", f"{JUDGE}.base_url={url}"),
            "algorithm.gsd.dagrpo.demonstrations.source=expert_or_self",
            *(f"{JUDGE}.cache={cache}", f"algorithm.gsd.dagrpo.delta={DELTA}", "algorithm.gsd.dagrpo.probe_every=2"),
            f"trainer.save_freq={SAVED}",
            last=STEPS,
            killed_after=KILLED,
            saved=SAVED,
            between=keep_scores,
        )

        async def asked_again():
            scorer = OpenAIScorer(url, "judge")
            again = [await scorer.score(judged.question) for judged in at_kill[:8]]
            await scorer.close()
            return again

        again = asyncio.run(asked_again())
    path = folder / "run"
    seen = {step: metrics(path, attempt)[step] for step, attempt in attempts.items()}
    return SimpleNamespace(
        path=path,
        attempts=attempts,
        seen=seen,
        records=read_records(path),
        at_kill=at_kill,
        again=again,
        cache=cache,
    )


def test_groups_whose_outcomes_differ_are_judged_by_that_server_and_no_other_is(run):
    assert [judged.score for judged in run.at_kill[:8]] == run.again
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
    succeeded, only_before = defaultdict(set), 0
    for row in run.records.to_pylist():
        assert row["total"] == row["size"] == SIZE, "what it replaced still counts"
        expert, earlier = problems.by_index[row["index"]]["demonstration"], succeeded[row["index"]]
        own = not expert and any(step < row["step"] for step in earlier)
        assert row["demonstrations"] == (1 if row["kind"] == "all_wrong" and (expert or own) else 0)
        if row["demonstrations"] and own and row["step"] > SAVED:
            only_before += max(earlier) <= SAVED
        if row["correct"]:
            earlier.add(row["step"])
    assert only_before, "a success of before the kill was shown after it"
    for step, seen in run.seen.items():
        rows = [row for row in run.records.to_pylist() if row["step"] == step]
        assert seen["dagrpo/demonstrations/wanted"] == sum(row["kind"] == "all_wrong" for row in rows) > 0
        assert seen["dagrpo/demonstrations/found"] == sum(row["demonstrations"] for row in rows)
        assert seen["dagrpo/demonstrations/share"] == seen["dagrpo/demonstrations/found"] / (BATCH * SIZE)
        assert seen.get("dagrpo/demonstrations/age", 1) >= 1


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
    with ScoreCache(run.cache) as scores:
        later = list(scores.rows())
    known = {(judged.question, judged.score) for judged in later}
    assert {(judged.question, judged.score) for judged in run.at_kill} <= known and len(known) == len(later)
    assert run.seen[SAVED + 1]["judge/cache_hits"] > 0, "the first step of a new process knows what was asked before"
    steps = dict(zip(run.records["step"].to_pylist(), run.records["attempt"].to_pylist(), strict=True))
    assert steps == run.attempts
    for step in (SAVED, STEPS):
        assert remembered(run.path / f"global_step_{step}") == replayed(run.records, step)


def test_gradients_are_probed_on_the_steps_asked_for(run):
    for step, seen in run.seen.items():
        assert ("dagrpo/probe/cosine" in seen) == (step % 2 == 0)
        if step % 2 == 0:
            assert -1 <= seen["dagrpo/probe/cosine"] <= 1
