"""Helpers of the tests that prepare small tables."""

import json

import pyarrow.parquet as pq
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.preparation import build, sources
from verl_gsd.preparation.item import BOXED


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tmp_path, name, *words, code=0):
    done = CliRunner().invoke(app, ["prepare", name, "--data", str(tmp_path / "data"), *words], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output + done.stderr
    return done.stderr if code else done.output


def made(tmp_path, name, split="train"):
    return pq.read_table(tmp_path / "data" / name / f"{split}.parquet").to_pylist()


def asked(rows):
    return [row["prompt"][0]["content"].removesuffix(BOXED) for row in rows]


class Source:
    """A source that records the rows it yields, and that can be interrupted at one of them."""

    def __init__(self, count, broken_at=None):
        self.count, self.broken_at, self.read = count, broken_at, []

    def rows(self, skip):
        for number in range(skip, self.count):
            if number == self.broken_at:
                raise KeyboardInterrupt
            self.read.append(number)
            yield {"problem": f"Problem {number % 7}?", "answer": str(number % 7 + (number == 12))}


def builder(tmp_path, settings=None, overlap=None):
    source = sources.table("problem", "answer")
    rules = build.FilterRules("mine", overlap)
    return build.SplitBuilder(source, "train", rules, tmp_path, settings or {"made": 1}, lambda row: f"row {row}")
