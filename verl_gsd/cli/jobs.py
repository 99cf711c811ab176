"""``verl-gsd status``, ``logs`` and ``stop``, for jobs of ``verl-gsd submit``."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from verl_gsd.console import err, fail, out, visible

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="http://HEAD:8265", help="The cluster's job server."),
]
Identifier = Annotated[str, typer.Argument(metavar="ID", help="The job's name, as submit and status print it.")]
_STATE_STYLE = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}


def status(
    identifier: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One job. Default: all jobs of verl-gsd submit.")
    ] = None,
    address: Address = None,
) -> None:
    """Show the state of the jobs on a cluster.

    Examples:
        verl-gsd status
        verl-gsd status --address http://head:8265
    """
    from verl_gsd.jobs.cluster import connect, get_job, submitted_jobs

    with _exiting_on_cluster_errors(address):
        client = connect(address)
        jobs = submitted_jobs(client) if identifier is None else [get_job(client, identifier)]
    table = Table("job", "state", "since", "run directory")
    for job in jobs:
        table.add_row(*_row(job))
    out.print(table)
    if identifier is not None and jobs[0].message:
        out.print(escape(jobs[0].message), soft_wrap=True, highlight=False)


def logs(
    identifier: Identifier,
    address: Address = None,
    following: Annotated[bool, typer.Option("--follow", help="Follow the log until the job has ended.")] = False,
) -> None:
    """Print a job's log so far.

    The output of verl, Ray and vLLM is in the run directory's logs.

    Examples:
        verl-gsd logs arithmetic-grpo-20270101-120000
        verl-gsd logs arithmetic-grpo-20270101-120000 --follow
    """
    from verl_gsd.jobs.cluster import connect, get_job

    with _exiting_on_cluster_errors(address):
        client = connect(address)
        get_job(client, identifier)
        if not following:
            _LogPrinter().print_end(client.get_job_logs(identifier))
            return
    watch(client, [identifier], address)


def stop(identifier: Identifier, address: Address = None) -> None:
    """Stop a job. Its run can be resumed from its last checkpoint.

    Examples:
        verl-gsd stop arithmetic-grpo-20270101-120000
        verl-gsd stop arithmetic-grpo-20270101-120000 --address http://head:8265
    """
    from verl_gsd.jobs.cluster import connect, get_job
    from verl_gsd.jobs.submission import RUN_KEY

    with _exiting_on_cluster_errors(address):
        client = connect(address)
        run = (get_job(client, identifier).metadata or {}).get(RUN_KEY)
        running = client.stop_job(identifier)
    if not running:
        out.print(f"{identifier} had already ended", markup=False, highlight=False)
        return
    out.print(f"{identifier} is being stopped", markup=False, highlight=False)
    if run:
        out.print("To resume its run:")
        out.print(f"verl-gsd submit --resume {shlex.quote(run)}", soft_wrap=True, markup=False, highlight=False)


def watch(client: JobSubmissionClient, identifiers: Sequence[str], address: str | None) -> None:
    """Show the logs of jobs one after another, each until its job has ended.

    Runs take turns on a cluster, so the later jobs usually wait while an earlier log is shown. If one of them ends in
    the meantime, its log is still shown from the beginning.

    Raises:
        typer.Exit: code 1 if a job did not succeed or the cluster stopped answering; 130 after Ctrl-C, which stops
            only the watching and not the jobs.
    """
    from verl_gsd.jobs.following import NoAnswerError

    states: dict[str, str] = {}
    try:
        for position, identifier in enumerate(identifiers, start=1):
            if len(identifiers) > 1:
                name = f"[bold]{escape(identifier)}[/]"
                out.print(f"log of job {name} ({position} of {len(identifiers)})", soft_wrap=True)
            states[identifier] = _watch_one(client, identifier, address)
    except NoAnswerError as error:
        remaining = [identifier for identifier in identifiers if identifier not in states]
        fail(
            f"the job server does not answer: {error}. No longer watching; these jobs may be running or waiting: "
            f"{', '.join(remaining)}\nTo look again, run: {_logs_command('ID', address)}",
            code=1,
        )
    except KeyboardInterrupt:
        remaining = [identifier for identifier in identifiers if identifier not in states]
        fail(
            f"No longer watching; these jobs keep running or waiting: {', '.join(remaining)}\n"
            f"To follow one, run: {_logs_command('ID', address)}\n"
            "To stop one, run: verl-gsd stop ID",
            code=130,
        )
    failed = [f"{identifier} ({state})" for identifier, state in states.items() if state != "SUCCEEDED"]
    if failed and len(identifiers) > 1:
        names = escape(", ".join(failed))
        err.print(f"{len(failed)} of {len(identifiers)} jobs did not succeed: {names}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _watch_one(client: JobSubmissionClient, identifier: str, address: str | None) -> str:
    """Show a job's log until the job has ended. Return its final state, or ``unknown`` if the cluster refuses to tell.

    Raises:
        NoAnswerError: the cluster stopped answering.
    """
    from verl_gsd.jobs.following import GIVE_UP_S, ConnectionLostError, NoAnswerError, follow

    log = _LogPrinter()
    notice = f"connection lost; reconnecting until there is no answer for {GIVE_UP_S / 60:g} minutes"
    try:
        with _exiting_on_cluster_errors(address):
            state = follow(client, identifier, log.print, on_drop=lambda: err.print(notice, highlight=False))
        log.print_end()
    except NoAnswerError:
        raise
    except ConnectionLostError as error:
        err.print(
            f"error: the cluster does not send more of the log: {error}\n"
            f"The job may still be running. To follow it again, run: {_logs_command(identifier, address)}",
            markup=False,
            soft_wrap=True,
        )
        return "unknown"
    except typer.Exit:  # the cluster's answer has been printed; continue with the other jobs
        return "unknown"
    style = _STATE_STYLE.get(state.value, "bold")
    out.print(f"job {escape(identifier)}: [{style}]{state.value}[/]", soft_wrap=True)
    if state.value != "SUCCEEDED":
        with suppress(Exception):  # the state is already known; the message is optional
            out.print(escape(client.get_job_info(identifier).message or ""), soft_wrap=True, highlight=False)
    return str(state.value)


def _logs_command(identifier: str, address: str | None) -> str:
    return f"verl-gsd logs {identifier} --follow" + (f" --address {shlex.quote(address)}" if address else "")


class _LogPrinter:
    """Prints the log of a job in pieces. Carriage returns become ends of lines.

    Progress bars return to the beginning of their line, and files of Windows end their lines with a carriage return
    and a line feed.
    """

    def __init__(self) -> None:
        self._ends_of_lines = io.IncrementalNewlineDecoder(None, translate=True)

    def print(self, text: str, final: bool = False) -> None:
        # A carriage return at the end of a piece is kept back, because a line feed may follow.
        sys.stdout.write(visible(self._ends_of_lines.decode(text, final)))
        sys.stdout.flush()

    def print_end(self, text: str = "") -> None:
        self.print(text, final=True)


def _row(job: JobDetails) -> tuple[str, str, str, str]:
    from verl_gsd.jobs.submission import RUN_KEY

    state = str(job.status.value)
    moment = job.end_time or job.start_time
    since = f"{datetime.fromtimestamp(moment / 1000):%Y-%m-%d %H:%M:%S}" if moment else ""
    styled = f"[{_STATE_STYLE.get(state, 'bold')}]{state}[/]"
    return escape(job.submission_id or ""), styled, since, escape((job.metadata or {}).get(RUN_KEY, ""))


@contextmanager
def _exiting_on_cluster_errors(address: str | None) -> Iterator[None]:
    """Print a ``ClusterError`` and exit. ``ConnectionLostError`` is passed on."""
    from verl_gsd.jobs.cluster import ClusterError, raising_cluster_errors
    from verl_gsd.jobs.following import ConnectionLostError

    try:
        with raising_cluster_errors(address or ""):
            yield
    except ConnectionLostError:
        raise
    except ClusterError as error:
        fail(str(error))
