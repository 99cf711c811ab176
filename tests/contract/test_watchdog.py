"""The watchdog on a real Ray cluster whose processes die. test_faults.py has runs of the whole stack."""

import dataclasses
import os
import re
import signal
from types import SimpleNamespace

import forks
import pytest
import ray
import watched_runs

from verl_gsd.run.messages import MessageWriter, RunStoppedError, read_messages
from verl_gsd.trainer import engine_health, watchdog
from verl_gsd.trainer.progress import Progress
from verl_gsd.trainer.watchdog import EXIT_CODE, Watchdog


@ray.remote(num_cpus=0)
class AgentLoopWorkerTQ:
    """Stub of verl's actor with this class name."""

    def pid(self):
        return os.getpid()

    def leave(self):
        ray.actor.exit_actor()


@ray.remote(num_cpus=0)
class vLLMHttpServer:  # noqa: N801 - verl's name
    """Stub of verl's server. The test sets its answer."""

    def __init__(self):
        self.death = None

    def set(self, death):
        self.death = death

    def verl_gsd_engine_death(self):
        return self.death

    def pid(self):
        return os.getpid()


@ray.remote(num_cpus=0)
class RewardLoopWorker:
    """Stub of verl's worker whose reward function cannot be imported."""

    def __init__(self):
        raise KeyError("my own mistake")


@ray.remote(num_cpus=0)
class Sandbox:
    """An actor that the user's code starts."""

    def pid(self):
        return os.getpid()


class WatchdogOfTheTest(Watchdog):
    """Checks only when the test calls it. The real thread would end this process."""

    def _watch(self):
        pass


@pytest.fixture
def watch(running_queue, tmp_path):
    """A watchdog in the Ray job of all tests. Actors that died in another test count as those of an earlier run."""
    messages = tmp_path / "messages.jsonl"
    dog = WatchdogOfTheTest(Progress(), MessageWriter(messages))
    dog.start()
    yield SimpleNamespace(dog=dog, messages=messages)
    dog.end()


def test_the_death_of_an_actor_is_found_when_sessions_fail_and_is_reported_once(watch):
    kept, killed = AgentLoopWorkerTQ.remote(), AgentLoopWorkerTQ.options(name="my_worker").remote()
    ray.get(kept.pid.remote())
    watch.dog.look(wait=True)
    pid = ray.get(killed.pid.remote())
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(killed.pid.remote())
    for _ in range(2):
        with pytest.raises(RunStoppedError, match=rf"my_worker \(process {pid} on "):
            watch.dog.look(wait=True)
    (message,) = read_messages(watch.messages)
    assert message.kind == "stop" and message.pid == pid and message.text == watch.dog.fault


def test_actors_that_the_program_ended_do_not_count_as_deaths(watch):
    dropped, ended, left = AgentLoopWorkerTQ.remote(), AgentLoopWorkerTQ.remote(), Sandbox.remote()
    for actor in (dropped, ended, left):
        ray.get(actor.pid.remote())
    del dropped
    ray.kill(ended)
    left.__ray_terminate__.remote()
    for actor in (ended, left):
        with pytest.raises(ray.exceptions.RayActorError):
            while True:  # Ray ends it some time after it is told to
                ray.get(actor.pid.remote())
    watch.dog.look(wait=True)
    assert not read_messages(watch.messages)


def test_a_worker_of_verls_that_exits_by_itself_is_a_death(watch):
    worker = AgentLoopWorkerTQ.remote()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(worker.leave.remote())
    with pytest.raises(RunStoppedError, match=r"sys\.exit"):
        watch.dog.look(wait=True)


def test_a_server_is_asked_again_about_its_engine_when_sessions_fail(watch):
    server = vLLMHttpServer.options(name="vllm_server_0_0").remote()
    watch.dog.look(wait=False)  # asks, and an engine that lives then may be dead when the answer is read
    ray.get(server.set.remote(engine_health.EngineDeath(7, {"EngineCore": -9}, 0)))
    with pytest.raises(RunStoppedError, match=r"vLLM server vllm_server_0_0 .*SIGKILL"):
        watch.dog.look(wait=True)
    (message,) = read_messages(watch.messages)
    assert message.pid == 7


def test_a_dead_server_does_not_count_as_alive(watch):
    server = vLLMHttpServer.options(name="vllm_server_0_1").remote()
    watch.dog.look(wait=True)
    os.kill(ray.get(server.pid.remote()), signal.SIGKILL)
    with pytest.raises(RunStoppedError, match=r"vLLM server vllm_server_0_1 "):
        watch.dog.look(wait=True)


def test_actors_that_died_before_the_run_do_not_end_it(watch):
    worker = AgentLoopWorkerTQ.remote()
    os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(worker.pid.remote())
    later = WatchdogOfTheTest(Progress(), MessageWriter(watch.messages))
    later.start()
    later.look(wait=True)
    later.end()
    assert not read_messages(watch.messages)
    with pytest.raises(RunStoppedError):
        watch.dog.look(wait=True)


def test_the_death_of_an_actor_that_is_not_verls_is_reported_and_does_not_end_the_run(watch):
    sandbox = Sandbox.remote()
    os.kill(ray.get(sandbox.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(sandbox.pid.remote())
    for _ in range(2):
        watch.dog.look(wait=True)
    (message,) = read_messages(watch.messages)
    assert message.kind == "warning" and "Sandbox" in message.text


def test_an_actor_that_fails_to_start_counts_as_a_death_with_its_exception(watch):
    actor = RewardLoopWorker.remote()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.__ray_ready__.remote())
    with pytest.raises(RunStoppedError, match=r"KeyError: 'my own mistake'$"):
        watch.dog.look(wait=True)


def test_an_exception_that_a_death_caused_is_explained(watch):
    actor = AgentLoopWorkerTQ.remote()
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(actor.pid.remote())
    watch.dog.explain(caught.value)
    assert "died" in watch.dog.fault
    other = Watchdog(Progress(), MessageWriter(watch.messages))
    other.end()  # the run is over: what dies now is of no interest
    other.explain(caught.value)
    assert other.fault is None


@pytest.fixture(scope="module")
def ended(running_queue, tmp_path_factory):
    """(run) -> (exit status, messages). Each run has its own process, and all start at once."""
    address, started = ray.get_runtime_context().gcs_address, {}
    for run in (watched_runs.loses_a_worker, watched_runs.makes_no_progress, watched_runs.is_suspended):
        folder = tmp_path_factory.mktemp(run.__name__)
        started[run] = forks.start(folder, run, address), folder

    def ended(run):
        process, folder = started[run]
        process.join(300)
        return process.exitcode, read_messages(folder / "messages.jsonl")

    yield ended
    for process, _ in started.values():
        process.kill()


def test_a_trainer_that_waits_where_nothing_interrupts_it_is_ended(ended):
    code, (message,) = ended(watched_runs.loses_a_worker)
    assert code == EXIT_CODE and message.kind == "stop" and "AgentLoopWorkerTQ" not in message.text
    assert "agent worker" in message.text and "died" in message.text


def test_a_run_without_progress_is_warned_and_then_ended(ended):
    code, messages = ended(watched_runs.makes_no_progress)
    assert code == EXIT_CODE and [message.kind for message in messages] == ["warning", "stop"]
    for message in messages:
        assert "waiting for responses (train: 0 responses finished, 4 of 4 prompts unfinished)" in message.text
        assert "algorithm.gsd.limits.quiet_seconds" in message.text


def test_a_run_that_was_suspended_is_not_ended_when_it_wakes(ended):
    code, messages = ended(watched_runs.is_suspended)
    assert code == 0, messages


# Assumptions about verl and vLLM.


def test_roles_list_the_class_names_of_all_of_verls_actors():
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.simple_storage import SimpleStorageUnit
    from verl.checkpoint_engine.base import CheckpointEngineWorker
    from verl.experimental.agent_loop.agent_loop import AgentLoopWorker
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
    from verl.experimental.reward_loop.reward_manager.remote import RewardComputeWorker
    from verl.single_controller.ray import base
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ
    from verl.workers.engine_workers import ActorRolloutRefWorker
    from verl.workers.rollout.router import GlobalRequestLoadBalancer
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    actors = (TransferQueueController, SimpleStorageUnit, AgentLoopWorkerTQ, RewardComputeWorker)
    classes = (AgentLoopWorker, RewardLoopWorker, vLLMHttpServer, GlobalRequestLoadBalancer, CheckpointEngineWorker)
    names = {kind.__name__ for kind in (*classes, *(actor.__ray_metadata__.modified_class for actor in actors))}
    worker = ray.remote(ActorRolloutRefWorker)
    joined = base.create_colocated_worker_cls({"actor": base.RayClassWithInitArgs(worker)})
    assert joined.cls.__ray_actor_class__.__name__ == "WorkerDict"
    others = {"WorkerDict", "SGLangHttpServer", "TRTLLMHttpServer"}  # of packages that are not installed here
    assert names | others == set(watchdog._ROLES)


def test_vllm_reports_a_dead_engine_and_how_its_processes_ended():
    async_llm = pytest.importorskip("vllm.v1.engine.async_llm")
    from vllm.v1.engine.core_client import BackgroundResources
    from vllm.v1.engine.utils import CoreEngineProcManager

    for is_dead in (False, True):
        engine = SimpleNamespace(resources=SimpleNamespace(engine_dead=is_dead))
        client = SimpleNamespace(engine_core=engine, is_running=True)
        assert async_llm.AsyncLLM.errored.fget(client) is is_dead
    assert "engine_manager" in {field.name for field in dataclasses.fields(BackgroundResources)}
    processes = [
        SimpleNamespace(name=name, exitcode=code) for name, code in (("EngineCore_0", -9), ("EngineCore_1", None))
    ]
    assert CoreEngineProcManager.finished_procs(SimpleNamespace(processes=processes)) == {"EngineCore_0": -9}


@pytest.mark.parametrize(
    ("codes", "kills", "expected"),
    [
        ({"EngineCore": -9}, 2, r"EngineCore was killed by SIGKILL\. The kernel of its machine killed 2 process"),
        ({"EngineCore": -9}, 0, "so somebody or a container's limit killed it"),
        ({"EngineCore": -9}, None, "ran out of memory, or somebody killed it"),
        ({"EngineCore_DP0": 1}, 0, "ended with exit code 1.*gpu_memory_utilization lower"),
        ({"EngineCore_DP0": 1}, 1, "gpu_memory_utilization lower.*1 process.* which may also be the cause"),
        ({"EngineCore": -40}, None, "was killed by signal 40"),
        ({}, None, "vLLM does not report how"),
    ],
)
def test_an_engines_end_is_described(codes, kills, expected):
    death = watchdog.engine_death("vllm_server_0_0", "10.0.0.1", engine_health.EngineDeath(7, codes, kills))
    assert death.pid == 7
    text = death.message()
    assert "vLLM server vllm_server_0_0 (process 7 on 10.0.0.1)" in text
    assert re.search(expected, text), text
