"""Demonstrations on verl's real FSDP2 engine: the gradient is the same for every way of dividing the rows, and plain
autograd's."""

import os
import subprocess
import sys

import pytest
import torch
from dagrpo_cases import SETTINGS, case, expected, rows_of_groups
from gvpo_cases import distance
from places import SUPPORT

MODE, LOSS = "actor_rollout_ref.actor.loss_agg_mode", "actor_rollout_ref.actor.policy_loss"
PACKED = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=40"
ONE_BY_ONE = ("actor_rollout_ref.actor.use_dynamic_bsz=false", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1")
#: name -> (workers, words of the config, whether gradients are probed)
CASES = {
    "all rows at once": (1, (), False),
    "packed into 40 tokens": (1, (PACKED,), False),
    "row by row": (1, ONE_BY_ONE, False),
    "two workers": (2, (PACKED,), False),
    "two workers, probed": (2, (PACKED,), True),
    "probed": (1, (), True),
    "a mean over tokens": (1, (f"{MODE}=token-mean", PACKED), False),
    "a mean over tokens, two workers": (2, (f"{MODE}=token-mean",), False),
    "sums divided by a constant": (
        2,
        (f"{MODE}=seq-mean-token-sum-norm", "actor_rollout_ref.actor.loss_scale_factor=9"),
        False,
    ),
    "ratio one": (1, (f"{LOSS}.ratio=one", PACKED), False),
    "over GSPO": (1, (f"{LOSS}.on_policy=gspo", PACKED), False),
}


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory, compose_fast):
    """Every case on the engine: {name: (what it found, the gradients it should have, the cosines)}."""
    folder, rows = tmp_path_factory.mktemp("dagrpo"), rows_of_groups()
    cases, wanted, known = {1: {}, 2: {}}, {}, {}
    for name, (workers, words, probed) in CASES.items():
        config, _ = compose_fast(*SETTINGS, "hardware=cpu", *words, f"task.directory={tiny_task}")
        actor = config.actor_rollout_ref.actor
        same = str((actor.policy_loss, actor.loss_agg_mode))
        if same not in known:
            known[same] = expected(tiny_task, rows, config)
        wanted[name] = known[same]
        cases[workers][name] = case(config, rows, workers, probed)
    for workers, of_them in cases.items():
        torch.save(of_them, folder / f"cases{workers}.pt")
    with (folder / "log").open("w") as log:
        command = [sys.executable, SUPPORT / "engine_workers.py", folder]
        program = subprocess.Popen(command, env=os.environ | {"VERL_GSD_CPU": "1"}, stdout=log, stderr=log)
        assert program.wait(timeout=900) == 0, (folder / "log").read_text()[-6000:]
    found = torch.load(folder / "found1.pt", weights_only=False) | torch.load(folder / "found2.pt", weights_only=False)
    return {name: (found[name], *wanted[name]) for name in found}


@pytest.mark.parametrize("name", CASES)
def test_the_engines_gradients_are_plain_autograds(runs, name):
    found, wanted, _ = runs[name]
    assert len(found["gradients"]) == len(wanted) == 2
    for mine, of_update in zip(found["gradients"], wanted, strict=True):
        assert distance(mine, of_update) < 1e-5


def test_the_loss_of_a_demonstration_matters_and_its_ratio_too(runs):
    """Otherwise the equalities above would say nothing of demonstrations."""
    first = {name: runs[name][1][0] for name in ("all rows at once", "ratio one")}
    assert distance(first["ratio one"], first["all rows at once"]) > 0.1


def test_the_probe_measures_the_cosine_and_changes_nothing(runs):
    for name in ("probed", "two workers, probed"):
        found, _, cosines = runs[name]
        assert found["metrics"]["dagrpo/probe/cosine"] == pytest.approx(cosines, abs=1e-4)
        assert min(found["metrics"]["dagrpo/probe/norm_positive"]) > 0
    assert "dagrpo/probe/cosine" not in runs["all rows at once"][0]["metrics"]
