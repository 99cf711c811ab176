"""Solve rates from verl's dumps of rollouts and validations: files STEP.jsonl with one line per response.

In verl 0.9.1 a line has the fields input, output, gts, score and step. The V1 trainer adds a uid of the form
PROMPT_SESSION_OUTPUT, and a validation adds the verifier's results. verl gives a prompt a new uid at every visit, so
prompts are identified by their text and their reference answer.

verl dumps the batch that it trains on. With dynamic sampling, evicted groups are therefore missing. Files without any
silent group are reported as such: a run can have dynamic sampling in a part of its steps. The batch can also have
demonstrations and responses of earlier steps, which say nothing about the policy at this step. Our trainer modes mark
each row in the fields ``ORIGIN`` and ``REPLACED_SCORE``.
"""

from __future__ import annotations

import bisect
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from verl_gsd.prompts import prompt_hash
from verl_gsd.regular_files import lines_of, open_regular
from verl_gsd.scalars import without_rounding
from verl_gsd.solve_rates.rates import SolveRates, rates_from_counts
from verl_gsd.solve_rates.tables import as_number

_STEP = re.compile(r"(\d+)\.jsonl")
_OUTPUT = re.compile(r"(_\d+)_\d+$")
_SESSION = re.compile(r"_\d+_\d+$")
_FIELDS = {"input", "output", "gts", "score", "step"}

#: Keys of a run's config that name its folders of dumps.
DUMP_KEYS = ("trainer.rollout_data_dir", "trainer.validation_data_dir")
#: Field of a rollout dump of our trainer modes: who generated the response. ``POLICY`` is the policy in this step;
#: ``EARLIER`` is the policy in an earlier step. Other values are the author of a demonstration, ``expert`` or ``self``.
ORIGIN, POLICY, EARLIER = "gsd_origin", "policy", "earlier"
#: Field of the same dumps: the score of the policy's response that a demonstration replaced, else null. The replaced
#: response itself is not in the dump.
REPLACED_SCORE = "gsd_replaced_score"
#: A file that has no silent group by chance is that seldom taken for one of dynamic sampling.
_CHANCE = 1e-6


def dumps_in(path: Path) -> list[Path]:
    """The dumps in a folder in the order of their steps, or ``path`` itself if it is a dump; empty if it is neither."""
    if path.is_dir():
        files = {int(match[1]): file for file in path.iterdir() if (match := _STEP.fullmatch(file.name))}
        return [file for _, file in sorted(files.items())]
    return [path] if path.suffix == ".jsonl" and _is_dump(path) else []


def dump_rows(
    file: Path, within: Path | None, on_incomplete: Callable[[str], None], *, limit: int | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place and the content of each line of a dump.

    Args:
        within: the folder in which ``dumps_in`` found the file. A link out of it is not followed. None if the user
            named the file itself.
        on_incomplete: called with the place of the last line if its writer was killed while it wrote it. The line is
            left out.
        limit: number of bytes after which reading ends. The line that exceeds it is still read, so that its group is
            known. ``on_incomplete`` is then called with the place of the first line that was not read.

    Raises:
        ValueError: the file cannot be read, or a line is no JSON object. The message names the line.
    """
    try:
        with open_regular(file, within=within) as content:
            is_past_limit = False
            for number, line in enumerate(lines_of(content), start=1):
                where = f"{file}, line {number} (the first is 1)"
                if is_past_limit:
                    on_incomplete(where)
                    return
                is_past_limit = limit is not None and content.tell() > limit
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:
                    if not line.endswith(b"\n"):
                        on_incomplete(where)
                        return
                    raise ValueError(f"{where} is not JSON: {error}. Remove the line.") from error
                if not isinstance(row, dict):
                    raise ValueError(f"{where} is not a JSON object. Remove the line.")
                yield where, row
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def rows_with_acc(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of ``dump_rows``, with ``acc`` 0 for responses of the policy that count as wrong.

    verl dumps ``acc: null`` for a response for which the reward function returned none, while it did for others. Many
    functions do that if they find no answer. Such a response counts as wrong if another row of the dump has an ``acc``,
    as in the records of a run (``records.valid_accuracies``). Rows do not name their data source, and one whose
    rewards come from a model has no ``acc`` at all. A response with a score above 0 therefore stays without one.

    Rows are held back from the first such response to the first row with an ``acc``.
    """
    waiting: list[tuple[str, dict[str, Any]]] = []
    has_acc = False
    for where, row in rows:
        has_acc |= not _is_missing(row.get("acc"))
        waiting.append((where, row))
        if has_acc or not _is_wrong_without_acc(waiting[0][1]):
            yield from ((place, _with_acc(held, has_acc)) for place, held in waiting)
            waiting.clear()
    yield from waiting


def _with_acc(row: dict[str, Any], has_acc: bool) -> dict[str, Any]:
    return row | {"acc": 0.0} if has_acc and _is_wrong_without_acc(row) else row


def _is_wrong_without_acc(row: Mapping[str, Any]) -> bool:
    return "acc" in row and _is_missing(row["acc"]) and _score(row) <= 0 and is_of_policy(row)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def read_dumps(path: Path, files: list[Path], field: str | None) -> SolveRates:
    """``read_solve_rates`` for dumps; ``field`` holds the verdict, None for the default."""
    reader = _DumpReader(path, field)
    for file in files:
        reader.read(file)
    return reader.rates()


def is_of_policy(row: Mapping[str, Any]) -> bool:
    """Whether the policy generated the response in the step of the dump, as far as the row tells."""
    return row.get(ORIGIN, POLICY) == POLICY


def session_of_uid(uid: str) -> str | None:
    """The session of a row's uid; None for a row with which verl pads a batch."""
    return None if uid.startswith("pad") else _OUTPUT.sub(r"\1", uid)


def group_of_row(row: Mapping[str, Any]) -> str | int:
    """What the rows of a visit to a prompt have in common: the start of their uid, or a hash of prompt and answer."""
    uid = row.get("uid")
    return _SESSION.sub("", uid) if isinstance(uid, str) else prompt_hash([row.get("input"), row.get("gts")])


class _DumpReader:
    """Sums the verdicts of each prompt over all files."""

    def __init__(self, path: Path, field: str | None) -> None:
        self._path, self._field = path, field
        self._entries: dict[int, int] = {}  # hash of a prompt -> its position in the four lists below
        self._correct: list[float] = []
        self._graded: list[bool] = []
        self._partial: list[float] = []
        self._total: list[int] = []
        self._skipped: dict[str, list[str]] = {}
        self._groups: list[int] = []  # per file, the number of groups with at least two verdicts
        self._silent: list[tuple[int, int]] = []  # of these, by what dynamic sampling may compare: verdicts and scores
        self._unmarked_files = 0  # see ``SolveRates.unmarked_files``

    def read(self, file: Path) -> None:
        # Verdicts and scores by group, as dynamic sampling saw them: with the rows that are not the policy's.
        groups: dict[str | int, list[tuple[float, float]]] = {}
        sessions: set[str] = set()  # a session with several outputs has one line for each, all with the same score
        is_marked = False
        within = None if file == self._path else self._path
        for where, row in rows_with_acc(dump_rows(file, within, self._skip_line)):
            uid = row.get("uid")
            if isinstance(uid, str):
                session = session_of_uid(uid)
                if session is None or session in sessions:
                    continue
                sessions.add(session)
            is_marked |= ORIGIN in row
            verdict = self._verdict(row, where)
            prompt = prompt_hash([row["input"], row.get("gts")])
            counted = verdict
            if not is_of_policy(row):
                self._skipped.setdefault("demonstrations and responses of earlier steps", []).append(where)
                counted = self._replaced(row, where)
            elif math.isnan(verdict):
                self._skipped.setdefault(f"responses without a {self._field}", []).append(where)
            if not math.isnan(counted):
                self._count(prompt, counted)
            if not math.isnan(verdict):
                groups.setdefault(group_of_row(row), []).append((verdict, _score(row)))
        self._unmarked_files += not is_marked and _seem_added_to(sessions)
        compared = [list(zip(*values, strict=True)) for values in groups.values() if len(values) > 1]
        self._groups.append(len(compared))
        verdicts, scores = (sum(min(group[field]) == max(group[field]) for group in compared) for field in (0, 1))
        self._silent.append((verdicts, scores))

    def _skip_line(self, where: str) -> None:
        self._skipped.setdefault("files with an incomplete last line", []).append(where)

    def _verdict(self, row: dict[str, Any], where: str) -> float:
        """The verdict on the response of a row; NaN if it has none."""
        if "input" not in row:
            raise ValueError(f"{where} has no field input. Use a file that verl dumped (trainer.rollout_data_dir).")
        if self._field is None:
            self._field = "acc" if "acc" in row else "score"
        if self._field not in row:
            raise ValueError(f"{where} has no field {self._field}. Set --column to one of {', '.join(row)}.")
        return self._as_verdict(row, self._field, where)

    def _replaced(self, row: dict[str, Any], where: str) -> float:
        """The verdict on the policy's response that the demonstration of a row replaced; NaN if there is none."""
        return self._as_verdict(row, REPLACED_SCORE, where) if self._field == "score" else math.nan

    @staticmethod
    def _as_verdict(row: dict[str, Any], field: str, where: str) -> float:
        try:
            verdict = without_rounding(as_number(row.get(field)))
        except ValueError as error:
            raise ValueError(f"{where}, field {field}: {error}") from None
        if not (math.isnan(verdict) or 0 <= verdict <= 1):
            raise ValueError(
                f"{where}, field {field}: {verdict:g} is not a verdict from 0 to 1. Set --column to a field that "
                "holds verdicts."
            )
        return verdict

    def _count(self, prompt: int, verdict: float) -> None:
        """Add a response of the policy to its prompt."""
        entry = self._entries.setdefault(prompt, len(self._total))
        if entry == len(self._total):
            self._correct.append(0.0)
            self._graded.append(False)
            self._partial.append(0.0)
            self._total.append(0)
        self._correct[entry] += verdict
        self._graded[entry] |= 0 < verdict < 1
        self._partial[entry] += verdict * (1 - verdict)
        self._total[entry] += 1

    def rates(self) -> SolveRates:
        skipped = tuple(f"{len(places)} {what}; the first is {places[0]}" for what, places in self._skipped.items())
        if not self._total:
            raise ValueError(f"{self._path}: no response has a verdict" + "".join(f"; {reason}" for reason in skipped))
        correct, total = np.array(self._correct), np.array(self._total, dtype=np.int64)
        graded, partial = np.array(self._graded), np.array(self._partial)
        rates = rates_from_counts(self._path, correct, total, graded, None, skipped, partial=partial)
        filtered = max((_filtered_files(self._groups, silent) for silent in zip(*self._silent, strict=True)), key=len)
        return replace(
            rates,
            mixed_groups=sum(self._groups[file] for file in filtered),
            mixed_files=len(filtered),
            unmarked_files=self._unmarked_files,
            from_dumps=True,
        )


def _filtered_files(groups: list[int], silent: Sequence[int]) -> list[int]:
    """The files, by their position, that seem to have mixed groups only because the silent ones were evicted.

    That is all files if none has a silent group. Otherwise it is a file in which that would be by chance with a
    probability below ``_CHANCE``. The silent rate is that of the nearest files before and after it that have silent
    groups, the lower of the two, because the rate of a run changes as it learns. One group is added to each, so that a
    few groups prove nothing.

    Args:
        groups: groups per file, in the order of the steps.
        silent: how many of them are silent.
    """
    with_groups = [file for file, count in enumerate(groups) if count]
    whole = [file for file in with_groups if silent[file]]
    filtered = []
    for file in with_groups:
        if silent[file]:
            continue
        after = bisect.bisect(whole, file)
        rates = [silent[other] / (groups[other] + 1) for other in whole[max(after - 1, 0) : after + 1]]
        if not rates or (1 - min(rates)) ** groups[file] < _CHANCE:
            filtered.append(file)
    return filtered


def _seem_added_to(sessions: Iterable[str]) -> bool:
    """Whether most groups of a dump lack session numbers.

    verl numbers the sessions of a group from 0. Our trainer modes give earlier responses the numbers from
    ``rollout.n`` on, and do not use the numbers of the responses that were not generated. A session that failed leaves
    a gap, too, but seldom in most groups.

    Args:
        sessions: ``session_of_uid`` of the rows.
    """
    numbers: dict[str, list[int]] = {}
    for session in sessions:
        uid, _, number = session.rpartition("_")
        if number.isdecimal():
            numbers.setdefault(uid, []).append(int(number))
    gaps = [max(of_group) >= len(of_group) for of_group in numbers.values()]
    return 2 * sum(gaps) > len(gaps)


def _score(row: Mapping[str, Any]) -> float:
    try:
        return as_number(row.get("score"))
    except ValueError:
        return math.nan


def _is_dump(file: Path) -> bool:
    try:
        with open_regular(file) as lines:
            row = json.loads(next(lines_of(lines), b""))
    except (OSError, ValueError, RecursionError):
        return False  # read_table then reports what is wrong with the file
    return isinstance(row, dict) and row.keys() >= _FIELDS
