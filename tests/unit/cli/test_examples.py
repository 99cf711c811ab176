"""The examples at the end of every help: their commands and options exist, and their words make a config."""

import re
import shlex

import pytest
import typer

from verl_gsd.cli.main import app
from verl_gsd.lab.training.checks import not_studied, parse_lab_line

#: Commands whose arguments are the words of a config. Those of the lab set the hardware, and studies train nothing.
TRAINS = {("train",), ("submit",)}
STUDIES = {("lab", "identity"), ("lab", "bias")}
LABS = {("lab", "train"), *STUDIES}


def commands(command, path=()):
    """Path -> command, for ``command`` and all below it, also those that extensions declare."""
    found = {path: command}
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            found |= commands(command.get_command(context, name), (*path, name))
    return found


COMMANDS = commands(typer.main.get_command(app))


def examples(command):
    title, *lines = (command.epilog or "").split("\n\n")
    assert title == "Examples:"
    return lines


EXAMPLES = [(" ".join(path), line) for path, command in COMMANDS.items() for line in examples(command)]


def parsed(words):
    """The path of the command that the words name, and its parameters."""
    program, *words = words
    assert program == "verl-gsd"
    path = ()
    while words and (*path, words[0]) in COMMANDS:
        path, words = (*path, words[0]), words[1:]
    if hasattr(COMMANDS[path], "list_commands") and words and not words[0].startswith("-"):
        raise LookupError(f"no command {words[0]}")
    return path, COMMANDS[path].make_context(" ".join(path), words).params


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_two_examples_of_itself(path):
    lines = examples(COMMANDS[path])
    assert len(lines) >= 2 and len(set(lines)) == len(lines)
    assert all(" ".join(["verl-gsd", *path]) in line for line in lines) or path in {("algos",)}
    assert all(re.fullmatch(r"[^\[\]\n]{,110}", line) for line in lines), "no markup, one line of a terminal"


@pytest.mark.parametrize(("path", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_an_example_names_commands_and_options_that_exist(path, line, compose_fast):
    for command in line.split(" && "):
        named, parameters = parsed(shlex.split(command))
        if named in TRAINS and not any(word.startswith("resume=") for word in parameters["words"]):
            config, _ = compose_fast(*parameters["words"])
            assert config.algorithm.adv_estimator == "gsd"
        if named in LABS:
            line = parse_lab_line(parameters["words"])
            config, _ = compose_fast(*line.words)
            assert config.hardware.name == "cpu"
        if named in STUDIES:
            has_model = parameters["model"] is not None
            assert list(not_studied(config, line, reads=(), has_model=has_model)) == []


#: Folders of runs that the examples of lab train make.
MADE = re.compile(r"runs/lab/(grpo|dr_grpo)/seed_[1*]")


def test_examples_name_no_folder_that_a_newcomer_lacks():
    """Folders of runs and models are placeholders in capitals, or come from another example."""
    lines = [line for _, line in EXAMPLES]
    assert {"verl-gsd lab train algo=dr_grpo task=arithmetic --seeds 1..16"} < set(lines)
    read = [re.sub(r"verl-gsd export \S+ \S+|--output \S+", "", line) for line in lines]
    folders = [word for line in read for word in re.findall(r"(?<![\w/])(?:runs|models)/\S+", line)]
    assert len(folders) > 3
    assert [folder for folder in folders if not MADE.fullmatch(folder)] == []


def test_an_example_with_a_wrong_option_would_fail(compose_fast):
    for line in ("verl-gsd report runs/first --wach", "verl-gsd judge score scored.jsonl", "verl-gsd trian algo=grpo"):
        with pytest.raises(Exception, match=r"wach|output|trian|command"):
            parsed(shlex.split(line))
