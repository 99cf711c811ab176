"""Pairs of a response and its reference answer: read from a table, verl's dumps or a run, and compared.

A run's records have no texts. verl stores the responses of a run only in dumps (``trainer.rollout_data_dir`` and
``trainer.validation_data_dir``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_gsd.dotted_keys import value_at
from verl_gsd.judge.cells import as_reference, as_response
from verl_gsd.judge.problem import problem_text
from verl_gsd.preparation import cells
from verl_gsd.row_table import SUFFIXES, read_row_table
from verl_gsd.run.trust import distrust
from verl_gsd.rundir import RunDirectory
from verl_gsd.solve_rates.dumps import DUMP_KEYS, dump_rows, dumps_in, is_of_policy, rows_with_acc, session_of_uid
from verl_gsd.solve_rates.tables import as_number
from verl_gsd.tasks import maths
from verl_gsd.tasks.answers import final_answer
from verl_gsd.tasks.screen import is_too_large

#: The longest response that math-verify reads alone, in characters. It searches the whole response.
LONGEST_FOR_MATH_VERIFY = 50_000
#: Number of threads that compare. Most of the time, each waits for a process of the verifier.
_THREADS = 8


@dataclass(frozen=True)
class PairColumns:
    """The columns of a table of pairs, and how to read them. None is the default name: that of the attribute.

    Attributes:
        problem: texts or chats, which are read only if ``with_problems``.
        response: responses, or final answers if ``answers_only``.
        answer: reference answers, as ``preparation.cells.answer`` reads them.
    """

    problem: str | None = None
    response: str | None = None
    answer: str | None = None
    answers_only: bool = False
    with_problems: bool = False

    def given(self) -> list[str]:
        """The options of ``verl-gsd verify`` that apply to tables only, if they are set."""
        names = [f"--{name}-column" for name in ("problem", "response", "answer") if getattr(self, name) is not None]
        return [*names, *(["--answers-only"] if self.answers_only else [])]


@dataclass(frozen=True)
class Pair:
    """A response and its reference answer.

    Attributes:
        place: where the pair is in its source, for a message: ``row 3`` or ``FILE, line 7``.
        problem: empty if it was not read.
        is_answer: whether ``response`` is a final answer, and not a text that has one.
        rewarded: whether the run counted the response as right; None if the source does not say so,
            or has a graded value.
    """

    place: str
    problem: str
    response: str
    reference: str
    is_answer: bool = False
    rewarded: bool | None = None

    @property
    def final_answer(self) -> str:
        """The response's final answer; empty if it has none."""
        return self.response if self.is_answer else final_answer(self.response) or ""


@dataclass(frozen=True)
class ComparedPair:
    """A pair, how the verifier of mathematics decided about it, and a second opinion (None if there is none)."""

    pair: Pair
    decision: maths.Decision
    second: bool | None = None

    @property
    def is_right(self) -> bool:
        """The verdict. What could not be verified counts as wrong."""
        return bool(self.decision.right)

    @property
    def differs(self) -> bool:
        """Whether the second opinion is another one."""
        return self.second is not None and self.second != self.is_right

    @property
    def was_rewarded_otherwise(self) -> bool:
        """Whether the run had another verdict."""
        return self.pair.rewarded is not None and self.pair.rewarded != self.is_right

    @property
    def is_unsure(self) -> bool:
        """Whether no rule was sure."""
        return self.decision.right is None or self.decision.is_doubtful


def read_pairs(path: Path, columns: PairColumns, on_note: Callable[[str], None]) -> list[Pair]:
    """Read pairs from one of three kinds of source:

    - A Parquet, JSON lines or CSV file with one pair per row, in ``columns``.
    - verl's rollout or validation dumps: a folder of files STEP.jsonl, or one such file. Of a session with several
      outputs, the last one is the response. Responses that the policy did not generate in that step are left out if
      the dump marks them.
    - The folder of a run, whose config names its folders of dumps.

    Args:
        on_note: called with a sentence about anything that was left out, or that the user should know.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: the source is of another kind, is damaged, has no pair, or a cell has the wrong form. The message
            names the file, the row and the value if there are any, and what to use instead.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Use a table, a folder of verl's dumps, or a run")
    files = _dumps_of_run(path, on_note) if RunDirectory(path).config.is_file() else dumps_in(path)
    if files:
        if given := columns.given():
            raise ValueError(f"{given[0]}: has no effect on {path}, which has verl's dumps. Remove the option")
        pairs = [
            pair for file in files for pair in _pairs_of_dump(file, None if file == path else file.parent, on_note)
        ]
    elif path.suffix in SUFFIXES and path.is_file():
        pairs = _pairs_of_table(path, columns)
    else:
        raise ValueError(
            f"{path}: neither a table nor dumps nor a run. Use a file that ends in {', '.join(SUFFIXES)}, a folder of "
            "verl's STEP.jsonl files, or the folder of a run"
        )
    if not pairs:
        raise ValueError(f"{path}: there are no responses in it. Use a source with at least one")
    return pairs


def _pairs_of_table(path: Path, columns: PairColumns) -> list[Pair]:
    table = read_row_table(path)
    if not len(table):
        return []
    responses = table.column(columns.response or "response", as_reference if columns.answers_only else as_response)
    references = table.column(columns.answer or "answer", cells.answer)
    problems = [""] * len(table)
    if columns.with_problems:
        problems = table.column(columns.problem or "problem", problem_text)
    return [
        Pair(f"row {row}", problem, response, reference, is_answer=columns.answers_only)
        for row, (problem, response, reference) in enumerate(zip(problems, responses, references, strict=True))
    ]


def _dumps_of_run(run: Path, on_note: Callable[[str], None]) -> list[Path]:
    layout = RunDirectory(run)
    config = layout.read_yaml(layout.config)
    folders = [value for key in DUMP_KEYS if isinstance(value := value_at(config, key), str) and value]
    outside = [folder for folder in folders if not Path(folder).resolve().is_relative_to(run.resolve())]
    if outside and (reason := distrust(layout)):
        raise ValueError(
            f"{run}: its config names dumps outside the run, in {' and '.join(outside)}, and {reason}. They could be "
            "private files of yours. Use the folder of dumps instead of the run"
        )
    files = [file for folder in dict.fromkeys(folders) if Path(folder).is_dir() for file in dumps_in(Path(folder))]
    if folders and not files:
        raise ValueError(
            f"{run}: its dumps are not in {' or '.join(folders)}. Use the folder where they are now, or run the "
            "command where the run was started"
        )
    if not files:
        raise ValueError(
            f"{run}: this run stored no responses. Set {DUMP_KEYS[0]} or {DUMP_KEYS[1]} to a folder in the next run "
            "(records have no texts)"
        )
    verifier = value_at(config, "reward.custom_reward_function.path")
    if verifier != f"pkg://{maths.__name__}":
        on_note(
            f"The run's reward function is {verifier or 'the default of verl'}. Its responses are compared by the "
            "verifier of mathematics here, so verdicts can differ."
        )
    return files


def _pairs_of_dump(file: Path, within: Path | None, on_note: Callable[[str], None]) -> Iterator[Pair]:
    pairs: dict[str, Pair] = {}  # by session; a later output of a session replaces the earlier one
    place = f"{file.parent.name}/{file.name}"
    not_of_policy = 0
    rows = dump_rows(file, within, lambda place: on_note(f"{place} is incomplete and was left out."))
    for where, row in rows_with_acc(rows):
        uid = row.get("uid")
        session = session_of_uid(uid) if isinstance(uid, str) else where
        if session is None:
            continue
        if not is_of_policy(row):
            not_of_policy += 1
            continue
        response, reference = row.get("output"), row.get("gts")
        if not isinstance(response, str):
            raise ValueError(f"{where}, field output: {response!r:.40} is not a text. Use a file that verl dumped")
        if reference is None:
            raise ValueError(
                f"{where}, field gts: there is no reference answer. Use dumps of a run whose data has "
                "reward_model.ground_truth"
            )
        line = where.replace(str(file), place).removesuffix(" (the first is 1)")
        problem, rewarded = _text(row.get("input")), _rewarded(row, where)
        pairs[session] = Pair(line, problem, response, _text(reference), rewarded=rewarded)
    if not_of_policy:
        on_note(f"{place}: {not_of_policy} demonstrations and responses of earlier steps were left out.")
    yield from pairs.values()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _rewarded(row: dict[str, Any], where: str) -> bool | None:
    """The run's verdict: the field acc, or else the score. Right is 1, and wrong is 0 or -1.

    There is no verdict if the value is another one, such as partial credit or a score with a penalty for length.
    """
    field = "acc" if "acc" in row else "score"
    try:
        value = as_number(row.get(field))
    except ValueError as error:
        raise ValueError(f"{where}, field {field}: {error}") from None
    return value == 1 if value in (-1, 0, 1) else None


def decide_all(pairs: Sequence[Pair], on_done: Callable[[int], None]) -> list[maths.Decision]:
    """The verifier's decision about each pair.

    Args:
        on_done: called with the number of pairs decided so far.

    Raises:
        RuntimeError: the process with math-verify does not start.
    """

    def decision(pair: Pair) -> maths.Decision:
        decide = maths.compare if pair.is_answer else maths.decide
        return decide(pair.response, pair.reference)

    return _in_threads(decision, pairs, on_done)


def math_verify_all(pairs: Sequence[Pair], on_done: Callable[[int], None]) -> list[bool | None]:
    """math-verify's own verdict on each pair, as verl calls it.

    The verdict is None if the comparison fails. Very long responses, and answers that are too large to compute, are not
    compared. Equal pairs are compared once.

    Args:
        on_done: called with the number of pairs compared so far.

    Raises:
        RuntimeError: the process with math-verify does not start.
    """

    def verdict(texts: tuple[str, str]) -> bool | None:
        response, reference = texts
        answer = final_answer(response) or ""
        if max(map(len, texts)) > LONGEST_FOR_MATH_VERIFY or is_too_large(answer) or is_too_large(reference):
            return None
        return maths.is_right_by_math_verify(response, reference)

    occurrences = Counter(map(_as_response, pairs))
    done = list(itertools.accumulate(occurrences.values()))
    results = _in_threads(verdict, list(occurrences), lambda number: on_done(done[number - 1]))
    verdicts = dict(zip(occurrences, results, strict=True))
    return [verdicts[_as_response(pair)] for pair in pairs]


def _as_response(pair: Pair) -> tuple[str, str]:
    return (rf"\boxed{{{pair.response}}}" if pair.is_answer else pair.response), pair.reference


def _in_threads(function: Callable[[Any], Any], items: Sequence[Any], on_done: Callable[[int], None]) -> list[Any]:
    results = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for number, result in enumerate(threads.map(function, items), start=1):
            results.append(result)
            on_done(number)
    return results
