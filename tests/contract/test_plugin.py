"""What our plugin does where verl has changed: verl can be imported, and only runs that use us are rejected."""

import os
import subprocess
import sys
from pathlib import Path

import changed_verl
import failed_queue_auth
import forks
import pytest

import verl_gsd

#: Where this process has the package from.
ROOT = str(Path(verl_gsd.__file__).parents[1])
pytest.importorskip("verl")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    status, output = forks.run(tmp_path_factory.mktemp("changed"), changed_verl.run)
    assert status == 0, output[-5000:]
    return output


def test_stock_trainers_can_be_imported_with_one_warning(output):
    assert "stock trainer: PPOTrainerSync" in output and "estimator registered: True" in output
    (warning,) = [line for line in output.splitlines() if "Runs that do not use verl-gsd are not" in line]
    assert "verl-gsd does not fit verl" in warning
    assert "trainer_sync failed (ImportError" in warning and "SYNTHETIC_PADDING_SEQ_LEN" in warning


@pytest.mark.parametrize("mode", ["gsd_sync", "gsd_colocate_async", "gsd_separate_async"])
def test_a_run_that_asks_for_our_trainer_is_rejected_with_the_reason(output, mode):
    (line,) = [line for line in output.splitlines() if line.startswith(mode)]
    assert line.startswith(f"{mode} ConfigError") and "SYNTHETIC_PADDING_SEQ_LEN" in line


def test_without_authenticated_messages_no_queue_of_ours_is_created_or_used_and_a_stock_run_goes_on(tmp_path):
    # No fork: the server of ``forks`` has imported the queue already.
    words = [sys.executable, failed_queue_auth.__file__]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 0, done.stderr[-5000:]
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line.startswith(("creating", "attaching")))
    assert lines["creating for ours"].startswith("ConfigError verl-gsd does not fit verl")
    assert "the queue has changed" in lines["creating for ours"]
    assert lines["creating for stock"] == "LookupError it goes on, and takes the lock"
    assert lines["attaching in a worker of ours"].startswith("UnprotectedProcessError verl-gsd does not fit verl")
    assert "the queue has changed" in lines["attaching in a worker of ours"]
