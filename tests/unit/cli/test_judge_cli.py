"""The commands of ``verl-gsd judge``: score, calibrate, distill, and their errors."""

import asyncio
import csv
import json
import math
import random
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_gsd.cli.judge import app
from verl_gsd.judge import stub
from verl_gsd.judge.cache import ScoreCache
from verl_gsd.judge.calibration import auc
from verl_gsd.judge.scorer import JudgementError, Question
from verl_gsd.judge.stub import StubScorer


def invoke(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160"})


def flat(text):
    return re.sub(r"\s+", " ", text)


def made_rows(problems=12, each=6):
    """Right and wrong answers to sums, with markup and commas in the texts."""
    rng = random.Random(0)
    rows = []
    for _ in range(problems):
        a, b = rng.randrange(100, 900), rng.randrange(100, 900)
        for place in range(each):
            correct = rng.random() < 0.5
            answer = a + b if correct else a + b + rng.randrange(1, 300)
            response = f'[bold]try {place}[/nope], "so":\n{answer}'
            rows.append({"problem": f"{a}+{b}=?", "response": response, "reference": str(a + b)})
            rows[-1]["correct"] = correct
    return rows


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_a_file_is_scored_and_calibrated(tmp_path, suffix):
    rows = made_rows()
    file, output, report = write(tmp_path / f"rows{suffix}", rows), tmp_path / f"out{suffix}", tmp_path / "report.json"
    done = invoke("score", file, "--output", output, "--scorer", "stub")
    assert done.exit_code == 0, done.output
    assert re.search("72 responses: 72 calls .* 0 from the cache", flat(done.output))
    written = read(output)
    scores = [float(row.pop("judge_score")) for row in written]
    assert written == read(file), "the rows are as they were"
    assert scores == [expected(row) for row in rows]

    done = invoke("calibrate", output, "--json", report)
    assert done.exit_code == 0, done.output
    correct = np.array([row["correct"] for row in rows])
    assert re.search(rf"AUC.*: {auc(np.array(scores), correct):.3f} \[", done.output)
    assert re.search(r"10 +│ +\d+ +│ █", done.output)
    report_json = json.loads(report.read_text())
    assert report_json["overall"]["value"] == auc(np.array(scores), correct)
    assert [entry["delta"] for entry in report_json["mask"]["by_delta"]] == ["-inf", 0, 1, 3, 5]
    assert len(report_json["sweep"]) == 18 and sum(report_json["histograms"]["right"]["counts"]) == correct.sum()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([file.name, output.name, report.name])


def expected(row):
    return asyncio.run(StubScorer().score(Question(row["problem"], row["reference"], row["response"])))


def test_an_interrupted_command_resumes_from_the_cache(tmp_path, monkeypatch):
    file, output, cache = write(tmp_path / "rows.jsonl", made_rows()), tmp_path / "out.jsonl", tmp_path / "cache"
    asked = []

    class Stopped(StubScorer):
        async def score(self, question):
            asked.append(question)
            if len(asked) == 40:
                raise RuntimeError("pulled the plug")
            return await super().score(question)

    monkeypatch.setattr(stub, "StubScorer", Stopped)
    words = ("score", file, "--output", output, "--scorer", "stub", "--cache", cache, "--concurrency", "1")
    assert isinstance(invoke(*words).exception, RuntimeError) and not output.exists()
    monkeypatch.setattr(stub, "StubScorer", StubScorer)
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    hits = int(re.search(r"(\d+) from the cache", flat(done.output))[1])
    assert hits == len(asked) - 1 >= 39, "what was paid for before is not asked again"
    assert [row["judge_score"] for row in read(output)] == [expected(row) for row in made_rows()]
    assert "72 responses: 0 calls; 72 from the cache" in flat(invoke(*words).output)


def test_failures_are_null_and_counted_and_no_score_at_all_exits_with_1(tmp_path, monkeypatch):
    file, output = write(tmp_path / "rows.jsonl", made_rows()), tmp_path / "out.jsonl"

    class Failing(StubScorer):
        broken = staticmethod(lambda question: "try 3" in question.response)

        async def score(self, question):
            if self.broken(question):
                raise JudgementError("unreadable", "[/red] no score")
            return await super().score(question)

    monkeypatch.setattr(stub, "StubScorer", Failing)
    words = ("score", file, "--output", output, "--scorer", "stub")
    done = invoke(*words)
    assert done.exit_code == 0 and "12 judgements failed: unreadable 12." in flat(done.output)
    assert [row["judge_score"] is None for row in read(output)] == ["try 3" in row["response"] for row in made_rows()]
    done = invoke("calibrate", output)
    assert done.exit_code == 0 and re.search(r"failed +│ \d+ +│ \d+\.\d% ", done.output)
    output.unlink()
    Failing.broken = staticmethod(lambda question: True)
    done = invoke(*words)
    assert done.exit_code == 1 and "score" in flat(done.stderr) and not output.exists()


def test_a_server_that_does_not_run_is_rejected(tmp_path):
    file = write(tmp_path / "rows.jsonl", made_rows(problems=1, each=2))
    words = ("score", file, "--output", tmp_path / "out.jsonl", "--scorer", "openai", "--model", "m")
    done = invoke(*words, "--base-url", "http://127.0.0.1:9/v1", "--timeout", "2")
    assert done.exit_code == 2 and "http://127.0.0.1:9/v1" in flat(done.stderr)


def test_the_options_reach_the_scorer(tmp_path, monkeypatch):
    """Tests only the settings. test_openai_scorer.py tests the calls."""
    given = []
    monkeypatch.setattr("verl_gsd.judge.build.build_scorer", lambda settings: given.append(settings) or StubScorer())
    file = write(tmp_path / "rows.jsonl", made_rows(problems=1, each=2))
    words = ("--base-url", "http://x/v1", "--model", "m", "--answer", "text", "--timeout", "7", "--concurrency", "3")
    done = invoke("score", file, "--output", tmp_path / "out.jsonl", "--scorer", "openai", *words)
    (settings,) = given
    assert done.exit_code == 0 and (settings.scorer, settings.base_url, settings.model) == (
        "openai",
        "http://x/v1",
        "m",
    )
    assert (settings.answer, settings.timeout_s, settings.concurrency) == ("text", 7, 3)


def test_chats_and_files_without_references_are_scored(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1=?"}]
    rows = [{"prompt": chat, "text": f"{number}", "acc": number % 2} for number in range(4)]
    file, output, cache = write(tmp_path / "rows.parquet", rows), tmp_path / "out.parquet", tmp_path / "cache"
    words = ("--problem-column", "prompt", "--response-column", "text", "--cache", cache)
    done = invoke("score", file, "--output", output, "--scorer", "stub", *words)
    assert done.exit_code == 0 and "reference" in flat(done.output)
    with ScoreCache(cache) as kept:
        assert {row.question for row in kept.rows()} == {
            Question("system: Be brief.\nuser: 1+1=?", "", str(number)) for number in range(4)
        }
    done = invoke("calibrate", output, "--correct-column", "acc", "--group-column", "prompt", "--delta", "-inf")
    assert done.exit_code == 0 and "1 mixed groups" in flat(done.output), done.output


FINE = {"problem": "p", "response": "r", "reference": "1", "correct": True, "judge_score": 3.0}


@pytest.mark.parametrize(
    ("change", "words", "message"),
    [
        ({"response": 7}, [], "row 1 .*column response: 7 "),
        ({"response": None}, [], "row 1 .*column response: None "),
        ({"problem": [{"role": "user"}]}, [], "row 1 .*column problem:"),
        ({"reference": True}, [], "row 1 .*column reference: True "),
        ({}, ["--problem-column", "promt"], "column promt .*problem, response, reference"),
        ({}, ["--reference-column", "answer"], "column answer .*problem, response, reference"),
        ({}, ["--scorer", "oracle"], "scorer=oracle: .*openai"),
        ({}, ["--scorer", "reward_model"], "scorer=reward_model"),
        ({}, ["--scorer", "openai"], "base_url"),
        ({}, ["--scorer", "distilled", "--model", "/nowhere"], "verl-gsd judge distill"),
        ({}, ["--answer", "loud"], "answer=loud"),
        ({}, ["--concurrency", "0"], "concurrency=0"),
        ({}, ["--output", "out.csv"], r"out\.csv.*\.jsonl"),
        ({"judge_score": 3}, [], "judge_score"),
    ],
)
def test_score_rejects_invalid_rows_and_options_with_the_fix(tmp_path, monkeypatch, change, words, message):
    monkeypatch.chdir(tmp_path)
    fine = {name: FINE[name] for name in ("problem", "response", "reference")}
    write(tmp_path / "rows.jsonl", [fine, fine | change])
    line = {"--output": "out.jsonl", "--scorer": "stub"} | dict(zip(words[::2], words[1::2], strict=True))
    done = invoke("score", "rows.jsonl", *(word for pair in line.items() for word in pair))
    assert done.exit_code == 2 and re.search(message, flat(done.stderr)), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"problem": 1}\nnot json\n', r"\[x\]\.jsonl, line 2 .*JSON"),
        ("[1]\n", "line 1 .*object"),
        ("", r"\[x\]\.jsonl: .*rows"),
        ("\ud800", r"\[x\]\.jsonl: "),
    ],
)
def test_unreadable_files_are_rejected_by_name(tmp_path, content, message):
    file = tmp_path / "[x].jsonl"
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    for words in (("score", file, "--output", tmp_path / "o.jsonl", "--scorer", "stub"), ("calibrate", file)):
        done = invoke(*words)
        assert done.exit_code == 2 and re.search(message, flat(done.stderr)), done.output


@pytest.mark.parametrize(
    ("suffix", "response"), [(".csv", "long\r\n" * 50_000), (".jsonl", "\ud800 half a character"), (".jsonl", "")]
)
def test_unusual_texts_are_written_unchanged(tmp_path, suffix, response):
    file, output = tmp_path / f"rows{suffix}", tmp_path / f"out{suffix}"
    write(file, [{"problem": "p", "response": response, "reference": "1", "further": ""}])
    done = invoke("score", file, "--output", output, "--scorer", "stub", "--cache", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    (row,) = read(output)
    assert row["response"] == response and list(row)[-1] == "judge_score"


@pytest.mark.parametrize("name", ["no.jsonl", "no.parquet", "rows.txt", "bad.parquet", "bad.csv"])
def test_missing_and_damaged_files_are_rejected_by_name(tmp_path, name):
    if name.startswith("bad"):
        (tmp_path / name).write_text("a,b\n1\n")
    done = invoke("calibrate", tmp_path / name)
    assert done.exit_code == 2 and name in flat(done.stderr), done.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": 0.5}, r"row 1 .*column correct: 0\.5 "),
        ({"correct": "maybe"}, "row 1 .*column correct: 'maybe' .*true.*false"),
        ({"correct": None}, "row 1 .*column correct: None "),
        ({"judge_score": "good"}, "row 1 .*column judge_score: 'good' "),
        ({"judge_score": math.inf}, "row 1 .*column judge_score: inf "),
        ({"problem": None}, "row 1 .*column problem"),
    ],
)
def test_calibrate_rejects_invalid_rows_with_the_fix(tmp_path, change, message):
    done = invoke("calibrate", write(tmp_path / "rows.jsonl", [FINE, FINE | change]))
    assert done.exit_code == 2 and re.search(message, flat(done.stderr)), done.output


def test_undefined_measures_are_explained_and_null_in_the_report(tmp_path):
    report = tmp_path / "report.json"
    done = invoke("calibrate", write(tmp_path / "rows.jsonl", [FINE, FINE]), "--json", report)
    assert done.exit_code == 0 and "2 responses" in flat(done.output)
    report_json = json.loads(report.read_text())
    assert report_json["overall"]["value"] is None and report_json["mask"]["pairs"] == 0 and report_json["sweep"] == []
    apart = [FINE, FINE | {"correct": False, "problem": "q", "judge_score": None}]
    done = invoke("calibrate", write(tmp_path / "rows.jsonl", apart))
    assert re.search("No group .*right .*wrong", flat(done.output))


@pytest.fixture
def judgements(tmp_path):
    """A cache with 60 scores by one judge (the share of the letter a) and one score by another."""
    with ScoreCache(tmp_path / "cache") as kept:
        rng = random.Random(0)
        for problem in range(15):
            for score in rng.sample(range(11), 4):
                letters = ["a"] * score + ["x"] * (10 - score)
                rng.shuffle(letters)
                kept.put("first judge", Question(f"p{problem}", "", "".join(letters)), float(score))
        kept.put("[b]other", Question("p0", "", "r"), 5.0)
    return tmp_path / "cache"


def test_a_cache_is_distilled_and_the_head_scores_responses(tmp_path, tiny_task, judgements):
    words = ("distill", "--cache", judgements, "--encoder", tiny_task / "model", "--output", tmp_path / "head")
    done = invoke(*words)
    assert (
        done.exit_code == 2 and "--judge" in done.stderr and "'first judge' (60); '[b]other' (1)" in flat(done.stderr)
    )
    done = invoke(*words, "--judge", "[b]other")
    assert done.exit_code == 2 and "1 judgements on 1 problems" in flat(done.stderr)
    done = invoke(*words, "--judge", "first judge")
    assert done.exit_code == 0, done.output
    output_text = flat(done.output)
    assert re.search(r"\b48 .*\b12 ", output_text)
    assert float(re.search(r"order: ([\d.]+)%", output_text)[1]) > 80
    rows = [{"problem": "new", "response": text} for text in ("aaaaaaaaaa", "aaaaaxxxxx", "xxxxxxxxxx")]
    file, output = write(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
    done = invoke("score", file, "--output", output, "--scorer", "distilled", "--model", tmp_path / "head")
    assert done.exit_code == 0, done.output
    scores = [row["judge_score"] for row in read(output)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    done = invoke(*words, "--judge", "first judge")
    assert done.exit_code == 2 and f"{tmp_path}/head" in flat(done.stderr).replace(" ", "")


def test_distill_rejects_invalid_files_by_name(tmp_path, tiny_task, judgements):
    for cache, encoder, message in (
        (tmp_path / "none", tiny_task / "model", "none: "),
        (judgements, tmp_path, "config.json"),
        (tiny_task / "manifest.json", tiny_task / "model", "manifest.json"),
    ):
        words = ("--cache", cache, "--encoder", encoder, "--output", tmp_path / "head", "--judge", "first judge")
        done = invoke("distill", *words)
        assert done.exit_code == 2 and message in flat(done.stderr), done.output
        assert not (tmp_path / "head").exists() and not (tmp_path / "none").exists()
