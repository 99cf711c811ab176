"""Numbers in scientific notation, and wrong answers that math-verify would accept."""

import pytest

from verl_gsd.tasks import maths
from verl_gsd.tasks.notation import is_trivially_wrong, normalize_latex


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("4.5e33", r"4.5 \times 10^{33}"),
        ("-1.5E-4", r"-1.5 \times 10^{-4}"),
        (r"4.5\times10^{33}", r"4.5 \times 10^{33}"),
        (r"3 \cdot 10^8", r"3 \times 10^{8}"),
        (r"4.5 \cdot 10^33", r"4.5 \times 10^{33}"),
        (r"4.5 \cdot 10^-3", r"4.5 \times 10^{-3}"),
        (r"10 \cdot 10^1234", r"10 \cdot 10^1234"),
        ("12.", "12"),
        ("1, 2, ...", "1, 2, ..."),
        (r"12~\text{cm}", r"12 \text{cm}"),
        (r"\text{12 cm}", "12 cm"),
        (r"\text{even}", r"\text{even}"),
        (r"0.\overline{3}", r"\frac{3}{9}"),
        (r"1.1\overline{6}", r"\frac{105}{90}"),
        (r"-2.\overline{09}", r"-\frac{207}{99}"),
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
def test_answers_are_normalized_to_what_math_verify_reads(text, found):
    assert normalize_latex(text) == found == normalize_latex(found)


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
        (r"90 \text{ minutes} = 1.5 \text{ hours}", "90", 1.0),
        (r"\frac13 = 0.333", r"\frac13", 1.0),
        (r"\frac23 = 66.67\%", r"\frac23", 1.0),
        (r"\frac23 = 66.6\%", r"\frac23", 0.0),
        ("(1,2) = (1,3)", "(1,3)", 0.0),
        (r"10:00 \text{ a.m.}", r"10:00 \text{ p.m.}", 0.0),
        (r"10 \text{ a.m.}", "10 pm", 0.0),
        (r"2 \text{ squared}", "2", 0.0),
        (r"5 \text{ if n is even}", "5", 0.0),
        ("June 20", r"\text{June 20}", 1.0),
        # What math-verify, which looks at 15 places behind the point, has for equal.
        (r"(\frac12)^{60}", r"-(\frac12)^{60}", 0.0),
        (r"(\frac12)^{60}", r"\frac{1}{2^{60}}", 1.0),
        (r"(\frac23)^{2014}", r"(\frac23)^{2015}", 0.0),
        (r"2-\frac{1}{2^{99}}", r"2-\frac{1}{2^{100}}", 0.0),
        (r"\frac12(1+\frac{1}{3^{100}})", r"\frac12(1-\frac{1}{3^{100}})", 0.0),
        (r"\frac{1}{99!}", r"\frac{1}{100!}", 0.0),
        (r"\frac{100}{100!}", r"\frac{1}{99!}", 1.0),
        ("e^{-50}", "2e^{-50}", 0.0),
        (r"\frac{2}{e^{50}}", "2e^{-50}", 1.0),
        ("1.4142136", r"\sqrt2", 1.0),
        ("0.333333", r"\frac13", 1.0),
        # An inequality is the interval of its solutions, whichever is the reference.
        ("x>3", r"(3,\infty)", 1.0),
        (r"(3,\infty)", "x>3", 1.0),
        ("-2<x<7", "(-2,7)", 1.0),
        ("-2<x<7", "[-2,7]", 0.0),
    ],
)
def test_verdicts_in_many_notations(answer, truth, right):
    found = maths.compute_score("minerva", rf"So \boxed{{{answer}}}.", truth)
    wanted = maths.normalize_latex((truth if right else answer).strip())
    assert not (found.pop("doubtful") and right), "a right answer is never in doubt"
    assert found == {"score": right, "acc": right, "unverified": 0.0, "answer": wanted}


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
def test_only_plain_answers_are_trivially_wrong(answer, truth, wrong):
    assert is_trivially_wrong(answer, truth) == wrong
