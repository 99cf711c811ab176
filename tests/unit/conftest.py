"""Unit tests compute with one thread: several processes run them at once, and threads that outnumber the cores wait for
each other and burn ten times the CPU time."""

import gc
import os
import sys

import pytest

# Before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Configs and charts are made of many small objects, beside which every collection visits those of torch.
gc.set_threshold(100_000, 20, 100)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_whatever_the_code_asks_for():
    with pytest.MonkeyPatch.context() as patched:
        if "torch" in sys.modules:
            patched.setattr("torch.set_num_threads", lambda count: None)
        yield
