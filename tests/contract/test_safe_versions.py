"""Lower bounds that exclude versions with known holes, and what the installed versions do against these holes."""

import json
import sys
from importlib.metadata import requires, version
from pathlib import Path

import fsspec
import pytest
from jinja2 import Undefined
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it there

ROOT = Path(__file__).parents[2]

#: (package, a version with the hole, the first without it)
HOLES = [
    ("fsspec", "2026.5.9", "2026.6.0"),  # code in `reference://` files
    ("jinja2", "3.1.5", "3.1.6"),  # templates that leave the sandbox
    ("filelock", "3.20.0", "3.20.1"),  # links of somebody else
    ("ray", "2.58.9", "2.59.0"),  # clusters without a token
]


def required(package):
    texts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (requirement,) = [one for one in map(Requirement, texts) if one.name == package]
    return requirement.specifier


@pytest.mark.parametrize(("package", "bad", "good"), HOLES)
def test_versions_with_a_known_hole_are_excluded(package, bad, good):
    assert not required(package).contains(bad) and required(package).contains(good)
    assert required(package).contains(version(package)), "the installed one"


def test_the_oldest_datasets_that_is_allowed_is_the_first_that_accepts_the_fsspec_without_the_hole():
    """Older ones have an upper bound of fsspec, so that pip would find no solution, or take an old fsspec."""
    assert not required("datasets").contains("5.1.9") and required("datasets").contains("5.2.0")
    (bound,) = [one for one in map(Requirement, requires("datasets")) if one.name == "fsspec"]
    assert bound.specifier.contains("2026.6.0")


@pytest.mark.parametrize("place", ["templates", "gen"])
def test_a_reference_file_of_somebody_else_runs_no_code(tmp_path, place):
    code = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "owned") + "') }}"
    references = {"version": 1, "templates": {"u": "x"}, "refs": {"a": ["{{u}}" if place == "gen" else code, 0, 1]}}
    if place == "gen":
        entry = {"key": "b{{i}}", "url": code, "offset": "0", "length": "1", "dimensions": {"i": [1]}}
        references["gen"] = [entry]
    (tmp_path / "references.json").write_text(json.dumps(references))
    with pytest.raises(SecurityError):
        fsspec.filesystem(
            "reference", fo=str(tmp_path / "references.json"), simple_templates=False, skip_instance_cache=True
        )
    assert not (tmp_path / "owned").exists()


def test_a_chat_template_reads_no_variable_of_the_environment(monkeypatch):
    """transformers renders templates of models in this sandbox. ``attr`` reached ``str.format``, which it guards."""
    monkeypatch.setenv("SECRET", "canary")
    template = "{{ ('{0.__init__.__globals__[os].environ[SECRET]}' | attr('format'))(cycler) }}"
    with pytest.raises(SecurityError):
        ImmutableSandboxedEnvironment(undefined=Undefined).from_string(template).render()
