"""A Ray cluster of a run has its own token, and a session folder that no other user can enter."""

import grp
import ipaddress
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from acls import grant
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from verl_gsd import file_access, listeners, private_folders
from verl_gsd.errors import ConfigError
from verl_gsd.jobs.cluster import ClusterError, connect
from verl_gsd.run import cluster_lock, job, own_cluster
from verl_gsd.run.checks import validate

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
NOBODY = 65534
#: No user has it as the primary group.
UNUSED_GROUP = 54321


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
    for name in (own_cluster.MODE, own_cluster.TOKEN, own_cluster.TOKEN_PATH, listeners.TRUSTED):
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
def test_another_user_cannot_enter_the_folder(base):
    folder = Path(own_cluster.session_folder())
    folder.mkdir()
    listing = subprocess.run(["ls", str(folder)], user=NOBODY, capture_output=True, text=True)
    assert listing.returncode != 0 and "Permission denied" in listing.stderr


@as_root
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_another_user_who_takes_the_name_of_the_folder_cannot_stop_a_run(base, kind):
    name, mine = own_cluster.private_folder(), base / "mine"
    mine.mkdir(mode=0o700)
    make = {"folder": name.mkdir, "link": lambda: name.symlink_to(mine), "file": name.touch}
    make[kind]()
    os.chown(name, NOBODY, NOBODY, follow_symlinks=False)
    config = config_of(address="local")
    note = own_cluster.protect(config)
    folder = Path(config.ray_kwargs.ray_init._temp_dir).parent
    assert folder.parent == base and folder.name.startswith(f"{name.name}_")
    assert folder.stat().st_uid == os.geteuid() and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert f"Another user has taken {name}" in note and str(folder) in note and "RAY_TMPDIR" in note


def test_a_usual_folder_and_a_folder_of_the_user_need_no_note(base):
    assert own_cluster.protect(config_of(address="local")) == ""
    assert own_cluster.protect(config_of(address="local", _temp_dir="/mine")) == ""


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_a_folder_that_another_user_could_replace_is_rejected(base, monkeypatch, mode):
    """Whoever may write in a folder can rename the private folder in it, unless the folder is sticky."""
    monkeypatch.setenv("RAY_TMPDIR", str(base / "a" / "b"))
    (base / "a" / "b").mkdir(parents=True)
    (base / "a").chmod(mode)
    with pytest.raises(ConfigError, match=f"RAY_TMPDIR=.*other users can write {base}/a .mode 0{mode:o}.*Set RAY_TMP"):
        own_cluster.session_folder()
    assert not list((base / "a" / "b").iterdir())
    (base / "a").chmod(mode | stat.S_ISVTX)
    assert own_cluster.session_folder() == f"{base}/a/b/ray_{os.geteuid()}/ray"


@as_root
def test_a_folder_in_a_folder_of_another_user_is_rejected(base, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(base / "a" / "b"))
    (base / "a" / "b").mkdir(parents=True)
    os.chown(base / "a", NOBODY, -1)
    with pytest.raises(ConfigError, match=f"because {base}/a belongs to user id 65534"):
        own_cluster.session_folder()
    # A container without root sees the machine's root, and every other user of the machine, as this one.
    users = base / "uid_map"
    users.write_text("      1000       1000          1\n")
    monkeypatch.setattr(file_access, "_USER_MAP", users)
    with pytest.raises(ConfigError, match=f"because {base}/a belongs to user id 65534"):
        own_cluster.session_folder()
    monkeypatch.setattr(file_access, "_SYSTEM_FOLDERS", {str(base / "a")})  # as /home, which is root's everywhere
    own_cluster.session_folder()
    (base / "a").chmod(0o777)
    with pytest.raises(ConfigError, match=f"other users can write {base}/a"):
        own_cluster.session_folder()
    users.write_text("         0          0 4294967295\n")
    with pytest.raises(ConfigError, match=f"because {base}/a belongs to user id 65534"):
        own_cluster.session_folder()


def test_the_session_is_placed_in_the_folder_behind_a_link(base, monkeypatch):
    """The link may be changed after the check."""
    (base / "real").mkdir()
    (base / "link").symlink_to(base / "real")
    monkeypatch.setenv("RAY_TMPDIR", str(base / "link"))
    assert own_cluster.session_folder() == f"{base}/real/ray_{os.geteuid()}/ray"


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


@pytest.mark.parametrize(("mode", "is_wrong"), [(0o644, True), (0o604, True), (0o600, False), (0o400, False)])
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


@pytest.mark.parametrize(("mode", "is_kept"), [(0o600, True), (0o644, False)])
def test_an_own_cluster_does_not_use_a_token_that_others_can_read(token, base, monkeypatch, mode, is_kept):
    """Ray's control service listens on all interfaces, so that whoever knows the token runs code as this user."""
    base.chmod(0o755)
    token.chmod(mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    own_cluster.set_token()
    assert ("RAY_AUTH_TOKEN" not in os.environ) is is_kept


def test_a_token_behind_a_link_is_as_reachable_as_the_folder_that_has_it(base):
    """~/.ray may be a link from a private home folder into a folder that others can enter."""
    base.chmod(0o755)
    (home := base / "home").mkdir(mode=0o700)
    (shared := base / "shared").mkdir()
    shared.chmod(0o755)
    (home / ".ray").symlink_to(shared)
    (shared / "auth_token").write_text("a")
    (shared / "auth_token").chmod(0o644)
    assert "mode 0644" in own_cluster.token_file_problem(home / ".ray" / "auth_token")
    shared.chmod(0o700)
    assert own_cluster.token_file_problem(home / ".ray" / "auth_token") == ""


def test_a_token_for_a_group_is_a_problem_unless_the_group_is_the_users_own(token, base, monkeypatch):
    base.chmod(0o755)
    token.chmod(0o640)
    os.chown(token, -1, os.getegid())
    assert own_cluster.token_file_problem(token) == ""
    monkeypatch.setattr(file_access, "is_own_group", lambda group: False)
    assert "mode 0640" in own_cluster.token_file_problem(token)


def test_a_group_with_other_members_is_not_the_users_own(monkeypatch):
    user = pwd.getpwuid(os.geteuid())
    for name, members, is_own in (
        (user.pw_name, [], True),
        (user.pw_name, [user.pw_name], True),
        (user.pw_name, ["alice"], False),
        ("staff", [], False),
    ):
        entry = grp.struct_group((name, "x", UNUSED_GROUP, members))
        monkeypatch.setattr(file_access.grp, "getgrgid", lambda group, entry=entry: entry)
        assert file_access.is_own_group(UNUSED_GROUP) is is_own


@pytest.fixture
def getent(tmp_path, monkeypatch):
    """(shell script) -> None: what lists the users."""

    def put(script):
        (tmp_path / "getent").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "getent").chmod(0o755)
        file_access._is_primary_group_of_others.cache_clear()

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    yield put
    file_access._is_primary_group_of_others.cache_clear()


def test_a_group_that_is_the_primary_one_of_another_user_is_not_the_users_own(getent, monkeypatch):
    """A group does not list these users as its members."""
    user = pwd.getpwuid(os.geteuid())
    entry = grp.struct_group((user.pw_name, "x", UNUSED_GROUP, []))
    monkeypatch.setattr(file_access.grp, "getgrgid", lambda group: entry)
    own, other = f"me:x:{os.geteuid()}:{UNUSED_GROUP}:::", f"alice:x:65533:{UNUSED_GROUP}:::"
    for lines, is_own in (([own], True), ([], True), ([own, "", "+"], True), ([own, other], False), ([other], False)):
        getent("".join(f"echo '{line}'\n" for line in lines))
        assert file_access.is_own_group(UNUSED_GROUP) is is_own


def test_a_group_is_not_the_users_own_if_the_users_cannot_be_listed(getent, monkeypatch):
    """The list may be a directory service's, which does not answer."""
    user = pwd.getpwuid(os.geteuid())
    entry = grp.struct_group((user.pw_name, "x", UNUSED_GROUP, []))
    monkeypatch.setattr(file_access.grp, "getgrgid", lambda group: entry)
    monkeypatch.setattr(file_access, "_LISTING_S", 0.05)
    getent("exec sleep 300")
    assert not file_access.is_own_group(UNUSED_GROUP)
    getent("")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert not file_access.is_own_group(UNUSED_GROUP)


def test_a_token_that_others_can_read_is_used_neither_for_joining_nor_for_submitting(
    token, base, listener, monkeypatch, compose_fast
):
    base.chmod(0o755)
    token.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener}")
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
    ("mode", "is_open"),
    [("disabled", True), ("Disabled", True), ("", True), ("off", True), ("token", False), ("TOKEN", False)],
)
def test_a_cluster_without_a_token_is_not_started(base, monkeypatch, mode, is_open):
    """Ray's control service listens on all interfaces, also without a dashboard."""
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    config = config_of(address="local", include_dashboard=False)
    problems = list(validate.check_ray_access(config, None))
    assert bool(problems) is is_open
    if is_open:
        (problem,) = problems
        assert f"RAY_AUTH_MODE={mode}: " in problem and "unset RAY_AUTH_MODE" in problem
        with pytest.raises(ConfigError, match="unset RAY_AUTH_MODE"):
            own_cluster.protect(config)
        with pytest.raises(ConfigError, match="unset RAY_AUTH_MODE"):
            own_cluster.set_token()
    else:
        own_cluster.protect(config)


def test_a_run_may_join_a_cluster_without_a_token(listener, monkeypatch):
    """Whoever started the cluster decided that."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener}")
    assert not list(validate.check_ray_access(config_of(address=None), None))


@pytest.fixture
def listener():
    """The port of a socket that listens on all interfaces, as Ray's control service does."""
    with server_on_all_interfaces() as server:
        yield server.getsockname()[1]


def server_on_all_interfaces():
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


@contextmanager
def listening_as(user, create=server_on_all_interfaces):
    """The port at which another user listens. A socket belongs to the user who creates it."""
    os.seteuid(user)
    try:
        server = create()
    finally:
        os.seteuid(0)
    with server:
        yield server.getsockname()[1]


@pytest.fixture
def address_file(base, monkeypatch):
    """Ray's file with the address of the cluster that ``ray start`` started. It does not exist yet."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (base / "ray").mkdir()
    return base / "ray" / "ray_current_cluster"


@as_root
def test_the_address_of_a_cluster_that_another_user_wrote_is_not_used(address_file, listener, monkeypatch):
    address_file.write_text(f"127.0.0.1:{listener}")
    assert cluster_lock.joins(config_of(address=None))
    os.chown(address_file, NOBODY, NOBODY)
    with pytest.raises(ConfigError, match=r"another user \(id 65534\) wrote the cluster address"):
        cluster_lock.joins(config_of(address=None))
    assert not cluster_lock.joins(config_of(address="local"))
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listener}")
    assert cluster_lock.joins(config_of(address=None))


def test_a_link_in_place_of_the_address_of_a_cluster_is_not_followed(base, address_file, listener):
    """Another user could link to an old address of this user. Ray writes a file."""
    (base / "mine").write_text(f"127.0.0.1:{listener}")
    address_file.symlink_to(base / "mine")
    with pytest.raises(ConfigError, match=r"ray_current_cluster cannot be read"):
        cluster_lock.joins(config_of(address=None))


@pytest.mark.parametrize("mode", [0o666, 0o622, 0o602, 0o646])
def test_an_address_that_other_users_can_write_is_not_used(address_file, listener, mode):
    address_file.write_text(f"127.0.0.1:{listener}")
    address_file.chmod(mode)
    with pytest.raises(ConfigError, match=rf"other users can write {address_file} \(mode {mode:04o}\).*RAY_ADDRESS"):
        cluster_lock.joins(config_of(address=None))
    address_file.chmod(0o644)
    assert cluster_lock.joins(config_of(address=None))


def test_an_address_that_a_group_with_others_can_write_is_not_used(address_file, listener, monkeypatch):
    """With the umask 0002, Ray's file belongs to the user's private group, which may write it."""
    address_file.write_text(f"127.0.0.1:{listener}")
    address_file.chmod(0o664)
    os.chown(address_file, -1, os.getegid())
    assert cluster_lock.joins(config_of(address=None))
    monkeypatch.setattr(file_access, "is_own_group", lambda group: False)
    with pytest.raises(ConfigError, match="mode 0664"):
        cluster_lock.joins(config_of(address=None))


def test_an_address_and_a_token_of_a_named_user_of_an_acl_are_those_of_another_user(
    address_file, listener, token, base, monkeypatch
):
    monkeypatch.setattr(file_access, "is_own_group", lambda group: True)
    address_file.write_text(f"127.0.0.1:{listener}")
    assert cluster_lock.joins(config_of(address=None))
    grant(address_file, NOBODY, os.R_OK | os.W_OK)
    with pytest.raises(ConfigError, match="other users can write"):
        cluster_lock.joins(config_of(address=None))
    base.chmod(0o755)
    token.chmod(0o600)
    assert own_cluster.token_file_problem(token) == ""
    grant(token, NOBODY, os.R_OK)
    assert f"chmod 600 {token}" in own_cluster.token_file_problem(token)


@pytest.mark.parametrize("address", [None, "auto"])
def test_a_named_pipe_in_place_of_the_address_does_not_stop_the_command(address_file, address):
    os.mkfifo(address_file)
    with pytest.raises(ConfigError, match=r"ray_current_cluster cannot be read \(it is not a regular file\)"):
        cluster_lock.joins(config_of(address=address))


@pytest.mark.parametrize(
    "content", [b"[INFO] a log:1\n", b"10.0.0.1:6379\nmore", b"\xff:1", b"10.0.0.1", b"a" * 9999 + b":1"]
)
def test_another_file_of_this_user_in_place_of_the_address_is_not_used(address_file, content):
    """Everybody can write in Ray's folder, and move one of the user's logs to this name."""
    address_file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"ray_current_cluster does not contain HOST:PORT"):
        cluster_lock.joins(config_of(address=None))


def test_an_empty_address_file_names_no_cluster(address_file):
    address_file.touch()
    assert not cluster_lock.joins(config_of(address=None))


#: Spellings of this machine. What the last three stand for depends on it.
SPELLINGS = [
    *("127.0.0.1", "localhost", "127.0.0.2", "127.1", "2130706433", "0x7f.1", "0.0.0.0", "0"),
    *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]"),
    *("host name", "own IPv4 address", "own address mapped to IPv6"),
]
if not socket.has_dualstack_ipv6():
    SPELLINGS = [spelling for spelling in SPELLINGS if not spelling.startswith("[")]


def host_of(spelling):
    entries = [entry for interface in psutil.net_if_addrs().values() for entry in interface]
    own = max(
        (entry.address for entry in entries if entry.family == socket.AF_INET), key=lambda one: one != "127.0.0.1"
    )
    special = {
        "host name": socket.gethostname(),
        "own IPv4 address": own,
        "own address mapped to IPv6": f"[::ffff:{own}]",
    }
    return special.get(spelling, spelling)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_address_of_this_machine_at_which_nobody_listens_is_not_used(address_file, monkeypatch, spelling):
    """A cluster that was killed leaves its address, and another user can listen there after the check."""
    with server_on_all_interfaces() as server:
        port = server.getsockname()[1]
    address = f"{host_of(spelling)}:{port}"
    address_file.write_text(address)
    with pytest.raises(ConfigError, match=rf"(?s)the address in {address_file}: no process listens at .*ray stop"):
        cluster_lock.joins(config_of(address=None))
    with pytest.raises(ConfigError, match=r"ray_kwargs.ray_init.address=.*: no process listens at "):
        cluster_lock.joins(config_of(address=address))
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=.*: no process listens at "):
        cluster_lock.joins(config_of(address=None))


@as_root
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_old_address_at_which_another_user_listens_is_not_used(address_file, monkeypatch, spelling):
    with listening_as(NOBODY) as port:
        address = f"{host_of(spelling)}:{port}"
        address_file.write_text(address)
        with pytest.raises(ConfigError, match=rf":{port}, but another user \(id {NOBODY}\) listens there"):
            cluster_lock.joins(config_of(address=None))


@as_root
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_address_of_this_machine_that_the_user_named_is_another_users_only_by_that_users_name(monkeypatch, spelling):
    """The name may be old, for example in a shell's startup file, and its cluster may have ended."""
    with listening_as(NOBODY) as port:
        address = f"{host_of(spelling)}:{port}"
        for name, config in (
            (f"ray_kwargs.ray_init.address={address}", config_of(address=address)),
            (f"RAY_ADDRESS={address}", config_of(address=None)),
            (f"RAY_ADDRESS=ray://{address}", config_of(address=None)),
        ):
            monkeypatch.delenv(listeners.TRUSTED, raising=False)
            if name.startswith("RAY_ADDRESS="):
                monkeypatch.setenv("RAY_ADDRESS", name.partition("=")[2])
            fix = rf"set RAY_ADDRESS=\S+:{port} and VERL_GSD_CLUSTER_USER={NOBODY}"
            with pytest.raises(ConfigError, match=rf"^{re.escape(name)}: .*another user \(id {NOBODY}\).*{fix}"):
                cluster_lock.joins(config)
            for trusted in (str(NOBODY), pwd.getpwuid(NOBODY).pw_name):
                monkeypatch.setenv(listeners.TRUSTED, trusted)
                assert cluster_lock.joins(config)
            monkeypatch.setenv(listeners.TRUSTED, "65533")
            with pytest.raises(ConfigError, match="another user"):
                cluster_lock.joins(config)


def test_a_trusted_user_who_does_not_exist_is_rejected(monkeypatch, listener):
    monkeypatch.setenv(listeners.TRUSTED, "no such user")
    with pytest.raises(ConfigError, match=r"VERL_GSD_CLUSTER_USER=no such user: .*unset VERL_GSD_CLUSTER_USER"):
        cluster_lock.joins(config_of(address=f"127.0.0.1:{listener}"))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_address_at_which_this_user_listens_is_used(address_file, spelling):
    with server_on_all_interfaces() as server:
        address_file.write_text(f"{host_of(spelling)}:{server.getsockname()[1]}")
        assert cluster_lock.joins(config_of(address=None))


def test_a_listener_at_another_address_of_this_machine_does_not_count(address_file):
    """Another user could listen at the address itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for host, is_there in (("127.1", True), ("127.0.0.2", False)):
            address_file.write_text(f"{host}:{port}")
            if is_there:
                assert cluster_lock.joins(config_of(address=None))
            else:
                with pytest.raises(ConfigError, match="no process listens at"):
                    cluster_lock.joins(config_of(address=None))


def test_nothing_is_asked_about_listeners_of_other_machines(address_file):
    for host in ("192.0.2.77", "[2001:db8::1]", "head.invalid"):
        address_file.write_text(f"{host}:6379")
        assert cluster_lock.joins(config_of(address=None))


@as_root
def test_listeners_of_other_users_are_seen():
    for address in ("127.0.0.1", "0.0.0.0"):
        with listening_as(NOBODY, lambda address=address: socket.create_server((address, 0))) as port:
            assert listeners._listeners(port) == {(ipaddress.ip_address(address), NOBODY)}
        assert listeners._listeners(port) == set()


@as_root
@pytest.mark.parametrize("other", ["127.0.0.1", "::1"])
def test_a_listener_of_another_user_is_seen_at_each_address_that_a_name_stands_for(monkeypatch, other):
    """For example localhost, which stands for both of these on most machines. A client may use either."""
    entries = [(0, 0, 0, "", (host, 0)) for host in ("127.0.0.1", "::1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: entries)
    family, ours = (socket.AF_INET6, "127.0.0.1") if other == "::1" else (socket.AF_INET, "::1")
    with listening_as(NOBODY, lambda: socket.create_server((other, 0), family=family)) as port:
        with socket.create_server((ours, port), family=socket.AF_INET if other == "::1" else socket.AF_INET6):
            assert listeners.listening_users("localhost", port) == {0, NOBODY}
        assert listeners.listening_users("localhost", port) == {NOBODY}


def users_of(client):
    return listeners.users_of_connection(client.getsockname()[:2], client.getpeername()[:2])


@as_root
@pytest.mark.parametrize(
    ("bound", "host"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")]
)
def test_whoever_accepted_a_connection_can_read_it_and_need_not_listen_any_more(bound, host):
    """Another user could accept, and stop to listen, while this user's server starts again."""
    options = {"family": socket.AF_INET6 if ":" in bound else socket.AF_INET, "dualstack_ipv6": bound == "::"}
    os.seteuid(NOBODY)
    try:
        with socket.create_server((bound, 0), **options) as server:
            port = server.getsockname()[1]
            client = socket.create_connection((host, port))
            assert users_of(client) == {NOBODY}, "nobody has accepted it, and the listener can"
            accepted, _ = server.accept()
    finally:
        os.seteuid(0)
    with client:
        with accepted:
            assert users_of(client) == {NOBODY}
            with socket.create_server((bound, port), **options):
                assert users_of(client) == {0, NOBODY}
            accepted.shutdown(socket.SHUT_WR)
            assert users_of(client) == {NOBODY}, "this end can still be read"
        assert users_of(client) == set()


def test_nothing_is_known_about_a_connection_to_another_machine():
    assert listeners.users_of_connection(("192.0.2.78", 40000), ("192.0.2.77", 80)) is None


@given(st.ip_addresses())
def test_addresses_are_read_from_the_tables_of_linux(address):
    """The inverse of what the kernel writes: words of 32 bits in the machine's byte order."""
    packed = address.packed
    words = [int.from_bytes(packed[start : start + 4], sys.byteorder) for start in range(0, len(packed), 4)]
    assert listeners._of_table("".join(f"{word:08X}" for word in words)) == listeners._ip(str(address))


def test_ray_gets_the_address_that_was_checked(address_file, monkeypatch):
    """Ray would look again, and another user could start a cluster between the check and that."""
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "15")
    address_file.write_text("10.0.0.1:6379")
    config = config_of(address=None)
    assert job.set_cluster(config) == (True, "") and config.ray_kwargs.ray_init.address == "10.0.0.1:6379"
    address_file.unlink()
    config = config_of(address=None)
    assert job.set_cluster(config) == (False, "") and config.ray_kwargs.ray_init.address == "local"
