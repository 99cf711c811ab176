"""Which names stand where: an algorithm is named in its own folder only, and no two classes have the same name."""

import ast
import re
from collections import defaultdict

import pytest
from places import ROOT

PACKAGE = ROOT / "verl_gsd"
ALGORITHMS = PACKAGE / "algorithms"
#: What is read as text; everything else in the package is an image or a font.
SUFFIXES = {".py", ".yaml", ".jinja", ".html", ".css", ".js", ".json", ".md", ".txt"}
#: Our algorithms and how papers write their names.
NAMES = {"hadw": "hadw|ha-dw", "dagrpo": "dagrpo", "gvpo": "gvpo"}
#: Files that may name an algorithm, and why.
EXCEPTIONS = {
    "trainer/losses.py": "users' configs name the classes of losses there",
}


def sources():
    """Path within the package -> text."""
    files = sorted(path for path in PACKAGE.rglob("*") if path.suffix in SUFFIXES and path.is_file())
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in files}


def mentions(texts, pattern):
    """The lines of ``texts``, path -> text, that match."""
    return [
        f"{path}:{number}: {line.strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.split("\n"), 1)
        if re.search(pattern, line, re.IGNORECASE)
    ]


def without_conflicts(text):
    """Python source with each declared ``Conflict(...)`` left blank: one side of a conflict names the other."""
    lines = text.split("\n")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "Conflict":
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


def test_every_algorithm_has_a_folder():
    assert {path.name for path in ALGORITHMS.iterdir() if path.is_dir() and path.name != "__pycache__"} == {
        *NAMES,
        "rollouts",
        "silent_groups",
    }


def test_only_an_algorithms_own_folder_and_its_configs_name_it():
    outside = {path: text for path, text in sources().items() if not path.startswith(("algorithms/", "config/algo/"))}
    assert len(outside) > 200 and EXCEPTIONS.keys() <= outside.keys()
    pattern = "|".join(NAMES.values())
    assert mentions({path: text for path, text in outside.items() if path not in EXCEPTIONS}, pattern) == []
    for path in EXCEPTIONS:
        assert mentions({path: outside[path]}, pattern), f"{path} names no algorithm: it is no exception"


@pytest.mark.parametrize("folder", [*NAMES, "rollouts", "silent_groups"])
def test_an_algorithm_names_another_only_in_a_declared_conflict(folder):
    own = {
        path: without_conflicts(text)
        for path, text in sources().items()
        if path.startswith(f"algorithms/{folder}/") and path.endswith(".py")
    }
    assert own
    others = "|".join(pattern for name, pattern in NAMES.items() if name != folder)
    assert mentions(own, others) == []


def test_a_conflict_may_name_another_algorithm_and_nothing_else_may():
    declared = 'Declaration(\n    conflicts=(\n        Conflict(\n            "a.gvpo",\n        ),\n    )\n)\n'
    assert mentions({"x.py": declared}, "gvpo") and not mentions({"x.py": without_conflicts(declared)}, "gvpo")
    beside = declared + "# as GVPO does\n"
    assert mentions({"x.py": without_conflicts(beside)}, "gvpo") == ["x.py:8: # as GVPO does"]


def test_no_two_classes_of_the_package_share_a_name():
    places = defaultdict(list)
    for path, text in sources().items():
        if path.endswith(".py"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(f"{path}:{node.lineno}")
    assert len(places) > 150
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
