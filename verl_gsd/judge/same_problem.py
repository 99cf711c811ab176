"""Groups the texts of judged questions by their problem, whatever text stands around it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from verl_gsd.preparation.words import drawings, words

#: A problem of this many words is searched for inside other texts. A shorter one must begin or end a text or a user's
#: message, and the rest of the text must have this many words: "1 + 1" is not the problem "1 + 1 + 1".
_FOUND_INSIDE = 6


def problem_labels(texts: Sequence[str]) -> np.ndarray:
    """A label per text, (N,) int64, equal for texts of one problem: the row of the last such text.

    Two texts have the same problem if they have the same words (``preparation.words``), or if one contains the other:
    a training run adds a suffix or a system message, and a file of responses does not. A chain of such texts is one
    problem. Distinct problems can get one label if one contains the other, which wastes some independence, but never
    puts a problem into both parts of a split.
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
    # ``problem.problem_text`` writes "user: " before a user's message in a chat.
    starts = [0, *(place + 1 for place, word in enumerate(text_words) if word == "user")]
    for length in range(1, min(_FOUND_INSIDE - 1, len(text_words) - _FOUND_INSIDE) + 1):
        parts += [text_words[start : start + length] for start in [*starts, len(text_words) - length]]
    return parts
