"""Atomic writes of files and folders."""

import pytest

from verl_gsd.writing import atomic_folder, atomic_write


def test_a_file_appears_only_when_the_block_has_succeeded(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("first")
        assert temporary.name == "file.txt.tmp" and not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(OSError, match="No space"), atomic_write(path) as temporary:
        temporary.write_text("sec")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "first" and [file.name for file in path.parent.iterdir()] == ["file.txt"]


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


def test_a_folder_that_must_be_new_does_not_replace_one_with_files(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(OSError), atomic_folder(path, replace=False) as temporary:
        (temporary / "a").touch()
        path.mkdir()
        (path / "of_another_process").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["folder", "of_another_process"]
