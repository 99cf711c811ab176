r"""Compares two answers as mathematics. Only the comparison process (``maths_worker.py``) imports this module.

The rules, by the structure of the answers (``structure.py``):

- Two values without letters are equal if they agree to ``DIGITS`` digits, and rational ones exactly. A decimal that is
  a whole answer may be rounded at its sixth place.
- Two values with letters are equal if they agree wherever both are real, at points of both signs, and at whole numbers
  if there are too few such points (factorials, ``(-1)^n``, sums). Letters that differ in case are different. If only
  one of them has bars of absolute value, both must be real at the same points.
- Two equations are equal if the differences of their sides have a constant ratio, up to a denominator. Two
  inequalities keep their denominators, whose sign may not be known, and they are not solved.
- A list or set is equal in any order. A tuple and an interval keep their order and their brackets. A tuple equals a
  vector, and no tuple equals a list.
- An inequality in one letter equals the set of its solutions.
- A name before an equals sign belongs to the answer only if both answers have one.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence as Items
from typing import Any

import sympy

from verl_gsd.tasks.notation import normalize_latex
from verl_gsd.tasks.quantities import reconciled
from verl_gsd.tasks.real_sets import letters_of, real_set, same_sets
from verl_gsd.tasks.structure import (
    Case,
    Family,
    Matrix,
    Membership,
    Named,
    Node,
    NotUnderstoodError,
    Progression,
    Relation,
    Sequence,
    Union,
    Unordered,
    Value,
    read,
)
from verl_gsd.tasks.values import (
    ENOUGH,
    NEAREST,
    differ_by_constant,
    exact,
    near,
    parsed,
    same_expressions,
    same_numbers,
    same_value,
    values_at_points,
)

#: The constant of integration, and the letters of an antiderivative: ``2a+c`` is a sum.
_CONSTANT, _VARIABLES = re.compile(r"\+\s*([cC])$"), set("rstuvwxyz")
_UNIT_VECTOR = re.compile(r"\\(?:mathbf|hat|vec|bm)\s*\{?\s*\\?(i|j|k)(?:math)?\s*\}?")
#: A name that may stand before an equals sign without being part of the answer.
_NAME = re.compile(
    r"(?:\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w))?'*(?:\^\{-1\})?\s*(?:\([^()]*\))?)|\\frac\{d[a-z]\}\{d[a-z]\}|\([a-zA-Z](?:\s*,\s*[a-zA-Z])*\)"
)
#: ``\\ln(x) = 2`` and ``f(2x) = x`` are equations for x and f, and ``f(2) = 5`` is a name and its value.
_EQUATION = re.compile(
    r"\\(?:a?(?:sin|cos|tan|cot|sec|csc)h?|arc(?:sin|cos|tan)|ln|log|lg|exp)(?![A-Za-z])"
    r"|[a-z](?:_\{?\w\}?)?\s*\((?=[^()]*[A-Za-z])[^()A-Z,]*(?<![_{])[-+0-9][^()A-Z,]*\)$"
)
_SYMBOL = re.compile(r"\\?[A-Za-z]+(?:_(?:\{\w+\}|\w))?")
_CALL = re.compile(r"\\?([A-Za-z](?:_\{?\w\}?)?)\s*\(\s*([a-z])\s*\)")
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_COMMAND = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+")


def are_equal(answer: str, truth: str) -> bool | None:
    """Whether two answers are equal; None if one of them is not understood, unless they are the same text."""
    if _compact(answer) == _compact(truth):
        return True
    try:
        if _are_antiderivatives(answer, truth):
            return _same_antiderivatives(*(_CONSTANT.sub("", text) for text in (answer, truth)))
        a, b = _structure(answer), _structure(truth)
        if isinstance(a, Value) and isinstance(b, Value):  # the caller has reconciled units
            return same_value(a.text, b.text)
        return _equal(a, b)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # besides NotUnderstoodError, sympy raises all kinds of errors on texts that a policy wrote
        return None


def _same_antiderivatives(answer: str, truth: str) -> bool:
    """Whether two expressions in one letter are equal up to a constant."""
    a, b = (_structure(text) for text in (answer, truth))
    if not isinstance(a, Value) or not isinstance(b, Value):
        raise NotUnderstoodError(answer)
    left, right = exact(parsed(a.text)), exact(parsed(b.text))
    return left.free_symbols == right.free_symbols and differ_by_constant(left, right)


def _are_antiderivatives(answer: str, truth: str) -> bool:
    """Whether both end in a constant of integration after one letter. A small c in both may also be a number."""
    constants = [constant[1] for constant in map(_CONSTANT.search, (answer, truth)) if constant]
    letters = [_letters(text) - {"c", "C", "e"} for text in (answer, truth)]
    return len(constants) == 2 and "C" in constants and all(len(s) == 1 and s <= _VARIABLES for s in letters)


def _letters(text: str) -> set[str]:
    """The letters of a text that are not part of commands or words. Letters side by side are a product."""
    return set(re.findall("[A-Za-z]", _COMMAND.sub(" ", text)))


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
    expression = parsed(marked)
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
    verdicts = (rule(a, b) for rule in _RULES)
    return next((verdict for verdict in verdicts if verdict is not None), False)


def _same_values(a: Node, b: Node) -> bool | None:
    if not isinstance(a, Value) or not isinstance(b, Value):
        return None
    in_one_unit = reconciled(a.text, b.text)
    return in_one_unit is not None and same_value(*in_one_unit)


def _same_named(a: Node, b: Node) -> bool | None:
    if isinstance(a, Named) and isinstance(b, Named):
        return a.name == b.name and _equal(a.value, b.value)
    for named, other in ((a, b), (b, a)):
        if isinstance(named, Named):
            return named.may_lack_name and _equal(named.value, other)
    return None


def _same_memberships(a: Node, b: Node) -> bool | None:
    r"""``x \in (1,2)`` against the same in the same letter, or against ``(1,2)`` without a letter."""
    if isinstance(a, Membership) and isinstance(b, Membership):
        return _compact(a.element) == _compact(b.element) and _equal(a.domain, b.domain)
    for membership, other in ((a, b), (b, a)):
        if isinstance(membership, Membership):
            name = _name_of_list(other) if isinstance(other, Unordered) else None
            names = letters_of(other) | ({name} if name else set())
            is_same_letter = names <= {_compact(membership.element)} and _is_name(membership.element)
            return is_same_letter and _equal(membership.domain, other)
    return None


def _same_conditions(a: Node, b: Node) -> bool | None:
    """Conditions on several letters, which have to be the same ones in some order."""
    if not isinstance(a, Union) or not isinstance(b, Union):
        return None
    return a.sign == b.sign != "minus" and _same_parts(list(a.parts), list(b.parts))


def _same_progressions(a: Node, b: Node) -> bool | None:
    if not isinstance(a, Progression) or not isinstance(b, Progression):
        return None
    return (a.first, a.step) == (b.first, b.step) and _equal(a.last, b.last)


def _same_cases(a: Node, b: Node) -> bool | None:
    if not isinstance(a, Case) or not isinstance(b, Case):
        return None
    return a.condition == b.condition and _equal(a.value, b.value)


def _same_matrices(a: Node, b: Node) -> bool | None:
    """Two matrices, or a matrix and a tuple, which is equal to a row and to a column."""
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        return len(a.rows) == len(b.rows) and all(map(_all_equal, a.rows, b.rows))
    for matrix, other in ((a, b), (b, a)):
        if isinstance(matrix, Matrix) and isinstance(other, Sequence):
            return other.brackets == "()" and _all_equal(_entries(matrix), other.parts)
    return _same_arrays(a, b) if isinstance(a, Matrix) or isinstance(b, Matrix) else None


def _same_without_restriction(a: Node, b: Node) -> bool | None:
    r"""A value and the same value with the points where it is not defined: ``\frac{x}{x+1}, x \neq -1``."""
    for value, restricted in ((a, b), (b, a)):
        if isinstance(value, Value) and isinstance(restricted, Unordered) and _is_restricted_value(restricted):
            return _equal(value, restricted.parts[0])
    return None


def _same_assignments(a: Node, b: Node) -> bool | None:
    """Values of the same letters, or values of letters in alphabetical order and a tuple: ``x=1, y=2`` is (1,2)."""
    values, other_values = _assignments(a), _assignments(b)
    if values is not None and other_values is not None:
        return values.keys() == other_values.keys() and all(_equal(values[x], other_values[x]) for x in values)
    for assigned, other in ((values, b), (other_values, a)):
        if assigned is not None and isinstance(other, Sequence) and [*assigned] == sorted(assigned):
            return other.brackets == "()" and _all_equal([*assigned.values()], other.parts)
    return None


def _same_lists(a: Node, b: Node) -> bool | None:
    """Two lists in some order. If only one has names for its parts, these must be in order, and both orders count."""
    if not isinstance(a, Unordered) or not isinstance(b, Unordered):
        return None
    names = [_part_names(node) for node in (a, b)]
    if [] in names and any(names):
        return all(several == sorted(several) for several in names) and _all_equal(a.parts, b.parts)
    return _same_parts(list(a.parts), list(b.parts))


def _part_names(node: Unordered) -> list[str]:
    names = [
        part.name if isinstance(part, Named) else part.element
        for part in node.parts
        if isinstance(part, (Named, Membership))
    ]
    return list(map(_compact, names))


def _same_sequences(a: Node, b: Node) -> bool | None:
    if not isinstance(a, Sequence) or not isinstance(b, Sequence):
        return None
    if a.brackets == b.brackets == ":":
        return _same_ratios(a.parts, b.parts)
    return a.brackets == b.brackets and _all_equal(a.parts, b.parts)


def _same_sets(a: Node, b: Node) -> bool | None:
    """Sets of real numbers in the same letter, if they have one. None for conditions on several letters."""
    if len(letters_of(a) | letters_of(b)) > 1:
        return None
    left, right = real_set(a), real_set(b)
    return left is not None and right is not None and same_sets(left, right)


def _assignments(node: Node) -> dict[str, Node] | None:
    """The values of two or more letters: ``x=1, y=2`` and ``(x,y)=(1,2)``; None for other answers."""
    if isinstance(node, Unordered):
        pairs = [(part.sides[0].strip(), _value_of(part)) for part in node.parts if isinstance(part, Relation)]
        complete = len(pairs) == len(node.parts)
    elif isinstance(node, Relation) and node.signs == ("=",) and node.sides[0].startswith("("):
        names, values = map(read, node.sides)
        if not isinstance(names, Sequence) or not isinstance(values, Sequence) or names.brackets != values.brackets:
            return None
        pairs = [
            (part.text if isinstance(part, Value) else "", value)
            for part, value in zip(names.parts, values.parts, strict=False)
        ]
        complete = len(names.parts) == len(values.parts)
    else:
        return None
    assigned = {name: value for name, value in pairs if value is not None and _SYMBOL.fullmatch(name)}
    return assigned if complete and len(assigned) == len(pairs) > 1 else None


def _is_restricted_value(node: Unordered) -> bool:
    value, *restrictions = node.parts
    return isinstance(value, Value) and all(isinstance(r, Relation) and r.signs == ("!=",) for r in restrictions)


def _same_ratios(a: Items[Node], b: Items[Node]) -> bool:
    """Whether ``a : b : c`` are in proportion to other three or more values."""
    if len(a) != len(b) or not all(isinstance(part, Value) for part in (*a, *b)):
        return False
    (x, *xs), (y, *ys) = ([exact(parsed(part.text)) for part in side] for side in (a, b))  # type: ignore[union-attr]
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
        match = next((other for other in b if _same_elements(part, other)), None)
        if match is None:
            return False
        b.remove(match)
    return True


def _same_elements(a: Node, b: Node) -> bool:
    """Whether two parts of lists are equal. A set of one number is not that number here: {{1}} is not {1}."""
    is_set_and_value = {type(a), type(b)} == {Unordered, Value}
    return not is_set_and_value and _equal(a, b)


def _unwrapped(node: Node, other: Node, *, is_answer: bool) -> Node:
    """A node without the name before its equals sign, if ``other`` has none, and with the last side of a chain."""
    if isinstance(node, Unordered) and isinstance(other, Unordered):
        name, other_name = _name_of_list(node), _name_of_list(other)
        is_other_named = other_name is not None or any(isinstance(part, Relation) for part in other.parts)
        if name is None or (is_other_named and name != other_name):
            return node
        values = [_value_of(part) or part for part in node.parts]
        return dataclasses.replace(node, parts=tuple(values))
    if isinstance(node, Relation) and not isinstance(other, (Relation, Unordered)):
        return _value_of(node, is_answer=is_answer) or node
    if isinstance(node, Relation) and isinstance(other, Unordered) and not isinstance(other.parts[0], Relation):
        return _value_of(node, is_answer=is_answer) or node
    return node


def _name_of_list(node: Unordered) -> str | None:
    """The name that all parts of a list have, or only the first: ``n=1, n=2`` and ``n = 1, 2``; None for others."""
    relations = [part for part in node.parts if isinstance(part, Relation)]
    names = {_compact(relation.sides[0]) for relation in relations}
    is_named = bool(relations) and all(_value_of(relation) is not None for relation in relations)
    is_first = len(node.parts) > 1 and relations == [node.parts[0]]
    return names.pop() if is_named and len(names) == 1 and (is_first or len(relations) == len(node.parts)) else None


def _value_of(node: Node, *, is_answer: bool = False) -> Node | None:
    r"""The right-hand side of ``x = 5``, ``f(x) = 2x`` or ``3 + 4 = 7``; None for other relations.

    An answer ``x + y = 5`` may repeat what was asked for, so that it is 5. A reference ``x + y = 5`` is an
    equation.
    """
    if not isinstance(node, Relation) or set(node.signs) != {"="}:
        return None
    first, *others = node.sides
    is_number = not _letters(first) and not all(_letters(side) for side in others)
    if not (is_number or _is_name(first) or ((is_answer or len(others) > 1) and _is_sum_of_letters(first))):
        return None
    values = list(node.sides) if is_number else others
    if any(not same_value(values[-1], value) for value in values[:-1] if not _letters(value)):
        raise NotUnderstoodError("the sides of a chain of equalities differ")
    return read(values[-1])


def _is_name(side: str) -> bool:
    """Whether a side is a name that may be left out. Names of several values must be in alphabetical order."""
    names = side.strip("() ").split(",")
    if side.strip().startswith("(") and [name.strip() for name in names] != sorted(name.strip() for name in names):
        return False
    if _EQUATION.match(side.strip()):
        return False
    return bool(_NAME.fullmatch(side.strip()) or re.fullmatch(r"\\text\{[^{}]*\}", side.strip()))


def _is_sum_of_letters(side: str) -> bool:
    """Whether an expression of two or more letters has no number but exponents: ``m+n``, ``x^2+y^2``."""
    if _EQUATION.match(side.strip()):
        return False
    bare = re.sub(r"_(?:\{[^{}]*\}|\w)|\\[a-z]+|\^\s*(?:\{[0-9]\}|[0-9])", "", side)
    return len(set(re.findall("[A-Za-z]", bare))) > 1 and not re.search("[0-9,]", bare)


def _same_families(a: Node, b: Node) -> bool | None:
    """Answers for each value of a parameter, whose letter may differ. Only one of the two needs to name its domain."""
    families = [node for node in (a, b) if isinstance(node, Family)]
    if not families:
        return None
    if len({family.domain for family in families}) > 1:
        return False
    parameter = families[0].parameter
    left, right = (_member(node, parameter) for node in (a, b))
    values = [_value_of(member) for member in (left, right)]
    if None not in values and not _have_one_name(left, right):
        return _equal(left, right)
    left, right = (value or member for value, member in zip(values, (left, right), strict=True))
    if len(families) == 2 and families[0].domain == "Z" and isinstance(left, Value) and isinstance(right, Value):
        lattice, other_lattice = _lattice(left.text, parameter), _lattice(right.text, parameter)
        if lattice is not None and other_lattice is not None:
            return _same_lattices(lattice, other_lattice)
    return _equal(left, right)


def _member(node: Node, parameter: str) -> Node:
    """The member of a family in the given parameter."""
    return _renamed(node.member, node.parameter, parameter) if isinstance(node, Family) else node


def _have_one_name(a: Node, b: Node) -> bool:
    return isinstance(a, Relation) and isinstance(b, Relation) and _compact(a.sides[0]) == _compact(b.sides[0])


def _same_lattices(a: tuple[Any, Any], b: tuple[Any, Any]) -> bool:
    """Whether two lattices (step, start) have the same points."""
    (step, start), (other_step, other_start) = a, b
    if not same_numbers(step, other_step) and not same_numbers(step, -other_step):
        return False
    return bool(sympy.simplify((start - other_start) / step).is_integer)


def _renamed(node: Node, old: str, new: str) -> Node:
    """A node with another letter.

    Raises:
        NotUnderstoodError: the new letter already stands in the node.
    """
    pattern = re.compile(rf"{_COMMAND.pattern}|{old}")

    def rename(text: str) -> str:
        if old != new and new in _letters(text):
            raise NotUnderstoodError(text)
        return pattern.sub(lambda found: new if found[0] == old else found[0], text)

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
    expression = exact(parsed(text))
    symbols = [symbol for symbol in expression.free_symbols if symbol.name == parameter]
    if len(symbols) != 1 or len(expression.free_symbols) != 1:
        return None
    expression = sympy.expand(expression.doit())
    step = sympy.diff(expression, symbols[0])
    return None if step.free_symbols or step == 0 else (step, expression.subs(symbols[0], 0))


def _same_relations(a: Node, b: Node) -> bool | None:
    """Two relations of one sign each. None if they may still have the same set of solutions."""
    if not isinstance(a, Relation) or not isinstance(b, Relation):
        return None
    if set(a.signs) == set(b.signs) == {"="} and (verdict := _same_definitions(a, b)) is not None:
        return verdict
    if len(a.signs) != 1 or len(b.signs) != 1 or not {a.signs[0], b.signs[0]} <= _TURNED.keys():
        return None
    left, right = _difference(a), _difference(b)
    if {a.signs[0], b.signs[0]} == {"="}:
        left, right = (sympy.numer(sympy.together(side)) for side in (left, right))
    elif sympy.denom(sympy.together(left)).free_symbols != sympy.denom(sympy.together(right)).free_symbols:
        return None  # the sign of a denominator with letters is not known
    ratio = _constant_ratio(left, right)
    if ratio is None:
        return None
    is_turned = ratio < 0 and a.signs[0] not in ("=", "!=")
    return (_TURNED[a.signs[0]] if is_turned else a.signs[0]) == b.signs[0] or None


def _same_definitions(a: Relation, b: Relation) -> bool | None:
    """``y = 2x`` and ``f(x) = 2x``, or functions with another letter; None if the two do not define a value."""
    value, other = _value_of(a), _value_of(b)
    if value is None or other is None:
        return None
    names = _compact(a.sides[0]), _compact(b.sides[0])
    if names[0] == names[1] or set(names) == {"y", "f(x)"}:
        return _equal(value, other)
    call, other_call = map(_CALL.fullmatch, names)
    if call and other_call and call[1] == other_call[1]:  # f(t) = 3t is f(x) = 3x
        return _equal(_renamed(value, call[2], other_call[2]), other)
    is_another_function = (call and other_call) or "f(x)" in names or ("y" in names and (call or other_call))
    return False if is_another_function else None


def _difference(relation: Relation) -> Any:
    left, right = (exact(parsed(side)) for side in relation.sides)
    return (left - right).doit()


def _constant_ratio(left: Any, right: Any) -> Any:
    """The ratio of two expressions with letters if it is the same at all points, else None."""
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return None
    pairs = [(x, y) for x, y in values_at_points(left, right) if x is not None and y is not None]
    ratios = [x / y for x, y in pairs if y]
    if len(ratios) < ENOUGH or len(ratios) < len(pairs) or not ratios[0]:
        return None
    return ratios[0] if all(near(ratio, ratios[0], NEAREST) for ratio in ratios) else None


def _same_arrays(a: Node, b: Node) -> bool:
    """A matrix with a factor or in a sum, which only the parser of LaTeX reads, against a matrix."""
    arrays = []
    for node in (a, b):
        if isinstance(node, Matrix):
            cells = [[part.text if isinstance(part, Value) else "" for part in row] for row in node.rows]
            if len({len(row) for row in cells}) != 1:
                return False
            arrays.append(sympy.Matrix([[exact(parsed(cell)) for cell in row] for row in cells]))
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
    cells = [[exact(parsed(part.text)) if isinstance(part, Value) else None for part in row] for row in node.rows]
    if any(None in row for row in cells) or len({len(row) for row in cells}) != 1:
        raise NotUnderstoodError(text)
    factor = text[:begin].strip().removesuffix(r"\cdot").strip()
    return exact(parsed(factor)) if factor != "-" else sympy.Integer(-1), sympy.Matrix(cells)


#: The rules in their order. Each is None for two answers that it is not about.
_RULES = (
    _same_values,
    _same_named,
    _same_memberships,
    _same_progressions,
    _same_families,
    _same_cases,
    _same_matrices,
    _same_without_restriction,
    _same_assignments,
    _same_lists,
    _same_sequences,
    _same_relations,
    _same_sets,
    _same_conditions,
)
