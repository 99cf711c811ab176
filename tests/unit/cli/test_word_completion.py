"""Completion in a shell, as bash and zsh ask for it: by environment variables."""

import os
import re
import subprocess
import sys

import pytest
from places import ROOT
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.config_choices import GROUPS, choices
from verl_gsd.errors import ConfigError
from verl_gsd.word_completion import completions


def ask(**variables):
    done = CliRunner().invoke(app, [], env={"_TYPER_COMPLETE_TEST": "1", **variables}, prog_name="verl-gsd")
    assert done.exit_code == 0 and done.exception is None, done.output
    return done.stdout


def bash(*words):
    """bash joins its words by newlines, and splits them at ``=``. The last word is the one to complete."""
    shown = ask(_VERL_GSD_COMPLETE="complete_bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1))
    return shown.split()


def zsh(line):
    """zsh hands over the line as it is, and evaluates the answer. Returns completion -> description."""
    shown = ask(_VERL_GSD_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line)
    assert shown.startswith("_arguments '*: :((") or shown.strip() == "_files", shown
    return dict(re.findall(r'^(?:_arguments \'\*: :\(\()?"(.*?)"(?::"(.*?)")?(?:\)\)\')?$', shown, re.MULTILINE))


COMMANDS = [["train"], ["submit"], ["lab", "train"], ["lab", "identity"], ["lab", "bias"]]


@pytest.mark.parametrize("group", GROUPS)
def test_every_choice_of_a_group_is_known(group):
    names = choices(group)
    assert len(names) > 1
    assert bash("verl-gsd", "train", group, "=") == names, "right after ="
    assert list(zsh(f"verl-gsd train {group}=")) == [f"{group}={name}" for name in names]
    beginning = names[0][:3]
    matching = [name for name in names if name.startswith(beginning)]
    assert bash("verl-gsd", "lab", "train", "algo", "=", "grpo", group, "=", beginning) == matching
    assert list(zsh(f"verl-gsd lab train algo=grpo {group}={beginning}")) == [f"{group}={name}" for name in matching]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_that_take_words_complete_them(command):
    line = " ".join(["verl-gsd", *command])
    assert bash("verl-gsd", *command, "") == [f"{group}=" for group in GROUPS]
    assert list(zsh(f"{line} ")) == [f"{group}=" for group in GROUPS]
    assert bash("verl-gsd", *command, "hardware", "=", "8xa") == ["8xa100_80g"]
    assert zsh(f"{line} hardware=8xa") == {"hardware=8xa100_80g": "Eight A100 GPUs of 80 GB in one machine."}


def test_a_single_group_is_completed_with_its_choices():
    """After a single completion a shell adds a space, and ``task= `` is no word."""
    assert bash("verl-gsd", "train", "ta") == [f"task={name}" for name in choices("task")]
    assert bash("verl-gsd", "train", "al") == [f"algo={name}" for name in choices("algo")]
    assert bash("verl-gsd", "train", "s") == ["sampler=", "silent_groups="]


def test_other_words_and_options_are_left_alone():
    for word in ("trainer.nnodes", "resume", "algorithm"):
        assert bash("verl-gsd", "train", word) == []
        assert bash("verl-gsd", "train", word, "=", "g") == []
        assert completions([], f"{word}=g") == []
    assert bash("verl-gsd", "train", "algo", "=", "grpo", "--dry") == ["--dry-run"]
    assert bash("verl-gsd", "repo") == ["report"]


def test_a_description_is_one_line():
    described = [text for group in GROUPS for _, text in completions([], f"{group}=")]
    assert max(map(len, described)) <= 70 and not any("\n" in text for text in described)
    assert sum(map(bool, described)) > len(described) / 2


def test_files_of_another_package_that_are_wrong_only_end_completion(monkeypatch):
    def fail(group):
        raise ConfigError("algo=grpo is defined twice")

    monkeypatch.setattr("verl_gsd.word_completion.choices", fail)
    assert bash("verl-gsd", "train", "algo", "=") == []
    with pytest.raises(ConfigError):
        completions([], "algo=")


def test_completion_imports_nothing_that_takes_time():
    code = (
        "import sys\nfrom verl_gsd.cli.main import app\n"
        "try:\n    app(prog_name='verl-gsd')\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'verl', 'ray', 'vllm', 'numpy', 'omegaconf', 'hydra', 'pyarrow', 'scipy', 'transformers'}\n"
        "print('imported:', *sorted(heavy & sys.modules.keys()))"
    )
    asked = {"_VERL_GSD_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "verl-gsd train algo=dr"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | asked
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "algo=dr_grpo" in done.stdout and done.stdout.endswith("imported:\n"), done.stdout + done.stderr
