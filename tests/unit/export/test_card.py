"""The model card says what is known, and nothing that belongs to the machine."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from verl_gsd.evaluation.results import BenchResult, write_result
from verl_gsd.evaluation.summary import Accuracy, HeldOut
from verl_gsd.export import card
from verl_gsd.export.card import CardFacts, CardFile, EarlierSteps, Setup, render
from verl_gsd.preparation import manifest
from verl_gsd.preparation.reading import sha256
from verl_gsd.rundir import RunDirectory

WARM = {"temperature": 0.6, "top_p": 0.9}


def prepared(folder, origin):
    folder.mkdir(parents=True)
    file = folder / "train.parquet"
    file.write_bytes(b"rows")
    entry = {"sha256": sha256(file), "verifier": None, "origin": origin}
    manifest.write_manifest(manifest.PreparedDataset(folder, {"train": entry}))
    return file


def test_prepared_files_are_named_with_their_origin_and_others_by_name(tmp_path):
    hub = prepared(tmp_path / "home" / "math", {"repository": "a/math", "revision": "abc", "split": "train"})
    own = prepared(tmp_path / "home" / "mine", {"path": "mine.jsonl", "sha256": "1"})
    plain = tmp_path / "home" / "alice" / "train.parquet"
    plain.parent.mkdir()
    plain.write_bytes(b"other")
    digest = sha256(hub)
    assert card.data_files([str(hub), str(own), str(plain), "/gone/x.parquet", "s3://bucket/y.parquet"]) == [
        CardFile("math/train.parquet", "a/math at revision abc", digest),
        CardFile("mine/train.parquet", "", digest),
        CardFile("train.parquet", "", sha256(plain)),
        CardFile("x.parquet"),
        CardFile("y.parquet"),
    ]
    hub.write_bytes(b"changed")
    assert card.data_files(str(hub)) == [CardFile("train.parquet", "", sha256(hub))], "not what was prepared"
    assert card.data_files(None) == []


@pytest.mark.parametrize(
    ("path", "name"),
    [("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("/home/alice/models/mine", "mine"), ("~/mine", "mine"), (None, None)],
)
def test_the_base_model_is_named_without_its_folder(path, name):
    assert card.base_name(path) == name


@pytest.mark.parametrize(
    ("stored", "origin"),
    [
        ({"_name_or_path": "Qwen/Qwen2.5-0.5B"}, "Qwen/Qwen2.5-0.5B"),
        ({"_name_or_path": "/home/alice/sft"}, ""),
        ({}, ""),
    ],
)
def test_the_origin_of_a_local_base_is_a_hub_name_in_its_config(tmp_path, stored, origin):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert card.base_origin(str(tmp_path)) == origin
    assert card.base_origin(str(tmp_path / "gone")) == ""
    assert card.base_origin(None) == ""


def test_settings_have_no_paths_urls_secrets_and_unset_values():
    config = {
        "data": {"train_batch_size": 8, "train_files": "/home/alice/x.parquet", "seed": None},
        "actor_rollout_ref": {
            "actor": {"optim": {"lr": 1e-6, "_target_": "verl.X", "betas": [0.9, 0.999]}},
            "model": {"lora_rank": 0, "lora_alpha": 16},
        },
        "algorithm": {
            "adv_estimator": "gsd",
            "judge": {
                "base_url": "http://10.0.0.1:8000/v1",
                "prompt": "/home/alice/prompt.txt",
                "files": ["~/a/b.json"],
                "servers": [{"api_key": "abc", "folder": "/home/alice/c", "port": 1, "note": "hf_abcdefghijklmnop"}],
                "api_key": "abc",
                "note": "hf_abcdefghijklmnop",
            },
        },
    }
    assert card.public_settings(config) == {
        "data.train_batch_size": 8,
        "actor_rollout_ref.actor.optim.lr": 1e-6,
        "actor_rollout_ref.actor.optim.betas": [0.9, 0.999],
        "algorithm.adv_estimator": "gsd",
        "algorithm.judge.base_url": "(a URL, left out)",
        "algorithm.judge.prompt": "prompt.txt",
        "algorithm.judge.files": ["b.json"],
        "algorithm.judge.servers": [{"folder": "c", "port": 1}],
    }
    config["actor_rollout_ref"]["model"]["lora_rank"] = 4
    assert card.public_settings(config)["actor_rollout_ref.model.lora_alpha"] == 16
    assert card.public_settings(None) == {}


def test_choices_are_words_of_the_command_line():
    words = ["hardware=cpu", "algo=grpo", "trainer.save_freq=3", "recipe=a/b", "task=arithmetic"]
    assert card.choices(words) == ["algo=grpo", "recipe=a/b", "task=arithmetic"]
    assert card.choices(None) == []


def test_accuracies_are_of_the_first_and_the_last_validation_up_to_the_step(tmp_path):
    run = RunDirectory(tmp_path)
    run.metrics(1).parent.mkdir()
    lines = [{"step": step, "data": {"val-core/sums/acc/mean@1": step / 10}} for step in (0, 2, 4, 6)]
    run.metrics(1).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (held_out,) = card.read_accuracies(run, 4, {"sums": 50})
    assert [(at.step, at.value) for at in held_out.accuracies] == [(0, 0.0), (4, 0.4)]
    assert held_out.accuracies[1].interval.n == 50
    assert card.read_accuracies(run, 4, {})[0].accuracies[0].interval is None
    run.metrics(1).write_text('{"step": 1, "da\n' + run.metrics(1).read_text())
    assert card.read_accuracies(run, 4, {"sums": 50}) == [held_out], "a full disk has cut off a line"


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"do_sample": False, "temperature": 0}, "one response per prompt, greedy"),
        ({"do_sample": True, "n": 1} | WARM, "1 response per prompt at temperature 0.6 and top_p 0.9"),
        ({"do_sample": True, "n": 4} | WARM, "4 responses per prompt at temperature 0.6 and top_p 0.9"),
        (None, ""),
    ],
)
def test_the_sampling_of_validations_is_stated(sampling, text):
    assert card.describe_validation({"actor_rollout_ref": {"rollout": {"val_kwargs": sampling}}}) == text


def result(files):
    settings = {"model": {"checkpoint": "/home/alice/run/global_step_4", "files": files}, "temperature": 0.6}
    return BenchResult(settings, np.arange(4), 2, np.array([2, 1, 0, 2]), {"cut_off": 0.0, "unverified": 0.0})


def test_evaluations_of_other_weights_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(card, "shard_paths", lambda checkpoint: [])
    monkeypatch.setattr(card, "file_identities", lambda files: {"a.pt": [1, 2]})
    write_result(tmp_path / "same", result({"a.pt": [1, 2]}))
    write_result(tmp_path / "before", result({"a.pt": [1, 1]}))
    assert list(card.read_evaluations(tmp_path / "global_step_4", tmp_path)) == ["same"]
    assert card.read_evaluations(tmp_path / "global_step_4", tmp_path / "none") == {}


FACTS = CardFacts(
    400,
    "Qwen/Qwen2.5-0.5B",
    False,
    "bfloat16",
    choices=["algo=grpo"],
    setup=Setup(
        {"actor_rollout_ref.actor.optim.lr": 1e-6},
        train=[CardFile("math/train.parquet", "a/math at revision abc", "0123")],
        held_out=[CardFile("test.parquet")],
        validation="one response per prompt, greedy",
    ),
    accuracies=[HeldOut("sums", (Accuracy(0, 0.25, None), Accuracy(400, 0.5, None)))],
    evaluations={"math500": result({})},
    versions={"verl": "0.9.1", "torch": "2.13.0"},
    trained_with_torch="2.13.0+cpu",
)


def test_a_card_has_the_hubs_metadata_and_all_facts():
    text = render(FACTS, "alice/mine")
    parsed = ModelCard(text)
    assert parsed.data.base_model == "Qwen/Qwen2.5-0.5B" and parsed.data.library_name == "transformers"
    for part in (
        *("400 steps", "bfloat16", "algo=grpo", "| training | math/train.parquet | a/math at revision abc | 0123 |"),
        *("| held out | test.parquet | - | unknown |", "| sums | 0.250 | 0 |", "| sums | 0.500 | 400 |", "greedy"),
        *("number of prompts is unknown", "| math500 | 4 | 2 | 0.6 | 0.625 [", "verl 0.9.1", "torch 2.13.0+cpu saved"),
        'from_pretrained("alice/mine"',
    ):
        assert part in text, part
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert settings == FACTS.setup.settings and "/home" not in text


def test_a_card_has_the_data_and_the_sampling_of_earlier_attempts():
    before = replace(FACTS.setup, train=[CardFile("old/train.parquet")], validation="4 responses per prompt")
    text = render(replace(FACTS, earlier=[EarlierSteps(100, before)]), "mine")
    assert "| training, up to step 100 | old/train.parquet |" in text and "| training | math/train.parquet |" in text
    assert text.count("| held out") == 1, "these files were the same"
    assert "(4 responses per prompt, up to step 100; one response per prompt, greedy)" in text
    assert "up to step" not in render(FACTS, "mine").lower()


def test_a_card_says_which_steps_another_run_trained():
    text = render(replace(FACTS, unknown_steps=50), "mine")
    assert "no metrics of steps 1 to 50" in text and "not known" in text


def test_a_card_says_what_is_unknown():
    text = render(CardFacts(3, None, True, "float32"), "mine")
    assert "base_model:" not in text and "library_name: peft" in text and "LoRA adapter" in text
    for part in ("data files are unknown", "No accuracy was measured", "base_model_name_or_path"):
        assert part in text


@pytest.mark.parametrize(("parameters", "size"), [(494_032_768, "494 million"), (7_615_616_512, "7.62 billion")])
def test_a_local_base_is_described_by_what_readers_can_use(parameters, size):
    local = dict(base_origin="Qwen/Qwen2.5-0.5B", architecture="Qwen2ForCausalLM", parameters=parameters)
    text = " ".join(render(CardFacts(3, "model", False, "float32", **local), "mine").split())
    assert (
        f"A model (Qwen2ForCausalLM with {size} parameters), trained from a local model in a folder `model`, whose "
        "config names `Qwen/Qwen2.5-0.5B` as its origin, after 3 steps" in text
    )
    assert "base_model:" not in text
    text = " ".join(render(CardFacts(3, "model", True, "float32", **local), "mine").split())
    assert f"A LoRA adapter (base model: Qwen2ForCausalLM with {size} parameters), trained from a local model" in text
