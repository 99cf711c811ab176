"""Units, currencies and times of day of two answers."""

from fractions import Fraction

import pytest

from verl_gsd.tasks import maths
from verl_gsd.tasks.quantities import Unit, parse_unit, reconciled, same_time

METER, SPEED = (("m", 1),), (("m", 1), ("s", -1))


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        (r"\text{ m}", Unit(Fraction(1), METER)),
        (r"\text{ cm}", Unit(Fraction(1, 100), METER)),
        ("kilometers", Unit(Fraction(1000), METER)),
        ("feet", Unit(Fraction(3048, 10**4), METER)),
        (r"\text{ km/h}", Unit(Fraction(5, 18), SPEED)),
        ("meters per second", Unit(Fraction(1), SPEED)),
        (r"\text{m s^-1}", Unit(Fraction(1), SPEED)),
        (r"\text{m}^2", Unit(Fraction(1), (("m", 2),))),
        ("square centimeters", Unit(Fraction(1, 10**4), (("m", 2),))),
        ("mW", Unit(Fraction(1, 1000), (("kg", 1), ("m", 2), ("s", -3)))),
        ("MW", Unit(Fraction(10**6), (("kg", 1), ("m", 2), ("s", -3)))),
        ("minutes", Unit(Fraction(60), (("s", 1),))),
        ("apples", None),
        ("m/", None),
        ("", None),
        ("m/s apples", None),
    ],
)
def test_a_unit_in_base_units(text, unit):
    assert parse_unit(text) == unit


@pytest.mark.parametrize(
    ("answer", "truth", "expected"),
    [
        (r"5\text{ m}", r"5\text{ m}", ("5", "5")),
        (r"5\text{ m}", "5", ("5", "5")),
        (r"5\text{ m}", r"500\text{ cm}", (r"\frac{500}{1}", "500")),
        (r"\sqrt{2}\text{ m}", r"1\text{ cm}", (r"(\sqrt{2}) \cdot \frac{100}{1}", "1")),
        (r"5\text{ m}", r"5\text{ kg}", None),
        (r"5\text{ m}", r"5\text{ m}^2", None),
        (r"5\text{ apples}", r"5\text{ m}", None),
        (r"5\text{ apples}", "5", (r"5\text{ apples}", "5")),
        (r"5\text{ ft }6\text{ in}", r"66\text{ in}", (r"(\frac{11}{2}) \cdot \frac{12}{1}", "66")),
        (r"5\text{ cm }6\text{ cm}", r"5\text{ cm}", (r"5\text{ cm }6\text{ cm}", "5")),  # two answers
        (r"\$5", "5 €", None),
        (r"\$5", r"500\text{ cents}", ("\\frac{500}{1}", "500")),
        (r"\$5", r"5\%", None),
        (r"5\%", "5", (r"5\%", "5")),
        (r"5\%", r"6\%", ("5", "6")),
        (r"60^\circ", r"\frac{\pi}{3}", (r"60^\circ", r"\frac{\pi}{3}")),
        (r"60^\circ", r"2\text{ rad}", (r"(60) \cdot \frac{\pi}{180}", "2")),
        (r"2\text{ rad}", r"60\text{ degrees}", ("2", r"(60) \cdot \frac{\pi}{180}")),
        (r"60^\circ", r"5\%", None),
        (r"20\text{ Celsius}", r"20\text{ Fahrenheit}", None),
        ("1, 2 m", "1", ("1, 2 m", "1")),
        ("3 m", "3", ("3 m", "3")),  # a product
    ],
)
def test_two_answers_in_one_unit(answer, truth, expected):
    assert reconciled(answer, truth) == expected


ABSURD = "m " + "Tm^9fm^-9" * 19


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        (rf"5\text{{ {ABSURD}}}", r"5\text{ cm}"),
        (rf"x\text{{ {ABSURD}}}", r"x\text{ cm}"),
        (rf"5\text{{ km }} 3\text{{ {ABSURD}}}", r"5\text{ km}"),
        (rf"5\text{{ {ABSURD}}} 3\text{{ m}}", r"5\text{ m}"),
    ],
)
def test_units_of_absurd_sizes_are_no_crash(answer, truth):
    """The factor between the units has more digits than Python prints."""
    for pair in ((answer, truth), (truth, answer)):
        assert not maths.compare(*pair).right


@pytest.mark.parametrize(
    ("answer", "truth", "verdict"),
    [
        ("3:30", "3:30 p.m.", True),
        ("15:30", "3:30 p.m.", True),
        ("3:30 a.m.", "3:30 p.m.", False),
        ("12:15 a.m.", "0:15", True),
        ("3:30", "3:31", False),
        ("3:30", "3.5", None),
        ("25:00", "1:00", None),
    ],
)
def test_times_of_day(answer, truth, verdict):
    assert same_time(answer, truth) is verdict
