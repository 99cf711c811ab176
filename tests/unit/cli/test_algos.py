"""``verl-gsd algos``: one line per choice of ``algo=``, with what its extensions declare that they need."""

import re
import subprocess

import pytest
import third_party
from typer.testing import CliRunner

from verl_gsd import extension
from verl_gsd.cli import algos
from verl_gsd.cli.main import app
from verl_gsd.config_choices import about, choices
from verl_gsd.extension import Conflict, Declaration, register


@pytest.fixture
def declared(monkeypatch):
    """Declarations of the test are forgotten after it."""
    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", [])


def needs_of(entries):
    return {entry.word: entry.needs for entry in entries}


def test_every_choice_is_a_row_with_one_sentence():
    entries = list(algos.algorithm_entries())
    assert [entry.word for entry in entries] == [f"algo={name}" for name in choices("algo")]
    for entry in entries:
        assert re.fullmatch(r".{20,160}\.", entry.about), entry
    output = CliRunner().invoke(app, ["algos"], env={"COLUMNS": "400"})
    assert output.exit_code == 0 and output.stderr == ""
    for entry in entries:
        assert re.search(rf"^│ {re.escape(entry.word)} +│ {re.escape(entry.about)} +│", output.stdout, re.MULTILINE)


def test_no_word_is_cut_off_in_a_terminal_of_80_columns():
    done = CliRunner().invoke(app, ["algos"], env={"COLUMNS": "80"})
    assert done.exit_code == 0 and max(map(len, done.stdout.split("our trainer modes: ")[0].splitlines())) <= 80
    for entry in (*algos.algorithm_entries(), *algos.addition_entries()):
        assert f"│ {entry.word} " in done.stdout


def test_two_words_for_one_algorithm_say_so():
    about_of = {entry.word: entry.about for entry in algos.algorithm_entries()}
    assert "the same as hadw_grpo" in about_of["algo=hadw"] and "the same as hadw" in about_of["algo=hadw_grpo"]


def test_needs_are_those_that_extensions_declare():
    needs = needs_of(algos.algorithm_entries())
    judge, demonstrations = (extension.declared(f"dagrpo.{part}").needs for part in ("judge", "demonstrations"))
    assert needs["algo=grpo"] == needs["algo=gsd"] == ()
    assert needs["algo=dapo"] == ("acc",), "dynamic sampling filters by it"
    assert needs["algo=hadw"] == ("acc", "our trainer modes")
    assert needs["algo=gvpo"] == ("our trainer modes",)
    assert needs["algo=dagrpo_mask"] == (judge, "our trainer modes")
    assert needs["algo=dagrpo_anchors"] == (demonstrations, "acc", "our trainer modes")
    assert needs["algo=dagrpo"] == (judge, demonstrations, "acc", "our trainer modes")


def test_extensions_without_a_choice_of_algo_are_additions():
    assert needs_of(algos.addition_entries()) == {
        "budget=adaptive": ("acc", "trainer_mode gsd_sync"),
        "sampler=disagreement": ("acc", "our trainer modes"),
        "silent_groups=left_out": ("our trainer modes",),
    }
    assert all(entry.about for entry in algos.addition_entries())


def test_an_extension_of_another_package_without_a_choice_is_named_by_its_section(declared):
    conflict = Conflict("trainer.v1.trainer_mode=gsd_sync|sync", "it is late", "Set another mode.")
    register(
        Declaration("mine", "theirs:Mine", needs_groups=False, about="Mine it.", needs="a mine", conflicts=(conflict,))
    )
    (mine,) = (entry for entry in algos.addition_entries() if "mine" in entry.word)
    modes = "trainer_mode colocate_async or separate_async or gsd_colocate_async or gsd_separate_async"
    assert mine == algos.ListedChoice("algorithm.gsd.mine", "Mine it.", ("a mine", modes))


def test_an_installed_package_adds_its_algorithm(tmp_path):
    environment = third_party.install(tmp_path) | {"COLUMNS": "400"}
    code = "from verl_gsd.cli.main import app; app(['algos'], prog_name='verl-gsd')"
    done = subprocess.run([third_party.PYTHON, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (row,) = re.findall(r"^│ algo=trend .*$", done.stdout, re.MULTILINE)
    assert "Trend on GRPO: groups below the running accuracy" in row and "our trainer modes" in row


def test_a_base_of_another_package_that_does_not_exist_is_named(declared, tmp_path, monkeypatch):
    (tmp_path / "broken" / "algo").mkdir(parents=True)
    (tmp_path / "broken" / "__init__.py").write_text("")
    (tmp_path / "broken" / "algo" / "broken.yaml").write_text("# Broken.\ndefaults:\n  - gpro\n  - _self_\n")
    monkeypatch.syspath_prepend(tmp_path)
    register(Declaration("broken", "broken:Broken", configs="broken"))
    done = CliRunner().invoke(app, ["algos"])
    assert done.exit_code == 2 and "algo=broken" in done.stderr and "gpro" in done.stderr


@pytest.mark.parametrize(
    ("comment", "sentence"),
    [
        ("# Dr. X (arXiv 1.2): all, i.e. both. Then one.\n", "Dr. X (arXiv 1.2): all, i.e. both."),
        ("# One line\n# and another.\n# More.\nkey: 1\n", "One line and another."),
        ("# No full stop\nkey: 1\n# Not this.\n", "No full stop"),
        ("key: 1\n", ""),
    ],
)
def test_what_a_file_is_about_is_the_first_sentence_of_its_comment(tmp_path, monkeypatch, comment, sentence):
    (tmp_path / "one.yaml").write_text(comment)
    monkeypatch.setattr("verl_gsd.config_choices._RECIPES", tmp_path)
    assert about("recipe", "one") == sentence
