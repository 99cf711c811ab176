"""The named data sets: the repository and columns of each, and how a row becomes a problem.

To add a data set, add an entry to ``SOURCES``. Repositories, splits and columns follow the dataset cards on Hugging
Face's hub and published code that loads them. We have not loaded them from the hub ourselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from verl_gsd.preparation import cells
from verl_gsd.preparation.item import BOXED, BOXED_LETTER, Item

Row = Mapping[str, Any]

MATHS, CHOICE = "verl_gsd.tasks.maths", "verl_gsd.tasks.choice"


@dataclass(frozen=True)
class Source:
    """A data set that can be prepared.

    Attributes:
        repository: on the hub; None for a table of the user.
        splits: our name of a split (``train``, ``test``) -> the repository's name.
        columns: the columns that ``read`` uses.
        read: turns a row into an item.
        configs: the repository's configurations, which are read one after another.
        suffix: the text after every problem.
        verifier: the module whose ``compute_score`` verifies responses; None if a reward model judges them.
        has_demonstrations: whether items have demonstrations.
        level_column: the column with levels of difficulty, which a downloaded folder need not have.
        extra_columns: further columns that the prepared file keeps, with their types.
        column_roles: which column of a user's table is used for what; empty for other sources.
    """

    repository: str | None
    splits: Mapping[str, str]
    columns: tuple[str, ...]
    read: Callable[[Row], Item]
    configs: tuple[str | None, ...] = (None,)
    suffix: str = BOXED
    verifier: str | None = MATHS
    has_demonstrations: bool = False
    level_column: str | None = None
    extra_columns: Mapping[str, pa.DataType] = field(default_factory=dict)
    column_roles: str = ""


#: The roles of a table's columns, as the manifest stores them.
_ROLES = "problem={}, answer={}, demonstration={}, index={}"


def table(
    problem: str,
    answer: str | None,
    demonstration: str | None = None,
    index: str | None = None,
    suffix: str = BOXED,
    split: str = "train",
) -> Source:
    """The source for a user's table, given the names of its columns; ``answer`` is None if a reward model judges."""

    def read(row: Row) -> Item:
        earlier, question = _cell(row, problem, cells.conversation)
        return Item(
            question,
            _cell(row, answer, cells.answer) if answer else "",
            earlier=earlier,
            demonstration=_cell(row, demonstration, cells.demonstrations) if demonstration else None,
            index=_cell(row, index, cells.index) if index else None,
            boxed=cells.has_box(row[answer]) if answer and isinstance(row[answer], str) else None,
        )

    return Source(
        None,
        {split: split},
        tuple(dict.fromkeys(name for name in (problem, answer, demonstration, index) if name)),
        read,
        column_roles=_ROLES.format(problem, answer, demonstration, index),
        suffix=suffix,
        verifier=MATHS if answer else None,
        has_demonstrations=demonstration is not None,
    )


def table_options(entry: Mapping[str, Any]) -> list[str]:
    """The column options of ``verl-gsd prepare`` with which it read a table, as words.

    Args:
        entry: a split's entry in the manifest. For a data set with fixed columns there are no options.
    """
    roles = re.fullmatch(_ROLES.format("(.*)", "(.*)", "(.*)", "(.*)"), entry.get("reads") or "")
    if roles is None:
        return []
    options = ("--problem-column", "--answer-column", "--demonstration-column", "--index-column")
    defaults = ("problem", "answer", "None", "None")
    columns = zip(options, roles.groups(), defaults, strict=True)
    words = [word for option, name, default in columns if name not in (default, "None") for word in (option, name)]
    if entry.get("verifier") is None:
        words.append("--judged-by-model")
    if (suffix := entry.get("suffix", BOXED)) != BOXED:
        words += ["--suffix", suffix]
    return words


def _cell(row: Row, name: str, read: Callable[[Any], Any]) -> Any:
    try:
        return read(row[name])
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from error


def _by_columns(problem: str, answer: str) -> Callable[[Row], Item]:
    return lambda row: Item(_cell(row, problem, cells.problem), _cell(row, answer, cells.answer))


def _by_columns_with_level(problem: str, answer: str) -> Callable[[Row], Item]:
    """The column ``level`` is a number, or a text such as ``Level 5``."""
    read = _by_columns(problem, answer)
    return lambda row: replace(read(row), level=None if row.get("level") is None else str(row["level"]))


def _gsm8k(row: Row) -> Item:
    """The answer follows ``####``; commas separate its thousands."""
    _, marker, final = _cell(row, "answer", cells.text).rpartition("####")
    if not marker or not final.strip():
        raise ValueError("column answer: there is no answer after ####")
    return Item(_cell(row, "question", cells.problem), final.strip().replace(",", ""))


#: The text around every problem in DAPO's file. It is removed, because we verify another form of answer.
_DAPO_BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem."
)
_DAPO_AFTER = 'Remember to put your answer on its own line after "Answer:".'


def _dapo(row: Row) -> Item:
    problem = _cell(row, "prompt", cells.problem).removeprefix(_DAPO_BEFORE).removesuffix(_DAPO_AFTER).strip()
    return Item(problem, _cell(row, "reward_model", cells.answer))


def _openr1(row: Row) -> Item:
    """All problems have the same system message. It is left out, because it asks for another form of response."""
    return Item(
        _cell(row, "prompt", cells.problem),
        _cell(row, "reward_model", cells.answer),
        demonstration=_cell(row, "target", cells.demonstrations),
    )


def _bigmath(row: Row) -> Item:
    item, rate = _by_columns("problem", "answer")(row), row["llama8b_solve_rate"]
    if rate is not None and not (isinstance(rate, float | int) and 0 <= rate <= 1):
        raise ValueError(f"column llama8b_solve_rate: {rate!r} is not a solve rate. Use a number from 0 to 1, or null")
    return Item(item.problem, item.answer, extra_columns={"llama8b_solve_rate": rate})


def _tldr(row: Row) -> Item:
    return Item(_cell(row, "prompt", cells.text), _cell(row, "completion", cells.text))


def _olympiadbench(row: Row) -> Item:
    """The answer is a list with one text, between dollar signs. A text can hold several answers."""
    answer = _cell(row, "final_answer", lambda value: cells.answer(cells.parse_list_literal(value)))
    return Item(_cell(row, "question", cells.problem), answer.replace("$", "").strip())


def _with_options(question: str, right: int, options: list[str]) -> Item:
    right_option = options.pop(right)
    return Item(question, right_option, (right_option, *options))


def _arc(row: Row) -> Item:
    """``answerKey`` is one of the labels, which are letters or digits."""
    choices = row["choices"]
    if not isinstance(choices, Mapping) or not {"text", "label"} <= set(choices):
        raise ValueError("column choices: not a struct of texts and labels. Use {text: [...], label: [...]}")
    labels = list(choices["label"])
    if row["answerKey"] not in labels or len(labels) != len(choices["text"]):
        raise ValueError(
            f"column answerKey: {row['answerKey']!r} is not one of the labels {labels}, or there is not one label per "
            "text"
        )
    options = _cell(choices, "text", cells.options)
    return _with_options(_cell(row, "question", cells.problem), labels.index(row["answerKey"]), options)


_GPQA_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _gpqa(row: Row) -> Item:
    return _with_options(
        _cell(row, "Question", cells.problem), 0, [_cell(row, name, cells.text) for name in _GPQA_OPTIONS]
    )


def _mmlu_pro(row: Row) -> Item:
    options, right = _cell(row, "options", cells.options), row["answer_index"]
    if not isinstance(right, int) or not 0 <= right < len(options):
        raise ValueError(f"column answer_index: {right!r} is not an index into the {len(options)} options")
    return _with_options(_cell(row, "question", cells.problem), right, options)


def _benchmark(repository: str, split: str, problem: str, answer: str) -> Source:
    return Source(repository, {"test": split}, (problem, answer), _by_columns(problem, answer))


def _choices(repository: str, config: str | None, split: str, columns: tuple[str, ...], read: Any) -> Source:
    return Source(
        repository,
        {"test": split},
        columns,
        read,
        configs=(config,),
        suffix=BOXED_LETTER,
        verifier=CHOICE,
    )


_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
_BOTH = {"train": "train", "test": "test"}

SOURCES: dict[str, Source] = {
    "gsm8k": Source("openai/gsm8k", _BOTH, ("question", "answer"), _gsm8k, configs=("main",)),
    "math": Source(
        "EleutherAI/hendrycks_math",
        _BOTH,
        ("problem", "solution"),
        _by_columns_with_level("problem", "solution"),
        configs=_MATH_SUBJECTS,
        level_column="level",
    ),
    "dapo17k": Source("BytedTsinghua-SIA/DAPO-Math-17k", {"train": "train"}, ("prompt", "reward_model"), _dapo),
    "openr1_math_46k": Source(
        "Elliott/Openr1-Math-46k-8192",
        {"train": "train"},
        ("prompt", "reward_model", "target"),
        _openr1,
        has_demonstrations=True,
    ),
    "bigmath": Source(
        "SynthLabsAI/Big-Math-RL-Verified",
        {"train": "train"},
        ("problem", "answer", "llama8b_solve_rate"),
        _bigmath,
        extra_columns={"llama8b_solve_rate": pa.float64()},
    ),
    "tldr": Source("trl-lib/tldr", _BOTH, ("prompt", "completion"), _tldr, suffix="", verifier=None),
    "aime24": _benchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer"),
    "aime25": _benchmark("math-ai/aime25", "test", "problem", "answer"),
    "amc23": _benchmark("math-ai/amc23", "test", "question", "answer"),
    "math500": Source(
        "HuggingFaceH4/MATH-500",
        {"test": "test"},
        ("problem", "answer"),
        _by_columns_with_level("problem", "answer"),
        level_column="level",
    ),
    "minerva": _benchmark("math-ai/minervamath", "test", "question", "answer"),
    "olympiadbench": Source(
        "Hothan/OlympiadBench",
        {"test": "train"},
        ("question", "final_answer"),
        _olympiadbench,
        configs=("OE_TO_maths_en_COMP",),
    ),
    "arc_c": _choices("allenai/ai2_arc", "ARC-Challenge", "test", ("question", "choices", "answerKey"), _arc),
    "gpqa_diamond": _choices("Idavidrein/gpqa", "gpqa_diamond", "train", ("Question", *_GPQA_OPTIONS), _gpqa),
    "mmlu_pro": _choices("TIGER-Lab/MMLU-Pro", None, "test", ("question", "options", "answer_index"), _mmlu_pro),
}
