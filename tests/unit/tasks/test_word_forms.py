"""Normal forms of answers in words."""

import pytest

from verl_gsd.tasks.word_forms import in_usual_words, whole_number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\varnothing", r"\emptyset"),
        (r"\{\,\}", r"\emptyset"),
        (r"\text{There is no solution.}", r"\emptyset"),
        (r"\text{does not exist}", r"\text{DNE}"),
        (r"x\in\mathbb{R}", r"\mathbb{R}"),
        (r"(-\infty,\infty)", r"\mathbb{R}"),
        (r"\mathbf{R}", r"\mathbb{R}"),
        (r"n\in\mathbb{Z}^{+}", r"\mathbb{Z}^{+}"),
        (r"\text{all positive integers}", r"\mathbb{Z}^{+}"),
        (r"\mathbb{Q}", r"\mathbb{Q}"),
        (r"\text{twenty-five}", "25"),
        ("two hundred and six", "206"),
        ("three-fourths", r"\frac{3}{4}"),
        ("a half", r"\frac{1}{2}"),
        ("third", r"3\text{th}"),
        (r"3^{\text{rd}}", r"3\text{th}"),
        (r"\text{Dec. 25}", r"\text{december 25}"),
        ("the 4th of July 1776", r"\text{july 4 1776}"),
        (r"\text{No, it is not possible.}", r"\text{no}"),
        (r"\text{an ellipse}", r"\text{ellipse}"),
        (r"\text{anticlockwise}", r"\text{counterclockwise}"),
    ],
)
def test_words_have_one_notation(text, expected):
    assert in_usual_words(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "3x+1",
        "R",
        r"\mathbb{N}",
        "a sin x",
        r"\text{all even integers}",
        r"\text{all real numbers except }0",
        r"\text{Yes, but not 3}",
        r"\text{True, unless n is 0}",
        r"\text{Yes, no}",
        r"\text{Mayor 5}",
        "fivety",
        "five twenty",
        "two halfs",
    ],
)
def test_other_texts_stay(text):
    assert in_usual_words(text) == text


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("zero", 0),
        ("nineteen", 19),
        ("forty two", 42),
        ("nine hundred ninety-nine thousand nine hundred and ninety-nine", 999_999),
        ("one two", None),
        ("twenty zero", None),
        ("hundred", None),
        ("two thousand thousand", None),
        ("", None),
    ],
)
def test_whole_numbers_in_words(words, number):
    assert whole_number(words) == number
