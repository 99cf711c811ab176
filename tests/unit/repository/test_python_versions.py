"""The package runs on every Python that pyproject.toml accepts, whichever one runs the tests."""

import hashlib
import subprocess
from importlib.metadata import metadata

import pytest
from packaging.specifiers import SpecifierSet
from places import BINARIES, ROOT

from verl_gsd.preparation import reading

OLDEST = next(
    v for v in ("3.8", "3.9", "3.10", "3.11", "3.12") if v in SpecifierSet(metadata("verl-gsd")["Requires-Python"])
)


def features_too_new(*places):
    """Syntax and names of the standard library that came after the oldest Python, with their places."""
    words = [f"-t={OLDEST}-", "--violations", "--no-tips", "--no-parse-comments", "--processes=1"]
    done = subprocess.run([BINARIES / "vermin", *words, *places], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_sources_use_nothing_that_came_after_the_oldest_python():
    assert features_too_new(ROOT / "verl_gsd", ROOT / "tests") == ""


def test_what_came_later_is_seen(tmp_path):
    (tmp_path / "late.py").write_text("import hashlib\n\ndigest = hashlib.file_digest\n")
    assert "hashlib.file_digest" in features_too_new(tmp_path)


#: None, a part of the block that is read at once, one whole, and several with a rest.
@pytest.mark.parametrize("size", [0, 1, 2**20, 2**21 + 5])
def test_files_are_hashed_without_what_python_3_10_lacks(tmp_path, monkeypatch, size):
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "rows").write_bytes(content)
    assert reading.sha256(tmp_path / "rows") == hashlib.sha256(content).hexdigest()
