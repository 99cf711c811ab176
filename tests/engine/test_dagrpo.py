"""Demonstrations on verl's real FSDP2 engine: the gradient is the same for every way of dividing the rows, and plain
autograd's."""

import json

import pytest
from dagrpo_cases import SETTINGS, case, expected, rows_of_groups
from gvpo_cases import distance

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
    "two workers with a copy of the parameters each, probed": (
        2,
        (PACKED, "actor_rollout_ref.actor.fsdp_config.fsdp_size=1"),
        True,
    ),
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
def runs(tiny_task, tmp_path_factory, compose_fast, engine_workers):
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
    cases[2]["two workers"]["checkpoint"] = str(folder / "checkpoint")
    found = engine_workers.begin(folder, cases)()
    return {name: (found[name], *wanted[name]) for name in found} | {"checkpoint": folder / "checkpoint"}


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
    (whole, _, _) = runs["probed"]
    for name in (name for name, (_, _, probed) in CASES.items() if probed):
        found, _, cosines = runs[name]
        assert found["metrics"]["dagrpo/probe/cosine"] == pytest.approx(cosines, abs=1e-4)
        assert min(found["metrics"]["dagrpo/probe/norm_positive"]) > 0
        for norm in ("dagrpo/probe/norm_positive", "dagrpo/probe/norm_negative"):
            assert found["metrics"][norm] == pytest.approx(whole["metrics"][norm], rel=1e-3), name
    assert "dagrpo/probe/cosine" not in runs["all rows at once"][0]["metrics"]


def test_verl_names_the_files_of_a_checkpoint_as_we_look_for_them(runs):
    """And it writes the file that says how many workers there were after the files of the worker that writes it."""
    files = {path.name: path for path in runs["checkpoint"].iterdir()}
    kinds = ("model", "optim", "extra_state")
    assert {f"{kind}_world_size_2_rank_{rank}.pt" for kind in kinds for rank in (0, 1)} <= files.keys()
    config = files["fsdp_config.json"]
    assert json.loads(config.read_text())["world_size"] == 2
    assert config.stat().st_mtime_ns >= max(
        files[f"{kind}_world_size_2_rank_0.pt"].stat().st_mtime_ns for kind in kinds
    )
