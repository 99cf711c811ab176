"""Ends a run whose processes have died, or that makes no progress.

verl waits without a limit, for responses in its replay buffer and for weights to arrive in vLLM. If a process that
should deliver them has died, verl waits for ever, or trains only on what the other processes delivered. A thread in the
trainer's process therefore checks every few seconds:

- verl's actors, in the table of Ray's control service: training workers, rollout servers, agent workers, reward
  workers, the queue and its storage units. If another actor dies, for example a sandbox that a reward function started,
  the watchdog warns and the run continues, because the owner may replace it;
- the engine inside every vLLM server (``engine_health.py``);
- the run's progress (``progress.py``).

The trainer also checks at once when a session fails (``Watchdog.look``), so that it never uses a batch that lacks
responses because an engine died.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from verl_gsd.run.memory_kills import killed_since, oom_kills
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer import engine_health
from verl_gsd.trainer.progress import Progress

#: Seconds between two checks.
_LOOK_INTERVAL = 3.0
#: Seconds for a server to answer when a session has just failed. A busy server answers within one engine step.
_ANSWER = 10.0
#: Seconds for the trainer's thread to end the run normally, before the watchdog ends the process. The thread may be
#: waiting in verl or in Ray, where nothing interrupts it.
_GRACE = 5.0
#: Seconds for verl to close its loggers and its queue after that.
_CLOSING = 15.0
#: Exit code of a trainer's process that the watchdog ended.
EXIT_CODE = 70

#: Seconds to find out which death caused an exception that ends the run.
_EXPLAINING = 10.0

_SERVER = "vLLMHttpServer"
#: verl's actors: class name -> description for the user.
_ROLES = {
    _SERVER: "vLLM server",
    "SGLangHttpServer": "SGLang server",
    "TRTLLMHttpServer": "TensorRT-LLM server",
    "AgentLoopWorker": "agent worker",
    "AgentLoopWorkerTQ": "agent worker",
    "RewardLoopWorker": "reward worker",
    "RewardComputeWorker": "reward worker",
    "WorkerDict": "training worker",
    "CheckpointEngineWorker": "worker that transfers weights",
    "SimpleStorageUnit": "storage unit of verl's queue",
    "TransferQueueController": "controller of verl's queue",
    "GlobalRequestLoadBalancer": "load balancer of the rollout servers",
}


@dataclass(frozen=True)
class Death:
    """A process of the run that died.

    Attributes:
        process: description of the process for the user, with its name, node and process id.
        explanation: how it ended and the likely cause, one sentence or more.
        pid: process id under which Ray logged its output; None if unknown.
        kind: the actor's class.
        is_fatal: whether the run cannot continue without it.
    """

    process: str
    explanation: str
    pid: int | None
    kind: str
    is_fatal: bool = True

    def message(self) -> str:
        return f"{self.process} died. {self.explanation}"


def dead_actors(table: Mapping[str, Mapping[str, Any]], node: str = "", memory: str | None = None) -> list[Death]:
    """The actors that died, without those that the program ended on purpose.

    Args:
        table: Ray's actors by id, from ``ray._private.state.actors``.
        node: id of this process's node.
        memory: a sentence about processes that this node's kernel killed for lack of memory.
    """
    dead = [actor for actor in table.values() if actor["State"] == "DEAD" and not _was_ended_on_purpose(actor)]
    return [_death(actor, memory if actor["Address"]["NodeID"] == node else None) for actor in dead]


def _class(actor: Mapping[str, Any]) -> str:
    """The name of an actor's class, without the qualified name of the function that defined it."""
    return actor["ActorClassName"].rpartition(".")[2]


def _was_ended_on_purpose(actor: Mapping[str, Any]) -> bool:
    """Whether the program ended the actor, by dropping its handles or by killing it.

    An actor that exited by itself also counts, unless it is one of verl's: those exit only if a tool or an agent loop
    calls ``sys.exit``, and their sessions then never end.
    """
    context = actor["DeathCause"].actor_died_error_context
    reasons = context.DESCRIPTOR.enum_types_by_name["Reason"].values_by_name
    on_purpose = [reasons[name].number for name in ("RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED")]
    return context.reason in on_purpose or (_class(actor) not in _ROLES and "INTENDED" in context.error_message)


def _death(actor: Mapping[str, Any], memory: str | None) -> Death:
    cause, kind = actor["DeathCause"], _class(actor)
    role = _ROLES.get(kind)
    name = f" {actor['Name']}" if actor["Name"] else ""
    place = actor["Address"]["IPAddress"] or "no node"
    return Death(
        f"The {role or f'Ray actor {kind}'}{name} (process {actor['Pid']} on {place})",
        _explanation(cause) + (f" {memory}" if memory else ""),
        actor["Pid"] or None,
        kind,
        is_fatal=role is not None,
    )


def _explanation(cause: Any) -> str:
    """A short form of Ray's description of a death. Ray's own text lists every possible root cause."""
    which = cause.WhichOneof("context")
    if which == "oom_context":
        return f"Ray ended it because its node ran out of memory. {cause.oom_context.error_message}".strip()
    if which == "creation_task_failure_context":
        *_, exception = cause.creation_task_failure_context.formatted_exception_string.strip().splitlines() or [""]
        return f"It failed while it started: {exception}"
    if which == "runtime_env_failed_context":
        return f"Ray could not set up its environment: {cause.runtime_env_failed_context.error_message}"
    context = cause.actor_died_error_context
    if context.HasField("node_death_info"):
        return f"Its node left the cluster: {context.node_death_info.reason_message or context.error_message}"
    if "INTENDED_USER_EXIT" in context.error_message:
        return "It exited by itself: code that it ran called sys.exit."
    return "It was killed, ran out of memory, or crashed."


def engine_death(name: str, node: str, death: engine_health.EngineDeath) -> Death:
    """Describe the death of the engine inside the server ``name`` on ``node``."""
    ends = [f"{process} {_ended(code)}" for process, code in death.exit_codes.items()]
    how = f"{', '.join(ends)}." if ends else "vLLM does not report how."
    killed = death.memory_kills
    kernel = f"The kernel of its machine killed {killed} process(es) for lack of memory since the server started"
    if any(code == -signal.SIGKILL for code in death.exit_codes.values()):
        if killed:
            cause = f"{kernel}: this is the likely cause. Use a machine with more memory, or fewer workers per machine."
        elif killed is None:
            cause = "Likely cause: the machine or the container ran out of memory, or somebody killed it."
        else:
            cause = "The kernel killed no process for lack of memory, so somebody or a container's limit killed it."
    else:
        cause = "Its log has the cause. If that is GPU memory, set actor_rollout_ref.rollout.gpu_memory_utilization "
        cause += f"lower. {kernel}, which may also be the cause." if killed else "lower."
    process = f"The engine of vLLM server {name} (process {death.server_pid} on {node})"
    return Death(process, f"{how} {cause}", death.server_pid, _SERVER)


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}"


class Watchdog:
    """Watches one run from the trainer's process.

    Args:
        progress: what the trainer is doing, and since when.
        messages: receives the reason why the run ends.
    """

    def __init__(self, progress: Progress, messages: MessageWriter) -> None:
        self._progress = progress
        self._messages = messages
        self._memory_kills = oom_kills()
        self._fault: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._warned_about: set[str] = set()
        self._dead_before: set[str] = set()
        self._unreachable: set[str] = set()  # names of servers to which a request failed at the last check
        self._servers: dict[str, Any] = {}  # handles by actor name
        self._requests: dict[str, tuple[Any, float]] = {}  # by actor name: unanswered request, time when it was sent
        self._thread = threading.Thread(target=self._watch, name="verl_gsd_watchdog", daemon=True)

    @property
    def fault(self) -> str | None:
        """Why the run must end; None if it may continue."""
        return self._fault

    def start(self) -> None:
        """Start to watch. Actors that are already dead are ignored: they belong to an earlier run in this Ray job."""
        self._dead_before = {actor for actor, entry in self._table().items() if entry["State"] == "DEAD"}
        self._thread.start()

    def end(self) -> None:
        """The run ends, normally or with an error. Later deaths are ignored."""
        self._ended.set()

    def check(self) -> None:
        """Raise if the run must end.

        Raises:
            RunStoppedError: a process of the run is dead, or the run is stuck.
        """
        if self._fault is not None:
            raise RunStoppedError(self._fault)

    def look(self, wait: bool) -> None:
        """Check all processes now, because sessions have failed, and raise if the run must end.

        Args:
            wait: whether to wait up to 10 s for the answers of all servers. A busy server answers late.

        Raises:
            RunStoppedError: a process of the run is dead or cannot be reached, or the run is stuck.
        """
        self._try_to_find_death(_ANSWER if wait else 0.0)
        self.check()
        deadline = time.monotonic() + _ANSWER
        while wait and self._unreachable:  # Ray's table does not show the death yet, or the network has failed
            if time.monotonic() > deadline:
                names = ", ".join(sorted(self._unreachable))
                self._stop(f"Responses failed, and Ray cannot reach these vLLM servers: {names}.", None)
            else:
                time.sleep(1)
                self._try_to_find_death(_ANSWER)
            self.check()

    def explain(self, error: Exception) -> None:
        """Find out whether the death of a process caused ``error``, which ends the run. If so, tell the user."""
        deadline = time.monotonic() + _EXPLAINING
        # Ray reports an actor's death to callers before its table shows it.
        for _ in range(3 if isinstance(error, ray.exceptions.RayError) else 1):
            self._try_to_find_death(max(0.0, deadline - time.monotonic()))
            if self._fault is not None or self._ended.wait(min(1.0, max(0.0, deadline - time.monotonic()))):
                return

    def _watch(self) -> None:
        try:
            while self._fault is None:
                begun = time.monotonic()
                if self._ended.wait(_LOOK_INTERVAL):
                    break
                suspended = time.monotonic() - begun - _LOOK_INTERVAL
                if suspended > _LOOK_INTERVAL:  # a scheduler or a debugger stopped the whole process
                    self._progress.excuse(suspended)
                self._look_at_progress()
                self._try_to_find_death(0.0)
        finally:
            if self._fault is not None:
                self._ended.wait(_GRACE)
                # verl closes its loggers and its queue last. That may wait for the process that died.
                if self._ended.is_set():
                    time.sleep(_CLOSING)
                os._exit(EXIT_CODE)

    def _look_at_progress(self) -> None:
        seconds, limit, doing = self._progress.quiet()
        if seconds > limit:
            self._stop(_describe_stuck(seconds, doing, self._silent_servers()), None)
        elif seconds > limit / 2:
            key = "algorithm.gsd.limits.quiet_seconds"
            self._warn_once(doing, f"no progress for {seconds:.0f} s: {doing}. The run stops at {limit:.0f} s ({key}).")

    def _try_to_find_death(self, answer_within: float) -> None:
        try:
            self._find_death(answer_within)
        except (ray.exceptions.RayError, ValueError, RuntimeError) as error:  # Ray may be shutting down
            self._warn_once("Ray", f"Ray does not report which processes of the run are alive: {error!r}")

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned_about:
            self._warned_about.add(about)
            self._messages.write("warning", text)

    @staticmethod
    def _table() -> dict[str, dict[str, Any]]:
        """Ray's table of all actors of this job, by id."""
        return ray._private.state.actors(job_id=ray.JobID.from_hex(ray.get_runtime_context().get_job_id()))

    def _find_death(self, answer_within: float) -> None:
        """Check all processes.

        Args:
            answer_within: seconds to wait for the servers' answers to new requests. 0: read the answers to the requests
                of an earlier check, as far as they have arrived.
        """
        with self._lock:
            if answer_within:
                self._requests.clear()
            table = {actor: entry for actor, entry in self._table().items() if actor not in self._dead_before}
            node, memory = ray.get_runtime_context().get_node_id(), killed_since(self._memory_kills)
            dead = dead_actors(table, node, memory)
            deaths = [death for death in dead if death.is_fatal] or self._dead_engines(table, answer_within)
        if self._ended.is_set():
            return
        for death in dead:
            if not death.is_fatal:
                self._warn_once(
                    death.kind,
                    f"{death.message()} The run continues, because verl did not start this process. Further deaths of "
                    "this kind are not reported.",
                )
        if deaths:
            self._stop(
                " ".join(death.message() for death in deaths[:3])
                + (f" {len(deaths) - 3} more processes died." if len(deaths) > 3 else ""),
                deaths[0].pid,
            )

    def _dead_engines(self, table: Mapping[str, Mapping[str, Any]], answer_within: float) -> list[Death]:
        servers = {
            actor["Name"]: actor
            for actor in table.values()
            if _class(actor) == _SERVER and actor["State"] == "ALIVE" and actor["Name"]
        }
        for name in servers:
            if name not in self._servers:
                self._servers[name] = ray.get_actor(name)
            # A server lacks the method if verl did not load our plugin on its node.
            if name not in self._requests and hasattr(self._servers[name], engine_health.METHOD):
                answer = getattr(self._servers[name], engine_health.METHOD).remote()
                self._requests[name] = (answer, time.monotonic())
        servers = {name: actor for name, actor in servers.items() if name in self._requests}
        answers = [self._requests[name][0] for name in servers]
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=answer_within) if answers else ([], [])
        deaths = []
        self._unreachable = set()
        for name, actor in servers.items():
            if self._requests[name][0] in ready:
                try:
                    death = ray.get(self._requests.pop(name)[0])
                except ray.exceptions.RayError:  # the server or its node died, and the next check finds it in the table
                    self._unreachable.add(name)
                    continue
                if death is not None:
                    deaths.append(engine_death(name, actor["Address"]["IPAddress"], death))
        return deaths

    def _silent_servers(self) -> list[str]:
        """The vLLM servers that have not answered a request for longer than ``_ANSWER`` seconds."""
        now = time.monotonic()
        return sorted(name for name, (_, sent) in self._requests.items() if now - sent > _ANSWER)

    def _stop(self, fault: str, pid: int | None) -> None:
        with self._lock:
            if self._fault is not None:
                return
            self._fault = fault
        self._messages.write("stop", fault, pid)


def _describe_stuck(seconds: float, doing: str, silent_servers: Iterable[str]) -> str:
    servers = ", ".join(silent_servers)
    return (
        f"The run made no progress for {seconds:.0f} s: {doing}. "
        + (f"These vLLM servers did not answer for {_ANSWER:.0f} s: {servers}. " if servers else "All servers answer. ")
        + "If the run needs longer, set algorithm.gsd.limits.quiet_seconds to a larger number."
    )
