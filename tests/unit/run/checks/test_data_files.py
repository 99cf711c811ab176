"""Data files that are rejected before Ray starts. Contract tests compare them with what verl's dataset reads."""

import re

import pytest
from data_cases import WRONG, parquet, row

from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate
from verl_gsd.run.checks.data_files import FILE_KEYS
from verl_gsd.run.checks.prompt_lengths import check_prompts


@pytest.fixture
def check(compose_fast, tiny_task):
    """Both stages that come before Ray, without what verl says of other keys."""

    def check(*words):
        config, line = compose_fast(
            "algo=grpo",
            "task=arithmetic",
            "hardware=cpu",
            f"task.directory={tiny_task}",
            "data.train_batch_size=1",
            "data.max_prompt_length=500",
            *words,
        )
        validate.validate(config, line)
        found = check_prompts(config, remote=False)
        validate.raise_problems(found.problems)
        return found.messages

    return check


def named(files):
    return f"[{','.join(map(str, files))}]" if isinstance(files, list) else str(files)


#: Of WRONG, those of which each file is right by itself.
JOINED = ("answers of two types", "messages of two types")


def named_in(problems, files, message):
    own = [problem for problem in problems if any(str(file) in problem for file in files)]
    return all(any(re.search(rf"{re.escape(key)}=.*{message}", problem) for problem in own) for key in FILE_KEYS)


@pytest.mark.parametrize("is_parquet", [True, False])
def test_all_unreadable_files_are_reported_at_once(check, tmp_path, is_parquet):
    """JSON is read after all Parquet files are right."""
    made = {}
    for name in WRONG:
        (tmp_path / name).mkdir()
        files = WRONG[name][0](tmp_path / name)
        files = files if isinstance(files, list) else [files]
        if name not in JOINED and (files[0].suffix == ".parquet") == is_parquet:
            made[name] = files
    with pytest.raises(ConfigError) as error:
        check(*(f"{key}={[str(file) for files in made.values() for file in files]}" for key in FILE_KEYS))
    assert len(made) > 5
    for name, files in made.items():
        assert named_in(str(error.value).splitlines(), files, WRONG[name][1]), name


@pytest.mark.parametrize("name", JOINED)
def test_files_with_different_column_types_are_reported(check, tmp_path, name):
    make, message = WRONG[name]
    files = make(tmp_path)
    with pytest.raises(ConfigError) as error:
        check(*(f"{key}={named(files)}" for key in FILE_KEYS))
    assert named_in(str(error.value).splitlines(), files, message)


def test_all_files_are_reported_at_once(check, tmp_path):
    for name in ("a", "b"):
        parquet(tmp_path, [row(prompt="x")], name=f"{name}.parquet")
    with pytest.raises(ConfigError) as error:
        check(f"data.train_files={tmp_path}/a.parquet", f"data.val_files=[{tmp_path}/b.parquet,{tmp_path}/c.parquet]")
    assert [line.split(":")[0].rpartition("/")[2] for line in str(error.value).splitlines()] == [
        "a.parquet",
        "b.parquet",
        "c.parquet",
    ]


def test_files_of_a_custom_dataset_class_are_not_checked(check, tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    words = ["data.custom_cls.path=pkg://mine", "data.custom_cls.name=Rows"]
    messages = check(f"data.train_files={tmp_path}/rows.csv", "data.val_files=anything", *words)
    (message,) = messages
    assert message.text.startswith("data.custom_cls.path=pkg://mine: ")


def test_truncation_has_four_values(check):
    with pytest.raises(ConfigError, match=r"data\.truncation=both: .*error, left, right or middle"):
        check("data.truncation=both")
