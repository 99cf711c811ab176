"""The command ``verl-gsd``. Each subcommand is a module of its own, and imports heavy packages only when it runs."""

from __future__ import annotations

import typer

from verl_gsd.cli import audit_bias, compare, doctor, evaluate, jobs, judge, lab, plan, prepare, report, submit, train

app = typer.Typer(
    help="Group-relative reinforcement learning algorithms for verl: GSD, HA-DW, DaGRPO and GVPO.",
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
app.command()(doctor.doctor)
app.command()(audit_bias.audit_bias)
app.command(no_args_is_help=True)(plan.plan)
app.command()(report.report)
app.command()(lab.lab)
app.command(no_args_is_help=True)(compare.compare)
app.add_typer(judge.app, name="judge")
