"""A small benchmark, a small model and its checkpoint, and the evaluation command."""

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.evaluation import benches
from verl_gsd.evaluation.answers import Answers, write_part
from verl_gsd.tasks import byte_llama


def prepared_sums(tmp_path):
    """A benchmark of 70 sums, prepared with verl-gsd prepare."""
    rows = ({"problem": f"{n}+1?", "answer": n + 1} for n in range(70))
    (tmp_path / "mini.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["prepare", "mini", "--input", str(tmp_path / "mini.jsonl"), "--split", "test", "--suffix", ""]
    done = CliRunner().invoke(app, [*words, "--data", str(tmp_path / "data")])
    assert done.exit_code == 0, done.output
    return benches.find_bench("mini", tmp_path / "data", tmp_path / "arithmetic")


def random_model(folder):
    """The embedded task's model with random weights, in the format that the merger writes."""
    tokenizer = byte_llama.build_tokenizer()
    byte_llama.build_model(tokenizer, seed=0).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def unmerged_checkpoint(run, model):
    """A checkpoint of step 4 as verl writes it, except for the contents of the shards."""
    folder = run / "global_step_4"
    actor = folder / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_bytes((model / "config.json").read_bytes())
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    for rank in range(2):
        (actor / f"model_world_size_2_rank_{rank}.pt").write_bytes(b"weights")
    (run / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


def evaluate(*words, code=0):
    done = CliRunner().invoke(app, ["eval", *map(str, words)], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output + done.stderr
    return " ".join((done.stderr if code else done.output).split())


def answers_of(mini, texts):
    """``texts``: one per question; each is both samples of its question."""
    shape = (len(mini.questions), 2)
    return Answers([[text, text] for text in texts], np.full(shape, 3), np.zeros(shape, bool))


def rows_of(part, samples):
    return [
        {"question": question, "sample": sample, "text": f"{question} {sample}", "tokens": 3, "cut_off": sample == 1}
        for question in part
        for sample in range(samples)
    ]


def answer_all(job, engines, folder, on_part):
    """Replaces vLLM: every answer is right, and one sample of the first question is cut off."""
    for task in job.tasks:
        for number in task.missing_parts():
            rows = rows_of(task.parts()[number], task.samples)
            right = [
                row | {"text": str(row["question"] + 1), "cut_off": row["question"] + row["sample"] == 0}
                for row in rows
            ]
            write_part(Path(task.folder), number, right)
    on_part()
