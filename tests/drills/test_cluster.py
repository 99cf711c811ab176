"""Jobs and other runs on a real Ray cluster of two nodes, on this machine, whose job server wants a token.

The nodes have one logical accelerator each, so that a run of two workers needs both. Nothing is replaced.
"""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from omegaconf import OmegaConf
from ports import free_ports
from running import BINARIES, Started, metrics, replayed_anchors, verl_gsd

from verl_gsd.errors import ConfigError
from verl_gsd.records import read_records
from verl_gsd.run.cluster_lock import joins
from verl_gsd.rundir import RunDirectory


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
                gcs=f"127.0.0.1:{gcs}",
                client=f"ray://127.0.0.1:{client_server}",
                folder=first,
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
    assert done.returncode == 2 and "requires a token" in done.stderr
    assert "another" not in done.stdout + done.stderr


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


WAITS = "verl-gsd waits: another run trains on this cluster"
TURN = """
import os, threading, ray
from verl_gsd.run.cluster_lock import take_lock
ray.init(address="auto")
take_lock()
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
    with Started(command, **options) as first:
        holding = read_until(first, "TURN of")
        with Started(command, **options) as second:
            waiting = read_until(second, WAITS)
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

RESOLVING = """
import json, os, sys
import ray
from omegaconf import OmegaConf
from verl_gsd.run import cluster_lock as cluster
for address, temporary, environment in json.loads(sys.argv[1]):
    os.environ["RAY_ADDRESS"] = environment
    init = {"address": address, "_temp_dir": temporary}
    joins = cluster.joins(OmegaConf.create({"ray_kwargs": {"ray_init": init}}))
    ray.init(**init, include_dashboard=False, log_to_driver=False)
    print("CASE", joins, len(ray.nodes()), flush=True)
    ray.shutdown()
"""


def test_joining_is_decided_as_ray_decides_it(cluster):
    """A cluster of the run's own has one node, this one has two."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as empty:
        joined = [
            (cluster.gcs, None, ""),  # an address
            (None, None, cluster.gcs),  # RAY_ADDRESS
            ("auto", None, cluster.gcs),
            (None, cluster.folder, ""),  # what `ray start` left on this node
            (None, None, cluster.client),  # Ray Client
        ]
        own = [("local", None, cluster.gcs), (None, empty, ""), (None, empty, "local")]
        done = subprocess.run(
            [sys.executable, "-c", RESOLVING, json.dumps(joined + own)],
            env=cluster.environment,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    cases = re.findall(r"^CASE (\w+) (\d+)$", done.stdout, re.MULTILINE)
    assert cases == [("True", "2")] * len(joined) + [("False", "1")] * len(own)


@pytest.mark.parametrize("variable", ["", "nonsense"])
def test_an_address_that_ray_cannot_resolve_is_rejected_before_ray_starts(monkeypatch, variable):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    address, key = (None, "RAY_ADDRESS=nonsense") if variable else ("nonsense", "ray_init.address=nonsense")
    with pytest.raises(ConfigError, match=f"{key}.*HOST:PORT.*address=local"):
        joins(OmegaConf.create({"ray_kwargs": {"ray_init": {"address": address}}}))


#: A run that has verl's queue, in a process that answers whether the queue is still there.
FIRST = """
import sys
import ray
import verl
import transfer_queue as tq
from omegaconf import OmegaConf
ray.init(log_to_driver=False)
tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
queue = ray.get_actor("TransferQueueController", namespace="transfer_queue")
print("QUEUE made", flush=True)
for _ in sys.stdin:
    try:
        ray.get(queue.get_config.remote())
        print("QUEUE there", flush=True)
    except ray.exceptions.RayActorError:
        print("QUEUE gone", flush=True)
"""

#: A second run without our patch of the queue.
ATTACHING = """
import ray
import verl
import transfer_queue as tq
ray.init(log_to_driver=False)
tq.init.__wrapped__({"controller": {"polling_mode": True}})
tq.close()
"""


@pytest.fixture
def unsubmitted(cluster):
    """The environment of a run that joins the cluster without being a job."""
    return cluster.environment | {"RAY_ADDRESS": cluster.gcs, "VERL_GSD_CPU": "1"}


@pytest.fixture
def first(unsubmitted):
    """A run that has the queue; ``first.queue()`` asks it whether it still has."""
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST], env=unsubmitted, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def queue():
        process.stdin.write("?\n")
        process.stdin.flush()
        return read_until(process, "QUEUE").splitlines()[-1]

    assert "QUEUE made" in read_until(process, "QUEUE made")
    yield SimpleNamespace(queue=queue, kill=process.kill)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_patch_still_needed_because_a_second_run_ends_the_first_ones_queue(first, unsubmitted):
    """If TransferQueue closes only what it made, cluster.lock_queue need only keep two runs off one queue."""
    assert first.queue() == "QUEUE there"
    subprocess.run([sys.executable, "-c", ATTACHING], env=unsubmitted, check=True, capture_output=True)
    assert first.queue() == "QUEUE gone"


#: A run whose driver has the lock, as under `verl-gsd train`, and whose task runner makes the queue.
LOCKED = """
import sys
import ray
from verl_gsd.run.cluster_lock import take_lock
ray.init(namespace=sys.argv[1] or None, log_to_driver=False)
take_lock()

@ray.remote
class TaskRunner:
    def run(self):
        import verl
        import transfer_queue as tq
        tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})
        tq.init({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}})  # it has one now
        tq.close()
        return hasattr(tq.init, "__wrapped__")

print("RAN", ray.get(TaskRunner.remote().run.remote()))
"""


@pytest.mark.parametrize("namespace", ["", "shared"])
def test_a_runs_task_runner_does_not_wait_for_the_lock_of_its_own_driver(unsubmitted, namespace):
    done = subprocess.run(
        [sys.executable, "-c", LOCKED, namespace], env=unsubmitted, capture_output=True, text=True, timeout=900
    )
    assert "RAN True" in done.stdout and "verl-gsd waits" not in done.stdout, done.stdout + done.stderr


#: As hardware=cpu, but on a cluster that is there.
JOINING = (
    *("ray_kwargs.ray_init.address=null", "ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null"),
    "data.train_batch_size=4",
)


def test_under_verls_own_command_a_second_run_waits_and_leaves_the_first_ones_queue(first, unsubmitted, tiny_task):
    words = ("+algo=grpo", "+task=arithmetic", "+hardware=cpu", f"task.directory={tiny_task}", *JOINING)
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *words, "trainer.n_gpus_per_node=4"]  # there are two
    with Started(command, env=unsubmitted, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as second:
        printed = ""
        for line in second.stdout:  # of the task runner: Ray says before it whose line it is
            printed += line
            if WAITS in line:
                break
        assert WAITS in printed, printed
        assert first.queue() == "QUEUE there"
        first.kill()
        printed += second.stdout.read()
    assert "Total available GPUs" in printed, "it had its turn, and failed for another reason"


def test_a_run_that_joins_without_being_a_job_takes_the_lock_and_forks_no_workers(first, unsubmitted, tmp_path):
    words = ("train", *LINE, *JOINING, f"trainer.default_local_dir={tmp_path}/run")
    with watching(*words, environment=unsubmitted) as second:
        printed = read_until(second, WAITS)
        assert WAITS in printed, printed
        commands = [process.cmdline() for process in psutil.Process(second.pid).children(recursive=True)]
        assert any("verl_gsd.run.job" in command for command in commands)
        assert not any("verl_gsd.cpu.forkserver" in command for command in commands)
        second.send_signal(signal.SIGINT)
        second.stdout.read()
    assert first.queue() == "QUEUE there"


KILLED, MORE = 3, 3


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
            if (process.info["cmdline"] or [])[-4:-2] == ["verl_gsd.run.job", f"{run}/config.yaml"]
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
