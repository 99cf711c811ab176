"""The rows that a rehearsal takes from a run's data."""

import pyarrow.parquet as pq
import pytest
from data_cases import jsonl, parquet, row
from omegaconf import OmegaConf

from verl_gsd.errors import ConfigError
from verl_gsd.run.rehearsal.data import FIRST_ROWS, write_rows


def numbered(texts, **columns):
    """Rows in verl's columns, with a prompt per text and its position as index."""
    return [
        row(prompt=[{"role": "user", "content": text}], extra_info={"index": index}, **columns)
        for index, text in enumerate(texts)
    ]


def written(folder, files, count, demonstrations=None):
    config = {
        "data": {"train_files": [str(file) for file in files], "prompt_key": "prompt"},
        "reward": {"custom_reward_function": {"path": "mine.py"}, "reward_model": {"enable": False}},
        "algorithm": {"gsd": {"dagrpo": {"demonstrations": demonstrations}}},
    }

    def lengths(chats):
        return [len(chat[0]["content"]) or "the template rejects it" for chat in chats]

    return write_rows(OmegaConf.create(config), "data.train_files", folder / "out", count, lengths, len)


def test_the_shortest_prompts_are_taken_in_order_with_all_columns(tmp_path):
    file = parquet(tmp_path, numbered(["x" * 9, "x" * 2, "", "x" * 3], level="hard"))
    data = written(tmp_path, [file], 2)
    rows = pq.read_table(data.files[0]).to_pylist()
    assert rows == data.rows and [one["extra_info"]["index"] for one in rows] == [1, 3]
    assert rows[0]["level"] == "hard" and pq.read_schema(data.files[0]) == pq.read_schema(file)
    assert data.prompt_tokens == 3 and data.demonstration_tokens == 0 and len(data.read) == 4


def test_every_file_gives_as_many_rows_from_its_beginning(tmp_path):
    first = parquet(tmp_path, numbered(["xxx"] * FIRST_ROWS + ["x"]))
    second = jsonl(tmp_path, numbered(["xxxxx"] * 9))
    data = written(tmp_path, [first, second], 4)
    assert [pq.read_table(file).num_rows for file in data.files] == [2, 2]
    assert data.prompt_tokens == 5, "the short prompt is too far from the beginning"


def test_short_demonstrations_are_preferred_and_measured(tmp_path):
    rows = [
        one | {"demonstration": ["x" * length]}
        for one, length in zip(numbered(["xx", "xy", "xz"]), (30, 4, 6), strict=True)
    ]
    settings = {"source": "expert", "column": "demonstration"}
    data = written(tmp_path, [parquet(tmp_path, rows)], 2, settings)
    assert [one["extra_info"]["index"] for one in data.rows] == [1, 2] and data.demonstration_tokens == 6
    assert written(tmp_path, [parquet(tmp_path, rows)], 2, settings | {"source": "self"}).demonstration_tokens == 0


def test_prompts_that_repeat_are_taken_last(tmp_path):
    file = parquet(tmp_path, numbered(["xx", "xx", "yyy", "zzzz"]))
    assert [one["extra_info"]["index"] for one in written(tmp_path, [file], 3).rows] == [0, 2, 3]
    assert [one["extra_info"]["index"] for one in written(tmp_path, [file], 4).rows] == [0, 1, 2, 3]


def test_a_template_that_rejects_every_prompt_is_found(tmp_path):
    with pytest.raises(ConfigError, match="the template rejects it"):
        written(tmp_path, [parquet(tmp_path, numbered(["", ""]))], 2)


def test_a_file_that_cannot_be_read_is_found(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.train_files=.*reward_model"):
        written(tmp_path, [parquet(tmp_path, [{"prompt": "text"}])], 2)
