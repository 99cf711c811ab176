r"""Compares two answers as mathematics. Only the comparison process (``maths_worker.py``) imports this module.

The rules, by the structure of the answers (``structure.py``):

- Two values without letters are equal if they agree to ``DIGITS`` digits, and rational ones exactly. A decimal that is
  a whole answer may be rounded at its sixth place.
- Two values with letters are equal if they agree wherever both are real, at points of both signs, and at whole numbers
  if there are too few such points (factorials, ``(-1)^n``, sums). Letters that differ in case are different. If only
  one of them has bars of absolute value, both must be real at the same points.
- Two equations are equal if the differences of their sides have a constant ratio.
- A list or set is equal in any order. A tuple and an interval keep their order and their brackets. A tuple equals a
  vector, and no tuple equals a list.
- An inequality in one letter equals the set of its solutions.
- A name before an equals sign belongs to the answer only if both answers have one.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig
from latex2sympy2_extended.math_normalization import normalize_latex as parsers_latex

from verl_gsd.tasks.notation import normalize_latex
from verl_gsd.tasks.quantities import reconciled
from verl_gsd.tasks.structure import (
    Case,
    Family,
    Matrix,
    Node,
    NotUnderstoodError,
    Relation,
    Sequence,
    Union,
    Unordered,
    Value,
    read,
)

#: Digits of an evaluation, and the largest relative difference of equal values.
DIGITS, NEAREST = 100, sympy.Float("1e-80", 100)
#: The largest relative and absolute difference if one value is a decimal.
NEAR, ROUNDED = sympy.Float("1e-5"), 6
#: Points in the domains of both at which two expressions are compared, how few may do, and how many points are tried.
POINTS, ENOUGH, TRIED = 10, 4, 40

#: The sizes of coordinates in units of 1/1009: below 1 and above 1, and for functions with a bend also large ones.
_BANDS = ((20, 1000), (1010, 5000), (5000, 50_000), (50_000, 10**7))
_BENT = (sympy.Abs, sympy.Max, sympy.Min, sympy.floor, sympy.ceiling, sympy.sign)

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
_DECIMAL = re.compile(r"[-+]?\s*[0-9]*\.[0-9]+(?:\s*\\?%)?")
_WORDS = re.compile(r"(?:\\text\{[^{}]*\}|[\s,.'-])+")
_BARE_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ -][A-Za-z]+)*")
#: The constant of integration, whose letter may be either case if one other letter stands in the answer.
_CONSTANT = re.compile(r"\+\s*([cC])$")
_UNIT = re.compile(r"(?<=[0-9})a-z])\s*\\text\{[^{}]*\}(?:\^\s*(?:[0-9]|\{[0-9]\}))?$")
#: Words that change or restrict what stands before them.
_NOT_A_UNIT = re.compile(
    "and|or|to|than|through|if|when|where|unless|for|mod|modulo|base|squared|cubed|factorial|choose|plus|minus|over|times"
    "|more|less|fewer|most|least|greater|larger|smaller|not|negative|positive|below|above|under|even|odd|except|percent"
    "|hundred|thousand|million|billion|trillion|dozen|tenths|hundredths|thousandths|half|halves|thirds?|quarters?",
    re.I,
)
_FRACTION = re.compile(r"\\frac\s*(?:([0-9A-Za-z])|(?=\{))\s*(?:([0-9A-Za-z])|(?=\{))")
_BAD = re.compile(
    r"(?<![_0-9.])[0-9.]+\s+[0-9]|\\begin|\\[a-z]*dots|\\(?:angle|triangle|overline|vec|hat)(?![a-z])|[?&]|[0-9]_|\\(?:gcd|lcm|partial|lim|to)(?![a-z])|\^\s*\{?\s*(?:T|\\top|\\intercal|\*|\\ast|\\prime|\\complement)\b|\\frac\{d[a-zA-Z]?\}\{d|\\equiv|[^\x00-\x7f]"
)
_EXTREME = re.compile(r"\\(?:max|min)(?![a-z])")
_SUM = re.compile(r"\\(?:sum|prod)(?![a-z])")
_UPPER_I = re.compile(r"(?<![A-Za-z\\{])I(?![A-Za-z_}])")
_PRIME = re.compile(r"([A-Za-z])('+)")
_UNIT_VECTOR = re.compile(r"\\(?:mathbf|hat|vec|bm)\s*\{?\s*\\?(i|j|k)(?:math)?\s*\}?")
#: A name that may stand before an equals sign without being part of the answer.
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*(?:\^\{-1\})?\s*(?:\([^()]*\))?)|\\frac\{d[a-z]\}\{d[a-z]\}|\([a-zA-Z](?:\s*,\s*[a-zA-Z])*\)"
)
_CALL = re.compile(r"\\?([A-Za-z])(?:_\{?\w\}?)?\s*\(\s*([a-z])\s*\)")
_LETTER = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])")


def are_equal(answer: str, truth: str) -> bool | None:
    """Whether two answers are equal; None if one of them is not understood, unless they are the same text."""
    if _compact(answer) == _compact(truth):
        return True
    if (constant := _CONSTANT.search(answer)) and (other := _CONSTANT.search(truth)) and constant[1] != other[1]:
        answer, truth = (_CONSTANT.sub("+C", text) if _has_one_other_letter(text) else text for text in (answer, truth))
    try:
        a, b = _structure(answer), _structure(truth)
        if isinstance(a, Value) and isinstance(b, Value):  # the caller has reconciled units
            return same_value(a.text, b.text)
        return _equal(a, b)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # besides NotUnderstoodError, sympy raises all kinds of errors on texts that a policy wrote
        return None


def _has_one_other_letter(text: str) -> bool:
    return len(set(_LETTER.findall(text)) - {"c", "C", "e"}) == 1


def _compact(text: str) -> str:
    """A text without the spaces that mean nothing: all but those between digits, and after commands."""
    text = re.sub(r"(?<![0-9A-Za-z])\s+|\s+(?![0-9A-Za-z])", "", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", text)


@functools.lru_cache(1024)  # each response to a problem is compared with the same reference
def _structure(text: str) -> Node:
    text = normalize_latex(text)
    vector = _unit_vectors(text)
    return vector or read(text)


def _unit_vectors(text: str) -> Node | None:
    r"""A combination of ``\mathbf{i}``, ``\mathbf{j}`` and ``\mathbf{k}`` as a column; None for other texts."""
    if not _UNIT_VECTOR.search(text):
        return None
    marked = _UNIT_VECTOR.sub(lambda unit: rf" u_{{{unit[1]}}}", text)
    expression = _parsed(marked)
    units = [symbol for name in "ijk" for symbol in expression.free_symbols if symbol.name == f"u_{name}"]
    names = [name for name in "ijk" if any(symbol.name == f"u_{name}" for symbol in units)]
    expression = sympy.expand(expression.doit())
    entries = {name: sympy.diff(expression, unit) for name, unit in zip(names, units, strict=True)}
    if any(entry.free_symbols & set(units) for entry in entries.values()):
        raise NotUnderstoodError(text)
    size = "ijk" if "k" in entries else "ij"
    return Matrix(tuple((Value(sympy.latex(entries.get(name, sympy.Integer(0)))),) for name in size))


def _equal(a: Node, b: Node) -> bool:
    a, b = _unwrapped(a, b, is_answer=True), _unwrapped(b, a, is_answer=False)
    if isinstance(a, Value) and isinstance(b, Value):
        pair = reconciled(a.text, b.text)
        return pair is not None and same_value(*pair)
    if isinstance(a, Family) or isinstance(b, Family):
        return _same_family(a, b)
    if isinstance(a, Case) and isinstance(b, Case):
        return a.condition == b.condition and _equal(a.value, b.value)
    for vector, other in ((a, b), (b, a)):
        if isinstance(vector, Matrix) and isinstance(other, Sequence):
            return other.brackets == "()" and _all_equal(_entries(vector), other.parts)
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        return len(a.rows) == len(b.rows) and all(map(_all_equal, a.rows, b.rows))
    if isinstance(a, Matrix) or isinstance(b, Matrix):
        return _same_matrices(a, b)
    for part, whole in ((a, b), (b, a)):  # x/(x+1), x != -1 is x/(x+1)
        if isinstance(part, Value) and isinstance(whole, Unordered) and _is_restricted_value(whole):
            return _equal(part, whole.parts[0])
    if isinstance(a, Unordered) and isinstance(b, Unordered):
        return _same_parts(list(a.parts), list(b.parts))
    if isinstance(a, Sequence) and isinstance(b, Sequence):
        if a.brackets == b.brackets == ":":
            return _same_ratios(a.parts, b.parts)
        return a.brackets == b.brackets and _all_equal(a.parts, b.parts)
    if isinstance(a, Relation) and isinstance(b, Relation) and _same_relation(a, b):
        return True
    letters = {_letter(node) for node in (a, b)} - {None}
    if len(letters) > 1:
        return False
    left, right = _real_set(a), _real_set(b)
    return left is not None and right is not None and _same_sets(left, right)


def _is_restricted_value(node: Unordered) -> bool:
    value, *restrictions = node.parts
    return isinstance(value, Value) and all(isinstance(r, Relation) and r.signs == ("!=",) for r in restrictions)


def _same_ratios(a: Items[Node], b: Items[Node]) -> bool:
    """Whether ``a : b : c`` are in proportion to other three or more values."""
    if len(a) != len(b) or not all(isinstance(part, Value) for part in (*a, *b)):
        return False
    (x, *xs), (y, *ys) = ([_exact(_parsed(part.text)) for part in side] for side in (a, b))  # type: ignore[union-attr]
    products = [(p * y, q * x) for p, q in zip(xs, ys, strict=True)]
    return all(same_expressions(p, q) if (p - q).free_symbols else same_numbers(p, q) for p, q in products)


def _all_equal(a: Items[Node], b: Items[Node]) -> bool:
    return len(a) == len(b) and all(map(_equal, a, b))


def _entries(matrix: Matrix) -> tuple[Node, ...]:
    return (
        tuple(row[0] for row in matrix.rows)
        if all(len(row) == 1 for row in matrix.rows)
        else matrix.rows[0] * (len(matrix.rows) == 1)
    )


def _same_parts(a: list[Node], b: list[Node]) -> bool:
    """Whether two lists are equal in some order. A part that stands twice counts once."""
    a, b = ([part for n, part in enumerate(parts) if part not in parts[:n]] for parts in (a, b))
    if len(a) != len(b):
        return False
    for part in a:
        match = next((other for other in b if _equal(part, other)), None)
        if match is None:
            return False
        b.remove(match)
    return True


def _unwrapped(node: Node, other: Node, *, is_answer: bool) -> Node:
    """A node without the name before its equals sign, if ``other`` has none, and with the last side of a chain."""
    if isinstance(node, Unordered) and isinstance(node.parts[0], Relation) and isinstance(other, Unordered):
        first, *rest = node.parts
        named = (
            isinstance(first, Relation)
            and _value_of(first) is not None
            and not any(isinstance(part, Relation) for part in rest)
        )
        if isinstance(first, Relation) and named and rest:  # n = 1, 2, 3
            node = Unordered((Value(first.sides[-1]), *rest))
        elif not any(isinstance(part, Relation) for part in other.parts):
            values = [_value_of(part) for part in node.parts if isinstance(part, Relation)]
            names = {_compact(part.sides[0]) for part in node.parts if isinstance(part, Relation)}
            if len(values) == len(node.parts) and None not in values and len(names) == 1:
                node = Unordered(tuple(value for value in values if value is not None))
        return node
    if isinstance(node, Relation) and not isinstance(other, (Relation, Unordered)):
        return _value_of(node, is_answer=is_answer) or node
    if isinstance(node, Relation) and isinstance(other, Unordered) and not isinstance(other.parts[0], Relation):
        return _value_of(node, is_answer=is_answer) or node
    return node


def _value_of(node: Node, *, is_answer: bool = False) -> Node | None:
    r"""The right-hand side of ``x = 5``, ``f(x) = 2x`` or ``3 + 4 = 7``; None for other relations.

    An answer ``x + y = 5`` may repeat what was asked for, so that it is 5. A reference ``x + y = 5`` is an
    equation.
    """
    if not isinstance(node, Relation) or set(node.signs) != {"="}:
        return None
    first, *others = node.sides
    is_number = not _LETTER.search(first) and not all(_LETTER.search(side) for side in others)
    if not (is_number or _is_name(first) or ((is_answer or len(others) > 1) and _is_sum_of_letters(first))):
        return None
    values = list(node.sides) if is_number else others
    if any(not same_value(values[-1], value) for value in values[:-1] if not _LETTER.search(value)):
        raise NotUnderstoodError("the sides of a chain of equalities differ")
    return read(values[-1])


def _is_name(side: str) -> bool:
    return bool(_NAME.fullmatch(side.strip()) or re.fullmatch(r"\\text\{[^{}]*\}", side.strip()))


def _is_sum_of_letters(side: str) -> bool:
    """Whether an expression of two or more letters has no number but exponents: ``m+n``, ``x^2+y^2``."""
    bare = re.sub(r"_(?:\{[^{}]*\}|\w)|\\[a-z]+|\^\s*(?:\{[0-9]\}|[0-9])", "", side)
    return len(set(re.findall("[A-Za-z]", bare))) > 1 and not re.search("[0-9]", bare)


def _same_family(a: Node, b: Node) -> bool:
    if isinstance(a, Family) and isinstance(b, Family) and a.domain != b.domain:
        return False
    parameter = next(node.parameter for node in (a, b) if isinstance(node, Family))
    domain = next(node.domain for node in (a, b) if isinstance(node, Family))
    members = []
    for node in (a, b):
        member = node.member if isinstance(node, Family) else node
        member = (_value_of(member) or member) if isinstance(member, Relation) else member
        if isinstance(node, Family) and node.parameter != parameter:
            member = _renamed(member, node.parameter, parameter)
        members.append(member)
    if all(isinstance(member, Value) for member in members) and domain == "Z":
        both = all(isinstance(node, Family) for node in (a, b))
        lattices = [_lattice(member.text, parameter) for member in members]  # type: ignore[union-attr]
        if both and None not in lattices:
            (step, start), (other_step, other_start) = lattices  # type: ignore[misc]
            if not same_numbers(step, other_step) and not same_numbers(step, -other_step):
                return False
            return bool(sympy.simplify((start - other_start) / step).is_integer)
    return _equal(*members)


def _renamed(node: Node, old: str, new: str) -> Node:
    pattern = re.compile(rf"(?<![A-Za-z\\]){old}(?![A-Za-z])")
    rename = lambda text: pattern.sub(lambda _: new, text)  # noqa: E731
    if isinstance(node, Value):
        return Value(rename(node.text))
    if isinstance(node, Sequence):
        return Sequence(node.brackets, tuple(_renamed(part, old, new) for part in node.parts))
    if isinstance(node, Unordered):
        return Unordered(tuple(_renamed(part, old, new) for part in node.parts))
    if isinstance(node, Relation):
        return Relation(tuple(map(rename, node.sides)), node.signs)
    return node


def _lattice(text: str, parameter: str) -> tuple[Any, Any] | None:
    """(step, start) of an expression that is linear in the parameter and has no other letter."""
    expression = _exact(_parsed(text))
    symbols = [symbol for symbol in expression.free_symbols if symbol.name == parameter]
    if len(symbols) != 1 or len(expression.free_symbols) != 1:
        return None
    expression = sympy.expand(expression.doit())
    step = sympy.diff(expression, symbols[0])
    return None if step.free_symbols or step == 0 else (step, expression.subs(symbols[0], 0))


def _same_relation(a: Relation, b: Relation) -> bool:
    if set(a.signs) == set(b.signs) == {"="}:
        value, other = _value_of(a), _value_of(b)
        if value is not None and other is not None:
            name, other_name = _compact(a.sides[0]), _compact(b.sides[0])
            if name == other_name:
                return _equal(value, other)
            call, other_call = _CALL.fullmatch(name), _CALL.fullmatch(other_name)
            if call and other_call and call[1] == other_call[1]:  # f(t) = 3t is f(x) = 3x
                return _equal(_renamed(value, call[2], other_call[2]), other)
            if {name, other_name} & {"y", "f(x)"} and (call or other_call) and len({name, other_name}) == 2:
                return {name, other_name} == {"y", "f(x)"} and _equal(value, other)
    if len(a.signs) != 1 or len(b.signs) != 1:
        return False
    turned = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
    if a.signs[0] not in turned or b.signs[0] not in turned:
        return False
    left, right = (_difference(relation) for relation in (a, b))
    if a.signs[0] in ("=", "!="):
        return a.signs == b.signs and _constant_ratio(left, right) is not None
    ratio = _constant_ratio(left, right)
    return ratio is not None and (a.signs[0] if ratio > 0 else turned[a.signs[0]]) == b.signs[0]


def _difference(relation: Relation) -> Any:
    left, right = (_exact(_parsed(side)) for side in relation.sides)
    return (left - right).doit()


def _constant_ratio(left: Any, right: Any) -> Any:
    """The ratio of two expressions with letters if it is the same at all points, else None."""
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return None
    left, right = (sympy.numer(sympy.together(side)) for side in (left, right))
    pairs = [(x, y) for x, y in _values_at_points(left, right) if x is not None and y is not None]
    ratios = [x / y for x, y in pairs if y]
    if len(ratios) < ENOUGH or len(ratios) < len(pairs) or not ratios[0]:
        return None
    return ratios[0] if all(_near(ratio, ratios[0], NEAREST) for ratio in ratios) else None


# Sets of real numbers


def _letter(node: Node) -> str | None:
    """The letter of an inequality in one letter."""
    if isinstance(node, Union):
        return next((letter for letter in map(_letter, node.parts) if letter), None)
    if isinstance(node, Relation):
        names = [side.strip() for side in node.sides if re.fullmatch(r"\\?[A-Za-z]+(?:_\{?\w+\}?)?", side.strip())]
        names = [name for name in names if name not in (r"\infty", r"\pi", "e")]
        return names[0] if len(names) == 1 else None
    return None


def _real_set(node: Node) -> Any:
    """A set of real numbers as a set of sympy, or None."""
    if isinstance(node, Value):
        return {r"\mathbb{R}": sympy.S.Reals, r"\emptyset": sympy.S.EmptySet}.get(node.text.strip())
    if isinstance(node, Unordered):
        values = [_number(part.text) if isinstance(part, Value) else None for part in node.parts]
        return None if None in values else sympy.FiniteSet(*values)
    if isinstance(node, Sequence) and len(node.parts) == 2:
        ends = [_number(part.text) if isinstance(part, Value) else None for part in node.parts]
        return None if None in ends else _interval(ends[0], ends[1], node.brackets[0] == "(", node.brackets[1] == ")")
    if isinstance(node, Union):
        sets = [_real_set(part) for part in node.parts]
        if any(part is None for part in sets):
            return None
        first, *rest = sets
        for part in rest:
            first = {"or": sympy.Union, "and": sympy.Intersection, "minus": sympy.Complement}[node.sign](first, part)
        return first
    if isinstance(node, Relation):
        return _solutions(node)
    return None


def _interval(left: Any, right: Any, left_open: bool, right_open: bool) -> Any:
    return sympy.Interval(left, right, left_open, right_open) if bool(left <= right) else None


def _solutions(relation: Relation) -> Any:
    """The solutions of an inequality or a chain of two with its letter alone on one side."""
    letter = _letter(relation)
    sides, signs = [side.strip() for side in relation.sides], list(relation.signs)
    if letter is None or len(sides) > 3 or "=" in signs or (len(sides) == 3 and sides[1] != letter):
        return None
    solutions = sympy.S.Reals
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        number = _number(right if left == letter else left)
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


def _number(text: str) -> Any:
    try:
        value = _exact(_parsed(text)).doit()
    except NotUnderstoodError:
        return None
    return value if isinstance(value, sympy.Expr) and not value.free_symbols and value.is_extended_real else None


def _same_sets(a: Any, b: Any) -> bool:
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


# Values


def same_value(answer: str, truth: str) -> bool:
    """Whether two expressions are equal. A unit or another word after them does not count; words equal words."""
    words, other_words = _words(answer), _words(truth)
    if words is not None or other_words is not None:
        bare = truth if words is not None else answer
        if (words is None or other_words is None) and _BARE_WORDS.fullmatch(bare.strip()):
            return bare.strip().lower() == (words or other_words)
        return words == other_words
    a, b = _parsed(answer), _parsed(truth)
    for sides in ((a, answer, b, truth), (b, truth, a, answer)):
        value, text, other, other_text = sides
        if r"\circ" in text and r"\pi" in other_text and r"\circ" not in other_text:  # degrees against radians
            return same_numbers(_exact(value) * sympy.pi / 180, _exact(other))
    if "%" in answer or "%" in truth:
        return _same_percentages(answer, truth)
    decimal = any(_DECIMAL.fullmatch(text.strip()) for text in (answer, truth))
    a, b = _exact(a), _exact(b)
    if not a.free_symbols and not b.free_symbols:
        return same_numbers(a, b, decimal=decimal)
    return same_expressions(a, b)


def _words(text: str) -> str | None:
    r"""A text that is only words, in lower case; None for mathematics. A single letter keeps its case."""
    if not _WORDS.fullmatch(text) or r"\text" not in text:
        return None
    words = re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r"\1", text)).strip(" .,")
    return words.lower() if len(words) > 1 else words


def _same_percentages(answer: str, truth: str) -> bool:
    values = [_number(re.sub(r"\s*\\?%", "", text)) for text in (answer, truth)]
    percents = ["%" in text for text in (answer, truth)]
    if None in values:
        return False
    if same_numbers(*values):
        return True
    shares = [value / (100 if percent else 1) for value, percent in zip(values, percents, strict=True)]
    return not all(percents) and same_numbers(*shares)


@functools.lru_cache(1024)
def _parsed(text: str) -> Any:
    r"""The expression of a value, with ``i`` as the imaginary unit.

    Raises:
        NotUnderstoodError: it is not an expression.
    """
    text = re.sub(r"\\\$|\$", "", text).strip()
    text = re.sub(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})|°", "", text)
    if unit := _UNIT.search(text):
        if any(map(_NOT_A_UNIT.fullmatch, re.findall("[A-Za-z]+", unit[0])[1:])):
            raise NotUnderstoodError(text)
        text = text[: unit.start()]
    text = _FRACTION.sub(lambda f: "\\frac" + "".join(f"{{{part}}}" for part in f.groups() if part), text)
    text = _PRIME.sub(lambda prime: rf"{prime[1]}_{{prime{len(prime[2])}}}", text)
    text = _UPPER_I.sub("Y_{I}", text)
    if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", text):
        text = text.replace(",", "")
    if (
        not text
        or _BAD.search(text)
        or r"\text" in text
        or ("=" in text and not _SUM.search(text))
        or (re.search(r"[0-9],[0-9]", text) and not _EXTREME.search(text))
    ):
        raise NotUnderstoodError(text)
    try:
        parsed = latex2sympy(
            parsers_latex(text, _NORMALIZATION), is_real=True, normalization_config=None, conversion_config=_CONVERSION
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises what its grammar happens to raise
        raise NotUnderstoodError(text) from error
    if not isinstance(parsed, sympy.Expr):
        raise NotUnderstoodError(text)
    return parsed.subs({symbol: sympy.I for symbol in parsed.free_symbols if symbol.name == "i"})


def _exact(expression: Any) -> Any:
    """An expression with its decimals as fractions."""
    return expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})


def same_numbers(a: Any, b: Any, *, decimal: bool = False) -> bool:
    """Whether two expressions without letters have the same value."""
    a, b = (value.doit() if hasattr(value, "doit") else value for value in (a, b))
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        return False
    if a == b:
        return True
    if a.is_infinite or b.is_infinite:
        return False
    if a.is_Rational and b.is_Rational and not decimal:
        return False
    try:
        x, y = _value(a, {}), _value(b, {})
    except _OutsideDomainError:
        x, y = (sympy.N(value, DIGITS) for value in (a, b))
    if not (x.is_number and y.is_number) or any(value.has(sympy.nan, sympy.zoo) for value in (x, y)):
        return False
    if decimal:
        return bool(_near(x, y, NEAR)) and bool(abs(x - y) <= sympy.Float(10) ** -ROUNDED)
    return bool(_near(x, y, NEAREST))


def _near(a: Any, b: Any, tolerance: Any) -> bool:
    return bool(sympy.Abs(sympy.N(a - b, DIGITS)) <= tolerance * max(sympy.Abs(a), sympy.Abs(b)))


def same_expressions(a: Any, b: Any) -> bool:
    """Whether two expressions with letters agree wherever both are real."""
    if a.free_symbols != b.free_symbols:
        a, b = sympy.simplify(a.doit()), sympy.simplify(b.doit())
        if a.free_symbols != b.free_symbols:
            return False
    same_domain = a.has(sympy.Abs) != b.has(sympy.Abs)
    compared = 0
    for x, y in _values_at_points(a, b):
        if x is not None and y is not None:
            compared += 1
            if not _near(x, y, NEAREST):
                return False
        elif same_domain and (x is None) != (y is None):
            return False
    return compared >= ENOUGH


def _values_at_points(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """The values of two expressions at points, None outside their domains, until both have values at ``POINTS`` points.

    The points are the same in each process, so that a verdict is the same. They lie on both sides of 0 and of 1, and
    for functions with a bend also far out. The first has only positive coordinates and the second only negative ones.
    Whole numbers follow if too few other points are in both domains.
    """
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    whole = any(e.has(sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product) for e in (a, b))
    bent = any(e.has(*_BENT) for e in (a, b))
    bands = _BANDS if bent else _BANDS[:2]
    draw = random.Random(0)
    found = 0
    for number in range(2 * TRIED):
        if whole or number >= TRIED:
            point = {symbol: sympy.Integer(draw.randint(1, 9)) for symbol in symbols}
        else:
            signs = [1 if number == 0 else -1 if number == 1 else draw.choice((1, -1)) for _ in symbols]
            sizes = [sympy.Rational(draw.randint(*draw.choice(bands)), 1009) for _ in symbols]
            point = {symbol: sign * size for symbol, sign, size in zip(symbols, signs, sizes, strict=True)}
        x, y = _value_or_none(a, point), _value_or_none(b, point)
        found += x is not None and y is not None
        yield x, y
        if found == (2 * POINTS if bent else POINTS) or (number == TRIED - 1 and found >= ENOUGH):
            return


class _OutsideDomainError(ValueError):
    """An expression is not real at a point, or not defined."""


def _value_or_none(expression: Any, point: dict[Any, Any]) -> Any:
    try:
        return _value(expression, point)
    except _OutsideDomainError:
        return None


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """The value at a point, computed in the real numbers, or in the complex ones if ``i`` stands in the expression."""
    if expression.has(sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit):
        value = expression.subs(point).doit()
        if value.has(sympy.Integral, sympy.Derivative, sympy.Limit, sympy.Sum, sympy.Product):
            raise _OutsideDomainError
        return _checked(sympy.N(value, DIGITS), is_real=not expression.has(sympy.I))
    if expression.has(sympy.I):
        return _checked(sympy.N(expression.subs(point), DIGITS), is_real=False)
    return _real_value(expression, point)


def _real_value(node: Any, point: dict[Any, Any]) -> Any:
    if node.is_Symbol:
        return sympy.Float(point[node], DIGITS) if not point[node].is_Integer else point[node]
    if node.is_Rational:
        return node
    if not node.args:
        return _checked(sympy.N(node, DIGITS), is_real=True)
    if node.is_Pow:
        base, exponent = _real_value(node.base, point), _real_value(node.exp, point)
        if not base and exponent <= 0:
            raise _OutsideDomainError
        if base < 0 and not exponent.is_Integer:
            if not exponent.is_Rational or exponent.q % 2 == 0:
                raise _OutsideDomainError
            root = sympy.N(-base, DIGITS) ** exponent  # a root of odd degree is real
            return -root if exponent.p % 2 else root
        return _checked(sympy.N(base**exponent, DIGITS), is_real=True)
    values = [_real_value(part, point) for part in node.args]
    exact = node.is_Mul or node.is_Add
    value = node.func(*values)
    return value if exact and value.is_Rational else _checked(sympy.N(value, DIGITS), is_real=True)


def _checked(value: Any, *, is_real: bool) -> Any:
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo) or (is_real and not value.is_real):
        raise _OutsideDomainError
    return value


def _same_matrices(a: Node, b: Node) -> bool:
    """A matrix with a factor or in a sum, which only the parser of LaTeX reads, against a matrix."""
    arrays = []
    for node in (a, b):
        if isinstance(node, Matrix):
            cells = [[part.text if isinstance(part, Value) else "" for part in row] for row in node.rows]
            if len({len(row) for row in cells}) != 1:
                return False
            arrays.append(sympy.Matrix([[_exact(_parsed(cell)) for cell in row] for row in cells]))
        elif isinstance(node, Value) and r"\begin{" in node.text:
            factor, matrix = _factor_and_matrix(node.text)
            arrays.append(factor * matrix)
        else:
            return False
    left, right = arrays
    return left.shape == right.shape and all(
        same_numbers(x, y) if not (x.free_symbols or y.free_symbols) else same_expressions(x, y)
        for x, y in zip(left, right, strict=True)
    )


def _factor_and_matrix(text: str) -> tuple[Any, Any]:
    begin = text.index(r"\begin{")
    node = read(text[begin:])
    if not isinstance(node, Matrix):
        raise NotUnderstoodError(text)
    cells = [[_exact(_parsed(part.text)) if isinstance(part, Value) else None for part in row] for row in node.rows]
    if any(None in row for row in cells) or len({len(row) for row in cells}) != 1:
        raise NotUnderstoodError(text)
    factor = text[:begin].strip().removesuffix(r"\cdot").strip()
    return _exact(_parsed(factor)) if factor != "-" else sympy.Integer(-1), sympy.Matrix(cells)
