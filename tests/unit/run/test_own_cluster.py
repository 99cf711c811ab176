"""A Ray cluster of a run has its own token, and a session folder that no other user can enter."""

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from verl_gsd import private_folders
from verl_gsd.errors import ConfigError
from verl_gsd.jobs.cluster import ClusterError, connect
from verl_gsd.run import cluster_lock, own_cluster
from verl_gsd.run.checks import validate

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
NOBODY = 65534


@pytest.fixture
def base(monkeypatch):
    """RAY_TMPDIR: a folder with a short path and /tmp's mode."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)
        private_folders._hold.cache_clear()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch):
    for name in (own_cluster.MODE, own_cluster.TOKEN, own_cluster.TOKEN_PATH):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def config_of(**ray_init):
    return OmegaConf.create({"ray_kwargs": {"ray_init": ray_init}})


def test_a_cluster_of_a_run_has_a_new_token_and_a_private_session_folder(base, monkeypatch):
    config = config_of(address=None)
    own_cluster.protect(config)
    token, folder = os.environ["RAY_AUTH_TOKEN"], base / f"ray_{os.geteuid()}"
    assert len(token) == 64 and token not in str(config)
    assert config.ray_kwargs.ray_init == {"address": "local", "_temp_dir": f"{folder}/ray"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    own_cluster.set_token()
    assert os.environ["RAY_AUTH_TOKEN"] != token


def test_what_the_user_chose_is_kept(base, monkeypatch):
    config = config_of(address="local", _temp_dir="/mine")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/file")
    own_cluster.protect(config)
    assert config.ray_kwargs.ray_init._temp_dir == "/mine" and "RAY_AUTH_TOKEN" not in os.environ


@as_root
def test_another_user_cannot_enter_the_folder_and_a_folder_of_theirs_is_rejected(base):
    folder = Path(own_cluster.session_folder())
    folder.mkdir()
    listing = subprocess.run(["ls", str(folder)], user=NOBODY, capture_output=True, text=True)
    assert listing.returncode != 0 and "Permission denied" in listing.stderr
    folder.rmdir()
    os.chown(folder.parent, NOBODY, NOBODY)
    private_folders._hold.cache_clear()
    with pytest.raises(ConfigError, match=r"RAY_TMPDIR=.*belongs to user id 65534"):
        own_cluster.session_folder()


def test_a_folder_that_others_can_enter_is_rejected(base):
    own_cluster.private_folder().mkdir()
    own_cluster.private_folder().chmod(0o755)
    with pytest.raises(ConfigError, match="its mode is 0755"):
        own_cluster.session_folder()


def test_a_path_that_is_too_long_for_sockets_is_rejected(base, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(base / ("x" * 30)))
    with pytest.raises(ConfigError, match="more than 107 characters"):
        own_cluster.session_folder()
    assert not (base / ("x" * 30)).exists()


@pytest.fixture
def token(base):
    path = base / "token"
    path.write_text("a")
    return path


@pytest.mark.parametrize(("mode", "is_wrong"), [(0o644, True), (0o640, True), (0o600, False), (0o400, False)])
def test_a_token_that_others_can_read_is_a_problem(token, base, mode, is_wrong):
    base.chmod(0o755)
    token.chmod(mode)
    problem = own_cluster.token_file_problem(token)
    assert bool(problem) is is_wrong
    if is_wrong:
        assert f"mode {mode:04o}" in problem and f"chmod 600 {token}" in problem
    base.chmod(0o700)
    assert own_cluster.token_file_problem(token) == "", "nobody else reaches it"
    assert own_cluster.token_file_problem(base / "missing") == ""


def test_a_token_that_others_can_read_is_used_neither_for_joining_nor_for_submitting(
    token, base, monkeypatch, compose_fast
):
    base.chmod(0o755)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    config, line = compose_fast("algo=grpo", "task=arithmetic", "hardware=8xa100_80g")
    assert [problem for problem in validate.check_ray_access(config, line) if f"chmod 600 {token}" in problem]
    with pytest.raises(ClusterError, match="chmod 600"):
        connect("http://127.0.0.1:1")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a")
    assert not list(validate.check_ray_access(config, line))


@as_root
def test_a_mounted_token_of_another_owner_is_no_problem(token):
    token.chmod(0o644)
    os.chown(token, NOBODY, NOBODY)
    assert own_cluster.token_file_problem(token) == ""


@pytest.mark.parametrize(
    ("mode", "ray_init", "is_open"),
    [
        ("disabled", {"dashboard_host": "0.0.0.0"}, True),
        ("disabled", {"dashboard_host": "0.0.0.0", "include_dashboard": False}, False),
        ("disabled", {"dashboard_host": "127.0.0.1"}, False),
        ("disabled", {}, False),
        ("token", {"dashboard_host": "0.0.0.0"}, False),
        ("", {"dashboard_host": "0.0.0.0"}, False),
    ],
)
def test_a_dashboard_without_a_token_that_others_reach_is_a_problem(monkeypatch, mode, ray_init, is_open):
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    config = config_of(address="local", **ray_init)
    assert bool(own_cluster.open_dashboard_problem(config)) is is_open
    assert bool(list(validate.check_ray_access(config, None))) is is_open


@as_root
def test_the_address_of_a_cluster_that_another_user_wrote_is_not_used(base, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (base / "ray").mkdir()
    address = base / "ray" / "ray_current_cluster"
    address.write_text("127.0.0.1:6379")
    assert cluster_lock.joins(config_of(address=None))
    os.chown(address, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=r"another user \(id 65534\) wrote the cluster address"):
        cluster_lock.joins(config_of(address=None))
    assert not cluster_lock.joins(config_of(address="local"))
    os.chown(address.rename(base / "of_this_user"), os.geteuid(), -1)
    address.symlink_to(base / "of_this_user")
    os.chown(address, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigError, match=r"another user \(id 65534\) wrote the cluster address"):
        cluster_lock.joins(config_of(address=None))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert cluster_lock.joins(config_of(address=None))
