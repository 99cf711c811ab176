"""A cell of somebody else's data set is read in a short time, whatever it opens and never closes."""

import time

import pytest

from verl_gsd.preparation import references, words

UNITS = [
    *("[asy]", r"\begin{tikzpicture}", r"\begin{align}", r"\[ ", r"\( ", "$3 ", "$x ", r"\text", r"\frac ", "("),
    *(" 100", "1 000 ", "a) ", "a) x", "proof: x q.", " ", "see the solution "),
]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("length", [20_000, 100_000])
def test_the_time_for_a_cell_is_short(unit, length):
    text = f"1{unit * length}"[:length]
    begin = time.process_time()
    words.words(text), words.identity_text(text), words.drawings(text)
    for answer in (text, text[1:], "a) " + text):
        references.reference_fault(answer)
    assert time.process_time() - begin < 10


def test_a_long_text_equals_its_copy():
    text = r"What is $1 + 2$? [asy] draw; [/asy] " * 1000
    assert words.words(text) == words.words(text.replace(" ", "  ")) != words.words(text.replace("2", "3"))
    assert words.identity_text(text) == words.identity_text(text.replace(" ", "\n"))
