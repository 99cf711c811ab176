"""Reads solve rates from a file or folder, whose kind is recognized from its name and content."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from verl_gsd.dotted_keys import dotted_leaves
from verl_gsd.history import config_of, parts_of_run
from verl_gsd.row_table import SUFFIXES
from verl_gsd.rundir import RunDirectory
from verl_gsd.scalars import is_whole
from verl_gsd.solve_rates.dumps import dumps_in, read_dumps
from verl_gsd.solve_rates.rates import SolveRates, rates_from_counts
from verl_gsd.solve_rates.tables import RateColumns, read_table

#: More prompts than any data set has. A file with larger numbers is not a histogram.
_MOST_PROMPTS = 10**8
#: Share of the responses that are missing if all groups of an attempt had the size of its largest one. Failed sessions
#: and rewards alone make it small.
_MISSING = 0.1


def read_solve_rates(
    path: Path,
    *,
    column: str | None = None,
    samples: int | None = None,
    correct_column: str | None = None,
    total_column: str | None = None,
) -> SolveRates:
    """Read solve rates from one of four kinds of source:

    - A Parquet, JSON lines or CSV file with one row per prompt: a solve rate in ``column``, or the number of correct
      responses in ``correct_column``. The number of responses is ``samples``, or is in ``total_column``. If both are
      None, the rates have no counts.
    - A JSON file with a histogram, which is a list of N + 1 integers: entry k is the number of prompts that were solved
      k out of N times.
    - verl's rollout or validation dumps (``trainer.rollout_data_dir``): a folder of files STEP.jsonl, or one such file.
      The rate of a prompt is the mean of field ``column`` over its responses. The default is acc, or score if a dump
      has no acc. Demonstrations and responses of earlier steps are skipped if the dump marks them (``dumps.ORIGIN``).
      Dumps do not have the groups that dynamic sampling evicted (``SolveRates.mixed_groups``).
    - The folder of a verl-gsd run: the rates are pooled by prompt from its records. Demonstrations are not counted.

    Rates that are pooled over the steps of a run average over a policy that changed during the run.

    Null and NaN are skipped and reported in ``SolveRates.skipped``. Any other value that is not a rate or count is an
    error.

    Raises:
        FileNotFoundError: ``path`` does not exist.
        ValueError: the source is of another kind, is damaged or has no rate at all, an option does not apply to it, or
            a value is not a rate or count. The message names the file, and the row and the value if there are any.
    """
    path = Path(path)
    options = RateColumns(column, samples, correct_column, total_column)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder.")
    if dumps := dumps_in(path):
        options.check_only("column", f"{path} has verl's dumps")
        return read_dumps(path, dumps, column)
    if path.is_dir():
        options.check_only("", f"{path} is read as the folder of a run")
        return _read_run(path)
    if path.suffix == ".json":
        options.check_only("samples", f"{path} is read as a histogram")
        return _read_histogram(path, samples)
    if path.suffix in SUFFIXES:
        return read_table(path, options)
    raise ValueError(
        f"{path}: unknown file type. Use a file that ends in {', '.join(SUFFIXES)} or .json, a folder of verl's dumps, "
        "or the folder of a run."
    )


def _read_run(path: Path) -> SolveRates:
    from verl_gsd.records import is_graded, outside_sources, read_records, with_valid_accuracies

    columns = ["step", "data_source", "index", "size", "earlier", "correct", "total", "partial", "kind"]
    records = read_records(path, columns)
    outside = "; ".join(
        f"the verifier of data_source={source} returned an acc outside [0, 1], so this source has no solve rates"
        for source in outside_sources(records)
    )
    records = with_valid_accuracies(records)
    if not len(records):
        raise ValueError(
            f"{path}: no records and no dumps. Use the folder of a run with a verl-gsd trainer mode (for example "
            "gsd_sync), or a folder with verl's STEP.jsonl files."
        )
    total = records.column("total").to_numpy()
    if not total.any():
        reason = f" ({outside})" if outside else ""
        raise ValueError(
            f"{path}: none of the {len(records)} groups in its records has a response with an accuracy{reason}. Return "
            "acc, 1 for a right and 0 for a wrong response, beside score from the reward function."
        )
    skipped: tuple[str, ...] = ()
    if (total == 0).any():
        first = int(np.flatnonzero(total == 0)[0])
        step = records.column("step")[first].as_py()
        skipped = (
            f"{int((total == 0).sum())} of {len(total)} groups have no response with an accuracy; the first is row "
            f"{first} of the records, in step {step}",
            *([outside] if outside else []),
        )
    graded, partial = is_graded(records), _partial_credit(records)
    records = records.append_column("graded", pa.array(graded)).append_column(
        "spread", pa.array(np.where(graded, partial, 0.0))
    )
    groups = records.filter(total > 0).group_by(["data_source", "index"], use_threads=False)
    prompts = groups.aggregate([("correct", "sum"), ("total", "sum"), ("graded", "any"), ("spread", "sum")]).sort_by(
        [("data_source", "ascending"), ("index", "ascending")]
    )
    keys = list(zip(prompts.column("data_source").to_pylist(), prompts.column("index").to_pylist(), strict=True))
    correct, totals = prompts.column("correct_sum").to_numpy(), prompts.column("total_sum").to_numpy()
    graded, partial = prompts.column("graded_any").to_numpy(), prompts.column("spread_sum").to_numpy()
    rates = rates_from_counts(path, correct, totals.astype(np.int64), graded, keys, skipped, partial=partial)
    return replace(rates, chosen_by=_chosen_by(path, records))


def _chosen_by(path: Path, records: pa.Table) -> str:
    """What chose how many responses a prompt of the run got by the outcomes of earlier ones, in words; else empty.

    A budget and sizes from the data show in the records: the groups of one attempt differ in size. A sampler chooses
    which prompts are visited, and only the configs of the attempts say whether there was one.
    """
    run = RunDirectory(path)
    parts = parts_of_run(run)
    rated = records["total"].to_numpy()  # unlike size, without responses of earlier visits
    of_part = np.searchsorted([part.first for part in parts], records["step"].to_numpy(), side="right")
    groups = [sizes for part in np.unique(of_part) if len(sizes := rated[(of_part == part) & (rated > 0)])]
    expected = sum(int(sizes.max()) * len(sizes) for sizes in groups)
    if sum(int(sizes.sum()) for sizes in groups) < (1 - _MISSING) * expected:
        return "a budget, or sizes of groups in the data,"
    has_sampler = any(_has_sampler(run, part.attempt) for part in parts)
    return "the sampler" if has_sampler else ""


def _has_sampler(run: RunDirectory, attempt: int) -> bool:
    try:
        content = config_of(run, attempt)
    except ValueError:
        return False
    settings = dotted_leaves(content) if isinstance(content, dict) else ()
    return any(key.startswith("algorithm.gsd.sampler.") for key, _ in settings)


def _partial_credit(records: pa.Table) -> np.ndarray:
    """(N,) the sum of acc (1 - acc) of each group, or NaN if it is unknown.

    Older files lack the column ``partial``. There, it is known for a group whose accuracies agree.
    """
    from verl_gsd.records import float_column

    partial, correct, total = (float_column(records, name) for name in ("partial", "correct", "total"))
    agree = pc.fill_null(pc.not_equal(records["kind"], "mixed"), False).to_numpy()
    of_equal = np.where(agree, correct * (1 - correct / np.maximum(total, 1)), np.nan)
    return np.where(np.isnan(partial), of_equal, partial)


def _read_histogram(path: Path, samples: int | None) -> SolveRates:
    try:
        histogram = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(histogram, list) or len(histogram) < 2:
        raise ValueError(
            f"{path} is not a list of 2 or more numbers. Use a list whose entry k is the number of prompts that were "
            "solved k out of N times, k = 0 to N."
        )
    for n_solved, n_prompts in enumerate(histogram):
        if not (is_whole(n_prompts, 0) and n_prompts <= _MOST_PROMPTS):
            raise ValueError(
                f"{path}: entry {n_solved} is {n_prompts!r}. Use a number of prompts from 0 to {_MOST_PROMPTS:.0e}."
            )
    n = len(histogram) - 1
    if samples is not None and samples != n:
        raise ValueError(
            f"{path} has {n + 1} entries, so counts are out of {n}, not samples={samples}. Remove --samples."
        )
    if not 0 < sum(histogram) <= _MOST_PROMPTS:
        raise ValueError(f"{path} has {sum(histogram)} prompts in total. Use 1 to {_MOST_PROMPTS:.0e} prompts.")
    correct: np.ndarray = np.repeat(np.arange(n + 1), histogram)
    graded: np.ndarray = np.zeros(len(correct), dtype=bool)
    return rates_from_counts(path, correct.astype(float), np.full(len(correct), n), graded, None, ())
