"""Evaluating: benchmarks and checkpoints that are not whole are refused and named, before anything is generated."""

import json
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_runs import answers_of, evaluate, prepared_sums, random_model

from verl_gsd.cli.evaluate import _of_run
from verl_gsd.evaluation import benches
from verl_gsd.evaluation.answers import Verdicts, verify
from verl_gsd.preparation.chats import Template
from verl_gsd.trainer import evaluating, merging
from verl_gsd.trainer.config import ConfigError
from verl_gsd.trainer.state import check_state, save_state, torch_of

MARKER = "latest_checkpointed_iteration.txt"
ASKED = [{"role": "user", "content": "?"}]


@pytest.fixture
def mini(tmp_path):
    return prepared_sums(tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


def test_a_benchmark_file_that_was_touched_is_refused(mini, tmp_path):
    mini.file.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"test.parquet: is not what manifest.json says"):
        benches.find("mini", tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": [], "reward_model": {"ground_truth": "1"}, "extra_info": {"index": 0}}, "write a text as"),
        ({"prompt": ASKED, "reward_model": {"ground_truth": 3}, "extra_info": {"index": 0}},
         "row 0 .the first is 0.: write a text as reward_model.ground_truth"),
        ({"prompt": ASKED, "reward_model": {"a": "3"}, "extra_info": {"index": 0}},
         "row 0 .the first is 0.: not verl's columns: KeyError"),
        ({"question": "?"}, "not readable as verl's columns|not verl's columns"),
    ],
)  # fmt: skip
def test_a_benchmark_of_other_columns_is_refused_by_row(tmp_path, row, message):
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=message):
        benches._bench("mini", tmp_path / "test.parquet", "verl_gsd.tasks.maths")


def test_an_index_that_two_questions_have_is_named(tmp_path):
    row = {
        "prompt": [{"role": "user", "content": "?"}],
        "reward_model": {"ground_truth": "3"},
        "extra_info": {"index": 4},
    }
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match=r"test.parquet: index 4 is there twice"):
        benches._bench("mini", tmp_path / "test.parquet", "verl_gsd.tasks.maths")


@pytest.fixture
def checkpoint(tmp_path, model):
    """What verl writes, the shards' contents aside."""
    folder = tmp_path / "run" / "global_step_4"
    actor = folder / "actor"
    (actor / "huggingface").mkdir(parents=True)
    (actor / "huggingface" / "config.json").write_bytes((model / "config.json").read_bytes())
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    for rank in range(2):
        (actor / f"model_world_size_2_rank_{rank}.pt").write_bytes(b"weights")
    (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("4")
    return folder


def test_a_whole_checkpoint_has_its_shards(checkpoint):
    assert set(merging.shards(checkpoint)) == {"model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: (c.parent / MARKER).write_text("3"), "whole checkpoint is global_step_3"),
        (lambda c: (c.parent / MARKER).unlink(), "last whole checkpoint is none"),
        (lambda c: (c / "actor" / "model_world_size_2_rank_1.pt").unlink(), "rank_1.pt: is not there, or empty"),
        (lambda c: (c / "actor" / "model_world_size_2_rank_1.pt").write_bytes(b""), "rank_1.pt: is not there, or em"),
        (lambda c: (c / "actor" / "huggingface" / "config.json").unlink(), "config.json: is not there"),
        (lambda c: (c / "actor" / "fsdp_config.json").write_text("{"), "fsdp_config.json: not readable"),
        (lambda c: (c / "actor" / "lora_train_meta.json").write_text("{}"), "has adapters"),
        (lambda c: (c / "actor").rename(c / "critic"), "has no actor/"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_whole_is_refused(checkpoint, tmp_path, spoil, message):
    spoil(checkpoint)
    with pytest.raises(ConfigError, match=message):
        merging.merge(checkpoint, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_shards_that_are_damaged_leave_nothing(checkpoint, tmp_path):
    """verl's merger says so, in its own process."""
    with pytest.raises(ConfigError, match=r"global_step_4: verl's merger failed: .+"):
        merging.merge(checkpoint, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))


def saved_by(checkpoint, torch):
    """Our state beside the shards, as the trainer writes it, with the torch that it names."""
    save_state(checkpoint, {}, {})
    file = checkpoint / "gsd" / "state.json"
    content = json.loads(file.read_text())
    assert content["torch"] == version("torch")
    named = {"torch": torch} if torch else {}
    file.write_text(json.dumps({key: value for key, value in content.items() if key != "torch"} | named))
    assert check_state(checkpoint, {}, ()) == ({}, {}), "with or without the key"


@pytest.mark.parametrize("torch", ["2.1.0", "1.13.1+cu117", "99.0.0a1"])
def test_a_checkpoint_of_another_torch_is_refused_by_name_before_it_is_read(checkpoint, tmp_path, torch):
    """The shards here are damaged: whoever reads them complains about something else."""
    saved_by(checkpoint, torch)
    with pytest.raises(ConfigError) as error:
        merging.merge(checkpoint, tmp_path / "merged")
    for part in (
        f"torch {torch} saved it",
        f"has torch {version('torch')}",
        "verl.model_merger",
        "where it was trained",
    ):
        assert part in str(error.value)
    assert "merger failed" not in str(error.value) and not list(tmp_path.glob("merged*"))


def test_a_checkpoint_of_another_torch_that_is_merged_already_is_used(checkpoint, tmp_path):
    saved_by(checkpoint, "2.1.0")
    target = tmp_path / "merged"
    target.mkdir()
    (target / merging.MADE_OF).write_text(json.dumps(merging.shards(checkpoint)))
    merging.merge(checkpoint, target)


def test_a_checkpoint_of_this_minor_version_is_read(checkpoint, tmp_path):
    saved_by(checkpoint, ".".join([*version("torch").split(".")[:2], "99+cu999"]))
    with pytest.raises(ConfigError, match="merger failed") as error:
        merging.merge(checkpoint, tmp_path / "merged")
    assert "where it was trained" not in str(error.value)


@pytest.mark.parametrize("has_state", [True, False])
def test_a_checkpoint_that_names_no_torch_is_tried_and_the_likely_cause_is_named(checkpoint, tmp_path, has_state):
    if has_state:
        saved_by(checkpoint, None)
    with pytest.raises(ConfigError) as error:
        merging.merge(checkpoint, tmp_path / "merged")
    for part in ("merger failed", f"this is torch {version('torch')}", "where it was trained"):
        assert part in str(error.value)


@pytest.mark.parametrize("content", ["", "[]", '{"torch": 2.11}'])
def test_a_state_that_is_damaged_names_no_torch(checkpoint, content):
    (checkpoint / "gsd").mkdir()
    (checkpoint / "gsd" / "state.json").write_text(content)
    assert torch_of(checkpoint) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("global_step_9", "global_step_9: is not there. The run's last checkpoint is global_step_4"),
        ("x", "x: is not th"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_named(checkpoint, name, message):
    with pytest.raises(ConfigError, match=message):
        evaluating.model_of(str(checkpoint.parent / name), checkpoint.parent / "o")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("data: [", "config.yaml: not readable"),
        ("data: {max_response_length: abc}", "no data.max_response_length, or of no use: 'abc'"),
        ("data: {max_response_length: -5}", "of no use: -5. Write --max-tokens"),
    ],
)
def test_a_runs_config_that_does_not_say_how_long_is_named(checkpoint, config, message, mini, tmp_path):
    """Before anything is merged."""
    (checkpoint.parent / "config.yaml").write_text(config)
    said = evaluate("--checkpoint", checkpoint, "--bench", "mini", "--data", tmp_path / "data", code=2)
    assert message in said


def test_a_run_whose_config_is_empty_has_verls_own_length(checkpoint):
    (checkpoint.parent / "config.yaml").write_text("")
    assert _of_run(str(checkpoint)) == (8192, {})


def test_the_runs_chat_template_options_are_used(mini, model):
    """A run that trained with thinking off is asked with thinking off."""
    template = Template(str(model), options={"add_generation_prompt_twice": True})
    template._tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}"
        "{% if add_generation_prompt_twice %}>{% endif %}>{% endif %}"
    )
    assert template.text(mini.questions[0].chat) == "0+1?>>"
    settings = evaluating._settings(
        mini, evaluating.Model("m", {}), template, evaluating.Sampling(1.0, 1.0, 8, 0), 1, "float32"
    )
    assert settings["chat_template_options"] == {"add_generation_prompt_twice": True}


@pytest.mark.parametrize("name", ["../mini", "a/b", "model", ""])
def test_a_benchmarks_name_is_no_path(tmp_path, name):
    with pytest.raises(ValueError, match=r"write a name of letters|write another name"):
        benches.find(name, tmp_path, tmp_path)


def test_verdicts_keep_their_places(mini):
    """Threads finish in any order; each verdict is its own response's."""
    texts = [str(n + 1) if n % 3 == 1 else "no number" for n in range(70)]
    verdicts = verify(mini, answers_of(mini, texts), lambda _: None)
    assert isinstance(verdicts, Verdicts)
    assert verdicts.correct[:, 0].tolist() == [n % 3 == 1 for n in range(70)]
