"""The wheel and the source distribution: what they contain, and that they install and run without the checkout."""

import email
import os
import subprocess
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from places import ROOT

from verl_gsd.config_choices import GROUPS, choices
from verl_gsd.python_commands import module_command


def run(*command, **options):
    """What a command prints, in an environment without PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(source, target, folder):
    """Build in this environment with pyproject.toml's backend, and without a network."""
    run(*module_command("hatchling", "build", "--target", target, "--directory", str(folder)), cwd=source)
    (file,) = folder.iterdir()
    return file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def contents(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(file):
    (text,) = (data for name, data in contents(file).items() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(text)


def test_the_wheel_has_the_package_its_recipes_and_its_type_marker_and_nothing_else(wheel):
    files = contents(wheel)
    tops = {name.partition("/")[0] for name in files}
    assert tops == {"verl_gsd", f"verl_gsd-{metadata(wheel)['Version']}.dist-info"}
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "verl_gsd").rglob("*") if path.is_file()}
    recipes = {f"verl_gsd/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.*")}
    expected = {name for name in package | recipes if "__pycache__" not in name and not name.startswith("verl_gsd/.")}
    assert {name for name in files if name.startswith("verl_gsd/")} == expected
    assert files["verl_gsd/py.typed"] == b""
    assert any(name.endswith("/licenses/LICENSE") for name in files)


def test_the_source_distribution_builds_the_same_wheel(wheel, tmp_path):
    source = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (folder,) = (tmp_path / "unpacked").iterdir()
    for name in ("tests/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "LICENSE"):
        assert (folder / name).is_file(), name
    assert contents(build(folder, "wheel", tmp_path / "again")) == contents(wheel)


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(python, verl-gsd) of a new environment with the wheel. It finds the dependencies in this environment's folders.

    A line in a .pth file adds a folder, but not the .pth files in it. So an editable install there has no effect.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    interpreter = folder / "bin" / "python"
    site = Path(run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    others = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    options = ("--no-index", "--no-deps", "--no-compile", "--disable-pip-version-check", "--quiet")
    run(*module_command("pip", "--python", str(interpreter), "install", *options, str(wheel)))
    (site / "dependencies.pth").write_text("\n".join(others) + "\n")
    return interpreter, folder / "bin" / "verl-gsd"


def test_an_installed_wheel_runs_and_finds_its_files(installed, tmp_path):
    interpreter, command = installed
    where, known = run(
        interpreter,
        "-c",
        "import verl_gsd; from verl_gsd.config_choices import GROUPS, choices\n"
        "print(verl_gsd.__file__)\n"
        "print({group: choices(group) for group in GROUPS})",
        cwd=tmp_path,
    ).splitlines()
    assert Path(where).is_relative_to(interpreter.parents[1])
    assert known == str({group: choices(group) for group in GROUPS}), "recipes too"
    assert "algos" in run(command, "--help", cwd=tmp_path)
    assert "algo=gsd" in run(command, "algos", cwd=tmp_path)


def test_a_type_checker_reads_the_types_of_an_installed_wheel(installed, tmp_path):
    """Without py.typed, mypy takes everything in the package for Any."""
    interpreter, _ = installed
    (tmp_path / "user.py").write_text("from verl_gsd.dotted_keys import value_at\nreveal_type(value_at)\n")
    options = ("--config-file=", "--follow-imports=silent", "--python-executable", str(interpreter))
    revealed = run(*module_command("mypy", *options, "user.py"), cwd=tmp_path)
    assert "key: str" in revealed
