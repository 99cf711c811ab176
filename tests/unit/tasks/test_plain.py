"""Plain answers: our verdicts without sympy agree with math-verify's, which runs in its own process."""

import json
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_gsd.tasks.plain import LONGEST, plain_equal

EQUAL = [
    ("12", "12"),
    ("-7", "- 7"),
    ("+7", "007"),
    ("1,000", "1000"),
    ("1{,}234{,}567", "1234567"),
    (r"1,\!000.5", "1000.5"),
    (r"\$1,000", "1000"),
    (r"-\$5", "-5"),
    (r"\$-5", "-5"),
    ("$5$", "5"),
    ("0.50", r"\frac{1}{2}"),
    (".5", "1/2"),
    ("2/4", r"\dfrac{1}{2}"),
    (r"\tfrac12", "0.5"),
    (r"\frac{-1}{2}", r"-\frac{1}{2}"),
    (r"-\frac{-1}{2}", "0.5"),
    (r"90^\circ", "90"),
    (r"90^{\circ}", "90"),
    (r"5\text{ cm}", "5"),
    (r"5\,\text{square feet}", "5"),
    (r"5\text{ cm}^2", "5"),
    (r"5\mathrm{cm}", "5"),
    (r"\left( -\infty, \frac{1}{2} \right]", r"(-\infty,0.5]"),
    (r"[2,\infty)", r"[2,+\infty)"),
    ("(1, -2, 3)", "(1,-2,3.0)"),
    ("9" * 30, "9" * 30),
]
DIFFERENT = [
    ("12", "13"),
    ("-7", "7"),
    ("1,000", "1"),
    ("0.5", r"\frac{1}{3}"),
    ("0.33", r"\frac{1}{3}"),
    ("9" * 29 + "8", "9" * 30),
    ("(1,2)", "(2,1)"),
    ("(1,2)", "(1,2,3)"),
    (r"(-\infty,2)", r"(2,\infty)"),
    ("(0,1]", "(0,2]"),
]
#: Equal, different or neither to math-verify; these are our readings of percents, degrees and thin spaces.
OUR_EQUAL = [
    (r"50\%", "50"),
    (r"50\%", "0.5"),
    ("50%", "1/2"),
    ("0.5", r"50\%"),
    ("30°", "30"),
    (r"1\,000", "1000"),
    (r"1,000^\circ", "1000"),
    (r"8.7 \times 10^{8}", "870000000"),
    (r"0.87 \times 10^{9}", r"87 \times 10^{7}"),
    (r"5 \times 10^{-1}", "0.5"),
    (r"5 \text{ million}", "5,000,000"),
    ("2.5 hundred thousand people", "250000"),
    ("3 dozen eggs", "36"),
    (r"5 \text{ hundredths}", "0.05"),
    ("5 cm", "5"),
    ("18 eggs", "18"),
    ("160 miles/hour", "160"),
    (r"25 \text{ cm squared}", "25"),
    ("25 cm^2", "25"),
    (r"5 \text{ sq. ft.}", "5"),
    ("10 a.m.", "10"),
    ("0.00000031", "31/100000000"),
]
OUR_DIFFERENT = [(r"50\%", "5"), (r"50\%", r"0.5\%"), (r"33\%", r"\frac{1}{3}")]
OUR_DIFFERENT += [
    (r"1.6 \times 10^{-19}", r"6.6 \times 10^{-34}"),
    (r"-2.8 \times 10^{-19}", r"3.1 \times 10^{-19}"),
    (".0000671", ".0000672"),
    ("0.0000001", "0"),
    (r"5 \text{ million}", r"5 \text{ billion}"),
    (r"5 \text{ million}", "5"),
]
NOT_PLAIN = [
    ("0.333333", r"\frac{1}{3}"),  # math-verify rounds
    ("0.1234567", "0.1234568"),
    ("(0.333333,1)", "(1/3,1)"),
    ("(2,1]", "(3,1]"),  # both empty
    ("(0,1)", "[0,1]"),
    ("(1,2)", "3"),
    ("1/0", "1/0"),
    (r"\frac{1}{0}", "2"),
    ("9" * 31, "9" * 31),
    ("1/2/3", "1"),
    ("1,23", "123"),
    ("0,123", "123"),
    ("1234,567", "1234567"),
    ("1 000", "1000"),
    ("3 xy", "3"),
    ("2 pi", "2"),
    ("5 or more", "5"),
    (r"2\text{ squared}", "2"),
    (r"5\text{ if even}", "5"),
    ("5 " + "long " * 9, "5"),
    (r"5\text{ percent}", "5"),
    (r"3\text{ and }", "3"),
    (r"5\mathrm{T}", "5"),
    ("x=5", "5"),
    (r"2\frac{1}{2}", "2.5"),
    ("((1,2),3)", "((1,2),3)"),
    (r"(50\%,1)", "(50,1)"),
    ("٣", "3"),
    ("5\n5", "55"),
    ("", ""),
    (" " * LONGEST + "5", "5"),
]


@pytest.mark.parametrize(
    ("pairs", "verdict"),
    [(EQUAL + OUR_EQUAL, True), (DIFFERENT + OUR_DIFFERENT, False), (NOT_PLAIN, None)],
    ids=["equal", "different", "not plain"],
)
def test_plain_answers(pairs, verdict):
    for answer, truth in pairs:
        assert plain_equal(answer, truth) is verdict and plain_equal(truth, answer) is verdict, (answer, truth)


@pytest.fixture(scope="module")
def math_verify():
    """math-verify's verdict on an answer and a truth, from the same process as in training."""
    command = [sys.executable, "-m", "verl_gsd.tasks.maths_worker", "60"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout.readline() == "ready\n"

        def say(answer, truth):
            print(json.dumps([answer, truth]), file=worker.stdin, flush=True)
            return {"right": True, "wrong": False}[worker.stdout.readline().strip()]

        yield say
        worker.stdin.close()


def test_the_table_is_math_verifys(math_verify):
    for answer, truth in EQUAL + DIFFERENT:
        assert math_verify(answer, truth) is plain_equal(answer, truth), (answer, truth)


#: Few values, so that two are often equal, and some that nearly are.
VALUES = st.builds(Fraction, st.integers(-12, 12), st.sampled_from([1, 1, 2, 3, 4, 8, 10]))
VALUES |= st.integers(-(10**7), 10**7).map(Fraction)
VALUES |= st.builds(Fraction, st.integers(333328, 333338), st.just(10**6))
LARGE = st.integers(10**20, 10**20 + 3).map(Fraction)


@st.composite
def written(draw, values=VALUES, commas=(",", "{,}", r",\!")):
    """A number in one of its notations."""
    value = draw(values)
    sign = "-" if value < 0 else draw(st.sampled_from(["", "+"]))
    top, bottom = abs(value.numerator), value.denominator
    times = draw(st.integers(1, 3))
    forms = [f"{top * times}/{bottom * times}", rf"\frac{{{top * times}}}{{{bottom * times}}}"]
    forms += [rf"\dfrac{{{top}}}{{{bottom}}}"] + [rf"\frac{top}{bottom}"] * (top < 10 and bottom < 10)
    if bottom == 1:
        forms += [str(top), str(top), f"{top}.0"][: 3 if top < 10**9 else 2]
        # To math-verify +1,000 and 1,000 degrees are no numbers.
        forms += [f"{top:,}".replace(",", comma) for comma in commas if 1000 <= top < 10**9 and sign != "+"]
    elif 10**6 % bottom == 0:
        forms += [f"{top * 10**6 // bottom / 10**6:.{places}f}" for places in (6, 5) if top * 10**places % bottom == 0]
    return sign + draw(st.sampled_from([form for form in forms if len(form) < 40]))


@st.composite
def quantities(draw, values=VALUES):
    before = draw(st.sampled_from(["", "", r"\$", "$"]))
    behind = draw(st.sampled_from(["", "", r"^\circ", r"^{\circ}", r"\text{ cm}", r"\text{feet}^2", r"\,\mathrm{kg}"]))
    return before + draw(written(values, commas=()) if behind else written(values)) + behind


@st.composite
def enclosed(draw, values=VALUES):
    left, right = draw(st.sampled_from(["()", "()", "[]", "(]"]))
    element = written(values, commas=()) | st.sampled_from([r"\infty", r"-\infty"])
    between = ", ".join(draw(st.lists(element, min_size=2, max_size=3)))
    return draw(st.sampled_from([rf"\left{left}{between}\right{right}", f"{left}{between}{right}"]))


def require_agreement(math_verify, answer, truth):
    verdict = plain_equal(answer, truth)
    if verdict is not None:
        assert verdict == math_verify(answer, truth), (answer, truth, verdict)
    return verdict is not None


def examples(count):
    return settings(max_examples=count, derandomize=True, database=None)


def test_numbers_are_decided_as_math_verify_does(math_verify):
    decided = []

    @examples(100)
    @given(quantities(VALUES | LARGE), quantities(VALUES | LARGE))
    def compare(answer, truth):
        decided.append(require_agreement(math_verify, answer, truth))

    compare()
    assert sum(decided) > 0.5 * len(decided), "most are plain"


@examples(100)
@given(VALUES, st.data())
def test_two_forms_of_a_number_are_equal_as_math_verify_has_it(math_verify, value, data):
    one, other = (data.draw(quantities(st.just(value))) for _ in range(2))
    assert plain_equal(one, other) is True
    require_agreement(math_verify, one, other)


def test_tuples_and_intervals_are_decided_as_math_verify_does(math_verify):
    decided = []

    @examples(30)
    @given(st.lists(VALUES, min_size=2, max_size=2), st.data())
    def compare(values, data):
        answer, truth = (data.draw(enclosed(st.sampled_from(values))) for _ in range(2))
        decided.append(require_agreement(math_verify, answer, truth))

    compare()
    assert sum(decided) > 0.2 * len(decided), "many are plain"
