r"""How two values are compared: numbers, expressions with letters, and words."""

import pytest
import sympy

from verl_gsd.tasks.structure import NotUnderstoodError
from verl_gsd.tasks.values import differ_by_constant, exact, parsed, real_number, same_expressions, same_value


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (r"\sqrt{8}", r"2\sqrt{2}"),
        ("0.333333", r"\frac{1}{3}"),
        (r"\frac\pi2", r"\frac{\pi}{2}"),
        (r"\sqrt[3]{-8}", "-2"),
        (r"(1+i)^2", "2i"),
        (r"e^{i\pi}", "-1"),
        ("2^{100}", "4^{50}"),
        (r"60^\circ", r"\frac{\pi}{3}"),
        (r"\text{Even}", "even"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        (r"\sqrt{1/n}", r"\frac{1}{\sqrt n}"),
        (r"\frac{n!}{(n-2)!}", "n(n-1)"),
        (r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}"),
        (r"\sqrt{R-12}", r"(R-12)^{\frac12}"),
        (r"\sqrt{x^2}", "|x|"),
        (r"5\text{ apples}", "5"),
        (r"\sqrt{2}\%", r"\frac{2}{\sqrt{2}}\%"),
        (r"\sqrt{2}\%", r"\frac{\sqrt{2}}{100}"),
        ("a'b", "b a'"),
    ],
)
def test_equal_values(answer, truth):
    assert same_value(answer, truth) and same_value(truth, answer)


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("0.33333", r"\frac{1}{3}"),
        ("3.14", r"\pi"),
        ("2^{100}", "2^{100}+1"),
        (r"\sqrt{x^2}", "x"),
        (r"\ln|x|", r"\ln x"),
        ("2r+R", "2R+r"),
        ("i", "I"),
        ("a'", "a"),
        ("x^{2n}", "x^n"),
        ("(-1)^n", "1"),
        (r"\lfloor x\rfloor", r"\lceil x\rceil"),
        (r"\max(a,b)", "a+b"),
        (r"60^\circ", r"\frac{\pi}{4}"),
        (r"\text{even}", "odd"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"\infty", r"-\infty"),
        (r"5\%", r"5\text{ apples}"),
        (r"\sqrt{2}\%", r"\sqrt{3}\%"),
        ("x", "y"),
    ],
)
def test_different_values(answer, truth):
    assert not same_value(answer, truth) and not same_value(truth, answer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2",
        "x=1",
        "1,2",
        "n!!",
        "5'",
        "101_2",
        r"\vec{v}",
        r"A^T",
        r"1+\cdots+n",
        r"\gcd(a,b)",
        r"5\text{ half}",
        r"5\text{ or more}",
        r"12\text{ meters}+x",
        r"\frac{dy}{dx}",
        r"\sqrt{",
        "ж",
    ],
)
def test_texts_that_the_parser_would_misread(text):
    with pytest.raises(NotUnderstoodError):
        parsed(text)


def test_decimals_become_fractions():
    assert exact(parsed("0.1")) == sympy.Rational(1, 10)


@pytest.mark.parametrize(("text", "number"), [("0.5", sympy.Rational(1, 2)), ("x", None), ("i", None), ("1 2", None)])
def test_a_real_number(text, number):
    assert real_number(text) == number


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (r"\sin^2 x", r"-\cos^2 x", True),
        (r"\ln x", r"\ln(5x)", True),
        ("x^2", "x^2+x", False),
        ("x", "x", True),
        (r"\sqrt{-x^2}", r"\sqrt{-x^2}", False),
    ],
)
def test_a_constant_difference(a, b, verdict):
    """The last pair is real nowhere that is tried, so that nothing is known about it."""
    assert differ_by_constant(parsed(a), parsed(b)) is verdict


def test_expressions_with_too_few_common_points_are_not_equal():
    assert not same_expressions(parsed(r"\sqrt{-x^2}"), parsed(r"\sqrt{-x^2}+1"))
