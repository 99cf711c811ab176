"""verl's reward worker whose reward function keeps the interpreter to itself, in a process that this ends."""

import asyncio

import failing_rewards
from omegaconf import OmegaConf


def ask_the_function_that_hangs():
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    from verl_gsd.trainer import reward_failures

    class Manager:
        async def run_single(self, data):
            failing_rewards.chosen = lambda *_: True
            return await asyncio.get_running_loop().run_in_executor(
                None, failing_rewards.compute_score_hangs_alone, "math", "4", "4"
            )

    reward_failures._STUCK_AT_LEAST = 0.0
    worker = object.__new__(RewardLoopWorker)
    worker.reward_manager = Manager()
    function = {"reward": {"custom_reward_function": {"path": "x"}}, "trainer": {"v1": {}}}
    worker.config = OmegaConf.create(function)
    reward_failures.mark_failures(worker.config, 1.0)
    asyncio.run(worker.compute_score(None))
