r"""Reads intervals, inequalities in one letter and set builders as sets of real numbers, and compares such sets.

Only the comparison process (``maths_worker.py``) imports this module.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import sympy

from verl_gsd.tasks.structure import Membership, Node, Relation, Sequence, Union, Unordered, Value
from verl_gsd.tasks.values import real_number, same_numbers

_SETS = {r"\mathbb{R}": sympy.S.Reals, r"\mathbb{Z}": sympy.S.Integers, r"\emptyset": sympy.S.EmptySet}
#: The distance of a letter from a number.
_DISTANCE = re.compile(r"(?:\||\\lvert)\s*([a-z])\s*(?:([-+])\s*([^|a-z]+?))?\s*(?:\||\\rvert)")
#: The largest finite set of whole numbers that a condition may describe.
_LARGEST = 1000


def letters_of(node: Node) -> set[str]:
    """The letters of the inequalities in a set, each alone on its side. Intervals have none."""
    if isinstance(node, Union):
        return {letter for part in node.parts for letter in letters_of(part)}
    if isinstance(node, Membership):
        return {node.element.strip()}
    letter = letter_of(node)
    return set() if letter is None else {letter}


def letter_of(node: Node) -> str | None:
    """The letter of an inequality in one letter."""
    if isinstance(node, Relation):
        if distance := _DISTANCE.fullmatch(node.sides[0]):
            return distance[1]
        names = [side.strip() for side in node.sides if re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?", side.strip())]
        names = [name for name in names if name not in (r"\infty", r"\pi", "e")]
        return names[0] if len(names) == 1 else None
    return None


def real_set(node: Node) -> Any:
    """A set of real numbers as a set of sympy, or None. Conditions on two letters are no such set."""
    if len(letters_of(node)) > 1:
        return None
    if isinstance(node, Membership):
        return real_set(node.domain)
    if isinstance(node, Value):
        return _SETS.get(node.text.strip())
    if isinstance(node, Unordered) and not node.is_group and all(isinstance(part, Sequence) for part in node.parts):
        return _disjoint(list(map(real_set, node.parts)))
    if isinstance(node, Unordered):
        values = [real_number(part.text) if isinstance(part, Value) else None for part in node.parts]
        return None if None in values else sympy.FiniteSet(*values)
    if isinstance(node, Sequence) and len(node.parts) == 2:
        ends = [real_number(part.text) if isinstance(part, Value) else None for part in node.parts]
        return None if None in ends else _interval(ends[0], ends[1], node.brackets[0] == "(", node.brackets[1] == ")")
    if isinstance(node, Union):
        sets = [real_set(part) for part in node.parts]
        if any(part is None for part in sets):
            return None
        first, *rest = sets
        for part in rest:
            first = {"or": sympy.Union, "and": sympy.Intersection, "minus": sympy.Complement}[node.sign](first, part)
        return _listed(first)
    if isinstance(node, Relation):
        return _solutions(node)
    return None


def _disjoint(intervals: list[Any]) -> Any:
    """The union of a list of intervals; None if two overlap, because the list may mean their intersection."""
    if None in intervals or any(not x.intersect(y).is_empty for x, y in itertools.combinations(intervals, 2)):
        return None
    return sympy.Union(*intervals)


def _listed(numbers: Any) -> Any:
    """A short range of whole numbers as a finite set."""
    if isinstance(numbers, sympy.Range) and numbers.size.is_finite and numbers.size <= _LARGEST:
        return sympy.FiniteSet(*numbers)
    return numbers


def _interval(left: Any, right: Any, left_open: bool, right_open: bool) -> Any:
    return sympy.Interval(left, right, left_open, right_open) if bool(left <= right) else None


def _solutions(relation: Relation) -> Any:
    """The solutions of an inequality or a chain of two with its letter alone on one side, or of ``|x-3|<2``."""
    if distance := _DISTANCE.fullmatch(relation.sides[0]):
        return _within(distance, relation)
    letter = letter_of(relation)
    sides, signs = [side.strip() for side in relation.sides], list(relation.signs)
    if letter is None or len(sides) > 3 or "=" in signs or (len(sides) == 3 and sides[1] != letter):
        return None
    solutions = sympy.S.Reals
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        number = real_number(right if left == letter else left)
        if number is None:
            return None
        if left != letter:
            sign = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(sign, sign)
        part = {
            "<": lambda end: sympy.Interval.open(-sympy.oo, end),
            "<=": lambda end: sympy.Interval(-sympy.oo, end),
            ">": lambda end: sympy.Interval.open(end, sympy.oo),
            ">=": lambda end: sympy.Interval(end, sympy.oo),
            "!=": lambda end: sympy.S.Reals - sympy.FiniteSet(end),
        }[sign](number)
        solutions = solutions.intersect(part)
    return solutions


def _within(distance: re.Match, relation: Relation) -> Any:
    center = real_number((distance[3] or "0").strip())
    radius = real_number(relation.sides[1]) if len(relation.sides) == 2 else None
    if center is None or radius is None or not bool(radius > 0) or relation.signs[0] not in ("<", "<=", ">", ">="):
        return None
    center = center if distance[2] == "-" else -center
    inside = sympy.Interval(
        center - radius, center + radius, "=" not in relation.signs[0], "=" not in relation.signs[0]
    )
    if relation.signs[0][0] == "<":
        return inside
    is_open = relation.signs[0] == ">"
    return sympy.Union(
        sympy.Interval(-sympy.oo, center - radius, True, is_open),
        sympy.Interval(center + radius, sympy.oo, is_open, True),
    )


def same_sets(a: Any, b: Any) -> bool:
    if a == b:
        return True
    pieces = [list(part.args) if isinstance(part, sympy.Union) else [part] for part in (a, b)]
    if len(pieces[0]) != len(pieces[1]):
        return False
    for piece in pieces[0]:
        match = next((other for other in pieces[1] if _same_piece(piece, other)), None)
        if match is None:
            return False
        pieces[1].remove(match)
    return True


def _same_piece(a: Any, b: Any) -> bool:
    if isinstance(a, sympy.Interval) and isinstance(b, sympy.Interval):
        same_ends = (a.left_open, a.right_open) == (b.left_open, b.right_open)
        return bool(same_ends) and same_numbers(a.start, b.start) and same_numbers(a.end, b.end)
    return bool(a == b)
