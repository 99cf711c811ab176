"""DaGRPO's demonstrations on verl's FSDP2 engine: rows, a case, and the gradients that plain autograd gives for it. In
these a demonstration's tokens have no ratio to an old policy and no clip.

Two mini-batches, so that the second has ratios; plain gradient descent with a large step stands in for AdamW. This file
imports no pytest: ``scripts/gpu_check.sh`` runs these cases on a GPU.
"""

import torch
from gvpo_cases import log_probs, model_in
from omegaconf import OmegaConf

K, GROUPS, RATE, GAMMA, CLIP = 4, 4, 3.0, 0.1, 0.2
MINI = GROUPS // 2 * K
#: Of every case; a hardware group comes with it.
SETTINGS = (
    *("algo=dagrpo_anchors", "task=arithmetic", f"actor_rollout_ref.rollout.n={K}"),
    *(f"data.train_batch_size={GROUPS}", f"actor_rollout_ref.actor.ppo_mini_batch_size={GROUPS // 2}"),
    *("actor_rollout_ref.actor.optim.clip_grad=1e9", "actor_rollout_ref.actor.optim.optimizer=SGD"),
    *("actor_rollout_ref.actor.optim.weight_decay=0", f"actor_rollout_ref.actor.optim.lr={RATE}"),
    *(
        "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
    ),
)


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
