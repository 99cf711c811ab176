"""Finds training problems that an evaluation set contains too, by the runs of words they share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

#: The share of an evaluation problem's runs that a training problem must have to count as a copy. A single run may be
#: a phrase that many problems end with ("where m and n are relatively prime positive integers, find m + n").
SHARE = 0.5
#: An evaluation problem of fewer words is not searched for inside longer problems: "What is 1 + 1?" would be found.
SHORTEST = 6

#: A word is a run of letters and digits. In scripts without spaces between words, each character is one.
_WORD = re.compile(r"[㐀-鿿぀-ヿ]|[^\W_㐀-鿿぀-ヿ]+")
#: The code of a drawing begins alike in all problems that have one.
_DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL | re.IGNORECASE)


class OverlapIndex:
    """An index of evaluation problems by their runs of ``length`` words.

    A training problem overlaps with an evaluation problem in one of three cases:

    - It has at least ``SHARE`` of the evaluation problem's runs.
    - The evaluation problem has fewer than ``length`` words, and the training problem contains it as a whole.
    - The evaluation problem has fewer than ``SHORTEST`` words, and the training problem consists of the same words.

    Case, white space, punctuation, LaTeX's signs and drawings are ignored. This finds copies with the same numbers. It
    finds neither paraphrases nor the same problem with other numbers. Runs of 13 words are those of GPT-3's report
    (arXiv 2005.14165); the share is our choice.

    Args:
        length: words per run.
    """

    def __init__(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"--overlap-words {length} is too small. Use 2 or more; the default is 13")
        self._length = length
        self._set_names: list[str] = []  # per evaluation problem
        self._run_counts: list[int] = []  # distinct runs per evaluation problem
        self._problems_by_run: defaultdict[int, list[int]] = defaultdict(list)
        self._short_problems: dict[tuple[int, int], str] = {}  # (words, hash of the words) -> set
        self._shortest_problems: dict[int, str] = {}  # hash of the words -> set

    def add(self, name: str, problems: Iterable[str]) -> None:
        """Add the problems of evaluation set ``name``. If two sets have a problem, ``find`` returns the first set."""
        for problem in problems:
            words = _words(problem)
            if len(words) < SHORTEST:
                self._shortest_problems.setdefault(_hash(words), name)
            elif len(words) < self._length:
                self._short_problems.setdefault((len(words), _hash(words)), name)
            else:
                runs = set(_run_hashes(words, self._length))
                for run in runs:
                    self._problems_by_run[run].append(len(self._set_names))
                self._set_names.append(name)
                self._run_counts.append(len(runs))

    def find(self, problem: str) -> str | None:
        """The evaluation set that contains ``problem``, or None."""
        words = _words(problem)
        if not words:
            return None
        if (name := self._shortest_problems.get(_hash(words))) is not None:
            return name
        runs = set(_run_hashes(words, self._length))
        shared = Counter(number for run in runs for number in self._problems_by_run.get(run, ()))
        copied = [number for number, count in shared.items() if count >= SHARE * self._run_counts[number]]
        if copied:
            return self._set_names[min(copied)]
        for length in {length for length, _ in self._short_problems}:
            for run in _run_hashes(words, length):
                if (length, run) in self._short_problems:
                    return self._short_problems[length, run]
        return None


def _run_hashes(words: list[str], length: int) -> Iterator[int]:
    return (_hash(words[start : start + length]) for start in range(len(words) - length + 1))


def _words(text: str) -> list[str]:
    return _WORD.findall(_DRAWING.sub(" ", text).casefold())


def _hash(words: list[str]) -> int:
    """64 bits: among a million runs, the probability that two share a hash is below one in ten million."""
    return hash(tuple(words))
