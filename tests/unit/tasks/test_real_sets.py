r"""Intervals, inequalities and set builders as sets of real numbers."""

import pytest
from sympy import FiniteSet, Interval, Reals, S, Union, oo

from verl_gsd.tasks.real_sets import letter_of, letters_of, real_set, same_sets
from verl_gsd.tasks.structure import read


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(0,1]", Interval(0, 1, True, False)),
        (r"(-\infty,2)", Interval(-oo, 2, True, True)),
        ("(2,1)", None),
        ("(1,2,3)", None),
        ("(a,1)", None),
        ("x>2", Interval(2, oo, True, True)),
        (r"2\ge x", Interval(-oo, 2)),
        (r"1<x\le 2", Interval(1, 2, True, False)),
        (r"x\neq 0", Reals - FiniteSet(0)),
        ("x=1", None),
        ("x^2<4", None),  # is not solved
        ("1<2x<3", None),
        (r"x<1 \text{ or } x>2", Union(Interval.open(-oo, 1), Interval.open(2, oo))),
        (r"x<2 \text{ and } x>1", Interval.open(1, 2)),
        (r"\mathbb{R}\setminus\{0\}", Reals - FiniteSet(0)),
        (r"\emptyset", S.EmptySet),
        (r"|x-3|<2", Interval.open(1, 5)),
        (r"|x+1|\ge 2", Union(Interval(-oo, -3), Interval(1, oo))),
        (r"|x-3|<-2", None),
        (r"|2x-3|<2", None),
        (r"\{n\in\mathbb{Z}: 1\le n<4\}", FiniteSet(1, 2, 3)),
        (r"\{x\in\mathbb{R}: 1\le x<4\}", Interval(1, 4, False, True)),
        (r"1\le n<4, n\in\mathbb{Z}", FiniteSet(1, 2, 3)),
        (r"x\in(0,1) \text{ or } x>2", Union(Interval.open(0, 1), Interval.open(2, oo))),
        (r"x\in(0,1) \text{ or } y>2", None),
        (r"x>0 \text{ and } y<2", None),
        ("(0,1), (2,3]", Union(Interval.open(0, 1), Interval(2, 3, True, False))),
        ("(0,2), (1,3)", None),  # the union or the intersection
        (r"\{(0,1), (2,3)\}", None),  # points
        (r"\{x\in\mathbb{R}: x>1\}\cup\{0\}", Union(FiniteSet(0), Interval.open(1, oo))),
    ],
)
def test_the_set_of_an_answer(text, expected):
    assert real_set(read(text)) == expected


@pytest.mark.parametrize(
    ("text", "letter"), [("x>1", "x"), ("1<y<2", "y"), (r"|t-1|<2", "t"), ("a>b", None), ("(1,2)", None)]
)
def test_the_letter_of_an_inequality(text, letter):
    assert letter_of(read(text)) == letter


@pytest.mark.parametrize(
    ("text", "letters"),
    [(r"x>1 \text{ or } x<-1", {"x"}), (r"x>1 \text{ and } y>1", {"x", "y"}), (r"a\in(0,1)", {"a"}), ("[0,1]", set())],
)
def test_the_letters_of_a_set(text, letters):
    assert letters_of(read(text)) == letters


def test_ends_are_compared_as_numbers():
    left, right = real_set(read(r"(\sqrt{8},3)")), real_set(read(r"(2\sqrt{2},3)"))
    assert same_sets(left, right)
    assert not same_sets(left, real_set(read(r"[2\sqrt{2},3)")))
    assert not same_sets(left, real_set(read(r"(2\sqrt{2},3)\cup(4,5)")))
