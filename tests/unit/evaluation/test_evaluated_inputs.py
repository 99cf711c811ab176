"""Evaluation: damaged benchmarks and incomplete checkpoints are rejected before anything is generated."""

import json
import re
import shutil
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_runs import answer_all, answers_of, evaluate, prepared_sums, random_model, unmerged_checkpoint
from transformers import AutoTokenizer
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.evaluation import benches, run
from verl_gsd.evaluation import merge as merging
from verl_gsd.evaluation.answers import Verdicts, verify
from verl_gsd.preparation import manifest
from verl_gsd.preparation.reading import sha256
from verl_gsd.state import check_state, save_state, saved_torch_version

MARKER = "latest_checkpointed_iteration.txt"
ASKED = [{"role": "user", "content": "?"}]


@pytest.fixture
def mini(tmp_path):
    return prepared_sums(tmp_path)


def bench_of(folder, rows):
    """A benchmark whose prepared test split has these rows."""
    mine = folder / "mine"
    mine.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), mine / "test.parquet")
    split = {"sha256": sha256(mine / "test.parquet"), "verifier": "verl_gsd.tasks.maths"}
    manifest.write_manifest(manifest.PreparedDataset(mine, {"test": split}))
    return benches.find_bench("mine", folder, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


def test_a_benchmark_file_that_has_changed_is_rejected(mini, tmp_path):
    mini.file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"test\.parquet.*manifest\.json"):
        benches.find_bench("mini", tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [], "reward_model": {"ground_truth": "1"}, "extra_info": {"index": 0}}, r"row 0\b.*'1', 0"),
        ({"prompt": ASKED, "reward_model": {"ground_truth": 3}, "extra_info": {"index": 0}}, r"row 0\b.*3, 0"),
        ({"prompt": ASKED, "reward_model": {"a": "3"}, "extra_info": {"index": 0}}, r"row 0\b.*ground_truth"),
        ({"question": "?"}, "reward_model|columns"),
    ],
)
def test_the_error_for_wrong_columns_names_the_row(tmp_path, row, message):
    with pytest.raises(ValueError, match=rf"test\.parquet.*({message})"):
        bench_of(tmp_path, [row])


def test_questions_have_the_levels_of_their_rows(tmp_path):
    """A level is a text, or a number as in MATH-500."""
    (tmp_path / "number").mkdir()
    row = {"prompt": ASKED, "reward_model": {"ground_truth": "3"}}
    texts = bench_of(
        tmp_path, [row | {"extra_info": {"index": n, "level": level}} for n, level in enumerate(["a", None])]
    )
    assert [question.level for question in texts.questions] == ["a", None]
    numbers = bench_of(tmp_path / "number", [row | {"extra_info": {"index": 0, "level": 5}}])
    assert [question.level for question in numbers.questions] == ["5"]


def test_a_repeated_index_is_rejected(tmp_path):
    row = {"prompt": ASKED, "reward_model": {"ground_truth": "3"}, "extra_info": {"index": 4}}
    with pytest.raises(ValueError, match=r"test\.parquet: index 4\b"):
        bench_of(tmp_path, [row, row])


@pytest.fixture
def checkpoint(tmp_path, model):
    return unmerged_checkpoint(tmp_path / "run", model)


def test_the_shards_of_a_complete_checkpoint(checkpoint):
    assert set(merging.shard_files(checkpoint)) == {"model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"}


def shard(checkpoint):
    return checkpoint / "actor" / "model_world_size_2_rank_1.pt"


def name_ranks(checkpoint, ranks):
    (checkpoint / "actor" / "fsdp_config.json").write_text(json.dumps({"world_size": ranks}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: (c.parent / MARKER).write_text("3"), "global_step_4: .*global_step_3"),
        (lambda c: (c.parent / MARKER).unlink(), "global_step_4: .*none"),
        (lambda c: (c / "actor" / "model_world_size_2_rank_1.pt").unlink(), "names 2 ranks, .* weights of 1,"),
        (lambda c: shard(c).rename(shard(c).with_name("model_world_size_3_rank_1.pt")), "rank_1.pt: "),
        (lambda c: name_ranks(c, 10**9), "fsdp_config.json: .*world_size=1000000000"),
        (lambda c: name_ranks(c, 0), "fsdp_config.json: .*world_size=0"),
        (lambda c: (c / "actor" / "model_world_size_2_rank_1.pt").write_bytes(b""), "rank_1.pt: "),
        (lambda c: (c / "actor" / "huggingface" / "config.json").unlink(), "huggingface/config.json: "),
        (lambda c: (c / "actor" / "fsdp_config.json").write_text("{"), "fsdp_config.json: "),
        (lambda c: (c / "actor" / "model_world_size_2_rank_1.pt").write_bytes(b"half"), "rank_0.pt: cannot be read"),
        (lambda c: (c / "actor").rename(c / "critic"), "actor/"),
    ],
)  # fmt: skip
def test_an_incomplete_checkpoint_is_rejected(checkpoint, tmp_path, spoil, message):
    spoil(checkpoint)
    with pytest.raises(ConfigError, match=message):
        merging.merge(checkpoint, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


class Harmful:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("command", ["eval", "export"])
def test_nothing_in_a_shard_runs(checkpoint, mini, tmp_path, command):
    first = shard(checkpoint).with_name("model_world_size_2_rank_0.pt")
    torch.save({"w": Harmful(tmp_path / "owned")}, first)
    words = {
        "eval": [
            "--checkpoint",
            checkpoint,
            "--bench",
            "mini",
            "--data",
            tmp_path / "data",
            "--output",
            tmp_path / "out",
        ],
        "export": [checkpoint, tmp_path / "out"],
    }
    done = CliRunner().invoke(app, [command, *map(str, words[command])], env={"COLUMNS": "500"})
    assert done.exit_code == 2, done.output
    assert f"{first}: " in done.stderr and "open, which can run code" in done.stderr
    assert not (tmp_path / "owned").exists()


def saved_by(checkpoint, torch):
    """Write our state next to the shards as the trainer does, with this version of torch in it."""
    save_state(checkpoint, {}, {})
    file = checkpoint / "gsd" / "state.json"
    content = json.loads(file.read_text())
    assert content["torch"] == version("torch")
    named = {"torch": torch} if torch else {}
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "torch"} | named))
    assert check_state(checkpoint, {}, ()) == ({}, {}), "with or without the key"


@pytest.mark.parametrize("torch", ["2.1.0", "1.13.1+cu117", "99.0.0a1"])
def test_a_checkpoint_of_another_torch_version_is_rejected_before_it_is_read(checkpoint, tmp_path, torch):
    """The shards are damaged, so reading them would raise another error."""
    saved_by(checkpoint, torch)
    with pytest.raises(ConfigError) as error:
        merging.merge(checkpoint, tmp_path / "merged")
    for part in (f"torch {torch}", f"torch {version('torch')}", f"verl-gsd export {checkpoint}"):
        assert part in str(error.value)
    assert "cannot be read" not in str(error.value) and not list(tmp_path.glob("merged*"))


def test_a_merged_checkpoint_of_another_torch_version_is_used(checkpoint, tmp_path):
    saved_by(checkpoint, "2.1.0")
    target = tmp_path / "merged"
    target.mkdir()
    (target / merging.SOURCE_FILE).write_text(json.dumps(merging.shard_files(checkpoint)))
    merging.merge(checkpoint, target)


def test_a_checkpoint_of_the_same_minor_torch_version_is_read(checkpoint, tmp_path):
    """The shards are damaged, so reading them fails."""
    saved_by(checkpoint, ".".join([*version("torch").split(".")[:2], "99+cu999"]))
    with pytest.raises(ConfigError, match=r"rank_0\.pt: cannot be read"):
        merging.merge(checkpoint, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.parametrize("has_state", [True, False])
def test_if_reading_fails_the_error_names_the_installed_torch_version(checkpoint, tmp_path, has_state):
    """The checkpoint does not say which version saved it, and another version may be the cause."""
    if has_state:
        saved_by(checkpoint, None)
    with pytest.raises(ConfigError, match=rf"rank_0\.pt: .*torch {re.escape(version('torch'))}"):
        merging.merge(checkpoint, tmp_path / "merged")


@pytest.mark.parametrize("content", ["", "[]", '{"torch": 2.11}'])
def test_a_damaged_state_has_no_torch_version(checkpoint, content):
    (checkpoint / "gsd").mkdir()
    (checkpoint / "gsd" / "state.json").write_text(content)
    assert saved_torch_version(checkpoint) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("global_step_9", "global_step_9: .*global_step_4"),
        ("x", "/x: "),
    ],
)
def test_a_missing_checkpoint_is_rejected(checkpoint, name, message):
    with pytest.raises(ConfigError, match=message):
        run.resolve_model(str(checkpoint.parent / name), checkpoint.parent / "o")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("data: [", r"config\.yaml: "),
        ("data: {max_response_length: abc}", r"data\.max_response_length.*'abc'.*--max-tokens"),
        ("data: {max_response_length: -5}", r"data\.max_response_length.*-5.*--max-tokens"),
    ],
)
def test_a_run_config_without_a_valid_response_length_is_rejected(checkpoint, config, message, mini, tmp_path):
    """The error comes before the merge."""
    (checkpoint.parent / "config.yaml").write_text(config)
    output = evaluate("--checkpoint", checkpoint, "--bench", "mini", "--data", tmp_path / "data", code=2)
    assert re.search(message, output)


@pytest.fixture
def merged(monkeypatch, model):
    """Replaces the merger: merging a checkpoint copies the model."""
    copies = []

    def merge(checkpoint, target):
        copies.append(shutil.copytree(model, target))

    monkeypatch.setattr(merging, "merge", merge)
    return copies


def test_a_run_with_an_empty_config_uses_the_default_length(checkpoint, merged, mini, tmp_path):
    (checkpoint.parent / "config.yaml").write_text("")
    line = ["--checkpoint", checkpoint, "--bench", "mini", "--data", tmp_path / "data", "--output", tmp_path / "o"]
    assert "--max-tokens 8192: " in evaluate(*line, code=2), "more than the model reads"


def test_the_runs_chat_template_options_are_used(checkpoint, mini, model, tmp_path, monkeypatch):
    """A run that was trained without thinking is evaluated without thinking."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}"
        "{% if twice %}>{% endif %}>{% endif %}"
    )

    def merge(checkpoint, target):
        tokenizer.save_pretrained(shutil.copytree(model, target))

    monkeypatch.setattr(merging, "merge", merge)
    monkeypatch.setattr(run, "generate", answer_all)
    options = {"max_response_length": 8, "apply_chat_template_kwargs": {"twice": True}}
    (checkpoint.parent / "config.yaml").write_text(json.dumps({"data": options}))
    evaluate("--checkpoint", checkpoint, "--bench", "mini", "--data", tmp_path / "data", "--output", tmp_path / "o")
    settings = json.loads((tmp_path / "o" / "mini" / "result.json").read_text())["settings"]
    assert (settings["first_prompt"], settings["max_tokens"]) == ("0+1?>>", 8)
    assert settings["chat_template_options"] == {"twice": True}


def test_a_benchmark_that_names_other_code_is_rejected(mini, tmp_path):
    file = tmp_path / "data" / "mini" / "manifest.json"
    for verifier in ("mine.evil", "verl_gsd.tasks.maths.x", 3):
        content = json.loads(file.read_text())
        content["splits"]["test"]["verifier"] = verifier
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"manifest\.json: the verifier of the test split"):
            benches.find_bench("mini", tmp_path / "data", tmp_path)


@pytest.mark.parametrize("name", ["../mini", "a/b", "model", ""])
def test_a_path_is_rejected_as_a_benchmark_name(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{re.escape(repr(name))}: |^{name}: "):
        benches.find_bench(name, tmp_path, tmp_path)


def test_verdicts_are_in_the_order_of_the_responses(mini):
    """Threads finish in any order, but each verdict belongs to its response."""
    texts = [str(n + 1) if n % 3 == 1 else "no number" for n in range(70)]
    verdicts = verify(mini, answers_of(mini, texts), lambda _: None)
    assert isinstance(verdicts, Verdicts)
    assert verdicts.correct[:, 0].tolist() == [n % 3 == 1 for n in range(70)]


def test_a_model_whose_index_names_private_weights_is_rejected(model, mini, tmp_path):
    hostile = shutil.copytree(model, tmp_path / "hostile")
    index = {"weight_map": {"lm_head.weight": str(model / "model.safetensors")}}
    (hostile / "model.safetensors.index.json").write_text(json.dumps(index))
    line = ("--bench", "mini", "--data", tmp_path / "data", "--output", tmp_path / "o")
    output = evaluate("--checkpoint", hostile, *line, code=2)
    assert f"names {model}/model.safetensors, which is outside it. It was not read" in output


def test_a_model_that_makes_vllm_serve_another_one_is_rejected(model, mini, tmp_path):
    hostile = shutil.copytree(model, tmp_path / "hostile")
    config = json.loads((hostile / "config.json").read_text())
    config["speculators_config"] = {"verifier": {"name_or_path": str(model)}}
    (hostile / "config.json").write_text(json.dumps(config))
    line = ("--bench", "mini", "--data", tmp_path / "data", "--output", tmp_path / "o")
    output = evaluate("--checkpoint", hostile, *line, code=2)
    assert "config.json sets speculators_config, and vLLM would generate with the model that is named there" in output
