"""The verifier of mathematics, from threads and on hostile text, and tables made into what verl reads."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.sheets import read_sheet
from verl_gsd.tasks import maths
from verl_gsd.tasks.maths_data import SUFFIX, verl_table


def score(answer, truth):
    return maths.compute_score("math", rf"It is \boxed{{1}}, no: \boxed{{{answer}}}.", truth)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{3}", "3"),
        (r"\boxed{1} then \boxed{ \frac{1}{2} } end", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{x", None),
        ("the answer is 3", None),
        ("", None),
        (r"\boxed{" + "9" * 2000 + "}", None),
        (r"\boxed{}", ""),
        (r"$\boxed{1}$, so there are $\boxed 2$ of them.", "2"),
        (r"we get \boxed 9.", "9"),
        (r"\boxed {7} and \boxedly{8}", "7"),
        (r"\fbox{12}", "12"),
        (r"\boxed{\{x : x > 1}", r"\{x : x > 1"),
        (r"\boxed{1\\}", r"1\\"),
        (r"\boxed{\begin{array}{c}1\\{2}\end{array}}", r"\begin{array}{c}1\\{2}\end{array}"),
    ],
)
def test_the_last_box_is_the_answer(text, found):
    assert maths.last_boxed(text) == found


RIGHT = [
    (r"\frac{1}{2}", "0.5"),
    ("x=5", "5"),
    ("10,000", "10000"),
    (r"\{2,1\}", r"\{1,2\}"),
    (r"3\sqrt{2}", r"\sqrt{18}"),
]
WRONG = [("2", "3"), ("(2,1)", "(1,2)"), (r"\text{none}", "3"), ("x+1", "x"), ("", "3"), ("3.1416", r"\pi")]


def test_answers_are_compared_as_mathematics_from_any_thread(monkeypatch):
    """verl calls from threads, where math-verify's own time-outs raise, or answer nothing (verl#3407)."""
    monkeypatch.setattr(maths, "TIMEOUT_S", 120.0)
    with ThreadPoolExecutor(8) as threads:
        right = list(threads.map(lambda pair: score(*pair), RIGHT * 3))
        wrong = list(threads.map(lambda pair: score(*pair), WRONG * 3))
    assert right == [{"score": 1.0, "acc": 1.0, "unverified": 0.0}] * len(right)
    assert wrong == [{"score": 0.0, "acc": 0.0, "unverified": 0.0}] * len(wrong)
    assert maths._idle.qsize() == maths.PROCESSES, "all were given back"


@pytest.mark.parametrize("solution", [None, 3, "no box", r"\boxed{" + "(" * 5000 + "}", r"\boxed{__import__('os')}"])
def test_what_is_no_answer_is_wrong(solution):
    assert maths.compute_score("math", solution, "3") == {"score": 0.0, "acc": 0.0, "unverified": 0.0}


def test_equal_texts_need_no_process(monkeypatch):
    monkeypatch.setattr(maths, "_are_equal", lambda *_: pytest.fail("asked"))
    assert score("9^{9^{9^{9}}}", " 9^{9^{9^{9}}} ")["score"] == 1.0


def test_what_takes_for_ever_is_ended_and_the_next_is_verified(monkeypatch):
    """A comparison that no signal ends, since it is one power of large integers."""
    monkeypatch.setattr(maths, "TIMEOUT_S", 0.5)
    assert score("9^{9^{9^{9}}}", "3") == {"score": 0.0, "acc": 0.0, "unverified": 1.0}
    monkeypatch.setattr(maths, "TIMEOUT_S", 120.0)
    assert score("6/2", "3")["score"] == 1.0


def test_a_worker_that_died_is_replaced(monkeypatch):
    monkeypatch.setattr(maths, "TIMEOUT_S", 120.0)
    assert score("6/2", "3")["score"] == 1.0
    worker = maths._idle.get()
    maths._idle.put(worker)
    worker._process.kill()
    worker._process.wait()
    assert score("6/2", "3")["unverified"] == 1.0
    assert score("6/2", "3")["score"] == 1.0


def test_a_process_that_does_not_start_is_an_error_and_not_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(maths.sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="is math-verify installed"):
        maths._Worker()


def test_processes_end_with_whoever_asked_them():
    code = (
        "from verl_gsd.tasks import maths; maths.compute_score('m', r'\\boxed{6/2}', '3');"
        "print(maths._idle.get()._process.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(60)  # raises if it goes on


def test_a_table_becomes_what_verl_reads(tmp_path):
    (tmp_path / "math.jsonl").write_text(
        "\n".join(
            json.dumps(row)
            for row in (
                {"problem": "1+1?", "solution": r"As one sees, \boxed{2}.", "long": "Well. \\boxed{2}"},
                {"problem": "1/2+1?", "solution": r"\boxed{\frac{3}{2}}", "long": None},
            )
        )
    )
    output = tmp_path / "made" / "train.parquet"
    words = ["--input", str(tmp_path / "math.jsonl"), "--output", str(output), "--answer-column", "solution"]
    done = CliRunner().invoke(app, ["prepare", "maths", *words, "--demonstration-column", "long"])
    assert done.exit_code == 0 and "2 problems, 1 with demonstrations" in done.output, done.output
    first, second = pq.read_table(output).to_pylist()
    assert first == {
        "data_source": "math",
        "prompt": [{"role": "user", "content": "1+1?" + SUFFIX}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0},
        "demonstration": [r"Well. \boxed{2}"],
    }
    assert (second["reward_model"]["ground_truth"], second["extra_info"]["index"]) == (r"\frac{3}{2}", 1)
    assert second["demonstration"] is None
    assert maths.compute_score("math", second["demonstration"] or r"\boxed{1.5}", r"\frac{3}{2}")["acc"] == 1.0
    assert [path.name for path in output.parent.iterdir()] == ["train.parquet"]


def test_a_solution_without_a_box_among_others_is_no_answer(tmp_path):
    rows = [{"problem": "1+1?", "answer": r"\boxed{2}"}, {"problem": "1+2?", "answer": "no box here"}]
    (tmp_path / "math.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["--input", str(tmp_path / "math.jsonl"), "--output", str(tmp_path / "o.parquet")]
    done = CliRunner().invoke(app, ["prepare", "maths", *words], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and "row 1 (the first is 0), column answer: no \\boxed{}" in done.output
    done = CliRunner().invoke(app, ["prepare", "maths", *words, "--judged-by-model", "--answer-column", "answer"])
    assert done.exit_code == 2 and "has no effect beside --judged-by-model" in done.output
    assert not (tmp_path / "o.parquet").exists()


def test_verls_own_columns_can_be_read_too(tmp_path):
    """As published sets have them: a system message, the answer in reward_model, an expert's chat."""
    row = {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "target": [{"role": "assistant", "content": r"\boxed{2}"}],
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "set.parquet")
    sheet = read_sheet(tmp_path / "set.parquet")
    table = verl_table(sheet, "openr1", problem="prompt", answer="reward_model", demonstration="target", suffix="")
    (made,) = table.to_pylist()
    assert made["prompt"] == [{"role": "user", "content": "1+1?"}]
    assert made["reward_model"]["ground_truth"] == "2" and made["demonstration"] == [r"\boxed{2}"]


def test_a_reward_model_needs_no_answers(tmp_path):
    (tmp_path / "posts.csv").write_text("post\nA long story.\n")
    output = tmp_path / "posts.parquet"
    words = ["--input", str(tmp_path / "posts.csv"), "--output", str(output), "--problem-column", "post"]
    assert (
        CliRunner().invoke(app, ["prepare", "maths", *words, "--judged-by-model", "--suffix", " TL;DR:"]).exit_code == 0
    )
    (made,) = pq.read_table(output).to_pylist()
    assert made["prompt"][0]["content"] == "A long story. TL;DR:" and made["reward_model"]["style"] == "model"


@pytest.mark.parametrize(
    ("row", "words", "message"),
    [
        ({"problem": "", "answer": "2"}, [], "row 0 (the first is 0), column problem: write a text"),
        ({"problem": "x?", "answer": None}, [], "row 0 (the first is 0), column answer: write a text, a number"),
        ({"problem": "x?", "answer": "\\boxed{2"}, [], "column answer: no answer in"),
        ({"problem": "x?", "answer": "As one sees. " * 30}, [], "write it alone, or a solution that has it in"),
        ({"problem": "x?", "answer": "2"}, ["--answer-column", "final"], "column final is not there"),
        ({"problem": "x?", "answer": "2", "d": 3}, ["--demonstration-column", "d"], "column d: write a text, a list"),
        ({"problem": "x?", "answer": "2"}, ["--output", "x.json"], "ends in .parquet"),
    ],
)
def test_a_row_that_cannot_be_read_is_named_and_nothing_written(tmp_path, row, words, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    paths = ["--input", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "x.parquet")]
    done = CliRunner().invoke(app, ["prepare", "maths", *paths, *words])
    assert done.exit_code == 2 and message in " ".join(done.stderr.split()), done.stderr
    assert not (tmp_path / "x.parquet").exists()
