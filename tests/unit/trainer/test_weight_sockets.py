"""Each run sends its weights through its own folder. No other user can enter it, and it is removed after the run."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from verl_gsd import private_folders
from verl_gsd.trainer import weight_sockets

HANDLE = "ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock"
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def prefix(monkeypatch):
    """The prefix of all folders, at a short path with /tmp's mode, so that runs on this machine are not affected."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setattr(private_folders, "_PREFIX", f"{folder}/")
        monkeypatch.setattr(private_folders, "_nodes_held", set())
        yield f"{folder}/weights_"
        private_folders._hold.cache_clear()


def folders(prefix):
    return sorted(path.name for path in Path(prefix).parent.iterdir())


HOLDER = """
import sys
from verl_gsd.trainer import weight_sockets
from verl_gsd import private_folders
private_folders._PREFIX = sys.argv[1].removesuffix("weights_")
print(weight_sockets.private_handle(sys.argv[2], sys.argv[3]), flush=True)
sys.stdin.read()
"""


def holder(prefix, node):
    """(process of a run, path of the socket). The process holds the folder until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, prefix, HANDLE, node], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_only_this_user_can_enter_the_folder_and_the_socket_keeps_verls_name(prefix):
    handle = weight_sockets.private_handle(HANDLE, "ab" * 8)
    path = Path(handle.removeprefix("ipc://"))
    assert path.name == Path(HANDLE).name and path.parent == Path(f"{prefix}{'ab' * 8}")
    status = path.parent.lstat()
    assert stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == os.geteuid()


def test_the_longest_socket_path_can_be_bound():
    """Linux allows 107 characters."""
    path = f"{private_folders._PREFIX}weights_{'ab' * 8}/rl-colocate-zmq-ffffffff-replica-9999-rank-99.sock"
    with socket.socket(socket.AF_UNIX) as bound, pytest.raises(FileNotFoundError):  # not "AF_UNIX path too long"
        bound.bind(path)


def loose(folder):
    folder.mkdir()
    folder.chmod(0o750)


def symbolic_link(folder):
    target = folder.with_name("target")
    target.mkdir(mode=0o700)
    folder.symlink_to(target)


def dangling_link(folder):
    folder.symlink_to(folder.with_name("nowhere"))


def of_another_user(folder):
    folder.mkdir(mode=0o700)
    os.chown(folder, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (loose, "mode is 0750"),
        (symbolic_link, "directory"),
        (dangling_link, "directory"),
        (Path.touch, "directory"),
        pytest.param(of_another_user, f"user id {NOBODY}", marks=as_root),
    ],
)
def test_a_folder_that_is_not_private_is_rejected_and_not_changed(prefix, make, reason):
    folder = Path(f"{prefix}{'ab' * 8}")
    make(folder)
    before = folders(prefix)
    with pytest.raises(private_folders.UnsafeFolderError, match=f"(?s){folder}.*{reason}"):
        weight_sockets.private_handle(HANDLE, "ab" * 8)
    assert folders(prefix) == before


@pytest.mark.parametrize("make", [symbolic_link, Path.touch, pytest.param(of_another_user, marks=as_root)])
def test_cleaning_removes_only_this_users_own_folders(prefix, make):
    make(Path(f"{prefix}ab"))
    before = folders(prefix)
    private_folders.remove_unused()
    assert folders(prefix) == before


@as_root
def test_another_user_can_neither_bind_nor_connect_in_the_folder(prefix):
    """verl's receiver unpickles what the sender sends."""
    path = weight_sockets.private_handle(HANDLE, "ab" * 8).removeprefix("ipc://")
    for command in (f"echo > {path}", f"cat {path}", f"mv {Path(path).parent} {prefix}other"):
        done = subprocess.run(["sh", "-c", command], user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True)
        assert done.returncode != 0, command
    assert folders(prefix) == [Path(path).parent.name] and not Path(path).exists()


def test_sender_and_receiver_create_the_folder_in_any_order_while_others_clean_up(prefix):
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, prefix, HANDLE, "ab"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    while not folders(prefix):
        private_folders.remove_unused()
    for _ in range(100):
        private_folders.remove_unused()
    handles = {process.stdout.readline() for process in holders}
    private_folders.remove_unused()
    assert handles == {f"ipc://{prefix}ab/{Path(HANDLE).name}\n"} and folders(prefix) == ["weights_ab"]
    for process in holders:
        end(process)


def test_a_folder_that_is_removed_before_it_is_locked_is_created_again(prefix, monkeypatch):
    real = private_folders.fcntl.flock
    removed = []

    def flock_after_another_runs_cleaning_stub(descriptor, operation):
        if not removed:
            removed.append(Path(f"{prefix}ab"))
            removed[0].rmdir()
        real(descriptor, operation)

    monkeypatch.setattr(private_folders.fcntl, "flock", flock_after_another_runs_cleaning_stub)
    weight_sockets.private_handle(HANDLE, "ab")
    assert removed and removed[0].is_dir()


def test_a_folder_that_is_created_again_before_it_is_locked_is_not_removed(prefix, monkeypatch):
    """Another command removes an unused folder and a run creates it again, just before this command removes it."""
    folder = Path(f"{prefix}weights_{'a' * 16}")
    folder.mkdir(mode=0o700)
    opened = os.open

    def open_and_replace(path, *flags):
        descriptor = opened(path, *flags)
        folder.rmdir()
        folder.mkdir(mode=0o700)
        return descriptor

    with monkeypatch.context() as patched:
        patched.setattr(private_folders.os, "open", open_and_replace)
        private_folders.remove_unused()
    assert folder.is_dir()


def test_the_next_run_removes_the_folder_of_a_killed_run_but_not_of_a_running_one(prefix):
    killed, path = holder(prefix, "aa")
    living, _ = holder(prefix, "bb")
    Path(path.removeprefix("ipc://")).touch()  # a socket that was never removed
    private_folders.remove_unused()
    assert folders(prefix) == ["weights_aa", "weights_bb"], "both are held"
    end(killed)
    following, _ = holder(prefix, "cc")
    assert folders(prefix) == ["weights_bb", "weights_cc"]
    end(living)
    end(following)
    private_folders.remove_unused()
    assert folders(prefix) == []


def test_a_launchers_folder_is_removed_at_its_end_or_at_the_next_start(prefix):
    with private_folders.run_folder() as folder:
        private_folders.remove_unused()
        assert Path(folder).is_dir() and stat.S_IMODE(Path(folder).stat().st_mode) == 0o700
        assert len(f"{folder}/workers") < 100
    assert folders(prefix) == []
    code = (
        "import sys; from verl_gsd import private_folders; private_folders._PREFIX = sys.argv[1]\n"
        "with private_folders.run_folder() as folder: print(folder, flush=True); sys.stdin.read()"
    )
    base = prefix.removesuffix("weights_")
    launcher = subprocess.Popen(
        [sys.executable, "-c", code, base], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    left = Path(launcher.stdout.readline().strip())
    assert left.is_relative_to(Path(base).parent) and left.is_dir()
    (left / "workers").touch()
    private_folders.remove_unused()
    assert (left / "workers").exists()
    end(launcher)
    private_folders.remove_unused()
    assert folders(prefix) == []


def test_only_folders_of_runs_are_removed(prefix):
    """Folders of a user may have names with the same prefix."""
    others = [Path(f"{prefix.removesuffix('weights_')}{name}") for name in ("x7f_2a", "runs", "weights")]
    for path in others:
        path.mkdir(mode=0o700)
    private_folders.remove_unused()
    assert all(path.is_dir() for path in others)


def test_the_launcher_removes_the_folder_at_the_end(prefix):
    from verl_gsd.run import launch

    run, _ = holder(prefix, "ab")
    with launch._all_processes_ended("no process has this mark"):
        end(run)
        assert folders(prefix) == ["weights_ab"]
    assert folders(prefix) == []
