"""Processes of their own without the seconds of an import: forks of a server that has imported verl with our plugin."""

import multiprocessing
import os
import queue
import time
from pathlib import Path

#: Not modules of this folder: until Python 3.12 the server does not know where it is.
_IMPORTED = (
    "pytest",
    "verl.experimental.reward_loop.reward_loop",
    "verl.trainer.ppo.core_algos",
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer",
    "verl_gsd.trainer.reward_failures",
    "verl_gsd.trainer.watchdog",
    "verl_gsd.trainer.weight_sockets",
)
CONTEXT = multiprocessing.get_context("forkserver")


def preload(*modules):
    """Say what the server imports. Call this before the first start."""
    CONTEXT.set_forkserver_preload(list(modules))


preload(*_IMPORTED)


def start(folder, target, *arguments):
    """Start a function of a module in a process of its own, in ``folder``; what it prints is in the file "output"."""
    process = CONTEXT.Process(target=_redirected, args=(str(folder), target, *arguments), daemon=True)
    process.start()
    return process


def end(process):
    process.kill()
    process.join()


def answer(answers, *processes, timeout=900):
    """The next thing in a queue that ``processes`` fill. One that fails is not waited for."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            failed = [process.exitcode for process in processes if process.exitcode]
            assert not failed and time.monotonic() < deadline, f"no answer; failed processes: {failed}"


def run(folder, target, *arguments, timeout=300):
    """(exit status, what it printed) of a function that runs in a process of its own, in ``folder``."""
    process = start(folder, target, *arguments)
    process.join(timeout)
    end(process)
    return process.exitcode, (Path(folder) / "output").read_text()


def _redirected(folder, target, *arguments):
    os.chdir(folder)
    output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    target(*arguments)
