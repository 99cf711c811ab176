"""``verl-gsd verify``: verdicts, rules and second opinions about a table, dumps and a run, and its errors."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile_server import HostileServer, completion, http
from own_runs import make_own
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.evaluation.pairs import Pair, PairColumns, math_verify_all, read_pairs
from verl_gsd.solve_rates import read_solve_rates
from verl_gsd.tasks import maths

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e]")

#: Response, reference, verdict, rule, math-verify's own verdict.
ROWS = [
    (r"so \boxed{\frac{1}{2}}", "0.5", True, "numbers", True),
    (r"so \boxed{6=5}", "5", False, "contradiction", True),
    (r"so \boxed{\sqrt{18}}", r"3\sqrt{2}", True, "algebra", True),
    (r"so \boxed{\text{none}}", "3", False, "doubtful", False),
    ("I do not know what to say about it.", "3", False, "no answer", False),
    (r"so \boxed{9^{9^{9^{9}}}}", "3", False, "too large", None),
]


def invoke(*words, columns=300):
    done = CliRunner().invoke(app, ["verify", *map(str, words)], env={"COLUMNS": str(columns)})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def flat(text):
    return re.sub(r"\s+", " ", text)


def lines_in(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def table(tmp_path):
    rows = [{"response": response, "answer": reference, "other": 1} for response, reference, *_ in ROWS]
    return lines_in(tmp_path / "pairs.jsonl", rows)


def dumped(response, reference, uid, **more):
    return {
        "input": "user\nHow much?",
        "output": response,
        "gts": reference,
        "score": 1.0,
        "step": 3,
        "uid": uid,
    } | more


def by_place(line):
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_verdicts_rules_and_second_opinions_are_printed(table):
    done = invoke(table)
    assert done.exit_code == 0, done.output
    cells = {row[0]: row[1:] for row in map(by_place, done.output.splitlines()) if len(row) == 6}
    for number, (_, reference, right, rule, second) in enumerate(ROWS):
        answer, printed_reference, verdict, printed_rule, opinion = cells[f"row {number}"]
        assert (printed_reference, printed_rule) == (reference, rule) and answer
        assert verdict == ("unverified" if rule == "too large" else "right" if right else "wrong")
        if second is not None:
            assert opinion == ("right" if second else "wrong") + (" (differs)" if second != right else "")
    assert cells["row 4"][0] == "I do not know what to say about it."
    assert cells["row 0"][0] == r"\frac{1}{2}", "what was answered, not the reference that it equals"
    text = flat(done.output)
    assert (
        "6 pairs: 2 right, 1 unverified and 1 doubtful (these count as wrong). The second opinion differs on 1" in text
    )
    assert "The run had" not in text
    for rule in {rule for *_, rule, _ in ROWS}:
        assert maths.RULES[rule] in text


def test_equal_pairs_are_compared_once_and_counted(monkeypatch):
    asked, done = [], []
    monkeypatch.setattr(maths, "is_right_by_math_verify", lambda *texts: asked.append(texts) or texts[1] == "3")
    pairs = [Pair("", "", response, "3") for response in "3343"] + [Pair("", "", "3", "5", is_answer=True)]
    pairs.append(Pair("", "", "x" * 10**5, "3"))
    assert math_verify_all(pairs, done.append) == [True] * 4 + [False, None]
    assert sorted(asked) == [("3", "3"), ("4", "3"), (r"\boxed{3}", "5")] and done == [3, 4, 5, 6]


def test_pairs_to_look_at_are_printed_first_if_there_are_many(table):
    done = invoke(table, "--show", 2)
    places = re.findall(r"row \d", done.output)
    assert places == ["row 1", "row 3"], "another opinion, then what no rule was sure of"
    assert "1 more pairs to look at. Set --show 3" in flat(done.output)
    assert not re.search(r"row \d", invoke(table, "--show", 0).output)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_all_verdicts_are_written(tmp_path, table, name):
    with table.open("a") as more:
        more.write(json.dumps({"response": "\\boxed{\ud800}", "answer": "\x1b[2J"}) + "\n")
    output = tmp_path / "new" / name
    done = invoke(table, "--show", 0, "--output", output)
    assert done.exit_code == 0 and str(output) in done.output.replace("\n", "")
    rows = pq.read_table(output).to_pylist() if name.endswith("t") else list(map(json.loads, output.open()))
    assert len(rows) == len(ROWS) + 1
    for number, (row, (response, reference, right, rule, second)) in enumerate(zip(rows, ROWS, strict=False)):
        assert (row["pair"], row["response"], row["reference"]) == (f"row {number}", response, reference)
        assert (row["right"], row["rule"], row["run_verdict"]) == (right, rule, None)
        assert (row["unverified"], row["doubtful"]) == (rule == "too large", rule == "doubtful")
        if second is not None:
            assert (row["second_opinion"], row["differs"]) == (second, second != right)
    assert rows[0]["answer"] == r"\frac{1}{2}" and rows[4]["answer"] == "" and not rows[-1]["right"]


def test_columns_have_any_name_and_references_are_read_as_prepare_reads_them(tmp_path):
    rows = [
        {"said": r"\boxed{3}", "reward_model": {"style": "rule", "ground_truth": "3"}},
        {"said": r"\boxed{4}", "reward_model": {"style": "rule", "ground_truth": r"We find \boxed{4}"}},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path := tmp_path / "x.parquet")
    columns = PairColumns(response="said", answer="reward_model")
    assert [(pair.reference, pair.place) for pair in read_pairs(path, columns, pytest.fail)] == [
        ("3", "row 0"),
        ("4", "row 1"),
    ]
    done = invoke(path, "--response-column", "said", "--answer-column", "reward_model")
    assert "2 pairs: 2 right" in flat(done.output), done.output


def test_final_answers_are_compared_without_a_box(tmp_path):
    """A long answer is no line that a response could consist of, and neither is one with an open brace."""
    long = "+".join(f"x^{{{power}}}" for power in range(2, 40))
    rows = [{"response": long, "answer": long}, {"response": r"f(x)=2x \text{ for all real}", "answer": "2x"}]
    rows += [{"response": 3, "answer": 3.0}, {"response": None, "answer": "3"}, {"response": "}3{", "answer": "3"}]
    path = lines_in(tmp_path / "x.jsonl", rows)
    read = read_pairs(path, PairColumns(answers_only=True), pytest.fail)
    assert [pair.final_answer for pair in read] == [long, r"f(x)=2x \text{ for all real}", "3", "", "}3{"]
    output = tmp_path / "out.jsonl"
    assert invoke(path, "--answers-only", "--output", output).exit_code == 0
    verdicts = [json.loads(line) for line in output.open()]
    assert verdicts[0]["rule"] == verdicts[2]["rule"] == "same text" and verdicts[3]["rule"] == "no answer"
    assert [verdict["right"] for verdict in verdicts if verdict["pair"] != "row 1"] == [True, True, False, False]


def test_what_a_run_rewarded_is_compared_with_its_verdicts(tmp_path, monkeypatch):
    """Of a session with two outputs the last one is the response, and padding rows are left out."""
    dumps, run = tmp_path / "rollouts", tmp_path / "run"
    lines_in(dumps / "10.jsonl", [dumped(r"\boxed{4}", "5", "a_0_0", acc=1.0)])
    lines_in(
        dumps / "9.jsonl",
        [
            dumped("I call a tool.", "5", "b_0_0"),
            dumped(r"\boxed{5}", "5", "b_0_1"),
            dumped("", "5", "pad_0_0"),
            dumped(r"\boxed{5}", 5, "b_1_0", score=-1.0),
            dumped(r"\boxed{7}", "5", "b_2_0", acc=None),
        ],
    )
    with (dumps / "9.jsonl").open("a") as file:
        file.write('{"input": "')
    run.mkdir()
    (run / "config.yaml").write_text(json.dumps({"trainer": {"rollout_data_dir": str(dumps)}}))
    make_own(run, monkeypatch)
    notes = []
    pairs = read_pairs(dumps, PairColumns(), notes.append)
    assert [(pair.place, pair.response, pair.rewarded) for pair in pairs] == [
        ("rollouts/9.jsonl, line 2", r"\boxed{5}", True),
        ("rollouts/9.jsonl, line 4", r"\boxed{5}", False),
        ("rollouts/9.jsonl, line 5", r"\boxed{7}", None),
        ("rollouts/10.jsonl, line 1", r"\boxed{4}", True),
    ]
    assert len(notes) == 1 and "9.jsonl, line 6" in notes[0]
    for source in (dumps, run):
        done = invoke(source)
        text = flat(done.output)
        assert done.exit_code == 0 and "The run had another verdict on 2 pairs" in text, done.output
        assert text.count("right (differs)") == 1 and text.count("wrong (differs)") == 1
        assert ("default of verl" in text) == (source == run)


def test_a_response_without_acc_was_counted_as_wrong_if_another_of_its_dump_has_one(tmp_path):
    accuracies = {"a_0_0": (None, 0.0), "a_1_0": (1.0, 1.0), "a_2_0": (None, -1.0), "a_3_0": (None, 0.5)}
    rows = [dumped("7", "7", uid, acc=acc, score=score) for uid, (acc, score) in accuracies.items()]
    lines_in(tmp_path / "1.jsonl", rows)
    pairs = read_pairs(tmp_path, PairColumns(), pytest.fail)
    assert [pair.rewarded for pair in pairs] == [False, True, False, None]


def test_responses_that_the_policy_did_not_generate_in_the_step_are_left_out(tmp_path):
    rows = [
        dumped(r"\boxed{5}", "5", "a_0_0", gsd_origin="policy"),
        dumped(r"\boxed{6}", "5", "a_1_0", gsd_origin="expert"),
        dumped(r"\boxed{7}", "5", "a_8_0", gsd_origin="earlier"),
    ]
    lines_in(tmp_path / "rollouts" / "1.jsonl", rows)
    notes = []
    (pair,) = read_pairs(tmp_path / "rollouts", PairColumns(), notes.append)
    assert pair.response == r"\boxed{5}"
    assert notes == ["rollouts/1.jsonl: 2 demonstrations and responses of earlier steps were left out."]


@pytest.mark.parametrize(
    ("more", "verdict"),
    [
        ({"acc": 1}, True),
        ({"acc": True, "score": 0.3}, True),
        ({"acc": 0.0}, False),
        ({"score": 1.0}, True),
        ({"score": 0.0}, False),
        ({"acc": -1.0}, False),
        ({"acc": 0.3}, None),
        ({"score": 0.3}, None),
        ({"score": -0.4}, None),
        ({"score": 1.2}, None),
    ],
)
def test_a_graded_reward_is_no_verdict(tmp_path, more, verdict):
    """Partial credit above 0 does not say that the run took a wrong response for a right one."""
    lines_in(tmp_path / "1.jsonl", [dumped(r"\boxed{7}", "5", "a_0_0", **more)])
    (pair,) = read_pairs(tmp_path, PairColumns(), pytest.fail)
    assert pair.rewarded is verdict


def test_texts_of_others_are_shown_in_one_short_line_and_obey_nothing(tmp_path):
    clipboard = "\x1b]52;c;cm0gLXJmIH4K\x1b\\"
    rows = [
        {"response": f"[bold]\\boxed{{{clipboard}[/nope]\n\r7}}", "answer": f"{clipboard}8"},
        {"response": "\x9b2J\u202e no box here, but a long text " * 50_000, "answer": "9" * 250},
    ]
    output = tmp_path / "out\x1b[2J.jsonl"
    done = invoke(lines_in(tmp_path / "x.jsonl", rows), "--output", output, columns=400)
    assert done.exit_code == 0, done.output
    assert not CONTROL.search(done.output.replace("\n", ""))
    assert r"\x1b]52" in done.output and "[/nope]" in done.output
    assert max(map(len, done.output.splitlines())) <= 400


def test_an_llm_is_the_second_opinion_if_one_is_named(tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "VERL_GSD_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    async def reply(writer):
        request = server.requests[-1]
        if request is None:  # a list of models, which this server does not have
            writer.write(http(404))
            return
        content = request["messages"][1]["content"]
        writer.write(completion("Incorrect" if r"\boxed{4}" in content and "2+2" in content else "Correct"))

    rows = [{"problem": "2+2=?", "response": r"\boxed{4}", "answer": "4"}]
    path = lines_in(tmp_path / "x.jsonl", rows)
    with HostileServer(reply) as server:
        done = invoke(path, "--verifier-url", server.url, "--verifier-model", "v")
    assert done.exit_code == 0 and "wrong (differs)" in done.output, done.output


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ([], [], r"x\.jsonl: there are no responses"),
        ([{"answer": "3"}], [], r"column response does not exist. Columns: answer"),
        ([{"response": "3"}], [], r"column answer does not exist"),
        ([{"response": 3, "answer": "3"}], [], r"row 0 .*column response: 3 is not a text"),
        ([{"response": "3", "answer": ""}], [], r"row 0 .*column answer: '' contains no answer"),
        ([{"response": "3", "answer": "3"}], ["--output", "out.csv"], r"--output out\.csv: .*\.jsonl or \.parquet"),
        ([{"response": "3", "answer": "3"}], ["--problem-column", "q"], r"--problem-column q: .*--verifier-url"),
        ([{"response": "3", "answer": "3"}], ["--verifier-url", "http://x"], r"--verifier-url and --verifier-model"),
        ([{"response": "3", "answer": "3"}], ["--show", "-1"], r"--show"),
        (
            [{"response": "3", "answer": "3"}],
            ["--verifier-url", "http://127.0.0.1:9/v1", "--verifier-model", "v"],
            r"--verifier-url, --verifier-model: .*127\.0\.0\.1:9",
        ),
        ([dumped("3", "3", "a_0_0")], ["--answers-only"], r"--answers-only: has no effect on .*dumps"),
        ([dumped("3", "3", "a_0_0")], ["--answer-column", "gts"], r"--answer-column: has no effect on .*dumps"),
        ([dumped("3", None, "a_0_0")], [], r"x\.jsonl, line 1 .*field gts: there is no reference"),
        ([dumped(3, "3", "a_0_0")], [], r"x\.jsonl, line 1 .*field output: 3 is not a text"),
        ([dumped("3", "3", "a_0_0", acc="?")], [], r"x\.jsonl, line 1 .*field acc: '\?' is not a number"),
    ],
)
def test_mistakes_are_named(tmp_path, content, words, message):
    done = invoke(lines_in(tmp_path / "x.jsonl", content), *words)
    assert done.exit_code == 2 and re.search(message, flat(done.output)), done.output


def test_an_input_is_not_overwritten(table):
    done = invoke(table, "--output", table)
    assert done.exit_code == 2 and "this is the input" in flat(done.output) and len(table.read_text()) > 100


def test_dumps_outside_the_run_of_somebody_else_are_not_read(tmp_path, monkeypatch):
    """Its config could name private responses of the user who reads it."""
    run, dumps = tmp_path / "run", tmp_path / "rollouts"
    lines_in(dumps / "1.jsonl", [dumped("a private response", "5", "a_0_0")])
    lines_in(run / "rollouts" / "1.jsonl", [dumped("a response of the run", "5", "a_0_0")])
    for folder, expected in ((dumps, None), (run / "rollouts", "a response of the run")):
        (run / "config.yaml").write_text(json.dumps({"trainer": {"rollout_data_dir": str(folder)}}))
        if expected:
            assert [pair.response for pair in read_pairs(run, PairColumns(), print)] == [expected]
            continue
        done = invoke(run)
        assert done.exit_code == 2 and "a private response" not in done.output
        assert f"its config names dumps outside the run, in {dumps}, and nothing shows that you" in flat(done.output)
    (run / "rollouts" / "1.jsonl").unlink()
    (run / "rollouts" / "1.jsonl").symlink_to(dumps / "1.jsonl")
    done = invoke(run / "rollouts")
    assert done.exit_code == 2 and f"a link leads out of {run}/rollouts" in flat(done.output)
    assert "1 pairs" in invoke(run / "rollouts" / "1.jsonl").output, "the user names this file"
    with pytest.raises(ValueError, match=f"a link leads out of {run}/rollouts"):
        read_solve_rates(run / "rollouts")


def test_sources_without_responses_are_errors_that_say_what_to_set(tmp_path, monkeypatch):
    run, empty = tmp_path / "run", tmp_path / "empty"
    empty.mkdir()
    run.mkdir()
    make_own(run, monkeypatch)
    for folders, message in [
        ({}, "stored no responses. Set trainer.rollout_data_dir"),
        ({"rollout_data_dir": None, "validation_data_dir": str(empty)}, f"its dumps are not in {empty}"),
    ]:
        (run / "config.yaml").write_text(json.dumps({"trainer": folders}))
        done = invoke(run)
        assert done.exit_code == 2 and message in flat(done.output), done.output
    for source, message in [
        (empty, "neither a table nor dumps nor a run"),
        (tmp_path / "gone", "no such file or folder"),
        (lines_in(tmp_path / "x.txt", []), "neither a table nor dumps nor a run"),
    ]:
        done = invoke(source)
        assert done.exit_code == 2 and message in flat(done.output), done.output
