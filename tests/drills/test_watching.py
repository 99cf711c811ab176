"""Several jobs on a real Ray job server, watched until all have ended. Only Slurm is replaced."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from places import ROOT
from ports import free_ports
from running import BINARIES, verl_gsd

UNWANTED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE")
#: As small as a node can be that runs jobs; Ray's sockets lie below its folder, so that is short.
SMALL = ("--num-cpus=4", "--num-gpus=0", "--object-store-memory=100000000")
#: A line that passes every check here, and that the cluster rejects in seconds: it has no such file.
LINE = ("algo=gsd", "task=arithmetic", "hardware=cpu", "data.train_files=/only/on/another/machine.parquet")


@pytest.fixture(scope="module")
def environment():
    kept = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    return kept | {"PATH": f"{BINARIES}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0"}


def end_with_family(process):
    """Ray's head keeps its processes alive for some seconds after it was asked to end."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    process.wait()
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


#: What is printed of the sweep: the log of each run, which names the file, and both at the end.
WATCHED = re.compile(
    r"log of job \S+-seed_1 .*/only/on/another/machine\.parquet.*-seed_1: FAILED.*"
    r"log of job \S+-seed_2 .*/only/on/another/machine\.parquet.*-seed_2: FAILED",
    re.DOTALL,
)
NAMED = re.compile(r"2 of 2 jobs did not succeed: \S+-seed_1 \(FAILED\), \S+-seed_2 \(FAILED\)")


SLURM = {
    "scontrol": "echo localhost",
    # Runs what it is given on this machine, as a node would; Ray with less memory.
    "srun": 'while [[ $1 == --* ]]; do shift; done; [[ "$*" != *" --head "* ]] || set -- "$@" '
    + " ".join(SMALL)
    + '; exec "$@"',
}


def test_a_sweep_under_slurm_ends_when_its_last_run_has(environment, tmp_path):
    """The script ends Ray when it ends, and with it whatever still runs. First here: it starts a head of its own."""
    for name, body in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            ["bash", ROOT / "scripts/slurm.sh", *LINE, "--seeds", "1,2"],
            env=environment
            | {"PATH": f"{tmp_path}:{environment['PATH']}", "RUNS": f"{folder}/runs"}
            | {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1", "SLURM_GPUS_ON_NODE": "1"}
            | {"SLURM_JOB_NODELIST": "localhost"},
            capture_output=True,
            text=True,
        )
    for session in Path("/tmp").glob(f"ray_{os.getpid()}_*"):
        shutil.rmtree(session, ignore_errors=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert WATCHED.search(done.stdout) and NAMED.search(done.stderr), done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(environment):
    """(address, environment of its clients) of a head without accelerators and without a token."""
    gcs, dashboard, client_server, agent = free_ports(4)
    environment = environment | {"RAY_AUTH_MODE": "disabled", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [
                *(BINARIES / "ray", "start", "--head", "--block", f"--port={gcs}", f"--temp-dir={folder}", *SMALL),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                *(f"--ray-client-server-port={client_server}", f"--dashboard-agent-listen-port={agent}"),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed = ""
            for line in head.stdout:
                printed += line
                if "Ray runtime started" in line:
                    break
            else:
                raise AssertionError(printed)
            yield SimpleNamespace(environment=environment, folder=Path(folder))
        finally:
            head.stdout.close()
            end_with_family(head)


#: Submits a job for each word after the first, which names them, and watches them as verl-gsd submit does. There typer
#: turns its Exit into the exit code.
CLIENT = """
import os, sys, typer
from verl_gsd.cli.jobs import watch
from verl_gsd.jobs.cluster import connect
address = os.environ["RAY_API_SERVER_ADDRESS"]
client = connect(address)
name, *commands = sys.argv[1:]
jobs = [f"{name}{number}" for number in range(1, 1 + len(commands))]
for job, command in zip(jobs, commands, strict=True):
    client.submit_job(entrypoint=command, submission_id=job)
try:
    watch(client, jobs, address)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""

pytestmark = pytest.mark.minutes(4)


def watching(cluster, name, *commands):
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, name, *commands],
        env=cluster.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_logs_follow_one_another_whichever_job_ends_first_and_every_failure_is_named(cluster, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with watching(
        cluster, "a", f"cat {pipe}", f"echo from the second > {pipe}; exit 3", "echo from the third"
    ) as client:
        printed = client.stdout.read()
    assert client.returncode == 1, printed
    marks = [
        *("log of job a1 (1 of 3)", "from the second", "job a1: SUCCEEDED"),
        *("log of job a2 (2 of 3)", "job a2: FAILED"),
        *("log of job a3 (3 of 3)", "from the third", "job a3: SUCCEEDED"),
        "1 of 3 jobs did not succeed: a2 (FAILED)",
    ]
    places = [printed.find(mark) for mark in marks]
    assert -1 not in places and places == sorted(places), printed


def test_jobs_that_all_succeed_end_with_no_error(cluster):
    with watching(cluster, "b", "echo one", "echo two") as client:
        printed = client.stdout.read()
    assert client.returncode == 0 and "did not succeed" not in printed, printed


def test_an_interrupt_leaves_the_jobs_and_says_how_to_follow_or_stop_them(cluster, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with watching(cluster, "c", "echo done", f"echo waits; cat {pipe}", f"cat {pipe}") as client:
        printed = ""
        for line in client.stdout:
            printed += line
            if line == "waits\n":
                break
        client.send_signal(signal.SIGINT)
        printed += client.stdout.read()
    assert client.returncode == 130, printed
    assert "keep running or waiting: c2, c3" in printed
    assert "verl-gsd logs ID --follow" in printed and "verl-gsd stop ID" in printed
    for job in ("c2", "c3"):
        stopped = verl_gsd("stop", job, env=cluster.environment)
        assert stopped.returncode == 0 and "is being stopped" in stopped.stdout, "it was running"


def test_submit_waits_for_every_run_of_a_sweep(cluster):
    done = verl_gsd("submit", *LINE, "--seeds", "1,2", f"--runs={cluster.folder}/runs", env=cluster.environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert WATCHED.search(done.stdout) and NAMED.search(done.stderr), done.stdout + done.stderr
