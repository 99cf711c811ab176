r"""Normal forms of text: rewrites the notations of small models, data sets and Unicode into one LaTeX notation.

Each function handles one kind of notation and is the only place for it. ``latex_form`` applies them in order. They
never change the value of an answer: what a function does not recognise stays as it is, and such a text is later
rejected by the parser. The functions take time linear in the length of the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from verl_gsd.tasks.units import NOT_A_UNIT
from verl_gsd.tasks.word_forms import in_usual_words

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho . sigma tau upsilon phi"
)
_GREEK += " chi psi omega"
_SIGNS: dict[str, str] = {
    chr(0x3B1 + number): rf"\{name} " for number, name in enumerate(_GREEK.split()) if name not in (".", "omicron")
}
_SIGNS |= {"Γ": r"\Gamma ", "Δ": r"\Delta ", "Θ": r"\Theta ", "Λ": r"\Lambda ", "Π": r"\Pi ", "Σ": r"\Sigma "}
_SIGNS |= {"Φ": r"\Phi ", "Ψ": r"\Psi ", "Ω": r"\Omega ", "ϕ": r"\phi ", "ϵ": r"\epsilon ", "µ": r"\mu "}
_SIGNS |= dict.fromkeys("−–‒‑﹣－", "-") | dict.fromkeys("×✕", r"\times ") | dict.fromkeys("·⋅∙•", r"\cdot ")
_SIGNS |= dict.fromkeys("\u00a0\u2002\u2003\u2004\u2005\u2007", " ") | dict.fromkeys("\u2006\u2008\u2009\u202f", r"\,")
_SIGNS |= dict.fromkeys("\u200b\u200a\u2061\u2062\ufeff", "") | dict.fromkeys("′’", "'") | {"″": "''"}
_SIGNS |= {"∞": r"\infty ", "≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\neq ", "±": r"\pm "}
_SIGNS |= {"∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus "}
_SIGNS |= dict.fromkeys("“”„", '"')
_SIGNS |= {"÷": "/", "∕": "/", "⁄": "/", "≡": r"\equiv ", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}"}
_SIGNS |= {"ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "∠": r"\angle ", "⟨": r"\langle ", "⟩": r"\rangle ", "…": r"\ldots "}
_SIGNS |= {
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "％": "%",
    "（": "(",
    "）": ")",
    "，": ",",
}
_SIGNS |= {chr(0xFF10 + digit): str(digit) for digit in range(10)}
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
_VULGAR = dict(
    zip(
        "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞",
        ["12", "13", "23", "14", "34", "15", "25", "35", "45", "16", "56", "18", "38", "58", "78"],
        strict=True,
    )
)
_RUN_RAISED, _RUN_LOWERED = (re.compile(f"[{re.escape(''.join(run))}]+") for run in (_RAISED, _LOWERED))
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}


def from_unicode(text: str) -> str:
    r"""Signs outside ASCII as LaTeX: ``2√3`` is ``2\sqrt{3}``, ``x²`` is ``x^{2}``, ``1½`` is ``1\frac{1}{2}``."""
    if text.isascii():
        return text
    text = re.sub("([0-9])[\u0305\u0304]", r"\\overline{\1}", text)
    text = re.sub("([0-9])\u0307", r"\\dot{\1}", text)
    text = _RUN_RAISED.sub(lambda run: "^{" + "".join(map(_RAISED.__getitem__, run[0])) + "}", text)
    text = _RUN_LOWERED.sub(lambda run: "_{" + "".join(map(_LOWERED.__getitem__, run[0])) + "}", text)
    text = _ROOT.sub(lambda root: rf"\sqrt{_INDEX[root[1]]}{{{root[2] or root[3]}}}", text)
    text = "".join(rf"\frac{{{_VULGAR[sign][0]}}}{{{_VULGAR[sign][1]}}}" if sign in _VULGAR else sign for sign in text)
    return "".join(_SIGNS.get(sign, sign) for sign in text)


_SPACE = re.compile(r"(?<!\\)\\(?:[,;: ]|q?quad(?![A-Za-z])|enspace(?![A-Za-z])|thinspace(?![A-Za-z]))|~|\s")
_STYLE = re.compile(
    r"\\(?:left|right)\s*\.|\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|left|right|middle|[bB]igg?[lrm]?|boldmath|bf|rm|it"
    r"|normalsize|large|Large|huge|Huge|hfill)(?![A-Za-z])|\\!"
)
_WRAPPED = re.compile(
    r"\\(?:boxed|fbox|underline|bm|bold|boldsymbol|mathbf(?!\s*\{\s*[NZQR]\s*\})|mathit|mathsf|textcolor\{[^{}]*\}|color\{[^{}]*\}|mathop|emph"
    r"|phantom|hspace\*?\{[^{}]*\})\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
)
_TEXT = re.compile(r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|mbox|hbox|operatorname\*?|mathrm|mathtt)\s*\{")
_ROW_SKIP = re.compile(r"\\\\\s*\[-?[0-9.]+\s*(?:pt|em|ex|mm|cm)\]")
_SIUNITX = re.compile(r"\\(?:(ang|num)\{([-+0-9.]+)\}|(?:SI|qty)\{([-+0-9.]+)\}\{([A-Za-z/^0-9 ]+)\})")
_DOLLAR = re.compile(r"(?<!\\)\$")
_SENTENCE = re.compile(
    r"(?:\\text\{)?\s*(?:so |thus |hence |therefore,? )?the (?:final |correct )?answer is:?\s*\}?\s*(.*)", re.I
)


def undecorated(text: str) -> str:
    r"""Without what only decorates: dollar signs, asterisks, back ticks, ``\underline``, sizes, a full stop.

    ``\text`` stands for every command that sets text upright.
    """
    text = _STYLE.sub("", text)
    if "\\" in text:
        text = _SIUNITX.sub(_without_siunitx, _ROW_SKIP.sub(r"\\\\", text))
        text = _TEXT.sub(r"\\text{", text)
        if "\\text{\\text{" in text:
            text = re.sub(r"\\text\{\\text\{([^{}]*)\}\}", r"\\text{\1}", text)
    dollars = _DOLLAR.findall(text)
    text = _DOLLAR.sub("" if len(dollars) % 2 == 0 else r"\\$", text)  # one dollar sign is a price
    while (inner := _without_outermost(text)) != text:
        text = inner
    return text


def _without_outermost(text: str) -> str:
    """A text without what decorates the whole of it, one layer of each kind."""
    text = text.strip()
    for mark in ("**", "*", "`", "__", '"'):
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark):
            inner = text[len(mark) : -len(mark)]
            text = inner if mark not in inner else text
    if text.startswith(("\\(", "\\[")) and text.endswith((r"\)", r"\]")) and len(text) > 4:
        text = text[2:-2]
    if text.startswith("{") and text.endswith("}") and _closing(text, 0) == len(text) - 1 and r"\over" not in text:
        text = text[1:-1]
    if len(text) > 1 and text[-1] in ".,;:" and not text.endswith(("..", r"\,", r"\;", r"\:")):
        text = text[:-1]
    if whole := _WRAPPED.fullmatch(text):
        text = whole[1]
    if sentence := _SENTENCE.fullmatch(text):
        text = sentence[1] if sentence[1].strip("} ") else text
    return text


def _without_siunitx(command: re.Match) -> str:
    if command[3]:
        return rf"{command[3]}\text{{ {command[4]}}}"
    return command[2] + (r"^\circ" if command[1] == "ang" else "")


def _closing(text: str, start: int) -> int:
    """The position of the brace that closes the one at ``start``; -1 if there is none."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "{}" and text[place - 1 : place] != "\\":
            depth += 1 if text[place] == "{" else -1
            if not depth:
                return place
    return -1


_UPRIGHT = re.compile(
    r"(?<![0-9})])(?<![0-9})] )\\text\{\s*(min|max)\s*\}"  # after a number, min are minutes
    r"|\\text\{\s*(e|i|pi|d|arc(?:sin|cos|tan|tg|ctg|cot)|arc?(?:sinh|cosh|tanh)|sinh?|cosh?|tanh?|cot|sec|csc|tg|ctg|cotg"
    r"|lg|ln|log|exp|gcd|lcm|sgn|sqrt|Re|Im)\s*\}"
)
_COMMAND_IN_TEXT = re.compile(r"\\text\{\s*(\\[A-Za-z]+)\s*\}")
_OTHER_NAMES = {"arctg": "arctan", "arcctg": "arccot", "tg": "tan", "ctg": "cot", "cotg": "cot"}


def upright_as_usual(text: str) -> str:
    r"""Upright constants and operators as usual: ``\mathrm{e}`` is ``e``, ``\operatorname{arctg}`` is ``\arctan``."""
    if "\\text" in text:
        text = _COMMAND_IN_TEXT.sub(r"\1 ", _UPRIGHT.sub(_without_text, text))
    text = re.sub(r"\\(arcctg|arctg|cotg|ctg|tg)(?![A-Za-z])", lambda name: rf"\{_OTHER_NAMES[name[1]]} ", text)
    return re.sub(r"\\lg(?![A-Za-z])", r"\\log_{10}", text)


_OTHER_COMMANDS = [
    (re.compile(rf"\\(?:{names})(?![A-Za-z])"), usual)
    for names, usual in (
        ("varphi", r"\\phi "),
        ("varepsilon", r"\\epsilon "),
        ("vartheta", r"\\theta "),
        ("varrho", r"\\rho "),
        ("[dtc]frac", r"\\frac"),
        ("geq(?:slant)?", r"\\ge "),
        ("leq(?:slant)?", r"\\le "),
        ("ne", r"\\neq"),
    )
]
#: A matrix with a bar between its columns, which is a system of equations and not read as a matrix.
_AUGMENTED = re.compile(r"\\begin\{array\}(?=\{[lcr ]+\|[|lcr ]*[lcr])")
_OVER = re.compile(r"\{([^{}]*[^{}\s])\s*\\over(?![A-Za-z])\s*([^{}]+)\}")
_CHOOSE = re.compile(r"\{?([^{}]*[^{}\s])\s*\\choose(?![A-Za-z])\s*([^{}]+)\}?")
_BINOMIAL = re.compile(r"\\[dt]?binom\s*([0-9A-Za-z])\s*([0-9A-Za-z])")
_COMBINATIONS = re.compile(r"(?<![A-Za-z}])C_(?:\{(\w+)\}|(\w))\^(?:\{(\w+)\}|(\w))")


def usual_commands(text: str) -> str:
    r"""One command per sign: ``{1 \over 2}`` and ``\dfrac12`` are fractions, ``C_5^2`` is ``\binom{5}{2}``."""
    for command, usual in _OTHER_COMMANDS:
        text = command.sub(usual, text)
    text = _AUGMENTED.sub(r"\\begin{augmented}", text)
    if r"\over" in text:
        text = _OVER.sub(r"\\frac{\1}{\2}", text)
    if r"\choose" in text:
        text = _CHOOSE.sub(r"\\binom{\1}{\2}", text)
    return _COMBINATIONS.sub(_as_binomial, _BINOMIAL.sub(r"\\binom{\1}{\2}", text))


def _without_text(name: re.Match) -> str:
    word = name[1] or name[2]
    return word if len(word) == 1 else rf"\{word} "


def _as_binomial(symbol: re.Match) -> str:
    """``C_5^2`` as a binomial coefficient. ``C_1^2`` is a constant that is squared."""
    lower, upper = symbol[1] or symbol[2], symbol[3] or symbol[4]
    if lower.isdecimal() and upper.isdecimal() and int(lower) < int(upper):
        return symbol[0]
    return rf"\binom{{{lower}}}{{{upper}}}"


_FUNCTIONS = r"arcsin|arccos|arctan|asin|acos|atan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|exp"
_INVERSE = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_PLAIN_FUNCTION = re.compile(rf"(?<![A-Za-z\\])({_FUNCTIONS})(?=\s*[(0-9^_x]|\s[a-z]\b|\s*\\)")
_LOGARITHM = re.compile(r"(?<![A-Za-z\\])log_?(2|10)\s*\(")
_PLAIN_NAME = re.compile(r"(?<![A-Za-z\\])(pi|theta|alpha|beta|gamma|lambda|omega|phi)(?![A-Za-z])")
_PI_TIMES = re.compile(r"(?<![A-Za-z\\])pi(?=[a-z](?![A-Za-z]))")
_PLAIN_INFINITY = re.compile(r"(?<![A-Za-z\\])(?:infinity|Infinity|infty|inf|oo)(?![A-Za-z])")
_COMPARISONS = (("<=", r"\le "), (">=", r"\ge "), ("=<", r"\le "))
#: Right after a number or letter, the sign may be that of a factorial: ``n!=6``.
_NOT_EQUAL = re.compile(r"(?<![A-Za-z0-9)}])!=")


def from_plain_notation(text: str) -> str:
    r"""Names and operators that stand without LaTeX: ``2*pi*r`` is ``2\cdot \pi\cdot r``, ``sqrt(3)`` ``\sqrt{3}``."""
    if "\\text" in text:  # words, or mathematics with words: only infinity is a name there
        return re.sub(r"\\text\{\s*([-+]?)\s*infinity\s*\}", r"\1\\infty", text)
    for sign, latex in _COMPARISONS:
        text = text.replace(sign, latex)
    text = _NOT_EQUAL.sub(r"\\neq ", text)
    if "*" in text:
        text = re.sub(r"\*(?!10\^)", r"\\cdot ", text.replace("**", "^"))
    if not _LETTERS.search(text):
        return _round_power(text)
    text = _PLAIN_INFINITY.sub(r"\\infty ", text)
    text = _PI_TIMES.sub(r"\\pi ", _PLAIN_NAME.sub(r"\\\1 ", text))
    for name, index in (("sqrt", ""), ("cbrt", "[3]")):
        text = _call(text, name, lambda inner, index=index: rf"\sqrt{index}{{{inner}}}")  # type: ignore[misc]
    text = re.sub(
        r"(?<![A-Za-z\\])sqrt\s*([0-9]+|\{)",
        lambda root: rf"\sqrt{root[1] if root[1] == '{' else '{' + root[1] + '}'}",
        text,
    )
    text = _call(text, "abs", lambda inner: rf"|{inner}|")
    text = _call(text, r"\\?exp", lambda inner: rf"e^{{{inner}}}")
    text = _LOGARITHM.sub(r"\\log_{\1}(", text)
    text = _PLAIN_FUNCTION.sub(lambda name: rf"\{_INVERSE.get(name[1], name[1])} ", text)
    return _round_power(text)


_LETTERS = re.compile(r"[A-Za-z]{2}")
_PLAIN = re.compile(r"[A-Za-z]{2}|[*(<>!]")


def _round_power(text: str) -> str:
    """``2^(n+1)`` is ``2^{n+1}``."""
    return _call(text, r"\^", lambda inner: rf"^{{{inner}}}") if "^(" in text else text


def _call(text: str, name: str, latex: Callable[[str], str]) -> str:
    """Replaces each ``name(inner)`` whose brackets close."""
    head = re.compile(rf"(?<![A-Za-z\\])(?:{name})\s*\(") if name != r"\^" else re.compile(r"\^\(")
    for _ in range(20):
        match = head.search(text)
        if match is None:
            break
        depth, place = 1, match.end()
        while place < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[place], 0)
            place += 1
        if depth:
            break
        text = text[: match.start()] + latex(text[match.end() : place - 1]) + text[place:]
    return text


_GROUPED = re.compile(
    r"(?<![0-9.,\\^_])(?<![0-9] )[1-9][0-9]{0,2}(?:(?:\\,|\{,\}|,\s*\\!|\{\\,\}| )[0-9]{3})+(?! ?[0-9])"
)
_DECIMAL_COMMA = re.compile(r"(?<![0-9.,}])((?:0|[1-9][0-9]*)\{,\}(?:[0-9]{1,2}|[0-9]{4,})|0\{,\}[0-9]{3})(?![0-9{.,])")


def ungrouped(text: str) -> str:
    r"""Numbers whose digits stand in groups of three, as one number: ``1 000 000``, ``24{,}681``, ``12\,345``.

    A comma in braces before another number of digits is a decimal comma: ``12{,}75`` is ``12.75``.
    """
    text = _GROUPED.sub(lambda number: re.sub("[^0-9]", "", number[0]), text)
    return _DECIMAL_COMMA.sub(lambda number: number[1].replace("{,}", "."), text)


_PERCENT = re.compile(
    r"(?<=[0-9})])\s*(?:\\[, ])?\s*(?:\\text\{\s*(?:\\?%|per\s?cent(?:age)?|pct)\.?\s*\}|\\?%|per\s?cent\b|pct\b)"
)
_CURRENCY = re.compile(
    r"(\\\$|\\pounds(?![a-z])|\\euro(?![a-z])|\\(?:text|mathrm)\{\s*(?:[€£¥₹]|Rs\.?|USD|EUR|GBP|\\?\$)\s*\}|[€£¥₹₽₩₪]"
    r"|(?<![A-Za-z\\])(?:Rs\.?|USD|EUR|GBP|US\\?\$)(?![A-Za-z]))"
)
_CURRENCY_NAMES = {
    "€": "euro",
    "EUR": "euro",
    "euro": "euro",
    "£": "pound",
    "pounds": "pound",
    "GBP": "pound",
    "¥": "yen",
}
_CURRENCY_NAMES |= {"₹": "rupee", "Rs": "rupee", "₽": "ruble", "₩": "won", "₪": "shekel"}


_PER_MILLE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:‰|\\permil(?![a-z])|\\perthousand(?![a-z]))")


def with_usual_percent(text: str) -> str:
    r"""A percentage in every notation as ``50\%``, and per mille as a fraction: ``5‰`` is ``\frac{5}{1000}``."""
    return _PERCENT.sub(lambda _: r"\%", _PER_MILLE.sub(_as_thousandths, text))


def _as_thousandths(number: re.Match) -> str:
    value = Fraction(number[1]) / 1000
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def split_currency(text: str) -> tuple[str, str]:
    """A text without the signs of a currency, and the currency's name; empty if there is none, or more than one."""
    signs = {re.sub(r"\\(?:text|mathrm)|[\\{}.\s]", "", sign) for sign in _CURRENCY.findall(text)}
    names = {_CURRENCY_NAMES.get(sign, "dollar") for sign in signs}
    return (_CURRENCY.sub("", text).strip(), names.pop()) if len(names) == 1 else (text, "")


_DOTTED = re.compile(r"([0-9]*)\.([0-9]*?)\\dot\{?([0-9])\}?(?:([0-9]*)\\dot\{?([0-9])\}?)?(?![0-9])")
_BRACKETED = re.compile(r"(?<![\w.\\)])([0-9]+)\.([0-9]*)\(([0-9]{1,9})\)(?![\w(^])")
_BAR = re.compile(r"(?<=[0-9.])\\(?:bar|overline|overbar)\s*(?:\{\s*([0-9]{1,9})\s*\}|([0-9]))")
_DOTS = re.compile(r"(?<![\w.])([0-9]+\.[0-9]*?)([0-9]{1,6}?)\2\2+\s*(?:\\[lc]?dots|\.\.\.)$")
_WORD_RECURRING = re.compile(r"(?<![\w.])([0-9]+\.[0-9]*)([0-9])\s*(?:\\text\{)?\s*(?:recurring|repeating)\s*\}?$")


def recurring_as_overline(text: str) -> str:
    r"""Recurring decimals as ``0.1\overline{6}``: with dots or a bar over digits, a period in brackets, or dots after
    a period that stands three times."""
    if "." not in text:
        return text
    text = _DOTTED.sub(lambda m: rf"{m[1]}.{m[2]}\overline{{{m[3]}{(m[4] or '') + (m[5] or '')}}}", text)
    text = _BRACKETED.sub(r"\1.\2\\overline{\3}", text)
    text = _BAR.sub(lambda bar: rf"\overline{{{bar[1] or bar[2]}}}", text)
    text = _DOTS.sub(lambda m: rf"{m[1]}\overline{{{m[2]}}}" if m[2].strip("0") else m[0], text)
    return _WORD_RECURRING.sub(r"\1\\overline{\2}", text)


_MIXED = re.compile(
    r"(?<![\w.^{}/)\\])(?P<sign>-\s*)?(?P<whole>[1-9][0-9]{0,8})\s*(?:\\,|\\ )?\s*(?:\\text\{\s*and\s*\})?"
    r"(?:\\frac\s*(?:\{\s*(?P<a>[1-9][0-9]{0,8})\s*\}\s*\{\s*(?P<b>[1-9][0-9]{0,8})\s*\}|(?P<c>[1-9])(?P<d>[1-9]))"
    r"|(?<=\s)(?P<e>[1-9][0-9]{0,8})/(?P<f>[1-9][0-9]{0,8}))(?![0-9/^!.])"
)


def mixed_as_fraction(text: str) -> str:
    r"""Mixed numbers as one fraction: ``1 1/4`` and ``1\frac14`` are ``\frac{5}{4}``.

    Only a proper fraction makes a mixed number. ``2\frac{3}{2}`` is a product.
    """
    return _MIXED.sub(_one_fraction, text) if "/" in text or r"\frac" in text else text


def _one_fraction(number: re.Match) -> str:
    top, bottom = int(number["a"] or number["c"] or number["e"]), int(number["b"] or number["d"] or number["f"])
    sign = "-" if number["sign"] else ""
    if top >= bottom:
        return number[0] if number["e"] else rf"{sign}{number['whole']} \cdot \frac{{{top}}}{{{bottom}}}"
    return rf"{sign}\frac{{{int(number['whole']) * bottom + top}}}{{{bottom}}}"


_DEGREE = r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|°|\\degree"
_MINUTES = re.compile(
    rf"([0-9]+)\s*(?:{_DEGREE})\s*([0-9]{{1,2}})\s*(?:\^\s*\{{?\s*\\prime\s*\}}?|')(?:\s*([0-9]{{1,2}})\s*(?:\^\s*\{{?\s*\\prime\s*\\prime\s*\}}?|''))?$"
)
_ANGLE = re.compile(rf"([0-9]+(?:\.[0-9]+)?|\\frac\{{[0-9]+\}}\{{[0-9]+\}})\s*(?:{_DEGREE})")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")


def degrees(text: str) -> str:
    r"""Angles: ``36^\circ 30'`` is ``\frac{73}{2}^\circ``, and ``\cos 60^\circ`` is ``\cos {(\frac{60\pi}{180})}``."""
    if "\\circ" not in text and "°" not in text and r"\degree" not in text:
        return text
    if parts := _MINUTES.fullmatch(text):
        value = int(parts[1]) + Fraction(int(parts[2]), 60) + Fraction(int(parts[3] or 0), 3600)
        return rf"\frac{{{value.numerator}}}{{{value.denominator}}}^\circ"
    if _TRIGONOMETRIC.search(text):
        return _ANGLE.sub(r"(\\frac{\\pi}{180} \\cdot \1)", text)
    return text


_POINTS = re.compile(r"\\(angle|overline|triangle)\s*\{?\s*([A-Z])\s*([A-Z])\s*([A-Z])?\s*\}?")


def named_figures(text: str) -> str:
    r"""Names of figures as words: ``\angle ABC`` and ``\angle CBA`` are one angle, a segment has no direction."""
    return _POINTS.sub(_figure, text) if r"\angle" in text or r"\overline" in text or r"\triangle" in text else text


def _figure(name: re.Match) -> str:
    kind, points = name[1], [point for point in name.groups()[1:] if point]
    if (kind == "angle" and len(points) == 3) or (kind == "overline" and len(points) == 2):
        return rf"\text{{{kind} {min(''.join(points), ''.join(reversed(points)))}}}"
    return rf"\text{{{kind} {''.join(points)}}}"


_BASE_WORDS = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "sixteen": 16,
}
_BASE = re.compile(
    rf"([0-9A-F]+)_(?:\{{?\s*\\text\{{\s*(?:base )?([a-z]+|[0-9]+)\s*\}}\s*\}}?|\{{\s*({'|'.join(_BASE_WORDS)})\s*\}})"
)
_DIGITS_IN_TEXT = re.compile(r"\\text\{\s*([0-9A-F]+)\s*\}(?=\s*_)")


def with_base_in_digits(text: str) -> str:
    r"""The base of a number in digits: ``101_{\text{two}}`` is ``101_{2}``."""
    text = _DIGITS_IN_TEXT.sub(r"\1", text)
    return _BASE.sub(lambda number: f"{number[1]}_{{{_BASE_WORDS.get(number[2] or number[3], number[2])}}}", text)


_QUALIFIER = re.compile(
    r"\s*(?:,|\\quad|\\qquad|\\;|\\ )*\s*\(?\s*\\text\{\s*\(?\s*"
    r"(?P<text>(?:for (?:all|every|any|each)|since|because|as)\b.*)"
    r"|\s*,?\s+\(?(?P<bare>(?:for (?:all|every|any|each)|since|because)\b.*)"
)
_ROUNDED = (
    r"-?[0-9][0-9,]*(?<!,)(?:\.[0-9]+)?(?:\s*(?:\\times|\\cdot)\s*10\s*\^\s*\{?-?[0-9]+\}?)?"
    r"(?:\s*(?:\.\.\.|\\[lc]?dots))?(?:\s*(?:\\?%|\^\s*\{?\s*\\circ\s*\}?|°))?(?:\s*\\text\{[^{}]*\})?"
)
#: A rounded value at the end of one answer, or of one of several. After ``or`` it needs a decimal point, because
#: ``\sqrt3 or about 9`` may be two answers.
_ROUNDED_TOO = re.compile(
    rf"\s*(?:\(\s*(?:\\approx|\\simeq|\\text\{{\s*(?:approximately|approx\.?|about)\s*\}})\s*{_ROUNDED}\s*\)"
    rf"|\\text\{{\s*\(\s*(?:approximately|approx\.?|about)\s*\}}\s*{_ROUNDED}\s*\)"
    rf"|(?:\\approx|\\simeq|\\text\{{\s*(?:approximately|approx\.?|about)\s*\}})\s*{_ROUNDED}"
    rf"|\\text\{{\s*(?:or )(?:approximately|approx\.?|about)\s*\}}\s*(?=-?[0-9]+\.){_ROUNDED}"
    r"|\s*\\text\{\s*\(?\s*(?:(?:approximately|approx\.?|about)\s+-?[0-9.]*[0-9]"
    r"|or (?:approximately|approx\.?|about)\s+-?[0-9]+\.[0-9]+)\s*\)?\s*\})"
    r"(?=\s*(?:$|[,;]|\\text\{\s*(?:or|and|,)\s*\}|(?:or|and)(?![A-Za-z])|\)\s*$))"
)
_EXACT = re.compile(r"\\(?:sqrt|frac|pi|ln|log|e)|\^|/")


def without_approximation(text: str) -> str:
    r"""Without the rounded values after exact ones: ``\frac{\pi}{4} \approx 0.785``. ``x \approx 3`` stays.

    In a list, each value loses only its own rounded value.
    """
    pieces, end = [], 0
    for rounded in _ROUNDED_TOO.finditer(text):
        exact = text[end : rounded.start()]
        if not _EXACT.search(exact):
            return text
        pieces.append(exact)
        end = rounded.end()
    return "".join(pieces) + text[end:]


_RESTATED = re.compile(
    r"\s*(?:\(\s*=\s*([^()]+)\)|\(?\s*\\text\{\s*,?\s*\(?\s*i\.\s?e\.,?\s*\}\s*\(?([^()]+)\)?|,?\s*\(?\s*i\.\s?e\.,?\s+([^()]+)\)?)"
)


def restated_as_equation(text: str) -> str:
    r"""A value that is repeated in another notation, as an equation: ``\frac{\pi}{6} (i.e. 30^\circ)``."""
    again = _RESTATED.search(text)
    if again is None or again.end() != len(text) or "=" in text[: again.start()] or not again.start():
        return text
    return f"{text[: again.start()]} = {again[1] or again[2] or again[3]}"


def split_qualifier(text: str) -> tuple[str, str]:
    r"""An answer and what stands after it: ``f(x)=2x`` and ``for all x``.

    Only ``for all`` and reasons are qualifiers, not ``if``. Whether a qualifier restricts the answer to a part of the
    cases is for ``is_restriction`` to say.
    """
    text = text.replace(r"\forall", r"\text{ for all }")
    found = _QUALIFIER.search(text)
    if found is None or not found.start():
        return text, ""
    qualifier = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", found["text"] or found["bare"])
    if qualifier.count("{") < qualifier.count("}"):  # the qualifier begins inside a \text
        qualifier = qualifier.replace("}", "", 1)
    qualifier = re.sub(r"\\in\s*(?:\\mathbb\s*\{?\s*R\s*\}?|\\R)|\b(?:real|numbers?)\b", "", qualifier)
    return text[: found.start()].rstrip(" ,"), re.sub(r"[$\s]|\\[ ,;]", "", qualifier).strip(".,;)")


_VARIABLE = r"(?:[A-Za-z](?:_\{?[0-9a-z]\}?)?|\\(?:alpha|beta|gamma|theta|lambda|mu|phi)(?![a-z]))"
_UNRESTRICTED = re.compile(
    r"for(?:all|every|any|each)(?:positive|non-?negative|natural|rational|complex|integers?|(?:values?|choices?)of)*"
    rf"(?:{_VARIABLE}(?:(?:,|and){_VARIABLE})*(?:\\in\\mathbb\{{?[A-Z]\}}?(?:\^\{{?[+*]\}}?)?)?|[kmn](?:\\ge[01]|>0))?"
)


def is_restriction(qualifier: str) -> bool:
    """Whether a qualifier of ``split_qualifier`` restricts an answer, as ``for all n > 2`` does."""
    return qualifier.startswith("for") and _UNRESTRICTED.fullmatch(qualifier) is None


_ARROW = re.compile(r"([A-Za-z])\s*(?::|\\colon(?![a-z]))\s*([a-z])\s*\\mapsto(?![a-z])\s*")
_CIS = re.compile(r"\\(?:text\{\s*cis\s*\}|cis(?![a-z]))\s*(?:\(([^()]+)\)|([^()+=,-]+))$")
_POWER_OF_FUNCTION = re.compile(r"(\\(?:ln|log|sin|cos|tan|cot|sec|csc)\s*\^)\s*([0-9])(?=\s+[0-9])")


_DOUBLE_FACTORIAL = re.compile(r"(?<![\w.)}])([0-9]{1,2})\s*!\s*!(?!\s*!)")


def functions_in_one_notation(text: str) -> str:
    r"""Functions in one notation.

    ``f\colon x\mapsto x^2`` is ``f(x)=x^2``, ``f\equiv 0`` is ``f=0``, ``7!!`` is ``105``, ``\ln^2 2`` is
    ``\ln^{2} 2``, and ``cis`` is written with cosine and sine.
    """
    text = _ARROW.sub(r"\1(\2)=", text)
    if r"\equiv" in text and "mod" not in text:
        text = re.sub(r"\\equiv(?![a-z])", "=", text)
    text = _DOUBLE_FACTORIAL.sub(lambda number: str(math.prod(range(int(number[1]), 0, -2))), text)
    text = _POWER_OF_FUNCTION.sub(r"\1{\2}", text)
    return _CIS.sub(lambda cis: rf"(\cos ({cis[1] or cis[2]})+i\sin ({cis[1] or cis[2]}))", text)


_POWERS_IN_TEXT = re.compile(r"\\text\{(?:[^{}]|\^\s*\{-?[1-4]\})*\}")
_POWER = re.compile(r"\^\s*\{(-?[1-4])\}")
_TEMPERATURE = re.compile(
    r"(?<=[0-9}])\s*(?:\^\s*\{?\s*\\circ\s*\}?|°|(?:\\text\{)?\s*degrees?)\s*\}?\s*(?:\\text\{)?\s*([CF])(?:elsius|ahrenheit)?\s*\}?$"
)
#: Units that stand right after a number without ``\\text``.
_JOINED_UNIT = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(cm|mm|km|kg|mg|ml|mL|ft|lbs?|oz)((?:\^\{?[23]\}?)?)")
_SCALES = {"C": "Celsius", "F": "Fahrenheit"}


def units_in_one_notation(text: str) -> str:
    r"""Units in one notation.

    ``^\circ\text{C}`` is ``\text{ Celsius}``, ``5cm`` is ``5\text{ cm}``, and ``\text{m s^{-1}}`` is ``\text{m s^-1}``.
    """
    if joined := _JOINED_UNIT.fullmatch(text):
        return rf"{joined[1]}\text{{ {joined[2]}}}{joined[3]}"
    text = _TEMPERATURE.sub(lambda scale: rf"\text{{ {_SCALES[scale[1]]}}}", text)
    return _POWERS_IN_TEXT.sub(lambda unit: _POWER.sub(r"^\1", unit[0]), text)


_NAMED_VALUE = re.compile(
    r"(?:\\text\{\s*(?P<words>[A-Za-z][A-Za-z ]*[A-Za-z])\s*(?:(?P<inside>[=:])\s*\}|\}\s*[=:])"
    r"|\\angle\s*\{?(?P<corner>[A-Z])\}?\s*=)\s*(?P<value>[^=,;:<>]+)"
)
_RATIO_IN_WORDS = re.compile(r"([0-9]+)\s*(?:\\text\{\s*to\s*\}|to)\s*([0-9]+)")


def named_value(text: str) -> str:
    r"""A value after its name, as an equation: ``\text{Area: } 9`` is ``N_{area} = 9``. ``3 to 5`` is ``3:5``."""
    if ratio := _RATIO_IN_WORDS.fullmatch(text):
        return f"{ratio[1]}:{ratio[2]}"
    named = _NAMED_VALUE.fullmatch(text)
    words = (named["words"] or f"angle {named['corner']}").split() if named else []
    if named is None or any(map(NOT_A_UNIT.fullmatch, words)) or len("".join(words)) < 3:
        return text
    name = words[0].lower() + "".join(words[1:])
    return rf"N_{{{name}}} = {named['value']}"


_RUN_OF_SPACE = re.compile(r"\s+")


def latex_form(text: str) -> str:
    """The normal form of an answer or of a reference."""
    text = _RUN_OF_SPACE.sub(" ", from_unicode(text))
    text = undecorated(text)
    text = usual_commands(upright_as_usual(text))
    text = with_base_in_digits(text)
    text = with_usual_percent(ungrouped(text))
    text = recurring_as_overline(text)
    text = in_usual_words(named_figures(text))
    text = _RUN_OF_SPACE.sub(" ", _SPACE.sub(" ", text))
    text = mixed_as_fraction(units_in_one_notation(text))
    text = named_value(text)
    text = from_plain_notation(text) if _PLAIN.search(text) else text
    text = functions_in_one_notation(restated_as_equation(without_approximation(text)))
    return _RUN_OF_SPACE.sub(" ", undecorated(degrees(text)))
