"""Whether a training problem stands in an evaluation set, too: by runs of words that both have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

#: Words, as a run of letters and digits; of scripts that write none apart, each character.
_WORD = re.compile(r"[㐀-鿿぀-ヿ]|[^\W_㐀-鿿぀-ヿ]+")


class Overlap:
    """Runs of ``length`` words of evaluation problems.

    A training problem overlaps where it has a run of an evaluation problem; an evaluation problem of fewer words must
    be there as a whole and alone. Capitals, white space, punctuation and LaTeX's signs do not count. It finds copies,
    with numbers as they were; not paraphrases, nor the same problem with other numbers. How long a run must be is a
    choice (13 words: that of GPT-3's report, arXiv 2005.14165): shorter ones are found in ordinary phrases.

    Args:
        length: words in a run.
    """

    def __init__(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"--overlap-words {length}: write 2 or more; 13 by default")
        self._length = length
        self._runs: dict[int, str] = {}
        self._short: dict[int, str] = {}

    def add(self, name: str, problems: Iterable[str]) -> None:
        """Take up the evaluation set ``name``; of a run that two sets have, the first is named."""
        for problem in problems:
            words = _words(problem)
            if len(words) < self._length:
                self._short.setdefault(_number(words), name)
            for run in self._of(words):
                self._runs.setdefault(run, name)

    def find(self, problem: str) -> str | None:
        """The evaluation set that has ``problem``, or None."""
        words = _words(problem)
        if len(words) < self._length:
            return self._short.get(_number(words)) if words else None
        return next((self._runs[run] for run in self._of(words) if run in self._runs), None)

    def _of(self, words: list[str]) -> Iterator[int]:
        return (_number(words[start : start + self._length]) for start in range(len(words) - self._length + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _number(words: list[str]) -> int:
    """64 bits in the place of a text: of a million runs two share one in fewer than one case in ten million."""
    return hash(tuple(words))
