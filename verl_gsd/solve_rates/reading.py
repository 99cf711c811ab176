"""Where solve rates come from, told by what lies there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from verl_gsd.row_table import SUFFIXES
from verl_gsd.sections import is_whole
from verl_gsd.solve_rates.dumps import dumps_in, read_dumps
from verl_gsd.solve_rates.rates import SolveRates, pooled
from verl_gsd.solve_rates.tables import Columns, read_table

#: More prompts than any data set has: a histogram that asks for them is none.
_MOST = 10**8


def read_solve_rates(
    path: Path,
    *,
    column: str | None = None,
    samples: int | None = None,
    correct_column: str | None = None,
    total_column: str | None = None,
) -> SolveRates:
    """Solve rates from one of

    - a Parquet, JSON lines or CSV file, a row a prompt: a rate in ``column``, or a count of right responses in
      ``correct_column``. How many responses are behind it is ``samples`` or stands in ``total_column``; a rate without
      either is a rate without counts.
    - a JSON file that holds a histogram, a list of N + 1 whole numbers: entry k is how many prompts were solved k times
      out of N.
    - verl's rollout or validation dumps (``trainer.rollout_data_dir``), a folder of STEP.jsonl or one such file, pooled
      by prompt: the mean of field ``column``, which is acc by default, or score in a dump without one. A demonstration
      in a dump cannot be told from a response.
    - the folder of a run of ours, from its records pooled by prompt. Demonstrations are not counted.

    What was pooled over a run's steps is of a policy that changed meanwhile.

    Null and NaN are left out, which ``skipped`` says; a value that is no rate or count is not.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: the source is none of these, is damaged or holds no rate at all, an option does not belong to it, or
            a value is no rate or count; the message names file, row and value where there is one.
    """
    path = Path(path)
    options = Columns(column, samples, correct_column, total_column)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if dumps := dumps_in(path):
        options.require_none_but("column", f"{path} holds verl's dumps")
        return read_dumps(path, dumps, column)
    if path.is_dir():
        options.require_none_but("", f"{path} is taken for a run's folder")
        return _read_run(path)
    if path.suffix == ".json":
        options.require_none_but("samples", f"{path} is taken for a histogram")
        return _read_histogram(path, samples)
    if path.suffix in SUFFIXES:
        return read_table(path, options)
    raise ValueError(f"{path}: write a file that ends in {', '.join(SUFFIXES)} or .json, or a folder of dumps or a run")


def _read_run(path: Path) -> SolveRates:
    from verl_gsd.records import read_records

    records = read_records(path).select(["step", "data_source", "index", "correct", "total"])
    if not len(records):
        raise ValueError(
            f"{path}: holds neither records nor dumps. Write the folder of a run whose trainer mode was one of ours "
            "(gsd_sync), or of verl's STEP.jsonl."
        )
    total = records.column("total").to_numpy()
    if not total.any():
        raise ValueError(f"{path}: no group of its {len(records)} records has a response with an accuracy")
    skipped: tuple[str, ...] = ()
    if (total == 0).any():
        first = int(np.flatnonzero(total == 0)[0])
        step = records.column("step")[first].as_py()
        skipped = (
            f"{int((total == 0).sum())} of {len(total)} groups have no response with an accuracy; the first is row "
            f"{first} of the records, in step {step}",
        )
    groups = records.filter(total > 0).group_by(["data_source", "index"], use_threads=False)
    prompts = groups.aggregate([("correct", "sum"), ("total", "sum")]).sort_by(
        [("data_source", "ascending"), ("index", "ascending")]
    )
    keys = list(zip(prompts.column("data_source").to_pylist(), prompts.column("index").to_pylist(), strict=True))
    correct, totals = prompts.column("correct_sum").to_numpy(), prompts.column("total_sum").to_numpy()
    return pooled(path, correct, totals.astype(np.int64), keys, skipped)


def _read_histogram(path: Path, samples: int | None) -> SolveRates:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(found, list) or len(found) < 2:
        raise ValueError(f"{path}: write a list: entry k, how many prompts were solved k times out of N, k = 0 to N")
    for solved, prompts in enumerate(found):
        if not (is_whole(prompts, 0) and prompts <= _MOST):
            raise ValueError(f"{path}: entry {solved} is {prompts!r}; write a number of prompts, 0 to {_MOST:.0e}")
    n = len(found) - 1
    if samples is not None and samples != n:
        raise ValueError(f"{path}: its {n + 1} entries are counts out of {n}, and samples={samples}. Leave that out.")
    if not 0 < sum(found) <= _MOST:
        raise ValueError(f"{path}: {sum(found)} prompts; write 1 to {_MOST:.0e}")
    correct: np.ndarray = np.repeat(np.arange(n + 1), found)
    return pooled(path, correct.astype(float), np.full(len(correct), n), None, ())
