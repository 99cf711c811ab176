"""What several test files share."""

import os
from pathlib import Path

import pytest

# Before anything imports verl: the tests run on a CPU wherever they run.
os.environ["VERL_GSD_CPU"] = "1"
# A warm-started model is made once a machine and kept; tests of the making use folders of their own.
os.environ.setdefault("VERL_GSD_CACHE", str(Path.home() / ".cache" / "verl_gsd"))


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
    """The embedded task with two steps of warm start: right files, a policy that knows nothing."""
    from verl_gsd.tasks import embedded

    specification = embedded.Specification(train_per_level=4, test_per_level=1, warm_start_steps=2)
    return embedded.ensure(tmp_path_factory.mktemp("tiny") / "task", specification)
