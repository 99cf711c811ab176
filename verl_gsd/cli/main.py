"""``verl-gsd``: the commands. Each lives in a file of its own and imports what it needs when it runs."""

from __future__ import annotations

import typer

from verl_gsd.cli import audit_bias, doctor, judge, prepare, train

app = typer.Typer(
    help="Group-relative reinforcement learning in verl, visible and right.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(no_args_is_help=True)(train.train)
app.command()(prepare.prepare)
app.command()(doctor.doctor)
app.command()(audit_bias.audit_bias)
app.add_typer(judge.app, name="judge")
