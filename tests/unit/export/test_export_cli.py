"""``verl-gsd export``: the folder, bad input, and the upload. Weights are tested in test_weights.py."""

import json
import re

import fsdp_checkpoints
import httpx
import huggingface_hub
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from evaluation_runs import random_model
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from own_runs import make_own
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from verl_gsd.cli.export import show_export_command
from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.evaluation import merge
from verl_gsd.export import run as export_run
from verl_gsd.preparation.reading import sha256
from verl_gsd.rundir import RunDirectory, rehearsal_folder

ACCURACY = "val-core/sums/acc/mean@1"
TOKEN = "hf_" + "a" * 30


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(tmp_path, model):
    """A run with checkpoints of steps 2 and 4."""
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    run = tmp_path / "secret_home" / "run"
    metrics = [(0, {ACCURACY: 0.25}), (4, {ACCURACY: 0.5})]
    fsdp_checkpoints.save(run, weights, model, step=2)
    fsdp_checkpoints.save(run, weights, model, step=4, mesh=((0, 1),), metrics=metrics)
    config = {
        "actor_rollout_ref": {"model": {"path": str(model)}},
        "data": {"train_files": str(tmp_path / "secret_home" / "train.parquet")},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "overrides.yaml").write_text(yaml.safe_dump(["algo=grpo"]))
    return run


def attempts(run, *trained):
    """Write metrics and configs of attempts, (steps, learning rate) of each. The accuracy is 1e5 x the rate."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "configs").mkdir()
    for attempt, (steps, rate) in enumerate(trained, start=1):
        config["actor_rollout_ref"]["actor"] = {"optim": {"lr": rate}}
        config["data"] = {"train_files": f"/data/attempt_{attempt}.parquet", "val_files": "/data/test.parquet"}
        (run / "configs" / f"attempt_{attempt}.yaml").write_text(yaml.safe_dump(config))
        lines = [{"step": step, "data": {"training/global_step": step, ACCURACY: rate * 1e5}} for step in steps]
        path = RunDirectory(run).metrics(attempt)
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def saved_by(checkpoint, attempt):
    (checkpoint / "gsd").mkdir()
    (checkpoint / "gsd" / "metrics.json").write_text(json.dumps({"attempt": attempt, "step": 0, "data": {}}))


def card_of(checkpoint, folder):
    export(checkpoint, folder)
    return (folder / "README.md").read_text()


def settings_in(text):
    return text.partition("## Settings")[2].partition("## Versions")[0]


def test_a_card_has_the_settings_of_its_steps_and_not_of_a_later_resume(run, tmp_path):
    """Attempt 1 trained steps 1 to 3, attempt 2 resumed from step 2, attempt 3 from step 4."""
    attempts(run, ((1, 2, 3), 1e-6), ((3, 4), 2e-6), ((5,), 3e-6))
    cards = {step: card_of(run / f"global_step_{step}", tmp_path / f"out_{step}") for step in (2, 4)}
    settings = {step: settings_in(text) for step, text in cards.items()}
    assert "lr: 1.0e-06" in settings[2] and "Up to step" not in settings[2]
    assert "algo=" not in settings[2] + settings[4], "the words are those of attempt 3"
    now, earlier = settings[4].split("Up to step 2, these were different:")
    assert "lr: 2.0e-06" in now and "lr: 1.0e-06" in earlier and "3.0e-06" not in settings[4]
    data = cards[4].partition("## Data")[2].partition("## Measured")[0]
    assert "| training, up to step 2 | attempt_1.parquet |" in data and "| training | attempt_2.parquet |" in data
    assert "attempt_3" not in data and data.count("test.parquet") == 1
    (run / "configs" / "attempt_1.yaml").unlink()
    unknown = card_of(run / "global_step_4", tmp_path / "unknown")
    assert "Data and settings up to step 2 are not known" in unknown


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_checkpoint_that_a_later_branch_left_behind_has_the_card_of_its_own_attempt(run, tmp_path, is_marked):
    """Attempt 1 trained steps 1 to 4. Attempt 2 resumed from step 2 and ended at step 3."""
    attempts(run, ((1, 2, 3, 4), 1e-6), ((3,), 2e-6))
    if is_marked:  # verl's own trainers do not save who wrote a checkpoint
        saved_by(run / "global_step_4", 1)
    text = card_of(run / "global_step_4", tmp_path / "out")
    assert "lr: 1.0e-06" in settings_in(text) and "2.0e-06" not in text and "attempt_2" not in text
    assert "| sums | 0.100 | 4 |" in text and "0.200" not in text
    assert "algo=" not in settings_in(text), "the words are those of attempt 2"


def test_a_checkpoint_that_a_later_branch_passed_without_saving_has_the_card_of_its_own_attempt(run, tmp_path):
    attempts(run, ((1, 2, 3, 4), 1e-6), ((3, 4, 5), 2e-6))
    saved_by(run / "global_step_4", 1)
    text = card_of(run / "global_step_4", tmp_path / "out")
    assert "lr: 1.0e-06" in settings_in(text) and "2.0e-06" not in text and "0.200" not in text


def test_a_checkpoint_after_the_last_one_is_exported_if_a_later_attempt_went_back(run, tmp_path):
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    torch.save({}, run / "global_step_4" / "data.pt")
    attempts(run, ((1, 2, 3, 4), 1e-6))
    saved_by(run / "global_step_4", 1)
    message = export(run / "global_step_4", tmp_path / "out", code=2)
    assert "not written completely" in message, "attempt 1 may write it just now"
    RunDirectory(run).metrics(2).write_text("")
    assert "lr: 1.0e-06" in settings_in(card_of(run / "global_step_4", tmp_path / "out"))
    (run / "global_step_4" / "data.pt").unlink()
    assert "not written completely" in export(run / "global_step_4", tmp_path / "more", code=2)


def test_a_card_says_that_another_run_trained_the_first_steps(run, tmp_path):
    attempts(run, ((3, 4), 1e-6))
    assert "no metrics of steps 1 to 2" in card_of(run / "global_step_4", tmp_path / "out")


def export(*words, code=0):
    done = CliRunner().invoke(app, ["export", *map(str, words)], env={"COLUMNS": "300"})
    assert done.exit_code == code, done.output + done.stderr
    assert TOKEN not in done.output + done.stderr
    return " ".join((done.stderr if code else done.output).split())


def test_a_run_is_exported_from_its_newest_checkpoint(run, tmp_path):
    target = tmp_path / "models" / "mine"
    assert "global_step_4" in export(run, target)
    model = AutoModelForCausalLM.from_pretrained(target)
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(target).chat_template
    card = (target / "README.md").read_text()
    size = f"{type(model).__name__} with {model.num_parameters() / 1e6:.3g} million parameters"
    for part in ("4 steps", "algo=grpo", "| sums | 0.250 | 0 |", "| sums | 0.500 | 4 |", "train.parquet", size):
        assert part in card, part
    everything = "".join(path.read_text() for path in target.iterdir() if path.suffix in (".md", ".json", ".jinja"))
    assert "secret_home" not in everything and str(tmp_path) not in everything
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["mine"]


def test_an_older_checkpoint_into_an_empty_folder(run, tmp_path):
    (tmp_path / "mine").mkdir()
    export(run / "global_step_2", tmp_path / "mine", "--dtype", "float32")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "mine", dtype="auto").dtype == torch.float32
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "2 steps" in card and "| 4 |" not in card, "validations after the checkpoint are of other weights"


def occupied(run, folder):
    folder.mkdir()
    (folder / "mine.txt").write_text("")
    return run, folder


def a_file(run, folder):
    folder.write_text("")
    return run, folder


def unfinished(run, folder):
    (run / "latest_checkpointed_iteration.txt").write_text("2")
    return run / "global_step_4", folder


def unsaved(run, folder):
    (run / "latest_checkpointed_iteration.txt").unlink()
    return run, folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (lambda run, folder: (run.parent, folder), r"secret_home: .*RUN/global_step_N"),
        (lambda run, folder: (run / "global_step_9", folder), r"global_step_9: .*global_step_4"),
        (lambda run, folder: (run / "nothing", folder), r"nothing: .*RUN/global_step_N"),
        (unfinished, r"global_step_4: .*global_step_2"),
        (unsaved, r"run: .*trainer\.save_freq"),
        (occupied, r"mine: .*new folder"),
        (a_file, r"mine: .*new folder"),
        (lambda run, folder: (run, folder, "--dtype", "float8"), r"float8.*bfloat16"),
        (lambda run, folder: (run, folder, "--adapter"), r"--adapter: .*Remove --adapter"),
        (lambda run, folder: (run, folder, "--push", "a/b/c"), r"--push a/b/c: .*OWNER/NAME"),
    ],
)
def test_bad_input_is_an_error_and_nothing_is_written(run, tmp_path, words, message):
    words = words(run, tmp_path / "mine")
    before = sorted(tmp_path.rglob("*"))
    assert re.search(message, export(*words, code=2))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_config_that_cannot_be_read_is_an_error(run, tmp_path):
    (run / "config.yaml").write_text("data: [")
    assert re.search(r"config\.yaml: ", export(run, tmp_path / "mine", code=2))


def test_a_rehearsal_is_not_exported(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["trainer"] = {"default_local_dir": str(rehearsal_folder(tmp_path / "mine") / "run")}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "this is a rehearsal" in export(run, tmp_path / "exported", code=2)
    assert not (tmp_path / "exported").exists()


class HfApiStub:
    """Replaces huggingface_hub.HfApi: the hub as the user ``alice`` sees it."""

    def __init__(self, *, login=None, upload=None):
        self._login, self._upload, self.calls = login, upload, []

    def whoami(self):
        if self._login:
            raise self._login
        return {"name": "alice"}

    def create_repo(self, name, **settings):
        self.calls.append(("create_repo", name, settings))
        return f"https://huggingface.co/{name}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if self._upload:
            raise self._upload
        self.calls.append(("upload_folder", repo_id, sorted(path.name for path in folder_path.iterdir())))


def refused(status):
    request = httpx.Request("GET", "https://huggingface.co/api")
    return HfHubHTTPError(f"{status} from the hub\n{TOKEN}", response=httpx.Response(status, request=request))


@pytest.fixture
def hub(monkeypatch):
    def use(**errors):
        stub = HfApiStub(**errors)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: stub)
        return stub

    return use


def test_the_folder_is_uploaded_to_the_users_private_repository(hub, run, tmp_path):
    stub = hub()
    output = export(run, tmp_path / "folder", "--push", "mine")
    assert "https://huggingface.co/alice/mine" in output
    (_, name, settings), (_, uploaded_to, files) = stub.calls
    assert name == uploaded_to == "alice/mine" and settings == {"private": True, "exist_ok": True}
    assert {"README.md", "model.safetensors", "config.json", "tokenizer.json"} <= set(files)
    assert 'from_pretrained("alice/mine"' in (tmp_path / "folder" / "README.md").read_text()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("none"), r"--push lab/mine: .*hf auth login"),
        (refused(401), r"--push lab/mine: .*hf auth login"),
        (refused(503), r"--push lab/mine: .*503.*Remove --push"),
        (httpx.ConnectError("no network"), r"--push lab/mine: .*no network.*Remove --push"),
    ],
)
def test_without_a_login_nothing_is_exported(hub, run, tmp_path, error, message):
    hub(login=error)
    assert re.search(message, export(run, tmp_path / "folder", "--push", "lab/mine", code=2))
    assert not (tmp_path / "folder").exists()


def test_an_upload_that_fails_leaves_the_folder_and_names_the_command(hub, run, tmp_path):
    hub(upload=refused(403))
    folder = tmp_path / "folder"
    output = export(run, folder, "--push", "lab/mine", code=2)
    assert re.search(rf"--push lab/mine: .*403.*hf upload lab/mine {re.escape(str(folder))}", output)
    assert (folder / "config.json").is_file()


def test_the_held_out_prompts_give_intervals(run, tmp_path, monkeypatch):
    from verl_gsd.cli import train

    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["val_files"] = "test.parquet"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(train, "held_out_prompts", lambda config: {"sums": 40})
    make_own(run, monkeypatch)
    export(run, tmp_path / "mine")
    assert re.search(r"\| sums \| 0\.500 \[0\.\d+, 0\.\d+\] \| 4 \|", (tmp_path / "mine" / "README.md").read_text())


@pytest.fixture
def gift(run, tmp_path):
    """Somebody else's run, whose config names private files of the user who exports it."""
    (private := tmp_path / "private").mkdir()
    (private / "config.json").write_text(json.dumps({"_name_or_path": "me/unpublished"}))
    rows = {"data_source": ["secret source"] * 3}
    pq.write_table(pa.table(rows), private / "data.parquet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"] |= {name: str(private / "data.parquet") for name in ("train_files", "val_files")}
    config["data"] |= {"filter_overlong_prompts": False, "val_max_samples": -1}
    config["actor_rollout_ref"]["model"]["path"] = str(private)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_the_card_of_somebody_elses_run_says_nothing_about_private_files(gift, tmp_path):
    digest = sha256(tmp_path / "private" / "data.parquet")
    export(gift, tmp_path / "mine")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "me/unpublished" not in card and digest not in card and "| data.parquet | - | unknown |" in card
    export(gift, tmp_path / "trusted", "--trust")
    card = (tmp_path / "trusted" / "README.md").read_text()
    assert "me/unpublished" in card and digest in card


def test_a_private_model_that_somebody_elses_run_names_does_not_become_part_of_an_export(tmp_path, model, monkeypatch):
    """The audit's reproduction: the checkpoint has only adapters, and the config names their base model."""
    run = tmp_path / "run"
    policy = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        peft.LoraConfig(r=2, target_modules=["q_proj"]),
    )
    adapters = {name: weight for name, weight in policy.state_dict().items() if "lora_" in name}
    meta = {"r": 2, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    checkpoint = fsdp_checkpoints.save(run, adapters, model, lora=meta)
    (run / "config.yaml").write_text(yaml.safe_dump({"actor_rollout_ref": {"model": {"path": str(model)}}}))
    message = export(run, tmp_path / "mine", code=2)
    assert f"model.path={model}: the run's config names this base model, and nothing shows that you" in message
    assert f"verl-gsd export {checkpoint} FOLDER --base MODEL" in message and not (tmp_path / "mine").exists()
    with pytest.raises(ConfigError, match="could be a private model of yours"):
        merge.merge(checkpoint, tmp_path / "merged")  # as eval does, into somebody else's folder
    export(run, tmp_path / "chosen", "--base", model)
    export(run, tmp_path / "trusted", "--trust")
    make_own(run, monkeypatch)
    export(run, tmp_path / "own")
    for name in ("chosen", "trusted", "own"):
        weights = AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        assert weights.keys() == AutoModelForCausalLM.from_pretrained(model).state_dict().keys()
    config = {"actor_rollout_ref": {"model": {"path": str(model), "lora_adapter_path": str(tmp_path / "adapter")}}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "signature").unlink()
    message = export(run, tmp_path / "continued", "--base", model, code=2)
    assert f"lora_adapter_path={tmp_path}/adapter: the run's config names this adapter" in message
    assert "FOLDER --trust`" in message


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_checkpoint_of_somebody_elses_run_that_is_a_link_to_a_private_one_is_not_read(run, tmp_path, command):
    (private := tmp_path / "private").mkdir()
    (run / "global_step_4").rename(private / "global_step_4")
    (run / "global_step_4").symlink_to(private / "global_step_4")
    if command == "export":
        message = export(run, tmp_path / "mine", code=2)
    else:
        with pytest.raises(ConfigError) as rejected:
            merge.merge(run / "global_step_4", tmp_path / "mine")
        message = str(rejected.value)
    assert f"global_step_4: a link leads to {private}/global_step_4, outside the run, and nothing shows" in message
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize("command", ["export", "merge"])
def test_a_checkpoint_that_becomes_a_link_to_a_private_one_is_not_read(run, model, tmp_path, monkeypatch, command):
    """The owner of the run can exchange it at any time. What is read is the checkpoint that was examined."""
    weights = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).state_dict()
    zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    private = fsdp_checkpoints.save(tmp_path / "private", zeros, model, mesh=((0, 1),))
    module = export_run if command == "export" else merge

    def stub_that_exchanges_the_checkpoint(*arguments, real=module.atomic_folder, **options):
        (run / "global_step_4").rename(run / "before")
        (run / "global_step_4").symlink_to(private)
        return real(*arguments, **options)

    monkeypatch.setattr(module, "atomic_folder", stub_that_exchanges_the_checkpoint)
    if command == "export":
        export(run, tmp_path / "mine")
    else:
        merge.merge(run / "global_step_4", tmp_path / "mine")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(exported[name], weight.bfloat16()) for name, weight in weights.items())


def test_an_own_checkpoint_may_be_a_link_to_another_disk(run, tmp_path, monkeypatch):
    (disk := tmp_path / "disk").mkdir()
    (run / "global_step_4").rename(disk / "global_step_4")
    (run / "global_step_4").symlink_to(disk / "global_step_4")
    make_own(run, monkeypatch)
    export(run, tmp_path / "mine")


def test_results_of_eval_are_in_the_card(run, tmp_path):
    from verl_gsd.evaluation.run import describe_weights

    checkpoint = run / "global_step_4"
    folder = run / "evaluation" / "global_step_4" / "mini"
    folder.mkdir(parents=True)
    result = {
        **{"format": 1, "samples": 1, "indices": [0, 1], "correct": [1, 0], "figures": {}},
        "settings": {"model": describe_weights(checkpoint), "temperature": 0.6},
    }
    (folder / "result.json").write_text(json.dumps(result))
    export(run, tmp_path / "mine")
    assert "| mini | 2 | 1 | 0.6 | 0.500 [" in (tmp_path / "mine" / "README.md").read_text()
    (folder / "result.json").rename(tmp_path / "private.json")
    (folder / "result.json").symlink_to(tmp_path / "private.json")
    assert f"a link leads out of {run}" in export(run, tmp_path / "again", code=2)


def test_the_end_of_a_training_run_names_the_command(tmp_path, capsys):
    run = RunDirectory(tmp_path / "my run")
    run.path.mkdir()
    show_export_command(run)
    assert capsys.readouterr().out == "", "no checkpoint"
    run.marker.write_text("40")
    show_export_command(run)
    assert f"verl-gsd export '{run.path}/global_step_40' FOLDER" in capsys.readouterr().out.splitlines()
