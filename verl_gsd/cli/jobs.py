"""``verl-gsd status``, ``logs`` and ``stop``: jobs that ``verl-gsd submit`` made."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from verl_gsd.console import err, fail, out

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

Address = Annotated[
    str | None,
    typer.Option(envvar="RAY_API_SERVER_ADDRESS", metavar="http://HEAD:8265", help="The cluster's job server."),
]
Identifier = Annotated[str, typer.Argument(metavar="ID", help="The job, as submit and status name it.")]
_STATE_STYLE = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}


def status(
    identifier: Annotated[str | None, typer.Argument(metavar="[ID]", help="One job; all of ours without it.")] = None,
    address: Address = None,
) -> None:
    """What became of the jobs submitted to a cluster."""
    from verl_gsd.jobs.cluster import connect, job, our_jobs

    with _refusals_told(address):
        client = connect(address)
        jobs = our_jobs(client) if identifier is None else [job(client, identifier)]
    table = Table("job", "state", "since", "run directory")
    for entry in jobs:
        table.add_row(*_row(entry))
    out.print(table)
    if identifier is not None and jobs[0].message:
        out.print(escape(jobs[0].message), soft_wrap=True, highlight=False)


def logs(
    identifier: Identifier,
    address: Address = None,
    following: Annotated[bool, typer.Option("--follow", help="Go on until the job has ended.")] = False,
) -> None:
    """A job's log so far. What verl, Ray and vLLM print is in the run directory's logs."""
    from verl_gsd.jobs.cluster import connect, job

    with _refusals_told(address):
        client = connect(address)
        job(client, identifier)
        if not following:
            _write(client.get_job_logs(identifier))
            return
    watch(client, [identifier], address)


def stop(identifier: Identifier, address: Address = None) -> None:
    """End a job; its run can be resumed from its last checkpoint."""
    from verl_gsd.jobs.cluster import connect, job
    from verl_gsd.jobs.submission import RUN

    with _refusals_told(address):
        client = connect(address)
        run = (job(client, identifier).metadata or {}).get(RUN)
        running = client.stop_job(identifier)
    if not running:
        out.print(f"{identifier} had ended before", highlight=False)
        return
    out.print(f"{identifier} is being stopped", highlight=False)
    if run:
        out.print("To resume its run, run:")
        out.print(f"verl-gsd submit --resume {shlex.quote(run)}", soft_wrap=True, markup=False, highlight=False)


def watch(client: JobSubmissionClient, identifiers: Sequence[str], address: str | None) -> None:
    """Show the logs of jobs one after another, each until its job has ended.

    Runs take turns on a cluster, so the later jobs mostly wait while the log of an earlier one is shown. A job that
    ends in the meantime is not missed: its log is then shown from the beginning.

    Raises:
        typer.Exit: code 1 if a job did not succeed or the cluster stopped answering; 130 after Ctrl-C, which ends the
            watching and no job.
    """
    states: dict[str, str] = {}
    try:
        for position, identifier in enumerate(identifiers, start=1):
            if len(identifiers) > 1:
                out.print(f"log of job [bold]{identifier}[/] ({position} of {len(identifiers)})", soft_wrap=True)
            states[identifier] = _watch_one(client, identifier, address)
    except KeyboardInterrupt:
        left = [identifier for identifier in identifiers if identifier not in states]
        fail(
            f"No longer watching; these jobs keep running or waiting: {', '.join(left)}\n"
            "To follow one, run: verl-gsd logs ID --follow\n"
            "To stop one, run: verl-gsd stop ID",
            code=130,
        )
    failed = [f"{identifier} ({state})" for identifier, state in states.items() if state != "SUCCEEDED"]
    if failed and len(identifiers) > 1:
        err.print(f"{len(failed)} of {len(identifiers)} jobs did not succeed: {', '.join(failed)}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _watch_one(client: JobSubmissionClient, identifier: str, address: str | None) -> str:
    """Show a job's log until it has ended, and its final state; ``unknown`` if the cluster stopped answering."""
    from verl_gsd.jobs.following import LostError, follow

    try:
        with _refusals_told(address):
            state = follow(client, identifier, _write, on_drop=lambda: err.print("connection lost; attaching again"))
    except LostError as error:
        again = f"verl-gsd logs {identifier} --follow"
        message = f"error: the cluster does not answer: {error}\nThe job may still run. To look again, run: {again}"
        err.print(message, markup=False, soft_wrap=True)
        return "unknown"
    except typer.Exit:  # what the cluster answered is printed; the other jobs are watched all the same
        return "unknown"
    out.print(f"job {identifier}: [{_STATE_STYLE.get(state.value, 'bold')}]{state.value}[/]", soft_wrap=True)
    if state.value != "SUCCEEDED":
        with suppress(Exception):  # the state is known; why is a courtesy
            out.print(escape(client.get_job_info(identifier).message or ""), soft_wrap=True, highlight=False)
    return str(state.value)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _row(job: JobDetails) -> tuple[str, str, str, str]:
    from verl_gsd.jobs.submission import RUN

    state = str(job.status.value)
    moment = job.end_time or job.start_time
    since = f"{datetime.fromtimestamp(moment / 1000):%Y-%m-%d %H:%M:%S}" if moment else ""
    styled = f"[{_STATE_STYLE.get(state, 'bold')}]{state}[/]"
    return escape(job.submission_id or ""), styled, since, escape((job.metadata or {}).get(RUN, ""))


@contextmanager
def _refusals_told(address: str | None) -> Iterator[None]:
    from verl_gsd.jobs.cluster import ClusterError, answering
    from verl_gsd.jobs.following import LostError

    try:
        with answering(address or ""):
            yield
    except LostError:
        raise
    except ClusterError as error:
        fail(str(error))
