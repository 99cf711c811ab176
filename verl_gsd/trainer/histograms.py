"""Logs histograms of each step and a table of prompts to wandb and TensorBoard. verl's loggers only log numbers.

    histogram/{sigma,accuracy}    one value per group of the step, whatever its fate
    histogram/judge_score         one value per response that a judge scored
    histogram/<name>              one value per group: the record columns that extensions declare as histograms
    table/prompts                 at most 200 prompts; at steps that validate or save, and at the last step

wandb gets ``wandb.Histogram`` and ``wandb.Table``. TensorBoard gets histograms and a table in Markdown. verl logs the
numbers of a step at its end. This module logs earlier, but with the same step number, so that both appear together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import DictConfig

from verl_gsd.extension import declarations
from verl_gsd.groups import Group
from verl_gsd.prompts import PromptStore

logger = logging.getLogger(__name__)

TABLE_ROWS = 200
COLUMNS = ("data_source", "index", "visits", "solve_rate", "kind", "fate")


class Histograms:
    """Logs the groups of each step.

    It never raises an error: a long run must not end because a disk is full or a library has changed. The first error
    of each logger goes to the log.

    Args:
        prompts: the memory of prompts.
        prior: (a, b) of the Beta prior of a solve rate before a prompt's first visit.
    """

    def __init__(self, prompts: PromptStore, prior: tuple[float, float]) -> None:
        self._prompts, self._prior = prompts, prior
        self._failed: set[str] = set()

    def show(
        self, loggers: Mapping[str, Any], step: int, table: pa.Table, groups: Sequence[Group], *, prompts_too: bool
    ) -> None:
        """Log histograms of one step, and the table of prompts if ``prompts_too``.

        Args:
            loggers: verl's loggers, by name (``Tracking.logger``).
            table: the step's records.
            groups: the step's groups.
        """
        for name in _DRAW.keys() & loggers.keys():
            try:
                rows = prompt_rows(table, self._prompts, step, self._prior) if prompts_too else None
                _DRAW[name](loggers[name], step, values_shown(table, groups), rows)
            except Exception:
                if name not in self._failed:
                    logger.exception("step %d: %s does not show histograms; later errors are not logged", step, name)
                self._failed.add(name)


def values_shown(table: pa.Table, groups: Sequence[Group]) -> dict[str, np.ndarray]:
    """The values of each histogram, by name: finite float64. Histograms without values are left out.

    Args:
        table: the step's records (``records.step_records``).
        groups: the same groups.
    """
    total = table["total"].to_numpy()
    rated = total > 0
    values = {
        "sigma": _numbers(table["std"]),
        "accuracy": table["correct"].to_numpy()[rated] / total[rated],
        "judge_score": np.concatenate([np.zeros(0), *(group.scores for group in groups if group.scores is not None)]),
    }
    for declared in declarations():
        values |= {name: _numbers(table[column]) for name, column in declared.histograms.items()}
    finite = {name: column[np.isfinite(column)] for name, column in values.items()}
    return {name: column for name, column in finite.items() if len(column)}


def prompt_rows(table: pa.Table, prompts: PromptStore, step: int, prior: tuple[float, float]) -> list[tuple]:
    """One row of ``COLUMNS`` per group of the step; if there are more than ``TABLE_ROWS``, evenly spaced groups.

    Visits and solve rates come from the memory ``prompts`` at ``step``. The solve rate is the posterior mean under the
    prior Beta(a, b): (a + correct) / (a + b + total). It is None for prompts of which the memory has no
    accuracies.
    """
    chosen = np.unique(np.linspace(0, len(table) - 1, min(TABLE_ROWS, len(table))).astype(int))
    entries = table.take(chosen).to_pylist()
    keys = [(entry["data_source"], entry["index"]) for entry in entries]
    visits, _, _ = prompts.counts(keys)
    correct, total = prompts.recent(keys, step)
    rate = (prior[0] + correct) / (sum(prior) + total)
    return [
        (source, index, int(seen), float(solved) if rated > 0 else None, entry["kind"], entry["fate"])
        for entry, (source, index), seen, solved, rated in zip(entries, keys, visits, rate, total, strict=True)
    ]


def table_is_due(config: DictConfig, step: int, last: int) -> bool:
    """Whether verl validates or saves at ``step``, or ``step`` is the last one."""
    return step >= last or any(
        freq > 0 and step % freq == 0 for freq in (config.trainer.test_freq, config.trainer.save_freq)
    )


def _wandb(wandb: Any, step: int, histograms: Mapping[str, np.ndarray], rows: Sequence[tuple] | None) -> None:
    data: dict[str, Any] = {f"histogram/{name}": wandb.Histogram(values) for name, values in histograms.items()}
    if rows is not None:
        data["table/prompts"] = wandb.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
    wandb.log(data, step=step)


def _tensorboard(adapter: Any, step: int, histograms: Mapping[str, np.ndarray], rows: Sequence[tuple] | None) -> None:
    for name, values in histograms.items():
        adapter.writer.add_histogram(f"histogram/{name}", values, step)
    if rows is not None:
        adapter.writer.add_text("table/prompts", markdown(rows), step)


_DRAW: dict[str, Callable[[Any, int, Mapping[str, np.ndarray], Sequence[tuple] | None], None]] = {
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}


def markdown(rows: Sequence[tuple]) -> str:
    """``rows`` as a Markdown table. Characters of names that could be markup are escaped."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else "" if value is None else str(value)
    return "".join(c if c.isalnum() or c in " .-" else f"&#{ord(c)};" for c in text)


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return column.drop_null().to_numpy().astype(np.float64)
