"""What the tests on verl's engine share."""

import forks
import pytest

forks.preload("verl_gsd.trainer.worker")


@pytest.fixture(scope="session")
def engine_workers(tmp_path_factory):
    from engine_workers import EngineWorkers

    workers = EngineWorkers(tmp_path_factory.mktemp("workers"))
    yield workers
    workers.close()
