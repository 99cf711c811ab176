"""Every stage and every loss on the device: equal to the result on the CPU.

Both are given the same numbers. What is not a float must be equal; a float32 tensor may differ by ``TOLERANCE`` times
its largest entry, because a GPU sums in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import FSDPActorConfig

from gpu_check.device import device
from gpu_check.record import CheckFailedError, Report
from verl_gsd import extension
from verl_gsd.algorithms.dagrpo import pairs as dagrpo
from verl_gsd.algorithms.dagrpo.demonstration_ratio import demonstration_ratio
from verl_gsd.algorithms.dagrpo.loss import DagrpoLossConfig
from verl_gsd.algorithms.gvpo import maths as gvpo
from verl_gsd.algorithms.gvpo import rows as gvpo_rows
from verl_gsd.algorithms.gvpo.loss import GVPOLossConfig
from verl_gsd.algorithms.gvpo.worker import GvpoWorker
from verl_gsd.groups import Group, Member, group_stats
from verl_gsd.trainer.estimator import batch_context, gsd_advantage
from verl_gsd.trainer.loss_context import with_context
from verl_gsd.trainer.rows import DEMONSTRATION

TOLERANCE = 1e-5
GROUPS, SIZE, TOKENS = 48, 8, 64
#: Of the mini-batch that the losses' rows are a part of.
_GLOBAL = {"dp_size": 2, "batch_num_tokens": 9000, "global_batch_size": 2 * GROUPS * SIZE, "loss_scale_factor": 64}

Tree = Mapping[str, Any]
#: What a case computes on a device: names and tensors, numbers or texts.
Case = Callable[[torch.device], Tree]


class Rows:
    """One batch on the CPU, the same every time: groups, what each row is, and verl's columns of it.

    The last two rows are verl's padding. The second group has one reward, and the third a demonstration.
    """

    def __init__(self, values: tuple[float, ...] = (0.0, 1.0)) -> None:
        random = np.random.default_rng(0)
        self.groups, self.members, rewards = [], [], []
        for number in range(GROUPS):
            reward = random.choice(values, SIZE) if number != 1 else np.ones(SIZE)
            scores = random.integers(0, 11, SIZE).astype(np.float64)
            scores[random.random(SIZE) < 0.1] = math.nan  # failed judgements
            lengths = random.integers(1, TOKENS, SIZE)
            demonstrations = int(number == 2)
            group = Group(f"g{number}", "math", number, reward, reward, lengths, scores=scores)
            self.groups.append(group)
            places = [*range(SIZE - demonstrations), *[None] * demonstrations]
            self.members += [Member(group, place) for place in places]
            rewards += reward.tolist()
        self.members += [None, None]
        self.uids = np.array([*(m.group.uid for m in self.members[:-2]), "pad0", "pad1"], dtype=object)
        self.keys = [f"{uid}_{number % SIZE}_0" for number, uid in enumerate(self.uids)]
        generator = torch.Generator().manual_seed(0)
        length = torch.randint(1, TOKENS + 1, (len(self.keys), 1), generator=generator)
        self.mask = (torch.arange(TOKENS) < length).long()
        self.mask[-2:] = 0
        self.rewards = torch.tensor([*rewards, 0.0, 0.0])
        self.token_rewards = self.rewards.unsqueeze(1) * (torch.arange(TOKENS) == length - 1)
        self.old = -3 * torch.rand(self.mask.shape, generator=generator)
        self.new = (self.old + 0.3 * torch.randn(self.mask.shape, generator=generator)).clamp(max=-0.01)
        self.group = torch.tensor([*np.repeat(np.arange(GROUPS), SIZE), -1, -1])
        self.advantage = torch.randn(len(self.keys), generator=generator)
        self.is_demonstration = torch.tensor([m is not None and m.response_index is None for m in self.members])


def estimator(gsd: dict[str, Any], values: tuple[float, ...] = (0.0, 1.0)) -> Case:
    """The estimator as our trainers call it, with the run's extensions and their metrics."""

    def run(where: torch.device) -> Tree:
        rows = Rows(values)
        extensions = extension.build(gsd)
        # A budget knows the rollouts that it requested, and here nobody asked it for any.
        others = [one for name, one in extensions.items() if name != "budget"]
        if "hadw" in extensions:
            extensions["hadw"].end_step(rows.groups[: GROUPS // 2])  # so that there is an anchor
        columns: dict[str, Any] = {
            "rollouts": torch.tensor([*[SIZE] * (len(rows.keys) - 2), 0, 0]),
            "gain_ratio": torch.ones(len(rows.keys), dtype=torch.float64),
        }
        for one in others:
            columns |= one.stage_inputs(rows.members, rows.groups)
        with batch_context(rows.keys, columns, extensions) as batch:
            advantages, _ = gsd_advantage(
                rows.token_rewards.to(where),
                rows.mask.to(where),
                rows.uids,
                OmegaConf.create({"gsd": {"alpha": 1.0, "ddof": 1, "eps": 1e-6} | gsd}),
            )
        metrics = {name: value for one in others for name, value in one.end_step(rows.groups).items()}
        return {"advantages": advantages, "per row": batch.advantages} | metrics

    return run


def of_groups(where: torch.device) -> Tree:
    """The figures of the groups."""
    rows = Rows((0.0, 0.5, 1.0))
    found = group_stats(rows.rewards.to(where), rows.uids)
    return {name: getattr(found, name) for name in ("group", "size", "mean", "std", "unanimous")}


def rectified(where: torch.device) -> Tree:
    """DaGRPO's two readings of its mask, outside of a trainer."""
    rows, found = Rows((0.0, 0.5, 1.0)), {}
    scores = torch.tensor([*np.concatenate([group.scores for group in rows.groups]), 0.0, 0.0]).to(where)
    stats = group_stats(rows.rewards.double().to(where), rows.uids)
    for delta in (-math.inf, 0.0, 3.0):
        found[f"pairs, delta={delta}"] = dagrpo.rectified_advantage(
            rows.rewards.to(where), scores, rows.uids, delta=delta
        )
        for by in ("min", "mean", "max"):
            found[f"{by}, delta={delta}"] = dagrpo.kept_rows(rows.rewards.to(where), scores, stats, delta=delta, by=by)
    return found


def gvpo_of_log_ratios(where: torch.device) -> Tree:
    """GVPO's loss of whole groups, its gradient and metrics."""
    rows, found = Rows(), {}
    ratios = ((rows.new - rows.old) * rows.mask).sum(dim=-1)
    for normalizer in ("k-1", "k", "none"):
        s = ratios.to(where).requires_grad_()
        index, mask = rows.group.tolist(), rows.group >= 0
        loss, metrics = gvpo.gvpo_loss(s, rows.rewards.to(where), index, normalizer=normalizer, mask=mask.to(where))
        loss.backward()
        found |= {f"{normalizer}/{name}": value for name, value in metrics.items()}
        found |= {f"{normalizer}/loss": loss.detach(), f"{normalizer}/gradient": s.grad}
    return found


def ratios(where: torch.device) -> Tree:
    """What stands for the ratio on a demonstration's tokens, with its gradient."""
    found = {}
    for ratio in ("shaped", "one"):
        log_prob = Rows().new.to(where).requires_grad_()
        value = demonstration_ratio(log_prob, ratio=ratio)
        value.sum().backward()
        found |= {f"{ratio}/value": value.detach(), f"{ratio}/gradient": log_prob.grad}
    return found


def policy_loss(name: str, settings: Any, mode: str, *, is_weighted: bool = False) -> Case:
    """A registered policy loss as verl's ``ppo_loss`` calls it on a micro-batch, with its gradient by log-probability.

    Args:
        is_weighted: GVPO's weights are in the rows, as a worker makes them before the update.
    """

    def run(where: torch.device) -> Tree:
        rows = Rows()
        config = FSDPActorConfig(rollout_n=SIZE, ppo_micro_batch_size_per_gpu=1, policy_loss=settings)
        config.global_batch_info.update(_GLOBAL)
        log_prob = rows.new.to(where).requires_grad_()
        data = _micro_batch(rows, is_weighted).to(where)
        worker = GvpoWorker(None, config)
        worker.stats = gvpo_rows.MiniBatchStats(gvpo_rows.GvpoRows.of(data), None, where)

        def loss_fn(model_output: torch.Tensor, data: TensorDict, dp_group: Any) -> Any:
            return get_policy_loss_fn(name)(
                old_log_prob=rows.old.to(where),
                log_prob=model_output,
                advantages=(rows.advantage.unsqueeze(1) * rows.mask).to(where),
                response_mask=rows.mask.to(where),
                loss_agg_mode=mode,
                config=config,
                rollout_is_weights=None,
            )

        loss, metrics = with_context(loss_fn, {"gvpo": worker}, model_output=log_prob, data=data)
        loss.backward()
        seen = worker.stats.responses()
        return {"loss": loss.detach(), "gradient": log_prob.grad, "s": seen.log_ratio, "l'": seen.log_reference} | {
            metric: getattr(value, "value", value) for metric, value in metrics.items()
        }

    return run


def _micro_batch(rows: Rows, is_weighted: bool) -> TensorDict:
    """The columns that our trainers put beside verl's."""
    is_row = rows.group >= 0
    columns = {
        gvpo_rows.RESPONSE: torch.where(is_row, torch.arange(len(rows.group)), -1),
        gvpo_rows.GROUP: rows.group,
        gvpo_rows.SIZE: torch.where(is_row, SIZE, 0),
        gvpo_rows.COEFFICIENT: gvpo.group_coefficients(rows.group).float(),
        gvpo_rows.ADVANTAGE: rows.advantage,
        DEMONSTRATION: rows.is_demonstration,
        # Rows of TransferQueue are jagged; verl pads them to the width of the micro-batch.
        "old_log_probs": torch.nested.nested_tensor(list(rows.old), layout=torch.jagged),
    }
    if is_weighted:
        columns[gvpo_rows.WEIGHT] = rows.advantage
    return TensorDict(columns, batch_size=len(rows.group))


def cases() -> dict[str, Case]:
    """Every case by name. A stage's name is in its cases' names, and so is a policy loss's."""
    mask = {"judge": {"scorer": "stub"}}
    graded = (0.0, 0.5, 1.0)
    found: dict[str, Case] = {"groups": of_groups, "rectified": rectified, "ratio of demonstrations": ratios}
    for alpha in (-1.0, 0.0, 1.0, 2.0):
        found[f"estimator, alpha={alpha}"] = estimator({"alpha": alpha, "ddof": int(alpha > 0)}, graded)
    for preset in ("hard", "soft", "paper", "off", 0.4):
        found[f"estimator, hadw, preset={preset}"] = estimator({"hadw": {"preset": preset}}, graded)
    found["estimator, hadw, include_current"] = estimator({"hadw": {"preset": "hard", "include_current": True}})
    found["estimator, budget"] = estimator({"budget": {}})
    for by in ("pairs", "min", "mean", "max"):
        found[f"estimator, dagrpo, mask={by}"] = estimator({"dagrpo": mask | {"delta": 3, "mask": by}}, graded)
    for name, section in (
        ("quantile", {"delta": {"quantile": 0.25}}),
        ("unsigned", {"delta": 3, "signed": False}),
        ("fail_closed", {"delta": 3, "fail_closed": True, "rescale": True}),
    ):
        found[f"estimator, dagrpo, {name}"] = estimator({"dagrpo": mask | section}, graded)
    found["gvpo_loss"] = gvpo_of_log_ratios
    for is_weighted in (True, False):
        for var, cov in ((True, True), (False, True), (True, False)):
            settings = GVPOLossConfig(var=var, cov=cov)
            found[f"policy loss gvpo, weights given={is_weighted}, var={var}, cov={cov}"] = policy_loss(
                "gvpo", settings, "token-mean", is_weighted=is_weighted
            )
    for mode in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"):
        for on_policy in ("vanilla", "gspo"):
            for ratio in ("shaped", "one"):
                found[f"policy loss dagrpo, {mode}, {on_policy}, {ratio}"] = policy_loss(
                    "dagrpo", DagrpoLossConfig(on_policy=on_policy, ratio=ratio), mode
                )
    return found


def difference(expected: Tree, found: Tree) -> float:
    """The largest difference of two trees, as a share of each tensor's largest entry.

    Raises:
        CheckFailedError: names, shapes or dtypes differ, or what is not a float differs, NaN and infinity included.
    """
    if expected.keys() != found.keys():
        raise CheckFailedError(f"the names {sorted(expected)} became {sorted(found)}")
    largest = 0.0
    for name in expected:
        one, other = (torch.as_tensor(value).detach().cpu() for value in (expected[name], found[name]))
        if one.shape != other.shape or one.dtype != other.dtype:
            raise CheckFailedError(f"{name}: {one.dtype} {tuple(one.shape)} became {other.dtype} {tuple(other.shape)}")
        if not one.is_floating_point():
            if not torch.equal(one, other):
                raise CheckFailedError(f"{name}: {int((one != other).sum())} of {one.numel()} entries differ")
            continue
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()) or not torch.equal(
            one[~finite].nan_to_num(), other[~finite].nan_to_num()
        ):
            raise CheckFailedError(f"{name}: NaN or infinity in other places")
        if finite.any() and (scale := float(one[finite].abs().max())):
            largest = max(largest, float((one[finite].double() - other[finite].double()).abs().max()) / scale)
        elif finite.any():
            largest = max(largest, float(other[finite].abs().max()))
    return largest


def check(report: Report) -> str:
    """Every case on the device against the CPU.

    Raises:
        CheckFailedError: a case differs, or one fails on the device; all cases run first.
    """
    where, found, wrong = device(), {}, {}
    for name, case in cases().items():
        expected = case(torch.device("cpu"))
        try:
            found[name] = difference(expected, case(where))
        except Exception as error:  # the other cases are worth knowing too
            wrong[name] = f"{type(error).__name__}: {error}"
            continue
        if not found[name] <= TOLERANCE:
            wrong[name] = f"differs by {found[name]:.1e} of the largest entry; {TOLERANCE:.0e} is allowed"
    report.write({"device": str(where), "tolerance": TOLERANCE, "differences": found, "wrong": wrong})
    if wrong:
        name, reason = next(iter(wrong.items()))
        raise CheckFailedError(f"{len(wrong)} of {len(found | wrong)} cases are wrong. The first: {name}: {reason}")
    return f"{len(found)} cases on {where} equal the CPU's; the largest difference is {max(found.values()):.1e}"
