"""The tests' folders are what tests/README.md says of them."""

import ast
import functools

from places import ROOT

TESTS = ROOT / "tests"
FOLDERS = {"unit", "contract", "engine", "stack", "drills", "support"}
FILES = sorted(TESTS.rglob("test_*.py"))
#: What tests/unit does without. Importing one takes seconds, and starts what other tests would have to end.
HEAVY = {"verl", "ray", "vllm", "transfer_queue"}


@functools.cache
def imported(file):
    """The first word of every module that a file imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_every_test_lies_in_a_folder_that_is_its_marker(pytestconfig):
    markers = {line.partition(":")[0].partition("(")[0] for line in pytestconfig.getini("markers")}
    assert {file.relative_to(TESTS).parts[0] for file in FILES} == FOLDERS - {"support"} <= markers
    assert {path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"} == FOLDERS


def test_no_test_file_imports_another():
    names = {file.stem for file in FILES}
    found = {f"{file.relative_to(TESTS)} imports {name}" for file in FILES for name in imported(file) if name in names}
    assert not found


def test_unit_tests_import_neither_verl_nor_ray():
    files = [file for file in FILES if file.relative_to(TESTS).parts[0] == "unit"]
    found = {f"{file.relative_to(TESTS)} imports {name}" for file in files for name in imported(file) if name in HEAVY}
    assert not found


def test_folders_of_unit_tests_are_the_packages():
    """tests/unit/repository is of what lies beside the package: scripts, recipes, pages, images."""
    found = {path.name for path in (TESTS / "unit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    packages = {path.name for path in (ROOT / "verl_gsd").iterdir() if (path / "__init__.py").is_file()}
    assert found - {"repository"} <= packages
