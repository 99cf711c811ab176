"""Groups the texts of judged questions by their problem, whatever text stands around it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from verl_gsd.preparation.words import drawings, words

#: A problem of this many words is searched for inside other texts. A shorter one must begin or end a text or a user's
#: message, and the rest of the text must have this many words: "1 + 1" is not the problem "1 + 1 + 1".
_FOUND_INSIDE = 6
#: An ending is added to problems if at least this many texts, and this share of all, have it.
_ENDING_TEXTS, _ENDING_SHARE = 4, 0.02
#: Only endings of up to this many words are looked for, so that the time is linear in the number of words.
_ENDING_WORDS = 64


def problem_labels(texts: Sequence[str]) -> np.ndarray:
    """A label per text, (N,) int64, equal for texts of one problem: the row of the last such text.

    Two texts have the same problem if they have the same words (``preparation.words``), or if one contains the other:
    a training run adds a suffix or a system message, and a file of responses does not. They also have the same problem
    if they differ only in endings that many texts have, as the suffixes of two runs (``_stems``). A chain of such texts
    is one problem.

    Distinct problems can get one label if one contains the other, or if they differ only in such endings. That wastes
    some independence, but never puts a problem into both parts of a split. Suffixes with a number, and suffixes that
    few texts have, are not recognised.
    """
    rows_by_words: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        # A text without words is its own problem.
        rows_by_words[(*words(text), *drawings(text)) or (text.strip(),)].append(row)
    parent = {text_words: text_words for text_words in rows_by_words}

    def root(text_words: tuple[str, ...]) -> tuple[str, ...]:
        while parent[text_words] != text_words:
            parent[text_words] = text_words = parent[parent[text_words]]
        return text_words

    lengths_by_start: defaultdict[tuple[str, ...], set[int]] = defaultdict(set)
    for text_words in rows_by_words:
        lengths_by_start[text_words[:_FOUND_INSIDE]].add(len(text_words))
    for text_words in rows_by_words:
        for part in _parts(text_words, lengths_by_start):
            if part in parent:
                parent[root(part)] = root(text_words)
    endings = _common_endings(rows_by_words)
    text_of_stem: dict[tuple[str, ...], tuple[str, ...]] = {}
    for text_words in rows_by_words:
        for stem in _stems(text_words, endings):
            parent[root(text_of_stem.setdefault(stem, text_words))] = root(text_words)
    labels: np.ndarray = np.empty(len(texts), np.int64)
    rows_by_root: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for text_words, rows in rows_by_words.items():
        rows_by_root[root(text_words)] += rows
    for rows in rows_by_root.values():
        labels[rows] = max(rows)
    return labels


def _parts(text_words: tuple[str, ...], lengths_by_start: dict[tuple[str, ...], set[int]]) -> list[tuple[str, ...]]:
    """The parts of a text that may be another text with the same problem."""
    parts = [
        text_words[start : start + length]
        for start in range(len(text_words) - _FOUND_INSIDE + 1)
        for length in lengths_by_start.get(text_words[start : start + _FOUND_INSIDE], ())
        if _FOUND_INSIDE <= length <= len(text_words) - start
    ]
    for length in range(1, min(_FOUND_INSIDE - 1, len(text_words) - _FOUND_INSIDE) + 1):
        parts += [text_words[start : start + length] for start in [*_starts(text_words), len(text_words) - length]]
    return parts


def _starts(text_words: tuple[str, ...]) -> list[int]:
    """Where a problem may begin: at the first word, and where a user's message begins."""
    # ``problem.problem_text`` writes "user: " before a user's message in a chat.
    return [0, *(place + 1 for place, word in enumerate(text_words) if word == "user")]


def _common_endings(texts: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The endings that many texts have. An ending with a number is none, because it may be of the problem."""
    texts = list(texts)
    counts = Counter(ending for text_words in texts for ending in _endings(text_words))
    least = max(_ENDING_TEXTS, _ENDING_SHARE * len(texts))
    return {ending for ending, count in counts.items() if count >= least}


def _endings(text_words: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The endings of a text, from its last word on, without numbers, of up to ``_ENDING_WORDS``."""
    endings = []
    for start in range(len(text_words) - 1, max(0, len(text_words) - 1 - _ENDING_WORDS), -1):
        if text_words[start].isdigit():
            break
        endings.append(text_words[start:])
    return endings


def _stems(text_words: tuple[str, ...], endings: set[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The texts that may be the problem: this one from where it may begin, without an ending of ``endings``."""
    starts = _starts(text_words)
    lengths = [0, *(len(ending) for ending in _endings(text_words) if ending in endings)]
    ends = [len(text_words) - length for length in lengths]
    return [text_words[start:end] for start in starts for end in ends if start < end]
