"""A problem as read from a source, and its row in verl's columns."""

from __future__ import annotations

import hashlib
import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from verl_gsd.preparation.cells import Message
from verl_gsd.preparation.words import identity_text

#: The text after every problem: that of arXiv 2601.08521, and our variant of it for problems with options.
BOXED = r" Let's think step by step and output the final answer within \boxed{}."
BOXED_LETTER = "\n\n" r"Let's think step by step and output the letter of the right option within \boxed{}."

#: The order of a question's options is a random function of this seed and the question.
OPTIONS_SEED = 0

_CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_FIELDS = [
    pa.field("data_source", pa.string()),
    pa.field("prompt", _CHAT),
    pa.field("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
]
_EXTRA_INFO = [("index", pa.int64()), ("split", pa.string())]
#: Present if a source has demonstrations; null in a row without any.
DEMONSTRATION = pa.field("demonstration", pa.list_(pa.string()))


@dataclass(frozen=True)
class Item:
    """One problem of a source.

    Attributes:
        problem: the question, without instructions on how to answer.
        earlier: the messages of a chat before the question.
        answer: the reference answer in LaTeX; for a problem with options, the text of the right option.
        options: the texts of the options, the right one first; empty if the answer is free.
        demonstration: an expert's responses.
        extra_columns: further columns of the source that the file keeps.
        index: the source's own index of the problem, if it has one.
        level: its level of difficulty, if the source has levels.
        boxed: whether the answer was in a box. Only for tables, whose answers must all be boxed or all be bare.
    """

    problem: str
    answer: str
    options: tuple[str, ...] = ()
    demonstration: list[str] | None = None
    extra_columns: Mapping[str, Any] = field(default_factory=dict)
    index: int | None = None
    level: str | None = None
    boxed: bool | None = None
    earlier: tuple[Message, ...] = ()

    def check_encodable(self) -> None:
        """Raise ValueError if a text cannot be stored as UTF-8: JSON can spell out a lone surrogate."""
        earlier = (message["content"] for message in self.earlier)
        for text in (self.problem, self.answer, *self.options, *(self.demonstration or ()), *earlier):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"the text has a lone surrogate, {text[error.start]!r}. Use the whole character"
                ) from None

    def key(self) -> bytes:
        """A 16-byte hash of the messages, the question and its options, as ``words.identity_text`` writes them.

        The order of the options does not matter.
        """
        earlier = (f"{message['role']} {message['content']}" for message in self.earlier)
        texts = map(identity_text, (*earlier, self.problem, *sorted(self.options)))
        return hashlib.blake2b("\0".join(texts).encode(), digest_size=16).digest()

    def asked(self) -> str:
        """What is compared with evaluation problems: the question, and the earlier turns of its chat."""
        return turns([*self.earlier, {"role": "user", "content": self.problem}])


def file_schema(
    has_demonstrations: bool, extra_columns: Mapping[str, pa.DataType], has_levels: bool = False
) -> pa.Schema:
    """The columns of a prepared file: verl's, ``demonstration`` if there are any, and the source's extra columns.

    With levels, ``extra_info`` also has ``level``.
    """
    extra_info = pa.field("extra_info", pa.struct([*_EXTRA_INFO, *([("level", pa.string())] if has_levels else [])]))
    added = [DEMONSTRATION] if has_demonstrations else []
    return pa.schema([*_FIELDS, extra_info, *added, *(pa.field(name, kind) for name, kind in extra_columns.items())])


def verl_row(item: Item, *, data_source: str, index: int, split: str, suffix: str, style: str) -> dict[str, Any]:
    """One row with the columns of ``file_schema``.

    Args:
        index: unique in a data source; identifies the prompt at every visit.
        suffix: the text after the problem and its options.
        style: ``rule`` if a verifier compares with the answer, ``model`` if a reward model judges.
    """
    question, truth = item.problem, item.answer
    if item.options:
        order = option_order(item.problem, len(item.options))
        letters = string.ascii_uppercase[: len(order)]
        lines = (f"{letter}. {item.options[position]}" for letter, position in zip(letters, order, strict=True))
        question, truth = "\n".join((question + "\n", *lines)), letters[order.index(0)]
    return {
        "data_source": data_source,
        "prompt": [*item.earlier, {"role": "user", "content": question + suffix}],
        "reward_model": {"style": style, "ground_truth": truth},
        "extra_info": {"index": index, "split": split, "level": item.level},
        "demonstration": item.demonstration,
        **item.extra_columns,
    }


def turns(chat: Iterable[Message]) -> str:
    """The text of a chat without its system message, which many chats share."""
    return "\n".join(message["content"] for message in chat if message["role"] != "system")


def option_order(question: str, count: int) -> Sequence[int]:
    """The order in which a question's options are shown; depends only on the question and ``OPTIONS_SEED``."""
    order = list(range(count))
    random.Random(f"{OPTIONS_SEED} {question}").shuffle(order)
    return order
