r"""Parses the text of one value, and compares two values: numbers, expressions and words.

Only the comparison process (``maths_worker.py``) imports this module. ``compare.py`` says which values are equal.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig
from latex2sympy2_extended.math_normalization import normalize_latex as parsers_latex

from verl_gsd.tasks.structure import NotUnderstoodError
from verl_gsd.tasks.units import NOT_A_UNIT

#: Digits of an evaluation, and the largest relative difference of equal values.
DIGITS, NEAREST = 100, sympy.Float("1e-80", 100)
#: The same for values that agree so far but may differ in a part that is tiny beside the rest, as in e^300 + 1.
FINE_DIGITS, FINEST = 2500, sympy.Float("1e-2000", 2500)
#: The largest relative and absolute difference if one value is a decimal.
NEAR, ROUNDED = sympy.Float("1e-5"), 6
#: Points in the domains of both at which two expressions are compared, how few may do, and how many points are tried.
POINTS, ENOUGH, TRIED = 10, 4, 40
#: The sizes of coordinates in units of 1/1009: below 1 and above 1. Large ones follow for functions with a bend, and
#: for expressions that are real only there.
_BANDS = ((20, 1000), (1010, 5000), (5000, 50_000), (50_000, 10**7))
#: The whole numbers at which expressions are compared, such as those with binomial coefficients.
_WHOLE_BANDS = ((1, 9), (1, 9), (10, 30), (31, 99))
#: How far out functions with a bend are compared.
_FARTHEST = 10**100
#: The largest exponent of an exact power.
_LARGEST_EXACT_POWER = 10_000
_EVALUATED = (sympy.Sum, sympy.Product, sympy.Integral, sympy.Derivative, sympy.Limit)
_BENT = (sympy.Abs, sympy.Max, sympy.Min, sympy.floor, sympy.ceiling, sympy.sign)
_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
_DECIMAL = re.compile(r"[-+]?\s*[0-9]*\.[0-9]+(?:\s*\\?%)?")
_WORDS = re.compile(r"(?:\\text\{[^{}]*\}|[\s,.'-])+")
_BARE_WORDS = re.compile(r"[A-Za-z]{2,}(?:[ -][A-Za-z]+)*|[A-Z](?:\s*[A-Z])+")
#: Words whose case means nothing: three or more letters of which only the first may be a capital, and some others.
_ORDINARY = re.compile(
    r"(?<![A-Za-z])(?:[A-Z][a-z]{2,}|No|It|Is|In|Of|On|At|To|By|If|An"
    r"|YES|NO|TRUE|FALSE|EVEN|ODD|NONE|ALL|ANY|BOTH|NEITHER|NEVER|ALWAYS|NORTH|SOUTH|EAST|WEST)(?![A-Za-z])"
)
#: A word that nobody means as a product of its letters, although the parser of LaTeX reads it as one.
_HARDLY_A_PRODUCT = re.compile(r"(?<![a-z])(?:[a-z]{4,}|[a-z][aeiou][a-z]|[a-z]{2}e|no|all|any|odd)(?![a-z])", re.I)
#: Three or more capitals: the order of letters often matters, as in a sequence of coins.
_CAPITALS = re.compile(r"[A-Z](?:\s*[A-Z]){2,}")
_UNIT = re.compile(r"(?<=[0-9})a-z])\s*\\text\{[^{}]*\}(?:\^\s*(?:[0-9]|\{[0-9]\}))?$")
_ARGUMENT = r"(?:([0-9A-Za-z]|\\(?:pi|alpha|beta|gamma|theta|phi|lambda)(?![A-Za-z]))|(?=\{))"
_FRACTION = re.compile(rf"\\frac\s*{_ARGUMENT}\s*{_ARGUMENT}")
#: What the parser ignores or reads as something else.
_MISREAD = re.compile(
    "|".join(
        (
            r"(?<![_0-9.])[0-9.]+\s+[0-9]",  # two numbers side by side
            r"!\s*!",  # a double factorial
            r"(?:[0-9]|^)\s*'",  # minutes of an angle, feet
            r"\\begin|\\[a-z]*dots|[?&]|[0-9]_|\\equiv|[^\x00-\x7f]",
            r"\\(?:approx|simeq|sim|angle|triangle|overline|vec|hat|gcd|lcm|partial|lim|to)(?![a-z])",
            r"\^\s*\{?\s*(?:T|\\top|\\intercal|\*|\\ast|\\prime|\\complement)\b",  # not powers
            r"\\frac\{d[a-zA-Z]?\}\{d",  # a derivative
            r"(?<!\\sqrt)(?<!\\sqrt )\[[^()\[\]]*\]",  # brackets of Gauss
            r"\\mathbf\{[^{}]*\}\s*\\times",  # a cross product
            r"[A-Z]\s*\^\s*\{\s*-\s*1\s*\}\s*[A-Z]",  # matrices, which do not commute
            r"[A-Z]\s*[A-Z]\s*\^\s*\{\s*-\s*1\s*\}",
        )
    )
)
_DEGREE = re.compile(r"\s*\^\s*(?:\\circ(?![a-z])|\{\s*\\circ\s*\})|°")
_ARITHMETIC = re.compile(r"\\(?:frac|cdot|times|pm|mp|left|right|div)(?![A-Za-z])")
_EXTREME = re.compile(r"\\(?:max|min)(?![a-z])")
_SUM = re.compile(r"\\(?:sum|prod)(?![a-z])")
_UPPER_I = re.compile(r"(?<![A-Za-z\\{])I(?![A-Za-z_}])")
_PRIME = re.compile(r"([A-Za-z])('+)")


def same_value(answer: str, truth: str) -> bool:
    """Whether two expressions are equal. A unit or another word after them does not count; words equal words."""
    in_words = _same_words(answer, truth)
    if in_words is not None:
        return in_words
    if "%" in answer or "%" in truth:
        return _same_percentages(answer, truth)
    for degrees, radians in ((answer, truth), (truth, answer)):
        if r"\circ" in degrees and r"\circ" not in radians and r"\pi" in radians:
            angle = exact(parsed(degrees))
            if not angle.free_symbols:
                return same_numbers(angle * sympy.pi / 180, exact(parsed(radians)))
    a, b = exact(parsed(answer)), exact(parsed(truth))
    if a.free_symbols or b.free_symbols:
        return same_expressions(a, b)
    return same_numbers(a, b, decimal=any(_DECIMAL.fullmatch(text.strip()) for text in (answer, truth)))


def _same_words(answer: str, truth: str) -> bool | None:
    r"""Whether two answers are the same words, which may stand without ``\text``; None for mathematics."""
    words, other_words = _words(answer), _words(truth)
    if words is None and other_words is None:
        return _same_bare_words(answer.strip(), truth.strip())
    if words is None and _BARE_WORDS.fullmatch(answer.strip()):
        words = _in_one_case(answer.strip())
    if other_words is None and _BARE_WORDS.fullmatch(truth.strip()):
        other_words = _in_one_case(truth.strip())
    return words == other_words


def _same_bare_words(answer: str, truth: str) -> bool | None:
    r"""Whether two texts without ``\text`` are the same words apart from case; None for mathematics.

    ``Ab`` and ``ab`` are products of letters, and different. A text therefore counts as words if one of its words is
    hardly a product.

    Raises:
        NotUnderstoodError: the texts have the same letters in another order, such as ``HTH`` and ``HHT`` or ``saw`` and
            ``was``. As words or sequences they differ; as products they are equal.
    """
    if not _BARE_WORDS.fullmatch(answer) or not _BARE_WORDS.fullmatch(truth):
        return None
    is_words = _HARDLY_A_PRODUCT.search(answer) or _HARDLY_A_PRODUCT.search(truth)
    if is_words and _in_one_case(answer) == _in_one_case(truth):
        return True
    letters, other_letters = (re.sub(r"\s+", "", text) for text in (answer, truth))
    has_order = is_words or _CAPITALS.fullmatch(answer)
    if has_order and letters != other_letters and sorted(letters) == sorted(other_letters):
        raise NotUnderstoodError(answer)
    return None


def _words(text: str) -> str | None:
    r"""A text that is only words, with ordinary words in lower case; None for mathematics."""
    if not _WORDS.fullmatch(text) or r"\text" not in text:
        return None
    words = re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r"\1", text)).strip(" .,")
    return _in_one_case(words)


def _in_one_case(words: str) -> str:
    """Words with the ordinary ones in lower case. Letters and symbols such as ``CO``, ``mW``, ``ABC`` keep theirs."""
    return _ORDINARY.sub(lambda word: word[0].lower(), words)


def _same_percentages(answer: str, truth: str) -> bool:
    if r"\text" in answer or r"\text" in truth:
        return False  # a percentage and a quantity with a unit
    values = [real_number(re.sub(r"\s*\\?%", "", text)) for text in (answer, truth)]
    percents = ["%" in text for text in (answer, truth)]
    if None in values:
        return False
    if same_numbers(*values):
        return True
    shares = [value / (100 if percent else 1) for value, percent in zip(values, percents, strict=True)]
    return not all(percents) and same_numbers(*shares)


@functools.lru_cache(1024)
def parsed(text: str) -> Any:
    r"""The expression of a value, with ``i`` as the imaginary unit.

    Raises:
        NotUnderstoodError: it is not an expression.
    """
    text = re.sub(r"\\\$|\$", "", text).strip()
    if unit := _UNIT.search(text):
        if any(map(NOT_A_UNIT.fullmatch, re.findall("[A-Za-z]+", unit[0])[1:])):
            raise NotUnderstoodError(text)
        text = text[: unit.start()]
    text = _without_degrees(text)
    text = _FRACTION.sub(lambda f: "\\frac" + "".join(f"{{{part}}}" for part in f.groups() if part), text)
    text = _PRIME.sub(lambda prime: rf"{prime[1]}_{{prime{len(prime[2])}}}", text)
    text = _UPPER_I.sub("Y_{I}", text)
    if re.fullmatch(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?", text):
        text = text.replace(",", "")
    if (
        not text
        or _MISREAD.search(text)
        or r"\text" in text
        or ("=" in text and not _SUM.search(text))
        or (re.search(r"[0-9],[0-9]", text) and not _EXTREME.search(text))
    ):
        raise NotUnderstoodError(text)
    try:
        expression = latex2sympy(
            parsers_latex(text, _NORMALIZATION), is_real=True, normalization_config=None, conversion_config=_CONVERSION
        )
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # the parser raises what its grammar happens to raise
        raise NotUnderstoodError(text) from error
    if not isinstance(expression, sympy.Expr):
        raise NotUnderstoodError(text)
    return expression.subs({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})


def _without_degrees(text: str) -> str:
    r"""A text without signs of degrees, if it has only numbers: ``180^\circ - 2 \cdot 30^\circ`` is 120.

    Beside letters, functions and powers a degree is not 1. There the sign becomes a letter of its own.
    """
    bare = _DEGREE.sub("", text)
    if bare == text or not re.search(r"[A-Za-z^]", _ARITHMETIC.sub("", bare)):
        return bare
    return _DEGREE.sub(r" \\cdot D_{deg} ", text)


def exact(expression: Any) -> Any:
    """An expression with its decimals as fractions."""
    return expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})


def real_number(text: str) -> Any:
    try:
        value = exact(parsed(text)).doit()
    except NotUnderstoodError:
        return None
    return value if isinstance(value, sympy.Expr) and not value.free_symbols and value.is_extended_real else None


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
        return bool(near(x, y, NEAR)) and bool(abs(x - y) <= sympy.Float(10) ** -ROUNDED)
    return bool(near(x, y, NEAREST)) and _are_finely_near(a, b, {})


def near(a: Any, b: Any, tolerance: Any) -> bool:
    return bool(sympy.Abs(sympy.N(a - b, DIGITS)) <= tolerance * max(sympy.Abs(a), sympy.Abs(b)))


def _are_finely_near(a: Any, b: Any, point: dict[Any, Any]) -> bool:
    """Whether two expressions agree to ``FINE_DIGITS`` digits at a point, where they agree to ``DIGITS`` digits."""
    if any(value.has(*_EVALUATED) for value in (a, b)):
        return True  # their digits cost too much
    try:
        x, y = (_value(value, point, FINE_DIGITS) for value in (a, b))
    except _OutsideDomainError:
        x, y = (sympy.N(value.subs(point), FINE_DIGITS) for value in (a, b))
    return bool(sympy.Abs(sympy.N(x - y, FINE_DIGITS)) <= FINEST * max(sympy.Abs(x), sympy.Abs(y)))


def same_expressions(a: Any, b: Any) -> bool:
    """Whether two expressions with letters agree wherever both are real."""
    if a.free_symbols != b.free_symbols:
        a, b = sympy.simplify(a.doit()), sympy.simplify(b.doit())
        if a.free_symbols != b.free_symbols:
            return False
    same_domain = a.has(sympy.Abs) != b.has(sympy.Abs)
    compared = 0
    for point, x, y in values_and_points(a, b):
        if x is not None and y is not None:
            if not compared and not _are_finely_near(a, b, point):
                return False
            compared += 1
            if not near(x, y, NEAREST):
                return False
        elif same_domain and (x is None) != (y is None):
            return False
    return compared >= ENOUGH


def differ_by_constant(a: Any, b: Any) -> bool:
    """Whether the difference of two expressions with letters is the same wherever both are real.

    If only one of them has bars of absolute value, both must be real at the same points.
    """
    values = list(values_at_points(a, b))
    if a.has(sympy.Abs) != b.has(sympy.Abs) and any((x is None) != (y is None) for x, y in values):
        return False
    differences = [x - y for x, y in values if x is not None and y is not None]
    return len(differences) >= ENOUGH and all(_is_near_zero(d - differences[0], differences[0]) for d in differences)


def _is_near_zero(error: Any, size: Any) -> bool:
    return bool(sympy.Abs(error) <= NEAREST * max(sympy.Abs(size), sympy.Integer(1)))


def values_at_points(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """The values of ``values_and_points`` alone."""
    return ((x, y) for _, x, y in values_and_points(a, b))


def values_and_points(a: Any, b: Any) -> Iterator[tuple[dict[Any, Any], Any, Any]]:
    """Points and the values of two expressions there, None outside their domains, until ``POINTS`` points have both.

    The points are the same in each process, so that a verdict is the same. They lie on both sides of 0 and of 1, and
    for functions with a bend, or if few points are in both domains, also far out: beyond all numbers in the expressions
    for functions with a bend. The first has only positive coordinates and the second only negative ones. Whole numbers
    follow if too few other points are in both domains.
    """
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    whole = any(e.has(sympy.factorial, sympy.binomial, sympy.Sum, sympy.Product) for e in (a, b))
    bent = any(e.has(*_BENT) for e in (a, b))
    draw = random.Random(0)
    found = 0
    far = 1009 * max(10**4, *map(_largest_number, (a, b))) if bent else 0
    bent_bands = (*_BANDS, (2 * far, 1000 * far), (2 * far, 1000 * far))
    for number in range(2 * TRIED):
        if whole or number >= TRIED:
            point = {symbol: sympy.Integer(draw.randint(*draw.choice(_WHOLE_BANDS))) for symbol in symbols}
        else:
            signs = [1 if number == 0 else -1 if number == 1 else draw.choice((1, -1)) for _ in symbols]
            bands = bent_bands if bent else _BANDS if number >= TRIED // 2 else _BANDS[:2]
            sizes = [sympy.Rational(draw.randint(*draw.choice(bands)), 1009) for _ in symbols]
            point = {symbol: sign * size for symbol, sign, size in zip(symbols, signs, sizes, strict=True)}
        x, y = _value_or_none(a, point), _value_or_none(b, point)
        found += x is not None and y is not None
        yield point, x, y
        if found == (2 * POINTS if bent else POINTS) or (number == TRIED - 1 and found >= ENOUGH):
            return


def _largest_number(expression: Any) -> int:
    """The largest absolute value of the numbers in an expression, rounded up, at most ``_FARTHEST``."""
    parts = [sympy.N(part) for part in sympy.preorder_traversal(expression) if part.is_number]
    sizes = [abs(part) for part in parts if part.is_real and part.is_finite]
    return max((int(size) + 1 if size < _FARTHEST else _FARTHEST for size in sizes), default=0)


class _OutsideDomainError(ValueError):
    """An expression is not real at a point, or not defined."""


def _value_or_none(expression: Any, point: dict[Any, Any]) -> Any:
    try:
        return _value(expression, point)
    except _OutsideDomainError:
        return None


def _value(expression: Any, point: dict[Any, Any], digits: int = DIGITS) -> Any:
    """The value at a point, computed in the real numbers, or in the complex ones if ``i`` stands in the expression."""
    if expression.has(*_EVALUATED):
        value = expression.subs(point).doit()
        if value.has(*_EVALUATED):
            raise _OutsideDomainError
        return _checked(sympy.N(value, digits), is_real=not expression.has(sympy.I))
    if expression.has(sympy.I):
        return _checked(sympy.N(expression.subs(point), digits), is_real=False)
    return _real_value(expression, point, digits)


def _real_value(node: Any, point: dict[Any, Any], digits: int) -> Any:
    if node.is_Symbol:
        return sympy.Float(point[node], digits) if not point[node].is_Integer else point[node]
    if node.is_Rational:
        return node
    if not node.args:
        return _checked(sympy.N(node, digits), is_real=True)
    if node.is_Pow:
        base, exponent = _real_value(node.base, point, digits), _real_value(node.exp, point, digits)
        if not base and exponent <= 0:
            raise _OutsideDomainError
        if base < 0 and not exponent.is_Integer:
            if not exponent.is_Rational or exponent.q % 2 == 0:
                raise _OutsideDomainError
            root = sympy.N(-base, digits) ** exponent  # a root of odd degree is real
            return -root if exponent.p % 2 else root
        if exponent.is_Integer and abs(exponent) > _LARGEST_EXACT_POWER:
            base = sympy.N(base, digits)
        return _checked(sympy.N(base**exponent, digits), is_real=True)
    values = [_real_value(part, point, digits) for part in node.args]
    exact = node.is_Mul or node.is_Add
    value = node.func(*values)
    return value if exact and value.is_Rational else _checked(sympy.N(value, digits), is_real=True)


def _checked(value: Any, *, is_real: bool) -> Any:
    if not value.is_number or value.has(sympy.nan, sympy.zoo, sympy.oo) or (is_real and not value.is_real):
        raise _OutsideDomainError
    return value
