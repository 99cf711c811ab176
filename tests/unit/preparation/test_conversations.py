"""Chats keep the messages before the problem, and answers conflict only if the verifier finds them different."""

import json
import re

import pyarrow.parquet as pq
import pytest
from prepare_runs import asked, builder, lines, made, run

from verl_gsd.preparation import build, manifest
from verl_gsd.preparation.item import BOXED
from verl_gsd.tasks import byte_llama

SYSTEM = {"role": "system", "content": "You answer in base 7."}
REPLY = {"role": "assistant", "content": "All right."}


def user(text):
    return {"role": "user", "content": text}


def chats(path, *rows):
    return lines(path, *({"problem": chat, "answer": answer} for chat, answer in rows))


def left_out(tmp_path, name="mine", split="train"):
    return manifest.read_manifest(tmp_path / "data" / name).splits[split]["left_out"]


CHATS = (
    ([SYSTEM, user("Let x be 5."), REPLY, user("What is x + 4?")], 12),
    ([SYSTEM, user("Let x be 6."), REPLY, user("What is x + 4?")], 13),
    ([user("Let x be 5."), REPLY, user("What is x + 4?")], 9),
)


def test_a_chat_keeps_its_system_message_and_earlier_turns(tmp_path):
    shown = run(tmp_path, "mine", "--input", str(chats(tmp_path / "c.jsonl", *CHATS)))
    rows = made(tmp_path, "mine")
    assert [row["prompt"] for row in rows] == [[*chat[:-1], user("What is x + 4?" + BOXED)] for chat, _ in CHATS]
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["12", "13", "9"]
    assert "system: You answer in base 7.\\nuser: Let x be 5.\\nassistant: All right.\\nWhat is x + 4?" in shown


def test_chats_are_compared_as_a_whole(tmp_path):
    (first, _), solution = CHATS[0], {"role": "assistant", "content": "It is 12."}
    respaced = [SYSTEM, user("let x be  5."), REPLY, user("What is x + 4?"), solution]
    file = chats(tmp_path / "c.jsonl", (first, 12), (respaced, 12), (CHATS[1][0], 13), (CHATS[1][0], 14))
    run(tmp_path, "mine", "--input", str(file))
    assert [row["prompt"][:-1] for row in made(tmp_path, "mine")] == [first[:-1]]
    assert left_out(tmp_path) == {"conflicting": 2, "duplicate": 1}


def test_a_test_problem_in_an_earlier_turn_is_found_and_a_shared_system_message_is_no_overlap(tmp_path):
    rules = {"role": "system", "content": "You solve problems. " + "Think about every step before you answer it. " * 5}
    question = "A train leaves at nine and travels at forty miles an hour. When is it in Leeds?"
    test = chats(tmp_path / "e.jsonl", ([rules, user(question)], 1))
    run(tmp_path, "mine", "--input", str(test), "--split", "test")
    turns = [user(question), REPLY, user("And a day later?")]
    file = chats(tmp_path / "c.jsonl", (turns, 2), ([rules, user("What is 1 + 1?")], 2))
    run(tmp_path, "mine", "--input", str(file))
    assert left_out(tmp_path) == {"contaminated": 1}
    assert made(tmp_path, "mine")[0]["prompt"][0] == rules


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "content": "4"}, {"role": "assistant", "content": None}, "Let x be 5.", {"content": "x"}],
)
def test_a_message_that_a_prompt_cannot_keep_is_rejected(tmp_path, message):
    file = chats(tmp_path / "c.jsonl", ([SYSTEM, message, user("What is x + 4?")], 12))
    said = run(tmp_path, "mine", "--input", str(file), code=2)
    assert re.search(r"c\.jsonl, row 0\b.*column problem: message 1 of the chat.*system, user, assistant", said)


def test_a_last_user_message_that_is_no_text_is_rejected(tmp_path):
    """An earlier message must not become the problem."""
    parts = {"role": "user", "content": [{"type": "text", "text": "What is x + 4?"}]}
    file = chats(tmp_path / "c.jsonl", ([user("Let x be 5."), REPLY, parts], 9))
    said = run(tmp_path, "mine", "--input", str(file), code=2)
    assert "column problem: no problem. Use a text that is not empty, or a chat whose last user message is one" in said


def test_a_named_data_set_with_several_turns_is_rejected(tmp_path):
    row = {"prompt": CHATS[2][0], "reward_model": {"ground_truth": "9"}}
    said = run(tmp_path, "dapo17k", "--input", str(lines(tmp_path / "c.jsonl", row)), code=2)
    assert re.search(r"row 0\b.*column prompt: the chat has several turns.*--input", said)


def test_a_template_that_drops_the_system_message_is_rejected(tmp_path):
    tokenizer = byte_llama.build_tokenizer()
    tokenizer.chat_template = (
        "{% for message in messages if message.role != 'system' %}{{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    file = chats(tmp_path / "c.jsonl", CHATS[0])
    said = run(tmp_path, "mine", "--input", str(file), "--model", str(tmp_path / "model"), code=2)
    assert "drops the system's message" in said


#: Answers that the verifier finds equal.
EQUAL = (
    *((r"\frac{1}{2}", "0.5"), ("1,000", "1000"), ("5", r"5\text{ cm}"), ("(1,2)", "(1, 2)"), ("x=3", "3")),
    *((r"\sqrt{2}", r"\sqrt2"), (r"\text{even}", "even"), (r"\{1,2\}", r"\{2,1\}"), (r"50\%", "50")),
)


def answers(path, *answers_by_problem):
    rows = [(f"Question {n}?", answer) for n, given in enumerate(answers_by_problem) for answer in given]
    return lines(path, *({"problem": problem, "answer": answer} for problem, answer in rows))


def test_answers_that_the_verifier_finds_equal_do_not_conflict(tmp_path):
    file = answers(tmp_path / "t.jsonl", *EQUAL, *(pair[::-1] for pair in EQUAL), ("x=3", "3", "4"), (r"\sqrt{2}", "2"))
    run(tmp_path, "mine", "--input", str(file))
    assert [row["reward_model"]["ground_truth"] for row in made(tmp_path, "mine")] == [
        *(first for first, _ in EQUAL),
        *(first for _, first in EQUAL),
    ], "the first is kept"
    assert left_out(tmp_path) == {"conflicting": 4, "duplicate": 2 * len(EQUAL) + 1}


def test_the_number_of_comparisons_is_limited_also_after_a_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "MAX_COMPARISONS", 3)
    pairs = [(rf"x={n}", str(n)) for n in range(5)]
    file = answers(tmp_path / "t.jsonl", *pairs)
    said = run(tmp_path, "mine", "--input", str(file))
    assert asked(made(tmp_path, "mine")) == [f"Question {n}?" for n in range(3)]
    assert left_out(tmp_path) == {"conflicting": 4, "duplicate": 3}
    assert "did not compare the answers of 2 of the conflicting rows, because it compares 3 pairs at most" in said

    monkeypatch.setattr(build, "CHUNK_ROWS", 3)
    rows = [json.loads(line) for line in file.read_text().splitlines()]

    def broken_at(stop, skip):
        for number, row in enumerate(rows[skip:], start=skip):
            if number == stop:
                raise KeyboardInterrupt
            yield row

    with pytest.raises(KeyboardInterrupt):
        builder(tmp_path / "x").build(lambda skip: broken_at(7, skip), lambda read, kept: None)
    resumed = builder(tmp_path / "x")
    kept = pq.read_table(resumed.build(lambda skip: broken_at(None, skip), lambda read, kept: None)).to_pylist()
    assert [row["prompt"] for row in kept] == [row["prompt"] for row in made(tmp_path, "mine")]
    assert resumed.counts().not_compared == 2 and resumed.counts().left_out == {"conflicting": 4, "duplicate": 3}
