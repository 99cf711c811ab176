"""Checks of verl's trainer mode ``separate_async`` and of ours on top of it, in which vLLM has GPUs of its own.

verl asserts the same when it creates the trainer, after Ray has started.
"""

from __future__ import annotations

from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from verl_gsd.errors import OUR_MODES
from verl_gsd.run.compose import Line
from verl_gsd.scalars import is_whole

_ROLLOUT = "actor_rollout_ref.rollout"
_MINI, _PARTS = "actor_rollout_ref.actor.ppo_mini_batch_size", "trainer.v1.separate_async.parameter_sync_step"


def check_separate_async(config: DictConfig, line: Line) -> Iterator[str]:
    """Report what the mode lacks: GPUs for vLLM, a backend that sends weights between GPUs, or steps of whole parts."""
    mode = config.trainer.v1.trainer_mode
    if mode not in ("separate_async", OUR_MODES["separate_async"]):
        return
    for name in ("nnodes", "n_gpus_per_node"):
        if not is_whole(number := OmegaConf.select(config, f"{_ROLLOUT}.{name}"), 1):
            yield (
                f"{_ROLLOUT}.{name}={number}: trainer.v1.trainer_mode={mode} generates on GPUs of its own, besides "
                "those of trainer.nnodes and trainer.n_gpus_per_node. Set it to 1 or more."
            )
    if OmegaConf.select(config, f"{_ROLLOUT}.checkpoint_engine.backend") == "naive":
        yield (
            f"{_ROLLOUT}.checkpoint_engine.backend=naive: it cannot send weights from one GPU to another, as "
            f"trainer.v1.trainer_mode={mode} does. Set it to nccl."
        )
    yield from _check_parts(config, mode)
    yield from _check_replicas(config, mode)
    model = config.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        yield (
            f"reward.reward_model.enable_resource_pool={model.enable_resource_pool}: under "
            f"trainer.v1.trainer_mode={mode}, vLLM never leaves its GPUs to a reward model. Set "
            "reward.reward_model.enable_resource_pool=true, reward.reward_model.nnodes and "
            "reward.reward_model.n_gpus_per_node."
        )


def _check_parts(config: DictConfig, mode: str) -> Iterator[str]:
    batch, mini, parts = (OmegaConf.select(config, key) for key in ("data.train_batch_size", _MINI, _PARTS))
    if not all(is_whole(number, 1) for number in (batch, mini, parts)) or batch == parts * mini:
        return  # other checks report numbers that are none
    # Recipes set the mini-batch to the batch, so that it would grow with it.
    remedies = [f"data.train_batch_size={parts * mini} and {_MINI}={mini}"]
    if batch % mini == 0:
        remedies.insert(0, f"{_PARTS}={batch // mini}")
    if batch % parts == 0:
        remedies.insert(0, f"{_MINI}={batch // parts}")
    yield (
        f"{_PARTS}={parts}: under trainer.v1.trainer_mode={mode}, a step of data.train_batch_size={batch} prompts has "
        f"as many parts, each of {_MINI}={mini} prompts, which makes {parts * mini}. Set {' or '.join(remedies)}."
    )


def _check_replicas(config: DictConfig, mode: str) -> Iterator[str]:
    """Report GPUs that do not divide into replicas of vLLM. By default, those of the trainer have replicas, too."""
    rollout, trainer = config.actor_rollout_ref.rollout, config.trainer
    places = {f"{_ROLLOUT}.nnodes and n_gpus_per_node": (rollout.get("nnodes"), rollout.get("n_gpus_per_node"))}
    if OmegaConf.select(config, "actor_rollout_ref.hybrid_engine", default=True):
        places["trainer.nnodes and n_gpus_per_node"] = (trainer.nnodes, trainer.n_gpus_per_node)
    parallel = rollout.tensor_model_parallel_size
    for names, numbers in places.items():
        if not all(is_whole(number, 1) for number in numbers):
            continue  # reported elsewhere
        gpus = numbers[0] * numbers[1]
        if not is_whole(parallel, 1) or gpus % parallel:
            yield (
                f"{_ROLLOUT}.tensor_model_parallel_size={parallel}: the {gpus} GPUs of {names} do not divide into "
                f"replicas of this size. Set it to a divisor of {gpus}."
            )
