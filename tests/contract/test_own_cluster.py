"""What we assume of Ray where a run starts a cluster for itself: it uses our token, and writes none."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from ray._private import services

from verl_gsd.errors import ConfigError
from verl_gsd.run import cluster_lock, doctor, own_cluster

STARTING = """
import json, os
import ray  # before the token is set, as in a run
from omegaconf import OmegaConf
from verl_gsd.run import own_cluster
config = OmegaConf.create({"ray_kwargs": {"ray_init": {"num_cpus": 1, "include_dashboard": False}}})
own_cluster.protect(config)
ray.init(**OmegaConf.to_container(config.ray_kwargs.ray_init), log_to_driver=False)
print("GCS", ray.get_runtime_context().gcs_address, flush=True)
input()
"""
#: A process without the token asks Ray's control service.
ASKING = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_get(b"key", b"namespace", 5)
"""


UNWANTED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


def run_python(code, *words, **environment):
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)


def test_a_cluster_of_a_run_requires_the_token_and_other_users_cannot_enter_its_session(tmp_path):
    inherited = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as base:
        Path(base).chmod(0o755)
        environment = inherited | {"HOME": str(tmp_path), "RAY_TMPDIR": base}
        process = subprocess.Popen(
            [sys.executable, "-c", STARTING],
            **{"env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
        )
        try:
            address = next(line.split()[1] for line in process.stdout if line.startswith("GCS"))
            for mode in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}):
                asked = run_python(ASKING, address, **inherited | mode)
                assert asked.returncode != 0 and "token" in asked.stderr
            assert doctor.asks_for_token(address) is True
            assert not (tmp_path / ".ray").exists(), "the token is in no file"
            folder = Path(base) / f"ray_{os.geteuid()}"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            session = (folder / "ray" / "session_latest").resolve()
            sockets = [str(path) for path in (session / "sockets").iterdir()]
            # Ours is the longest possible path, with seven digits of a process id.
            longest = max(len(path) - len(f"{folder}/ray") for path in sockets)
            assert sockets and longest <= len(own_cluster._SOCKET)
            # The private folder is needed because Ray's own is open to everyone.
            assert stat.S_IMODE(session.stat().st_mode) == 0o777
        finally:
            process.communicate("\n")
    assert process.returncode == 0


OPEN = """
import ray, tempfile
with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp", ignore_cleanup_errors=True) as folder:
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=folder + "/ray")
    print("GCS", ray.get_runtime_context().gcs_address, flush=True)
    input()
    ray.shutdown()
"""


def test_a_cluster_whose_mode_is_empty_requires_no_token_and_doctor_sees_that():
    """``own_cluster.open_cluster_problem`` rejects an empty RAY_AUTH_MODE, and not only "disabled"."""
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED} | {"RAY_AUTH_MODE": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN],
        **{"env": environment, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True},
    )
    try:
        address = next(line.split()[1] for line in process.stdout if line.startswith("GCS"))
        assert doctor.asks_for_token(address) is False
    finally:
        process.communicate("\n")


def test_patch_still_needed_because_others_can_read_the_token_that_ray_writes(tmp_path):
    """If Ray writes its token with mode 0600, ``own_cluster.set_token`` can be removed."""
    code = (
        "import os; os.umask(0o022)\n"
        "from ray._private.authentication import authentication_token_setup as setup\n"
        "setup.generate_and_save_token()"
    )
    assert run_python(code, **os.environ | {"HOME": str(tmp_path)}).returncode == 0
    assert stat.S_IMODE((tmp_path / ".ray" / "auth_token").stat().st_mode) == 0o644


def config_of(address):
    return OmegaConf.create({"ray_kwargs": {"ray_init": {"address": address}}})


@pytest.fixture
def folder():
    """A folder that other users can enter."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def raylet_stub(folder, address, user=None):
    """A process whose command line Ray takes for that of a raylet. It ends when its standard input is closed."""
    program = folder / "raylet"
    program.write_text("#!/bin/sh\nread line\n")
    program.chmod(0o755)
    process = subprocess.Popen([program, f"--gcs-address={address}"], stdin=subprocess.PIPE, user=user)
    services.find_gcs_addresses.cache_clear()
    try:
        yield
    finally:
        process.communicate()
        services.find_gcs_addresses.cache_clear()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
@pytest.mark.parametrize("has_file", [False, True])
def test_auto_joins_a_cluster_in_the_process_table_only_if_this_user_started_it(folder, monkeypatch, has_file):
    """With "auto", Ray prefers the only cluster in the process table to its own address file."""
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(
        services, "_is_raylet_process", lambda line: f"{folder}/raylet" in str(line)
    )  # of no other test
    if has_file:
        (folder / "ray").mkdir()
        (folder / "ray" / "ray_current_cluster").write_text("192.0.2.77:7")
    config = config_of("auto")
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{(port := server.getsockname()[1])}"
        with raylet_stub(folder, address):
            assert cluster_lock.address_to_join(config) == f"{services.resolve_ip_for_localhost('127.0.0.1')}:{port}"
            assert bool(cluster_lock.joins(config_of(None))) is has_file
        with raylet_stub(folder, address, user=65534):
            with pytest.raises(ConfigError, match=rf"address=auto: .*{address}, .*another user.*RAY_ADDRESS=127"):
                cluster_lock.joins(config)
            assert bool(cluster_lock.joins(config_of(None))) is has_file
            monkeypatch.setenv("RAY_ADDRESS", address)  # this user listens there
            assert cluster_lock.joins(config)
    monkeypatch.delenv("RAY_ADDRESS")
    nobody = rf"found in a command line: no process listens at .*:{port}"
    with raylet_stub(folder, address), pytest.raises(ConfigError, match=nobody):
        cluster_lock.joins(config)
