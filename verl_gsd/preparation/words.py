r"""Normalises the text of a problem, so that copies of it are recognised in other notation.

``identity_text`` is for problems that are equal. ``words`` is for copies, and ignores more.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

#: In characters. In a longer text, drawings, formulas and numbers with spaces are read as plain text. The time to find
#: them grows with the square of the length, if what opens them is never closed.
_LONGEST = 20_000
#: In scripts without spaces between words, each character is a word.
_CJK = "㐀-鿿぀-ヿ"
_ONE_CJK = re.compile(f"[{_CJK}]")
_LETTER = rf"[^\W\d_{_CJK}]"
#: The code of a drawing begins alike in all problems that have one.
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]|\\begin\{(asy|tikzpicture)\}.*?\\end\{\1\}", re.DOTALL | re.IGNORECASE)
_MATHS = re.compile(
    r"(?<!\\)\$\$?(?:[^$\\]|\\.)+\$\$?|\\\(.*?\\\)|\\\[.*?\\\]|\\begin\{((?:align|equation|gather)\*?)\}.*?\\end\{\1\}",
    re.DOTALL,
)
#: What a ``$`` of money seems to enclose: it begins with a number, and a space or the next amount tells that the second
#: ``$`` closes nothing. It is money if the text between the two is prose.
_MONEY = re.compile(r"(?<!\\)\$(\.?[0-9][^$]*)(?:(?<=[\s(])\$|\$(?=\.?[0-9]))")
_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[A-Za-z]+\*?\}")
#: What separates the thousands of 1,200, 1{,}200, 1,\!200 and 1\,200.
_THOUSANDS = re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|,|\\,|\\!)(?=[0-9]{3}(?![0-9]))")
#: 1 000 000. Without a group that begins with 0, it may be several numbers.
_SPACED_NUMBER = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})* 0[0-9]{2}(?: [0-9]{3})*(?![0-9])")
#: What opens and closes a formula, and spaces in it.
_NO_SIGN_OF_MATHS = re.compile(r"^(?:\\[\[(]|\$+)|(?:\\[\])]|\$+)$|\\[!,;: ]")
#: Before superscript and subscript digits, which NFKC makes ordinary ones.
_HIGH_OR_LOW = re.compile(r"(?=[²³¹⁰⁴-⁹₀-₉])")
#: ``\frac12`` is a half.
_FRACTION_OF_DIGITS = re.compile(r"(\\[dtc]?frac)\s*([0-9])\s*([0-9])")
_SIGNS_OF_TEXT = (
    # A hyphen after a word is no minus, and an exclamation mark is a factorial after a number, letter or bracket.
    r"<=|>=|!=|\*\*|[+=<>^*/%≤≥≠±∓∈∉∪∩≡≈→()\[\]{}]|\\[{}|%]|(?<![^\W\d_]{2})(?<!-)-(?!-)"
    r"|(?:(?<=[0-9)])|(?<=\b[^\W\d_]))!(?!\w)|(?<=[^\W_])_(?=[\w{(])|\|(?=[\w(\\-])|(?<=[\w)}])\|"
    r"|(?:(?<=\b[^\W\d_])|(?<=\b[^\W\d_]'))'(?!\w)"
)
_IN_TEXT = re.compile(rf"\\[A-Za-z]+|\d+|[{_CJK}]|{_LETTER}[^\W_{_CJK}]*|{_SIGNS_OF_TEXT}")
_COMMAND_WITH_TEXT = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|operatorname)\s*\{([^{}]*)\}"
#: A word, but not the letters of ``2xy``.
_WORD = re.compile(r"(?<!\w)[^\W\d_]{2,}")
_SIGN_OF_MATHS = re.compile(r"[=+*^_<>{}]|\\[A-Za-z]")
_IN_MATHS = re.compile(
    rf"{_COMMAND_WITH_TEXT}|(\\[A-Za-z]+|\\[{{}}|%]|\d+|[A-Z]{{2,}}|[^\W\d_]|<=|>=|!=|\*\*|[-+=<>^*/%≤≥≠±∓∈∉∪∩≡≈→()\[\]{{}}_|!'])"
)
#: Commands that change only how a text looks.
_LAYOUT = frozenset(
    {
        *(r"\displaystyle", r"\textstyle", r"\scriptstyle", r"\left", r"\right", r"\middle", r"\limits", r"\nolimits"),
        *(r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr", r"\quad", r"\qquad"),
        *(r"\text", r"\textbf", r"\textit", r"\textrm", r"\emph", r"\mbox", r"\mathrm", r"\mathbf", r"\mathit"),
        *(r"\boldsymbol", r"\operatorname", r"\ldots", r"\cdots", r"\dots", r"\noindent", r"\{", r"\}"),
    }
)
#: One way to write each sign and name. A sign is one character, so that ``is_fixed`` holds for it.
_SYNONYMS = {
    **dict.fromkeys((r"\dbinom", r"\tbinom"), r"\binom"),
    **{
        r"\leq": "≤",
        r"\le": "≤",
        r"\leqslant": "≤",
        "<=": "≤",
        r"\geq": "≥",
        r"\ge": "≥",
        r"\geqslant": "≥",
        ">=": "≥",
    },
    **{r"\neq": "≠", r"\ne": "≠", "!=": "≠", r"\lt": "<", r"\gt": ">", r"\pm": "±", r"\mp": "∓", r"\in": "∈"},
    **{r"\notin": "∉", r"\cup": "∪", r"\cap": "∩", r"\equiv": "≡", r"\approx": "≈", r"\to": "→", r"\rightarrow": "→"},
    **{r"\times": "×", r"\cdot": "*", r"\div": "/", "**": "^", r"\%": "%", "percent": "%", r"\prime": "'"},
    **dict.fromkeys((r"\mid", r"\vert", r"\lvert", r"\rvert", r"\|"), "|"),
}
_FRACTIONS = frozenset({r"\frac", r"\dfrac", r"\tfrac", r"\cfrac"})
#: Number words are the same as digits.
_DIGITS_OF_WORDS = {
    **{"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"},
    **{"eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12", "thirteen": "13", "fourteen": "14"},
    **{"fifteen": "15", "sixteen": "16", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20"},
    **{"thirty": "30", "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90"},
    **{"hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000"},
}
#: Further words that tell a number.
_QUANTITIES = frozenset(
    {
        *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "half"),
        *("halves", "thirds", "quarter", "quarters", "once", "twice", "thrice", "double", "triple", "dozen"),
    }
)
#: Names of functions, which are no prose in the brackets of a text.
_FUNCTIONS = frozenset(
    {
        *("sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "sqrt", "max", "min", "gcd", "lcm", "mod"),
        *("pi", "deg"),
    }
)
#: Between two words, these join them to one expression.
_JOINS = frozenset("+-*/^_=<>≤≥≠±∓×∈∉∪∩≡≈!")
_CLOSES = frozenset(")]}")
_SIGNS = str.maketrans(
    {
        **{"×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "∗": "*", "÷": r" \div ", "°": r"^\circ ", "′": "'"},
        **{"√": r" \sqrt ", "π": r" \pi ", "∞": r" \infty ", "−": "-", "–": "-", "∣": "|", "⩽": "≤", "⩾": "≥"},
    }
)
_WORD_OR_COMMAND = re.compile(r"\\?[^\W\d_]{2,}")


def identity_text(text: str) -> str:
    """The same text for problems that are equal.

    Unicode is in its composed form (NFC), white space is one space, and words that begin with a capital are in lower
    case. In mathematics, capitals stay: ``$N$`` and ``$n$`` are different. So do single letters and words that are not
    capitalised in the usual way, such as ``AB``.
    """
    text = unicodedata.normalize("NFC", text)
    folded, end = [], 0
    for maths in _formulas(text):
        folded += [_WORD_OR_COMMAND.sub(_without_capital, text[end : maths.start()]), maths[0]]
        end = maths.end()
    folded.append(_WORD_OR_COMMAND.sub(_without_capital, text[end:]))
    return " ".join("".join(folded).split())


def words(text: str) -> list[str]:
    r"""The words of a problem without its drawings: numbers, words, letters of formulas, LaTeX names, signs.

    These differences are ignored: compatibility forms of Unicode (NFKC), case, white space, punctuation, separators of
    thousands, layout (``\displaystyle``, ``\left``), and in formulas the spaces between factors, as in ``2xy``. Amounts
    of money have the same words with ``$`` and with ``\$``. Number words are the same as digits.

    Signs, relations, ``^`` and ``_`` are words, in one notation: ``\frac{a}{b}`` is ``a / b``, and ``\cdot`` is ``*``,
    which is left out unless it stands between two numbers. Brackets are words, too, and so are the braces around an
    argument, as in ``\sqrt{x + 1}``. Brackets around a single word or around prose are left out.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _HIGH_OR_LOW.sub("^", text)).translate(_SIGNS)
    if len(text) <= _LONGEST:
        text = _SPACED_NUMBER.sub(_without_spaces, _DRAWING.sub(" ", text))
    text = _FRACTION_OF_DIGITS.sub(r"\1 \2 \3 ", _THOUSANDS.sub("", text))
    tokens, end = [], 0
    for maths in _formulas(text):
        tokens += _IN_TEXT.findall(_ENVIRONMENT.sub(" ", text[end : maths.start()]))
        for inner, token in _IN_MATHS.findall(_ENVIRONMENT.sub(" ", _NO_SIGN_OF_MATHS.sub(" ", maths[0]))):
            tokens += [token] if token else _IN_TEXT.findall(inner)
        end = maths.end()
    tokens += _IN_TEXT.findall(_ENVIRONMENT.sub(" ", text[end:]))
    tokens = [_SYNONYMS.get(token, token) for token in tokens if token not in _LAYOUT]
    # One call of casefold is faster than one per word.
    plain = _with_plain_signs(_with_plain_brackets(tokens))
    folded = " ".join(token.removeprefix("\\") for token in plain).casefold().split()
    return [_DIGITS_OF_WORDS.get(word, word) for word in folded]


def joins(word: str) -> bool:
    """Whether the words before and after this one are parts of one expression: ``+``, ``<``, ``^`` and others."""
    return word in _JOINS


def _with_plain_signs(tokens: list[str]) -> list[str]:
    """The tokens without hyphens, slashes and asterisks of prose, and with one notation of products and degrees."""
    plain = []
    for place, token in enumerate(tokens):
        before, after = tokens[place - 1] if place else "", tokens[place + 1] if place + 1 < len(tokens) else ""
        if token in "-^_" and (not after or _is_prose_word(after)):
            continue
        if token in "*/^×" and (not before or _is_prose_word(before) or before in "*^" or after in "*/"):
            continue
        if token in "*/×" and (not after or _is_prose_word(after)):
            continue
        if token == "^" and after in (r"\circ", "'"):
            continue
        if token in "*×":
            numbers = before.isdigit() + after.isdigit()
            if numbers == 1 or (not numbers and token == "*"):
                continue
            token = "*" if numbers else token
        plain.append(token)
    return plain


def _with_plain_brackets(tokens: list[str]) -> list[str]:
    """The tokens with ``/`` for fractions, and without the brackets that do not change the meaning."""
    outer = _Level("")
    levels = [outer]
    before = ""
    for token in tokens:
        if token in ("(", "["):
            levels.append(_Level(token))
        elif token == "{":
            # Other braces than those of an argument only group.
            is_argument = before in ("^", "_", "}") or before.startswith("\\")
            levels.append(_Level("(" if is_argument else "{"))
        elif token in _CLOSES:
            if len(levels) > 1:
                level = levels.pop()
                levels[-1].add(level.closed_by(")" if token == "}" else token), is_prose=level.has_prose)
        elif token in _FRACTIONS:
            levels[-1].has_numerator_next = True
        else:
            levels[-1].add([token], is_prose=_is_prose_word(token))
        before = token
    for level in levels[1:]:
        outer.tokens += level.tokens  # a bracket that is never closed is left out
    return outer.tokens


class _Level:
    """What stands in one pair of brackets.

    Attributes:
        opening: the bracket.
        tokens: what follows it, without brackets that do not change the meaning.
        parts: the number of words and of inner pairs of brackets.
        has_prose: whether a word of prose is among them.
        has_numerator_next: whether the next part is the numerator of a fraction.
    """

    def __init__(self, opening: str) -> None:
        self.opening = opening
        self.tokens: list[str] = []
        self.parts = 0
        self.has_prose = False
        self.has_numerator_next = False

    def add(self, tokens: list[str], *, is_prose: bool) -> None:
        self.tokens += tokens
        self.parts += 1
        self.has_prose |= is_prose
        if self.has_numerator_next:
            self.tokens.append("/")
            self.has_numerator_next = False

    def closed_by(self, closing: str) -> list[str]:
        is_single = self.opening == "(" and closing == ")" and self.parts <= 1
        if is_single or self.has_prose or self.opening == "{":
            return self.tokens
        return [self.opening, *self.tokens, closing]


def _is_prose_word(token: str) -> bool:
    """Whether a token is a word of prose. Names of functions and words in capitals, as of points, are none."""
    return len(token) > 1 and token.isalpha() and not token.isupper() and token not in _FUNCTIONS


def drawings(text: str) -> list[str]:
    """One word per drawing of a problem: equal for drawings whose code is equal, white space aside."""
    codes = ("".join(drawing[0].split()) for drawing in _DRAWING.finditer(text if len(text) <= _LONGEST else ""))
    return ["[" + hashlib.blake2b(code.encode("utf-8", "replace"), digest_size=8).hexdigest() for code in codes]


def is_fixed(word: str) -> bool:
    """Whether a copy must have this word: numbers, signs, brackets, letters of formulas, number words, and drawings.

    The article "a" and the characters of scripts without spaces are words like others.
    """
    return (
        word[0] == "["
        or word.isdigit()
        or word in _QUANTITIES
        or (len(word) == 1 and word != "a" and not _ONE_CJK.match(word))
    )


def _formulas(text: str) -> Iterator[re.Match]:
    """The formulas of ``text``. The text between two amounts of money, as in "$3 each, and has $50", is none."""
    if len(text) > _LONGEST:
        return
    start = 0
    while formula := _MATHS.search(text, start):
        money = _MONEY.match(text, formula.start())
        if money and _is_prose(money[1]):
            start = formula.start() + 1
            continue
        yield formula
        start = formula.end()


def _is_prose(text: str) -> bool:
    # Words in capitals are names of points or quantities in a formula.
    return not _SIGN_OF_MATHS.search(text) and any(not word.isupper() for word in _WORD.findall(text))


def _without_capital(match: re.Match) -> str:
    word: str = match[0]
    return word[0].lower() + word[1:] if word[0].isupper() and word[1:].islower() else word


def _without_spaces(match: re.Match) -> str:
    number: str = match[0]
    return number.replace(" ", "")
