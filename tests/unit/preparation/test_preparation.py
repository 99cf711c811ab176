"""Preparing data: which rows are left out and why, resuming after a stop, and atomic files."""

import json
import re
from contextlib import suppress

import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prepare_runs import Source, asked, builder, lines, made, run

from verl_gsd.preparation import build, dataset, manifest
from verl_gsd.preparation.chats import ChatTemplate
from verl_gsd.preparation.item import BOXED, Item, option_order
from verl_gsd.preparation.overlap import OverlapIndex
from verl_gsd.tasks import byte_llama

LONG = "A train leaves at nine and travels at forty miles an hour towards the town of"


def test_duplicates_and_all_rows_of_conflicting_problems_are_left_out(tmp_path):
    rows = [("One?", "1"), ("Two?", "2"), ("one? ", "1"), ("Two?", "3"), ("Three?", "3"), ("two?", "2")]
    file = lines(tmp_path / "t.jsonl", *({"problem": problem, "answer": answer} for problem, answer in rows))
    run(tmp_path, "mine", "--input", str(file))
    assert asked(made(tmp_path, "mine")) == ["One?", "Three?"]
    assert [row["extra_info"]["index"] for row in made(tmp_path, "mine")] == [0, 4], "a row keeps its number"
    of = manifest.read_manifest(tmp_path / "data" / "mine").splits["train"]
    assert (of["read"], of["rows"]) == (6, 2)
    assert of["left_out"] == {"conflicting": 2, "duplicate": 2}
    left = [json.loads(line) for line in (tmp_path / "data" / "mine" / "left_out_train.jsonl").read_text().splitlines()]
    assert left == [{"row": row, "reason": "conflicting", "detail": ""} for row in (1, 3)], "but for duplicates"


def test_equal_numbers_in_different_notation_do_not_conflict(tmp_path):
    rows = [("Half?", "0.5"), ("Half?", r"\frac{1}{2}"), ("Thousand?", "1,000"), ("Thousand?", "1000")]
    file = lines(tmp_path / "t.jsonl", *({"problem": problem, "answer": answer} for problem, answer in rows))
    run(tmp_path, "mine", "--input", str(file))
    assert asked(made(tmp_path, "mine")) == ["Half?", "Thousand?"]


def test_two_summaries_of_a_post_do_not_conflict(tmp_path):
    file = lines(tmp_path / "t.jsonl", *({"prompt": "A post.", "completion": text} for text in ("Short.", "Brief.")))
    run(tmp_path, "tldr", "--input", str(file), "--split", "train")
    (row,) = made(tmp_path, "tldr")
    assert row["reward_model"] == {"style": "model", "ground_truth": "Short."}
    assert manifest.read_manifest(tmp_path / "data" / "tldr").splits["train"]["left_out"] == {"duplicate": 1}


def test_a_repeated_contaminated_problem_is_a_duplicate(tmp_path):
    run(
        tmp_path,
        "e",
        "--input",
        str(lines(tmp_path / "e.jsonl", {"problem": "One?", "answer": "1"})),
        "--split",
        "test",
    )
    file = lines(tmp_path / "t.jsonl", *[{"problem": "One?", "answer": "1"}] * 3, {"problem": "Two?", "answer": "2"})
    run(tmp_path, "mine", "--input", str(file))
    left = manifest.read_manifest(tmp_path / "data" / "mine").splits["train"]["left_out"]
    assert left == {"contaminated": 1, "duplicate": 2}


def test_a_test_split_keeps_duplicates(tmp_path):
    """Published scores are means over all rows, including the duplicates of MMLU-Pro."""
    file = lines(tmp_path / "t.jsonl", *[{"problem": "One?", "answer": "1"}] * 2)
    run(tmp_path, "mine", "--input", str(file), "--split", "test")
    assert asked(made(tmp_path, "mine", "test")) == ["One?", "One?"]


def test_test_problems_of_all_prepared_sets_are_left_out_of_training(tmp_path):
    test = lines(tmp_path / "e.jsonl", {"problem": f"{LONG} Leeds. When is it there?", "answer": "1"})
    short = lines(tmp_path / "s.jsonl", {"problem": "What is $1+1$?", "answer": "2"})
    run(tmp_path, "long", "--input", str(test), "--split", "test")
    run(tmp_path, "short", "--input", str(short), "--split", "test")
    train = lines(
        tmp_path / "t.jsonl",
        {"problem": f"Problem 7. {LONG.upper()}\n Leeds! When will it be?", "answer": "3"},
        {"problem": "what is 1 + 1", "answer": "2"},
        {"problem": "A train leaves at nine.", "answer": "4"},
        {"problem": "What is 1+1? And 1+2?", "answer": "5"},
    )
    said = run(tmp_path, "mine", "--input", str(train))
    assert "long 1, short 1" in said
    assert asked(made(tmp_path, "mine")) == ["A train leaves at nine.", "What is 1+1? And 1+2?"]
    left = (tmp_path / "data" / "mine" / "left_out_train.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in left] == [
        {"row": 0, "reason": "contaminated", "detail": "long"},
        {"row": 1, "reason": "contaminated", "detail": "short"},
    ]
    run(tmp_path, "mine", "--input", str(train), "--against", "long")
    assert len(made(tmp_path, "mine")) == 3
    said = run(tmp_path, "mine", "--input", str(train), "--against", "none")
    assert "training problems were not compared with any evaluation set" in said
    assert len(made(tmp_path, "mine")) == 4
    said = run(tmp_path, "mine", "--input", str(train), "--against", "longer", code=2)
    assert re.search(r"--against longer: .*verl-gsd prepare longer\b.*long, short", said)


PHRASE = "where $m$ and $n$ are relatively prime positive integers. Find $m+n$."


@pytest.mark.parametrize(
    ("problem", "found"),
    [
        ("0 a b c d 1", "set"),
        ("Then: 0 A, b... c D 1?!", "set"),
        ("x a b c d 1", "set"),  # two of three runs of four words
        ("x a b c d y", None),  # one of three
        ("求 解 方 程 组 的", "cjk"),
        ("请求解方程组的。", "cjk"),
        ("求解方程", None),
        ("p q", "pair"),
        ("P, $q$?", "pair"),
        ("p q r", None),
        ("", None),
    ],
)
def test_half_of_the_runs_are_an_overlap(problem, found):
    overlap = OverlapIndex(4)
    overlap.add("set", ["0 a b c d 1"])
    overlap.add("cjk", ["求解方程组的"])
    overlap.add("pair", ["p q"])
    assert overlap.find(problem) == found


def test_a_common_final_phrase_is_not_an_overlap():
    overlap = OverlapIndex(13)
    drawing = "[asy] import graph; size(5cm); real lsf = 0.5; pen dps = linewidth(0.7) + fontsize(10); [/asy]"
    evaluation = f"{LONG} Leeds, {LONG} York. The ratio of the two times is $\\frac{{m}}{{n}}$, {PHRASE} {drawing}"
    overlap.add("aime", [evaluation, "Which of the seven gases do most plants absorb?"])
    assert overlap.find(f"The area of the triangle is $\\frac{{m}}{{n}}$, {PHRASE}") is None
    assert overlap.find(f"What is shaded? {drawing}") is None
    assert overlap.find(f"Solve this. {evaluation}") == "aime"
    assert overlap.find("Which of the seven gases do most plants absorb? Answer with a word.") == "aime"
    assert overlap.find("Which of the seven gases do animals absorb?") is None


def test_options_do_not_hide_an_overlap(tmp_path):
    """Only the question of an evaluation problem is compared, without its options."""
    row = {"question": "Which of the seven gases do most plants absorb?", "options": ["O2", "CO2"], "answer_index": 1}
    run(tmp_path, "mmlu_pro", "--input", str(lines(tmp_path / "e.jsonl", row)))
    file = lines(
        tmp_path / "t.jsonl", {"problem": row["question"], "answer": "CO2"}, {"problem": "Two?", "answer": "2"}
    )
    assert "mmlu_pro 1" in run(tmp_path, "mine", "--input", str(file))


def slowly_near(evaluation, training, changes):
    """Whether so many edits suffice, by trying all of them. Numbers and letters other than "a" are fixed."""

    def fixed(word):
        return word.isdigit() or (len(word) == 1 and word != "a")

    if changes < 0:
        return False
    if not evaluation or not training:
        rest = evaluation or training
        return len(rest) <= changes and not any(map(fixed, rest))
    (word, *words), (other, *others) = evaluation, training
    if word == other and slowly_near(words, others, changes):
        return True
    return (
        (not fixed(word) and not fixed(other) and slowly_near(words, others, changes - 1))
        or (not fixed(word) and slowly_near(words, training, changes - 1))
        or (not fixed(other) and slowly_near(evaluation, others, changes - 1))
    )


WORDS = st.lists(st.sampled_from(["a", "b", "c", "7", "red", "ball"]), max_size=14)


@given(WORDS, WORDS)
@example(["red"] * 6, ["red"] * 5)
@example(["red", "7"] * 4, ["b", *["red", "7"] * 3, "ball", "7", "c"])
@example(["red", "7"] * 4, ["red", "7"] * 3 + ["red", "b"])
def test_overlap_finds_what_a_slow_search_finds(evaluation, training):
    overlap = OverlapIndex(7)
    overlap.add("set", [" ".join(evaluation)])

    def runs(words, length):
        return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)}

    if len(evaluation) < 6:
        slow = evaluation == training != []
    elif len(evaluation) == 6:
        slow = bool(runs(evaluation, 6) & runs(training, 6)) or slowly_near(evaluation, training, 1)
    else:
        slow = 2 * len(runs(evaluation, 7) & runs(training, 7)) >= len(runs(evaluation, 7)) or any(
            slowly_near(evaluation, training[start:end], len(evaluation) // 10 or 1)
            for start in range(len(training) + 1)
            for end in range(start, len(training) + 1)
        )
    assert (overlap.find(" ".join(training)) == "set") == slow


def test_an_interrupted_build_resumes_at_its_chunk(tmp_path, monkeypatch):
    """Duplicates and conflicts with rows of earlier chunks are found after the stop, too."""
    monkeypatch.setattr(build, "CHUNK_ROWS", 4)
    whole = builder(tmp_path / "whole")
    file = whole.build(Source(15).rows, lambda read, kept: None)
    expected, counts = pq.read_table(file).to_pylist(), whole.counts()
    assert len(expected) == 6 and counts.left_out == {"duplicate": 7, "conflicting": 2}

    broken, told = Source(15, broken_at=10), []
    with pytest.raises(KeyboardInterrupt):
        builder(tmp_path / "x").build(broken.rows, lambda read, kept: told.append((read, kept)))
    assert broken.read == list(range(10)) and told[-1] == (8, 7)
    again, going_on = Source(15), builder(tmp_path / "x")
    file = going_on.build(again.rows, lambda read, kept: None)
    assert again.read == list(range(8, 15)), "two chunks of four were there"
    assert pq.read_table(file).to_pylist() == expected and going_on.counts() == counts

    overlap = OverlapIndex(13)
    overlap.add("set", ["Problem 3?"])
    counted = []
    for name, broken_at in (("y", None), ("z", 8)):
        for source in [Source(15, broken_at), Source(15)][: 1 if broken_at is None else 2]:
            made_of = builder(tmp_path / name, overlap=overlap)
            with suppress(KeyboardInterrupt):
                made_of.build(source.rows, lambda read, kept: None)
        counted.append(made_of.counts())
    assert counted[0] == counted[1], "a problem that was left out is known after the stop"
    assert counted[0].left_out["contaminated"] == 1 and counted[0].left_out["duplicate"] == 7

    other = Source(15)
    builder(tmp_path / "x", {"made": 2}).build(other.rows, lambda read, kept: None)
    assert other.read == list(range(15)), "chunks made otherwise are thrown away"


def test_a_stop_between_the_files_and_the_manifest_can_be_resumed(tmp_path, monkeypatch):
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    path = tmp_path / "data" / "mine" / "train.parquet"

    def stopped(made):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "write_manifest", stopped)
        assert "Run the same command again to resume" in run(tmp_path, "mine", "--input", str(file), code=130)
    assert path.is_file() and not (path.parent / "manifest.json").exists()
    theirs, ours = b"somebody's", path.read_bytes()
    path.write_bytes(theirs)
    said = run(tmp_path, "mine", "--input", str(file), code=2)
    assert "train.parquet: " in said and path.read_bytes() == theirs
    path.write_bytes(ours)
    run(tmp_path, "mine", "--input", str(file))
    assert asked(made(tmp_path, "mine")) == ["One?"]
    names = {left.name for left in path.parent.iterdir()}
    assert names == {"train.parquet", "manifest.json", "left_out_train.jsonl", ".lock"}, "nothing is left of the stop"


def test_the_same_command_again_reads_no_rows(tmp_path, monkeypatch):
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    run(tmp_path, "mine", "--input", str(file))
    before = (tmp_path / "data" / "mine" / "train.parquet").stat().st_mtime_ns
    monkeypatch.setattr(dataset, "read_rows", lambda *_: pytest.fail("read again"))
    run(tmp_path, "mine", "--input", str(file))
    assert (tmp_path / "data" / "mine" / "train.parquet").stat().st_mtime_ns == before


def test_a_changed_file_is_an_error_and_is_rebuilt(tmp_path):
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    run(tmp_path, "mine", "--input", str(file), "--split", "test")
    target = tmp_path / "data" / "mine" / "test.parquet"
    target.write_bytes(target.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"test\.parquet: .*manifest\.json.*verl-gsd prepare mine"):
        manifest.read_manifest(tmp_path / "data" / "mine").file("test")
    run(tmp_path, "mine", "--input", str(file), "--split", "test")
    assert manifest.read_manifest(tmp_path / "data" / "mine").file("test") == target


def test_an_unusable_row_leaves_the_earlier_data_set_unchanged(tmp_path):
    file = lines(tmp_path / "t.jsonl", {"problem": "One?", "answer": "1"})
    run(tmp_path, "mine", "--input", str(file))
    folder = tmp_path / "data" / "mine"
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".parquet")}
    broken = lines(tmp_path / "u.jsonl", {"problem": "One?", "answer": "1"}, {"problem": "Two?", "answer": None})
    said = run(tmp_path, "mine", "--input", str(broken), code=2)
    assert re.search(r"u\.jsonl, row 1\b.*column answer: ", said)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".json", ".parquet")} == before
    run(tmp_path, "mine", "--input", str(broken), "--skip-unusable")
    of = manifest.read_manifest(folder).splits["train"]
    assert (of["read"], of["rows"], of["left_out"]) == (2, 1, {"unusable": 1})
    nothing = lines(tmp_path / "v.jsonl", {"problem": "", "answer": "1"})
    assert "1 unusable" in run(tmp_path, "empty", "--input", str(nothing), "--skip-unusable", code=2)


def test_indices_of_the_table_are_kept_and_must_be_unique(tmp_path):
    rows = [{"problem": f"{n}?", "answer": "1", "id": number} for n, number in enumerate([7, 3, 7])]
    words = ["--index-column", "id"]
    said = run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", *rows)), *words, code=2)
    assert re.search(r"t\.jsonl, row 2\b.*index 7\b.*row 0\b", said)
    run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", *rows[:2])), *words)
    assert [row["extra_info"]["index"] for row in made(tmp_path, "mine")] == [7, 3]
    test = lines(tmp_path / "e.jsonl", {"problem": "e?", "answer": "1", "id": 3})
    said = run(tmp_path, "mine", "--input", str(test), "--split", "test", *words, code=2)
    assert re.search(r"e\.jsonl, row 0\b.*index 3\b.*split", said)
    said = run(tmp_path, "mine", "--input", str(lines(tmp_path / "t.jsonl", rows[0] | {"id": "x"})), *words, code=2)
    assert re.search(r"column id: .*str 'x'", said)


def test_the_indices_of_two_splits_differ(tmp_path):
    for split in ("test", "train"):
        file = lines(tmp_path / f"{split}.jsonl", {"problem": f"{split}?", "answer": "1"})
        run(tmp_path, "mine", "--input", str(file), "--split", split)
    assert made(tmp_path, "mine")[0]["extra_info"]["index"] != made(tmp_path, "mine", "test")[0]["extra_info"]["index"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    byte_llama.build_tokenizer().save_pretrained(folder)
    return folder


def test_the_first_prompt_is_printed_and_long_prompts_are_left_out(tmp_path, tokenizer):
    file = lines(tmp_path / "t.jsonl", {"problem": "1?", "answer": "1"}, {"problem": "2" * 60 + "?", "answer": "1"})
    length = 2 + len("1?" + BOXED)  # bytes, and a token a role
    words = ["--model", str(tokenizer), "--max-prompt-length"]
    said = run(tmp_path, "mine", "--input", str(file), *words, str(length))
    assert "<|user|>1? Let's think step by step" in said and "<|assistant|>" in said
    assert len(made(tmp_path, "mine")) == 1
    entry = manifest.read_manifest(tmp_path / "data" / "mine").splits["train"]
    assert entry["left_out"] == {"too_long": 1}
    assert entry["prompt_tokens"] == {"median": length, "p99": length, "longest": length}, "without those left out"
    assert "2 too_long" in run(tmp_path, "mine", "--input", str(file), *words, str(length - 1), code=2)
    said = run(tmp_path, "mine", "--input", str(file), "--max-prompt-length", "9", code=2)
    assert re.search("--max-prompt-length 9: .*--model", said)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "tokenizer.*chat template"),
        ("{{ raise_exception('no such role') }}", "chat template.*no such role"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "chat template.*problem"),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", "chat template.*add_generation_prompt"),
    ],
)
def test_an_unfit_chat_template_is_rejected(tmp_path, template, message):
    tokenizer = byte_llama.build_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        ChatTemplate(str(tmp_path / "model")).text([{"role": "user", "content": "1+1?"}])


def test_a_model_without_a_tokenizer_is_an_error(tmp_path):
    file = lines(tmp_path / "t.jsonl", {"problem": "1?", "answer": "1"})
    assert f"--model {tmp_path}: " in run(tmp_path, "mine", "--input", str(file), "--model", str(tmp_path), code=2)


@given(st.integers(2, 10), st.text(max_size=5))
def test_options_are_shuffled_by_the_question_alone(count, question):
    order = option_order(question, count)
    assert sorted(order) == list(range(count)) and order == option_order(question, count)


def test_the_order_of_options_does_not_change_the_key():
    first, second = (Item("Which?", "yes", ("yes", *others)) for others in (("no", "never"), ("never", "no")))
    assert first.key() == second.key() != Item("Which?", "yes", ("yes", "no")).key()


@pytest.fixture(scope="module")
def one_table(tmp_path_factory):
    """A folder with a table, a file of an unknown kind, and one prepared data set."""
    folder = tmp_path_factory.mktemp("tables")
    table = lines(folder / "t.jsonl", {"problem": "1?", "answer": "1"})
    (folder / "t.txt").write_text("")
    run(folder, "other", "--input", str(table), "--split", "test")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nameless"], "nameless: .*arithmetic, .*gsm8k, math, dapo17k"),
        (["../x", "--input", "t.jsonl"], r"'\.\./x': "),
        (["", "--input", "t.jsonl"], "'': "),
        (["none", "--input", "t.jsonl"], "none: "),
        (["mine", "--input", "t.jsonl", "--answer-column", ""], "--answer-column: "),
        (["mine", "--input", "t.jsonl", "--model", ""], "--model: "),
        (["mine", "--input", "t.jsonl", "--overlap-words", "100000"], r"--overlap-words 100000: .*\b2 to 1000\b"),
        (["mine", "--input", "absent.jsonl"], r"--input absent\.jsonl: "),
        (["mine", "--input", "t.txt"], r"--input t\.txt: .*\.parquet, \.jsonl, \.csv"),
        (["gsm8k", "--input", "t.jsonl"], r"--input t\.jsonl: .*--split train or --split test"),
        (["aime24", "--input", "t.jsonl", "--split", "train"], "--split train: aime24 .*test"),
        (["gsm8k", "--split", "test"], "--split test: "),
        (["mine", "--input", "t.jsonl", "--split", "dev"], "--split dev: .*train or test"),
        (["gsm8k", "--suffix", "x"], "--suffix x: gsm8k "),
        (
            ["mine", "--input", "t.jsonl", "--judged-by-model", "--answer-column", "a"],
            "--answer-column a: .*--judged-by",
        ),
        (["arithmetic", "--split", "test"], "--split: .*arithmetic"),
        (["mine", "--input", "t.jsonl", "--overlap-words", "1"], r"--overlap-words 1: .*\b2 to 1000\b"),
        (["arithmetic", "--input", "t.jsonl"], "--input: .*arithmetic"),
        (["arithmetic_hard", "--model", "m"], "--model: .*arithmetic_hard"),
    ],
)
def test_wrong_options_are_reported(one_table, monkeypatch, words, message):
    monkeypatch.chdir(one_table)
    assert re.search(message, " ".join(run(one_table, *words, code=2).split()))
    assert [path.name for path in (one_table / "data").glob("*/*.parquet")] == ["test.parquet"], "nothing was made"
