"""End a run whose processes have died, or which makes no progress.

verl waits without a limit: for responses in its replay buffer, and for weights to arrive in vLLM. If a process that
should deliver them has died, verl waits for ever, or trains on what the others delivered. A thread of the trainer's
process therefore looks every few seconds at

- verl's actors, in the table of Ray's control service: training workers, rollout servers, agent workers, reward
  workers, the queue and its storage units. The death of an actor that is not verl's, for example a sandbox that a
  reward function starts, is reported and ends nothing: its owner may replace it;
- the engine inside every vLLM server (``engine_health.py``);
- the run's progress (``progress.py``).

The trainer also looks at once when a session fails (``Watchdog.look``), so that no batch is used that an engine's death
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

from verl_gsd.run.memory_kills import killed_since, oom_kills
from verl_gsd.run.messages import MessageWriter, RunStoppedError
from verl_gsd.trainer import engine_health
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

#: Seconds to find out which death has caused an exception that ends the run.
_EXPLAINING = 10.0

_SERVER = "vLLMHttpServer"
#: verl's actors: what each is, for a user, by the name of its class.
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
        what: the process, for a user, with its name, node and process id.
        how: how it ended and the likely cause, one sentence or more.
        pid: process id under which Ray logged its output; None if it is not known.
        kind: the actor's class.
        is_fatal: whether the run cannot go on without it.
    """

    what: str
    how: str
    pid: int | None
    kind: str
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


def _class(actor: Mapping[str, Any]) -> str:
    """The name of an actor's class, without the function that made it."""
    return actor["ActorClassName"].rpartition(".")[2]


def _on_purpose(actor: Mapping[str, Any]) -> bool:
    """Whether the program ended the actor: it dropped its handles or killed it.

    An actor may also exit by itself. One of verl's never does that in a run: a tool or an agent loop has called
    ``sys.exit``, and its sessions never end.
    """
    context = actor["DeathCause"].actor_died_error_context
    reasons = context.DESCRIPTOR.enum_types_by_name["Reason"].values_by_name
    ended = [reasons[name].number for name in ("RAY_KILL", "OUT_OF_SCOPE", "REF_DELETED")]
    return context.reason in ended or (_class(actor) not in _ROLES and "INTENDED" in context.error_message)


def _death(actor: Mapping[str, Any], memory: str | None) -> Death:
    cause, kind = actor["DeathCause"], _class(actor)
    role = _ROLES.get(kind)
    name = f" {actor['Name']}" if actor["Name"] else ""
    place = actor["Address"]["IPAddress"] or "no node"
    return Death(
        f"The {role or f'Ray actor {kind}'}{name} (process {actor['Pid']} on {place})",
        _how(cause) + (f" {memory}" if memory else ""),
        actor["Pid"] or None,
        kind,
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
    if "INTENDED_USER_EXIT" in context.error_message:
        return "It exited by itself: code that it ran called sys.exit."
    return "It was killed, ran out of memory, or crashed."


def engine_death(name: str, node: str, death: engine_health.EngineDeath) -> Death:
    """Describe the death of the engine inside the server ``name`` on ``node``."""
    ends = [f"{process} {_ended(code)}" for process, code in death.exit_codes.items()]
    how = f"{', '.join(ends)}." if ends else "vLLM does not tell how."
    killed = death.memory_kills
    kernel = f"The kernel of its machine ended {killed} process(es) for lack of memory since the server started"
    if any(code == -signal.SIGKILL for code in death.exit_codes.values()):
        if killed:
            how += f" {kernel}: this is the likely cause. Use a machine with more memory, or fewer workers per machine."
        elif killed is None:
            how += " Likely cause: the machine or the container ran out of memory, or somebody killed it."
        else:
            how += " The kernel ended no process for lack of memory, so somebody or a container's limit killed it."
    else:
        how += (
            " Its log has the cause. If that is GPU memory, set actor_rollout_ref.rollout.gpu_memory_utilization lower."
        )
        how += f" {kernel}, which may also be the cause." if killed else ""
    return Death(
        f"The engine of vLLM server {name} (process {death.server_pid} on {node})", how, death.server_pid, _SERVER
    )


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed by {name}"


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
        self._dead_before: set[str] = set()
        self._unreachable: set[str] = set()  # servers to which a question failed at the last look
        self._servers: dict[str, Any] = {}  # handles by actor name
        self._asked: dict[str, tuple[Any, float]] = {}  # by actor name: outstanding answers, and since when
        self._thread = threading.Thread(target=self._watch, name="verl_gsd_watchdog", daemon=True)

    @property
    def fault(self) -> str | None:
        """Why the run must end; None while it may go on."""
        return self._fault

    def start(self) -> None:
        """Watch from now on. Actors that are dead already belong to an earlier run in the same Ray job."""
        self._dead_before = {actor for actor, entry in self._table().items() if entry["State"] == "DEAD"}
        self._thread.start()

    def end(self) -> None:
        """The run ends, well or badly. What dies from now on is of no interest."""
        self._ended.set()

    def check(self) -> None:
        """Raise if the run must end.

        Raises:
            RunStoppedError: a process of the run is dead, or the run is stuck.
        """
        if self._fault is not None:
            raise RunStoppedError(self._fault)

    def look(self, wait: bool) -> None:
        """Look at all processes now, because sessions have failed, and raise if the run must end.

        Args:
            wait: for the answers of all servers, up to 10 s. A busy server answers late.

        Raises:
            RunStoppedError: a process of the run is dead or cannot be reached, or the run is stuck.
        """
        self._try_to_find_death(_ANSWER if wait else 0.0)
        self.check()
        deadline = time.monotonic() + _ANSWER
        while wait and self._unreachable:  # the death is not in Ray's table yet, or the network has failed
            if time.monotonic() > deadline:
                names = ", ".join(sorted(self._unreachable))
                self._stop(f"Responses failed, and Ray cannot reach these vLLM servers: {names}.", None)
            else:
                time.sleep(1)
                self._try_to_find_death(_ANSWER)
            self.check()

    def explain(self, error: Exception) -> None:
        """Find out whether the death of a process caused ``error``, which ends the run, and tell the user if so."""
        deadline = time.monotonic() + _EXPLAINING
        # Ray tells a caller of an actor's death before it is in the table.
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
                if suspended > _LOOK_INTERVAL:  # by a scheduler or a debugger, with everything else in the process
                    self._progress.excuse(suspended)
                self._look_at_progress()
                self._try_to_find_death(0.0)
        finally:
            if self._fault is not None:
                self._ended.wait(_GRACE)
                # verl closes its loggers and its queue last, which may wait for the process that died.
                if self._ended.is_set():
                    time.sleep(_CLOSING)
                os._exit(EXIT_CODE)

    def _look_at_progress(self) -> None:
        seconds, limit, doing = self._progress.quiet()
        if seconds > limit:
            self._stop(_stuck(seconds, doing, self._silent()), None)
        elif seconds > limit / 2:
            key = "algorithm.gsd.limits.quiet_seconds"
            self._warn_once(doing, f"no progress for {seconds:.0f} s: {doing}. The run stops at {limit:.0f} s ({key}).")

    def _try_to_find_death(self, answer_within: float) -> None:
        try:
            self._find_death(answer_within)
        except (ray.exceptions.RayError, ValueError, RuntimeError) as error:  # of Ray, which may be going down
            self._warn_once("Ray", f"Ray does not tell which processes of the run are alive: {error!r}")

    def _warn_once(self, about: str, text: str) -> None:
        if about not in self._warned_of:
            self._warned_of.add(about)
            self._messages.write("warning", text)

    @staticmethod
    def _table() -> dict[str, dict[str, Any]]:
        """Ray's table of all actors of this job, by id."""
        return ray._private.state.actors(job_id=ray.JobID.from_hex(ray.get_runtime_context().get_job_id()))

    def _find_death(self, answer_within: float) -> None:
        """Look at all processes.

        Args:
            answer_within: seconds to wait for answers of the servers to questions asked now. With 0 an answer to the
                question of an earlier look counts.
        """
        with self._lock:
            if answer_within:
                self._asked.clear()
            table = {actor: entry for actor, entry in self._table().items() if actor not in self._dead_before}
            node, memory = ray.get_runtime_context().get_node_id(), killed_since(self._memory_kills)
            dead = dead_actors(table, node, memory)
            deaths = [death for death in dead if death.is_fatal] or self._dead_engines(table, answer_within)
        if self._ended.is_set():
            return
        for death in dead:
            if not death.is_fatal:
                about = f"{death.message()} The run continues: it is no process of verl's."
                self._warn_once(death.kind, f"{about} Further deaths of this kind are not reported.")
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
            if _class(actor) == _SERVER and actor["State"] == "ALIVE" and actor["Name"]
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
        self._unreachable = set()
        for name, actor in servers.items():
            if self._asked[name][0] in ready:
                try:
                    death = ray.get(self._asked.pop(name)[0])
                except ray.exceptions.RayError:  # it has died, which the next look finds in the table, or its node has
                    self._unreachable.add(name)
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
        + (f"These vLLM servers did not answer for {_ANSWER:.0f} s: {servers}. " if servers else "All servers answer. ")
        + "If the run needs longer, set algorithm.gsd.limits.quiet_seconds to a larger number."
    )
