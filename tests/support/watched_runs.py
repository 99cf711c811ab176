"""Runs whose main thread waits where nothing interrupts it, each in a process of its own that the watchdog may end.

Messages go to ``messages.jsonl`` in the working directory.
"""

import os
import signal
import threading
from pathlib import Path

import ray

from verl_gsd.run.messages import MessageWriter
from verl_gsd.trainer import watchdog
from verl_gsd.trainer.progress import Progress


def _start(address, progress):
    """A started watchdog in a new Ray job of the cluster at ``address``."""
    watchdog._LOOK_INTERVAL = watchdog._GRACE = 0.1
    ray.init(address=address, log_to_driver=False)
    dog = watchdog.Watchdog(progress, MessageWriter(Path("messages.jsonl")))
    dog.start()
    return dog


def loses_a_worker(address):
    @ray.remote(num_cpus=0)
    class AgentLoopWorkerTQ:
        def pid(self):
            return os.getpid()

    _start(address, Progress())
    worker = AgentLoopWorkerTQ.remote()
    os.kill(ray.get(worker.pid.remote()), signal.SIGKILL)
    threading.Event().wait()


def makes_no_progress(address):
    progress = Progress(2.0)
    progress.begin("waiting for responses")
    progress.look("train: 0 responses finished, 4 of 4 prompts unfinished", 0)
    _start(address, progress)
    threading.Event().wait()


def is_suspended(address):
    """Exits with 0 if the watchdog does not count the time of a suspension that is longer than its limit."""
    progress = Progress(3.0)
    dog = _start(address, progress)
    progress.begin("updating")
    child = os.fork()
    if not child:
        threading.Event().wait(0.5)
        os.kill(os.getppid(), signal.SIGSTOP)
        threading.Event().wait(5)
        os.kill(os.getppid(), signal.SIGCONT)
        os._exit(0)
    os.waitpid(child, 0)
    threading.Event().wait(0.5)  # for the watchdog to have looked again
    quiet = progress.quiet()[0]
    os._exit(0 if dog.fault is None and quiet < 3 else 1)
