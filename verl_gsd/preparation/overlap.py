"""Finds training problems that an evaluation set contains too, by the words they share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from verl_gsd.preparation.words import drawings, is_fixed, joins, words

#: The share of an evaluation problem's runs that a training problem must have to count as a copy. A single run may be
#: a phrase that many problems end with ("where m and n are relatively prime positive integers, find m + n").
SHARE = 0.5
#: An evaluation problem of fewer words is not searched for inside longer problems: "What is 1 + 1?" would be found.
SHORTEST = 6
#: One word in this many may be changed, and at least one.
WORDS_PER_CHANGE = 10
#: The place of a fixed word in the index of a problem that has none.
_NOTHING_FIXED = ""
#: Words per anchor. An evaluation problem of at least ``SHORTEST`` words has two anchors that do not overlap.
_ANCHOR_WORDS = 3

#: A run -> a fixed word -> (number of the problem, the run's offset in it).
_Anchors = dict[tuple[str, ...], dict[str, list[tuple[int, int]]]]


@dataclass(frozen=True)
class _Problem:
    """An evaluation problem.

    Attributes:
        set_name: the evaluation set.
        words: its words in order.
        distinct: the same without order.
        fixed: its numbers, signs and letters (``words.is_fixed``).
        changes: the number of words that may differ in a near copy.
        runs: the number of its distinct runs; 0 if it is shorter than a run.
    """

    set_name: str
    words: list[str]
    distinct: frozenset[str]
    fixed: frozenset[str]
    changes: int
    runs: int


class OverlapIndex:
    """An index of evaluation problems by their words (``words.words``) and by their runs of ``length`` words.

    A training problem overlaps with an evaluation problem in one of these cases:

    - It has at least ``SHARE`` of the evaluation problem's runs, and no number and no sign has another in its place.
    - The evaluation problem has fewer than ``length`` words, and the training problem contains it as a whole.
    - The training problem is a near copy: one word in ``WORDS_PER_CHANGE`` is changed, inserted or left out, but no
      number, sign, bracket or letter of a formula (``words.is_fixed``). Signs and brackets do not add to the number of
      words here. An evaluation problem of at least ``length`` words may be surrounded by other text.
    - The evaluation problem has fewer than ``SHORTEST`` words, and the training problem consists of the same words.

    If a sign before or after the copy joins it to the text around it, as in "What is 1 + 2 + 3?", it is no copy.

    Drawings are ignored, unless a problem without its drawings has fewer than ``length`` words. Then they count as one
    word each.

    This finds copies with the same numbers and signs. It finds neither paraphrases nor the same problem with other
    numbers. Runs of 13 words are those of GPT-3's report (arXiv 2005.14165); the other numbers are our choice.

    Near copies are searched for by anchors. Each change spoils at most one of a problem's disjoint runs of three words.
    One run more than there may be changes is indexed, together with one fixed word of the problem. The rarest
    ones are taken, so that few problems share them.

    Args:
        length: words per run.
    """

    def __init__(self, length: int) -> None:
        if length < 2:
            raise ValueError(f"--overlap-words {length} is too small. Use 2 or more; the default is 13")
        self._length = length
        self._problems: list[_Problem] = []
        self._problems_by_run: defaultdict[int, list[int]] = defaultdict(list)
        self._shortest_problems: dict[tuple[str, ...], int] = {}
        self._anchors: _Anchors | None = None

    def add(self, name: str, problems: Iterable[str]) -> None:
        """Add the problems of evaluation set ``name``. If two sets have a problem, ``find`` returns the first set."""
        self._anchors = None
        for problem in problems:
            number, text_words = len(self._problems), self._words(problem)
            runs = set(_run_hashes(text_words, self._length)) if len(text_words) >= SHORTEST else set()
            changes = max(1, sum(map(_is_word, text_words)) // WORDS_PER_CHANGE)
            distinct = frozenset(text_words)
            fixed = frozenset(filter(is_fixed, distinct))
            self._problems.append(_Problem(name, text_words, distinct, fixed, changes, len(runs)))
            for run in runs:
                self._problems_by_run[run].append(number)
            if len(text_words) < SHORTEST:
                self._shortest_problems.setdefault(tuple(text_words), number)

    def find(self, problem: str) -> str | None:
        """The evaluation set that contains ``problem``, or None."""
        text_words = self._words(problem)
        if not text_words:
            return None
        found = [number for number in [self._shortest_problems.get(tuple(text_words))] if number is not None]
        by_run = self._problems_by_run
        shared = Counter(number for run in set(_run_hashes(text_words, self._length)) for number in by_run.get(run, ()))
        copied = [number for number, count in shared.items() if count >= SHARE * self._problems[number].runs]
        found += [number for number in copied if not _has_other_values(self._problems[number].words, text_words)]
        found += self._near_copies(text_words)
        return self._problems[min(found)].set_name if found else None

    def _words(self, problem: str) -> list[str]:
        text_words = words(problem)
        return text_words if len(text_words) >= self._length else text_words + drawings(problem)

    def _near_copies(self, text_words: list[str]) -> Iterator[int]:
        """The numbers of evaluation problems that ``text_words`` contains, or is a near copy of."""
        if self._anchors is None:
            self._anchors = self._index_anchors()
        anchors, runs = self._anchors, enumerate(_runs(text_words, _ANCHOR_WORDS))
        if not (hits := [(start, anchors[run]) for start, run in runs if run in anchors]):
            return
        distinct = set(text_words)
        fixed = {_NOTHING_FIXED, *filter(is_fixed, distinct)}
        candidates = {
            (number, start - offset)
            for start, by_fixed in hits
            for word in fixed & by_fixed.keys()
            for number, offset in by_fixed[word]
        }
        for number, start in candidates:
            problem = self._problems[number]
            if not problem.fixed <= fixed or len(problem.distinct - distinct) > problem.changes:
                continue
            size = len(problem.words)
            if start >= 0 and text_words[start : start + size] == problem.words:
                around = text_words[max(start - 1, 0) : start] + text_words[start + size : start + size + 1]
                if not any(map(joins, around)):
                    yield number
            elif size >= self._length:
                window = text_words[max(start - problem.changes, 0) : start + size + problem.changes]
                if _is_near(problem.words, window, problem.changes, is_inside=True):
                    yield number
            elif _is_near(problem.words, text_words, problem.changes, is_inside=False):
                yield number

    def _index_anchors(self) -> _Anchors:
        by_problem = [
            [tuple(problem.words[at : at + _ANCHOR_WORDS]) for at in _anchor_offsets(problem.words)]
            for problem in self._problems
        ]
        frequency = Counter(run for runs in by_problem for run in runs)
        word_frequency = Counter(word for problem in self._problems for word in problem.fixed)
        anchors: _Anchors = {}
        for number, (problem, runs) in enumerate(zip(self._problems, by_problem, strict=True)):
            rarest = sorted(range(len(runs)), key=lambda place: frequency[runs[place]])[: problem.changes + 1]
            fixed = min(problem.fixed, key=lambda word: (word_frequency[word], word), default=_NOTHING_FIXED)
            for place in rarest:
                anchors.setdefault(runs[place], {}).setdefault(fixed, []).append((number, place * _ANCHOR_WORDS))
        return anchors


def _anchor_offsets(text_words: list[str]) -> range:
    """The starts of a problem's disjoint runs of ``_ANCHOR_WORDS``; none for a problem of too few words."""
    return range(0, len(text_words) - _ANCHOR_WORDS + 1 if len(text_words) >= SHORTEST else 0, _ANCHOR_WORDS)


def _is_near(evaluation: list[str], training: list[str], changes: int, *, is_inside: bool) -> bool:
    """Whether at most ``changes`` edits of words turn ``evaluation`` into ``training``.

    An edit changes, inserts or leaves out a word that is not fixed (``words.is_fixed``). This is the edit distance by
    dynamic programming.

    Args:
        is_inside: compare with any run of words inside ``training``, instead of with all of it. No sign may join it to
            the words around it.
    """
    if not is_inside and abs(len(evaluation) - len(training)) > changes:
        return False
    never = changes + 1
    fixed = [is_fixed(word) for word in training]
    costs = [0]
    for word, is_word_fixed in zip(training, fixed, strict=True):
        costs.append(never * joins(word) if is_inside else costs[-1] + (never if is_word_fixed else 1))
    for word in evaluation:
        is_word_fixed = is_fixed(word)
        leave_out = never if is_word_fixed else 1
        row = [costs[0] + leave_out]
        for place, other in enumerate(training):
            change = 0 if word == other else never if is_word_fixed or fixed[place] else 1
            insert = never if fixed[place] else 1
            row.append(min(costs[place] + change, costs[place + 1] + leave_out, row[-1] + insert))
        costs = row
        if min(costs) > changes:
            return False
    if not is_inside:
        return costs[-1] <= changes
    return min(cost + never * joins(after) for cost, after in zip(costs, [*training, ""], strict=True)) <= changes


def _is_word(word: str) -> bool:
    return word.isalnum() or word[0] == "["


def _has_other_values(evaluation: list[str], training: list[str]) -> bool:
    """Whether ``evaluation`` has another number, or another sign, in the place of one: after the same word.

    After a number, letter or sign, a sign in the place of a word counts, too: one expression continues where the other
    one ends.
    """
    ours, theirs = (Counter(pairwise(("", *text_words, ""))) for text_words in (evaluation, training))
    ours, theirs = ours - theirs, theirs - ours
    values = defaultdict(set)
    for word, value in theirs:
        values[word].add(value)
    return any(_is_other(word, value, other) for word, value in ours for other in values[word])


def _is_other(word: str, value: str, other: str) -> bool:
    """Whether ``value`` and ``other`` after ``word`` tell two problems apart. They differ, and are "" at the end."""
    if value.isdigit() and other.isdigit():
        return True
    if not (_is_sign(value) or _is_sign(other)):
        return False
    is_after_value = bool(word) and is_fixed(word)
    return (bool(value and other) and is_fixed(value) and is_fixed(other)) or (
        is_after_value and (joins(value) or joins(other))
    )


def _is_sign(word: str) -> bool:
    return bool(word) and not _is_word(word)


def _runs(text_words: list[str], length: int) -> Iterator[tuple[str, ...]]:
    return zip(*(text_words[start:] for start in range(length)))  # noqa: B905  (the slices differ in length)


def _run_hashes(text_words: list[str], length: int) -> Iterator[int]:
    """64 bits each: among a million runs, the probability that two share a hash is below one in ten million."""
    return map(hash, _runs(text_words, length))
