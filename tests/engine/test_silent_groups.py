"""Silent groups left out of the denominator, on verl's FSDP2 engine: the gradient is plain autograd's for every
aggregation and every division of the rows. KL and entropy terms keep verl's denominator.
"""

import pytest
import torch
from gvpo_cases import distance, model_in
from omegaconf import OmegaConf
from ppo_cases import MINI, RATE, SETTINGS, log_probs_and_entropies, rows_of_groups, token_losses

ACTOR = "actor_rollout_ref.actor"
LEFT_OUT = "silent_groups=left_out"
PACKED = f"{ACTOR}.ppo_max_token_len_per_gpu=40"
ONE_BY_ONE = (f"{ACTOR}.use_dynamic_bsz=false", f"{ACTOR}.ppo_micro_batch_size_per_gpu=1")
TERMS = (f"{ACTOR}.entropy_coeff=0.3", f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=1.0")
NORM = f"{ACTOR}.loss_scale_factor=9"
#: Rows of silent groups of unequal sizes: 1 to 5 in the first mini-batch, four of the second. Also lists of others.
SOME, ALL_OF_FIRST, NONE = {1, 2, 3, 4, 5, 12, 15, 18, 21}, {*range(MINI), 14}, set()
FOUR_EACH = {0, 3, 4, 7, 12, 15, 16, 19}


def mode(name):
    return f"{ACTOR}.loss_agg_mode={name}"


#: name -> (workers, words of the config, rows of silent groups, further changes of the case)
CASES = {
    "token-mean": (1, (mode("token-mean"),), SOME, {}),
    "token-mean, packed": (1, (mode("token-mean"), PACKED), SOME, {}),
    "token-mean, row by row": (1, (mode("token-mean"), *ONE_BY_ONE), SOME, {}),
    "token-mean, two workers": (2, (mode("token-mean"), PACKED), SOME, {}),
    "token-mean, two workers, other terms": (2, (mode("token-mean"), PACKED, *TERMS), SOME, {}),
    "token-mean, two epochs": (2, (mode("token-mean"), f"{ACTOR}.ppo_epochs=2"), SOME, {}),
    "seq-mean-token-mean": (1, (mode("seq-mean-token-mean"),), SOME, {}),
    "seq-mean-token-mean, two workers": (2, (mode("seq-mean-token-mean"), PACKED), SOME, {}),
    "seq-mean-token-mean, two workers, row by row": (2, (mode("seq-mean-token-mean"), *ONE_BY_ONE), SOME, {}),
    "seq-mean-token-mean, other terms": (1, (mode("seq-mean-token-mean"), PACKED, *TERMS), SOME, {}),
    "seq-mean-token-sum": (1, (mode("seq-mean-token-sum"), PACKED), SOME, {}),
    "seq-mean-token-sum, two workers": (2, (mode("seq-mean-token-sum"), PACKED), SOME, {}),
    "seq-mean-token-sum-norm": (1, (mode("seq-mean-token-sum-norm"), NORM, *ONE_BY_ONE), SOME, {}),
    "seq-mean-token-sum-norm, two workers": (2, (mode("seq-mean-token-sum-norm"), NORM, PACKED, *TERMS), SOME, {}),
    "gspo, two workers": (2, ("algo=gspo", PACKED), SOME, {}),
    "none silent": (2, (mode("token-mean"), PACKED), NONE, {}),
    "padding": (2, (mode("seq-mean-token-mean"), PACKED), SOME, {"padding": {10, 23}}),
    "first all silent": (2, (mode("token-mean"), PACKED), ALL_OF_FIRST, {}),
    "first all silent, by responses": (1, (mode("seq-mean-token-mean"), PACKED), ALL_OF_FIRST, {}),
    "four of each": (2, (mode("token-mean"), PACKED), FOUR_EACH, {}),
    "four of each, by responses": (1, (mode("seq-mean-token-sum"), PACKED), FOUR_EACH, {}),
    "laboratory": (1, (mode("token-mean"), PACKED, *TERMS), SOME, {"in_laboratory": True}),
}
#: The same rows without those of the silent groups, with verl's denominator.
REMOVED = {
    "four of each": (2, (mode("token-mean"), PACKED), FOUR_EACH),
    "four of each, by responses": (1, (mode("seq-mean-token-sum"), PACKED), FOUR_EACH),
}


def aggregated(losses, rows, actor):
    """The sum of the token losses (j,) of rows, divided as the aggregation says; 0 without rows."""
    if not rows:
        return 0.0
    tokens = [row["mask"].sum() for row in rows]
    if actor.loss_agg_mode == "token-mean":
        return sum(loss.sum() for loss in losses) / sum(tokens)
    if actor.loss_agg_mode == "seq-mean-token-mean":
        losses = [loss.sum() / max(count, 1) for loss, count in zip(losses, tokens, strict=True)]
    constant = actor.loss_scale_factor if actor.loss_agg_mode == "seq-mean-token-sum-norm" else 1
    return sum(loss.sum() for loss in losses) / len(rows) / constant


def expected(task, rows, config):
    """The gradient of every update in float64, by plain autograd: the policy loss over rows that are not silent, plus
    the other terms over all rows."""
    model, actor = model_in(task), config.actor_rollout_ref.actor
    gradients = []
    for start in [*range(0, len(rows), MINI)] * actor.ppo_epochs:
        part = rows[start : start + MINI]
        found = [log_probs_and_entropies(model, row) for row in part]
        others = [
            token_losses(row | {"advantage": 0.0}, *of_row, actor) * row["mask"]
            for row, of_row in zip(part, found, strict=True)
        ]
        policy = [
            token_losses(row, *of_row, actor) * row["mask"] - other
            for row, of_row, other in zip(part, found, others, strict=True)
        ]
        heard = [number for number, row in enumerate(part) if not row["silent"]]
        loss = aggregated(others, part, actor)
        loss = loss + aggregated([policy[number] for number in heard], [part[number] for number in heard], actor)
        model.zero_grad()
        loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= RATE * gradients[-1][name]
    return gradients


def labelled(rows, silent, padding=()):
    """The rows, with advantages of 0 in silent groups and in padding, whose mask is empty."""
    rows = [row | {"silent": number in silent} for number, row in enumerate(rows)]
    for number, row in enumerate(rows):
        if number in padding:
            row["mask"] = torch.zeros_like(row["mask"])
        if number in silent or number in padding:
            row["advantage"] = 0.0
    return rows


def case(config, rows, workers, mini):
    """Rows in the order that gives each worker its share of each mini-batch of ``mini`` rows."""
    actor, share = config.actor_rollout_ref.actor, mini // workers
    starts = range(0, len(rows), mini)
    order = [start + rank * share + at for rank in range(workers) for start in starts for at in range(share)]
    engine_rows = [
        {
            "prompts": row["prompt"],
            "responses": row["response"],
            "input_ids": torch.cat([row["prompt"], row["response"]]),
            "position_ids": torch.arange(len(row["prompt"]) + len(row["response"])),
            "response_mask": row["mask"],
            "loss_mask": row["mask"],
            "old_log_probs": row["old"].float(),
            "ref_log_prob": row["ref"].float(),
            "advantages": torch.full((len(row["response"]),), row["advantage"]),
            "in_silent_group": torch.tensor(row["silent"]),
            "response_weight": torch.tensor(1.0, dtype=torch.float64),
        }
        for row in (rows[at] for at in order)
    ]
    size = {"global_batch_size": mini, "mini_batch_size": mini, "temperature": 1.0, "seed": 1}
    flags = {"calculate_entropy": bool(actor.entropy_coeff), "distillation_use_topk": False, "distillation_only": False}
    epochs = {"epochs": actor.ppo_epochs, "dataloader_kwargs": {"shuffle": False}}
    return {"config": OmegaConf.to_container(config), "rows": engine_rows, "extra_info": size | flags | epochs}


@pytest.fixture(scope="module")
def runs(tiny_task, tmp_path_factory, compose_fast, engine_workers):
    """name -> (what the engine found, the gradients it should have, its rows)."""
    folder, all_rows = tmp_path_factory.mktemp("silent"), rows_of_groups(tiny_task)
    common = (*SETTINGS, "algo=grpo", "hardware=cpu", f"task.directory={tiny_task}")
    cases, wanted, rows_of, known = {1: {}, 2: {}}, {}, {}, {}

    def composed(*words):
        base = common if "algo=gspo" not in words else [word for word in common if word != "algo=grpo"]
        return compose_fast(*base, *words)[0]

    for name, (workers, words, silent, extra) in CASES.items():
        config, rows = composed(LEFT_OUT, *words), labelled(all_rows, silent, extra.get("padding", ()))
        actor = config.actor_rollout_ref.actor
        same = str((actor.policy_loss, actor.loss_agg_mode, actor.ppo_epochs, actor.use_kl_loss, silent, extra.keys()))
        if same not in known:
            known[same] = expected(tiny_task, rows, config)
        wanted[name], rows_of[name] = known[same], rows
        cases[workers][name] = case(config, rows, workers, MINI) | {"in_laboratory": extra.get("in_laboratory", False)}
    for name, (workers, words, silent) in REMOVED.items():
        rows = [row for row in labelled(all_rows, silent) if not row["silent"]]
        cases[workers][f"removed: {name}"] = case(composed(*words), rows, workers, MINI - 4)
    verls = case(composed(mode("token-mean")), labelled(all_rows, SOME), 1, MINI)
    found = engine_workers.begin(folder, {1: cases[1] | {"verl's": verls}, 2: cases[2]})()
    return {name: (found[name], wanted.get(name), rows_of.get(name)) for name in found}


@pytest.mark.parametrize("name", [name for name in CASES if "all silent" not in name])
def test_the_engines_gradients_are_plain_autograds(runs, name):
    found, wanted, _ = runs[name]
    assert len(found["gradients"]) == len(wanted) > 1
    for mine, of_update in zip(found["gradients"], wanted, strict=True):
        assert distance(mine, of_update) < 1e-5


@pytest.mark.parametrize("name", [name for name in CASES if "all silent" in name])
def test_a_mini_batch_of_silent_groups_alone_has_a_gradient_of_zero(runs, name):
    found, wanted, _ = runs[name]
    assert all(not gradient.any() for gradient in found["gradients"][0].values())  # a NaN would be true
    assert distance(found["gradients"][1], wanted[1]) < 1e-5
    assert found["metrics"]["silent_groups/scale"][0] == 1


@pytest.mark.parametrize("name", REMOVED)
def test_the_update_is_that_of_a_batch_without_these_groups(runs, name):
    for mine, of_rest in zip(runs[name][0]["gradients"], runs[f"removed: {name}"][0]["gradients"], strict=True):
        assert distance(mine, of_rest) < 1e-5


def test_verls_denominator_gives_another_gradient(runs):
    """Smaller by the share of tokens that is not silent. Otherwise the equalities above would say nothing."""
    ours, verls = (runs[name][0]["gradients"][0] for name in ("token-mean", "verl's"))
    rows = runs["token-mean"][2][:MINI]
    tokens = [int(row["mask"].sum()) for row in rows]
    rest = sum(count for count, row in zip(tokens, rows, strict=True) if not row["silent"]) / sum(tokens)
    assert rest < 0.7
    assert distance({name: rest * gradient for name, gradient in ours.items()}, verls) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_metrics_are_those_of_the_whole_mini_batch(runs, name):
    found, _, rows = runs[name]
    metrics, by_tokens = found["metrics"], CASES[name][1][0] == mode("token-mean")
    for update, values in enumerate(
        zip(*(metrics[f"silent_groups/{of}"] for of in ("share_of_tokens", "share_of_responses", "scale")), strict=True)
    ):
        start = update * MINI % len(rows)
        part = rows[start : start + MINI]
        tokens = [int(row["mask"].sum()) for row in part]
        shares = (
            sum(count for count, row in zip(tokens, part, strict=True) if row["silent"]) / sum(tokens),
            sum(row["silent"] for row in part) / MINI,
        )
        share = shares[0 if by_tokens else 1]
        assert values == pytest.approx((*shares, 1 / (1 - share) if share < 1 else 1))


def test_verl_averages_the_metrics(runs):
    """It takes the minimum of a metric whose name contains ``min``, as ``denominator`` does."""
    names = {name for name in runs["token-mean"][0]["metrics"] if name.startswith("silent_groups/")}
    assert len(names) == 3 and not [name for name in names for part in ("max", "min", "sum", "total") if part in name]
