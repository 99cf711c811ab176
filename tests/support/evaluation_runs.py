"""A small benchmark, a small model, and the command that evaluates."""

import json

import numpy as np
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.evaluation import benches
from verl_gsd.evaluation.answers import Answers
from verl_gsd.tasks import byte_llama


def prepared_sums(tmp_path):
    """A benchmark of 70 sums, prepared as a user would."""
    rows = ({"problem": f"{n}+1?", "answer": n + 1} for n in range(70))
    (tmp_path / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prepare", "mini", "--input", str(tmp_path / "mini.jsonl"), "--split", "test", "--suffix", ""]
    done = CliRunner().invoke(app, [*words, "--data", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    return benches.find("mini", tmp_path / "data", tmp_path / "arithmetic")


def random_model(folder):
    """The embedded task's model with random weights, in the merger's form."""
    tokenizer = byte_llama.build_tokenizer()
    byte_llama.build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def evaluate(*words, code=0):
    done = CliRunner().invoke(app, ["eval", *map(str, words)], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output + done.stderr
    return " ".join((done.stderr if code else done.output).split())


def answers_of(mini, texts):
    """``texts``: one a question, twice each."""
    shape = (len(mini.questions), 2)
    return Answers([[text, text] for text in texts], np.full(shape, 3), np.zeros(shape, bool))
