"""The rule that decides about an answer, and what no rule is sure of."""

import pytest

from verl_gsd.tasks import maths
from verl_gsd.tasks.maths import RULES, Decision, compare, decide, is_right_by_math_verify

DECIDED = [
    (r"\frac{1}{2}", r"\frac{1}{2}.", "same text", True),
    ("", "3", "no answer", False),
    (r"\text{(B)}", "C", "letters", False),
    ("E - a score", "E", "letters", True),
    ("6=5", "5", "contradiction", False),
    ("2x for all x", "2x because x > 0", "contradiction", False),
    ("6:30 a.m.", "6:30 p.m.", "contradiction", False),
    (r"\frac{10}{2}=5", "5", "one side", True),
    ("18:30", "6:30 p.m.", "time", True),
    (r"5\text{ kg}", r"5\text{ m}", "units", False),
    (r"36\text{ km/h}", r"10\text{ m/s}", "numbers", True),
    ("(0,1]", "(0,2]", "numbers", False),
    (r"3\sqrt{2}", r"\sqrt{18}", "algebra", True),
    ("x+1", "x", "algebra", False),
    (r"\cos x", r"\sin x", "algebra", False),
    (r"12\text{ meters}+x", "x", "doubtful", False),
    (r"\text{none}", "3", "doubtful", False),
    (r"\text{odd}", r"\text{even}", "doubtful", False),
    ("thirteen", "13", "same text", True),
    ("umpteen", "13", "doubtful", False),
    (r"x^{", "x", "doubtful", False),
    ("x", r"\frac{1", "doubtful", False),
    ("9^{9^{9^{9}}}", "3", "too large", None),
    ("9^{(9^{(9+1)})}", r"\sqrt{2}", "no verdict", None),
]


@pytest.mark.parametrize(("answer", "truth", "rule", "right"), DECIDED)
def test_the_rule_that_decides(answer, truth, rule, right):
    decision = compare(answer, truth)
    assert (decision.rule, decision.right) == (rule, right)
    assert decision.answer == maths.normalize_latex(truth if right else answer)
    if truth != r"\frac{1":  # a box with this answer would not be closed
        verdict = maths.compute_score("math", rf"So \boxed{{{answer}}}." if answer != "x^{" else answer, truth)
        assert (verdict["unverified"], verdict["doubtful"]) == (float(right is None), float(rule == "doubtful"))
        assert verdict["score"] == verdict["acc"] == float(bool(right))


def test_every_rule_is_explained_and_has_a_case():
    assert [*RULES] == list(dict.fromkeys(rule for rule in RULES if rule in {rule for *_, rule, _ in DECIDED}))


@pytest.mark.parametrize("response", [None, 3, "", r"\boxed{x", "The numbers are all of them large.", "9" * 2000])
def test_a_response_without_an_answer_is_wrong_for_sure(response):
    assert decide(response, "3") == Decision(False, "no answer", "")


def test_answers_of_any_length_and_with_any_braces_are_compared():
    assert compare("x" * 1001, "x" * 1001).rule == "no answer"
    assert not any(compare(answer, "3").right for answer in ("}{", "{" * 999, "}" * 999, "\\" * 999, "\ud800", "\x00"))


def test_math_verify_alone_is_another_opinion():
    """It takes the right-hand side of an equation for the answer, and does not know of a.m. and p.m."""
    assert is_right_by_math_verify(r"\boxed{6=5}", "5") is True and compare("6=5", "5").right is False
    assert is_right_by_math_verify(r"I say \boxed{4}.", "5") is False
    assert is_right_by_math_verify("x" * 10, "5") is False
    assert is_right_by_math_verify("9^{(9^{(9+1)})}", r"\sqrt{2}") in (None, False)
