"""GVPO's gradient on verl's real FSDP2 engine: the same for every way of dividing the rows, and the one it should be.

Two mini-batches, so that the second has log-ratios: plain gradient descent with a large step stands in for AdamW, whose
first step would hide the gradient's scale.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from verl_gsd.groups import group_stats
from verl_gsd.trainer.batching import PADDING, mini_batch_of
from verl_gsd.trainer.gvpo_update import GVPOUpdate

pytestmark = pytest.mark.stack

K, GROUPS, RATE, BETA = 4, 8, 3.0, 0.1
HERE = Path(__file__).parent
SETTINGS = (
    *("algo=gvpo", "task=arithmetic", "hardware=cpu", f"actor_rollout_ref.rollout.n={K}"),
    *(f"data.train_batch_size={GROUPS}", "actor_rollout_ref.actor.ppo_mini_batch_size=4"),
    *(f"actor_rollout_ref.actor.policy_loss.beta={BETA}", "actor_rollout_ref.actor.optim.clip_grad=1e9"),
    *("actor_rollout_ref.actor.optim.optimizer=SGD", "actor_rollout_ref.actor.optim.weight_decay=0"),
    *(f"actor_rollout_ref.actor.optim.lr={RATE}", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
    *("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",),
)
DYNAMIC = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu"
#: name -> (workers, words of the config, what is done to the rows)
CASES = {
    "prepass, all rows at once": (1, ["grouping=prepass"], {}),
    "prepass, packed into 64 tokens": (1, ["grouping=prepass", f"{DYNAMIC}=64"], {}),
    "prepass, rows one by one": (1, ["grouping=prepass", "rows=1"], {}),
    "prepass, rows by eight": (1, ["grouping=prepass", "rows=8"], {}),
    "whole, a group at a time": (1, ["grouping=whole", "rows=4"], {}),
    "whole, two groups at a time": (1, ["grouping=whole", "rows=8"], {}),
    "whole, packed into 160 tokens": (1, ["grouping=whole", f"{DYNAMIC}=160"], {}),
    "two workers, prepass": (2, ["grouping=prepass"], {}),
    "two workers, prepass, packed into 64 tokens": (2, ["grouping=prepass", f"{DYNAMIC}=64"], {}),
    "two workers, prepass, rows two by two": (2, ["grouping=prepass", "rows=2"], {}),
    "two workers, whole, a group at a time": (2, ["grouping=whole", "rows=4"], {}),
    "two workers, whole, packed into 160 tokens": (2, ["grouping=whole", f"{DYNAMIC}=160"], {}),
}
#: Others, each compared with what it should be.
FURTHER = {
    "a fixed reference, prepass": (1, ["grouping=prepass", "reference=ref"], {}),
    "a fixed reference, whole": (1, ["grouping=whole", "reference=ref", "rows=4"], {}),
    "two epochs, prepass": (1, ["grouping=prepass"], {"epochs": 2}),
    "two epochs, whole": (1, ["grouping=whole", "rows=4"], {"epochs": 2}),
    "without Var, prepass": (1, ["grouping=prepass", "var=false"], {}),
    "without Cov, whole": (1, ["grouping=whole", "rows=4", "cov=false"], {}),
    "sessions missing, prepass": (2, ["grouping=prepass"], {"without": [0, 1, 2, 9, 13]}),
    "sessions missing, whole": (2, ["grouping=whole", "rows=4"], {"without": [0, 1, 2, 9, 13]}),
    "two outputs in a session": (2, ["grouping=prepass"], {"joined": [5, 6]}),
    "rows rearranged behind our back": (2, ["grouping=whole", "rows=4"], {"rearranged": True, "fails": True}),
}
_SHORT = {
    "grouping": "algorithm.gsd.gvpo.grouping",
    "rows": "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu",
    "reference": "actor_rollout_ref.actor.policy_loss.reference",
    "var": "actor_rollout_ref.actor.policy_loss.var",
    "cov": "actor_rollout_ref.actor.policy_loss.cov",
}


def responses():
    """Rows of GROUPS groups of K, of unequal lengths: token ids, a mask with a tool's token, rewards."""
    generator = torch.Generator().manual_seed(0)

    def draw(low, high, size=()):
        return torch.randint(low, high, size, generator=generator)

    rows = []
    for number in range(GROUPS):
        prompt = draw(5, 256, (int(draw(4, 9)),))
        for session in range(K):
            response = draw(5, 256, (int(draw(1, 9)),))
            mask = torch.ones_like(response)
            if len(response) > 4:
                mask[2] = 0
            rows.append({"key": f"g{number}_{session}_0", "prompt": prompt, "response": response, "mask": mask})
            rows[-1]["reward"] = float(draw(0, 5)) / 4
    return rows


def log_probs(model, row):
    """(j,) log-probabilities of the response's tokens."""
    tokens = torch.cat([row["prompt"], row["response"]])
    logits = model(input_ids=tokens.unsqueeze(0)).logits[0, len(row["prompt"]) - 1 : -1]
    return torch.log_softmax(logits, dim=-1).gather(1, row["response"].unsqueeze(1)).squeeze(1)


def model_in(task, dtype=torch.float64):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(task / "model", dtype=dtype)


def labelled(rows, extra):
    """The rows that are there: some left out, some joined to one session of two outputs."""
    kept = [dict(row) for number, row in enumerate(rows) if number not in extra.get("without", ())]
    if "joined" in extra:
        first, second = (kept[number] for number in extra["joined"])
        second["key"] = first["key"].removesuffix("_0") + "_1"
        second["reward"] = first["reward"]
    return kept


def expected(task, rows, mini_batches, config):
    """The gradient of every update, in float64 with plain autograd: the loss as the paper has it, a group at a time."""
    model, policy = model_in(task), config.actor_rollout_ref.actor.policy_loss
    with torch.no_grad():
        old = {row["key"]: log_probs(model, row) for row in rows}
    reference = {row["key"]: row["ref"] for row in rows} if policy.reference == "ref" else old
    found = []
    for mini_batch in mini_batches * config.actor_rollout_ref.actor.ppo_epochs:
        sessions = {}
        for row in mini_batch:
            sessions.setdefault(row["key"].rsplit("_", 1)[0], []).append(row)
        new = {
            name: sum((log_probs(model, row) * row["mask"]).sum() for row in outputs)
            for name, outputs in sessions.items()
        }
        then = {
            name: sum((reference[row["key"]] * row["mask"]).sum() for row in outputs)
            for name, outputs in sessions.items()
        }
        groups = {}
        for name in sessions:
            groups.setdefault(name.rsplit("_", 1)[0], []).append(name)
        groups = [names for names in groups.values() if len(names) > 1]
        loss = 0
        for names in groups:
            rewards = torch.tensor([sessions[name][0]["reward"] for name in names], dtype=torch.float64)
            tilted = torch.stack([policy.var * new[name].detach() - policy.cov * then[name] for name in names])
            weights = (rewards - rewards.mean()) - BETA * (tilted - tilted.mean())
            loss = loss - BETA * (weights * torch.stack([new[name] for name in names])).sum() / (len(names) - 1)
        model.zero_grad()
        (loss / len(groups)).backward()
        found.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= RATE * parameter.grad
    return found


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory, compose_fast):
    """Every case on the engine: {name: (what it found, what it should have)}."""
    folder, rows = tmp_path_factory.mktemp("gvpo"), responses()
    with torch.no_grad():
        old, other = model_in(tiny_task, torch.float32), shifted(model_in(tiny_task, torch.float32))
        for row in rows:
            row |= {"old": log_probs(old, row), "ref": log_probs(other, row)}
    cases, to_expect = {1: {}, 2: {}}, {}
    for name, (workers, words, extra) in (CASES | FURTHER).items():
        config, present = configured(compose_fast, tiny_task, words, extra), labelled(rows, extra)
        cases[workers][name], mini_batches = prepared(config, present, workers, extra)
        if not extra.get("fails"):
            to_expect[name] = (present, mini_batches, config)
    for workers, of_them in cases.items():
        torch.save(of_them, folder / f"cases{workers}.pt")
    with (folder / "log").open("w") as log:
        command = [sys.executable, HERE / "engine_workers.py", folder]
        program = subprocess.Popen(command, env=os.environ | {"VERL_GSD_CPU": "1"}, stdout=log, stderr=log)
        wanted, known = {}, {}
        for name, (present, mini_batches, config) in to_expect.items():
            actor = config.actor_rollout_ref.actor
            same = str(
                ([[row["key"] for row in of_one] for of_one in mini_batches], actor.policy_loss, actor.ppo_epochs)
            )
            if same not in known:  # most cases divide the same mini-batches in other ways
                known[same] = expected(tiny_task, present, mini_batches, config)
            wanted[name] = known[same]
        assert program.wait(timeout=900) == 0, (folder / "log").read_text()[-6000:]
    found = torch.load(folder / "found1.pt", weights_only=False) | torch.load(folder / "found2.pt", weights_only=False)
    return {name: (found[name], wanted.get(name)) for name in found}


def shifted(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def configured(compose_fast, task, words, extra):
    words = [f"{_SHORT.get(word.partition('=')[0], word.partition('=')[0])}={word.partition('=')[2]}" for word in words]
    if any(word.startswith(_SHORT["rows"]) for word in words):
        words += ["actor_rollout_ref.actor.use_dynamic_bsz=false"]
    words += [f"task.directory={task}", f"actor_rollout_ref.actor.ppo_epochs={extra.get('epochs', 1)}"]
    config, _ = compose_fast(*SETTINGS, *words)
    return config


def prepared(config, rows, workers, extra):
    """(the case for ``engine_workers.py``, the rows of each mini-batch)."""
    update, keys = GVPOUpdate(config), [row["key"] for row in rows]
    lengths = [len(row["prompt"]) + len(row["response"]) for row in rows]
    mini_rows = config.actor_rollout_ref.actor.ppo_mini_batch_size * K
    places, _ = update.place(keys, lengths, lengths, padding_tokens=8, workers=workers, multiple=mini_rows)
    padding = {"key": "", "prompt": torch.ones(6, dtype=torch.int64), "response": torch.ones(2, dtype=torch.int64)}
    padding |= {"mask": torch.zeros(2, dtype=torch.int64), "old": torch.zeros(2), "ref": torch.zeros(2), "reward": 0.0}
    batch = [dict(padding, key=f"pad_{at}_0") if row == PADDING else rows[row] for at, row in enumerate(places)]
    labels = [row["key"].rsplit("_", 2)[0] for row in batch]
    speaks = torch.tensor([not row["key"].startswith("pad") and row["key"].endswith("_0") for row in batch])
    rewards = torch.tensor([row["reward"] for row in batch], dtype=torch.float64)
    stats = group_stats(rewards, labels, speaks)
    advantages = torch.where(speaks, rewards - stats.per_row(stats.mean), 0).float()
    for at, row in enumerate(batch):  # a session's further outputs have the advantage of its first here
        if row["key"].endswith("_1"):
            advantages[at] = advantages[[other["key"] for other in batch].index(row["key"].removesuffix("1") + "0")]
    columns = update.columns([row["key"] for row in batch], advantages)
    number = mini_batch_of(len(batch), mini_rows=mini_rows, workers=workers)
    real = [
        [row for at, row in enumerate(batch) if number[at] == j and not row["key"].startswith("pad")]
        for j in sorted(set(number))
    ]
    engine_rows = [
        {
            "prompts": row["prompt"],
            "responses": row["response"],
            "input_ids": torch.cat([row["prompt"], row["response"]]),
            "position_ids": torch.arange(len(row["prompt"]) + len(row["response"])),
            "response_mask": row["mask"],
            "loss_mask": row["mask"],
            "old_log_probs": row["old"],
            "ref_log_prob": row["ref"],
            "advantages": torch.full((len(row["response"]),), float(advantages[at])) * row["mask"],
        }
        | {name: values[at] for name, values in columns.items()}
        for at, row in enumerate(batch)
    ]
    if extra.get("rearranged"):
        engine_rows = engine_rows[::2] + engine_rows[1::2]
    size = {"global_batch_size": mini_rows, "mini_batch_size": mini_rows, "temperature": 1.0, "seed": 1}
    flags = {"calculate_entropy": False, "distillation_use_topk": False, "distillation_only": False}
    epochs = {"epochs": config.actor_rollout_ref.actor.ppo_epochs, "dataloader_kwargs": {"shuffle": False}}
    case = {
        "config": OmegaConf.to_container(config),
        "rows": engine_rows,
        "extra_info": size | flags | epochs | update.instructions(theta_is_old=True),
        "fails": extra.get("fails", False),
    }
    return case, real


def distance(found, wanted):
    """Relative L2 error over all parameters."""
    names = [name for name in wanted if wanted[name] is not None]
    error = sum(float((found[name].double() - wanted[name].double()).square().sum()) for name in names)
    return (error / sum(float(wanted[name].double().square().sum()) for name in names)) ** 0.5


@pytest.mark.parametrize("name", [name for name in CASES | FURTHER if "fails" not in (CASES | FURTHER)[name][2]])
def test_the_engines_gradients_are_those_of_the_paper(runs, name):
    found, wanted = runs[name]
    assert len(found["gradients"]) == len(wanted) > 1
    for update, of_update in enumerate(wanted):
        assert distance(found["gradients"][update], of_update) < 1e-5


def test_every_division_of_the_rows_gives_the_same_gradients(runs):
    first = runs["prepass, all rows at once"][0]["gradients"]
    for name in CASES:
        for mine, others in zip(runs[name][0]["gradients"], first, strict=True):
            assert distance(mine, others) < 1e-5


def test_the_second_update_is_none_of_reinforces(runs):
    """Otherwise the equalities above would say nothing of log-ratios."""
    metrics = runs["prepass, all rows at once"][0]["metrics"]
    assert len(metrics["gvpo/mse"]) == 2
    assert len(metrics["gvpo/s_std"]) == 1 and metrics["gvpo/s_std"][0] > 0.1, "the first one's is 0 by construction"


def test_figures_are_those_of_the_whole_mini_batch_on_every_route(runs):
    first = runs["prepass, all rows at once"][0]["metrics"]
    for name in CASES:
        mine = runs[name][0]["metrics"]
        assert mine.keys() == first.keys()
        for figure in mine.keys() - {"gvpo/split_groups"}:
            assert mine[figure] == pytest.approx(first[figure], rel=1e-3, abs=1e-6)
        if "whole" in name:
            assert mine["gvpo/split_groups"] == [0, 0]
    assert min(runs["two workers, prepass, packed into 64 tokens"][0]["metrics"]["gvpo/split_groups"]) > 0


def test_a_split_group_is_a_loud_error_under_whole(runs):
    error = runs["rows rearranged behind our back"][0]["error"]
    assert "of the 4 responses of group" in error and "grouping=prepass" in error
