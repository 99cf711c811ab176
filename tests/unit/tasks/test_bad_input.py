r"""Texts that are empty, huge, broken or hostile, as an answer and as a reference: never right, and no crash."""

import pytest

from verl_gsd.tasks import maths

BAD = {
    "empty": "",
    "spaces": " \n\t ",
    "megabytes": "5+" * 10**6 + "0",
    "megabytes without spaces": "5" * 10**7,
    "broken LaTeX": r"\frac{5}{",
    "braces that close twice": r"5}}{{",
    "an environment that does not end": r"\begin{pmatrix}5",
    "parentheses": "(" * 450 + "5" + ")" * 450,
    "roots": r"\sqrt{" * 120 + "5" + "}" * 120,
    "sets": r"\{" * 200 + "5" + r"\}" * 200,
    "fractions": r"\frac{1}{" * 100 + "5" + "}" * 100,
    "signs": "-" * 901 + "5",
    "a tower of powers": "9^{9^{9^{9}}}",
    "a tower in disguise": "9^{(9^{(9+1)})}",
    "a factorial": "(10^{9})!",
    "a factorial of a factorial": "((7!)!)!",
    "a sum of many terms": r"\sum_{k=1}^{10^{12}} k!",
    "a product of many terms": r"\prod_{k=1}^{99999999} (k+x)",
    "a power of a sum": "(x+y+z+1)^{9999}",
    "many letters": "abcdefghijklmnopqrstuvwxyz" * 30,
    "many equal parts": "1," * 499 + "1",
    "a wide range": r"\{n\in\mathbb{Z}: 1\le n\le 10^{12}\}",
    "units": r"\text{ m}\quad" * 70,
    "units with spaces": r"\,\text{ m}" * 90,
    "dots": "0." + "1" * 900 + "...",
    "null characters": "\x005",
    "half a character": "\ud8005",
    "a line that looks like a pair": '5", "5"]\n["5", "5',
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_text_is_never_right(kind, caplog):
    """One line of the log per comparison that failed, so that a run's log stays readable."""
    text = BAD[kind]
    assert not maths.decide(rf"So it is \boxed{{{text}}}.", "7").right
    assert not maths.decide(text, "7").right
    assert not maths.decide(r"So it is \boxed{7}.", text).right
    assert not maths.decide(rf"So it is \boxed{{{text}+1}}.", text).right
    assert len(caplog.records) <= 4
    assert all("\n" not in record.getMessage() and len(record.getMessage()) < 200 for record in caplog.records)
    assert maths.decide(r"So it is \boxed{\sqrt{8}}.", r"2\sqrt{2}").right, "the next pair is compared"
