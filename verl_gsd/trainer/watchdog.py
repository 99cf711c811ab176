"""End a run whose processes have died, or which makes no progress.

verl waits without a limit: for responses in its replay buffer, and for weights to arrive in vLLM. If a process that
should deliver them has died, verl waits for ever, or trains on what the others delivered. A thread of the trainer's
process therefore looks every few seconds at

- verl's actors, in the table of Ray's control service: training workers, rollout servers, agent workers, reward
  workers, the queue and its storage units. The death of an actor that is not verl's, for example a sandbox that a
  reward function starts, is reported and ends nothing: its owner may replace it;
- the engine inside every vLLM server (``engine_health.py``);
- the run's progress (``progress.py``).

The trainer also asks at once when a session fails (``Watchdog.check``), so that no batch is used that an engine's death
has cut short.
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

from verl_gsd.trainer import engine_health
from verl_gsd.trainer.memory_kills import killed_since, oom_kills
from verl_gsd.trainer.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer.progress import Progress

#: Seconds between two looks.
_LOOK_INTERVAL = 3.0
#: Seconds for a server to answer when a session has just failed. A busy server answers within one engine step.
_ANSWER = 10.0
#: Seconds for the trainer's thread to end the run in order, before the watchdog ends the process. The thread may wait
#: in verl or in Ray, where nothing interrupts it.
_GRACE = 5.0
#: Seconds for verl to close its loggers and its queue after that.
_CLOSING = 15.0
#: Exit code of a trainer's process that the watchdog ended.
EXIT_CODE = 70

_SERVER = "vLLMHttpServer"
#: verl's actors: what each is, for a user, by a part of the class name that Ray shows.
_ROLES = {
    _SERVER: "vLLM server",
    "HttpServer": "rollout server",  # of SGLang and TensorRT-LLM
    "AgentLoopWorker": "agent worker",
    "RewardLoopWorker": "reward worker",
    "RewardComputeWorker": "reward worker",
    "WorkerDict": "training worker",
    "CheckpointEngineWorker": "worker that transfers weights",
    "StorageUnit": "storage unit of verl's queue",
    "TransferQueueController": "controller of verl's queue",
    "LoadBalancer": "load balancer of the rollout servers",
}


@dataclass(frozen=True)
class Death:
    """A process of the run that died.

    Attributes:
        what: the process, for a user, with its name, node and process id.
        how: how it ended and the likely cause, one sentence or more.
        pid: process id under which Ray logged its output; None if it is not known.
        is_fatal: whether the run cannot go on without it.
    """

    what: str
    how: str
    pid: int | None
    is_fatal: bool = True

    def message(self) -> str:
        return f"{self.what} died. {self.how}"


def dead_actors(table: Mapping[str, Mapping[str, Any]], node: str = "", memory: str | None = None) -> list[Death]:
    """The actors that died although nobody ended them on purpose.

    Args:
        table: as ``ray._private.state.actors`` returns it, by actor id.
        node: id of this process's node.
        memory: what this node's kernel tells of processes that it ended for lack of memory.
    """
    dead = [actor for actor in table.values() if actor["State"] == "DEAD" and not _on_purpose(actor)]
    return [_death(actor, memory if actor["Address"]["NodeID"] == node else None) for actor in dead]


def _on_purpose(actor: Mapping[str, Any]) -> bool:
    """Whether the program ended the actor: it dropped its handles, killed it, or the actor exited by itself."""
    context = actor["DeathCause"].actor_died_error_context
    reasons = context.DESCRIPTOR.enum_types_by_name["Reason"].values_by_name
    ended = [reasons[name].number for name in ("RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED")]
    return context.reason in ended or "INTENDED" in context.error_message


def _death(actor: Mapping[str, Any], memory: str | None) -> Death:
    cause, kind = actor["DeathCause"], actor["ActorClassName"]
    role = next((role for name, role in _ROLES.items() if name in kind), None)
    name = f" {actor['Name']}" if actor["Name"] else ""
    place = actor["Address"]["IPAddress"] or "no node"
    return Death(
        f"The {role or f'Ray actor {kind}'}{name} (process {actor['Pid']} on {place})",
        _how(cause) + (f" {memory}" if memory else ""),
        actor["Pid"] or None,
        is_fatal=role is not None,
    )


def _how(cause: Any) -> str:
    """Ray's account of a death, shortened. Ray's own text repeats every root cause that it can think of."""
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
    return "It was killed, ran out of memory, or crashed."


def engine_death(name: str, node: str, death: engine_health.EngineDeath) -> Death:
    """Describe the death of the engine inside the server ``name`` on ``node``."""
    ends = [f"{process} {_ended(code)}" for process, code in death.exit_codes.items()]
    how = f"{', '.join(ends)}." if ends else "vLLM does not tell how."
    if death.memory_kills:
        how += (
            f" The kernel of its machine ended {death.memory_kills} processes for lack of memory since the server "
            "started, so this is the likely cause. Use a machine with more memory, or fewer workers per machine."
        )
    elif any(code == -9 for code in death.exit_codes.values()):
        how += (
            " Likely cause: the machine or the container ran out of memory, or somebody killed it."
            if death.memory_kills is None
            else " The kernel ended no process for lack of memory, so somebody or a container's limit killed it."
        )
    else:
        how += (
            " Its log, below, has the cause. If that is GPU memory, lower "
            "actor_rollout_ref.rollout.gpu_memory_utilization."
        )
    return Death(f"The engine of vLLM server {name} (process {death.server_pid} on {node})", how, death.server_pid)


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Watchdog:
    """Watches one run from the trainer's process.

    Args:
        progress: what the trainer does, and since when.
        messages: where the user is told why the run ends.
    """

    def __init__(self, progress: Progress, messages: MessageWriter) -> None:
        self._progress = progress
        self._messages = messages
        self._memory_kills = oom_kills()
        self._fault: str | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._warned_of: set[str] = set()
        self._servers: dict[str, Any] = {}  # handles by actor name
        self._asked: dict[str, tuple[Any, float]] = {}  # by actor name: outstanding answers, and since when
        self._thread = threading.Thread(target=self._watch, name="verl_gsd_watchdog", daemon=True)

    @property
    def fault(self) -> str | None:
        """Why the run must end; None while it may go on."""
        return self._fault

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """The run ends, well or badly. What dies from now on is of no interest."""
        self._ended.set()

    def check(self, failures: bool = False) -> None:
        """Raise if the run must end.

        Args:
            failures: sessions have just failed, so look at all processes now.

        Raises:
            RunStoppedError: a process of the run is dead, or the run is stuck.
        """
        if failures and self._fault is None:
            self._find_death(_ANSWER, ask_anew=True)
        if self._fault is not None:
            raise RunStoppedError(self._fault)

    def explain(self, error: Exception) -> None:
        """Find out whether the death of a process caused ``error``, which ends the run, and tell the user if so."""
        # Ray tells a caller of an actor's death before it is in the table.
        for _ in range(3 if isinstance(error, ray.exceptions.RayError) else 1):
            try:
                self._find_death(_ANSWER, ask_anew=True)
            except Exception as failure:  # of Ray, which may be going down; ``error`` is what the user must see
                self._warn_once("Ray", f"Ray does not tell which processes of the run are alive: {failure!r}")
                return
            if self._fault is not None or self._ended.wait(1.0):
                return

    def _watch(self) -> None:
        while self._fault is None and not self._ended.wait(_LOOK_INTERVAL):
            seconds, limit, doing = self._progress.quiet()
            if seconds > limit:
                self._stop(_stuck(seconds, doing, self._silent()), None)
                break
            if seconds > limit / 2:
                key = "algorithm.gsd.limits.quiet_seconds"
                self._warn_once(
                    doing, f"no progress for {seconds:.0f} s: {doing}. The run stops after {limit:.0f} s ({key})."
                )
            try:
                self._find_death(0.0)
            except Exception as error:  # of Ray, which may be going down
                self._warn_once("Ray", f"Ray does not tell which processes of the run are alive: {error!r}")
        if self._fault is not None:
            self._ended.wait(_GRACE)
            # verl closes its loggers and its queue last, which may wait for the process that died.
            if self._ended.is_set():
                time.sleep(_CLOSING)
            os._exit(EXIT_CODE)

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned_of:
            self._warned_of.add(about)
            self._messages.write("warning", text)

    def _find_death(self, answer_within: float, ask_anew: bool = False) -> None:
        """Look at all processes.

        Args:
            answer_within: seconds to wait for the servers' answers.
            ask_anew: an answer that a server gave earlier does not count.
        """
        with self._lock:
            if ask_anew:
                self._asked.clear()
            job = ray.get_runtime_context().get_job_id()
            table = ray._private.state.actors(job_id=ray.JobID.from_hex(job))
            node, memory = ray.get_runtime_context().get_node_id(), killed_since(self._memory_kills)
            dead = dead_actors(table, node, memory)
            deaths = [death for death in dead if death.is_fatal] or self._dead_engines(table, answer_within)
        if self._ended.is_set():
            return
        for death in dead:
            if not death.is_fatal:
                self._warn_once(death.what, death.message())
        if deaths:
            self._stop(
                " ".join(death.message() for death in deaths[:3])
                + (f" {len(deaths) - 3} further processes died." if len(deaths) > 3 else ""),
                deaths[0].pid,
            )

    def _dead_engines(self, table: Mapping[str, Mapping[str, Any]], answer_within: float) -> list[Death]:
        servers = {
            actor["Name"]: actor
            for actor in table.values()
            if _SERVER in actor["ActorClassName"] and actor["State"] == "ALIVE" and actor["Name"]
        }
        for name in servers:
            if name not in self._servers:
                self._servers[name] = ray.get_actor(name)
            # Without the method: a node on which verl did not load our plugin.
            if name not in self._asked and hasattr(self._servers[name], engine_health.METHOD):
                answer = getattr(self._servers[name], engine_health.METHOD).remote()
                self._asked[name] = (answer, time.monotonic())
        servers = {name: actor for name, actor in servers.items() if name in self._asked}
        answers = [self._asked[name][0] for name in servers]
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=answer_within) if answers else ([], [])
        deaths = []
        for name, actor in servers.items():
            if self._asked[name][0] in ready:
                try:
                    death = ray.get(self._asked.pop(name)[0])
                except ray.exceptions.RayError:  # the server has died; the next look finds it in the table
                    continue
                if death is not None:
                    deaths.append(engine_death(name, actor["Address"]["IPAddress"], death))
        return deaths

    def _silent(self) -> list[str]:
        """The vLLM servers that were asked some time ago and have not answered."""
        now = time.monotonic()
        return sorted(name for name, (_, asked) in self._asked.items() if now - asked > _ANSWER)

    def _stop(self, fault: str, pid: int | None) -> None:
        with self._lock:
            if self._fault is not None:
                return
            self._fault = fault
        self._messages.write("stop", fault, pid)


def _stuck(seconds: float, doing: str, silent: Iterable[str]) -> str:
    servers = ", ".join(silent)
    return (
        f"The run made no progress for {seconds:.0f} s: {doing}. "
        + (f"These vLLM servers do not answer: {servers}. " if servers else "All vLLM servers answer. ")
        + "If the run needs longer, set algorithm.gsd.limits.quiet_seconds to a larger number."
    )
