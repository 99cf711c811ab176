"""Who else can use a file: its mode, its ACL, the folders above it, and the links that lead to it."""

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
from acls import grant, set_default

from verl_gsd import file_access

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
NOBODY = 65534
ALL = os.R_OK | os.W_OK | os.X_OK


@pytest.fixture(autouse=True)
def _own_group(monkeypatch):
    """Files belong to the user's private group, so that the group's permissions alone are no problem."""
    monkeypatch.setattr(file_access, "is_own_group", lambda group: True)


@as_root
def test_an_acl_lets_another_user_write_where_the_mode_looks_private():
    """What the kernel does, on which the other tests rely."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # others cannot enter pytest's folders
        Path(folder).chmod(0o755)
        file = Path(folder) / "file"
        file.touch(mode=0o600)

        def can_be_written():
            return subprocess.run(["tee", str(file)], user=NOBODY, input=b"", capture_output=True).returncode == 0

        assert not can_be_written()
        grant(file, NOBODY, os.R_OK | os.W_OK)
        assert stat.S_IMODE(file.stat().st_mode) == 0o660
        assert can_be_written() and file_access.is_open_to_others(file, os.W_OK)
        file.chmod(0o600)  # this takes the named user's permissions, too
        assert not can_be_written() and not file_access.is_open_to_others(file, ALL)


def test_the_mask_of_an_acl_is_open_to_others_whoever_owns_the_group(tmp_path):
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o660)
    assert not file_access.is_open_to_others(file, os.W_OK)
    grant(file, NOBODY, os.R_OK)
    file.chmod(0o640)
    assert file_access.is_open_to_others(file, os.R_OK) and not file_access.is_open_to_others(file, os.W_OK)
    with file.open() as opened:
        assert file_access.is_open_to_others(opened.fileno(), os.R_OK)


def test_a_folder_that_a_named_user_can_write_is_changeable_and_replaceable(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a").chmod(0o770)
    assert file_access.changeable_folder(tmp_path / "a" / "b") == ""
    grant(tmp_path / "a", NOBODY, ALL)
    problem = f"other users can write {tmp_path}/a (mode 0770 and an ACL)"
    assert file_access.changeable_folder(tmp_path / "a") == problem
    assert file_access.replaceable_folder(tmp_path / "a" / "b") == problem


def test_a_default_acl_makes_what_is_created_in_a_folder_open(tmp_path):
    (tmp_path / "run").mkdir(mode=0o755)
    grant(tmp_path / "run", NOBODY, os.R_OK | os.X_OK, default=True)
    assert file_access.changeable_folder(tmp_path / "run") == ""
    grant(tmp_path / "run", NOBODY, ALL, default=True)
    (tmp_path / "run" / "file").touch()
    assert file_access.is_open_to_others(tmp_path / "run" / "file", os.W_OK)
    assert f"`setfacl -k {tmp_path}/run`" in file_access.changeable_folder(tmp_path / "run")
    (tmp_path / "run").chmod(0o700)  # nobody else can enter it
    assert file_access.changeable_folder(tmp_path / "run") == ""


@pytest.mark.parametrize(("group", "others", "is_open"), [(ALL, 0, False), (0, ALL, True), (5, 5, False)])
def test_a_default_acl_without_named_users_counts_as_a_mode_does(tmp_path, monkeypatch, group, others, is_open):
    (tmp_path / "run").mkdir(mode=0o755)
    set_default(tmp_path / "run", owner=ALL, group=group, others=others)
    assert bool(file_access.open_default(tmp_path / "run")) is is_open
    monkeypatch.setattr(file_access, "is_own_group", lambda group: False)
    assert bool(file_access.open_default(tmp_path / "run")) is bool((group | others) & os.W_OK)


@pytest.fixture
def link(tmp_path):
    """A link to a link in a sticky folder, to a folder that nobody else can write. All are this user's."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    (tmp_path / "shared" / "second").symlink_to("../mine")
    (tmp_path / "first").symlink_to(tmp_path / "shared" / "second")
    return tmp_path / "first"


def test_a_link_through_a_sticky_folder_leads_where_its_owners_say(link, tmp_path):
    assert file_access.replaceable_target(link) == ""
    assert file_access.replaceable_target(link / ".." / "mine") == ""
    (tmp_path / "shared").chmod(0o777)
    assert file_access.replaceable_target(link) == f"other users can write {tmp_path}/shared (mode 0777)"


@as_root
def test_a_link_of_another_user_on_the_way_can_lead_elsewhere_at_any_time(link, tmp_path):
    os.chown(tmp_path / "shared" / "second", NOBODY, -1, follow_symlinks=False)
    problem = f"the link {tmp_path}/shared/second belongs to user id {NOBODY}"
    assert file_access.replaceable_target(link) == problem


def test_a_circle_of_links_ends(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        file_access.replaceable_target(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        file_access.replaceable_target(Path("/nowhere/at/all"))


@pytest.mark.parametrize("end", ["", "run/file", "../mine/run"])
def test_a_path_through_own_links_is_followed(link, tmp_path, end):
    (tmp_path / "mine" / "run").mkdir()
    (tmp_path / "mine" / "run" / "file").touch()
    assert file_access.real_path(link / end) == ((link / end).resolve(), "")


def test_a_path_through_a_link_that_others_can_replace_names_the_link_and_the_folder(link, tmp_path):
    (tmp_path / "shared").chmod(0o777)
    problem = f"other users can write {tmp_path}/shared (mode 0777)"
    owner = f"the link {tmp_path}/shared/second belongs to user id {os.geteuid()}"
    assert file_access.real_path(link) == (tmp_path / "mine", f"{owner}, and {problem}")
    (tmp_path / "shared" / "run").mkdir()
    assert file_access.real_path(tmp_path / "shared" / "run") == (tmp_path / "shared" / "run", ""), "there is no link"
    (tmp_path / "shared" / "run" / "third").symlink_to(tmp_path / "mine")
    owner = f"the link {tmp_path}/shared/run/third belongs to user id {os.geteuid()}"
    third = file_access.real_path(tmp_path / "shared" / "run" / "third")
    assert third == (tmp_path / "mine", f"{owner}, and {problem}")


def test_a_link_into_a_folder_of_others_is_followed(link, tmp_path):
    """Whoever can write it could also put another run there without a link."""
    (tmp_path / "mine" / "run").mkdir()
    (tmp_path / "mine").chmod(0o777)
    assert file_access.real_path(link / "run") == (tmp_path / "mine" / "run", "")


@as_root
def test_a_path_through_a_link_of_another_user_names_the_link_and_its_owner(link, tmp_path):
    os.chown(tmp_path / "shared" / "second", NOBODY, -1, follow_symlinks=False)
    problem = f"the link {tmp_path}/shared/second belongs to user id {NOBODY}"
    assert file_access.real_path(link) == (tmp_path / "mine", problem)
    assert file_access.real_path(tmp_path / "shared") == (tmp_path / "shared", "")


@as_root
def test_a_link_of_root_is_followed_by_another_user(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # others cannot enter pytest's folders
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "run").mkdir()
        (folder / "link").symlink_to("run")
        monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
        assert file_access.real_path(folder / "link") == (folder / "run", "")
        os.chown(folder / "link", 1, -1, follow_symlinks=False)
        assert "belongs to user id 1" in file_access.real_path(folder / "link")[1]


def test_a_path_in_a_circle_of_links_or_to_nothing_is_an_error(tmp_path):
    (tmp_path / "a").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        file_access.real_path(tmp_path / "a")
    with pytest.raises(FileNotFoundError):
        file_access.real_path(tmp_path / "nothing")
