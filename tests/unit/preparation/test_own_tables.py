"""Preparing a user's table: what its columns may contain, and which rows are rejected."""

import functools
import json
import re
import shlex

import pytest
from canaries import CANARIES, canaries_in, files_with_a_canary
from prepare_runs import Source, asked, builder, lines, made, run

from verl_gsd.preparation import build, cells, dataset, manifest, sources
from verl_gsd.preparation.commands import command_for_file
from verl_gsd.preparation.dataset import PrepareConfig
from verl_gsd.preparation.item import BOXED
from verl_gsd.preparation.manifest import FORMAT, read_manifest
from verl_gsd.preparation.references import reference_fault
from verl_gsd.run.compose import parse_line
from verl_gsd.tasks import maths


def test_a_table_becomes_what_verl_reads(tmp_path):
    file = lines(
        tmp_path / "math.jsonl",
        {"problem": "1+1?", "solution": r"As one sees, \boxed{2}.", "long": "Well. \\boxed{2}"},
        {"problem": "1/2+1?", "solution": r"\boxed{\frac{3}{2}}", "long": None},
    )
    run(tmp_path, "mine", "--input", str(file), "--answer-column", "solution", "--demonstration-column", "long")
    first, second = made(tmp_path, "mine")
    assert first == {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "1+1?" + BOXED}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"index": 0, "split": "train"},
        "demonstration": [r"Well. \boxed{2}"],
    }
    assert (second["reward_model"]["ground_truth"], second["extra_info"]["index"]) == (r"\frac{3}{2}", 1)
    assert second["demonstration"] is None
    assert maths.compute_score("math", r"\boxed{1.5}", r"\frac{3}{2}")["acc"] == 1.0
    names = {path.name for path in (tmp_path / "data" / "mine").iterdir()}
    assert names == {"train.parquet", "manifest.json", "left_out_train.jsonl", ".lock"}


def test_no_secret_of_the_environment_is_in_a_prepared_data_set(tmp_path, monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    file = lines(tmp_path / "math.jsonl", {"problem": "1+1?", "answer": "2"}, {"problem": "1+1?", "answer": "2"})
    output = run(tmp_path, "mine", "--input", str(file))
    assert (tmp_path / "data" / "mine" / "manifest.json").is_file()
    assert files_with_a_canary(tmp_path) == [] and canaries_in(output.encode()) == []


def test_a_table_in_verls_columns_can_be_read(tmp_path):
    """Published data sets have a system message, the answer in reward_model, and an expert's chat."""
    row = {
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "1+1?"}],
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "target": [{"role": "assistant", "content": r"\boxed{2}"}],
    }
    words = ["--problem-column", "prompt", "--answer-column", "reward_model", "--demonstration-column", "target"]
    run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", row)), *words, "--suffix", "")
    (found,) = made(tmp_path, "mine")
    assert found["prompt"] == row["prompt"]
    assert found["reward_model"]["ground_truth"] == "2" and found["demonstration"] == [r"\boxed{2}"]


def test_one_solution_without_a_box_is_rejected(tmp_path):
    file = lines(
        tmp_path / "m.jsonl", {"problem": "1+1?", "answer": r"\boxed{2}"}, {"problem": "1+2?", "answer": "no box here"}
    )
    said = run(tmp_path, "mine", "--input", str(file), code=2)
    assert re.search(r"m\.jsonl, row 1\b.*boxed.*row 0\b", said)


def test_other_column_options_rebuild_the_data_set(tmp_path):
    """A data set is rebuilt if the same columns get other roles, or if a verifier replaces the reward model."""
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    run(tmp_path, "mine", "--input", str(file), "--judged-by-model", "--demonstration-column", "answer")
    run(tmp_path, "mine", "--input", str(file))
    (row,) = made(tmp_path, "mine")
    assert row["reward_model"] == {"style": "rule", "ground_truth": "1"} and "demonstration" not in row


def test_a_reward_model_needs_no_answers(tmp_path):
    (tmp_path / "posts.csv").write_text("post\nA long story.\n")
    words = ["--input", str(tmp_path / "posts.csv"), "--problem-column", "post"]
    run(tmp_path, "posts", *words, "--judged-by-model", "--suffix", " TL;DR:")
    (row,) = made(tmp_path, "posts")
    assert row["prompt"][0]["content"] == "A long story. TL;DR:" and row["reward_model"]["style"] == "model"


@pytest.mark.parametrize(
    ("row", "words", "message"),
    [
        ({"problem": "", "answer": "2"}, [], r"row 0\b.*column problem: "),
        ({"problem": "x?", "answer": None}, [], r"row 0\b.*column answer: .*ground_truth"),
        ({"problem": "x?", "answer": "\\boxed{2"}, [], r"column answer: .*boxed\{2"),
        ({"problem": "x?", "answer": "As one sees. " * 30}, [], "column answer: .*boxed"),
        ({"problem": "x?", "answer": "2"}, ["--answer-column", "final"], r"column final\b.*problem, answer"),
        ({"problem": "x?", "answer": "2", "d": 3}, ["--demonstration-column", "d"], "column d: .*assistant"),
        ({"problem": "x?", "answer": float("nan")}, [], "column answer: .*ground_truth"),
    ],
)
def test_an_unreadable_row_is_named_and_nothing_is_written(tmp_path, row, words, message):
    file = lines(tmp_path / "rows.jsonl", row)
    said = run(tmp_path, "mine", "--input", str(file), *words, code=2)
    assert re.search(rf"rows\.jsonl\b.*{message}", " ".join(said.split()))
    assert not list((tmp_path / "data").rglob("*.parquet"))


def test_a_foreign_file_is_not_overwritten(tmp_path):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    theirs = tmp_path / "data" / "mine" / "train.parquet"
    theirs.write_bytes(b"theirs")
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    said = run(tmp_path, "mine", "--input", str(file), code=2)
    assert "mine/train.parquet: " in said and theirs.read_bytes() == b"theirs"


def manifest_text(**other):
    return json.dumps({"format": FORMAT, "name": "other", "splits": {}} | other)


WRONG_ENTRIES = [
    *({"sha256": None}, {"rows": {"a": 1}}, {"rows": -1}, {"rows": True}, {"left_out": []}, {"left_out": {"a": "b"}}),
    *({"suffix": 1}, {"model": 1}, {"reads": []}, {"against": 1}, {"origin": 1}, {"prompt_tokens": [1]}),
    *({"prompt_tokens": {"p99": "x"}}, {"prompt_tokens": {"p99": 10**30}}, {"longest_prompt": "x"}),
]


@pytest.mark.parametrize(
    "content",
    [
        *(manifest_text(**{"splits": split}) for split in ({"test": "abc"}, {"test": []}, {"../x": {"sha256": "a"}})),
        *(manifest_text(**{"splits": {"test": {"sha256": "a", **entry}}}) for entry in WRONG_ENTRIES),
        "[" * 200_000,
        '{"a":' * 900 + "1" + "}" * 900,
        manifest_text(
            splits={"test": {"sha256": "a", "origin": functools.reduce(lambda inner, _: [inner], range(900))}}
        ),
        manifest_text(format=10**400),
        manifest_text(format="3"),
        '{"format": ' + "9" * 6000 + "}",
        " " * (65 << 20),
    ],
    ids=lambda content: content[-60:].strip()[:60],
)
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json: (not a manifest|the manifest has format)"):
        read_manifest(tmp_path)


def test_a_manifest_that_lacks_counts_is_read(tmp_path):
    (tmp_path / "manifest.json").write_text(manifest_text(splits={"test": {"sha256": "a", "note": 1}}))
    entry = read_manifest(tmp_path).splits["test"]
    assert entry["note"] == 1 and entry["suffix"] == "" and entry["rows"] == 0 and entry["prompt_tokens"] == {}


def test_a_damaged_manifest_stops_only_its_own_data_set(tmp_path):
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    for content in (
        "{",
        f'{{"format": {FORMAT}}}',
        '{"format": 1, "splits": null}',
        '{"format": 1, "splits": ["test"]}',
        "[" * 200_000,
    ):
        (tmp_path / "data" / "other").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "other" / "manifest.json").write_text(content)
        assert "other/manifest.json: " in run(tmp_path, "mine", "--input", str(file)), content
        assert "other/manifest.json: " in run(tmp_path, "other", "--input", str(file), code=2), content


def test_a_missing_or_damaged_chunk_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK_ROWS", 4)
    with pytest.raises(KeyboardInterrupt):
        builder(tmp_path / "x").build(Source(15, broken_at=13).rows, lambda read, kept: None)
    chunks = sorted((tmp_path / "x" / ".building_train").glob("chunk_*"))
    content = chunks[1].read_bytes()
    chunks[1].unlink()
    with pytest.raises(ValueError, match=r"\.building_train: "):
        builder(tmp_path / "x").build(Source(15).rows, lambda read, kept: None)
    chunks[1].write_bytes(content[:100])
    with pytest.raises(ValueError, match=r"chunk_00001\.parquet: .*\.building_train"):
        builder(tmp_path / "x").build(Source(15).rows, lambda read, kept: None)


def test_a_resumed_build_remembers_earlier_chunks(tmp_path, monkeypatch):
    """It remembers boxes, and the indices of rows that were left out."""
    monkeypatch.setattr(build, "CHUNK_ROWS", 2)
    rows = [{"problem": f"{n}?", "answer": "1", "id": n} for n in range(4)]
    boxed = [*rows[:3], {"problem": "3?", "answer": r"\boxed{1}", "id": 3}]
    again = [rows[0], rows[0] | {"id": 7}, rows[2], rows[3] | {"id": 7}]  # row 1 is a duplicate
    for name, table, message in (
        ("a", boxed, r"row 0\b.*boxed"),
        ("b", again, r"index 7\b.*row 1\b"),
    ):
        words = ["--input", str(lines(tmp_path / f"{name}.jsonl", *table)), "--index-column", "id"]
        for _ in range(2):
            assert re.search(message, run(tmp_path, name, *words, code=2))
    assert not list((tmp_path / "data").rglob("train.parquet"))


#: The message that a training set was prepared before a test split contains this.
NOT_HELD = "mine's training problems"


def test_a_new_test_split_names_training_sets_that_were_not_compared_with_it(tmp_path):
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"}, {"problem": "Two?", "answer": "2"})
    run(tmp_path, "mine", "--input", str(file))
    test = lines(tmp_path / "e.jsonl", {"problem": "One?", "answer": "1"})
    said = run(tmp_path, "new", "--input", str(test), "--split", "test")
    assert NOT_HELD in said
    run(tmp_path, "mine", "--input", str(file))
    assert asked(made(tmp_path, "mine")) == ["Two?"]
    assert NOT_HELD not in run(tmp_path, "new", "--input", str(test), "--split", "test")


def test_splits_may_have_different_verifiers(tmp_path):
    test = lines(tmp_path / "e.jsonl", {"problem": "One?", "answer": "1"})
    run(tmp_path, "mine", "--input", str(test), "--split", "test")
    train = lines(tmp_path / "t.jsonl", {"problem": "Two?"})
    run(tmp_path, "mine", "--input", str(train), "--judged-by-model")
    splits = manifest.read_manifest(tmp_path / "data" / "mine").splits
    assert {name: split["verifier"] for name, split in splits.items()} == {
        "test": "verl_gsd.tasks.maths",
        "train": None,
    }


@pytest.mark.parametrize(
    ("value", "kept"), [(1e-7, "0.0000001"), (2.0, "2"), (0.1, "0.1"), (10**20, "1" + "0" * 20), (-1.5, "-1.5")]
)
def test_numbers_are_stored_in_decimal_notation(tmp_path, value, kept):
    run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": value})))
    (row,) = made(tmp_path, "mine")
    assert row["reward_model"]["ground_truth"] == kept
    assert maths.compute_score("mine", rf"\boxed{{{kept}}}", kept)["acc"] == 1.0


def test_duplicate_column_names_are_rejected(tmp_path):
    (tmp_path / "t.csv").write_text("problem,answer,answer\nOne?,1,2\n")
    said = run(tmp_path, "mine", "--input", str(tmp_path / "t.csv"), code=2)
    assert re.search(r"t\.csv: column answer\b.*twice", said)


def test_a_lone_surrogate_is_reported_with_its_row(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"problem": "One?", "answer": "1"}\n{"problem": "\\ud800", "answer": "1"}\n')
    said = run(tmp_path, "mine", "--input", str(tmp_path / "t.jsonl"), code=2)
    assert re.search(r"t\.jsonl, row 1\b.*\\ud800", said)
    run(tmp_path, "mine", "--input", str(tmp_path / "t.jsonl"), "--skip-unusable")
    assert asked(made(tmp_path, "mine")) == ["One?"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{nonsense", "JSON"), ('{"problem": "2?", "answer": "2", "answer": "3"}', "'answer'.*twice")],
)
def test_invalid_json_is_reported_with_its_line(tmp_path, line, message):
    (tmp_path / "t.jsonl").write_text(f'{{"problem": "1?", "answer": "1"}}\n{line}\n')
    said = run(tmp_path, "mine", "--input", str(tmp_path / "t.jsonl"), code=2)
    assert re.search(rf"t\.jsonl, line 2\b.*JSON.*{message}|t\.jsonl, line 2\b.*{message}", said)


def test_empty_lines_are_skipped(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"problem": "1?", "answer": "1"}\n\n{"problem": "2?", "answer": "2"}\n \n')
    run(tmp_path, "mine", "--input", str(tmp_path / "t.jsonl"))
    assert asked(made(tmp_path, "mine")) == ["1?", "2?"]


@pytest.mark.parametrize(("problem", "answer"), [("\u200b\u2060", "1"), ("1?", "\ufeff"), ("1?", "\u200e \x00")])
def test_a_text_without_visible_characters_is_rejected(tmp_path, problem, answer):
    file = lines(tmp_path / "t.jsonl", {"problem": problem, "answer": answer})
    assert "t.jsonl, row 0 " in run(tmp_path, "mine", "--input", str(file), code=2)


def test_a_changed_config_rebuilds_the_data_set(tmp_path):
    """Everything that changes the rows is part of the settings. Otherwise a second call would keep the old rows."""
    file = lines(tmp_path / "t.jsonl", {"problem": "1?", "answer": "1"})
    config = PrepareConfig("mine", sources.table("problem", "answer"), tmp_path / "data", file)
    before, _ = dataset.prepare_dataset(config, lambda *_: None)
    other = PrepareConfig("mine", sources.table("problem", "answer", suffix="!"), tmp_path / "data", file)
    dataset.prepare_dataset(other, lambda *_: None)
    assert made(tmp_path, "mine")[0]["prompt"][0]["content"] == "1?!"
    assert before.splits["train"]["suffix"] == BOXED


FAULTY = [
    ("1?", "N/A"),
    ("2?", "See solution"),
    ("3?", "Part (a): 3, Part (b): 4"),
    ("4?", "(a) 1 (b) 2"),
    ("5?", r"Proof: it follows. \blacksquare"),
    ("6?", "n/a"),
    ("7?", "—"),
    ("8?", r"\text{N/A}"),
]


def test_rows_whose_reference_is_not_one_answer_are_left_out_and_shown(tmp_path):
    rows = [{"problem": problem, "answer": answer} for problem, answer in [*FAULTY, ("9?", "1, 2"), ("1?", "4")]]
    table = lines(tmp_path / "mine.jsonl", *rows)
    shown = run(tmp_path, "mine", "--input", str(table))
    assert asked(made(tmp_path, "mine")) == ["9?", "1?"], "a good answer to the same problem stays, and so does a set"
    entry = json.loads((tmp_path / "data/mine/manifest.json").read_text())["splits"]["train"]
    assert entry["left_out"] == {"no_answer": 5, "proof": 1, "several_answers": 2}
    assert "5 no answer, 1 proof, 2 several answers" in shown
    placeholders = "row 0 'N/A', row 1 'See solution', row 5 'n/a', ..."
    assert f"train: 5 left out because the reference is a placeholder: {placeholders}" in shown
    assert (
        "train: 2 left out because the reference answers several parts: row 2 'Part (a): 3, Part (b): 4', "
        "row 3 '(a) 1 (b) 2'" in shown
    )
    listed = [json.loads(row) for row in (tmp_path / "data/mine/left_out_train.jsonl").read_text().splitlines()]
    assert {"row": 2, "reason": "several_answers", "detail": "Part (a): 3, Part (b): 4"} in listed
    run(tmp_path, "mine", "--input", str(table), "--split", "test")
    assert asked(made(tmp_path, "mine", "test")) == ["9?", "1?"], "the test split of a table of yours is checked too"


@pytest.mark.parametrize(
    "answer",
    [
        "1, 2",
        "3 and 5",
        r"\pm 2",
        "(1)(2 3)",
        "(a)(b)",
        "(a+b)(a-b)",
        "(i)^{2}",
        r"3 \text{ or } 5",
        "x=2 or x=3",
        r"x<-1\text{ or }x>1",
        "(2,3) or (3,2)",
        "f(x)=x or f(x)=-x",
        "greater than or equal to 5",
        "5 or more",
        "3 hours and 20 minutes",
        "all real numbers except 0",
        "x is 3",
        r"\emptyset",
        "no solution",
        "None",
        "cannot be determined",
        "-",
        "-1",
        r"\text{for all } x",
        "x = 1, y = 2; x = 3, y = 4",
        r"\lfloor x \rfloor",
        "(B)",
        "yes",
        "",
    ],
)
def test_legitimate_references_have_no_fault(answer):
    assert reference_fault(answer) is None


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ("see the solution above.", "no_answer"),
        ("See Figure 3.", "no_answer"),
        ("???", "no_answer"),
        ("Answers may vary", "no_answer"),
        ("Part (a): 3, Part (b): 4", "several_answers"),
        ("(i) 3; (ii) 4", "several_answers"),
        ("a. 1, b. 2", "several_answers"),
        ("1) 5 2) 6", "several_answers"),
        ("Q.E.D.", "proof"),
        ("see proof", "proof"),
        ("She has 115 apples.", "sentence"),
        ("Ann had 3 pens, so she has 8 pens", "sentence"),
        (r"\text{Each child gets } 12 \text{ sweets}", "sentence"),
    ],
)
def test_faulty_references(answer, fault):
    assert reference_fault(answer) == fault


@pytest.mark.parametrize(
    ("cell", "answer"),
    [
        ("She has 110 + 5.\n#### 115", "115"),
        ("She has 110 + 5.\nThe answer is 115 apples.", "115 apples"),
        (r"So $x = 3$. **Answer:** $x=3$", "x=3"),
        (r"The answer is 7, that is \boxed{8}", "8"),
    ],
)
def test_the_answer_of_a_solution_is_what_the_verifier_reads_in_a_response(cell, answer):
    assert cells.answer(cell) == answer
    assert maths.compute_score("mine", cell, cells.answer(cell))["score"] == 1


def test_a_solution_without_an_answer_after_its_announcement_is_rejected():
    with pytest.raises(ValueError, match="contains no answer"):
        cells.answer("We add the numbers and then\nthe answer is what we are looking for in this case")


def test_the_summary_shows_questions_as_they_are_asked_with_their_answers(tmp_path):
    rows = [{"problem": f"What is {i} + 5?", "answer": f"We add.\n#### {i + 5}"} for i in range(5)]
    shown = run(tmp_path, "mine", "--input", str(lines(tmp_path / "mine.jsonl", *rows)))
    assert f"train row 0: \"What is 0 + 5?{BOXED}\" -> '5'" in shown
    assert r"\boxed{}" in shown and r"\\boxed{}" not in shown, "one backslash, as in the data"
    assert 'train row 2: "What is 2 + 5?' in shown and "-> '7'" in shown and "row 3" not in shown


def test_the_summary_ends_with_the_line_that_trains_on_the_data(tmp_path):
    table = lines(tmp_path / "mine.jsonl", {"problem": "1?", "answer": "1"})
    folder = tmp_path / "data/mine"
    last = run(tmp_path, "mine", "--input", str(table), "--split", "test").splitlines()[-1]
    assert last == f"verl-gsd prepare mine --data {tmp_path}/data --input FILE"
    table = lines(tmp_path / "mine.jsonl", {"problem": "2?", "answer": "1"})
    last = run(tmp_path, "mine", "--input", str(table)).splitlines()[-1]
    assert last == f"verl-gsd train algo=grpo data={folder} model=Qwen/Qwen2.5-0.5B-Instruct hardware=gpu"
    shown = run(tmp_path, "judged", "--input", str(table), "--judged-by-model").splitlines()
    command = f"verl-gsd prepare judged --data {tmp_path}/data --input FILE --split test --judged-by-model"
    assert f"There is no test split. Run {command}, or set data.val_files" in "".join(shown)
    assert shown[-1].startswith("verl-gsd train algo=grpo data=") and shown[-1].endswith(
        "data.val_files=FILE reward.reward_model.enable=true reward.reward_model.model_path=MODEL "
        "reward.reward_model.enable_resource_pool=true reward.reward_model.nnodes=1 "
        "reward.reward_model.n_gpus_per_node=1 reward.reward_model.rollout.name=vllm"
    )
    parse_line(shlex.split(last)[2:])


@pytest.mark.parametrize(
    "options",
    [
        ["--problem-column", "the question", "--answer-column", "final", "--index-column", "id", "--skip-unusable"],
        ["--problem-column", "the question", "--answer-column", "final", "--suffix", "\nThink."],
        ["--problem-column", "the question", "--demonstration-column", "final", "--judged-by-model"],
    ],
)
def test_a_suggested_prepare_line_keeps_the_options_of_the_other_split(tmp_path, options):
    table = lines(tmp_path / "mine.jsonl", {"the question": "1?", "final": "1", "id": 3})
    folder = tmp_path / "data/mine"
    shown = run(tmp_path, "mine", "--input", str(table), "--split", "test", *options)
    words = shlex.split(shown[shown.rindex("verl-gsd prepare") :])
    start = ["verl-gsd", "prepare", "mine", "--data", str(folder.parent), "--input"]
    assert words[:6] == start and sorted(words[6:]) == sorted(["FILE", *options])
    assert shlex.split(command_for_file(folder / "train.parquet")) == words
    table = lines(tmp_path / "train.jsonl", {"the question": "2?", "final": "1", "id": 4})
    run(tmp_path, "mine", "--input", str(table), *words[7:])


def test_an_older_manifest_says_how_to_go_on(tmp_path):
    table = lines(tmp_path / "mine.jsonl", {"problem": "1?", "answer": "1"})
    run(tmp_path, "mine", "--input", str(table))
    path = tmp_path / "data/mine/manifest.json"
    path.write_text(path.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT - 1}'))
    said = run(tmp_path, "mine", "--input", str(table), code=2)
    assert f"Move the folder {tmp_path}/data/mine away, and run verl-gsd prepare mine again" in said
