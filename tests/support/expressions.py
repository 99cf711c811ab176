r"""Random expressions, each written in several notations, and expressions that differ from them by one node.

A tree is a number (``int``), a letter (``str``) or a tuple of an operation and its operands. Values are computed here
by complex floating-point numbers, without sympy, so that they do not depend on what they test.
"""

from __future__ import annotations

import cmath
import math
import random
from typing import Any

Tree = Any

LETTERS = ("x", "y", "R", "r", "n", "a")
_BINARY = ("+", "-", "*", "/")
_UNARY = ("sqrt", "sin", "cos", "ln", "neg", "abs", "square", "cube")


def drawn(rng: random.Random, depth: int = 3) -> Tree:
    """A tree of at most ``depth`` operations in a row."""
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(LETTERS) if rng.random() < 0.45 else ("pi",) if rng.random() < 0.1 else rng.randint(1, 12)
    if rng.random() < 0.65:
        return (rng.choice(_BINARY), drawn(rng, depth - 1), drawn(rng, depth - 1))
    return (rng.choice(_UNARY), drawn(rng, depth - 1))


def written(tree: Tree, rng: random.Random) -> str:
    """The tree as LaTeX, in the notation of programs, or with Unicode signs; sums and products in any order."""
    return _written(tree, rng.choice(("latex", "plain", "unicode")), rng)


def _written(tree: Tree, style: str, rng: random.Random) -> str:
    if not isinstance(tree, tuple):
        return str(tree)
    name, *operands = tree
    if name == "pi":
        return {"latex": r"\pi", "plain": "pi", "unicode": "π"}[style]
    parts = [_written(operand, style, rng) for operand in operands]
    atoms = [not isinstance(operand, tuple) or operand == ("pi",) for operand in operands]
    wrap = r"\left({}\right)" if style == "latex" and rng.random() < 0.5 else "({})"
    closed = [part if atom else wrap.format(part) for part, atom in zip(parts, atoms, strict=True)]
    if name in "+*" and rng.random() < 0.5:
        parts, closed = parts[::-1], closed[::-1]
    if name in "+-":
        return f"{closed[0]} {'−' if style == 'unicode' and name == '-' else name} {closed[1]}"
    if name == "*":
        sign = {"latex": (r" \cdot ", r"\times "), "plain": ("*", " * "), "unicode": ("·", "×")}[style]
        return closed[0] + rng.choice(sign) + closed[1]
    if name == "/":
        return (
            rf"{rng.choice((chr(92) + 'frac', chr(92) + 'dfrac'))}{{{parts[0]}}}{{{parts[1]}}}"
            if style == "latex"
            else (f"({closed[0]})/({closed[1]})")
        )
    (part,), (inner,) = parts, closed
    if name == "sqrt":
        return {"latex": rf"\sqrt{{{part}}}", "plain": f"sqrt({part})", "unicode": rf"\sqrt{{{part}}}"}[style]
    if name in ("sin", "cos", "ln"):
        return f"{name}({part})" if style == "plain" else rf"\{name}({part})"
    if name == "neg":
        return f"-{inner}"
    if name == "abs":
        return {"latex": rf"\left|{part}\right|", "plain": f"abs({part})", "unicode": rf"\lvert {part} \rvert"}[style]
    power = {"square": 2, "cube": 3}[name]
    return {"latex": f"{inner}^{{{power}}}", "plain": f"{inner}**{power}", "unicode": inner + {2: "²", 3: "³"}[power]}[
        style
    ]


def changed(tree: Tree, rng: random.Random) -> Tree:
    """The tree with one node changed: a number, a letter, an operation, or two operands swapped."""
    if not isinstance(tree, tuple):
        if isinstance(tree, int):
            return tree + rng.choice((-1, 1))
        return rng.choice([letter for letter in LETTERS if letter != tree])
    name, *operands = tree
    if not operands:
        return 3
    if rng.random() < 0.5:
        place = rng.randrange(len(operands))
        return (name, *operands[:place], changed(operands[place], rng), *operands[place + 1 :])
    if name in "-/" and rng.random() < 0.5:
        return (name, *operands[::-1])
    same_kind = _BINARY if name in _BINARY else _UNARY
    return (rng.choice([other for other in same_kind if other != name]), *operands)


def different(one: Tree, other: Tree) -> bool:
    """Whether two trees clearly differ at some of 40 points at which both are real."""
    rng = random.Random(0)
    for _ in range(40):
        point = {letter: rng.uniform(0.3, 4) * rng.choice((1, 1, -1)) for letter in LETTERS}
        values = [_value(tree, point) for tree in (one, other)]
        if None not in values and abs(values[0] - values[1]) > 1e-9 + 1e-6 * max(map(abs, values)):
            return True
    return False


def _value(tree: Tree, point: dict[str, float]) -> float | None:
    """The real value at a point; None outside the domain."""
    if isinstance(tree, int):
        return float(tree)
    if isinstance(tree, str):
        return point[tree]
    name, *operands = tree
    if name == "pi":
        return math.pi
    values = [_value(operand, point) for operand in operands]
    if None in values:
        return None
    a, b = values[0], values[-1]
    try:
        result = {
            "+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b,
            "sqrt": lambda: cmath.sqrt(a),
            "sin": lambda: math.sin(a), "cos": lambda: math.cos(a), "ln": lambda: cmath.log(a), "neg": lambda: -a,
            "abs": lambda: abs(a), "square": lambda: a**2, "cube": lambda: a**3,
        }[name]()  # fmt: skip
    except (ZeroDivisionError, ValueError, OverflowError):
        return None
    return None if isinstance(result, complex) and abs(result.imag) > 0 else float(complex(result).real)
