"""Extracting the final answer of a response, and texts that are made to take very long."""

import pytest

from verl_gsd.tasks.answers import LONGEST_ANSWER, LONGEST_LINE, final_answer
from verl_gsd.tasks.screen import is_too_large


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"the answer is 3, so \boxed{4}", "4"),
        (r"\boxed{4} Answer: 3", "4"),
        (r"\boxed{4} and then \boxed{5", None),  # cut off: what stood before was not final
        (r"The answer is 3. \boxed{" + "9" * 2000 + "}", None),
        ("3 + 4 = 7\n#### 7", "7"),
        ("#### 1,234 \n", "1,234"),
        (r"#### \frac{1}{2}", r"\frac{1}{2}"),
        ("The answer is 12.\n#### Note\nIt is even.", "12"),
        ("#### 2. Multiply", "2. Multiply"),  # a heading, and not the number 2
        ("#### 12\nSo the answer is 13.", "13"),
        ("The answer is 13.\n#### 12", "12"),
        ("The answer is 12. I hope it is correct.", "12"),
        ("The answer is 3.14.", "3.14"),
        ("the final answer is: $x=3$, as one sees", "x=3"),
        (r"Answer: \(3\)", "3"),
        (r"Answer: \[\frac{1}{2}\]", r"\frac{1}{2}"),
        ("Answer:\n12", "12"),
        ("**Answer:** 12", "12"),
        ("**Answer**: **12**", "12"),
        ("The answer is $3$ and $4$.", "3, 4"),
        (r"The answer is \(3\), or \(4\), as $2+2=4$", "3, 4"),
        (r"The answer is \$5.", r"\$5"),
        ("Answer: 1. Answer: 2. Answer: 3", "3"),
        ("ANSWER = 7", "7"),
        ("My answers: 3", "My answers: 3"),
        ("the answer is", None),
        ("12", "12"),
        (" $12$. ", "12"),
        ("$3$, $4$", "3, 4"),
        ("x = 3 or x = 4", "x = 3 or x = 4"),
        (r"\text{the even ones, and no others}", r"\text{the even ones, and no others}"),
        ("no solution", "no solution"),
        ("12\n13", None),
        ("1" * LONGEST_LINE, "1" * LONGEST_LINE),
        ("1" * (LONGEST_LINE + 1), None),
        ("", None),
        (" \n ", None),
        # Prose is not right by accident.
        ("We add them and so there are 12", None),
        ("The answer is not what it seems, so we have 12", None),
        ("It cannot be = 12", None),
        ("The answer is not 4 as 2+2 = 12", None),
        ("The answer is " + "1+" * LONGEST_ANSWER + "1", None),
    ],
)
def test_the_final_answer(text, found):
    assert final_answer(text) == found


@pytest.mark.parametrize(
    ("piece", "megabytes"),
    [("\\", 3), ("{", 3), ("answer is ", 3)]
    + [(piece, 1) for piece in ("}", "answer", r"\boxed{", r"\boxed ", "####\n", "$", r"\text{", "* ")],
)
def test_megabytes_of_text_are_handled_in_linear_time(piece, megabytes):
    """An algorithm that is not linear would take days."""
    text = piece * (megabytes * 10**6 // len(piece))
    assert final_answer(text) is None
    assert final_answer(text + r" \boxed{7}") == "7"


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^{9}}}",
        "9^9^9",
        "9^{(9^{9})}",
        "{9}^{ {9} ^ {9} }",
        r"x+9^{\left(9^9\right)}",
        "99999!",
        "(9!)!",
        "(10^3)!^2",
        "10^{100000}",
        "10^{-100000}",
        "10^-100000",
        "(10^{10})^{500}",
        "x^{1000000}",
        "(x+1)^{10^6}",
        "1500!",
        "^".join(["2"] * 400),
        "2^{10}9^{9^{9}}",
    ],
)
def test_numbers_that_are_too_large_are_recognised(text):
    assert is_too_large(text)


@pytest.mark.parametrize(
    "text",
    [
        "2^{2009}-1",
        "10^{100}",
        "2^{2^{3}}",
        "e^{x^{2}}",
        "x^2+y^2+z^2",
        "x^{2}y^{2}z^{2}",
        "(10^{10})^{20}",
        "100!",
        "x^{2024}",
        "123456789^{2}",
        "1^{5000}",
        "0^0",
        "9" * 900,
        "#9999#^9",
        "^".join(["1"] * 400),
        r"\frac{10!}{7!3!}",
        "2^{10}3^{5}",
        r"7^3 2^{100}",
        r"7^3\,2^{100}",
        "((3)(4))!",
        "5(3)!",
        "(2!)(6!)",
        "",
    ],
)
def test_computable_numbers_are_not_too_large(text):
    assert not is_too_large(text)
