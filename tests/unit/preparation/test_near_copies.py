"""Copies in other notation or with a changed word are found, and distinct problems are not taken for copies."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from math_problems import OTHER_MEANINGS, change_meaning, change_notation, change_word, draw_distinct
from prepare_runs import asked, lines, made, run

from verl_gsd.preparation.item import Item
from verl_gsd.preparation.overlap import SHORTEST, OverlapIndex
from verl_gsd.preparation.words import identity_text, words


def is_found(evaluation, training, length=13):
    overlap = OverlapIndex(length)
    overlap.add("set", [evaluation])
    return overlap.find(training) == "set"


ROOTS = (
    r"Let $a$ be a positive real number such that all the roots of \[x^3 + ax^2 + ax + 1 = 0\]are real.  "
    r"Find the smallest possible value of $a.$"
)


PENCILS = "Tom buys 12 pencils at $3 each and pays with a $50 bill. How much change in dollars does he get?"
EGGS = (
    "Janet sells 16 eggs for $2 each at the market and buys a hat for $9. How much money does she have left after it?"
)


@pytest.mark.parametrize("length", range(SHORTEST, 40))
def test_a_copy_with_any_one_word_changed_is_found(length):
    text = [f"w{number}" for number in range(length)]
    for place in range(length):
        assert is_found(" ".join(text), " ".join([*text[:place], "changed", *text[place + 1 :]])), place
        assert is_found(" ".join(text), " ".join([*text[:place], *text[place + 1 :]])), place
        assert is_found(" ".join(text), " ".join([*text[:place], "more", *text[place:]])), place


@pytest.mark.parametrize(
    ("evaluation", "training"),
    [
        (
            "A store sold 1,200 apples and 3,400 pears last week. How many more pears than apples were sold?",
            "A store sold 1200 apples and $3{,}400$ pears last week. How many more pears than apples were sold?",
        ),
        (ROOTS, ROOTS.replace(r"\[", r"\[\displaystyle ")),
        (ROOTS, ROOTS.replace("ax^2", "a x^{2}").replace(r"\[", "$$").replace(r"\]", "$$ ")),
        (ROOTS, ROOTS.replace(r"\[", r"\begin{align*} ").replace(r"\]", r" \end{align*} ")),
        (r"Solve for $x$: $2x + 3y = 7$ and $y = 1$.", r"Solve for $x$: $2 x+3 y=7$ and $y=1$."),
        (r"What is $\dfrac{1}{2} \times \left( 3 + 4 \right)$?", r"What is $\frac12\times(3+4)$?"),
        ("What is 3 × 4 and 3 ≤ π?", r"What is $3 \times 4$ and $3 \leq \pi$?"),
        (PENCILS, PENCILS.replace("$", r"\$")),
        (EGGS, EGGS.replace("$", r"\$")),
        (EGGS, EGGS.replace("$2", r"$\$2$").replace("$9", r"$\$9$")),
        (EGGS.replace("$", "US$"), EGGS.replace("$", r"US\$")),
        (EGGS.replace("$2", "$1,200"), EGGS.replace("$2", r"\$1200")),
        (PENCILS, PENCILS.replace("pays", "paid")),
        (PENCILS.replace("pays", "paid"), PENCILS.replace("$", r"\$")),
        (r"Compute $7 \cdot 3 - 2x$ exactly.", "Compute 7*3 − 2*x exactly."),
        (r"Compute $7 \times (-3)$ exactly.", "Compute 7 · (−3) exactly."),
        (r"Compute $\dbinom{8}{4}$.", r"Compute $\binom{8}{4}$."),
        (r"Compute $\sqrt{16+9}$ and $f(4)$.", "Compute √(16 + 9) and f(4)."),
        (r"Solve $\frac{x + 1}{2} \le 3$ for $x^{2}$.", "Solve (x+1)/2 <= 3 for x^2."),
        (r"Find $\sin 60^\circ$ and $5!$ now.", "Find sin 60° and 5! now."),
        (r"Find $|x - 3|$ if $x \neq 2$.", "Find |x-3| if x != 2."),
        (
            "How much is 1 000 000 divided by 8, if the rest is ignored?",
            "How much is 1,000,000 divided by 8, if the rest is ignored?",
        ),
        ("Tom has three red balls (and two blue ones) in a bag.", "Tom has 3 red balls, and 2 blue ones, in a bag."),
        (
            "Find the three-digit number on the x-axis and its well-known half.",
            "Find the three digit number on the x axis and its well known half.",
        ),
        (
            "Find the value of x² in the café at once.",
            "Find the value of $x^2$ in the cafe\N{COMBINING ACUTE ACCENT} at once.",
        ),
    ],
)
def test_a_copy_in_other_notation_is_found(evaluation, training):
    assert is_found(evaluation, training) and is_found(training, evaluation)


@pytest.mark.parametrize(
    ("evaluation", "training"),
    [
        (ROOTS, ROOTS.replace("x^3", "x^4")),
        (ROOTS, ROOTS.replace("+ 1", "+ 2")),
        ("What is the sum of the digits of 12?", "What is the sum of the digits of 13?"),
        (
            r"A circle has radius 4 cm. What is the area of the circle? Express your answer in terms of $\pi$.",
            r"A circle has radius 5 cm. What is the area of the circle? Express your answer in terms of $\pi$.",
        ),
        ("Find the value of $x$ in the equation.", "Find the value of $y$ in the equation."),
        (ROOTS, ROOTS.replace("+ 1", "- 1")),
        (ROOTS, ROOTS.replace("x^3", "x^{-3}")),
        (ROOTS, ROOTS.replace("x^3", "x_3")),
        (ROOTS, ROOTS.replace("ax^2 + ax", "a(x^2 + ax)")),
        ("What is 20 + 5?", "What is 20 - 5?"),
        (r"What is $20 \times 5$?", "What is 20/5?"),
        ("Solve $3x + 2 = 8$ for $x$.", "Solve $3x = 2 + 8$ for $x$."),
        (r"What is $\sqrt{16} + 9$ as a number?", r"What is $\sqrt{16 + 9}$ as a number?"),
        ("Evaluate $(2+3)^2$ exactly please.", "Evaluate $2+3^2$ exactly please."),
        ("What is $7 - (3 - x)$ in short form?", "What is $7 - 3 - x$ in short form?"),
        (r"Find $\frac{1}{2}x$ for this number.", r"Find $\frac{1}{2x}$ for this number."),
        ("How many integers are in $[0, 5)$ here?", "How many integers are in $[0, 5]$ here?"),
        ("How many $n$ satisfy $n < 10$ and $n > 3$?", "How many $n$ satisfy $n > 10$ and $n < 3$?"),
        ("How many $n$ satisfy $n < 10$ at most?", r"How many $n$ satisfy $n \le 10$ at most?"),
        (r"Find $|x| - 3$ for the number.", r"Find $|x - 3|$ for the number."),
        ("Find $f(2)$ for the given function.", "Find $f'(2)$ for the given function."),
        ("How much is $20$ of this number?", r"How much is $20\%$ of this number?"),
        ("How many digits does $5!$ have?", "How many digits does $5$ have?"),
        ("Tom tosses two coins and counts the heads.", "Tom tosses three coins and counts the heads."),
        ("What is the second term of this sequence?", "What is the third term of this sequence?"),
        ("What is half of the given number?", "What is twice the given number?"),
    ],
)
def test_the_same_problem_with_other_numbers_letters_or_signs_is_no_copy(evaluation, training):
    assert not is_found(evaluation, training) and not is_found(training, evaluation)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("They cost $5, $6 and $7 each, and $x y$ of them", r"They cost \$5, \$6 and \$7 each, and $x y$ of them"),
        ("Between $10 and $20, or US$5 or US$7.50", r"Between \$10 and \$20, or US\$5 or US\$7.50"),
        ("From $.50 a pound to $.75 a pound", r"From \$.50 a pound to \$.75 a pound"),
        ("For $1,000 or more he gets $2xy$ shares", r"For \$1,000 or more he gets $2xy$ shares"),
        ("Add ($3 each)\nfor $20 in all", "Add (\\$3 each)\nfor \\$20 in all"),
        ("One costs $5 (and two cost $9) if ($x>1$)", r"One costs \$5 (and two cost \$9) if ($x>1$)"),
        ("Only $10 is left", r"Only \$10 is left"),
    ],
)
def test_an_amount_of_money_opens_no_formula(text, escaped):
    assert words(text) == words(escaped)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Add $5$ and $6$ to $2xy+1$", "add 5 and 6 to 2 x y + 1"),
        ("Take $x$ dollars and $yz$ cents", "take x dollars and y z cents"),
        (r"It is $5 \text{ or more} $ or $ab$", "it is 5 or more or a b"),
        ("Find $3x + 4yz $ and $ab$", "find 3 x + 4 y z and a b"),
        ("Solve $5x^2 + kx + 1 = 0 $ and $ab$", "solve 5 x ^ 2 + k x + 1 = 0 and a b"),
        ("Find $2AB $ and $ab$", "find 2 ab and a b"),
        ("$$2xy + 3ab$$ and then $$4cd$$", "2 x y + 3 a b and then 4 c d"),
        (r"Pay \$5 for $2xy$", "pay 5 for 2 x y"),
    ],
)
def test_a_formula_that_begins_with_a_number_is_one(text, expected):
    assert " ".join(words(text)) == expected


def test_names_between_amounts_of_money_are_no_formula():
    assert identity_text("Paid $3 Each and has $50") == identity_text("Paid $3 each and has $50")


def test_a_drawing_counts_if_the_rest_of_the_problem_is_short():
    for text in ("Find $x$.", "What is the area of the shaded region?"):
        one, other = (f"{text} [asy]draw({end});[/asy]" for end in ("(0,0)--(1,1)", "(0,0)--(2,1)"))
        assert is_found(one, one.replace("draw(", " draw( "))
        assert not is_found(one, other) and not is_found(one, text) and not is_found(one, f"A square is drawn. {text}")
    assert is_found(f"{ROOTS} [asy]draw(1);[/asy]", f"{ROOTS} [asy]draw(2);[/asy]")


@pytest.mark.parametrize(
    "training",
    ["What is the value of 2 + 3 + 4?", "What is the value of 2 + 3 - 1?", "What is the value of $2 + 3^4$?"],
)
def test_a_problem_whose_formula_goes_on_is_another(training):
    assert not is_found("What is the value of 2 + 3?", training)
    assert is_found("What is the value of 2 + 3?", "Question: What is the value of $2 + 3$? Give a number.")
    long = "Tom and Ann add up the numbers that they found on the cards in the box. What is 2 + 3?"
    assert not is_found(
        long, training.replace("What is the value of", long.removesuffix("2 + 3?").replace("add", "sum"))
    )


@pytest.mark.parametrize("name", OTHER_MEANINGS)
def test_a_problem_with_another_sign_bracket_or_number_word_is_no_copy(name):
    rng = random.Random(4)
    tests = [problem.text for problem in draw_distinct(1_500, seed=5)]
    changed = [(text, other) for text in tests if (other := change_meaning(text, name, rng)) is not None]
    assert len(changed) > 15
    assert [pair for pair in changed if is_found(*pair)] == []


def test_distinct_problems_are_rarely_taken_for_copies_and_copies_are_found():
    """``benchmarks/overlap.py`` measures the rates at full size."""
    problems = draw_distinct(6_000, seed=2)
    training, tests = problems[:5_500], problems[5_500:]
    overlap = OverlapIndex(13)
    overlap.add("set", (problem.text for problem in tests))
    found = [problem for problem in training if overlap.find(problem.text)]
    assert len(found) <= 0.002 * len(training), [problem.text for problem in found]
    rng = random.Random(3)
    assert all(overlap.find(change_notation(problem.text, rng)) for problem in tests)
    long = [problem for problem in tests if len(words(problem.text)) >= SHORTEST]
    assert len(long) > 400 and all(overlap.find(change_word(problem.text, rng)) for problem in long)


def test_the_first_set_that_has_a_problem_is_named():
    overlap = OverlapIndex(13)
    overlap.add("first", [ROOTS.replace("smallest", "least")])
    overlap.add("second", [ROOTS])
    assert overlap.find(ROOTS) == "first"


@given(st.text(st.sampled_from("aB$\\()[]{}09,. x"), max_size=60))
def test_any_text_has_words_and_white_space_around_it_does_not_matter(text):
    assert all(word and not word.isspace() for word in words(text))
    assert words(f"  {text}\n") == words(text)
    assert identity_text(f"\n {text} ") == identity_text(text) == identity_text(identity_text(text))


@pytest.mark.parametrize(
    ("one", "other", "are_equal"),
    [
        ("Let $N$ be 5 and $n$ be 7; find $N$.", "Let $N$ be 5 and $n$ be 7; find $n$.", False),
        (r"Find \(A\).", r"Find \(a\).", False),
        (r"Find \[A\].", r"Find \[a\].", False),
        (r"\begin{align*}A&=1\end{align*}", r"\begin{align*}a&=1\end{align*}", False),
        (r"What is \Delta?", r"What is \delta?", False),
        ("What is AB?", "What is ab?", False),
        ("What is N?", "What is n?", False),
        ("How many Apples cost \\$5?", "how many apples  cost \\$5?", True),
        ("Caf\N{LATIN SMALL LETTER E WITH ACUTE}?", "Cafe\N{COMBINING ACUTE ACCENT}?", True),
    ],
)
def test_case_matters_in_formulas_but_not_at_the_beginning_of_words(one, other, are_equal):
    assert (Item(one, "1").key() == Item(other, "1").key()) == are_equal


def test_problems_that_differ_in_the_case_of_a_letter_are_both_kept(tmp_path):
    rows = [("Let $N$ be 5 and $n$ be 7; find $N$.", 5), ("Let $N$ be 5 and $n$ be 7; find $n$.", 7)]
    run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", *({"problem": p, "answer": a} for p, a in rows))))
    assert asked(made(tmp_path, "mine")) == [problem for problem, _ in rows]
