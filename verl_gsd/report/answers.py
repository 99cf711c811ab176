"""Different final answers per prompt, of one visit and of all visits so far, in equal numbers of responses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_gsd.answer_counts import MOST_ANSWERS, expected_distinct, unpack_answers

#: Groups from which the figures are computed. Of longer runs, a part of the prompts is used, with all their visits.
MOST_GROUPS = 60_000
#: Share of the groups that may have fewer responses than are compared. They are left out.
_FEWER = 0.1


@dataclass(frozen=True)
class RevisitedAnswers:
    """Different answers of the groups whose prompt has answers from an earlier step, too.

    Groups are left out if answers are missing from their cell or from that of an earlier visit (``pack_answers``): the
    rare ones are missing, and both figures would be too low, by different amounts. Of prompts with about as many
    answers as a cell can have, the groups with fewer are kept, which lowers ``in_visit`` by about 1%.

    Attributes:
        row: (n,) int64, the groups' rows in the records.
        in_visit: (n,) float64, expected number of different answers in ``responses`` responses of this group.
        in_visits: (n,) float64, the same for responses drawn from this group and all earlier ones of the prompt.
        responses: number of responses that are compared; 0 if there are no such groups.
    """

    row: np.ndarray
    in_visit: np.ndarray
    in_visits: np.ndarray
    responses: int


def revisited_answers(records: pa.Table) -> RevisitedAnswers:
    """Compare the answers of groups with those of all visits to their prompt until then.

    Both figures are rarefactions to the same number of responses (``answer_counts.expected_distinct``). With a policy
    that does not change, they are equal on average, however often a prompt was visited. If one step visits a prompt
    twice, these are two visits.

    Args:
        records: in the order of the steps, with the columns ``data_source``, ``index``, ``size`` and ``answers``.
    """
    nothing = RevisitedAnswers(np.zeros(0, np.int64), np.zeros(0), np.zeros(0), 0)
    known = np.flatnonzero(records["answers"].is_valid().to_numpy(zero_copy_only=False)) if len(records) else []
    if not len(known):
        return nothing
    rows, prompt = _visited_twice(records, np.asarray(known))
    if not len(rows):
        return nothing
    entry_row, digest, count = unpack_answers(records["answers"].take(pa.array(rows)))
    visit_size = np.bincount(entry_row, count, minlength=len(rows)).astype(np.int64)
    cell_size = np.bincount(entry_row, minlength=len(rows))
    is_cut = (cell_size == MOST_ANSWERS) & (visit_size < records["size"].to_numpy()[rows])
    if is_cut.all():
        return nothing
    responses = int(np.quantile(visit_size[~is_cut], _FEWER, method="lower"))
    if responses < 2:  # one response has one answer, or none
        return nothing
    in_visit = expected_distinct(entry_row, digest > 0, count, responses, len(rows))
    in_visits = expected_distinct(*_pooled(prompt, entry_row, digest, count), responses, len(rows))
    is_first = np.append(True, prompt[1:] != prompt[:-1])
    cuts = np.cumsum(is_cut)
    cuts_before_prompt = (cuts - is_cut)[is_first][np.cumsum(is_first) - 1]
    used = ~is_first & ~np.isnan(in_visit) & (cuts == cuts_before_prompt)
    return RevisitedAnswers(rows[used], in_visit[used], in_visits[used], responses)


def order_by_prompt(source: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(n,) the rows sorted by ``source`` and then by ``index``, both (n,) int. Rows of a prompt keep their order."""
    order = _stable_order(index)
    return order[_stable_order(source[order])]


def _stable_order(values: np.ndarray) -> np.ndarray:
    # numpy sorts numbers of 16 bits by their digits, in a tenth of the time. Most data sets have fewer prompts.
    is_short = len(values) and values.min() >= 0 and values.max() < 2**16
    return np.argsort(values.astype(np.uint16) if is_short else values, kind="stable")


def _visited_twice(records: pa.Table, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of prompts with two or more groups, sorted by prompt and then by time, and the number of their prompt.

    Args:
        known: the rows that have answers.
    """
    index = records["index"].to_numpy()[known]
    # Sources are few: their codes are cheap. Prompts of different sources can have the same index.
    source = pc.fill_null(records["data_source"], "").combine_chunks().dictionary_encode().indices.to_numpy()[known]
    order = order_by_prompt(source, index)
    index, source, rows = index[order], source[order], known[order]
    begins = np.append(True, (index[1:] != index[:-1]) | (source[1:] != source[:-1]))
    prompt = np.cumsum(begins) - 1
    visits = np.bincount(prompt)
    # Prompts in an order that depends neither on their position in the data nor on their outcomes
    wanted = np.random.default_rng(0).permutation(np.flatnonzero(visits > 1))
    wanted = wanted[np.cumsum(visits[wanted]) - visits[wanted] < MOST_GROUPS]
    is_wanted: np.ndarray = np.zeros(len(visits), dtype=bool)
    is_wanted[wanted] = True
    kept = is_wanted[prompt]
    return rows[kept], prompt[kept]


def _pooled(
    prompt: np.ndarray, entry_row: np.ndarray, digest: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The answers of every group's prompt in this group and all earlier ones, as arguments of ``expected_distinct``.

    Args:
        prompt: (n,) ascending, the prompt of each group. The groups of a prompt are in the order of time.
        entry_row, digest, count: the answers of the groups, from ``unpack_answers``.

    Returns:
        (k,) the group, whether it is an answer, and its number so far, for every answer that the prompt has by then.
    """
    last = np.append(np.flatnonzero(prompt[1:] != prompt[:-1]), len(prompt) - 1)
    end: np.ndarray = np.repeat(last, np.diff(np.append(-1, last)))  # the last group of each group's prompt
    order = np.lexsort((entry_row, digest, end[entry_row]))
    row, answer, number = entry_row[order], digest[order], count[order]
    of_prompt = end[row]
    begins = np.append(True, (answer[1:] != answer[:-1]) | (of_prompt[1:] != of_prompt[:-1]))
    first = np.flatnonzero(begins)  # the first group that has the answer
    length = of_prompt[first] - row[first] + 1  # groups from then on
    start = np.cumsum(length) - length
    cell = np.arange(length.sum())
    series: np.ndarray = np.repeat(np.arange(len(first)), length)
    increments: np.ndarray = np.zeros(len(cell), np.int64)
    which = np.cumsum(begins) - 1
    increments[start[which] + row - row[first][which]] = number
    so_far = np.cumsum(increments)
    so_far -= (so_far[start] - increments[start])[series]
    return row[first][series] + cell - start[series], answer[first][series] > 0, so_far
