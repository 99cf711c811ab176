"""What ``verl-gsd judge calibrate`` prints and writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from verl_gsd.console import out
from verl_gsd.evaluation.judging import CAVEATS, Calibration, MaskReport, Sweep
from verl_gsd.judge.calibration import Area, Histogram

_BAR = 24


def show(found: Calibration) -> None:
    """Print all of it: sentences, then tables, then what they do not say."""
    out.print(f"AUC, all pairs of a right and a wrong response: {_area(found.overall)}")
    out.print(f"AUC, pairs within groups, which the mask sees: {_area(found.within)}")
    out.print(_histogram_table(found.histograms))
    for sentence in found.cannot_say():
        out.print(f"- {sentence}", highlight=False)
    if found.mask.pairs:
        out.print(_of_pairs(found.mask), highlight=False)
        out.print(_mask_table(found.mask))
        out.print(_sweep_table(found.sweep))
        for caveat in CAVEATS:
            out.print(f"- {caveat}", highlight=False)


def plain(value: Any) -> Any:
    """A report as JSON has it: null for what is not known, "-inf" and "inf" as texts."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value.item() if isinstance(value, np.generic) else value


def _area(found: Area) -> str:
    if not found.pairs:
        return "there are none"
    interval = "" if math.isnan(found.low) else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.value:.3f}{interval} ({found.pairs} pairs)"


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
    failed = (text for one in (right, wrong) for text in (str(one.failed), _share(one.failed_share)))
    table.add_row("failed", *failed)
    return table


def _of_pairs(mask: MaskReport) -> str:
    failed = f"{mask.pairs} pairs within groups. A judgement failed in {_share(mask.unknown)}, which the mask keeps."
    if math.isnan(mask.contradicted):
        return failed
    return (
        f"{failed} Of the others the judge contradicts the verifier in {_share(mask.contradicted)} and scores both "
        f"alike in {_share(mask.tied)}."
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


def _sweep_table(sweep: tuple[Sweep, ...]) -> Table:
    deltas = list(dict.fromkeys(entry.mask.delta for entry in sweep))
    table = Table(
        *("quality", "AUC obtained", *(f"delta {delta:g}" for delta in deltas)),
        title="Synthetic judges of known quality on the same groups: signal left, groups silent",
        title_justify="left",
    )
    for quality in dict.fromkeys(entry.quality for entry in sweep):
        mine = [entry for entry in sweep if entry.quality == quality]
        cells = (f"{_share(entry.mask.signal)}, {_share(entry.mask.groups_silenced)}" for entry in mine)
        table.add_row(f"{quality:g}", f"{mine[0].auc:.3f}", *cells)
    return table
