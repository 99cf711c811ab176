"""Ask a vLLM server whether its engine is alive, and how the engine's processes ended if it is not.

vLLM's engine is a child process of verl's server actor. If the engine dies, the actor stays alive: Ray reports no
death, requests fail one by one, and a weight update waits for ever. This module gives verl's server a method that the
trainer's watchdog calls (``watchdog.py``).
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
        exit_codes: by name of each engine process that has ended; -N for one that signal N ended.
        memory_kills: processes that the kernel of the engine's machine ended for lack of memory since the server
            started; None if the kernel does not tell.
    """

    server_pid: int
    exit_codes: dict[str, int]
    memory_kills: int | None


def install(vllm_async_server: Any) -> None:
    """Patch verl's vLLM server, once ``verl.workers.rollout.vllm_rollout.vllm_async_server`` is imported."""
    server = vllm_async_server.vLLMHttpServer
    original = server.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        self._memory_kills_at_start = oom_kills()
        original(self, *args, **kwargs)

    server.__init__ = init
    setattr(server, METHOD, _engine_death)


async def _engine_death(self: Any) -> EngineDeath | None:
    """Return how the engine of this server died; None if it lives, or if this server has none (yet)."""
    engine = getattr(self, "engine", None)  # absent while it starts, and on every node of a replica but the first
    if engine is None or not engine.errored:
        return None
    # vLLM's manager of engines that are Ray actors has no such method; those deaths are in Ray's table.
    finished = getattr(engine.engine_core.resources.engine_manager, "finished_procs", dict)
    before, now = self._memory_kills_at_start, oom_kills()
    return EngineDeath(
        server_pid=os.getpid(),
        exit_codes=dict(finished()),
        memory_kills=None if before is None or now is None else now - before,
    )
