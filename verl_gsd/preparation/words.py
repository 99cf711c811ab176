r"""Normalises the text of a problem, so that copies of it are recognised in other notation.

``identity_text`` is for problems that are equal. ``words`` is for copies, and ignores more.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

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
#: Before superscript and subscript digits, which NFKC makes ordinary ones.
_HIGH_OR_LOW = re.compile(r"(?=[²³¹⁰⁴-⁹₀-₉])")
#: ``\frac12`` is a half.
_FRACTION_OF_DIGITS = re.compile(r"(\\[dtc]?frac)\s*([0-9])\s*([0-9])")
_IN_TEXT = re.compile(rf"\\[A-Za-z]+|\d+|[{_CJK}]|{_LETTER}[^\W_{_CJK}]*")
_COMMAND_WITH_TEXT = r"\\(?:text|textbf|textit|textrm|mbox|mathrm|operatorname)\s*\{([^{}]*)\}"
#: A word, but not the letters of ``2xy``.
_WORD = re.compile(r"(?<!\w)[^\W\d_]{2,}")
_SIGN_OF_MATHS = re.compile(r"[=+*^_<>{}]|\\[A-Za-z]")
_IN_MATHS = re.compile(rf"{_COMMAND_WITH_TEXT}|(\\[A-Za-z]+|\d+|[A-Z]{{2,}}|[^\W\d_])")
#: Commands that change only how a text looks.
_LAYOUT = frozenset(
    {
        *(r"\displaystyle", r"\textstyle", r"\scriptstyle", r"\left", r"\right", r"\middle", r"\limits", r"\nolimits"),
        *(r"\big", r"\Big", r"\bigg", r"\Bigg", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr", r"\quad", r"\qquad"),
        *(r"\text", r"\textbf", r"\textit", r"\textrm", r"\emph", r"\mbox", r"\mathrm", r"\mathbf", r"\mathit"),
        *(r"\boldsymbol", r"\operatorname", r"\ldots", r"\cdots", r"\dots", r"\noindent"),
    }
)
_SYNONYMS = {
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac"), "frac"),
    **{r"\leq": "le", r"\geq": "ge", r"\neq": "ne", r"\leqslant": "le", r"\geqslant": "ge"},
}
_SIGNS = str.maketrans(
    {
        **{"×": r" \times ", "·": r" \cdot ", "⋅": r" \cdot ", "÷": r" \div ", "±": r" \pm ", "≤": r" \le "},
        **{"≥": r" \ge ", "≠": r" \ne ", "°": r" \circ ", "√": r" \sqrt ", "π": r" \pi ", "∞": r" \infty "},
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
    r"""The words of a problem without its drawings: numbers, words, letters of formulas, and names of LaTeX commands.

    These differences are ignored: compatibility forms of Unicode (NFKC), case, white space, punctuation, separators of
    thousands, layout (``\displaystyle``, ``\left``), ``\dfrac`` for ``\frac``, ``×`` for ``\times``, and in formulas
    the spaces between factors, as in ``2xy``. Amounts of money have the same words with ``$`` and with ``\$``.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _HIGH_OR_LOW.sub(" ", text)).translate(_SIGNS)
    text = _THOUSANDS.sub("", _DRAWING.sub(" ", text))
    if "\\" not in text and "$" not in text:
        return " ".join(_IN_TEXT.findall(text)).casefold().split()
    text = _FRACTION_OF_DIGITS.sub(r"\1 \2 \3 ", text)
    tokens, end = [], 0
    for maths in _formulas(text):
        tokens += _IN_TEXT.findall(_ENVIRONMENT.sub(" ", text[end : maths.start()]))
        for inner, token in _IN_MATHS.findall(_ENVIRONMENT.sub(" ", maths[0])):
            tokens += [token] if token else _IN_TEXT.findall(inner)
        end = maths.end()
    tokens += _IN_TEXT.findall(_ENVIRONMENT.sub(" ", text[end:]))
    # One call of casefold is faster than one per word.
    return (
        " ".join(_SYNONYMS.get(token, token.removeprefix("\\")) for token in tokens if token not in _LAYOUT)
        .casefold()
        .split()
    )


def drawings(text: str) -> list[str]:
    """One word per drawing of a problem: equal for drawings whose code is equal, white space aside."""
    codes = ("".join(drawing[0].split()) for drawing in _DRAWING.finditer(text))
    return ["[" + hashlib.blake2b(code.encode("utf-8", "replace"), digest_size=8).hexdigest() for code in codes]


def is_fixed(word: str) -> bool:
    """Whether a copy must have this word: numbers, letters of formulas, and drawings.

    The article "a" and the characters of scripts without spaces are words like others.
    """
    return word[0] == "[" or word.isdigit() or (len(word) == 1 and word != "a" and not _ONE_CJK.match(word))


def _formulas(text: str) -> Iterator[re.Match]:
    """The formulas of ``text``. The text between two amounts of money, as in "$3 each, and has $50", is none."""
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
