r"""The structure of an answer: lists, sets, tuples, intervals, unions, relations and matrices, and values inside them.

The text of a value is left to the parser of LaTeX (``compare.py``). A text whose structure is not understood raises
``NotUnderstoodError``; such an answer is right only if it is the same text as the reference.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

#: How deep brackets may be nested.
DEEPEST = 30


class NotUnderstoodError(ValueError):
    """The text has a structure that is not in this module."""


@dataclass(frozen=True)
class Value:
    """An expression, a number or a word. ``text`` is LaTeX."""

    text: str


@dataclass(frozen=True)
class Unordered:
    """A list of answers or a finite set, in any order.

    Attributes:
        is_group: whether the parts stay together in a longer list: a set in braces, or one solution of a system.
    """

    parts: tuple[Node, ...]
    is_group: bool = False


@dataclass(frozen=True)
class Progression:
    """A list with dots after two or more whole numbers in arithmetic progression: ``1, 2, ..., n``."""

    first: int
    step: int
    last: Node


@dataclass(frozen=True)
class Sequence:
    """A tuple or an interval; which of the two, brackets do not tell. Or with ``:`` a ratio of three or more terms."""

    brackets: str
    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of entries. A vector is a matrix of one column or one row."""

    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Relation:
    r"""``sides[0] signs[0] sides[1] ...``; a sign is one of ``= < > <= >= !=``."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]


@dataclass(frozen=True)
class Union:
    """The union of sets, or with ``sign`` another operation on sets: ``and`` and ``minus``."""

    parts: tuple[Node, ...]
    sign: str = "or"


@dataclass(frozen=True)
class Case:
    """A value under a condition, which is compared as text. Letters keep their case, and words of it do not."""

    value: Node
    condition: str


@dataclass(frozen=True)
class Named:
    r"""A part with its name: a point ``A(1,2)``, a part ``(a) 5`` of the question, or ``\text{quotient } 5``.

    Attributes:
        may_lack_name: whether the part may stand without its name in the other answer.
    """

    name: str
    value: Node
    may_lack_name: bool


@dataclass(frozen=True)
class Membership:
    r"""An element and the set that it belongs to: ``x \in (1,2)``."""

    element: str
    domain: Node


@dataclass(frozen=True)
class Family:
    r"""Answers for each value of a parameter: ``2k\pi, k \in \mathbb{Z}``."""

    member: Node
    parameter: str
    domain: str


Node = Value | Unordered | Progression | Sequence | Matrix | Relation | Union | Case | Named | Membership | Family

_GROUPED = re.compile(r"\\?\$?[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_ZEROS = re.compile(",0")
_LETTER = re.compile(r"\\?[A-Za-z]+(?:_(?:\{\w+\}|\w))?")
_OPENING = ("(", "[", "{", r"\{", r"\langle", r"\lfloor", r"\lceil")
_CLOSING = (")", "]", "}", r"\}", r"\rangle", r"\rfloor", r"\rceil")
_TOKEN = re.compile(
    r"\\begin\{[a-z]+\*?\}|\\end\{[a-z]+\*?\}|\\text\{[^{}]*\}|\\langle(?![A-Za-z])|\\rangle(?![A-Za-z])|\\[A-Za-z]+|\\.|.",
    re.DOTALL,
)
_OR, _AND = (
    re.compile(r"\\text\{\s*or\s*\}|\\lor|\\vee"),
    re.compile(r"\\text\{\s*(?:and|,)\s*\}|\\land|\\wedge|\\text\{\s*,\s*and\s*\}"),
)
_LOGIC = re.compile(r"\\(?:lor|land|vee|wedge)(?![a-z])")
_BARE_WORD = re.compile(r"\\text\{[^{}]*\}|(?<![A-Za-z\\])(or|and)(?![A-Za-z])")
#: The sign of a union that is too large, or the letter U between two intervals or sets.
_UNION = re.compile(
    r"\\bigcup(?![A-Za-z]|\s*(?:_|\\limits))"
    r"|(?:(?<=\\\})|(?<=[)\]]))\s*(?<![A-Za-z])[Uu]\s*(?=[(\[][^()\[\]]*,[^()\[\]]*[)\]]|\\\{)"
)
_SIGNS = {
    "=": "=",
    "<": "<",
    ">": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\neq": "!=",
    r"\in": "in",
    r"\lt": "<",
    r"\gt": ">",
}
_FRENCH = re.compile(r"([\[\]])([^\[\]()]*[,;][^\[\]()]*)([\[\]])")
_MATRIX = re.compile(
    r"\\begin\{([pbvB]?matrix|smallmatrix|array)\}(?:\{(?P<columns>[lcr|]*)\})?(?P<rows>.*)\\end\{\1\}"
    r"\s*(?P<transposed>\^\s*(?:T|\\top|\\intercal|\{\s*(?:T|\\top|\\intercal|\\text\{\s*T\s*\})\s*\}))?",
    re.DOTALL,
)
#: A domain in brackets after the member.
_FAMILY = re.compile(r"(.*[^,;\s])\s*(\(\s*[a-z]\s*\\in\s*\\mathbb[^()]*\))", re.DOTALL)
_TRANSPOSED = re.compile(r"([(\[].*[)\]])\s*\^\s*(?:T|\\top|\{\s*(?:T|\\top|\\intercal)\s*\})", re.DOTALL)
_DOTS, _WHOLE = re.compile(r"\\[lc]?dots|\.\.\."), re.compile(r"-?[0-9]{1,9}")
_ARRAY = re.compile(r"[(\[]\s*(\\begin\{array\}.*\\end\{array\})\s*[)\]]", re.DOTALL)
#: The largest determinant that is expanded, and the longest tuple whose permutations are listed.
LARGEST_DETERMINANT, LONGEST_PERMUTED = 4, 4
_CASES = re.compile(r"(?:\\\{)?\\begin\{(cases|array|aligned)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_DOMAIN = re.compile(
    r"(?:\\text\{\s*(?:where|for|with|and)\s*\})?\s*\(?([a-z])\s*\\in\s*\\mathbb\s*\{?([ZNRQ])\}?\s*\)?"
    r"|\(?([a-z])\s*(?:\\text\{)?\s*(?:is )?(?:an |any )?(integer)s?\}?\)?"
)
_IN_TEXT, _WORD = re.compile(r"\\text\{([^{}]*)\}"), re.compile("[A-Za-z]{2,}")
_BUILDER = re.compile(r"([a-z])(?:\s*\\in\s*\\mathbb\s*\{?([RZ])\}?)?")
_POINT = re.compile(r"(?:\\text\{\s*)?([A-Z](?:_\{?[0-9]\}?)?'*)\s*\}?\s*(?:=\s*)?(?=\()")
#: ``(a)`` or ``(ii)`` before a part of an answer, and words before a number.
_LABEL = re.compile(
    r"[,;\s]*(?:\\text\{\s*\(?([a-h]|i{1,3}|iv|v)\)\s*:?\s*\}\s*|(?:^|(?<=[\s,;]))\(([a-h]|i{1,3}|iv|v)\)\s+)"
)
_LABELS = (["a", "b", "c", "d", "e", "f", "g", "h"], ["i", "ii", "iii", "iv", "v"])
_WORDS_BEFORE = re.compile(r"\\text\{\s*([A-Za-z][A-Za-z -]*?)\s*[:=]?\s*\}\s*[:=]?\s*(-?[0-9].*)", re.DOTALL)
_PERMUTATIONS = re.compile(
    r"(.+?)[,\s]*\\text\{\s*,?\s*and (?:all )?(?:its|the|their)? ?(cyclic )?permutations\s*\}", re.DOTALL
)
_CONGRUENT = re.compile(
    r"(?:([a-z])\s*)?\\equiv\s*([^\\]+?)\s*(?:\(\s*)?(?:\\pmod|\\bmod|\\mod|\\text\{\s*\(?\s*mod\s*\})\s*(?:\{\s*([0-9]+)\s*\}|([0-9]+))\s*\)?"
)


def tokens(text: str) -> list[str]:
    r"""The commands and characters of a text; ``\text{...}`` and ``\begin{...}`` are one token each."""
    return _TOKEN.findall(text)


def split_outside(text: str, separators: Collection[str]) -> list[str]:
    """The parts of a text between separators that stand outside all brackets, each stripped."""
    return _split(text, separators)[0]


def _split(text: str, separators: Collection[str]) -> tuple[list[str], list[str]]:
    """The parts between separators outside all brackets, and these separators."""
    parts: list[list[str]] = [[]]
    between, depth = [], 0
    for token in tokens(text):
        depth += _level(token)
        if depth > DEEPEST:
            raise NotUnderstoodError(text)
        if depth == 0 and token in separators:
            parts.append([])
            between.append(token)
        else:
            parts[-1].append(token)
    if depth:
        raise NotUnderstoodError(text)
    return ["".join(part).strip() for part in parts], between


def _level(token: str) -> int:
    """1 for a bracket that opens, -1 for one that closes, 0 for other tokens. Half-open intervals are brackets, too."""
    if token in _OPENING or token.startswith(r"\begin{"):
        return 1
    return -1 if token in _CLOSING or token.startswith(r"\end{") else 0


def read(text: str) -> Node:
    """The structure of an answer in the normal form of ``notation.normalize_latex``.

    Raises:
        NotUnderstoodError: the text has no such structure.
    """
    text = _FRENCH.sub(_usual_brackets, text.strip())
    text = _UNION.sub(r" \\cup ", text)
    if _LOGIC.search(text) and not any(token in _SIGNS for token in tokens(text)):
        raise NotUnderstoodError(text)  # a formula of logic
    text = _OR.sub(r" \\or ", _AND.sub(r" \\and ", text))
    text = _BARE_WORD.sub(lambda word: rf"\{word[1]} " if word[1] else word[0], text)
    return _read_labelled(text) or _read_list(text, 0)


def _read_labelled(text: str) -> Node | None:
    """The parts of an answer that has labels ``(a)``, ``(b)``, and so on, in order; None for other texts."""
    labels = list(_LABEL.finditer(text))
    names = [label[1] or label[2] for label in labels]
    if len(labels) < 2 or labels[0].start() or not any(names == known[: len(names)] for known in _LABELS):
        return None
    ends = [label.start() for label in labels[1:]] + [len(text)]
    parts = [text[label.end() : end].strip(" ,;") for label, end in zip(labels, ends, strict=True)]
    return Unordered(tuple(Named(name, _read_list(part, 1), True) for name, part in zip(names, parts, strict=True)))


def _usual_brackets(found: re.Match) -> str:
    left, inner, right = found.groups()
    if (left, right) == ("[", "]"):
        return found[0]
    return ("[" if left == "[" else "(") + inner + ("]" if right == "]" else ")")


def _read_list(text: str, depth: int) -> Node:
    if depth > DEEPEST:
        raise NotUnderstoodError(text)
    for sign in ("or", "and"):
        pieces = split_outside(text, {rf"\{sign}"})
        if len(pieces) > 1:
            return _joined([_read_list(piece.strip(", "), depth + 1) for piece in pieces if piece.strip(", ")], sign)
    if (bracketed := _FAMILY.fullmatch(text)) and (domain := _DOMAIN.fullmatch(bracketed[2])):
        return _family(_read_list(bracketed[1], depth + 1), domain)
    if permuted := _PERMUTATIONS.fullmatch(text):
        return _permutations(_read_list(permuted[1], depth + 1), is_cyclic=bool(permuted[2]))
    if congruence := _CONGRUENT.fullmatch(text):
        return _residues(congruence[1], congruence[2], congruence[3] or congruence[4])
    if _GROUPED.fullmatch(text):
        return Value(text.replace(",", ""))
    rows = [row for row in split_outside(text, {";"}) if row]
    pieces = [piece for row in rows for piece in split_outside(row, {","}) if piece]
    if not pieces:
        raise NotUnderstoodError(text)
    if len(pieces) == 1:
        return _read_one(pieces[0], depth)
    if domain := _DOMAIN.fullmatch(pieces[-1]):
        return _family(_read_list(", ".join(pieces[:-1]), depth + 1), domain)
    if progression := _progression(pieces, depth):
        return progression
    if 1 < len(rows) < len(pieces):  # commas inside, semicolons between
        return _joined([_read_list(row, depth + 1) for row in rows], ";")
    return Unordered(_solutions(_flat([_read_list(piece, depth + 1) for piece in pieces])))


def _joined(parts: list[Node], sign: str) -> Node:
    """Parts that ``or``, ``and`` or ``;`` joins: a set if they are inequalities, else a list of answers."""
    if all(map(_is_inequality, parts)):
        return Union(tuple(parts), sign)
    family = next((part for part in parts if isinstance(part, Family)), None)
    if family is not None:  # the domain of the last member belongs to all of them
        parts = [part if isinstance(part, Family) else Family(part, family.parameter, family.domain) for part in parts]
    return Unordered(_flat(_with_groups(parts, sign)))


def _with_groups(parts: list[Node], sign: str) -> list[Node]:
    """The parts of a list, with the values of one solution as a group: ``x=1, y=4 or x=3, y=2`` has two groups.

    ``x=1, y=2 and z=3`` is one solution, and no group. ``x=1 or y=2`` is two.
    """
    names = [_assigned(part) for part in parts]
    distinct = {name for several in names for name in several}
    is_one_solution = sign != "or" and all(names) and len(distinct) == sum(map(len, names))
    are_lists = all(isinstance(part, Unordered) and not part.is_group for part in parts) and not distinct
    if are_lists or (sign == ";" and not is_one_solution):  # 1,2 and 3,4
        return [_group(part) if isinstance(part, Unordered) else part for part in parts]
    if is_one_solution or len(distinct) < 2:
        return parts
    if any(len(several) > 1 for several in names):
        return [_group(part) if several else part for part, several in zip(parts, names, strict=True)]
    is_curves = any(
        name in side for part in parts if isinstance(part, Relation) for side in part.sides[1:] for name in distinct
    )
    return parts if sign == "and" or is_curves else [_group(part) for part in parts]


def _group(part: Node) -> Unordered:
    return Unordered(part.parts if isinstance(part, Unordered) else (part,), is_group=True)


def _solutions(parts: tuple[Node, ...]) -> tuple[Node, ...]:
    """Values of two or more letters that repeat as groups: ``x=1, y=4, x=3, y=2`` are two solutions."""
    names = [name for part in parts for name in _assigned(part)]
    size = len(set(names))
    if len(names) != len(parts) or not 1 < size < len(parts) or names != names[:size] * (len(parts) // size):
        return parts
    return tuple(Unordered(parts[first : first + size], is_group=True) for first in range(0, len(parts), size))


def _assigned(node: Node) -> list[str]:
    """The letters of one or more assignments to different letters; empty for other answers and for groups."""
    parts = node.parts if isinstance(node, Unordered) and not node.is_group else (node,)
    relations = [part for part in parts if isinstance(part, Relation) and part.signs == ("=",)]
    names = [relation.sides[0] for relation in relations if _LETTER.fullmatch(relation.sides[0])]
    return names if len(set(names)) == len(parts) else []


def _family(member: Node, domain: re.Match) -> Node:
    """A family, or for inequalities and intervals the set of their numbers in the domain."""
    letter, name = domain[1] or domain[3], domain[2] or "Z"
    texts = [part.text for part in member.parts if isinstance(part, Value)] if isinstance(member, Sequence) else []
    is_interval = isinstance(member, Sequence) and not any(_has_letter(text, letter) for text in texts)
    if is_interval or _is_inequality(member):
        return Union((member, Membership(letter, Value(rf"\mathbb{{{name}}}"))), "and")
    return Family(member, letter, name)


def _has_letter(text: str, letter: str) -> bool:
    """Whether a letter stands in a text outside of commands and words."""
    return letter in re.sub(r"\\text\{[^{}]*\}|\\[A-Za-z]+", "", text)


def _residues(name: str | None, residue: str, modulus: str) -> Family:
    parameter = "n" if name == "k" or _has_letter(residue, "k") else "k"
    member = f"{modulus}{parameter}+({residue})"
    return Family(Relation((name, member), ("=",)) if name else Value(member), parameter, "Z")


def _progression(pieces: list[str], depth: int) -> Progression | None:
    if len(pieces) < 4 or not _DOTS.fullmatch(pieces[-2]) or not all(map(_WHOLE.fullmatch, pieces[:-2])):
        return None
    numbers = [int(piece) for piece in pieces[:-2]]
    steps = {after - before for before, after in pairwise(numbers)}
    return Progression(numbers[0], steps.pop(), _read_one(pieces[-1], depth + 1)) if len(steps) == 1 else None


def _permutations(node: Node, *, is_cyclic: bool) -> Node:
    if not isinstance(node, Sequence) or node.brackets != "()" or len(node.parts) > LONGEST_PERMUTED:
        raise NotUnderstoodError("permutations of something else than a short tuple")
    rotations = (node.parts[first:] + node.parts[:first] for first in range(len(node.parts)))
    orders = rotations if is_cyclic else itertools.permutations(node.parts)
    return Unordered(tuple(Sequence("()", order) for order in dict.fromkeys(orders)))


def _is_inequality(node: Node) -> bool:
    if isinstance(node, (Union, Membership)):
        return True
    return isinstance(node, Relation) and all(sign != "=" for sign in node.signs)


def _flat(parts: list[Node]) -> tuple[Node, ...]:
    flat: list[Node] = []
    for part in parts:
        flat.extend(part.parts if isinstance(part, Unordered) and not part.is_group else [part])
    return tuple(flat)


def _read_one(text: str, depth: int) -> Node:
    if (point := _POINT.match(text)) and (coordinates := _enclosed(text[point.end() :], depth)):
        return Named(point[1], coordinates, may_lack_name=True)
    if words := _WORDS_BEFORE.fullmatch(text):
        return Named(words[1].lower(), _read_one(words[2], depth + 1), may_lack_name=False)
    for operator, sign in ((r"\cup", "or"), (r"\cap", "and"), (r"\setminus", "minus"), (r"\backslash", "minus")):
        pieces = split_outside(text, {operator})
        if len(pieces) > 1 and not any(map(_relation, pieces)):
            return Union(tuple(_read_one(piece, depth + 1) for piece in pieces), sign)
    if relation := _relation(text):
        if r"\pm" in text and relation.signs == ("=",):
            return Unordered(_both_relations(text))
        if r"\pm" in text and relation.signs == ("!=",):
            return Union(_both_relations(text), "and")
        if relation.signs == ("in",):
            return Membership(relation.sides[0], _read_one(relation.sides[1], depth + 1))
        if "in" in relation.signs:
            raise NotUnderstoodError(text)
        return relation
    if text.startswith(r"\{") and (found := _enclosed(text, depth)):
        return found
    if r"\pm" in text or r"\mp" in text:
        return Unordered(_flat([_read_one(choice, depth + 1) for choice in _both_signs(text)]))
    if in_brackets := _ARRAY.fullmatch(text):
        text = in_brackets[1]
    if matrix := _MATRIX.fullmatch(text):
        return _matrix(matrix, depth)
    if cases := _CASES.fullmatch(text):
        return Unordered(tuple(_case(row, depth) for row in split_outside(cases[2], {r"\\"}) if row), is_group=True)
    if (row := _TRANSPOSED.fullmatch(text)) and isinstance(node := _enclosed(row[1], depth), Sequence):
        return Matrix(tuple((part,) for part in node.parts))
    terms = split_outside(text, {":"})
    if len(terms) > 2 and "" not in terms:
        return Sequence(":", tuple(_read_one(term, depth + 1) for term in terms))
    return _enclosed(text, depth) or Value(text)


def _matrix(matrix: re.Match, depth: int) -> Node:
    if "|" in (matrix["columns"] or ""):
        raise NotUnderstoodError(matrix[0])  # a matrix with a right-hand side
    cells = [split_outside(row, {"&"}) for row in split_outside(matrix["rows"], {r"\\"}) if row]
    if matrix[1] == "vmatrix":
        if matrix["transposed"] or any(len(row) != len(cells) for row in cells) or len(cells) > LARGEST_DETERMINANT:
            raise NotUnderstoodError(matrix[0])
        return Value(_determinant(cells))
    rows = tuple(tuple(_read_one(cell, depth + 1) for cell in row) for row in cells)
    if not matrix["transposed"]:
        return Matrix(rows)
    if len(set(map(len, rows))) > 1:
        raise NotUnderstoodError(matrix[0])
    return Matrix(tuple(zip(*rows, strict=True)))


def _determinant(cells: list[list[str]]) -> str:
    """The expansion of a determinant by its first row, as LaTeX."""
    if len(cells) == 1:
        return f"({cells[0][0]})"
    terms = []
    for column, cell in enumerate(cells[0]):
        minor = _determinant([row[:column] + row[column + 1 :] for row in cells[1:]])
        terms.append(rf"{'-' if column % 2 else '+'}({cell}) \cdot ({minor})")
    return "".join(terms).removeprefix("+")


def _both_signs(text: str) -> tuple[str, str]:
    signs = [text.count(r"\pm"), text.count(r"\mp")]
    if max(signs) > 1 or (sum(signs) > 1 and "," in text):
        raise NotUnderstoodError(text)  # whether the signs go together is not said
    first = text.replace(r"\pm", "+").replace(r"\mp", "-")
    second = text.replace(r"\pm", "-").replace(r"\mp", "+")
    return re.sub(r"(^|[(=,])\s*\+\s*", r"\1", first), second


def _relation(text: str) -> Relation | None:
    return _relation_of(text) if any(token in _SIGNS for token in tokens(text)) else None


def _relation_of(text: str) -> Relation | None:
    sides, signs = _split(text, _SIGNS)
    if "" in sides or any(side.endswith(r"\not") for side in sides):
        raise NotUnderstoodError(text)
    return Relation(tuple(sides), tuple(_SIGNS[sign] for sign in signs)) if signs else None


def _both_relations(text: str) -> tuple[Relation, ...]:
    return tuple(relation for choice in _both_signs(text) if (relation := _relation_of(choice)))


def _case(row: str, depth: int) -> Node:
    value, *conditions = split_outside(row, {"&"})
    value = value.rstrip(",; ")
    if not conditions:
        pieces = split_outside(value, {","})
        value, conditions = pieces[0], pieces[1:]
    condition = _IN_TEXT.sub(lambda found: _WORD.sub(lambda word: word[0].lower(), found[1]), ",".join(conditions))
    condition = re.sub(r"\b(?:if|when|for|is|are|where)\b", "", condition, flags=re.IGNORECASE)
    condition = re.sub(r"[\s$]|\\[ ,;]", "", condition).strip(".,;")
    return Case(_read_one(value, depth + 1), condition) if condition else _read_one(value, depth + 1)


def _enclosed(text: str, depth: int) -> Node | None:
    """A tuple, an interval or a set; None if the brackets at both ends do not belong together."""
    found = tokens(text)
    pairs = {"(": ")]", "[": "])", r"\{": (r"\}",), r"\langle": (r"\rangle",)}
    if len(found) < 2 or found[0] not in pairs or found[-1] not in pairs[found[0]]:
        return None
    level = 0
    for number, token in enumerate(found):
        level += token in ("(", "[", "{", r"\{", r"\langle")
        level -= token in (")", "]", "}", r"\}", r"\rangle")
        if not level and number < len(found) - 1:
            return None
    inner = "".join(found[1:-1]).strip()
    if found[0] == r"\{":
        builder = split_outside(inner, {":", "|", r"\mid"})
        if len(builder) == 2 and (domain := _BUILDER.fullmatch(builder[0])):
            if not _has_letter(builder[1], domain[1]):
                raise NotUnderstoodError(text)  # a condition on another letter
            condition = _read_list(builder[1], depth + 1)
            return Union((condition, Value(r"\mathbb{Z}")), "and") if domain[2] == "Z" else condition
        if len(builder) > 1 or not inner:
            raise NotUnderstoodError(text)
        if _GROUPED.fullmatch(inner) and not _ZEROS.search(inner):  # {1,100} has two elements, {1,000} may have one
            return Unordered(tuple(_read_one(part, depth + 1) for part in inner.split(",")), is_group=True)
        node = _read_list(inner, depth + 1)
        return _group(node) if isinstance(node, Unordered) and not node.is_group else Unordered((node,), is_group=True)
    parts = split_outside(inner, {",", ";"})
    if len(parts) < 2 or "" in parts:
        return None
    brackets = "()" if found[0] == r"\langle" else found[0] + found[-1]
    if found[0] == r"\langle":
        return Matrix(tuple((_read_one(part, depth + 1),) for part in parts))
    return Sequence(brackets, tuple(_read_one(part, depth + 1) for part in parts))
