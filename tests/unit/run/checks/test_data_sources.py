"""Each row's data_source needs a reward function, and a missing file is named with the command that makes it."""

import json

import pytest
from data_cases import jsonl, parquet, row
from omegaconf import OmegaConf

from verl_gsd.preparation.commands import command_for_file
from verl_gsd.preparation.manifest import FORMAT
from verl_gsd.run.checks.data_files import check_data_file
from verl_gsd.run.checks.data_reading import DataReport, open_files

KEY = "data.train_files"


def config(path=None, *, model=False, manager="register", files=()):
    return OmegaConf.create(
        {
            "data": {"prompt_key": "prompt", "custom_cls": {"path": None}, "train_files": list(map(str, files))},
            "reward": {
                "custom_reward_function": {"path": path},
                "reward_model": {"enable": model},
                "reward_manager": {"source": manager},
            },
        }
    )


def problems(file, *args, **settings):
    return list(check_data_file(KEY, str(file), config(*args, **settings)))


def test_unknown_sources_are_named_wherever_they_are_in_the_file(tmp_path):
    rows = [row(data_source="openai/gsm8k")] * 1500 + [row(data_source=name) for name in ("sums", "a", "a")]
    (problem,) = problems(parquet(tmp_path, rows))
    assert problem.startswith(f"{KEY}={tmp_path}/mine.parquet: data_source=a, sums: verl has no reward function")
    assert "reward.custom_reward_function.path" in problem and "reward.reward_model.model_path" in problem
    many = [row(data_source=f"s{number}") for number in range(9)]
    assert "data_source=s0, s1, s2, s3, s4 and 4 more: " in problems(parquet(tmp_path, many))[0]


@pytest.mark.parametrize("source", ["openai/gsm8k", "math_dapo", "aime24", "searchR1_nq"])
def test_sources_of_verl_pass(tmp_path, source):
    assert problems(parquet(tmp_path, [row(data_source=source)])) == []


@pytest.mark.parametrize("source", ["numina_olympiads", "codecontests", "taco", "hiyouga/geometry3k"])
def test_sources_whose_texts_verl_runs_as_code_must_be_chosen(tmp_path, source):
    file = parquet(tmp_path, [row(data_source="openai/gsm8k"), row(data_source=source)])
    (problem,) = problems(file)
    assert f"data_source={source}: " in problem and "Python code" in problem
    assert "custom_reward_function.name=default_compute_score" in problem
    assert problems(file, "pkg://verl.utils.reward_score") == []


@pytest.mark.parametrize("name", ["train[1]", "*", "train?", "{a,b}"])
def test_a_path_that_verl_takes_for_a_pattern_is_rejected(tmp_path, name):
    """verl would read other files than those that were checked."""
    file = parquet(tmp_path, [row(data_source="openai/gsm8k")])
    (problem,) = problems(file.rename(file.with_name(f"{name}.parquet")))
    assert "for a pattern" in problem and "Rename" in problem


@pytest.mark.parametrize("settings", [{"path": "/r.py"}, {"model": True}, {"manager": "importlib"}])
def test_any_other_reward_makes_every_source_right(tmp_path, settings):
    assert problems(parquet(tmp_path, [row(data_source="sums")]), **settings) == []


def test_sources_of_json_files_are_checked_too(tmp_path):
    file = jsonl(tmp_path, [row(data_source="openai/gsm8k"), row(data_source="sums")])
    for path, expected in ((None, 1), ("/r.py", 0)):
        report = DataReport()
        list(open_files(KEY, config(path, files=[file]), None, report))
        assert len(report.problems) == expected and all("data_source=sums: " in text for text in report.problems)


def test_a_prepared_file_needs_its_verifier_even_if_verl_knows_its_source(tmp_path):
    file = parquet(tmp_path, [row(data_source="math")], name="train.parquet")
    entry = {"rows": 1, "sha256": "0", "verifier": "verl_gsd.tasks.maths"}
    manifest = {"format": FORMAT, "name": "math", "splits": {"train": entry}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (problem,) = problems(file)
    assert f"data={tmp_path}" in problem and "reward.custom_reward_function.path=pkg://verl_gsd.tasks.maths" in problem
    assert problems(file, "pkg://verl_gsd.tasks.maths") == []
    for text in ("{}", json.dumps(manifest).replace("verl_gsd.tasks.maths", "mine.evil")):
        (tmp_path / "manifest.json").write_text(text)
        assert problems(file) == []


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("{home}/math/train.parquet", "verl-gsd prepare math"),
        ("{home}/math500/test.parquet", "verl-gsd prepare math500"),
        ("/shared/math/train.parquet", "verl-gsd prepare math --data /shared"),
        ("{home}/mine/train.parquet", "verl-gsd prepare mine --input FILE"),
        ("{home}/mine/test.parquet", "verl-gsd prepare mine --input FILE --split test"),
        ("{home}/math500/train.parquet", None),
        ("{home}/math/rows.parquet", None),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(monkeypatch, tmp_path, path, command):
    monkeypatch.setenv("VERL_GSD_DATA", str(tmp_path))
    path = path.format(home=tmp_path)
    (problem,) = problems(path)
    assert f"{KEY}={path}: the file does not exist. Run `{command or 'verl-gsd prepare'}` to create" in problem
    assert command_for_file(tmp_path / path) == command
