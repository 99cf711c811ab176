"""``verl-gsd audit-bias RUN``: the baseline's bias in a run's records, and what HA-DW would do about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from verl_gsd.cli.console import fail, out


def audit_bias(
    run: Annotated[Path, typer.Argument(help="A run's folder; any algorithm's, as long as its trainer mode is ours.")],
    preset: Annotated[str, typer.Option(help="HA-DW's anchor: hard, soft, paper, fixed, or a number.")] = "hard",
) -> None:
    """The bias of group-relative advantages by solve rate (Lemma 2 of HA-DW's paper), and HA-DW's factors there."""
    from verl_gsd.evaluation.bias import CAVEATS, bias_by_rate
    from verl_gsd.records import read_records

    try:
        records = read_records(run)
        if not len(records):
            fail(f"{run}: no records there. Write the folder of a run whose trainer mode was one of ours (gsd_sync).")
        bins = bias_by_rate(records, float(preset) if preset.replace(".", "", 1).isdigit() else preset)
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
    table = Table("solve rate", "mixed groups", "mean rate", "baseline - rate", "Phi right", "Phi wrong")
    for entry in bins:
        figures = (f"{entry.rate:.3f}", f"{entry.bias:+.3f}", f"{entry.factor_right:.2f}", f"{entry.factor_wrong:.2f}")
        table.add_row(f"{entry.low:g} to {entry.high:g}", str(entry.groups), *figures)
    out.print(table)
    for caveat in CAVEATS:
        out.print(f"- {caveat}")
