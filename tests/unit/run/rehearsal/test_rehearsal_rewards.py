"""The seeded reward function, and the check of references."""

import asyncio
import json
import math
from collections import Counter

import pytest
import rehearsal_rewards as users

from verl_gsd.errors import ConfigError
from verl_gsd.run.rehearsal import seeded_rewards
from verl_gsd.run.rehearsal.data import balanced_seed
from verl_gsd.run.rehearsal.references import check_references
from verl_gsd.run.rehearsal.seeded_rewards import KINDS, kind_of_prompt, seeded_score
from verl_gsd.tasks import maths


def rows(*truths):
    return [
        {"data_source": "mine", "reward_model": {"ground_truth": truth}, "extra_info": {"index": index}}
        for index, truth in enumerate(truths)
    ]


@pytest.fixture
def score(monkeypatch, tmp_path):
    """(real function, response, index, accepted score) -> the seeded function's result."""

    def compute(function, response, index=0, accepted=None, truth="7", **kwargs):
        monkeypatch.setattr(seeded_rewards, "real_function", lambda path, name: function)
        settings = {"path": "mine.py", "name": "f", "kwargs": kwargs, "seed": 0, "accepted_score": accepted}
        settings["log"] = str(tmp_path / "rewards.jsonl")
        return asyncio.run(seeded_rewards.compute_score("mine", response, truth, {"index": index}, rehearsal=settings))

    compute.log = tmp_path / "rewards.jsonl"
    return compute


def index_of(kind):
    return next(index for index in range(99) if kind_of_prompt(0, "mine", "7", {"index": index}) == kind)


def test_the_four_kinds_of_prompts_make_unanimous_mixed_and_graded_groups(score):
    responses = [f"text {number}" for number in range(40)]
    found = {kind: [score(users.compute_score, text, index_of(kind)) for text in responses] for kind in KINDS}
    scores = {kind: Counter(result["score"] for result in results) for kind, results in found.items()}
    assert set(scores["right"]) == {1.0} and set(scores["wrong"]) == {0.0}
    assert set(scores["mixed"]) == {0.0, 1.0}
    assert set(scores["graded"]) == {0.0, 0.25, 0.5, 0.75, 1.0}
    for result in found["graded"]:
        assert result["acc"] == (result["score"] == 1.0)


def test_the_real_function_runs_with_its_arguments_and_its_other_entries_stay(score):
    result = score(users.compute_score, r"\boxed{7}", index_of("wrong"), weight=0.5)
    assert result == {"score": 0.0, "acc": 0.0, "length": 9}
    (entry,) = map(json.loads, score.log.read_text().splitlines())
    assert entry == {"real": 0.5, "kind": "wrong", "accepted": False}


def test_the_form_of_a_number_stays_and_coroutines_are_awaited(score):
    assert score(users.compute_score_async, "x", index_of("right")) == 1.0


def test_a_response_that_is_accepted_like_a_reference_keeps_its_score(score):
    """Otherwise no demonstration would be accepted for a prompt of the kind wrong."""
    result = score(users.compute_score, r"\boxed{7}", index_of("wrong"), accepted=1.0)
    assert result["score"] == result["acc"] == 1.0


@pytest.mark.parametrize("result", [None, math.nan, "1", {"acc": 1.0}, {"score": None}, [1, 2]])
def test_a_failed_reward_is_passed_on(score, result):
    returned = score(lambda **kwargs: result, "x")
    assert returned is result
    assert json.loads(score.log.read_text()) == {"failed": "returned no score"}


def test_an_exception_of_the_real_function_is_raised(score):
    with pytest.raises(KeyError, match="level"):
        score(users.compute_score_raises, "x")
    assert json.loads(score.log.read_text()) == {"failed": "raised KeyError"}


def test_scores_depend_on_the_text_alone():
    assert seeded_score("mixed", 0, "a") == seeded_score("mixed", 0, "a")
    assert {seeded_score("mixed", seed, "a") for seed in range(9)} == {0.0, 1.0}


def test_the_seed_is_one_with_all_kinds_among_the_rows():
    data = rows(*map(str, range(8)))
    seed = balanced_seed(data)
    kinds = [kind_of_prompt(seed, "mine", str(index), {"index": index}) for index in range(8)]
    assert set(kinds) == set(KINDS)
    assert balanced_seed([{"prompt": []}]) == 0, "without any column"


# References


def test_references_are_accepted_in_any_form_and_the_lowest_score_is_kept():
    result = check_references(users.compute_score, {"weight": 0.5}, rows("7", "x^2"))
    assert (result.checked, result.rejected, result.accepted_score) == (2, (), 0.5)
    assert result.problem() is None
    assert check_references(users.compute_score_async, {}, rows("7")).accepted_score == 1.0


def test_rejected_references_are_named_by_row_with_the_forms_tried():
    def function(solution_str, ground_truth, **kwargs):
        return float(ground_truth != "N/A" and ground_truth in solution_str)

    result = check_references(function, {}, rows("7", "N/A"))
    assert result.rejected == ((1, "N/A"),)
    for part in ("1 of 2", "row 1: 'N/A'", r"\boxed{A}", "reward.custom_reward_function"):
        assert part in result.problem()


@pytest.mark.parametrize("bonus", [lambda text: 0.1 * ("boxed" in text), lambda text: len(text) / 100])
def test_points_for_form_or_length_do_not_accept_a_reference(bonus):
    result = check_references(lambda solution_str, **kwargs: bonus(solution_str), {}, rows("7", "zzz"))
    assert len(result.rejected) == 2 and result.accepted_score is None


def test_a_function_that_accepts_everything_accepts_no_reference():
    result = check_references(users.compute_score_accepts_all, {}, rows("7"))
    assert result.rejected and result.accepted_score is None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (users.compute_score_returns_none, "compute_score_returns_none: it returned None.*Return a finite number"),
        (users.compute_score_raises, "compute_score_raises: it raised KeyError: 'level'.*Correct the function"),
    ],
)
def test_a_function_that_fails_is_found_before_the_run(function, said):
    with pytest.raises(ConfigError, match=f"reward.custom_reward_function.name={said}"):
        check_references(function, {}, rows("7"))


@pytest.mark.parametrize("truth", ["We add. 3 + 4 = 7\n#### 115", "She has 115 apples."])
def test_solutions_and_sentences_that_only_the_same_text_equals_are_rejected(truth):
    """The verifier of mathematics compares texts before anything else, so that such a reference equals itself."""
    assert maths.compute_score("", rf"\boxed{{{truth}}}", truth)["score"] == 1
    assert maths.compute_score("", r"\boxed{115}", truth)["score"] == 0
    assert check_references(maths.compute_score, {}, rows(truth)).rejected == ((0, truth),)
    assert not check_references(
        maths.compute_score, {}, rows("115", "x=3", "3 or 5", "3 hours and 20 minutes")
    ).rejected


def test_a_reference_that_announces_its_answer_is_accepted():
    """The verifier reads the answer out of such a sentence, in references as in responses."""
    truth = "The answer is 115 apples."
    assert maths.compute_score("", r"\boxed{115}", truth)["score"] == 1
    assert not check_references(maths.compute_score, {}, rows(truth)).rejected
