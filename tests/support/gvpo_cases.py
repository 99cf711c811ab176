"""GVPO on verl's FSDP2 engine: rows, the config of a case, and the gradients that plain autograd gives for it.

Two mini-batches, so that the second has log-ratios: plain gradient descent with a large step stands in for AdamW, whose
first step would hide the gradient's scale. This file imports no pytest: ``scripts/gpu_check.sh`` runs these cases on
a GPU.
"""

import torch
from omegaconf import OmegaConf

from verl_gsd.algorithms.gvpo.placement import Placement
from verl_gsd.extension import UnplacedRows
from verl_gsd.groups import group_stats
from verl_gsd.trainer.batching import PADDING, mini_batch_of
from verl_gsd.trainer.rows import DEMONSTRATION

K, GROUPS, RATE, BETA = 4, 8, 3.0, 0.1
#: Of every case; a hardware group comes with it.
SETTINGS = (
    *("algo=gvpo", "task=arithmetic", f"actor_rollout_ref.rollout.n={K}"),
    *(f"data.train_batch_size={GROUPS}", "actor_rollout_ref.actor.ppo_mini_batch_size=4"),
    *(f"actor_rollout_ref.actor.policy_loss.beta={BETA}", "actor_rollout_ref.actor.optim.clip_grad=1e9"),
    *("actor_rollout_ref.actor.optim.optimizer=SGD", "actor_rollout_ref.actor.optim.weight_decay=0"),
    *(f"actor_rollout_ref.actor.optim.lr={RATE}", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
    *("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",),
)
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
    """The rows that are there: some left out, some joined to one session of two outputs.

    Demonstrations are right in groups in which all other rows failed.
    """
    kept = [dict(row) for number, row in enumerate(rows) if number not in extra.get("without", ())]
    for number in extra.get("demonstrated", ()):
        for row in kept[number // K * K : number // K * K + K]:
            row |= {"reward": 0.0, "shown": False}
        kept[number] |= {"reward": 1.0, "shown": True}
    for number, row in enumerate(kept[: extra.get("merged", 0) * K]):
        row["key"] = f"g0_{number}_0"
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


class ExpectedGradients:
    """``expected``, once for all cases that divide the same mini-batches in other ways: most do."""

    def __init__(self, task):
        self._task, self._known = task, {}

    def of(self, rows, mini_batches, config):
        actor = config.actor_rollout_ref.actor
        labels = [[(row["key"], row["reward"]) for row in of_one] for of_one in mini_batches]
        same = str((labels, actor.policy_loss, actor.ppo_epochs))
        if same not in self._known:
            self._known[same] = expected(self._task, rows, mini_batches, config)
        return self._known[same]


def with_log_probs(task):
    """``responses`` with log-probabilities under the task's model, ``old``, and under another one, ``ref``."""
    rows = responses()
    with torch.no_grad():
        old, other = model_in(task, torch.float32), shifted(model_in(task, torch.float32))
        for row in rows:
            row |= {"old": log_probs(old, row), "ref": log_probs(other, row)}
    return rows


def shifted(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


def configured(compose, task, words, extra):
    """The resolved config of a case; ``compose`` is as the fixture ``compose_fast``."""
    words = [f"{_SHORT.get(word.partition('=')[0], word.partition('=')[0])}={word.partition('=')[2]}" for word in words]
    if any(word.startswith(_SHORT["rows"]) for word in words):
        words += ["actor_rollout_ref.actor.use_dynamic_bsz=false"]
    words += [f"task.directory={task}", f"actor_rollout_ref.actor.ppo_epochs={extra.get('epochs', 1)}"]
    config, _ = compose(*SETTINGS, *words)
    return config


def prepared(config, rows, workers, extra):
    """(the case for ``engine_workers.py``, the rows of each mini-batch)."""
    placement, keys = Placement(config), [row["key"] for row in rows]
    lengths = [len(row["prompt"]) + len(row["response"]) for row in rows]
    mini_rows = config.actor_rollout_ref.actor.ppo_mini_batch_size * K
    places, _ = placement.place(UnplacedRows(keys, lengths, lengths, GROUPS, padding_tokens=8, workers=workers))
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
    columns = placement.columns([row["key"] for row in batch], advantages)
    number = mini_batch_of(len(batch), mini_batches=placement.mini_batches, workers=workers)
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
        | ({DEMONSTRATION: torch.tensor(row.get("shown", False))} if "demonstrated" in extra else {})
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
        "extra_info": size | flags | epochs | placement.flags(theta_is_old=True),
        "fails": extra.get("fails", False),
    }
    return case, real


def distance(found, wanted):
    """Relative L2 error over all parameters."""
    names = [name for name in wanted if wanted[name] is not None]
    error = sum(float((found[name].double() - wanted[name].double()).square().sum()) for name in names)
    return (error / sum(float(wanted[name].double().square().sum()) for name in names)) ** 0.5
