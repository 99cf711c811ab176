"""A problem as it was read, and as a row of verl's."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

#: The text after every problem: that of arXiv 2601.08521, and our variant of it for problems with options.
BOXED = r" Let's think step by step and output the final answer within \boxed{}."
BOXED_LETTER = "\n\n" r"Let's think step by step and output the letter of the right option within \boxed{}."

#: What the order of a question's options is drawn from, with the question.
OPTIONS_SEED = 0

_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FIELDS = [
    pa.field("data_source", pa.string()),
    pa.field("prompt", _CHAT),
    pa.field("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
    pa.field("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string())])),
]
#: Written where a source has demonstrations; null in a row without one.
DEMONSTRATION = pa.field("demonstration", pa.list_(pa.string()))


@dataclass(frozen=True)
class Item:
    """One problem.

    Attributes:
        problem: what is asked, without a word on how to answer.
        answer: the reference answer, in LaTeX; of a problem with options, the right one's text.
        options: texts, the right one first; empty where the answer is free.
        demonstration: an expert's responses.
        further: columns of the source that are kept beside verl's.
        index: its number where the source gives one.
        boxed: whether its answer stood in a box, of a table whose answers must be alike in that.
    """

    problem: str
    answer: str
    options: tuple[str, ...] = ()
    demonstration: list[str] | None = None
    further: Mapping[str, Any] = field(default_factory=dict)
    index: int | None = None
    boxed: bool | None = None

    def require_writable(self) -> None:
        """Raise a ValueError for a text that no file can have: a lone surrogate, as JSON may spell out."""
        for text in (self.problem, self.answer, *self.options, *(self.demonstration or ())):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"half a character, {text[error.start]!r}: write the whole of it") from None

    def key(self) -> bytes:
        """16 bytes that two items share if they ask the same, capitals and white space aside."""
        asked = "\0".join((self.problem, *sorted(self.options)))
        return hashlib.blake2b(" ".join(asked.split()).casefold().encode(), digest_size=16).digest()


def schema(has_demonstrations: bool, further: Mapping[str, pa.DataType]) -> pa.Schema:
    """The columns of a prepared file: verl's, ``demonstration``, and what a source adds."""
    added = [DEMONSTRATION] if has_demonstrations else []
    return pa.schema([*_FIELDS, *added, *(pa.field(name, kind) for name, kind in further.items())])


def verl_row(item: Item, *, data_source: str, index: int, split: str, suffix: str, style: str) -> dict[str, Any]:
    """A row of ``schema``.

    Args:
        index: unique in a data source: with it a prompt is recognised at every visit.
        suffix: written after the problem, or after its options.
        style: ``rule`` where a verifier compares with the answer, ``model`` where a reward model judges.
    """
    asked, truth = item.problem, item.answer
    if item.options:
        order = shuffled(item.problem, len(item.options))
        letters = string.ascii_uppercase[: len(order)]
        lines = (f"{letter}. {item.options[place]}" for letter, place in zip(letters, order, strict=True))
        asked, truth = "\n".join((asked + "\n", *lines)), letters[order.index(0)]
    return {
        "data_source": data_source,
        "prompt": [{"role": "user", "content": asked + suffix}],
        "reward_model": {"style": style, "ground_truth": truth},
        "extra_info": {"index": index, "split": split},
        "demonstration": item.demonstration,
        **item.further,
    }


def shuffled(question: str, count: int) -> Sequence[int]:
    """The order in which a question's options are shown: a function of the question and of ``OPTIONS_SEED`` alone."""
    order = list(range(count))
    random.Random(f"{OPTIONS_SEED} {question}").shuffle(order)
    return order
