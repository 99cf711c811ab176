"""What importing verl brings with our plugin, in a process that has imported nothing yet."""

import json
import os
import subprocess
import sys

import pytest
import verl  # noqa: F401, first: it loads our plugin
from places import SUPPORT
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

from verl_gsd.cpu import before_verl, forkserver
from verl_gsd.run.job import VERLS_ENVIRONMENT


@pytest.fixture(scope="module")
def found():
    """What a process found that imports the fork server's modules and then verl, and does not ask for the CPU."""
    ours = {before_verl.SWITCH, *before_verl.ENVIRONMENT}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    words = sys.executable, SUPPORT / "import_probe.py", *forkserver.MODULES
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_imported_before_forking_does_not_import_ray(found):
    """Two forks of a process that has used Ray's random generator give two tasks one identifier, and Ray aborts."""
    assert not found["ray is imported with the modules"]


def test_variables_that_may_differ_in_a_fork_are_not_read_on_import(found):
    assert "VLLM_LOGGING_LEVEL" in found["variables of vLLM"]
    assert not {*forkserver.SET_LATER} & {*found["variables of vLLM"]}


def test_the_fork_server_has_what_verl_adds_to_the_environment_of_its_workers(monkeypatch):
    for name in os.environ:
        if name.startswith("VLLM_"):
            monkeypatch.delenv(name)
    variables = get_ppo_ray_runtime_env()["env_vars"]
    assert {name: value for name, value in variables.items() if name.startswith("VLLM_")} == VERLS_ENVIRONMENT


def test_nothing_is_patched_unless_asked_for_and_verl_has_no_cpu_of_its_own(found):
    assert found["cpu platform"] is None, "verl brings a CPU platform now: ours can go"
    assert found["device"] != "cpu" and not found["versions are patched"]


def test_verls_fsdp_engine_brings_our_attention(found):
    """The plugin installs it when verl's engine is imported, and not before."""
    before, after = found["attention before and after the engine"]
    assert (before, after) == ("transformers.integrations.sdpa_attention", "verl_gsd.trainer.attention")
