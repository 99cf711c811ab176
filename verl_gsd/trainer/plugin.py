"""The entry point ``verl.plugins``: importing it registers our parts and patches in verl.

Every process that imports verl imports this module, including those that vLLM spawns. The import must therefore be
cheap. Estimators, losses and trainer modes import much of verl and vLLM, so they are registered only when verl's own
are imported. verl swallows an exception that this module raises. Therefore, the training process (before it starts Ray)
and ``verl-gsd doctor`` check afterwards that everything is registered.
"""

from __future__ import annotations

import importlib

import wrapt

from verl_gsd import extension
from verl_gsd.cpu import platform
from verl_gsd.run import engines
from verl_gsd.run.compose import store_groups
from verl_gsd.trainer import (
    checkpoint_loading,
    prompt_truncation,
    queue_auth,
    reward_failures,
    reward_model_patch,
    runtime_lora,
    weight_sockets,
)


def _register_losses() -> None:
    for declaration in extension.declarations():
        if declaration.loss is not None:
            importlib.import_module(declaration.loss)


if platform.requested():
    platform.activate()

store_groups()
weight_sockets.install()

wrapt.when_imported("verl.trainer.ppo.core_algos")(lambda _: importlib.import_module("verl_gsd.trainer.estimator"))
wrapt.when_imported("verl.trainer.ppo.core_algos")(lambda _: _register_losses())
wrapt.when_imported("verl.trainer.ppo.v1.trainer_sync")(lambda _: importlib.import_module("verl_gsd.trainer.trainer"))
wrapt.when_imported("verl.experimental.reward_loop.reward_loop")(reward_model_patch.add_extra_info)
wrapt.when_imported("verl.experimental.reward_loop.reward_loop")(reward_failures.install)
wrapt.when_imported("verl.experimental.agent_loop.agent_loop")(prompt_truncation.install)
wrapt.when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server")(
    lambda server: importlib.import_module("verl_gsd.trainer.engine_health").install(server)
)
wrapt.when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server")(runtime_lora.install)
wrapt.when_imported("verl.workers.engine.fsdp.transformer_impl")(
    lambda engine: importlib.import_module("verl_gsd.trainer.attention").install(engine)
)
wrapt.when_imported("verl.utils.checkpoint.fsdp_checkpoint_manager")(checkpoint_loading.install)
wrapt.when_imported("verl.utils.device")(engines.patch_main)
wrapt.when_imported("verl.utils.torch_functional")(
    lambda module: importlib.import_module("verl_gsd.trainer.log_probs").patch(module)
)
wrapt.when_imported("transfer_queue")(
    lambda queue: importlib.import_module("verl_gsd.run.cluster_lock").lock_queue(queue)
)
wrapt.when_imported("transfer_queue")(queue_auth.install)
