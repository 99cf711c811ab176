"""Commands that extensions declare: they are listed and run like ours, and cannot replace ours."""

import os
import re
import subprocess
import sys
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from verl_gsd import extension
from verl_gsd.cli import judge, lab
from verl_gsd.cli.main import app
from verl_gsd.extension import COMMANDS, Declaration, register

OURS = (
    *("train", "algos", "lab", "report", "compare", "eval", "verify", "judge", "export", "prepare", "plan"),
    *("submit", "status", "logs", "stop"),
    *("audit-bias", "doctor", "contract"),
)


def show(run: str, times: int = 1):
    """Show a run. It has more to say.

    Examples:
        verl-gsd show RUN
        verl-gsd show RUN --times 2
    """
    typer.echo(f"{run} " * times)


@pytest.fixture
def third_party(monkeypatch):
    """Declare another package's commands, which are forgotten after the test."""
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", [])
    module = ModuleType("theirs")
    module.show = show
    monkeypatch.setitem(sys.modules, "theirs", module)
    return lambda **commands: register(
        Declaration("mine", "theirs:Mine", commands={name.replace("_", "-"): place for name, place in commands.items()})
    )


def invoke(*words):
    return CliRunner().invoke(app, list(words), env={"COLUMNS": "160"})


def listed(*group):
    """The commands in the help of a group."""
    help_ = invoke(*group, "--help")
    assert help_.exit_code == 0, help_.output
    return re.findall(r"^│ ([a-z][a-z-]+) ", help_.output, re.MULTILINE)


def python(code, path=""):
    """What a process prints whose Python finds the packages in ``path``."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *sys.path]), "COLUMNS": "160"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)


def install(folder, commands):
    """Write a package, with the distribution's name third-party-tally, that declares these commands."""
    declaration = f"Declaration('tally', 'third_party_tally:Tally', commands={commands})"
    (folder / "third_party_tally.py").write_text(
        f"from verl_gsd.extension import Declaration, register\nregister({declaration})\n"
        "def count(run: str):\n    '''Count what a run has.'''\n    print('counting', run)\n"
    )
    metadata = folder / "third_party_tally-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-tally\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl_gsd.extensions]\ntally = third_party_tally\n")


RUN = "import sys; sys.argv = {words!r}; from verl_gsd.cli.main import app; app(prog_name='verl-gsd')"


def test_help_lists_the_commands_of_all_extensions_in_one_order():
    assert tuple(listed()) == OURS
    assert listed("judge") == ["score", "calibrate", "distill"]


def test_help_groups_commands_by_what_users_want_to_do():
    rows = re.findall(r"^╭─ (.+?) ─+╮$|^│ ([a-z][a-z-]+) ", invoke("--help").output, re.MULTILINE)
    panels = {}
    for title, command in rows:
        if title:
            panels[title], latest = [], title
        elif command:
            panels[latest].append(command)
    assert list(panels) == [
        *("Options", "Train", "Look at runs", "Evaluate models", "Prepare data", "Train on a cluster"),
        *("Commands of algorithms", "Check this machine"),
    ]
    assert panels["Train on a cluster"] == ["submit", "status", "logs", "stop"]
    assert panels["Commands of algorithms"] == ["audit-bias"], "what extensions declare"


def test_names_that_an_extension_cannot_have_are_those_of_our_own_commands():
    assert COMMANDS.keys() == {"", "lab", "judge"}
    for group, own in ((app, COMMANDS[""]), (lab.app, COMMANDS["lab"]), (judge.app, COMMANDS["judge"])):
        assert sorted(typer.main.get_command(group).commands) == sorted(own)


def test_help_is_shown_without_importing_what_takes_time():
    """Typer itself imports pydantic for the help of a command."""
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom verl_gsd.cli.main import app\n"
        "for words in ([], ['judge'], ['audit-bias'], ['judge', 'calibrate']):\n"
        "    print(CliRunner().invoke(app, [*words, '--help']).exit_code)\n"
        "    heavy = {'torch', 'verl', 'ray', 'vllm', 'numpy', 'omegaconf', 'hydra', 'pyarrow', 'scipy'}\n"
        "    print(*sorted((heavy if words else heavy | {'pydantic'}) & sys.modules.keys()))"
    )
    assert python(script).stdout == "0\n\n" * 4


def test_another_packages_command_is_listed_after_ours_and_run(third_party):
    third_party(show="theirs:show")
    assert [name for name in listed() if name not in OURS] == ["show"]
    assert listed().index("show") == listed().index("audit-bias") + 1
    assert "Show a run." in invoke("--help").output
    shown = invoke("show", "--help").output
    assert "--times" in shown and "verl-gsd show RUN --times 2" in shown.partition("Examples:")[2]
    done = invoke("show", "RUN", "--times", "2")
    assert (done.exit_code, done.output.split()) == (0, ["RUN", "RUN"])
    assert invoke("show").exit_code == 2


def test_a_package_adds_to_the_group_judge(third_party):
    third_party(**{"judge show": "theirs:show"})
    assert listed("judge") == ["score", "calibrate", "show", "distill"] and "show" not in listed()
    assert invoke("judge", "show", "RUN").output.split() == ["RUN"]


def test_an_installed_package_is_found_by_its_entry_point(tmp_path):
    install(tmp_path, {"tally": "third_party_tally:count"})
    help_ = python(RUN.format(words=["verl-gsd", "--help"]), tmp_path)
    assert (help_.returncode, help_.stderr) == (0, "")
    assert re.search(r"│ tally +Count what a run has\.", help_.stdout)
    done = python(RUN.format(words=["verl-gsd", "tally", "RUN"]), tmp_path)
    assert (done.returncode, done.stdout) == (0, "counting RUN\n")


@pytest.mark.parametrize("name", ["train", "audit-bias", "judge", "judge score", "judge calibrate"])
def test_a_package_cannot_replace_our_command_and_is_named(tmp_path, name):
    install(tmp_path, {name: "third_party_tally:count"})
    found = python(
        "from verl_gsd import extension; print(*extension.rejected(), sep='\\n')\n"
        f"from verl_gsd.cli.main import app\nsys_argv = {['verl-gsd', *name.split(), '--help']!r}\n"
        "import sys; sys.argv = sys_argv; app(prog_name='verl-gsd')",
        tmp_path,
    )
    (problem,) = re.findall("^package .*", found.stdout, re.MULTILINE)
    assert re.search(rf"^package third-party-tally: .*'tally'.*\bverl-gsd {name} already belongs to .*Rename", problem)
    assert "third-party-tally" in found.stderr, "help says why the package's commands are missing"
    assert "Usage: verl-gsd" in found.stdout and "Count what" not in found.stdout


@pytest.mark.parametrize("name", ["mine show", "", "judge", "--help", "judge a b", "Show"])
def test_a_name_that_cannot_be_a_command_is_rejected(third_party, name):
    with pytest.raises(ValueError, match=rf"'mine': .*{re.escape(name)}\b|'mine': '.*' is not a valid command"):
        third_party(**{name: "theirs:show"})


def test_two_packages_cannot_have_one_command(third_party):
    third_party(show="theirs:show")
    with pytest.raises(ValueError, match=r"'other': the command verl-gsd show already belongs to mine"):
        register(Declaration("other", "others:Other", commands={"show": "others:show"}))


@pytest.mark.parametrize("place", ["theirs:absent", "no_such_module:show"])
def test_a_package_whose_command_cannot_be_loaded_leaves_help_as_it_is(third_party, place):
    third_party(show=place)
    help_ = invoke("--help")
    assert help_.exit_code == 0 and "audit-bias" in help_.output
    assert re.search(rf"'mine': its command {place} could not be loaded: ", help_.stderr)
    assert invoke("show", "RUN").exit_code == 2
