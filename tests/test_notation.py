"""Numbers in scientific notation, and answers that math-verify would take for right."""

import pytest

from verl_gsd.tasks import maths
from verl_gsd.tasks.notation import is_wrong_by_sight, usual


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("-1.5E-4", r"-1.5 \times 10^{-4}"),
        (r"4.5\times10^{33}", r"4.5 \times 10^{33}"),
        (r"3 \cdot 10^8", r"3 \times 10^{8}"),
        ("3*10^{+8}", r"3 \times 10^{8}"),
        (r"\approx 3.14", "3.14"),
        ("e^2", "e^2"),
        ("2e", "2e"),
        ("3e^2", "3e^2"),
        (r"\frac{1e3}{2}", r"\frac{1 \times 10^{3}}{2}"),
        ("xe3", "xe3"),
        ("2e3x", "2e3x"),
        ("1e99999", "1e99999"),
        (r"x \approx 3", r"x \approx 3"),
    ],
)
def test_numbers_are_written_as_math_verify_reads_them(text, found):
    assert usual(text) == found == usual(found)


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        (r"4.5 \times 10^{33}", "4.5e33", 1.0),
        (r"4.5 \times 10^{32}", "4.5e33", 0.0),
        ("2.45e6", "2450000", 1.0),
        ("3e8", r"3\cdot10^8", 1.0),
        ("1.5e-4", "0.00015", 1.0),
        (r"\approx 3.14", "3.14", 1.0),
        ("6=5", "5", 0.0),
        ("3 = 4 = 5", "5", 0.0),
        ("x=5", "5", 1.0),
        ("1+1=2", "2", 1.0),
        ("101_2", "101_3", 0.0),
        ("101_2", "101_{2}", 1.0),
    ],
)
def test_answers_are_verified_by_what_they_say(answer, truth, right):
    found = maths.compute_score("minerva", rf"So \boxed{{{answer}}}.", truth)
    assert found == {"score": right, "acc": right, "unverified": 0.0}


@pytest.mark.parametrize(
    ("answer", "truth", "wrong"),
    [
        ("6=5", "5", True),
        ("5=5", "5", False),
        ("0.5=1/2", "1/2", False),
        ("x=5", "5", False),
        ("101_2", "101_3", True),
        ("101_{2}", "101_2", False),
        ("x_1", "x_2", False),
        ("5", "6", False),
    ],
)
def test_only_what_is_plain_is_wrong_by_sight(answer, truth, wrong):
    assert is_wrong_by_sight(answer, truth) == wrong
