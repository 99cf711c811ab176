"""Small data files, right and wrong, for the tests of what verl reads."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

LEFT_OUT = object()


def row(**changes):
    """A row as verl reads it, with some fields changed or left out."""
    whole = {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": "1+1="}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
    }
    return {name: value for name, value in (whole | changes).items() if value is not LEFT_OUT}


def parquet(folder: Path, rows, schema=None, name="mine.parquet"):
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)
    return folder / name


def jsonl(folder: Path, rows, name="mine.jsonl"):
    (folder / name).write_text("".join(json.dumps(of) + "\n" for of in rows), encoding="utf-8")
    return folder / name


def text(folder: Path, content, name="mine.jsonl"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def with_types(text_type, list_of):
    message = pa.struct([("role", text_type), ("content", text_type)])
    answer = pa.struct([("ground_truth", text_type)])
    return pa.schema([("data_source", text_type), ("prompt", list_of(message)), ("reward_model", answer)])


def _dictionary(folder):
    table = pa.Table.from_pylist([row()] * 2)
    column = table["data_source"].dictionary_encode()
    pq.write_table(table.set_column(0, "data_source", column), folder / "mine.parquet")
    return folder / "mine.parquet"


PARTS = [{"role": "user", "content": [{"type": "text", "text": "1+1="}]}]
CALL = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
CALLING = [
    {"role": "user", "content": "1+1=", "tool_calls": None},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
]

#: name -> (folder -> file or files, config): verl reads these.
RIGHT = {
    "as prepared": (lambda at: parquet(at, [row()] * 3), {}),
    "further columns": (lambda at: parquet(at, [row(note="x", level=3)]), {}),
    "null optional columns": (lambda at: parquet(at, [row(extra_info=None, note=None)]), {}),
    "no optional columns": (lambda at: parquet(at, [row(extra_info=LEFT_OUT)]), {}),
    "large strings": (lambda at: parquet(at, [row()], with_types(pa.large_string(), pa.large_list)), {}),
    "string views": (lambda at: parquet(at, [row()], with_types(pa.string_view(), pa.list_)), {}),
    "a dictionary": (_dictionary, {}),
    "parts": (lambda at: parquet(at, [row(prompt=PARTS)]), {}),
    "a tool's call": (lambda at: parquet(at, [row(prompt=CALLING)]), {}),
    "another prompt key": (lambda at: parquet(at, [row(prompt=LEFT_OUT, ask=PARTS)]), {"prompt_key": "ask"}),
    "numbers as answers": (lambda at: parquet(at, [row(reward_model={"ground_truth": 2})]), {}),
    "two files": (lambda at: [parquet(at, [row()], name="a.parquet"), parquet(at, [row()], name="b.parquet")], {}),
    "files with other columns": (
        lambda at: [parquet(at, [row()], name="a.parquet"), parquet(at, [row(level=3)], name="b.parquet")],
        {},
    ),
    "files with other fields": (
        lambda at: [parquet(at, [row()], name="a.parquet"), jsonl(at, [row(extra_info={"index": 1, "split": "x"})])],
        {},
    ),
    "JSON lines": (lambda at: jsonl(at, [row()] * 3), {}),
    "JSON lines with missing columns": (lambda at: jsonl(at, [row(), row(extra_info=LEFT_OUT)]), {}),
    "JSON lines of text and parts": (lambda at: jsonl(at, [row(), row(prompt=PARTS)]), {}),
    "blank lines": (lambda at: text(at, f"\n{json.dumps(row())}\n\n{json.dumps(row())}\n"), {}),
    "a byte order mark": (lambda at: text(at, "\ufeff" + json.dumps(row())), {}),
    "one JSON list": (lambda at: text(at, json.dumps([row()] * 2, indent=1), "mine.json"), {}),
    "JSON over several lines": (lambda at: text(at, json.dumps(row(), indent=1) * 2, "mine.json"), {}),
}

#: name -> (folder -> file or files, what the message has): verl fails to load these, or trains on nonsense.
WRONG = {
    "other columns": (
        lambda at: parquet(at, [{"problem": "1+1=", "answer": "2"}]),
        r"data_source, prompt, reward_model.*problem, answer",
    ),
    "JSON lines with other columns": (
        lambda at: jsonl(at, [{"problem": "1+1=", "answer": "2"}]),
        r"data_source, prompt, reward_model.*problem, answer",
    ),
    "text": (lambda at: parquet(at, [row(prompt="1+1=")]), r"row 0 .*prompt .*text"),
    "JSON text": (lambda at: jsonl(at, [row(), row(prompt="1+1=")]), r"row 1 .*prompt .*text"),
    "an empty prompt": (lambda at: parquet(at, [row(), row(prompt=[])]), r"row 1 .*prompt .*empty"),
    "no prompt": (lambda at: parquet(at, [row(), row(prompt=None)]), r"row 1 .*prompt .*missing"),
    "one message": (lambda at: parquet(at, [row(prompt=row()["prompt"][0])]), r"row 0 .*prompt .*dict"),
    "texts": (lambda at: parquet(at, [row(prompt=["1+1="])]), r"prompt .*message 0 .*str"),
    "no role": (lambda at: parquet(at, [row(prompt=[{"content": "1+1="}])]), r"message 0 .*role"),
    "no content": (lambda at: parquet(at, [row(prompt=[{"role": "user"}])]), r"message 0 .*content"),
    "a number": (lambda at: parquet(at, [row(prompt=[{"role": "user", "content": 3}])]), r"message 0 .*content"),
    "no answer": (lambda at: parquet(at, [row(reward_model={"style": "rule"})]), r"reward_model .*ground_truth"),
    "an answer as text": (lambda at: parquet(at, [row(reward_model="2")]), r"reward_model .*ground_truth"),
    "JSON without an answer": (
        lambda at: jsonl(at, [row(reward_model={"style": "r"})]),
        r"reward_model .*ground_truth",
    ),
    "extra information as text": (lambda at: parquet(at, [row(extra_info="x")]), r"extra_info "),
    "no rows": (lambda at: parquet(at, [], pa.Table.from_pylist([row()]).schema), r"0 rows"),
    "an empty file": (lambda at: text(at, ""), r"0 rows"),
    "no rows in one of two": (
        lambda at: [
            parquet(at, [row()], name="a.parquet"),
            parquet(at, [], pa.Table.from_pylist([row()]).schema, name="b.parquet"),
        ],
        r"b\.parquet: .*0 rows",
    ),
    "a line that is no JSON": (
        lambda at: text(at, f"{json.dumps(row())}\n{{wrong\n{json.dumps(row())}\n"),
        r"mine\.jsonl: line 2 .*JSON",
    ),
    "a last line cut off": (
        lambda at: text(at, f"{json.dumps(row())}\n{json.dumps(row())[:40]}"),
        r"line 2 .*JSON",
    ),
    "a line in Latin-1": (
        lambda at: text(
            at, f"{json.dumps(row())}\n{json.dumps(row(data_source='é'), ensure_ascii=False)}\n".encode("latin-1")
        ),
        r"line 2 .*UTF-8.*byte 18",
    ),
    "lines of numbers": (lambda at: text(at, "3\n4\n"), r"line 1 .*JSON object"),
    "JSON in one object": (lambda at: text(at, json.dumps({"data": [row()]}), "mine.json"), r"data_source"),
    "answers of two types": (
        lambda at: [
            parquet(at, [row()], name="a.parquet"),
            parquet(at, [row(reward_model={"style": "rule", "ground_truth": 2})], name="b.parquet"),
        ],
        r"b\.parquet: .*ground_truth .*int64.*string",
    ),
    "messages of two types": (
        lambda at: [
            parquet(at, [row()], name="a.parquet"),
            parquet(at, [row(prompt=[{"role": "user", "content": "x", "name": "me"}])], name="b.parquet"),
        ],
        r"b\.parquet: .*column prompt ",
    ),
}
