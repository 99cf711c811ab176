"""Problems and answers from a table, as verl reads them: a chat, the reference answer, and an index a row."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from verl_gsd.sheets import Sheet
from verl_gsd.tasks.maths import last_boxed

#: After every problem: HA-DW's (arXiv 2601.08521).
SUFFIX = r" Let's think step by step and output the final answer within \boxed{}."

#: A text of more characters without a box is a solution and no answer.
_LONGEST_UNBOXED = 300


def verl_table(
    sheet: Sheet,
    data_source: str,
    *,
    problem: str,
    answer: str | None,
    demonstration: str | None = None,
    suffix: str = SUFFIX,
) -> pa.Table:
    r"""The rows of ``sheet`` with verl's columns, and ``demonstration`` where there are any.

    Args:
        data_source: rows of different files must differ in it, or in their index.
        problem: a column of texts, or of chats, whose last message of a user it is.
        answer: a column of texts or numbers, of solutions with a ``\boxed{}``, whose last counts, or of verl's
            ``reward_model``; None for a task whose reward is a model's.
        demonstration: a column of texts, of lists of texts, or of chats, whose assistant's messages they are; nulls are
            none.

    Raises:
        ValueError: a column is not there or a row's value is no such thing; the message names file, column and row.
    """
    answers = sheet.column(answer, _answer) if answer else [""] * len(sheet)
    if answer:
        _require_boxes_alike(sheet, answer)
    problems = sheet.column(problem, _problem)
    rows = [
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": asked + suffix}],
            "reward_model": {"style": "rule" if answer else "model", "ground_truth": truth},
            "extra_info": {"index": index},
        }
        for index, (asked, truth) in enumerate(zip(problems, answers, strict=True))
    ]
    table = pa.Table.from_pylist(rows)
    if demonstration is None:
        return table
    shown = pa.array(sheet.column(demonstration, _demonstrations), pa.list_(pa.string()))
    return table.append_column("demonstration", shown)


def write_table(table: pa.Table, path: Path) -> None:
    """Write Parquet, whole or not at all.

    Raises:
        OSError: there is no room, or no right to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    building = path.with_name(path.name + ".tmp")
    try:
        pq.write_table(table, building, compression="zstd")
        building.replace(path)
    finally:
        building.unlink(missing_ok=True)


def _problem(value: Any) -> str:
    if isinstance(value, list):
        asked = [message["content"] for message in value if _is_by(message, "user")]
        value = asked[-1] if asked else None
    if not isinstance(value, str) or not value.strip():
        raise ValueError("write a text, or a chat with a user's message")
    return value.strip()


def _answer(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("ground_truth")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError("write a text, a number, or a reward_model with a ground_truth")
    boxed = last_boxed(value)
    found = value.strip() if boxed is None else boxed
    if not found or "\\boxed" in found or (boxed is None and len(found) > _LONGEST_UNBOXED):
        raise ValueError(f"no answer in {value[-60:]!r}; write it alone, or a solution that has it in \\boxed{{}}")
    return found


def _require_boxes_alike(sheet: Sheet, column: str) -> None:
    """Of a column of solutions one without a box would become an answer that no response equals."""
    boxed = sheet.column(column, lambda value: isinstance(value, str) and last_boxed(value) is not None)
    if any(boxed) and not all(boxed):
        raise ValueError(
            f"{sheet.path}: row {boxed.index(False)} (the first is 0), column {column}: no \\boxed{{}}, which others "
            "have. Write the answer into one, or leave the row out"
        )


def _demonstrations(value: Any) -> list[str] | None:
    if value is None:
        return None
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = [message["content"] for message in value if _is_by(message, "assistant")]
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError("write a text, a list of texts, a chat with an assistant's message, or null")
    return texts or None


def _is_by(message: Any, role: str) -> bool:
    return isinstance(message, Mapping) and message.get("role") == role and isinstance(message.get("content"), str)
