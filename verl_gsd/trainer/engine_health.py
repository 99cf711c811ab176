"""A method for verl's vLLM server that reports whether its engine died, and how the engine's processes ended.

vLLM's engine is a child process of verl's server actor. If the engine dies, the actor stays alive: Ray reports no
death, requests fail one by one, and a weight update waits for ever. The trainer's watchdog (``watchdog.py``) therefore
calls the method that this module adds.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Any

from verl_gsd.run.memory_kills import oom_kills

#: Name of the method that ``install`` adds to verl's server.
METHOD = "verl_gsd_engine_death"


@dataclass(frozen=True)
class EngineDeath:
    """How an engine ended.

    Attributes:
        server_pid: process id of the server actor, under which Ray logs the engine's output.
        exit_codes: exit code by name of each engine process that has ended; -N if signal N ended it.
        memory_kills: number of processes that the kernel of the engine's machine killed for lack of memory since the
            server started; None if the kernel does not report this.
    """

    server_pid: int
    exit_codes: dict[str, int]
    memory_kills: int | None


def install(vllm_async_server: Any) -> None:
    """Add the method to verl's vLLM server.

    Args:
        vllm_async_server: the module ``verl.workers.rollout.vllm_rollout.vllm_async_server``.
    """
    server = vllm_async_server.vLLMHttpServer
    original = server.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self._memory_kills_at_start = oom_kills()
        original(self, *args, **kwargs)

    server.__init__ = init
    setattr(server, METHOD, _engine_death)


async def _engine_death(self: Any) -> EngineDeath | None:
    """Return how the engine of this server died; None if the engine is alive, or if this server has no engine (yet)."""
    # The attribute is absent while the engine starts, and on every node of a replica except the first.
    engine = getattr(self, "engine", None)
    if engine is None or not engine.errored:
        return None
    # If engines are Ray actors, vLLM's engine manager has no such method. Ray's table then shows their deaths.
    finished_procs = getattr(engine.engine_core.resources.engine_manager, "finished_procs", dict)
    before, now = self._memory_kills_at_start, oom_kills()
    return EngineDeath(
        server_pid=os.getpid(),
        exit_codes=dict(finished_procs()),
        memory_kills=None if before is None or now is None else now - before,
    )
