"""``verl-gsd doctor``: checks whether this machine can run verl-gsd, and says how to fix problems."""

from __future__ import annotations

import warnings

import typer
from rich.markup import escape
from rich.table import Table

from verl_gsd.console import err, out

_COLOUR = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor() -> None:
    """Check whether this machine can train, and say how to fix what is wrong.

    It looks at versions, vLLM, GPUs (driver, memory, NCCL, attention), disk, memory, and the plugin here and in Ray.

    Examples:
        verl-gsd doctor
        verl-gsd doctor && verl-gsd train algo=grpo task=arithmetic hardware=cpu
    """
    from verl_gsd.run.doctor import run_checks

    table = Table(title="verl-gsd doctor", title_justify="left")
    for column in ("", "check", "result", "fix"):
        table.add_column(column, overflow="fold")
    warnings.filterwarnings("ignore", module="verl")  # verl warns about engines that are not installed
    failures = 0
    with err.status("checking (imports vLLM and starts Ray once; takes a minute on two cores)"):
        for result in run_checks():
            failures += result.state == "fail"
            state = f"[{_COLOUR[result.state]}]{result.state}[/]"
            table.add_row(state, result.name, escape(result.detail), escape(result.fix))
    out.print(table)
    if failures:
        raise typer.Exit(1)
