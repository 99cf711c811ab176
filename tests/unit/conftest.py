"""Unit tests run in several processes at once, each with one thread, and pay once for what is expensive."""

import functools
import gc
import os
import sys

import pytest
import typer.testing

# Before anything imports torch. Threads that outnumber the cores wait for each other and burn ten times the CPU time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Configs and charts are made of many small objects, beside which every collection visits those of torch.
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_whatever_the_code_asks_for():
    with pytest.MonkeyPatch.context() as patched:
        if "torch" in sys.modules:
            patched.setattr("torch.set_num_threads", lambda count: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _commands_are_built_once():
    """CliRunner builds all commands again at each call: two thirds of its time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(typer.testing, "_get_command", functools.cache(typer.main.get_command))
        yield
