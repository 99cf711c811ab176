"""Distinct problems in the style of MATH, to measure how often different problems are taken for copies.

A problem is a template with numbers. Two problems are distinct if their templates or their numbers differ; other names
alone make no other problem. As in MATH, several templates differ in one word (sum and product, greatest and least).
"""

import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass

#: ``{a}`` to ``{f}`` are numbers, ``{who}`` is a name and ``{thing}`` a plural noun.
TEMPLATES = (
    # Algebra
    r"Solve for $x$: ${a}x + {b} = {c}$.",
    r"What is the value of $x$ in the equation ${a}x - {b} = {c}x + {d}$?",
    r"Find the sum of the roots of the quadratic equation $x^2 - {a}x + {b} = 0$.",
    r"Find the product of the roots of the quadratic equation $x^2 - {a}x + {b} = 0$.",
    r"Let $f(x) = {a}x^2 - {b}x + {c}$. What is $f({d})$?",
    r"If $f(x) = {a}x + {b}$ and $g(x) = {c}x - {d}$, what is $f(g({e}))$?",
    r"For what value of $k$ does the equation ${a}x^2 + kx + {b} = 0$ have exactly one real solution?",
    r"The line $y = {a}x + {b}$ intersects the $x$-axis at point $P$. What is the $x$-coordinate of $P$?",
    r"What is the distance between the points $({a}, {b})$ and $({c}, {d})$? Express your answer in "
    r"simplest radical form.",
    r"Find the midpoint of the segment with endpoints $({a}, {b})$ and $({c}, {d})$.",
    r"Find the slope of the line through the points $({a}, {b})$ and $({c}, {d})$.",
    r"Simplify $\sqrt{{{a}}} + \sqrt{{{b}}}$.",
    r"Expand the product $(x + {a})(x - {b})$.",
    r"Compute $\dfrac{{{a}}}{{{b}}} \div \dfrac{{{c}}}{{{d}}}$.",
    r"Suppose $a$ and $b$ are positive numbers such that $ab = {a}$ and $a + b = {b}$. What is $a^2 + b^2$?",
    r"What is the greatest integer value of $x$ such that ${a}x - {b} < {c}$?",
    r"What is the least integer value of $x$ such that ${a}x - {b} > {c}$?",
    r"The sequence is arithmetic with first term {a} and common difference {b}. What is the {c}th term?",
    r"The sequence is geometric with first term {a} and common ratio {b}. What is the {c}th term?",
    r"If $\log_{a} x = {b}$, find $x$.",
    r"A function satisfies $f(x + {a}) = f(x) + {b}$ for all real $x$ and $f(0) = {c}$. What is $f({d})$?",
    # Counting and probability
    r"In how many ways can {a} different books be arranged on a shelf if {b} of them must stay together?",
    r"A bag contains {a} red balls and {b} blue balls. {c} balls are drawn at random without replacement. What is the "
    r"probability that all of them are red?",
    r"A bag contains {a} red balls and {b} blue balls. {c} balls are drawn at random without replacement. What is the "
    r"probability that none of them are red?",
    r"How many {a}-digit positive integers have digits whose sum is {b}?",
    r"A fair coin is flipped {a} times. What is the probability that exactly {b} of the flips are heads?",
    r"A fair coin is flipped {a} times. What is the probability that at least {b} of the flips are heads?",
    r"Compute $\binom{{{a}}}{{{b}}}$.",
    r"How many ways are there to put {a} distinguishable balls into {b} distinguishable boxes?",
    r"How many ways are there to put {a} indistinguishable balls into {b} distinguishable boxes?",
    r"A committee of {a} people is to be chosen from {b} men and {c} women. How many committees have more "
    r"women than men?",
    r"Two numbers are chosen at random, with replacement, from the set of integers from {a} to {b}. What is the "
    r"probability that their sum is even? Express your answer as a common fraction.",
    # Geometry
    r"The sides of a triangle have lengths ${a}$, ${b}$ and ${c}$. What is its area?",
    r"The sides of a triangle have lengths ${a}$, ${b}$ and ${c}$. What is its perimeter?",
    r"In triangle $ABC$, $AB = {a}$, $BC = {b}$ and $\angle B = {c}^\circ$. Find the area of triangle $ABC$.",
    r"A circle has radius {a} cm. What is the number of square centimeters in its area? Express your "
    r"answer in terms of "
    r"$\pi$.",
    r"A circle has radius {a} cm. What is the number of centimeters in its circumference? Express your "
    r"answer in terms of "
    r"$\pi$.",
    r"A right circular cone has base radius {a} and height {b}. What is its volume? Express your answer "
    r"in terms of $\pi$.",
    r"A rectangular box has sides of length {a}, {b} and {c}. Find the length of its space diagonal.",
    r"A regular polygon has {a} sides. What is the number of degrees in each interior angle?",
    r"A regular polygon has {a} sides. What is the number of degrees in each exterior angle?",
    r"Point $D$ lies on side $\overline{{BC}}$ of triangle $ABC$ such that $BD = {a}$, $DC = {b}$ and $AB = {c}$. If "
    r"$\overline{{AD}}$ bisects angle $A$, find $AC$.",
    # Number theory
    r"What is the remainder when ${a}^{{{b}}}$ is divided by {c}?",
    r"What is the units digit of ${a}^{{{b}}}$?",
    r"Find the greatest common divisor of {a} and {b}.",
    r"Find the least common multiple of {a} and {b}.",
    r"How many positive divisors does {a} have?",
    r"What is the sum of the positive divisors of {a}?",
    r"Convert ${a}_{{10}}$ to base {b}.",
    r"How many integers between {a} and {b} are divisible by {c}?",
    r"Find the smallest positive integer $n$ such that $n \equiv {a} \pmod{{{b}}}$ and $n \equiv {c} \pmod{{{d}}}$.",
    r"Find the largest three-digit integer that is divisible by both {a} and {b}.",
    # Prealgebra
    r"{who} has {a} {thing}. After giving {b} of them to a friend and buying {c} more, how many {thing} "
    r"does {who} have?",
    r"{who} buys {a} {thing} at \${b} each and pays with a \${c} bill. How many dollars of change does {who} receive?",
    r"A train travels {a} miles in {b} hours. At this rate, how many miles does it travel in {c} hours?",
    r"{who} scored {a}, {b}, {c} and {d} points in four games. What is the mean of the scores?",
    r"{who} scored {a}, {b}, {c} and {d} points in four games. What is the median of the scores?",
    r"The price of a {thing} set is {a} dollars. It is reduced by {b}\%, and then increased by {c}\%. "
    r"What is the final "
    r"price in dollars?",
    r"In a class of {a} students, {b} play soccer, {c} play tennis and {d} play both. How many students play neither?",
    r"What is ${a} \times {b} - {c}$?",
    r"What is ${a} + {b} \times {c}$?",
    r"A store sold {a},{b}00 {thing} last year and {c},{d}00 this year. How many more {thing} were sold this year?",
    # Intermediate algebra and precalculus
    r"Let $x$, $y$ and $z$ be positive real numbers such that $x + y + z = {a}$. Find the maximum value "
    r"of $x^{b} y^{c} z$.",
    r"Let $x$, $y$ and $z$ be positive real numbers such that $x + y + z = {a}$. Find the minimum value "
    r"of $\frac{{{b}}}{{x}} "
    r"+ \frac{{{c}}}{{y}} + \frac{{1}}{{z}}$.",
    r"The polynomial $p(x)$ leaves a remainder of {a} when divided by $x - {b}$, and a remainder of {c} "
    r"when divided by "
    r"$x - {d}$. Find the remainder when $p(x)$ is divided by $(x - {b})(x - {d})$.",
    r"The ratio of the areas of two squares is $\frac{{{a}}}{{{b}}}$. After rationalizing the "
    r"denominator, the ratio of "
    r"their side lengths is $\frac{{m}}{{n}}$, where $m$ and $n$ are relatively prime positive integers. Find $m + n$.",
    r"The probability that {a} points chosen on a circle lie on an arc of {b} degrees is "
    r"$\frac{{m}}{{n}}$, where $m$ and $n$ "
    r"are relatively prime positive integers. Find $m + n$.",
    r"Find the number of complex numbers $z$ such that $|z| = {a}$ and $z^{{{b}}}$ is real.",
    r"Let $\mathbf{{v}} = \begin{{pmatrix}} {a} \\ {b} \end{{pmatrix}}$ and $\mathbf{{w}} = "
    r"\begin{{pmatrix}} {c} \\ {d} "
    r"\end{{pmatrix}}$. Find the projection of $\mathbf{{v}}$ onto $\mathbf{{w}}$.",
    r"Compute $\sin {a}^\circ + \cos {b}^\circ$.",
    r"Find the period of the graph of $y = {a} \sin \left( {b}x + \frac{{\pi}}{{{c}}} \right)$.",
    r"Find the amplitude of the graph of $y = {a} \sin \left( {b}x + \frac{{\pi}}{{{c}}} \right)$.",
    r"The roots of $x^3 - {a}x^2 + {b}x - {c} = 0$ are $r$, $s$ and $t$. Find $\frac{{1}}{{rs}} + \frac{{1}}{{st}} + "
    r"\frac{{1}}{{tr}}$.",
    r"Suppose that $w$ and $z$ are complex numbers with $wz = {a} - {b}i$ and $|w| = {c}$. What is $|z|$?",
)
NAMES = ("Ann", "Bela", "Carlos", "Dina", "Emil", "Fatima", "Goran", "Hana", "Ivan", "June")
NUMBER_WORDS = ("one", "two", "three", "four", "five", "six", "seven")
THINGS = ("apples", "pencils", "stamps", "marbles", "tickets", "cookies", "books", "coins")


@dataclass(frozen=True)
class MathProblem:
    """A problem. Two with equal ``template`` and ``numbers`` are the same problem."""

    template: int
    numbers: tuple[int, ...]
    text: str


def draw_problem(rng: random.Random) -> MathProblem:
    number = rng.randrange(len(TEMPLATES))
    template = TEMPLATES[number]
    slots = sorted({slot for _, slot, _, _ in string.Formatter().parse(template) if slot and len(slot) == 1})
    numbers = tuple(rng.choice((rng.randint(2, 12), rng.randint(10, 99), rng.randint(100, 999))) for _ in slots)
    values = dict(zip(slots, numbers, strict=True))
    text = template.format(**values, who=rng.choice(NAMES), thing=rng.choice(THINGS))
    return MathProblem(number, numbers, text)


def draw_distinct(count: int, seed: int) -> list[MathProblem]:
    """``count`` problems of which no two are the same."""
    rng, problems = random.Random(seed), {}
    while len(problems) < count:
        problem = draw_problem(rng)
        problems.setdefault((problem.template, problem.numbers), problem)
    return list(problems.values())


def change_word(text: str, rng: random.Random) -> str:
    """The problem with another word in the place of one that is no number, outside of formulas and LaTeX."""
    pieces = text.split(" ")
    depth, places = 0, []
    for place, piece in enumerate(pieces):
        if not depth and piece.isalpha() and len(piece) > 1 and piece not in (*NUMBER_WORDS, "first"):
            places.append(place)
        depth ^= piece.replace(r"\$", "").count("$") % 2
    place = rng.choice(places)
    return " ".join([*pieces[:place], "changed", *pieces[place + 1 :]])


def _exchange(pairs: dict[str, str]) -> Callable[[re.Match], str]:
    return lambda match: pairs[match[0]]


#: Changes that make another problem: what is changed, and into what.
OTHER_MEANINGS: dict[str, tuple[str, str | Callable[[re.Match], str]]] = {
    "+ and -": (r" [+-] ", _exchange({" + ": " - ", " - ": " + "})),
    "< and >": (r" [<>] ", _exchange({" < ": " > ", " > ": " < "})),
    "product and sum": (r" (?:\\times|\+) ", _exchange({r" \times ": " + ", " + ": r" \times "})),
    "sign of an exponent": (r"\^([23])", r"^{-\1}"),
    "exponent and index": (r"\^([23])", r"_\1"),
    "sign of a number": (r"= (\d)", r"= -\1"),
    "brackets": (r"(\d)x ([+-]) (\d+)", r"\1(x \2 \3)"),
    "number word": (
        rf"\b(?:{'|'.join(NUMBER_WORDS)})\b",
        _exchange(dict(zip(NUMBER_WORDS, [*NUMBER_WORDS[1:], "eight"], strict=True))),
    ),
}


def change_meaning(text: str, name: str, rng: random.Random) -> str | None:
    """The problem with one change of ``OTHER_MEANINGS``; None if it has no place for it."""
    pattern, other = OTHER_MEANINGS[name]
    places = list(re.finditer(pattern, text))
    if not places:
        return None
    place = rng.choice(places)
    return text[: place.start()] + (other(place) if callable(other) else place.expand(other)) + text[place.end() :]


def change_notation(text: str, rng: random.Random) -> str:
    r"""The problem with other spaces, signs of products and minus, fractions, and ``\displaystyle`` in its formulas."""
    formulas = text.replace(r"\$", "\0").split("$")
    for place in range(1, len(formulas), 2):
        formula = formulas[place].replace(r"\dfrac", r"\tfrac").replace(r"\frac", r"\dfrac")
        spaced = "".join(
            f"{sign} " if sign.isdigit() and not following.isdigit() else sign
            for sign, following in zip(formula, formula[1:] + " ", strict=True)
        )
        spaced = spaced.replace(r"\times", rng.choice((r"\cdot", "*", "×"))).replace(
            "-", rng.choice(("-", "\N{MINUS SIGN}"))
        )
        formulas[place] = rng.choice((r"\displaystyle ", "")) + spaced.replace(" + ", "+").replace(" = ", "=")
    return "$".join(formulas).replace("\0", r"\$")
