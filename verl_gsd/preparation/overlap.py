"""Whether a training problem stands in an evaluation set, too: by runs of words that both have."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

#: Of an evaluation problem's runs, the share that a training problem must have: one run alone may be a phrase that many
#: problems end with ("where m and n are relatively prime positive integers, find m + n").
SHARE = 0.5
#: An evaluation problem of fewer words is not looked for within others: "What is 1 + 1?" is.
SHORTEST = 6

#: Words, as a run of letters and digits; of scripts that write none apart, each character.
_WORD = re.compile(r"[㐀-鿿぀-ヿ]|[^\W_㐀-鿿぀-ヿ]+")
#: A drawing's code begins alike in every problem that has one.
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL | re.IGNORECASE)


class Overlap:
    """Evaluation problems, as runs of ``length`` words.

    A training problem overlaps where it has at least ``SHARE`` of the runs of an evaluation problem; one of fewer words
    than that must be in it as a whole, and one of fewer than ``SHORTEST`` must be all of it. Capitals, white space,
    punctuation, LaTeX's signs and drawings do not count. It finds copies, with numbers as they were; not paraphrases,
    nor the same problem with other numbers. 13 words are those of GPT-3's report (arXiv 2005.14165), the share is ours.

    Args:
        length: words in a run.
    """

    def __init__(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"--overlap-words {length}: write 2 or more; 13 by default")
        self._length = length
        self._names: list[str] = []  # by evaluation problem
        self._totals: list[int] = []  # its different runs
        self._runs: defaultdict[int, list[int]] = defaultdict(list)  # run -> evaluation problems
        self._within: dict[tuple[int, int], str] = {}  # (words, number) of short ones
        self._alone: dict[int, str] = {}

    def add(self, name: str, problems: Iterable[str]) -> None:
        """Take up the evaluation set ``name``; of a problem that two sets have, the first is named."""
        for problem in problems:
            words = _words(problem)
            if len(words) < SHORTEST:
                self._alone.setdefault(_number(words), name)
            elif len(words) < self._length:
                self._within.setdefault((len(words), _number(words)), name)
            else:
                runs = set(_runs(words, self._length))
                for run in runs:
                    self._runs[run].append(len(self._names))
                self._names.append(name)
                self._totals.append(len(runs))

    def find(self, problem: str) -> str | None:
        """The evaluation set that has ``problem``, or None."""
        words = _words(problem)
        if not words:
            return None
        if (found := self._alone.get(_number(words))) is not None:
            return found
        shared = Counter(known for run in set(_runs(words, self._length)) for known in self._runs.get(run, ()))
        copied = [known for known, count in shared.items() if count >= SHARE * self._totals[known]]
        if copied:
            return self._names[min(copied)]
        for length in {length for length, _ in self._within}:
            for run in _runs(words, length):
                if (length, run) in self._within:
                    return self._within[length, run]
        return None


def _runs(words: list[str], length: int) -> Iterator[int]:
    return (_number(words[start : start + length]) for start in range(len(words) - length + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(_DRAWING.sub(" ", text).casefold())


def _number(words: list[str]) -> int:
    """64 bits in the place of a text: of a million runs two share one in fewer than one case in ten million."""
    return hash(tuple(words))
