"""The verifier with partial credit: its formula, and texts that are not whole numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.tasks.arithmetic import LONGEST_ANSWER, PASS
from verl_gsd.tasks.arithmetic_graded import compute_score

NUMBERS = st.integers(-100, 100) | st.integers()
WRONG = {"score": 0.0, "acc": 0.0, "answer": ""}


def grade(text, truth="12"):
    return compute_score("arithmetic_graded", text, truth)


@pytest.mark.parametrize(
    ("text", "score"),
    [("12", 1.0), (" 12\n", 1.0), ("13", 0.9), ("11", 0.9), ("7", 0.5), ("3", 0.1), ("2", 0.0), ("22", 0), ("-12", 0)],
)
def test_the_score_falls_by_a_tenth_per_unit_of_distance(text, score):
    assert grade(text) == {"score": score, "acc": float(score == 1), "answer": text.strip()}


@given(NUMBERS, NUMBERS)
def test_the_score_is_in_range_and_1_only_for_the_answer(number, answer):
    verdict = grade(str(number), str(answer))
    assert 0 <= verdict["score"] <= 1
    assert (verdict["score"] == 1) == (number == answer) == (verdict["acc"] == 1)
    assert verdict["acc"] in (0, 1)


@given(st.integers(-50, 50), st.integers(-50, 50), st.integers(-50, 50))
def test_a_closer_number_never_has_a_lower_score(one, other, answer):
    closer, farther = sorted((one, other), key=lambda number: abs(number - answer))
    difference = grade(str(closer), str(answer))["score"] - grade(str(farther), str(answer))["score"]
    assert difference >= 0
    if abs(farther - answer) > abs(closer - answer) < 10:
        assert difference > 0


@given(st.text(), st.integers(-20, 20))
def test_any_text_has_a_score(text, answer):
    verdict = grade(text, str(answer))
    assert verdict == (WRONG if not verdict["answer"] else verdict)
    assert 0 <= verdict["score"] <= 1 and verdict["acc"] == (text.strip() == str(answer))


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", PASS, "-", "--12", "+12", "012", "00", "-0", "12.0", "1e1", "0x0c", "1_2", "12 12", "is 12", "- 12"),
        *("\ud800", "12\x00", "١٢", "１２", "²", "inf", "nan", "9" * LONGEST_ANSWER, " " * LONGEST_ANSWER + "12"),
        *("9" * 5_000_000, None, b"12", 12, 12.0, ["12"]),
    ],
    ids=lambda text: repr(text)[:20],
)
def test_any_other_text_is_wrong_and_harmless(text):
    is_number = isinstance(text, str) and text == "9" * LONGEST_ANSWER
    assert grade(text) == (WRONG | {"answer": text} if is_number else WRONG)


def test_the_answer_may_be_negative_zero_or_an_integer():
    assert grade("-3", "-3")["score"] == grade("0", 0)["score"] == 1
    assert grade("2", "-3")["score"] == 0.5


@pytest.mark.parametrize("truth", ["1/2", "", "1" * 100, None])
def test_an_answer_that_is_no_whole_number_is_an_error(truth):
    with pytest.raises(ValueError, match=r"ground_truth=.*data_source=arithmetic_graded: .*whole number"):
        grade("12", truth)
