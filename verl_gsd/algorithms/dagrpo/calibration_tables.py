"""The output of ``verl-gsd judge calibrate``: tables for the terminal, and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from verl_gsd.algorithms.dagrpo.judge_calibration import CAVEATS, JudgeCalibration, SweepPoint
from verl_gsd.algorithms.dagrpo.mask_quality import MaskReport
from verl_gsd.console import out
from verl_gsd.judge.calibration import Area, Histogram

_BAR = 24


def print_calibration(calibration: JudgeCalibration) -> None:
    """Print the AUCs, the tables, and the limits of what they show."""
    out.print(f"AUC, all pairs of a right and a wrong response: {_area(calibration.overall)}")
    out.print(f"AUC, pairs within groups (the pairs that the mask compares): {_area(calibration.within)}")
    out.print(_histogram_table(calibration.histograms))
    for sentence in calibration.limitations():
        out.print(f"- {sentence}", highlight=False)
    if calibration.mask.pairs:
        out.print(_pair_sentences(calibration.mask), highlight=False)
        out.print(_mask_table(calibration.mask))
        out.print(_sweep_table(calibration.sweep))
        for caveat in CAVEATS:
            out.print(f"- {caveat}", highlight=False)


def as_json(value: Any) -> Any:
    """Convert ``value`` for a JSON file. NaN becomes null; infinite numbers become the strings "-inf" and "inf"."""
    if hasattr(value, "__dataclass_fields__"):
        return as_json(asdict(value))
    if isinstance(value, Mapping):
        return {name: as_json(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [as_json(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value


def _area(area: Area) -> str:
    if not area.pairs:
        return "no pairs"
    interval = "" if math.isnan(area.low) else f" [{area.low:.3f}, {area.high:.3f}]"
    return f"{area.value:.3f}{interval} ({area.pairs} pairs)"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.1%}"


def _histogram_table(histograms: Mapping[str, Histogram]) -> Table:
    right, wrong = histograms["right"], histograms["wrong"]
    table = Table("score", "right", "", "wrong", "", title="Scores, by the verifier's verdict", title_justify="left")
    most = max(1, *right.counts, *wrong.counts)
    for score, counts in enumerate(zip(right.counts, wrong.counts, strict=True)):
        table.add_row(
            str(score), *(text for count in counts for text in (str(count), "█" * round(_BAR * count / most)))
        )
    failed = (text for histogram in (right, wrong) for text in (str(histogram.failed), _share(histogram.failed_share)))
    table.add_row("failed", *failed)
    return table


def _pair_sentences(mask: MaskReport) -> str:
    failed = (
        f"There are {mask.pairs} pairs within groups. In {_share(mask.unknown)} of them a judgement failed; the mask "
        "keeps these."
    )
    if math.isnan(mask.contradicted):
        return failed
    return (
        f"{failed} Of the other pairs, the judge contradicts the verifier in {_share(mask.contradicted)} and scores "
        f"both responses alike in {_share(mask.tied)}."
    )


def _mask_table(mask: MaskReport) -> Table:
    table = Table(
        *("delta", "pairs kept", "right silent", "wrong silent", "groups silent", "signal left", "alignment"),
        title=f"The mask on {mask.mixed_groups} mixed groups",
        title_justify="left",
    )
    for row in mask.by_delta:
        silent = (row.right_silenced, row.wrong_silenced, row.groups_silenced)
        shares = (_share(value) for value in (row.kept, *silent, row.signal))
        table.add_row(f"{row.delta:g}", *shares, "" if math.isnan(row.alignment) else f"{row.alignment:.3f}")
    return table


def _sweep_table(sweep: tuple[SweepPoint, ...]) -> Table:
    deltas = list(dict.fromkeys(entry.mask.delta for entry in sweep))
    table = Table(
        *("quality", "AUC obtained", *(f"delta {delta:g}" for delta in deltas)),
        title="Synthetic judges of known quality on the same groups: signal left, groups silent",
        title_justify="left",
    )
    for quality in dict.fromkeys(entry.quality for entry in sweep):
        points = [entry for entry in sweep if entry.quality == quality]
        cells = (f"{_share(entry.mask.signal)}, {_share(entry.mask.groups_silenced)}" for entry in points)
        table.add_row(f"{quality:g}", f"{points[0].auc:.3f}", *cells)
    return table
