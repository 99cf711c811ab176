"""Processes that this package starts import nothing from the current folder, and everything from PYTHONPATH."""

import ast
import os
import subprocess

import pytest
from places import ROOT

from verl_gsd import python_commands
from verl_gsd.python_commands import code_command, module_command
from verl_gsd.tasks import maths

REPORT = """
import json, sys
if __name__ == "__main__":
    print(json.dumps([__spec__.name, sys.argv[1:], sys.modules["__main__"].__dict__ is globals()]))
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """The current folder, which has a module with the name of one of the standard library, and one of our package."""
    folder = tmp_path / "hostile"
    (folder / "verl_gsd").mkdir(parents=True)
    for file in (folder / "json.py", folder / "runpy.py", folder / "verl_gsd" / "__init__.py"):
        file.write_text("raise SystemExit('code of somebody else')")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(params=[True, False], ids=["-P", "before Python 3.11"])
def either_way(request, monkeypatch):
    if request.param and not python_commands._HAS_SAFE_PATH:
        pytest.skip("this Python has no option -P")
    monkeypatch.setattr(python_commands, "_HAS_SAFE_PATH", request.param)


@pytest.mark.usefixtures("hostile", "either_way")
def test_modules_come_from_pythonpath_and_not_from_the_current_folder(tmp_path):
    (tmp_path / "importable").mkdir()
    (tmp_path / "importable" / "mine.py").write_text(REPORT)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "importable")}
    for command, printed in (
        (module_command("mine", "-x", "two words"), '["mine", ["-x", "two words"], true]\n'),
        (code_command("import json, mine; print(mine.__name__)"), "mine\n"),
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


@pytest.mark.usefixtures("hostile", "either_way")
def test_the_verifier_of_mathematics_starts_in_any_folder():
    worker = maths._Worker()
    try:
        assert worker.ask("6/2", "3", maths.TIMEOUT_S) == "right"
    finally:
        worker.kill()


def starts_python(source):
    """The lines that write ``[sys.executable, "-m" or "-c", ...]``."""
    for node in ast.walk(ast.parse(source)):
        words = [ast.unparse(word) for word in node.elts[:2]] if isinstance(node, ast.List) else []
        if words in (["sys.executable", "'-m'"], ["sys.executable", "'-c'"]):
            yield node.lineno


def test_all_processes_are_started_by_these_commands():
    assert list(starts_python("run([sys.executable, '-m', 'a'])\nrun([sys.executable, '-I', file])")) == [1]
    files = set((ROOT / "verl_gsd").rglob("*.py")) - {ROOT / "verl_gsd" / "python_commands.py"}
    assert [f"{file}:{line}" for file in files for line in starts_python(file.read_text(encoding="utf-8"))] == []
