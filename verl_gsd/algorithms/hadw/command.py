"""``verl-gsd audit-bias RUN``: the bias of the group mean in a run's records, and HA-DW's factors by solve rate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from verl_gsd.console import fail, out


def audit_bias(
    run: Annotated[
        Path, typer.Argument(help="The folder of a run that used one of our trainer modes, with any algorithm.")
    ],
    preset: Annotated[
        str | None,
        typer.Option(
            help="HA-DW's anchor: soft, hard, paper, fixed, or a number in [0, 1]. Default: that of algorithm.gsd.hadw."
        ),
    ] = None,
    lambda_scale: Annotated[
        float | None,
        typer.Option(help="The constant that multiplies all factors. Default: that of algorithm.gsd.hadw."),
    ] = None,
) -> None:
    """Show the bias of group-relative advantages by solve rate (Lemma 2 of HA-DW's paper), and HA-DW's factors.

    Examples:
        verl-gsd audit-bias RUN
        verl-gsd audit-bias RUN --preset 0.5
    """
    from verl_gsd.algorithms.hadw.bias import CAVEATS, bias_by_rate
    from verl_gsd.algorithms.hadw.settings import HadwSettings
    from verl_gsd.records import read_records, with_valid_accuracies
    from verl_gsd.run.trust import real_run

    if preset == "off":
        fail("--preset off: this preset has no factors. Use soft, hard, paper, fixed, or a number.")
    try:
        real_run(run)
        records = with_valid_accuracies(read_records(run))
        if not len(records):
            fail(f"{run}: no records. Use the folder of a run with one of our trainer modes, for example gsd_sync.")
        if not records["total"].to_numpy().any():
            fail(
                f"{run}: no group has accuracies, numbers in [0, 1]. Return acc, 1 for a right and 0 for a wrong "
                "response, beside score from the reward function."
            )
        anchor = float(preset) if preset and preset.replace(".", "", 1).isdigit() else preset
        options = {"preset": anchor, "lambda_scale": lambda_scale}
        settings = HadwSettings.of({key: value for key, value in options.items() if value is not None})
        bins, graded = bias_by_rate(records, settings)
    except (FileNotFoundError, ValueError) as error:
        fail(str(error))
    table = Table(
        *("solve rate", "mixed groups", "visited once", "mean rate", "baseline - rate", "Phi right", "Phi wrong"),
        title=f"HA-DW with preset={settings.preset}, lambda_scale={settings.lambda_scale:g}, "
        "whatever the run's own algorithm",
        title_justify="left",
    )
    for entry in bins:
        table.add_row(
            *(f"{entry.low:g} to {entry.high:g}", str(entry.groups), f"{entry.visited_once:.0%}", f"{entry.rate:.3f}"),
            *(f"{entry.bias:+.3f}", f"{entry.factor_right:.2f}", f"{entry.factor_wrong:.2f}"),
        )
    out.print(table)
    if graded:
        out.print(
            f"- {graded} mixed groups are not in the table, because their prompts have accuracies between 0 and 1 "
            "(partial credit). Lemma 2 is about right and wrong responses."
        )
    for caveat in CAVEATS:
        out.print(f"- {caveat}")
