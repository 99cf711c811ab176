"""Demonstrations on verl's real FSDP2 engine: the gradient is the same for every way of dividing the rows, and plain
autograd's, in which a demonstration's tokens have no ratio to an old policy and no clip.

Two mini-batches, so that the second has ratios; plain gradient descent with a large step stands in for AdamW.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from test_gvpo_engine import distance, log_probs, model_in

pytestmark = pytest.mark.stack

K, GROUPS, RATE, GAMMA, CLIP = 4, 4, 3.0, 0.1, 0.2
MINI = GROUPS // 2 * K
HERE = Path(__file__).parent
SETTINGS = (
    *("algo=dagrpo_anchors", "task=arithmetic", "hardware=cpu", f"actor_rollout_ref.rollout.n={K}"),
    *(f"data.train_batch_size={GROUPS}", f"actor_rollout_ref.actor.ppo_mini_batch_size={GROUPS // 2}"),
    *("actor_rollout_ref.actor.optim.clip_grad=1e9", "actor_rollout_ref.actor.optim.optimizer=SGD"),
    *("actor_rollout_ref.actor.optim.weight_decay=0", f"actor_rollout_ref.actor.optim.lr={RATE}"),
    *(
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
    ),
)
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


def rows_of_groups():
    """GROUPS groups of K of unequal lengths; the last of each first group of a mini-batch is a demonstration."""
    generator = torch.Generator().manual_seed(0)

    def draw(low, high, size=()):
        return torch.randint(low, high, size, generator=generator)

    rows = []
    for group in range(GROUPS):
        prompt = draw(5, 256, (int(draw(4, 9)),))
        for session in range(K):
            demonstration = group % 2 == 0 and session == K - 1
            response = draw(5, 256, (int(draw(2, 9)) + 6 * demonstration,))
            right = demonstration if group % 2 == 0 else session < 2
            advantage = (1.0 if right else -0.5) * (3 if demonstration else 1)
            rows.append({"prompt": prompt, "response": response, "advantage": advantage, "shown": demonstration})
    return rows


def token_losses(row, new, config):
    """(j,) of one row, as the papers have them."""
    settings, a = config.actor_rollout_ref.actor.policy_loss, row["advantage"]
    if row["shown"]:
        p = new.exp()
        return -a * (p / (p + GAMMA) if settings.ratio == "shaped" else torch.exp(new - new.detach()))
    if settings.on_policy == "gspo":
        log_ratio = new - new.detach() + (new - row["old"]).mean().detach()
    else:
        log_ratio = new - row["old"]
    ratio = log_ratio.exp()
    clipped = torch.maximum(-a * ratio, -a * ratio.clamp(1 - CLIP, 1 + CLIP))
    # verl's dual clip, with c = 3; GSPO has none.
    return clipped.clamp(max=-3.0 * a) if a < 0 and settings.on_policy == "vanilla" else clipped


def aggregated(rows, losses, config):
    actor = config.actor_rollout_ref.actor
    if actor.loss_agg_mode == "token-mean":
        return sum(loss.sum() for loss in losses) / sum(len(row["response"]) for row in rows)
    if actor.loss_agg_mode == "seq-mean-token-mean":
        return sum(loss.mean() for loss in losses) / len(rows)
    return sum(loss.sum() for loss in losses) / len(rows) / actor.loss_scale_factor


def expected(task, rows, config):
    """(the gradient of both updates, the cosine between the halves of each) in float64 with plain autograd."""
    model = model_in(task)
    with torch.no_grad():
        for row in rows:
            row["old"] = log_probs(model, row)

    def gradient(part, keep=lambda row: True):
        model.zero_grad()
        losses = [token_losses(row, log_probs(model, row), config) * (1.0 if keep(row) else 0.0) for row in part]
        aggregated(part, losses, config).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    gradients, cosines = [], []
    for start in range(0, len(rows), MINI):
        part = rows[start : start + MINI]
        halves = [gradient(part, keep) for keep in (lambda row: row["advantage"] > 0, lambda row: row["advantage"] < 0)]
        positive, negative = (torch.cat([of.flatten() for of in half.values()]) for half in halves)
        cosines.append(float(torch.cosine_similarity(positive, negative, dim=0)))
        gradients.append(gradient(part))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= RATE * gradients[-1][name]
    return gradients, cosines


def case(config, rows, workers, probed):
    """Rows in the order that gives each worker its share of each mini-batch."""
    share, half = MINI // workers, range(0, len(rows), MINI)
    order = [start + rank * share + at for rank in range(workers) for start in half for at in range(share)]
    engine_rows = [
        {
            "prompts": row["prompt"],
            "responses": row["response"],
            "input_ids": torch.cat([row["prompt"], row["response"]]),
            "position_ids": torch.arange(len(row["prompt"]) + len(row["response"])),
            "response_mask": torch.ones_like(row["response"]),
            "loss_mask": torch.ones_like(row["response"]),
            "old_log_probs": row["old"].float(),
            "advantages": torch.full((len(row["response"]),), row["advantage"]),
            "demonstration": torch.tensor(row["shown"]),
        }
        for row in (rows[at] for at in order)
    ]
    size = {"global_batch_size": MINI, "mini_batch_size": MINI, "temperature": 1.0, "seed": 1, "epochs": 1}
    flags = {"calculate_entropy": False, "distillation_use_topk": False, "distillation_only": False}
    told = {"dataloader_kwargs": {"shuffle": False}, "dagrpo_probe": probed}
    return {"config": OmegaConf.to_container(config), "rows": engine_rows, "extra_info": size | flags | told}


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory, compose_fast):
    """Every case on the engine: {name: (what it found, the gradients it should have, the cosines)}."""
    folder, rows = tmp_path_factory.mktemp("dagrpo"), rows_of_groups()
    cases, wanted, known = {1: {}, 2: {}}, {}, {}
    for name, (workers, words, probed) in CASES.items():
        config, _ = compose_fast(*SETTINGS, *words, f"task.directory={tiny_task}")
        actor = config.actor_rollout_ref.actor
        same = str((actor.policy_loss, actor.loss_agg_mode))
        if same not in known:
            known[same] = expected(tiny_task, rows, config)
        wanted[name] = known[same]
        cases[workers][name] = case(config, rows, workers, probed)
    for workers, of_them in cases.items():
        torch.save(of_them, folder / f"cases{workers}.pt")
    with (folder / "log").open("w") as log:
        command = [sys.executable, HERE / "engine_workers.py", folder]
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
