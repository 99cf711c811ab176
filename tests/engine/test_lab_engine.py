"""The laboratory's engine reads each prompt once. Its gradients are those of verl's FSDP2 engine and of plain autograd.

The cases of GVPO and DaGRPO also run on verl's engine, in the files of these algorithms, against the same gradients.
"""

import dagrpo_cases
import gvpo_cases
import ppo_cases
import pytest
from gvpo_cases import distance

ACTOR = "actor_rollout_ref.actor"
PACKED = f"{ACTOR}.ppo_max_token_len_per_gpu=40"
ONE_BY_ONE = (f"{ACTOR}.use_dynamic_bsz=false", f"{ACTOR}.ppo_micro_batch_size_per_gpu=1")
ENTROPY, KL = f"{ACTOR}.entropy_coeff=0.3", (f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=1.0")
#: name -> words of the config
PPO = {
    "vanilla": ("algo=grpo",),
    "vanilla, packed into 40 tokens": ("algo=grpo", PACKED),
    "vanilla, row by row": ("algo=grpo", *ONE_BY_ONE),
    "vanilla with entropy and KL terms": ("algo=grpo", ENTROPY, *KL, PACKED),
    "a mean over tokens, two epochs": ("algo=dapo", f"{ACTOR}.ppo_epochs=2", ENTROPY, PACKED),
    "gspo with entropy and KL terms": ("algo=gspo", ENTROPY, *KL, PACKED),
    "vanilla at temperature 0.7": ("algo=grpo", "actor_rollout_ref.rollout.temperature=0.7"),
    "vanilla with clipped gradients": ("algo=grpo", f"{ACTOR}.optim.clip_grad=0.05"),
}
#: name -> (words of the config, what is done to the rows)
GVPO = {
    "gvpo, prepass, all rows at once": (["grouping=prepass"], {}),
    "gvpo, prepass, packed into 64 tokens": (["grouping=prepass", f"{ACTOR}.ppo_max_token_len_per_gpu=64"], {}),
    "gvpo, whole, a group at a time": (["grouping=whole", "rows=4"], {}),
    "gvpo, a fixed reference": (["grouping=prepass", "reference=ref"], {}),
    "gvpo, two epochs": (["grouping=whole", "rows=8"], {"epochs": 2}),
    "gvpo, sessions missing": (["grouping=prepass"], {"without": [0, 1, 2, 9, 13]}),
}
#: name -> (words of the config, whether gradients are probed)
DAGRPO = {
    "dagrpo, all rows at once": ((), False),
    "dagrpo, packed and probed": ((PACKED,), True),
    "dagrpo, a mean over tokens": ((f"{ACTOR}.loss_agg_mode=token-mean",), False),
    "dagrpo, over gspo": ((f"{ACTOR}.policy_loss.on_policy=gspo", *ONE_BY_ONE), False),
}


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory, compose_fast, engine_workers):
    """name -> (what the laboratory's engine found, what verl's found or None, the gradients it should have)."""
    common = ("hardware=cpu", f"task.directory={tiny_task}")
    cases, wanted, on_both = {}, {}, set()
    rows = ppo_cases.rows_of_groups(tiny_task)
    for name, words in PPO.items():
        config, _ = compose_fast(*ppo_cases.SETTINGS, *common, *words)
        wanted[name], cases[name] = ppo_cases.expected(tiny_task, rows, config), ppo_cases.case(config, rows)
        on_both.add(name)
    rows, expected = gvpo_cases.with_log_probs(tiny_task), gvpo_cases.ExpectedGradients(tiny_task)
    for name, (words, extra) in GVPO.items():
        config = gvpo_cases.configured(compose_fast, tiny_task, ["hardware=cpu", *words], extra)
        present = gvpo_cases.labelled(rows, extra)
        cases[name], mini_batches = gvpo_cases.prepared(config, present, 1, extra)
        wanted[name] = expected.of(present, mini_batches, config)
    rows = dagrpo_cases.rows_of_groups()
    for name, (words, probed) in DAGRPO.items():
        config, _ = compose_fast(*dagrpo_cases.SETTINGS, *common, *words)
        wanted[name], cosines = dagrpo_cases.expected(tiny_task, rows, config)
        cases[name] = dagrpo_cases.case(config, rows, 1, probed)
        if probed:
            wanted["cosines"] = cosines
    verls = {f"verl's: {name}": cases[name] for name in on_both}
    labs = {name: case | {"in_laboratory": True} for name, case in cases.items()}
    found = engine_workers.begin(tmp_path_factory.mktemp("lab"), {1: verls | labs})()
    return {name: (found[name], found.get(f"verl's: {name}"), wanted[name]) for name in cases} | {
        "cosines": wanted["cosines"]
    }


@pytest.mark.parametrize("name", [*PPO, *GVPO, *DAGRPO])
def test_gradients_are_plain_autograds(runs, name):
    found, _, wanted = runs[name]
    assert len(found["gradients"]) == len(wanted) > 1
    for mine, of_update in zip(found["gradients"], wanted, strict=True):
        assert distance(mine, of_update) < 1e-5


@pytest.mark.parametrize("name", PPO)
def test_gradients_are_those_of_verls_engine(runs, name):
    found, verls, _ = runs[name]
    for mine, of_update in zip(found["gradients"], verls["gradients"], strict=True):
        assert distance(mine, of_update) < 1e-5


@pytest.mark.parametrize("name", PPO)
def test_the_norm_of_the_gradient_and_verls_metrics_are_those_of_verls_engine(runs, name):
    found, verls, _ = runs[name]
    assert found["verls_metrics"].keys() == verls["verls_metrics"].keys() >= {"grad_norm", "actor/pg_loss"}
    for metric, values in verls["verls_metrics"].items():
        assert found["verls_metrics"][metric] == pytest.approx(values, rel=1e-4, abs=1e-6), metric


def test_the_terms_of_a_loss_matter(runs):
    """Otherwise the equalities above would say nothing of them."""
    first = {name: runs[name][2][0] for name in PPO}
    assert distance(first["vanilla with entropy and KL terms"], first["vanilla"]) > 0.1
    second = {name: runs[name][2][1] for name in PPO}
    assert distance(second["gspo with entropy and KL terms"], second["vanilla with entropy and KL terms"]) > 0.1


def test_the_temperature_and_the_clipping_of_gradients_matter(runs):
    vanilla = runs["vanilla"][2]
    assert distance(runs["vanilla at temperature 0.7"][2][0], vanilla[0]) > 0.1
    first, second = runs["vanilla with clipped gradients"][2]
    assert distance(first, vanilla[0]) == 0 and distance(second, vanilla[1]) > 1e-3


def test_the_probe_of_dagrpo_runs_in_the_laboratory(runs):
    found = runs["dagrpo, packed and probed"][0]["metrics"]
    assert found["dagrpo/probe/cosine"] == pytest.approx(runs["cosines"], abs=1e-4)
