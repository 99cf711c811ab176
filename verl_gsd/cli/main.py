"""The command ``verl-gsd``. Each subcommand has its own file, or is declared by an extension.

Subcommands import heavy packages only when they run.
"""

from __future__ import annotations

import typer

from verl_gsd import model_files
from verl_gsd.cli import (
    compare,
    contract,
    doctor,
    evaluate,
    export,
    jobs,
    judge,
    lab,
    plan,
    prepare,
    report,
    submit,
    train,
    verify,
)
from verl_gsd.cli.command_groups import MainCommands

model_files.protect()
app = typer.Typer(
    cls=MainCommands,
    help="Group-relative reinforcement learning for verl, with metrics that show what happens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command(no_args_is_help=True)(train.train)
app.command(no_args_is_help=True)(submit.submit)
app.command()(jobs.status)
app.command()(jobs.logs)
app.command()(jobs.stop)
app.command(no_args_is_help=True)(prepare.prepare)
app.command("eval", no_args_is_help=True)(evaluate.evaluate)
app.command(no_args_is_help=True)(verify.verify)
app.command(no_args_is_help=True)(export.export)
app.command()(contract.contract)
app.command()(doctor.doctor)
app.command(no_args_is_help=True)(plan.plan)
app.command()(report.report)
app.command(no_args_is_help=True)(compare.compare)
app.add_typer(lab.app, name="lab")
app.add_typer(judge.app, name="judge")
