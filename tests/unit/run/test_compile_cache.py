"""Nobody else can write in the folders from which torch's compiler loads code."""

import os
import stat
import tempfile
from pathlib import Path

import pytest
from acls import grant
from omegaconf import OmegaConf

from verl_gsd import private_folders
from verl_gsd.errors import ConfigError
from verl_gsd.run import compile_cache, launch
from verl_gsd.rundir import RunDirectory

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
NOBODY = 65534


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """torch's own folder, which does not exist yet, in a folder with /tmp's mode."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as base:
        Path(base).chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", base)
        for name in (compile_cache.VARIABLE, compile_cache.HEADERS, compile_cache.ALLOCATOR):
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)
        yield compile_cache.torchs_folder()
        private_folders._hold.cache_clear()


def test_the_folder_is_taken_and_its_children_use_it(folder):
    compile_cache.protect()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.geteuid()


def test_a_folder_that_torch_has_made_is_kept_and_closed(folder, monkeypatch):
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "graph").touch()
    monkeypatch.setenv(compile_cache.VARIABLE, str(folder))  # as torch sets it
    compile_cache.protect()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and (folder / "graph").exists()


@as_root
@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_name_that_another_user_has_taken_is_rejected_and_not_used(folder, kind, tmp_path):
    if kind == "folder":
        folder.mkdir()
    elif kind == "link":
        folder.symlink_to(tmp_path)
    else:
        folder.touch()
    os.chown(folder, NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(ConfigError, match=rf"{folder}: it .*set TMPDIR"):
        compile_cache.protect()


@as_root
def test_a_process_of_verl_uses_a_folder_of_its_own_instead(folder, caplog):
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    compile_cache.protect_or_warn()
    used = Path(os.environ[compile_cache.VARIABLE])
    assert used != folder and not private_folders.problem(str(used)) and os.environ[compile_cache.HEADERS] == "0"
    assert str(folder) in caplog.text and "65534" in caplog.text


def test_a_folder_for_temporary_files_that_others_can_replace_is_rejected(folder):
    folder.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="other users can write"):
        compile_cache.protect()
    assert not folder.exists()


def test_a_folder_that_the_user_chose_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(compile_cache.VARIABLE, f"{tmp_path}/a/b")
    compile_cache.protect()
    assert os.environ[compile_cache.VARIABLE] == f"{tmp_path}/a/b"
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_folder_that_the_user_chose_is_rejected_if_others_can_write_in_it(tmp_path, monkeypatch, mode):
    tmp_path.chmod(mode)
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=rf"{compile_cache.VARIABLE}={tmp_path}: .*mode {mode:04o}.*unset"):
        compile_cache.protect()


@as_root
def test_a_chosen_folder_of_another_user_is_rejected(tmp_path, monkeypatch):
    os.chown(tmp_path, NOBODY, NOBODY)
    monkeypatch.setenv(compile_cache.VARIABLE, f"{tmp_path}/mine")
    with pytest.raises(ConfigError, match=f"{tmp_path} belongs to user id {NOBODY}"):
        compile_cache.protect()


@as_root
def test_a_run_does_not_start_if_another_user_has_taken_the_folder(folder, tmp_path):
    folder.mkdir()
    os.chown(folder, NOBODY, NOBODY)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ConfigError, match=str(folder)):
        launch.train(run, 1, OmegaConf.create({}), on_step=print, on_wait=print, on_message=print)
    assert not run.log(1).exists()


def test_a_folder_is_used_by_the_name_that_was_checked_and_not_through_a_link(tmp_path, monkeypatch):
    """The link may be changed after the check."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TMPDIR", f"{tmp_path}/link")
    monkeypatch.setattr(tempfile, "tempdir", None)
    compile_cache.protect()
    real = tmp_path / "real" / compile_cache.torchs_folder().name
    assert compile_cache.torchs_folder() == real and os.environ[compile_cache.VARIABLE] == str(real)
    assert os.environ["TMPDIR"] == f"{tmp_path}/real"
    monkeypatch.setenv(compile_cache.VARIABLE, f"{tmp_path}/link/mine")
    compile_cache.protect()
    assert os.environ[compile_cache.VARIABLE] == f"{tmp_path}/real/mine"


def test_a_folder_that_a_named_user_of_an_acl_can_write_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(compile_cache.file_access, "is_own_group", lambda group: True)
    grant(tmp_path, NOBODY, os.R_OK | os.W_OK | os.X_OK)
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match=r"mode 0770 and an ACL"):
        compile_cache.protect()


def test_vllms_allocator_is_used_only_in_a_folder_for_temporary_files_of_ones_own(folder, monkeypatch, caplog):
    """vLLM loads nccl_allocator.so from there, whoever made it."""
    for off in ("", "0"):
        monkeypatch.setenv(compile_cache.ALLOCATOR, off)
        compile_cache.protect()
    monkeypatch.setenv(compile_cache.ALLOCATOR, "1")
    with pytest.raises(ConfigError, match=rf"{folder.parent}/nccl_allocator.so, but .*Set TMPDIR .*unset VLLM_USE"):
        compile_cache.protect()
    folder.parent.chmod(0o700)
    compile_cache.protect()
    assert os.environ[compile_cache.ALLOCATOR] == "1"
    folder.parent.chmod(0o1777)
    compile_cache.protect_or_warn()
    assert os.environ[compile_cache.ALLOCATOR] == "0" and os.environ[compile_cache.VARIABLE] == str(folder)
    assert f"{compile_cache.ALLOCATOR} is switched off" in caplog.text
