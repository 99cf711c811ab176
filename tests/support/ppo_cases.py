"""verl's own losses on an engine: rows, a case, and the gradients that plain autograd gives for it.

Rows are of the kinds that a pass over shared prompts could get wrong: prompts of unequal lengths, prompts that begin
with another prompt, the same prompt in two groups, responses of one token, and masked tokens. There are two
mini-batches, so that the second has ratios. Plain gradient descent stands in for AdamW, whose first step would hide the
gradient's scale.
"""

import torch
from gvpo_cases import model_in, shifted
from omegaconf import OmegaConf

K, GROUPS, RATE = 4, 6, 0.3
MINI = GROUPS // 2 * K
#: Of every case; a hardware group and an algorithm come with it.
SETTINGS = (
    *("task=arithmetic", f"actor_rollout_ref.rollout.n={K}", f"data.train_batch_size={GROUPS}"),
    *(f"actor_rollout_ref.actor.ppo_mini_batch_size={GROUPS // 2}", "actor_rollout_ref.actor.optim.clip_grad=1e9"),
    *("actor_rollout_ref.actor.optim.optimizer=SGD", "actor_rollout_ref.actor.optim.weight_decay=0"),
    *(f"actor_rollout_ref.actor.optim.lr={RATE}", "actor_rollout_ref.actor.optim.lr_warmup_steps=0"),
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=2",
)


def rows_of_groups(task):
    """GROUPS groups of K with log-probabilities under the task's model, ``old``, and under another one, ``ref``."""
    generator = torch.Generator().manual_seed(0)

    def draw(low, high, size=()):
        return torch.randint(low, high, size, generator=generator)

    first = draw(5, 256, (4,))
    prompts = [first, torch.cat([first, draw(5, 256, (5,))]), draw(5, 256, (1,)), draw(5, 256, (9,))]
    prompts += [prompts[1][:6], first]
    rows = []
    for number, prompt in enumerate(prompts):
        for session in range(K):
            response = draw(5, 256, (1 if session == 0 or number == 2 else int(draw(2, 9)),))
            mask = torch.ones_like(response)
            if len(response) > 4:
                mask[2] = 0
            rows.append({"prompt": prompt, "response": response, "mask": mask, "advantage": float(session) - 1.4})
    model, other = model_in(task), shifted(model_in(task))
    with torch.no_grad():
        for row in rows:
            row |= {"old": log_probs_and_entropies(model, row)[0], "ref": log_probs_and_entropies(other, row)[0]}
    return rows


def log_probs_and_entropies(model, row, temperature=1.0):
    """Both (j,), of the response's tokens."""
    tokens = torch.cat([row["prompt"], row["response"]])
    logits = model(input_ids=tokens.unsqueeze(0)).logits[0, len(row["prompt"]) - 1 : -1] / temperature
    log_probs = torch.log_softmax(logits, dim=-1)
    return log_probs.gather(1, row["response"].unsqueeze(1)).squeeze(1), -(log_probs.exp() * log_probs).sum(dim=1)


def token_losses(row, log_probs, entropies, actor):
    """(j,) of one row: the clipped ratio of PPO or GSPO, minus the entropy, plus the k3 estimate of the KL term."""
    advantage, mask = row["advantage"], row["mask"]
    log_ratios = log_probs - row["old"]
    if actor.policy_loss.loss_mode == "gspo":
        mean = ((log_ratios * mask).sum() / mask.sum()).detach()
        log_ratios = log_probs - log_probs.detach() + mean
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1 - actor.clip_ratio_low, 1 + actor.clip_ratio_high)
    losses = torch.maximum(-advantage * ratios, -advantage * clipped)
    if advantage < 0 and actor.policy_loss.loss_mode == "vanilla":
        losses = losses.clamp(max=-actor.clip_ratio_c * advantage)
    losses = losses - actor.entropy_coeff * entropies
    if actor.use_kl_loss:
        log_ratio_to_reference = row["ref"] - log_probs
        losses = losses + actor.kl_loss_coef * (log_ratio_to_reference.exp() - log_ratio_to_reference - 1)
    return losses


def expected(task, rows, config):
    """The gradient of every update before clipping, in float64 with plain autograd, one row at a time."""
    model, actor = model_in(task), config.actor_rollout_ref.actor
    temperature = config.actor_rollout_ref.rollout.temperature
    gradients = []
    for start in [*range(0, len(rows), MINI)] * actor.ppo_epochs:
        part = rows[start : start + MINI]
        found = [log_probs_and_entropies(model, row, temperature) for row in part]
        losses = [token_losses(row, *of_row, actor) * row["mask"] for row, of_row in zip(part, found, strict=True)]
        if actor.loss_agg_mode == "token-mean":
            loss = sum(of_row.sum() for of_row in losses) / sum(row["mask"].sum() for row in part)
        else:
            loss = sum(of_row.sum() / row["mask"].sum() for of_row, row in zip(losses, part, strict=True)) / len(part)
        model.zero_grad()
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        norm = torch.stack([gradient.norm() for gradient in gradients[-1].values()]).norm()
        scale = min(1.0, actor.optim.clip_grad / float(norm))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= RATE * scale * gradients[-1][name]
    return gradients


def case(config, rows):
    """For ``engine_workers.py``, with one worker."""
    actor, temperature = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout.temperature
    engine_rows = [
        {
            "prompts": row["prompt"],
            "responses": row["response"],
            "input_ids": torch.cat([row["prompt"], row["response"]]),
            "position_ids": torch.arange(len(row["prompt"]) + len(row["response"])),
            "response_mask": row["mask"],
            "loss_mask": row["mask"],
            "old_log_probs": row["old"].float(),
            "advantages": torch.full((len(row["response"]),), row["advantage"]),
        }
        | ({"ref_log_prob": row["ref"].float()} if actor.use_kl_loss else {})
        for row in rows
    ]
    size = {"global_batch_size": MINI, "mini_batch_size": MINI, "temperature": temperature, "seed": 1}
    flags = {"calculate_entropy": bool(actor.entropy_coeff), "distillation_use_topk": False, "distillation_only": False}
    epochs = {"epochs": actor.ppo_epochs, "dataloader_kwargs": {"shuffle": False}}
    return {"config": OmegaConf.to_container(config), "rows": engine_rows, "extra_info": size | flags | epochs}
