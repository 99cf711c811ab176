"""The entry point ``verl.plugins``: importing it registers our parts and patches in verl.

Every process that imports verl imports this module, including those that vLLM spawns. The import must therefore be
cheap. Estimators, losses and trainer modes import much of verl and vLLM, so they are registered only when verl's own
are imported. verl swallows an exception that this module raises. Therefore, the training process (before it starts Ray)
and ``verl-gsd doctor`` check afterwards that everything is registered.

A part that does not fit the installed verl does not break verl (``verl_hooks.py``). If our estimator or our trainer
modes cannot be imported, ``reject_if_failed`` takes their place in verl's registries, so that a run that asks for them
is rejected with the reason.
"""

from __future__ import annotations

import importlib
from typing import Any

from verl_gsd import extension, model_files
from verl_gsd.cpu import before_verl
from verl_gsd.errors import OUR_MODES
from verl_gsd.run import compile_cache, engines
from verl_gsd.run.compose import store_groups
from verl_gsd.run.verl_hooks import contained, reject_if_failed, when_imported
from verl_gsd.trainer import (
    checkpoint_loading,
    prompt_truncation,
    queue_auth,
    reward_failures,
    reward_model_patch,
    reward_sources,
    reward_tokenizers,
    runtime_lora,
    weight_sockets,
)

_REWARD_LOOP = "verl.experimental.reward_loop.reward_loop"
_AGENT_LOOP = "verl.experimental.agent_loop.agent_loop"
_VLLM_SERVER = "verl.workers.rollout.vllm_rollout.vllm_async_server"


def _register_estimator(core_algos: Any) -> None:
    try:
        importlib.import_module("verl_gsd.trainer.estimator")
    except Exception:
        core_algos.ADV_ESTIMATOR_REGISTRY.setdefault("gsd", reject_if_failed)
        raise


def _register_losses(_: Any) -> None:
    for declaration in extension.declarations():
        if declaration.loss is not None:
            with contained(f"the loss of {declaration.name}"):
                importlib.import_module(declaration.loss)


def _register_trainers(_: Any) -> None:
    try:
        importlib.import_module("verl_gsd.trainer.trainer")
    except Exception:
        registry = importlib.import_module("verl.trainer.ppo.v1.trainer_base").TRAINER_REGISTRY
        for mode in OUR_MODES.values():
            registry.setdefault(mode, reject_if_failed)
        raise


store_groups()
if before_verl.requested():
    with contained("the CPU platform"):
        importlib.import_module("verl_gsd.cpu.platform").activate()
weight_sockets.install()
compile_cache.protect_or_warn()

for hook in model_files.HOOKS:
    when_imported(hook.module, hook.install, entrances=hook.entrances)
when_imported("verl.trainer.ppo.core_algos", _register_estimator)
when_imported("verl.trainer.ppo.core_algos", _register_losses)
when_imported("verl.trainer.ppo.v1.trainer_sync", _register_trainers)
when_imported(_REWARD_LOOP, reward_model_patch.add_extra_info, patch="trainer/reward_model_patch.py")
when_imported(
    _REWARD_LOOP,
    reward_tokenizers.install,
    patch="trainer/reward_tokenizers.py",
    entrances=["RewardLoopWorker._init_reward_fn"],
)
when_imported(
    "verl.trainer.ppo.reward",
    reward_sources.install,
    patch="trainer/reward_sources.py",
    entrances=["load_reward_manager"],
)
when_imported(_REWARD_LOOP, reward_failures.install, patch="trainer/reward_failures.py")
when_imported(_AGENT_LOOP, prompt_truncation.install, patch="trainer/prompt_truncation.py")
when_imported(
    _VLLM_SERVER,
    lambda server: importlib.import_module("verl_gsd.trainer.engine_health").install(server),
    patch="trainer/engine_health.py",
)
when_imported(
    _VLLM_SERVER, runtime_lora.install, patch="trainer/runtime_lora.py", entrances=["vLLMHttpServer.__init__"]
)
when_imported(
    "verl.workers.engine.fsdp.transformer_impl",
    lambda engine: importlib.import_module("verl_gsd.trainer.attention").install(engine),
    patch="trainer/attention.py",
)
when_imported(
    "verl.utils.checkpoint.fsdp_checkpoint_manager",
    checkpoint_loading.install,
    patch="trainer/checkpoint_loading.py",
    entrances=["FSDPCheckpointManager.load_checkpoint"],
)
when_imported(
    "verl.utils.dataset.rl_dataset",
    lambda rl_dataset: importlib.import_module("verl_gsd.trainer.dataset_media").install(rl_dataset),
    patch="trainer/dataset_media.py",
    entrances=["RLHFDataset._read_files_and_tokenize"],
)
when_imported("verl.utils.device", engines.patch_main, patch="run/engines.py")
when_imported(
    "verl.utils.torch_functional",
    lambda module: importlib.import_module("verl_gsd.trainer.log_probs").patch(module),
    patch="trainer/log_probs.py",
)
when_imported(
    "transfer_queue",
    lambda queue: importlib.import_module("verl_gsd.run.cluster_lock").lock_queue(queue),
    patch="run/cluster_lock.py",
    entrances=["init"],
)
when_imported("transfer_queue", queue_auth.install, patch="trainer/queue_auth.py", entrances=["init"])
