"""Atomic writes of files and folders."""

import os
import re
import stat

import pytest

from verl_gsd.writing import atomic_folder, atomic_write, open_new


def test_a_file_appears_only_when_the_block_has_succeeded(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert re.fullmatch(r"file\.txt\.[0-9a-f]{16}\.tmp", temporary.name) and not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(OSError, match="No space"), atomic_write(path) as temporary:
        temporary.write_text("sec")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "first" and [file.name for file in path.parent.iterdir()] == ["file.txt"]


def test_a_link_with_the_old_temporary_name_is_not_followed(tmp_path):
    theirs, path = tmp_path / "bashrc", tmp_path / "report.html"
    theirs.write_text("precious")
    (tmp_path / "report.html.tmp").symlink_to(theirs)
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert theirs.read_text() == "precious" and path.read_text() == "new" and not path.is_symlink()


def test_the_temporary_file_is_new_and_has_a_name_of_its_own(tmp_path, monkeypatch):
    path, theirs = tmp_path / "file.txt", tmp_path / "theirs"
    with atomic_write(path) as first, atomic_write(path) as second:
        assert first != second and first.is_file() and not first.read_bytes(), "it exists before the block writes to it"
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first", "the block that ended last"
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f"file.txt.{'0' * 16}.tmp").symlink_to(theirs)
    with pytest.raises(FileExistsError), atomic_write(path):
        pass
    assert not theirs.exists() and path.read_text() == "first", "a link that leads nowhere is not followed either"


def test_the_file_has_the_mode_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file.txt") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o640


def test_temporary_files_of_killed_processes_are_removed_after_a_day(tmp_path):
    path = tmp_path / "file[1].txt"
    names = ("file[1].txt.0123456789abcdef.tmp", "file[1].txt.mine.tmp", "file1.txt.0123456789abcdef.tmp")
    old, *others = (tmp_path / name for name in names)
    recent = tmp_path / "file[1].txt.1123456789abcdef.tmp"
    for file in (old, *others, recent):
        file.touch()
        os.utime(file, (1e9, 1e9) if file != recent else None)
    with atomic_write(path) as temporary:
        temporary.write_text("x")
    assert not old.exists() and recent.exists() and all(file.exists() for file in others)


def test_a_new_file_takes_the_place_of_a_link(tmp_path):
    theirs, path = tmp_path / "bashrc", tmp_path / "run.log"
    theirs.write_text("precious")
    path.symlink_to(theirs)
    with open_new(path) as file:
        file.write(b"line")
    with open_new(path) as file:
        file.write(b"new")
    assert theirs.read_text() == "precious" and path.read_bytes() == b"new" and not path.is_symlink()


def test_a_folder_replaces_the_old_one_only_when_the_block_has_succeeded(tmp_path):
    path = tmp_path / "new" / "folder"
    leftover = tmp_path / "new" / "folder.tmp"
    leftover.mkdir(parents=True)
    (leftover / "old").touch()  # of a process that was killed
    with atomic_folder(path) as temporary:
        assert temporary == leftover and not list(temporary.iterdir())
        (temporary / "a").touch()
    with pytest.raises(OSError, match="No space"), atomic_folder(path) as temporary:
        (temporary / "b").touch()
        raise OSError(28, "No space left on device")
    assert [file.name for file in path.rglob("*")] == ["a"] and not leftover.exists()
    with atomic_folder(path) as temporary:
        (temporary / "c").touch()
    assert [file.name for file in path.rglob("*")] == ["c"] and not leftover.exists()


def test_a_folder_is_not_written_through_a_link(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (tmp_path / "folder.tmp").symlink_to(theirs)
    with pytest.raises(FileExistsError), atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").touch()
    assert not list(theirs.iterdir())


def test_a_folder_that_must_be_new_does_not_replace_one_with_files(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(OSError), atomic_folder(path, replace=False) as temporary:
        (temporary / "a").touch()
        path.mkdir()
        (path / "of_another_process").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "of_another_process"]
