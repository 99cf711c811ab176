"""The embedded task: its problems, its verifier, and the folder made from them."""

import json
import random

import pyarrow.parquet as pq
import pytest

from verl_gsd.tasks import arithmetic, embedded
from verl_gsd.tasks.arithmetic import LEVELS, compute_score

TINY = embedded.Specification(seed=3, train_per_level=6, test_per_level=2, warm_start_steps=1)


def evaluate(question: str) -> int:
    """An independent evaluation of a question: split it into signed digits and add them."""
    text = question.removesuffix("=").replace("-", "+-")
    return sum(int(part) for part in text.split("+"))


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_problems_have_right_answers_and_belong_to_their_level(level):
    rng = random.Random(0)
    for _ in range(300):
        problem = arithmetic.sample_problem(level, rng)
        assert evaluate(problem.question) == int(problem.answer) >= 0
        assert sum(character.isdigit() for character in problem.question) == level.terms
        assert ("-" in problem.question) == level.mixed


def test_distinct_problems_are_distinct_and_not_excluded():
    first = arithmetic.distinct_problems(20, random.Random(0))
    held_out = {problem.question for problem in first}
    second = arithmetic.distinct_problems(40, random.Random(0), excluded=held_out)
    assert len(held_out) == 20 * len(LEVELS)
    assert len({problem.question for problem in second}) == 40 * len(LEVELS)
    assert held_out.isdisjoint(problem.question for problem in second)


def test_the_warm_start_has_no_held_out_question_and_the_stated_shares_of_passes():
    held_out = {problem.question for problem in arithmetic.distinct_problems(64, random.Random(0))}
    pairs = arithmetic.warm_start_pairs(random.Random(1), held_out)
    passed, seen = {}, {}
    for question, answer in (next(pairs) for _ in range(20_000)):
        assert question not in held_out
        assert answer == arithmetic.PASS or int(answer) == evaluate(question)
        key = (sum(c.isdigit() for c in question), "-" in question)
        seen[key] = seen.get(key, 0) + 1
        passed[key] = passed.get(key, 0) + (answer == arithmetic.PASS)
    for level in LEVELS:
        key = (level.terms, level.mixed)
        assert passed[key] / seen[key] == pytest.approx(level.passes, abs=0.06)
    assert compute_score("arithmetic", arithmetic.PASS, "12")["acc"] == 0


@pytest.mark.parametrize("text", ["12", " 12\n", "\t12 "])
def test_the_answer_alone_is_right(text):
    assert compute_score("arithmetic", text, "12") == {"score": 1.0, "acc": 1.0}


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "13",
        "12 12",
        "012",
        "+12",
        "12.0",
        "is 12",
        "\ud800",
        "12\x00",
        "١٢",
        "9" * 5_000_000,
        None,
        b"12",
        12,
    ],
    ids=lambda text: repr(text)[:20],
)
def test_any_other_text_is_wrong_and_harmless(text):
    assert compute_score("arithmetic", text, "12") == {"score": 0.0, "acc": 0.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The task's folder, made once for all tests that only read it."""
    return embedded.ensure(tmp_path_factory.mktemp("made") / "task", TINY)


def test_folder_is_complete_and_follows_verls_schema(made):
    indices, questions = [], set()
    for split, per_level in (("train", 6), ("test", 2)):
        rows = pq.read_table(made / f"{split}.parquet").to_pylist()
        assert len(rows) == per_level * len(LEVELS)
        for row in rows:
            (message,) = row["prompt"]
            assert row["data_source"] == "arithmetic" and row["extra_info"]["split"] == split
            assert evaluate(message["content"]) == int(row["reward_model"]["ground_truth"])
            indices.append(row["extra_info"]["index"])
            questions.add(message["content"])
    assert sorted(indices) == list(range(len(indices))), "the dataset index must be unique over both files"
    assert len(questions) == len(indices), "a test question must not be a training question"
    assert not list(made.parent.glob("task.?*/")), "no half-made folder is left"


def test_a_folder_is_made_once_depends_on_the_seed_and_is_remade_for_another_specification(made, tmp_path):
    left = tmp_path / "task.tmp" / "model"  # of a making that was killed
    left.mkdir(parents=True)
    (left / "half_written").touch()
    steps = []

    def make(specification):
        folder = embedded.ensure(tmp_path / "task", specification, lambda step, loss: steps.append(step))
        return (folder / "model" / "model.safetensors").read_bytes()

    first = make(TINY)
    assert not left.parent.exists() and not (tmp_path / "task" / "model" / "half_written").exists()
    assert first == make(TINY) == (made / "model" / "model.safetensors").read_bytes()
    assert steps == [1]
    assert make(embedded.Specification(seed=4, train_per_level=6, test_per_level=2, warm_start_steps=2)) != first
    assert steps == [1, 1, 2]
    assert json.loads((tmp_path / "task" / "manifest.json").read_text())["seed"] == 4


def test_a_failure_leaves_no_files_and_a_foreign_folder_is_unchanged(tmp_path):
    def full_disk_stub(step, loss):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        embedded.ensure(tmp_path / "task", TINY, full_disk_stub)
    assert [path.name for path in tmp_path.iterdir()] == ["task.lock"]

    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"task\.directory"):
        embedded.ensure(foreign, TINY)
    assert (foreign / "thesis.tex").read_text() == "years of work"


def test_model_and_tokenizer_load_as_a_user_would_load_them(made):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert 0.8e6 < sum(p.numel() for p in model.parameters()) < 1.2e6
    assert model.config.max_position_embeddings == 4096
    for text in ("3+8-5=", "naïve\n\t✓", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "user", "content": "1+2+3="}, {"role": "assistant", "content": "6"}]
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    assert tokenizer.decode(ids) == "<|user|>1+2+3=<|assistant|>6<eos>"
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt, "a conversation must begin with its prompt"


def test_every_prompt_and_answer_fits_the_configured_lengths(made, compose_fast):
    """verl cuts a prompt that is too long on the left, and reports this only in a worker's log."""
    from transformers import AutoTokenizer

    config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    for row in pq.read_table(made / "train.parquet").to_pylist():
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(row["reward_model"]["ground_truth"])
        assert len(prompt) <= config.data.max_prompt_length and len(answer) < config.data.max_response_length
