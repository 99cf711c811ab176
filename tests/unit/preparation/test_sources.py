"""All named data sets, on small folders with the hub's schemas, by the code that also reads the hub."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.preparation.item import BOXED, BOXED_LETTER
from verl_gsd.preparation.sources import SOURCES
from verl_gsd.tasks import choice, maths

USER = "user"


def chat(*texts):
    return [{"role": role, "content": text} for role, text in zip(("system", "user", "assistant"), texts, strict=False)]


#: name -> rows with its columns and more, and the expected (problem, answer, demonstration).
ROWS = {
    "gsm8k": (
        [{"question": "Two of 1,000?", "answer": "It is <<2*1000=2000>>2000.\n#### 2,000"}],
        [("Two of 1,000?", "2000", None)],
    ),
    "math": (
        [{"problem": "Half?", "level": "Level 1", "type": "Algebra", "solution": r"So $\boxed{\frac{1}{2}}$."}],
        [("Half?", r"\frac{1}{2}", None)],
    ),
    "dapo17k": (
        [
            {
                "data_source": "math_dapo",
                "prompt": chat(
                    "",
                    "Solve the following math problem step by step. The last line of your response should be of the "
                    "form Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\nOne more "
                    'than 33?\n\nRemember to put your answer on its own line after "Answer:".',
                )[1:],
                "ability": "MATH",
                "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
                "extra_info": {"index": "9a9b6eb4-a1cb-49d1-8c1e-62eaf2f74079"},
            }
        ]
        * 3,
        [("One more than 33?", "34", None)],
    ),
    "openr1_math_46k": (
        [
            {
                "data_source": "math",
                "prompt": chat("Think in <think> tags.", "One and one?"),
                "target": [{"role": "assistant", "content": r"<think>1+1</think> \boxed{2}"}],
                "ability": "math",
                "reward_model": {"ground_truth": "2", "style": "rule"},
                "extra_info": {"index": 0, "split": "train"},
            }
        ],
        [("One and one?", "2", [r"<think>1+1</think> \boxed{2}"])],
    ),
    "bigmath": (
        [
            {"problem": "1+1?", "answer": "2", "source": "orca", "domain": ["Sums"], "llama8b_solve_rate": 0.75},
            {"problem": "1+2?", "answer": r"\boxed{3}", "source": "cn", "domain": None, "llama8b_solve_rate": None},
        ],
        [("1+1?", "2", None), ("1+2?", "3", None)],
    ),
    "tldr": (
        [{"prompt": "SUBREDDIT: r/a\n\nPOST: A long story.\n\nTL;DR:", "completion": " Short."}],
        [("SUBREDDIT: r/a\n\nPOST: A long story.\n\nTL;DR:", "Short.", None)],
    ),
    "aime24": (
        [{"id": 60, "problem": "P?", "solution": "s", "answer": "033", "url": "u", "year": "2024"}],
        [("P?", "033", None)],
    ),
    "aime25": ([{"problem": "P?", "answer": 70, "id": "0"}], [("P?", "70", None)]),
    "amc23": ([{"id": 0, "question": "P?", "answer": 27.0, "url": "u"}], [("P?", "27", None)]),
    "math500": (
        [{"problem": "P?", "solution": "s", "answer": r"\frac{1}{2}", "subject": "A", "level": 2, "unique_id": "u"}],
        [("P?", r"\frac{1}{2}", None)],
    ),
    "minerva": ([{"question": "P?", "answer": r"4.5e33"}], [("P?", "4.5e33", None)]),
    "olympiadbench": (
        [
            {"question": "P?", "final_answer": ["$2^{1009}$"], "context": None, "unit": None},
            {"question": "Q?", "final_answer": ["$1$,$2$"], "context": None, "unit": None},
        ],
        [("P?", "2^{1009}", None), ("Q?", "1,2", None)],
    ),
    "arc_c": (
        [
            {
                "id": "x",
                "question": "Which?",
                "choices": {"text": ["no", "yes", "neither"], "label": ["1", "2", "3"]},
                "answerKey": "2",
            }
        ],
        [("Which?", "yes", None)],
    ),
    "gpqa_diamond": (
        [
            {
                "Question": "Which?",
                "Correct Answer": "yes",
                "Incorrect Answer 1": "no",
                "Incorrect Answer 2": "never",
                "Incorrect Answer 3": "neither",
                "Record ID": "r",
            }
        ],
        [("Which?", "yes", None)],
    ),
    "mmlu_pro": (
        [
            {
                "question_id": 70,
                "question": "Which?",
                "options": ["no", "never", "neither", "not", "yes"],
                "answer": "E",
                "answer_index": 4,
                "category": "law",
            }
        ],
        [("Which?", "yes", None)],
    ),
}


def test_all_sources_have_test_rows():
    assert ROWS.keys() == SOURCES.keys()


def downloaded(folder, source, rows):
    """A downloaded repository: one folder per configuration with one Parquet file per split, as the README says."""
    configs = []
    for config in source.configs:
        inside = folder / (config or "data")
        inside.mkdir(parents=True)
        for split in source.splits.values():
            # Subjects of MATH differ, as the rows of a split do not.
            of_config = [{name: f"{v} {config}" if name == "problem" else v for name, v in row.items()} for row in rows]
            pq.write_table(
                pa.Table.from_pylist(of_config if config else rows), inside / f"{split}-00000-of-00001.parquet"
            )
        files = [{"split": split, "path": f"{inside.name}/{split}-*"} for split in source.splits.values()]
        configs.append({"config_name": config or "default", "data_files": files})
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    return folder


def prepared(tmp_path, name, folder, *words):
    done = CliRunner().invoke(
        app, ["prepare", name, "--input", str(folder), "--data", str(tmp_path / "data"), *words], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("name", SOURCES)
def test_a_downloaded_folder_becomes_what_verl_reads(tmp_path, name):
    source, (rows, expected) = SOURCES[name], ROWS[name]
    # Both splits have the same problem here: what the test split has is taken out of training, unless told not to.
    prepared(tmp_path, name, downloaded(tmp_path / "hub", source, rows), "--against", "none")
    for split in source.splits:
        made = pq.read_table(tmp_path / "data" / name / f"{split}.parquet").to_pylist()
        assert {row["data_source"] for row in made} == {name}
        if name == "math":
            assert len(made) == len(source.configs) and made[0]["prompt"][0]["content"].startswith("Half? algebra")
            continue
        assert len(made) == len(expected)
        for row, (problem, answer, demonstration) in zip(made, expected, strict=True):
            (message,) = row["prompt"]
            assert message["role"] == USER and message["content"].startswith(problem)
            assert message["content"].endswith(source.suffix)
            assert row["extra_info"]["split"] == split
            assert row.get("demonstration") == demonstration
            if source.suffix == BOXED_LETTER:
                letter = row["reward_model"]["ground_truth"]
                assert f"\n{letter}. {answer}\n" in message["content"]
                assert choice.compute_score(name, rf"\boxed{{{letter}}}", letter)["acc"] == 1.0
            else:
                assert message["content"] == problem + source.suffix
                assert row["reward_model"] == {"style": "rule" if source.verifier else "model", "ground_truth": answer}
            if source.verifier == "verl_gsd.tasks.maths":
                assert maths.compute_score(name, rf"So \boxed{{{answer}}}.", answer)["acc"] == 1.0


@pytest.mark.parametrize(("name", "level"), [("math", "Level 1"), ("math500", "2"), ("gsm8k", None)])
def test_levels_of_difficulty_are_kept(tmp_path, name, level):
    prepared(tmp_path, name, downloaded(tmp_path / "hub", SOURCES[name], ROWS[name][0]), "--against", "none")
    rows = pq.read_table(tmp_path / "data" / name / "test.parquet")["extra_info"].to_pylist()
    assert {row.get("level") for row in rows} == {level}
    assert all(("level" in row) == (level is not None) for row in rows)


def test_solve_rates_are_kept(tmp_path):
    prepared(tmp_path, "bigmath", downloaded(tmp_path / "hub", SOURCES["bigmath"], ROWS["bigmath"][0]))
    table = pq.read_table(tmp_path / "data" / "bigmath" / "train.parquet")
    assert table["llama8b_solve_rate"].to_pylist() == [0.75, None]
    assert table.schema.field("llama8b_solve_rate").type == pa.float64()


def test_problems_of_the_test_split_are_left_out_of_training(tmp_path):
    folder = downloaded(tmp_path / "hub", SOURCES["gsm8k"], ROWS["gsm8k"][0])
    other = ROWS["gsm8k"][0] + [{"question": "Three?", "answer": "#### 3"}]
    pq.write_table(pa.Table.from_pylist(other), folder / "main" / "train-00000-of-00001.parquet")
    said = prepared(tmp_path, "gsm8k", folder)
    assert "gsm8k 1" in said
    (row,) = pq.read_table(tmp_path / "data" / "gsm8k" / "train.parquet").to_pylist()
    assert row["prompt"][0]["content"] == "Three?" + BOXED and row["extra_info"]["index"] == 1


def test_the_right_option_is_at_every_position(tmp_path):
    """Over many questions each position is about equally frequent. The order is the same on every machine."""
    rows = [ROWS["gpqa_diamond"][0][0] | {"Question": f"Which of {n}?"} for n in range(400)]
    prepared(tmp_path, "gpqa_diamond", downloaded(tmp_path / "hub", SOURCES["gpqa_diamond"], rows))
    made = pq.read_table(tmp_path / "data" / "gpqa_diamond" / "test.parquet").to_pylist()
    letters = [row["reward_model"]["ground_truth"] for row in made]
    assert {letter: letters.count(letter) for letter in "ABCD"} == {"A": 109, "B": 95, "C": 95, "D": 101}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "Q?", "answer": "no marker"}, r"row 0\b.*column answer: .*####"),
        ("gsm8k", {"question": "Q?"}, r"column answer\b.*question"),
        ("aime24", {"Problem": "P?", "Answer": "3"}, r"column problem\b.*Problem, Answer"),
        ("aime24", {"problem": "P?", "answer": None}, r"row 0\b.*column answer: .*ground_truth"),
        ("aime24", {"problem": "P?", "answer": [1, 2]}, "column answer: .*ground_truth"),
        ("mmlu_pro", {"question": "Q?", "options": ["a", "b"], "answer_index": 2}, r"column answer_index: .*\b2\b"),
        ("mmlu_pro", {"question": "Q?", "options": ["a"], "answer_index": 0}, "column options: "),
        (
            "arc_c",
            {"question": "Q?", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"},
            r"column answerKey: 'B'.*\['A'\]",
        ),
        ("arc_c", {"question": "Q?", "choices": "a", "answerKey": "B"}, r"column choices: .*\{text"),
        (
            "bigmath",
            {"problem": "P?", "answer": "1", "llama8b_solve_rate": 1.5},
            r"llama8b_solve_rate: .*\b1\.5\b",
        ),
        ("math", {"problem": "P?", "solution": "Long. " * 90}, "column solution: .*Long"),
    ],
)
def test_an_unreadable_row_is_named_and_nothing_is_written(tmp_path, name, row, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    split = ["--split", "test"] if len(SOURCES[name].splits) > 1 else []
    line = ["prepare", name, "--input", str(tmp_path / "rows.jsonl"), "--data", str(tmp_path / "data"), *split]
    done = CliRunner().invoke(app, line, env={"COLUMNS": "300"})
    assert done.exit_code == 2 and re.search(rf"rows\.jsonl\b.*{message}", done.stderr), done.output
    assert not list((tmp_path / "data").rglob("*.parquet")) and not list((tmp_path / "data").rglob("manifest.json"))


def test_plain_files_in_a_folder_are_read_by_our_own_readers(tmp_path):
    """The datasets library would turn 033 into 33 if another answer is a number, and 007 into 7 in a CSV file."""
    (tmp_path / "hub").mkdir()
    rows = [{"problem": "P?", "answer": "033"}, {"problem": "Q?", "answer": 4}]
    (tmp_path / "hub" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared(tmp_path, "math500", tmp_path / "hub")
    made = pq.read_table(tmp_path / "data" / "math500" / "test.parquet").to_pylist()
    assert [row["reward_model"]["ground_truth"] for row in made] == ["033", "4"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"train.jsonl": ""}, "hub: .*test.*train"),
        ({"test.jsonl": ""}, r"hub: .*\b0\b.*test"),
        ({"test.jsonl": "{"}, r"test\.jsonl, line 1\b.*JSON"),
        ({"README.md": "---\nconfigs: [\n---\n", "test.jsonl": "{}"}, "hub: "),
        ({"note.txt.gz": ""}, "hub"),
        ({"test.parquet": "version https://git-lfs.github.com/spec/v1"}, r"test\.parquet: "),
    ],
)
def test_an_unusable_folder_is_an_error(tmp_path, files, message):
    (tmp_path / "hub").mkdir()
    for name, content in files.items():
        (tmp_path / "hub" / name).write_text(content)
    line = ["prepare", "math500", "--input", str(tmp_path / "hub"), "--data", str(tmp_path / "data")]
    done = CliRunner().invoke(app, line, env={"COLUMNS": "400"})
    assert done.exit_code == 2 and re.search(message, done.stderr), done.output + done.stderr


def test_an_unreachable_hub_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = CliRunner().invoke(app, ["prepare", "aime24", "--data", str(tmp_path)], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and re.search("HuggingFaceH4/aime_2024: .*--input", done.stderr), done.output
