"""Jobs on a real Ray cluster of two nodes, on this machine, whose job server wants a token.

The nodes have one logical accelerator each, so that a run of two workers needs both. Nothing is replaced.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from running import BINARIES, metrics, replayed_anchors, verl_gsd

from verl_gsd.records import read_records
from verl_gsd.rundir import RunDirectory

pytestmark = pytest.mark.stack


def free_ports(count):
    """Of this machine, and different ones."""
    with_ports = [socket.socket() for _ in range(count)]
    for held in with_ports:
        held.bind(("127.0.0.1", 0))
    ports = [held.getsockname()[1] for held in with_ports]
    for held in with_ports:
        held.close()
    return ports


@pytest.fixture(scope="module")
def cluster():
    """(address, environment of its clients): two nodes, ended with everything they started."""
    gcs, dashboard, client_server, *agents = free_ports(5)
    unwanted = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted} | {
        "PATH": f"{BINARIES}:{os.environ['PATH']}",  # a job's python is the one that its node finds first
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    size = ("--num-gpus=1", "--num-cpus=16", "--object-store-memory=500000000", "--block")
    # Short: Ray's sockets lie below it. A folder a node, as on two machines: each unpacks what a job ships.
    with (
        tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as first,
        tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as second,
    ):
        commands = (
            [
                *("--head", f"--port={gcs}", f"--temp-dir={first}", "--dashboard-host=127.0.0.1"),
                *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client_server}"),
            ],
            [f"--address=127.0.0.1:{gcs}", f"--temp-dir={second}"],
        )
        nodes = []
        try:
            for command, agent in zip(commands, agents, strict=True):
                node = subprocess.Popen(
                    [BINARIES / "ray", "start", *command, f"--dashboard-agent-listen-port={agent}", *size],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    start_new_session=True,
                )
                nodes.append(node)
                printed = ""
                for line in node.stdout:
                    printed += line
                    if "Ray runtime started" in line:
                        break
                else:
                    raise AssertionError(printed)
            yield SimpleNamespace(
                address=f"http://127.0.0.1:{dashboard}",
                environment=environment | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"},
                token=environment["RAY_AUTH_TOKEN"],
            )
        finally:
            family = [p for node in nodes for p in psutil.Process(node.pid).children(recursive=True)]
            for node in reversed(nodes):
                node.terminate()
                node.stdout.close()
                node.wait()
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


PROBE = """
import importlib.metadata, json, os, pathlib
import ray
from ray.util import list_named_actors
ray.init(address="auto", runtime_env={"env_vars": {"OF_THE_DRIVER": "1"}}, log_to_driver=False)

@ray.remote(num_cpus=0)
class Worker:
    def look(self):
        import verl_gsd
        (point,) = importlib.metadata.entry_points(group="verl.plugins")
        return verl_gsd.__file__, str(point.dist.locate_file("")), ray.get_runtime_context().get_node_id()

own = {"env_vars": {"OF_THE_ACTOR": "1"}}
workers = [Worker.options(runtime_env=own, num_gpus=1).remote() for _ in range(2)]
print("PROBE", json.dumps({
    # Ray waits until there are two accelerators: a run that ended a moment ago gives back what it had.
    "workers": ray.get([worker.look.remote() for worker in workers], timeout=120),
    "driver": str(pathlib.Path.cwd()),
    "actors": [actor["name"] for actor in list_named_actors(all_namespaces=True)],
}))
"""


#: A client in a process of its own: Ray reads the token once, and the tests of this process have clusters without.
CLIENT = """
import os, shlex, sys
from verl_gsd.jobs.cluster import connect
from verl_gsd.jobs.following import follow
from verl_gsd.jobs.package import unpacked_wheel
client = connect(os.environ["RAY_API_SERVER_ADDRESS"])
with unpacked_wheel() as package:
    job = client.submit_job(entrypoint=shlex.join(sys.argv[1:]), runtime_env={"working_dir": str(package)})
print("JOB", job, flush=True)
sys.exit(follow(client, job, lambda text: print(text, end="")) != "SUCCEEDED")
"""


def probe(cluster):
    """What a job of the shipped package sees of the cluster, in an actor of its own environment on each node."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, "python", "-c", PROBE], env=cluster.environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(re.search(r"^PROBE (.*)$", done.stdout, re.MULTILINE)[1])


def test_every_node_imports_the_shipped_package_and_verl_finds_its_plugin_there(cluster):
    seen = probe(cluster)
    assert len({node for _, _, node in seen["workers"]}) == 2
    shipped = Path(seen["driver"])
    for package, distribution, _ in seen["workers"]:
        place = Path(package).parents[1]
        assert place == Path(distribution) and place.name == shipped.name
        assert place.parent.name == shipped.parent.name == "working_dir_files"


def test_a_client_without_the_token_is_told_so(cluster):
    environment = cluster.environment | {"RAY_AUTH_TOKEN": "another"}
    done = verl_gsd("status", env=environment)
    assert done.returncode == 2 and "wants a token" in done.stderr
    assert "another" not in done.stdout + done.stderr.replace("none or another", "")


def watching(*words, environment):
    return subprocess.Popen(
        [BINARIES / "verl-gsd", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process, start):
    printed = ""
    for line in process.stdout:
        printed += line
        if line.startswith(start):
            break
    return printed


TURN = """
import os, threading, ray
from verl_gsd.trainer.cluster import _take_turn
ray.init(address="auto")
turn = _take_turn()
print("TURN of", os.getpid())
threading.Event().wait()
"""


def turns(printed):
    """The processes that said they have the turn; a log begins with the whole entrypoint."""
    return [int(process) for process in re.findall(r"^TURN of (\d+)$", printed, re.MULTILINE)]


def test_runs_take_turns_and_one_that_is_killed_or_stopped_gives_its_turn_back(cluster):
    """verl's queue is one a cluster: two runs at a time would train on each other's responses."""
    command = [sys.executable, "-c", CLIENT, "python", "-c", TURN]
    options = {"env": cluster.environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **options) as first:
        holding = read_until(first, "TURN of")
        with subprocess.Popen(command, **options) as second:
            waiting = read_until(second, "verl-gsd waits: another run trains on this cluster")
            assert not turns(waiting)
            os.kill(*turns(holding), signal.SIGKILL)
            assert turns(read_until(second, "TURN of"))
            job = re.search(r"^JOB (\S+)$", waiting, re.MULTILINE)[1]
            stopped = verl_gsd("stop", job, env=cluster.environment)
            assert stopped.returncode == 0, stopped.stderr
            second.stdout.read()
        first.stdout.read()
    assert (first.returncode, second.returncode) == (1, 1)
    assert re.search(rf"{job}\W+STOPPED", verl_gsd("status", job, env=cluster.environment | {"COLUMNS": "200"}).stdout)


LINE = (
    *("algo=hadw", "task=arithmetic", "hardware=cpu", "data.train_batch_size=4", "trainer.val_before_train=false"),
    *("trainer.nnodes=2", "trainer.n_gpus_per_node=1", "trainer.save_freq=2", "trainer.test_freq=-1"),
)
KILLED, MORE = 3, 3


@pytest.mark.drill
def test_a_job_outlives_its_client_and_goes_on_exactly_after_a_kill_of_its_driver(cluster, tmp_path):
    """Six minutes on two cores that had other work: two starts of the stack, a dozen steps."""
    endless = "trainer.total_training_steps=600"  # a log comes a second after what it tells
    submitting = watching("submit", *LINE, endless, f"--runs={tmp_path}", environment=cluster.environment)
    printed = read_until(submitting, "step    1/")
    submitting.send_signal(signal.SIGKILL)
    submitting.wait()
    submitting.stdout.close()
    job, run = re.search(r"^job (\S+), run directory (\S+)$", printed, re.MULTILINE).groups()
    assert run == f"{tmp_path}/{job}"

    with watching("logs", job, "--follow", environment=cluster.environment) as following:
        followed = read_until(following, f"step    {KILLED}/")
        (driver,) = (
            process
            for process in psutil.process_iter(["cmdline"])
            if (process.info["cmdline"] or [])[1:4] == ["-m", "verl_gsd.trainer.job", f"{run}/config.yaml"]
        )
        driver.kill()
        followed += following.stdout.read()
    assert following.returncode == 1, followed
    for step in range(1, KILLED + 1):
        assert followed.count(f"step    {step}/") == 1, "from its beginning, each line once"
    assert f"verl-gsdsubmit--resume{run}" in re.sub(r"\s", "", followed)
    assert f"job {job}: FAILED" in followed
    listed = verl_gsd("status", env=cluster.environment | {"COLUMNS": "400"})
    assert re.search(rf"{job}\W+FAILED\W.*{run}", listed.stdout)

    saved = RunDirectory(tmp_path / job).latest_checkpoint()
    assert saved >= KILLED - 1
    steps = saved + MORE
    resumed = verl_gsd("submit", "--resume", run, f"trainer.total_training_steps={steps}", env=cluster.environment)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    shown = re.findall(r"^step +(\d+)/", resumed.stdout, re.MULTILINE)
    assert [int(step) for step in shown] == list(range(saved + 1, steps + 1))

    records = read_records(tmp_path / job)
    assert Counter(records["step"].to_pylist()) == dict.fromkeys(range(1, steps + 1), 4), "none twice, none missing"
    attempts = dict(zip(records["step"].to_pylist(), records["attempt"].to_pylist(), strict=True))
    assert attempts == {step: 1 if step <= saved else 2 for step in attempts}
    for step, value in replayed_anchors(tmp_path / job, records, steps).items():
        assert metrics(tmp_path / job, attempts[step])[step]["hadw/anchor/after"] == value
    assert RunDirectory(tmp_path / job).latest_checkpoint() == steps
    shards = list((tmp_path / job / f"global_step_{steps}" / "actor").glob("model_world_size_2_rank_*.pt"))
    assert len(shards) == 2, "a worker on each node"

    written = [file.read_bytes() for file in (tmp_path / job).rglob("*") if file.is_file()]
    assert not any(cluster.token.encode() in content for content in written)
    assert cluster.token not in printed + followed + listed.stdout + resumed.stdout + resumed.stderr
    assert "TransferQueueController" not in probe(cluster)["actors"], "nothing is left on the cluster"
