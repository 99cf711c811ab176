"""The judge in verl's own replay buffer over a real queue: who is asked, who waits, and what a group takes with it."""

import math
import threading

import numpy as np
import pytest

pytest.importorskip("verl")

import transfer_queue as tq
from agent_rows import answer, services_of, watched
from omegaconf import OmegaConf

from verl_gsd.algorithms.dagrpo.judging import JudgeExtension, shared_prefix
from verl_gsd.algorithms.dagrpo.reward_model import RewardModelScorer
from verl_gsd.judge.scorer import JudgementError

pytestmark = pytest.mark.usefixtures("queue")

PROBLEM = {
    "raw_prompt": [{"role": "user", "content": "3+8="}],
    "reward_model": {"ground_truth": "11", "style": "rule"},
    "data_source": "arithmetic",
}


class ScriptedScorer:
    """Scores a response by its length once ``open`` is set; ``fail`` is judged by nobody."""

    identity = "scripted"

    def __init__(self):
        self.asked, self.open = [], threading.Event()
        self.open.set()

    async def score(self, question):
        import asyncio

        self.asked.append(question)
        await asyncio.to_thread(self.open.wait)
        if question.response == "fail":
            raise JudgementError("server_error")
        return float(len(question.response))

    async def close(self):
        pass


class JudgingByScript(JudgeExtension):
    """Asks a scorer of the test, made when the run would make its own."""

    def __init__(self, scorer, section, services):
        super().__init__(section, services)
        self._scripted = scorer

    def make_scorer(self):
        return self._scripted


def watched_for(part):
    """(verl's buffer, the seam), with this one extension."""
    return watched({"dagrpo.judge": part}, part.services, key_of=key_of)


@pytest.fixture
def judging():
    from verl_gsd.tasks.byte_llama import build_tokenizer

    made, tokenizer = [], build_tokenizer()

    def make(algorithm=None, rollouts=2, **settings):
        scorer = ScriptedScorer()
        config = {"algorithm": algorithm or {}, "actor_rollout_ref": {"rollout": {"n": rollouts}}}
        services = services_of(tokenizer=tokenizer, config=OmegaConf.create(config))
        part = JudgingByScript(scorer, {"scorer": "stub", "cache": None, **settings}, services)
        made.append((part, scorer))
        return part, scorer, tokenizer

    yield make
    for part, scorer in made:
        scorer.open.set()
        part.close()


def key_of(uid):
    return "arithmetic", int(uid[1:])


def test_a_group_whose_outcomes_differ_is_judged_and_leaves_with_its_scores(judging):
    part, scorer, tokenizer = judging()
    buffer, seam = watched_for(part)
    answer("a1", PROBLEM, tokenizer, ["11", "7", "fail", "123"])
    answer("a2", PROBLEM, tokenizer, ["11", "11"])
    answer("a3", PROBLEM, tokenizer, ["7", "8"])
    buffer.sample(1, "train", 3)
    scores = {uid: group.scores for uid, (group, _) in seam.gone.items()}
    assert np.array_equal(scores["a1"], [2.0, 1.0, math.nan, 3.0], equal_nan=True)
    assert scores["a2"] is None and scores["a3"] is None, "a group that agrees forms no pair"
    assert {(asked.problem, asked.reference) for asked in scorer.asked} == {("3+8=", "11")}
    assert sorted(asked.response for asked in scorer.asked) == ["11", "123", "7", "fail"], "no end of sequence in it"
    found = seam.end_step()
    assert found["judge/responses"] == 4 and found["judge/failures/server_error"] == 1
    assert seam.seconds()["judge"] > 0 and seam.seconds()["judge"] == 0, "counted once"


@pytest.mark.parametrize(
    ("algorithm", "judged"),
    [
        ({"filter_groups": {"enable": True, "metric": "acc"}}, {"a1"}),
        ({"filter_groups": {"enable": True, "metric": "reward"}}, {"a1", "a2"}),
        ({"filter_groups": {"enable": True, "metric": "score"}}, {"a1", "a2"}),  # a group does not have this value
        ({"filter_groups": {"enable": False, "metric": "acc"}}, {"a1", "a2"}),
        (  # a demonstration can keep a group
            {
                "filter_groups": {"enable": True, "metric": "acc"},
                "gsd": {"dagrpo": {"demonstrations": {"source": "self"}}},
            },
            {"a1", "a2"},
        ),
    ],
    ids=["acc", "reward", "score", "off", "demonstrations"],
)
def test_a_group_that_dynamic_sampling_is_about_to_evict_is_not_judged(judging, algorithm, judged):
    """A penalty makes the rewards of a2 differ, although all its responses are right."""
    part, _, tokenizer = judging(algorithm)
    buffer, _ = watched_for(part)
    answer("a1", PROBLEM, tokenizer, ["11", "7"])
    answer("a2", PROBLEM, tokenizer, ["11", "11"], penalties=[0.0, 0.5])
    buffer._sync_metadata_from_transfer_queue()
    assert part._asked == judged


def test_a_group_with_a_failed_session_is_judged_because_verl_does_not_evict_it(judging):
    by_accuracy = {"filter_groups": {"enable": True, "metric": "acc"}}
    part, _, tokenizer = judging(by_accuracy, rollouts=3)
    buffer, _ = watched_for(part)
    answer("a1", PROBLEM, tokenizer, ["11", "11"], penalties=[0.0, 0.5])
    tq.kv_put(key="a1", partition_id="train", tag={"is_prompt": True, "status": "failure", "global_steps": 1})
    answer("a2", PROBLEM, tokenizer, ["11", "11", "11"], penalties=[0.0, 0.5, 0.0])
    buffer._sync_metadata_from_transfer_queue()
    assert part._asked == {"a1"}


def test_until_it_is_judged_a_group_counts_as_running(judging):
    part, scorer, tokenizer = judging()
    scorer.open.clear()
    buffer, seam = watched_for(part)
    answer("a1", PROBLEM, tokenizer, ["11", "7"])
    answer("a2", PROBLEM, tokenizer, ["11", "11"])
    for _ in range(3):
        buffer._sync_metadata_from_transfer_queue()
        assert buffer.finished_keys["train"] == {"a2"} and buffer.running_keys["train"] == {"a1"}
    scorer.open.set()
    buffer.sample(1, "train", 2)
    assert seam.gone["a1"][0].scores.tolist() == [2.0, 1.0]
    assert len(scorer.asked) == 2, "asked once, however often one looks"


def test_a_judge_that_never_answers_stalls_nobody_past_the_budget(judging):
    part, scorer, tokenizer = judging(budget_s=0.2)
    scorer.open.clear()
    buffer, seam = watched_for(part)
    answer("a1", PROBLEM, tokenizer, ["11", "7"])
    buffer.sample(1, "train", 1)
    assert np.isnan(seam.gone["a1"][0].scores).all(), "no answer is no score"
    assert seam.end_step()["judge/failures/over_budget"] == 2
    assert seam.seconds()["judge"] > 0.1, "the wait for it is counted"


def test_what_responses_begin_with_alike_is_measured(judging):
    part, _, tokenizer = judging()
    buffer, seam = watched_for(part)
    answer("a1", PROBLEM, tokenizer, ["11", "17", "1"])  # and an end of sequence each: 3 + 3 + 2 tokens
    buffer.sample(1, "train", 1)
    assert seam.end_step()["dagrpo/shared_prefix"] == 3 / 8
    assert "dagrpo/shared_prefix" not in seam.end_step()
    assert shared_prefix([np.array([1, 2, 3]), np.array([1, 2])]) == 2
    assert shared_prefix([np.array([1]), np.array([2])]) == 0


def test_a_group_that_is_evicted_unjudged_asks_for_nothing_more(judging):
    part, scorer, tokenizer = judging()
    buffer, _ = watched_for(part)
    scorer.open.clear()
    answer("a1", PROBLEM, tokenizer, ["11", "7"])
    buffer._sync_metadata_from_transfer_queue()
    buffer._clear_groups("train", {"a1"})
    assert part._asked == part._waiting == set()


def test_verls_reward_model_is_asked_through_its_own_workers():
    """Through a stub of the worker: a reward model needs a pool of accelerators."""
    import asyncio

    import ray

    from verl_gsd.judge.scorer import Question
    from verl_gsd.tasks.byte_llama import build_tokenizer
    from verl_gsd.trainer.verifying import RewardWorkers

    @ray.remote(num_cpus=0)
    class StubRewardWorker:
        """Gives the answers in order, and none when there are no more."""

        def __init__(self, answers):
            self.answers = list(answers)

        def compute_score_disrm(self, data):
            if not self.answers:
                threading.Event().wait()
            assert data.non_tensor_batch["raw_prompt"][0] == [{"role": "user", "content": "3+8="}]
            assert data.batch["responses"].tolist() == [[16, 16]] and data.batch["attention_mask"].tolist() == [[1, 1]]
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

    def asked(seconds=300):  # the first answer waits until Ray has started the worker
        scorer = JudgeExtension({"scorer": "reward_model", "timeout_s": seconds}, services).make_scorer()
        assert scorer.identity == "reward_model rm-7b", "a name, of which nothing more is known"
        return asyncio.run(scorer.score(Question("3+8=", "11", "11")))

    worker = StubRewardWorker.remote([{"reward_score": 1.25}, {}, RuntimeError("broken")])
    config = OmegaConf.create({"reward": {"reward_model": {"model_path": "rm-7b"}}})
    services = services_of(config=config, tokenizer=build_tokenizer(), verifier=RewardWorkers([worker]))
    try:
        assert asked() == 1.25
        for reason, seconds in (("unreadable", 60), ("server_error", 60), ("timed_out", 0.5)):
            with pytest.raises(JudgementError) as failure:
                asked(seconds)
            assert failure.value.reason == reason
    finally:
        ray.kill(worker)


def test_a_reward_model_that_was_trained_further_in_place_has_another_identity(tmp_path):
    def identity():
        return RewardModelScorer([], None, str(tmp_path), timeout_s=1).identity

    assert identity() == f"reward_model {tmp_path}", "nothing is known about a folder without a config"
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1" * 100)
    before = identity()
    assert before != f"reward_model {tmp_path}" and identity() == before
    (tmp_path / "model.safetensors").write_bytes(b"2" * 100)
    assert identity() != before
