"""Damaged and hostile run folders: report, compare, resume and export end with a message, and without endless work."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from report_runs import YAML_BOMB, config, everything, group, metrics, records
from typer.testing import CliRunner

from verl_gsd.charts import write_png
from verl_gsd.checkpoints import _safetensors_size, damage
from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.export.card import read_accuracies
from verl_gsd.export.checkpoint import shard_paths
from verl_gsd.python_commands import module_command
from verl_gsd.records import missing_steps
from verl_gsd.regular_files import SMALL
from verl_gsd.report.build import build_sections, read_runs
from verl_gsd.report.reading import read_run
from verl_gsd.run import trust
from verl_gsd.rundir import LARGEST_STEP, RunDirectory, read_metrics

DEEP = "[" * 200_000
YAML = {"bomb": YAML_BOMB, "recursive": "a: &a {b: *a}", "deep": DEEP, "huge number": "a: " + "9" * 5000}
LINES = {
    "deep": '{"step": 3, "data": {"a": ' + DEEP,
    "400 digits": '{"step": 3, "data": {"actor/entropy": ' + "9" * 400 + "}}",
    "5000 digits": '{"step": 3, "data": {"actor/entropy": ' + "9" * 5000 + "}}",
    "infinite step": '{"step": 1e999, "data": {"actor/entropy": 1}}',
    "step above 2^63": '{"step": ' + str(2**63) + ', "data": {"actor/entropy": 1}}',
    "negative step": '{"step": -1, "data": {"actor/entropy": 1}}',
    "no metrics": '{"step": 3, "data": [1]}',
    "no object": "3",
}


def run_report(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)], env={"COLUMNS": "300", "NO_COLOR": "1"})


@pytest.mark.parametrize("name", YAML)
def test_a_config_that_cannot_be_read_is_left_out_of_a_report(tmp_path, name):
    run = everything(tmp_path / "run", steps=2, groups=3)
    (run / "config.yaml").write_text(YAML[name])
    done = run_report(run)
    assert done.exit_code == 0, done.output
    assert "left out: " in done.output and "config.yaml: cannot be read" in done.output


@pytest.mark.parametrize("name", LINES)
def test_a_line_of_metrics_that_cannot_be_read_is_left_out_and_the_others_are_not(tmp_path, name):
    metrics(tmp_path, [(1, {"actor/entropy": 1.0}), (2, {"actor/entropy": 2.0})])
    path = RunDirectory(tmp_path).metrics(1)
    path.write_text(path.read_text() + LINES[name] + "\n")
    data = read_run(tmp_path, "run")
    assert data.metrics["step"].tolist() == [1, 2]
    assert data.skipped == (f"{path}: 1 lines cannot be read as metrics",)
    assert read_accuracies(RunDirectory(tmp_path), 2, {}) == [], "a card does without it, too"


def test_an_accuracy_that_is_no_number_is_left_out_of_a_card(tmp_path):
    path = metrics(
        tmp_path, [(1, {"val-core/math/acc/mean@1": "much"}), (LARGEST_STEP, {"val-core/math/acc/mean@1": 1})]
    )
    assert [step for step, _ in read_metrics(path)] == [1, LARGEST_STEP]
    (held_out,) = read_accuracies(RunDirectory(tmp_path), LARGEST_STEP, {})
    assert [accuracy.value for accuracy in held_out.accuracies] == [1]


def test_records_with_a_step_far_away_are_a_short_message(tmp_path):
    run = everything(tmp_path / "run", steps=3, groups=3)
    first = run / "records" / "attempt_1" / "step_000001.parquet"
    for name in ("step_99999999.parquet", f"step_{'9' * 200}.parquet"):
        first.with_name(name).write_bytes(first.read_bytes())
    assert missing_steps(run)[0] == range(4, 99999999)
    done = run_report(run)
    assert done.exit_code == 0 and re.search(r"no file for step 4, 5, 6 and\s+9{190,}1 more", done.output), done.output[
        :2000
    ]


@pytest.mark.parametrize("step", [10**9, LARGEST_STEP])
def test_a_validation_far_away_is_a_short_message_of_compare(tmp_path, step):
    run = tmp_path / "grpo" / "seed_1"
    records(run, 1, (group([0, 1]), "trained"))
    metrics(run, [(1, {"val-core/math/acc/mean@1": 0.5}), (step, {"val-core/math/acc/mean@1": 0.5})])
    config(run, data__seed=1, trainer__total_training_steps=2)
    done = CliRunner().invoke(app, ["compare", str(run)], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and f"no records of step 2, 3, 4 and {step - 4} more, so" in done.output, done.output[
        :2000
    ]


@pytest.mark.parametrize("name", [*YAML, *LINES])
def test_compare_names_the_file_that_it_cannot_read(tmp_path, name):
    run = tmp_path / "grpo" / "seed_1"
    records(run, 1, (group([0, 1]), "trained"))
    path = metrics(run, [(1, {"val-core/math/acc/mean@1": 0.5})])
    config(run, data__seed=1, trainer__total_training_steps=1)
    if name in LINES and "deep" not in name:
        path.write_text(path.read_text() + LINES[name].replace("actor/entropy", "val-core/math/acc/mean@1") + "\n")
    else:
        path = run / "config.yaml"
        path.write_text(YAML[name])
    done = CliRunner().invoke(app, ["compare", str(run)], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and f"{path.name}: " in done.output, done.output[:2000]


@pytest.mark.parametrize("name", ["config.yaml", "records/attempt_1/step_000002.parquet"])
def test_a_named_pipe_in_a_run_does_not_stop_a_report(tmp_path, name):
    """A process of its own, because the old code waits for a writer for ever."""
    run = everything(tmp_path / "run", steps=2, groups=3)
    (run / name).unlink()
    os.mkfifo(run / name)
    words = module_command("verl_gsd.cli", "report", str(run))
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "it is not a regular file" in re.sub(r"\s+", " ", done.stdout + done.stderr)


def resumable(folder, words, config="{}"):
    """A run of this user with a checkpoint that has no content."""
    run = folder / "run"
    (run / "global_step_1" / "actor").mkdir(parents=True)
    (run / "latest_checkpointed_iteration.txt").write_text("1")
    (run / "overrides.yaml").write_text(words)
    (run / "config.yaml").write_text(config)
    trust.sign(RunDirectory(run), RunDirectory(run).overrides.read_bytes())
    return run


@pytest.mark.parametrize("file", ["overrides.yaml", "config.yaml"])
@pytest.mark.parametrize("text", [*YAML.values(), "a scalar", "[1, {a: b}]"])
def test_a_run_whose_files_are_damaged_is_not_resumed(tmp_path, file, text):
    run = resumable(tmp_path, "[algo=grpo, task=arithmetic, hardware=cpu]")
    (run / file).write_text(text)
    trust.sign(RunDirectory(run), RunDirectory(run).overrides.read_bytes())
    done = CliRunner().invoke(app, ["train", f"resume={run}"], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and re.search(rf"{file}: (cannot be read|not a )", done.output), done.output[:2000]


HOSTILE_WORDS = ["a\nb=1", "[=1", "x", "", "\x1b[31m=1", "a.b=c=d", "++a[b=1", "++a\u2028b=1", "${oc.env:HOME}=1"]


@pytest.mark.parametrize("word", [*HOSTILE_WORDS, "a" * 5000 + "=1", "++" + "a." * 300 + "b=1"])
def test_hostile_words_of_a_run_end_in_a_message_of_one_line(tmp_path, word):
    run = resumable(tmp_path, yaml.safe_dump(["algo=grpo", "task=arithmetic", "hardware=cpu", word]))
    done = CliRunner().invoke(app, ["train", f"resume={run}"], env={"COLUMNS": "30000"})
    assert done.exit_code == 2 and len(done.output.splitlines()) == 1 and done.output.strip().isprintable(), done.output
    if len(word) < 300:
        assert "overrides.yaml: " in done.output


#: A size that is no number in the config of a run on data of the user's own.
SIZES = ["${oc.env:CANARY}", "5,trainer.project_name=x", "{a: 1}", "[1, 2]", "null", "true", "1.5", "'12'", '"\\e[31m"']


@pytest.mark.parametrize("size", SIZES)
def test_a_resume_takes_only_whole_numbers_from_the_config_of_a_run(tmp_path, monkeypatch, size):
    """Nobody signs the config. Its sizes become words of the resume, which are written to files."""
    monkeypatch.setenv("CANARY", "1234567")
    words = ["algo=grpo", f"data={tmp_path}", f"model={tmp_path}", "hardware=cpu"]
    config = f"data:\n  max_prompt_length: {size}\n  max_response_length: 5\n  train_batch_size: 6\n"
    run = resumable(tmp_path, yaml.safe_dump(words), config)
    done = CliRunner().invoke(app, ["train", f"resume={run}"], env={"COLUMNS": "30000"})
    assert done.exit_code == 2 and "1234567" not in done.output
    assert re.search(r"config\.yaml: data.max_prompt_length=.*not a whole number", done.output), done.output[:2000]


@pytest.mark.parametrize("config", ["{null: 2}", "{'': 1}", "{'a=b': 1, 'a[': {'b': 1}}", '{"\\e[31m": 1}', "{1: 2}"])
def test_hostile_keys_in_the_config_of_a_run_end_in_a_message(tmp_path, config):
    run = resumable(tmp_path, "[algo=grpo, task=arithmetic, hardware=cpu]", config)
    done = CliRunner().invoke(app, ["train", f"resume={run}"], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and "data.pt: is missing" in done.output, done.output[:2000]


@pytest.mark.parametrize("content", ["9" * 300, str(2**63), "-1", "x", "5".ljust(65)])
def test_a_marker_without_a_step_is_damaged(tmp_path, content):
    run = RunDirectory(tmp_path)
    run.marker.write_text(content)
    assert run.marker_is_damaged() and run.latest_checkpoint() is None


@pytest.mark.parametrize("content", [DEEP, '{"world_size": 1e999}', '{"world_size": 1000000000}', "[]", "{}"])
def test_a_checkpoint_whose_number_of_ranks_is_damaged_is_rejected(tmp_path, content):
    actor = tmp_path / "global_step_1" / "actor"
    actor.mkdir(parents=True)
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("1")
    (tmp_path / "global_step_1" / "data.pt").write_bytes(b"x")
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"x")
    (actor / "fsdp_config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"fsdp_config\.json: cannot be read"):
        shard_paths(actor.parent)
    assert "fsdp_config.json" in damage(actor.parent)


def empty(path, size):
    """A file that takes no space on the disk. The tests stay just above the limits, which the old code did not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.truncate(path, size)


@pytest.mark.parametrize("name", ["config.yaml", "overrides.yaml", "metrics/attempt_1.jsonl"])
def test_a_file_that_claims_a_large_size_ends_in_a_message(tmp_path, name):
    run = tmp_path / "run"
    metrics(run, [(1, {"val-core/math/acc/mean@1": 0.5})])
    config(run, trainer__total_training_steps=1)
    empty(run / name, SMALL + 1000)
    (sentence,) = [sentence for sentence in read_run(run, "run").skipped if f"{run}/{name}" in sentence]
    assert "larger than 67,108,864 bytes" in sentence or "longer than 67,108,864 bytes" in sentence


def test_yaml_that_would_be_parsed_for_a_minute_is_rejected(tmp_path):
    config(tmp_path, note="a" * (2 << 20))
    with pytest.raises(ValueError, match=r"config\.yaml: .*larger than 2,097,152 bytes"):
        RunDirectory(tmp_path).read_yaml(tmp_path / "config.yaml")


def test_a_header_of_weights_that_is_too_large_is_damage(tmp_path):
    """Its library reads no larger one."""
    file = tmp_path / "global_step_1" / "actor" / "model.safetensors"
    empty(file, 100_000_009)
    with file.open("r+b") as content:
        content.write((100_000_001).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="its header has 100000001 bytes"):
        _safetensors_size(file)


NAMES = ["constructor", "toString", "__proto__", "a\u2028b", "a\x01b", "a\uffffb"]


def test_runs_with_any_names_are_drawn(tmp_path):
    """Vega looks names up in an object that has a constructor, and a control character ended the process."""
    runs = [everything(tmp_path / name, steps=2, groups=3, source=name) for name in NAMES]
    sections = build_sections(read_runs(runs))
    panels = [panel for section in sections for panel in section.panels]
    assert len(panels) > 20
    for panel in panels:
        write_png(panel.chart.properties(title=panel.title), tmp_path / f"{panel.name}.png")
    done = run_report(*runs, "--output", tmp_path / "page.html")
    assert done.exit_code == 0, done.output
    page = (tmp_path / "page.html").read_text()
    assert all(name in page for name in ("constructor", "toString", "__proto__", r"a\u2028b"))


#: Files of a run that a report reads.
FILES = ["config.yaml", "overrides.yaml", "metrics/attempt_1.jsonl", "records/attempt_1/step_000002.parquet"]


@pytest.mark.parametrize("name", [*FILES, "metrics", "records/attempt_1"])
def test_a_report_publishes_nothing_to_which_a_link_leads_out_of_the_run(tmp_path, name):
    run = everything(tmp_path / "run", steps=2, groups=3)
    private = everything(tmp_path / "private", steps=2, groups=3, source="secret_source")
    for path in (run, private):
        (path / "overrides.yaml").write_text(f"[algo=grpo, +note={path.name}_word]")
        config(path, trainer__total_training_steps=2, note=f"{path.name}_setting")
    shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()
    (run / name).symlink_to(private / name)
    data = read_run(run, "run")
    assert not {"secret_source"} & set(data.records["data_source"].to_pylist())
    assert not any("secret_source" in metric for metric in data.metrics)
    assert "private" not in str(data.config) and "private" not in str(data.words)
    assert any(f"{run}/{name}" in sentence and "a link leads out of" in sentence for sentence in data.skipped)
    (run / name).unlink()
    (private / name).rename(run / name)
    (run / "link").symlink_to(run / name)
    assert not read_run(run, "run").skipped
    assert "secret_source" in str(read_run(run, "run")) or "private" in str(read_run(run, "run"))


@pytest.mark.parametrize("name", ["config.yaml", "metrics/attempt_1.jsonl", "records/attempt_1/step_000001.parquet"])
def test_compare_and_a_card_read_nothing_to_which_a_link_leads_out_of_the_run(tmp_path, name):
    run = tmp_path / "grpo" / "seed_1"
    records(run, 1, (group([0, 1]), "trained"))
    metrics(run, [(1, {"val-core/math/acc/mean@1": 0.5})])
    config(run, data__seed=1, trainer__total_training_steps=1)
    assert CliRunner().invoke(app, ["compare", str(run)]).exit_code == 0
    (run / name).rename(tmp_path / "private")
    (run / name).symlink_to(tmp_path / "private")
    done = CliRunner().invoke(app, ["compare", str(run)], env={"COLUMNS": "300"})
    assert done.exit_code == 2 and f"a link leads out of {run}" in " ".join(done.output.split()), done.output
    if name.startswith("metrics"):
        with pytest.raises(OSError, match="a link leads out"):
            read_accuracies(RunDirectory(run), 1, {})
