"""The embedded tasks: their problems, the verifier with two outcomes, and the folder made from them."""

import dataclasses
import hashlib
import importlib
import json
import random
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from verl_gsd.tasks import arithmetic, byte_llama, embedded
from verl_gsd.tasks.arithmetic import LEVELS, compute_score
from verl_gsd.tasks.catalog import ARITHMETIC_GRADED, ARITHMETIC_HARD, TASKS

TINY = embedded.Specification(seed=3, train_per_level=6, test_per_level=2, warm_start_steps=1)
EACH_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
#: Every distinct level of all tasks.
ALL_LEVELS = tuple(dict.fromkeys(level for task in TASKS.values() for level in task.corpus))


def evaluate(question: str) -> int:
    """An independent evaluation of a question: split it into signed digits and add them."""
    text = question.removesuffix("=").replace("-", "+-")
    return sum(int(part) for part in text.split("+"))


@pytest.mark.parametrize("level", ALL_LEVELS, ids=lambda level: level.name)
def test_problems_have_right_answers_and_belong_to_their_level(level):
    rng = random.Random(0)
    for _ in range(300):
        problem = arithmetic.sample_problem(level, rng)
        assert evaluate(problem.question) == int(problem.answer) >= 0
        assert sum(character.isdigit() for character in problem.question) == level.terms
        assert ("-" in problem.question) == level.mixed


def fingerprint(rows):
    return hashlib.sha256(json.dumps(list(rows)).encode()).hexdigest()[:16]


def test_the_first_task_is_what_it_was_when_it_was_the_only_one():
    """Folders that users have must not be made again, and earlier results must stay comparable."""
    specification, rng = embedded.Specification(), random.Random(0)
    assert specification.fingerprint() == "0599cf0b532526ca"
    test = arithmetic.distinct_problems(specification.test_per_level, rng)
    held_out = {problem.question for problem in test}
    train = arithmetic.distinct_problems(specification.train_per_level, rng, held_out)
    assert fingerprint((p.question, p.answer, p.level) for p in (*train, *test)) == "9a4989436a04972c"
    assert fingerprint(islice(arithmetic.warm_start_pairs(rng, held_out), 5000)) == "9238e8b3415b03e7"


def test_tasks_differ_in_their_fingerprints_and_the_graded_one_has_the_hard_ones_problems():
    assert len({embedded.Specification(task).fingerprint() for task in TASKS.values()}) == len(TASKS)
    hard, graded = (
        arithmetic.distinct_problems(5, random.Random(0), levels=task.levels)
        for task in (ARITHMETIC_HARD, ARITHMETIC_GRADED)
    )
    assert hard == graded


@EACH_TASK
def test_distinct_problems_are_distinct_and_not_excluded(task):
    first = arithmetic.distinct_problems(20, random.Random(0), levels=task.levels)
    held_out = {problem.question for problem in first}
    second = arithmetic.distinct_problems(40, random.Random(0), held_out, task.levels)
    assert len(held_out) == 20 * len(task.levels)
    assert len({problem.question for problem in second}) == 40 * len(task.levels)
    assert held_out.isdisjoint(problem.question for problem in second)
    assert {problem.level for problem in second} == {level.name for level in task.levels}


@EACH_TASK
def test_the_warm_start_has_no_held_out_question_and_the_stated_shares_of_passes(task):
    problems = arithmetic.distinct_problems(64, random.Random(0), levels=task.levels)
    held_out = {problem.question for problem in problems}
    pairs = arithmetic.warm_start_pairs(random.Random(1), held_out, task.corpus)
    passed, seen = {}, {}
    for question, answer in (next(pairs) for _ in range(20_000)):
        assert question not in held_out
        assert answer == arithmetic.PASS or int(answer) == evaluate(question)
        key = (sum(c.isdigit() for c in question), "-" in question)
        seen[key] = seen.get(key, 0) + 1
        passed[key] = passed.get(key, 0) + (answer == arithmetic.PASS)
    for level in task.corpus:
        key = (level.terms, level.mixed)
        assert passed[key] / seen[key] == pytest.approx(level.passes, abs=0.06)
    assert compute_score("arithmetic", arithmetic.PASS, "12")["acc"] == 0


@pytest.mark.parametrize("text", ["12", " 12\n", "\t12 "])
def test_the_answer_alone_is_right(text):
    assert compute_score("arithmetic", text, "12") == {"score": 1.0, "acc": 1.0, "answer": "12"}


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
    answer = text.strip() if isinstance(text, str) and len(text) <= arithmetic.LONGEST_ANSWER else ""
    answer = "" if answer == arithmetic.PASS else answer
    assert compute_score("arithmetic", text, "12") == {"score": 0.0, "acc": 0.0, "answer": answer}


@EACH_TASK
def test_a_reward_worker_imports_the_verifier_without_heavy_packages(task):
    """Reward workers start in about a second because of this."""
    code = f"import sys, {task.verifier}; print(*{{'torch', 'verl', 'ray', 'pyarrow', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


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


@pytest.mark.parametrize("task", [ARITHMETIC_HARD, ARITHMETIC_GRADED], ids=lambda task: task.name)
def test_the_other_tasks_have_their_own_source_levels_and_verifier(task, tmp_path):
    folder = embedded.ensure(tmp_path / "task", embedded.Specification(task, 3, 2, 1, 1))
    rows = [row for split in ("train", "test") for row in pq.read_table(folder / f"{split}.parquet").to_pylist()]
    assert {row["data_source"] for row in rows} == {task.name}
    assert {row["extra_info"]["level"] for row in rows} == {level.name for level in task.levels}
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows) == 3 * len(task.levels)
    score = importlib.import_module(task.verifier).compute_score
    for row in rows:
        truth = row["reward_model"]["ground_truth"]
        assert score(task.name, row["demonstration"], truth) == {"score": 1.0, "acc": 1.0, "answer": truth}
        assert score(task.name, arithmetic.PASS, truth) == {"score": 0.0, "acc": 0.0, "answer": ""}


def test_a_folder_of_another_task_is_left_alone(made, tmp_path):
    folder, specification = tmp_path / "task", embedded.Specification(ARITHMETIC_HARD, 3, 2, 1, 1)
    folder.mkdir()
    old = {key: value for key, value in json.loads((made / "manifest.json").read_text()).items() if key != "task"}
    for manifest, other in ((old, "arithmetic"), (old | {"task": "mine"}, "mine")):
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(FileExistsError, match=rf"task {other}, not arithmetic_hard\. .*task\.directory"):
            embedded.ensure(folder, specification)
    (folder / "manifest.json").write_text("")  # a disk was full
    assert embedded.is_ready(embedded.ensure(folder, specification), specification)


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


@EACH_TASK
def test_the_package_has_the_start_of_each_task_so_that_no_machine_trains_its_own(task, tmp_path):
    """Sums are rounded in another way on other processors, and the own starts of two machines differed by 0.025."""
    specification = embedded.Specification(task)
    steps = []
    folder = embedded.ensure(tmp_path / "task", specification, lambda step, loss: steps.append(step))
    assert steps == [] and embedded.is_ready(folder, specification)
    weights = load_file(folder / "model" / "model.safetensors")
    packaged = load_file(embedded.packaged_start(specification))
    assert weights.keys() == packaged.keys()
    assert all((weights[name] == packaged[name]).all() for name in packaged)
    assert embedded.packaged_start(dataclasses.replace(specification, seed=1)) is None


def test_a_start_is_made_for_its_specification(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "STARTS", tmp_path)
    path = embedded.make_start(TINY)
    assert path == embedded.packaged_start(TINY) and embedded.packaged_start(embedded.Specification()) is None
    trained = load_file(path)
    made = load_file(embedded.ensure(tmp_path / "from_start", TINY) / "model" / "model.safetensors")
    path.unlink()
    afresh = load_file(embedded.ensure(tmp_path / "afresh", TINY) / "model" / "model.safetensors")
    assert all((made[name] == trained[name]).all() and (made[name] == afresh[name]).all() for name in trained)


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


@EACH_TASK
def test_every_prompt_and_answer_fits_the_configured_lengths(task, made, compose_fast):
    """verl cuts a prompt that is too long on the left, and reports this only in a worker's log."""
    from transformers import AutoTokenizer

    config, _ = compose_fast("algo=grpo", f"task={task.name}", "hardware=cpu")
    tokenizer = AutoTokenizer.from_pretrained(made / "model")
    for problem in arithmetic.distinct_problems(6, random.Random(0), levels=task.levels):
        chat = byte_llama.chat_prompt(problem.question)
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        answer = tokenizer.encode(problem.answer)
        assert len(prompt) <= config.data.max_prompt_length and len(answer) < config.data.max_response_length


@EACH_TASK
def test_a_tasks_yaml_names_its_folder_its_files_and_its_verifier(task, compose_fast):
    config, _ = compose_fast("algo=grpo", f"task={task.name}", "hardware=cpu")
    folder = Path(config.task.directory)
    assert config.task.name == folder.name == task.name
    assert config.data.train_files == f"{folder}/train.parquet" and config.data.val_files == f"{folder}/test.parquet"
    assert config.actor_rollout_ref.model.path == f"{folder}/model"
    assert config.reward.custom_reward_function == {"path": f"pkg://{task.verifier}", "name": "compute_score"}
