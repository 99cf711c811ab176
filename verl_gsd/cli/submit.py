"""``verl-gsd submit``: submit a run, or a sweep of runs, to a Ray cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from verl_gsd.cli.jobs import Address, watch
from verl_gsd.console import err, fail, out
from verl_gsd.word_completion import complete_words

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from verl_gsd.jobs.submission import Submission


def submit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            autocompletion=complete_words,
            help="As for verl-gsd train. File paths are paths on the cluster.",
        ),
    ] = None,
    address: Address = None,
    runs: Annotated[
        str, typer.Option(metavar="FOLDER", help="Folder for runs, on storage that all nodes of the cluster share.")
    ] = "~/verl_gsd_runs",
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Resume this run on the cluster, or RUN/global_step_N.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="1,2,3", help="One job per seed.")] = None,
    sweep: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="One job per value and seed. May be repeated.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the logs until all jobs have ended.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the jobs without submitting them.")] = False,
) -> None:
    """Train on a Ray cluster: one job, or one per seed and value.

    Examples:
        verl-gsd submit recipe=gsd/qwen2.5_math_7b hardware=8xa100_80g --runs /shared/runs
        verl-gsd submit algo=grpo task=arithmetic hardware=cpu --seeds 1,2,3 --dry-run
    """
    from verl_gsd.errors import ConfigError
    from verl_gsd.jobs.cluster import ClusterError, connect, raising_cluster_errors
    from verl_gsd.jobs.package import PackagingError, unpacked_wheel

    try:
        submissions = _checked_submissions(words or [], runs, resume, seeds, sweep or [])
        with unpacked_wheel() as package:
            if dry_run:
                print(_describe(submissions, package), end="")
                return
            client = connect(address)
            for submission in submissions:
                with raising_cluster_errors(address or ""):
                    client.submit_job(
                        entrypoint=submission.entrypoint,
                        submission_id=submission.identifier,
                        runtime_env=_runtime_environment(package),
                        metadata=submission.metadata,
                    )
                name, folder = escape(submission.identifier), escape(submission.run)
                out.print(f"job [bold]{name}[/], run directory {folder}", soft_wrap=True)
    except (ConfigError, PackagingError, ClusterError) as error:
        fail(str(error))
    if len(submissions) > 1:
        out.print(
            "A cluster trains one run at a time (verl has one queue per cluster). The other jobs wait for their turn."
        )
    if wait:
        watch(client, [submission.identifier for submission in submissions], address)
    else:
        out.print("To watch or stop the jobs: verl-gsd status, verl-gsd logs ID --follow, verl-gsd stop ID")


def _runtime_environment(package: Path) -> dict[str, object]:
    """Return Ray's runtime environment: only the shipped package. The nodes provide variables and secrets."""
    return {"working_dir": str(package)}


def _checked_submissions(
    words: Sequence[str], runs: str, resume: str | None, seeds: str | None, sweeps: Sequence[str]
) -> list[Submission]:
    """Return the jobs for a command line, after checking it and printing what it does.

    Raises:
        ConfigError: the command line is rejected.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    from verl_gsd.errors import ConfigError
    from verl_gsd.jobs.submission import new_runs, resumed_run
    from verl_gsd.run.checks.validate import check_secrets, raise_problems
    from verl_gsd.run.compose import parse_line

    now = datetime.now()
    if resumes := [word for word in words if word.startswith("resume=")]:
        raise ConfigError(
            f"{resumes[-1]}: not available here. Use --resume {resumes[-1].partition('=')[2]}, a folder on the cluster."
        )
    if resume is not None:
        if seeds or sweeps:
            raise ConfigError("--resume: resumes a single run. Remove --seeds and --sweep.")
        submission = resumed_run(resume, words, now)
        line = parse_line(submission.words)
        overrides = OmegaConf.create()
        for override in map(OverridesParser.create().parse_override, line.overrides):
            if not override.is_delete():
                OmegaConf.update(overrides, override.key_or_group, override.value(), force_add=True)
        raise_problems(
            [*_relative_words(submission.words), *_relative_keys(overrides), *check_secrets(overrides, line)]
        )
        return [submission]
    submissions = new_runs(words, runs, now, seeds, sweeps)
    printed: set[str] = set()
    for submission in submissions:
        lines = [text for text in _check(submission) if text not in printed]
        if printed and lines:
            err.print(f"{submission.identifier}:", markup=False, highlight=False)
        for text in lines:
            err.print(text, style="yellow" if text.startswith("warning") else None, markup=False, highlight=False)
        printed.update(lines)
    return submissions


def _check(submission: Submission) -> list[str]:
    """Check a job as ``verl-gsd train`` does, except for what only the cluster can know, and return lines to print.

    Raises:
        ConfigError: the job is rejected.
    """

    from verl_gsd.audit import audit
    from verl_gsd.run.checks.lora import lora_warnings
    from verl_gsd.run.checks.memory import estimate
    from verl_gsd.run.checks.validate import OF_THIS_MACHINE, raise_problems, validate
    from verl_gsd.run.checks.with_verl import validate_with_verl
    from verl_gsd.run.compose import parse_line, resolve
    from verl_gsd.run.own_data import compose_elsewhere
    from verl_gsd.run.sizing import apply_sizing, sizing_lines

    raise_problems(list(_relative_words(submission.words)))
    line = parse_line(submission.words)
    composed, lines = compose_elsewhere(line)
    apply_sizing(composed, line)
    config = resolve(composed)
    raise_problems(list(_relative_keys(config)))
    validate(config, line, leave_out=OF_THIS_MACHINE)
    with redirect_stdout(sys.stderr):  # verl prints while it validates
        validate_with_verl(config, runs_here=False)
    return [*lines, *audit(config).lines(), *sizing_lines(config), *estimate(config), *lora_warnings(config)]


def _relative_words(words: Sequence[str]) -> Iterator[str]:
    """Report folders in ``data=`` and ``model=`` that are relative to this machine's current folder."""
    for word in words:
        name, _, path = word.partition("=")
        is_hub_name = name == "model" and not path.startswith(".") and not Path(path).is_dir()
        if name in ("data", "model") and not is_hub_name and not path.startswith(("/", "~")):
            yield f"{word}: this folder on the cluster is relative. Use an absolute path, or ~/PATH."


def _relative_keys(config: DictConfig) -> Iterator[str]:
    """Report files and models in ``config`` that are relative to this machine's current folder.

    A job has a folder of its own.
    """
    from omegaconf import OmegaConf

    from verl_gsd.run.checks.validate import as_list
    from verl_gsd.run.remote_paths import FILE_KEYS, MODEL_KEYS, scheme_of

    for key in FILE_KEYS:
        for file in map(str, as_list(OmegaConf.select(config, key) or [])):
            if not file.startswith(("/", "~")) and not scheme_of(file):
                yield f"{key}={file}: the path of a file on the cluster is relative. Use an absolute path, or ~/PATH."
    for key in MODEL_KEYS:
        model = str(OmegaConf.select(config, key) or "")
        if model.startswith("."):  # other relative paths can be names on the hub
            yield f"{key}={model}: this folder on the cluster is relative. Use an absolute path, or ~/PATH."


def _describe(submissions: Sequence[Submission], package: Path) -> str:
    """Return the jobs as YAML, for ``--dry-run``."""
    import yaml

    (distribution,) = package.glob("verl_gsd-*.dist-info")
    runtime_env = _runtime_environment(package) | {
        "working_dir": f"{distribution.name.removesuffix('.dist-info')}, unpacked"
    }
    return yaml.safe_dump_all(
        (
            {
                "submission_id": submission.identifier,
                "run": submission.run,
                "entrypoint": submission.entrypoint,
                "runtime_env": runtime_env,
                "metadata": submission.metadata,
            }
            for submission in submissions
        ),
        sort_keys=False,
        width=1000,
        explicit_start=len(submissions) > 1,
    )
