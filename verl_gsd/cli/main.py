"""The command ``verl-gsd``. Each subcommand has its own file, or is declared by an extension.

Subcommands import heavy packages only when they run.
"""

from __future__ import annotations

from typing import Annotated

import typer

from verl_gsd import model_files
from verl_gsd.cli import (
    algos,
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
from verl_gsd.cli.command_groups import MainCommands, add_command, epilog
from verl_gsd.console import out

#: What users want to do. Help has one panel for each.
_TRAIN, _LOOK, _EVALUATE = "Train", "Look at runs", "Evaluate models"
_DATA, _CLUSTER, _MACHINE = "Prepare data", "Train on a cluster", "Check this machine"

model_files.protect()
app = typer.Typer(
    cls=MainCommands,
    help="Group-relative reinforcement learning for verl, with metrics that show what happens.",
    epilog=epilog("verl-gsd train algo=grpo task=arithmetic hardware=cpu", "verl-gsd report RUN"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        from verl_gsd import __version__

        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


# Help lists commands in the order of extension.COMMANDS, whatever the order here.
add_command(app, train.train, rich_help_panel=_TRAIN)
add_command(app, algos.algos, rich_help_panel=_TRAIN)
app.add_typer(lab.app, name="lab", rich_help_panel=_TRAIN)
add_command(app, report.report, rich_help_panel=_LOOK)
add_command(app, compare.compare, rich_help_panel=_LOOK, no_args_is_help=True)
add_command(app, evaluate.evaluate, "eval", rich_help_panel=_EVALUATE, no_args_is_help=True)
add_command(app, verify.verify, rich_help_panel=_EVALUATE, no_args_is_help=True)
app.add_typer(judge.app, name="judge", rich_help_panel=_EVALUATE)
add_command(app, export.export, rich_help_panel=_EVALUATE, no_args_is_help=True)
add_command(app, prepare.prepare, rich_help_panel=_DATA, no_args_is_help=True)
add_command(app, plan.plan, rich_help_panel=_DATA, no_args_is_help=True)
add_command(app, submit.submit, rich_help_panel=_CLUSTER, no_args_is_help=True)
add_command(app, jobs.status, rich_help_panel=_CLUSTER)
add_command(app, jobs.logs, rich_help_panel=_CLUSTER)
add_command(app, jobs.stop, rich_help_panel=_CLUSTER)
add_command(app, doctor.doctor, rich_help_panel=_MACHINE)
add_command(app, contract.contract, rich_help_panel=_MACHINE)
