"""Makes verl's reward workers load tokenizers without running code that is in a model's folder.

verl 0.9.1 loads the tokenizers of the policy and of the reward model with ``trust_remote_code=True`` in these workers,
whatever the config says. A model of somebody else with an ``auto_map`` would therefore run its code in every run. Here
the flag is ``actor_rollout_ref.model.trust_remote_code``, as in the rest of the run, for both models: verl has no
flag of the reward model.
"""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import Any

#: Whether the user trusts the code of the models. False outside a worker's start.
_is_trusted: ContextVar[bool] = ContextVar("is_trusted", default=False)


def install(reward_loop: Any) -> None:
    """Patch the module's ``hf_tokenizer``, and the method of the worker that calls it.

    Args:
        reward_loop: the module ``verl.experimental.reward_loop.reward_loop``.
    """
    load, worker = reward_loop.hf_tokenizer, reward_loop.RewardLoopWorker
    start = worker._init_reward_fn

    @functools.wraps(load)
    def hf_tokenizer(name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        return load(name_or_path, *args, **kwargs | {"trust_remote_code": _is_trusted.get()})

    @functools.wraps(start)
    def _init_reward_fn(self: Any) -> None:
        token = _is_trusted.set(bool(self.config.actor_rollout_ref.model.get("trust_remote_code", False)))
        try:
            start(self)
        finally:
            _is_trusted.reset(token)

    reward_loop.hf_tokenizer, worker._init_reward_fn = hf_tokenizer, _init_reward_fn
