"""What several contract tests share."""

import logging
import os
from pathlib import Path

import forks
import pytest

HERE = Path(__file__).parent

# Ray starts clusters with a token. Processes that join one by its address want to be told, before they import Ray.
os.environ.setdefault("RAY_AUTH_MODE", "token")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Where several processes run the tests, one of them runs all that need Ray or the fork server, which take long to
    start, and each other file has one process."""
    own = [item for item in items if item.path.parent == HERE]
    slow = {
        item.path for item in own if "running_queue" in item.fixturenames or vars(item.module).get("forks") is forks
    }
    for item in own:
        item.add_marker(pytest.mark.xdist_group("starts slowly" if item.path in slow else item.path.name))


@pytest.fixture(autouse=True)
def _warnings_are_captured_as_in_a_fresh_process():
    """Something that test_state.py and test_lost_metrics.py run raises the level of the root logger and its handlers.

    pytest's handlers are among them, and live as long as the process.
    """
    logging.root.setLevel(logging.WARNING)
    for handler in logging.root.handlers:
        handler.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def running_queue():
    """The one Ray of the session with verl's queue on it. A second start would cost seconds per file."""
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield tq
    tq.close()
    ray.shutdown()


@pytest.fixture
def queue(running_queue):
    """verl's queue, running, and empty at a test's start."""
    yield
    for partition, items in (running_queue.kv_list() or {}).items():
        if items:
            running_queue.kv_clear(keys=list(items), partition_id=partition)
