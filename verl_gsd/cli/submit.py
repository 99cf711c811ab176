"""``verl-gsd submit``: a run, or a sweep of runs, as jobs of a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_gsd.cli.jobs import Address, watch
from verl_gsd.console import err, fail, out

if TYPE_CHECKING:
    from verl_gsd.jobs.submission import Submission


def submit(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="As for verl-gsd train; files are the cluster's."),
    ] = None,
    address: Address = None,
    runs: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where runs go, on storage that all nodes of the cluster share.")
    ] = "~/verl_gsd_runs",
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume this run of the cluster, or RUN/global_step_N.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="1,2,3", help="One job a seed.")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="One job a value (times one a seed); may be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the logs until all jobs have ended.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """Train on a Ray cluster, e.g. verl-gsd submit recipe=gsd/qwen2.5_math_7b hardware=8xa100_80g --runs /shared."""
    from verl_gsd.errors import ConfigError
    from verl_gsd.jobs.cluster import ClusterError, answering, connect
    from verl_gsd.jobs.package import PackagingError, unpacked_wheel

    try:
        submissions = _planned(words or [], runs, resume, seeds, sweep or [])
        with unpacked_wheel() as package:
            if dry_run:
                print(_described(submissions, package), end="")
                return
            client = connect(address)
            for submission in submissions:
                with answering(address or ""):
                    client.submit_job(
                        entrypoint=submission.entrypoint,
                        submission_id=submission.identifier,
                        runtime_env=_runtime_environment(package),
                        metadata=submission.metadata,
                    )
                out.print(f"job [bold]{submission.identifier}[/], run directory {submission.run}", soft_wrap=True)
    except (ConfigError, PackagingError, ClusterError) as error:
        fail(str(error))
    if len(submissions) > 1:
        out.print("one run at a time trains on a cluster (verl's queue is one a cluster); the others wait their turn")
    if wait:
        watch(client, [submission.identifier for submission in submissions], address)
    else:
        out.print("not waited for: verl-gsd status, verl-gsd logs ID --follow, verl-gsd stop ID")


def _runtime_environment(package: Path) -> dict[str, object]:
    """The shipped package, and nothing else: variables and secrets are those of the cluster's nodes."""
    return {"working_dir": str(package)}


def _planned(
    words: Sequence[str], runs: str, resume: str | None, seeds: str | None, sweeps: Sequence[str]
) -> list[Submission]:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from verl_gsd.errors import ConfigError
    from verl_gsd.jobs.submission import new_runs, resumed_run
    from verl_gsd.run.checks.validate import no_secrets, raise_problems
    from verl_gsd.run.compose import parse_line

    now = datetime.now()
    if resumes := [word for word in words if word.startswith("resume=")]:
        raise ConfigError(f"{resumes[-1]}: write --resume {resumes[-1].partition('=')[2]}, a folder on the cluster.")
    if resume is not None:
        if seeds or sweeps:
            raise ConfigError("--resume: goes on with one run. Leave --seeds and --sweep out.")
        submission = resumed_run(resume, words, now)
        line = parse_line(submission.words)
        given = OmegaConf.create()
        for override in map(OverridesParser.create().parse_override, line.overrides):
            if not override.is_delete():
                OmegaConf.update(given, override.key_or_group, override.value(), force_add=True)
        raise_problems(list(no_secrets(given, line)))
        return [submission]
    submissions = new_runs(words, runs, now, seeds, sweeps)
    said: set[str] = set()
    for submission in submissions:
        lines = [text for text in _check(submission) if text not in said]
        if said and lines:
            err.print(f"{submission.identifier}:", markup=False, highlight=False)
        for text in lines:
            err.print(text, style="yellow" if text.startswith("warning") else None, markup=False, highlight=False)
        said.update(lines)
    return submissions


def _check(submission: Submission) -> list[str]:
    """What ``verl-gsd train`` checks of a line, except what only the cluster's machines can tell; what there is to say.

    Raises:
        ConfigError: it is refused.
    """
    from omegaconf import OmegaConf

    from verl_gsd.audit import audit
    from verl_gsd.errors import ConfigError
    from verl_gsd.run.checks.memory import estimate
    from verl_gsd.run.checks.validate import OF_THIS_MACHINE, as_list, validate
    from verl_gsd.run.checks.with_verl import validate_with_verl
    from verl_gsd.run.compose import compose_config, parse_line, resolve

    line = parse_line(submission.words)
    config = resolve(compose_config(line))
    validate(config, line, leave_out=OF_THIS_MACHINE)
    with redirect_stdout(sys.stderr):  # verl prints as it validates
        validate_with_verl(config, runs_here=False)
    for key in ("data.train_files", "data.val_files"):
        for file in as_list(OmegaConf.select(config, key)):
            if not str(file).startswith(("/", "~")) and "://" not in str(file):
                raise ConfigError(
                    f"{key}={file}: a file on the cluster. Write an absolute path, or one that begins ~/."
                )
    return [*audit(config).lines(), *estimate(config)]


def _described(submissions: Sequence[Submission], package: Path) -> str:
    import yaml

    (distribution,) = package.glob("verl_gsd-*.dist-info")
    shown = _runtime_environment(package) | {"working_dir": f"{distribution.name.removesuffix('.dist-info')}, unpacked"}
    return yaml.safe_dump_all(
        (
            {
                "submission_id": submission.identifier,
                "run": submission.run,
                "entrypoint": submission.entrypoint,
                "runtime_env": shown,
                "metadata": submission.metadata,
            }
            for submission in submissions
        ),
        sort_keys=False,
        width=1000,
        explicit_start=len(submissions) > 1,
    )
