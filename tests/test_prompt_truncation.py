"""Prompts are cut as data.truncation says, by verl's agent loop itself."""

import asyncio
import inspect
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.torch_functional import postprocess_data
from verl.workers.rollout.replica import TokenOutput

from verl_gsd.trainer.prompt_truncation import cut, obey_truncation


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(1, 14),
    st.sampled_from(["left", "right", "middle"]),
)
def test_cuts_are_those_that_verl_defines_for_its_older_data(tokens, limit, truncation):
    ids = torch.tensor([tokens])
    expected, _ = postprocess_data(ids, torch.ones_like(ids), limit, 0, left_pad=False, truncation=truncation)
    assert cut(tokens, limit, truncation) == expected[0, : min(len(tokens), limit)].tolist()


@pytest.mark.parametrize("truncation", ["error", "both"])
def test_a_prompt_that_must_not_be_cut_is_an_error(truncation):
    assert cut([1, 2], 2, truncation) == [1, 2]
    with pytest.raises(
        ValueError, match=rf"a prompt has 3 tokens, .*prompt_length=2, and data\.truncation={truncation}"
    ):
        cut([1, 2, 3], 2, truncation)


class Server:
    """Stands for vLLM at its client's one method: keeps the prompt it is given."""

    async def generate(self, prompt_ids, **_):
        self.prompt = prompt_ids
        return TokenOutput(token_ids=[1], log_probs=None)


def prompt_given(task, truncation, limit, ours=True):
    """What verl's single-turn agent loop asks the server for, under a trainer mode of ours or of verl's."""
    tokenizer, server = AutoTokenizer.from_pretrained(task / "model"), Server()
    rollout = {"prompt_length": limit, "response_length": 4}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "trainer": {"v1": {}}})
    if ours:
        obey_truncation(config)

    async def run():
        loop = SingleTurnAgentLoop(
            trainer_config=SimpleNamespace(config=config),
            server_manager=server,
            tokenizer=tokenizer,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=SimpleNamespace(config=OmegaConf.create({"truncation": truncation})),
            hf_model_type="llama",
        )
        await loop.run({}, raw_prompt=[{"role": "user", "content": "12+34+56="}])

    asyncio.run(run())
    return tokenizer.decode(server.prompt)


@pytest.mark.parametrize(
    ("truncation", "expected"),
    [("left", "56=<|assistant|>"), ("right", "<|user|>12+"), ("middle", "<|user|>1=<|assistant|>")],
)
def test_the_agent_loop_gives_the_policy_what_is_left(tiny_task, truncation, expected):
    assert prompt_given(tiny_task, truncation, 4) == expected
    assert prompt_given(tiny_task, truncation, 11) == "<|user|>12+34+56=<|assistant|>"


def test_the_agent_loop_fails_on_a_prompt_that_must_not_be_cut(tiny_task):
    with pytest.raises(
        ValueError, match=r"a prompt has 11 tokens, more than actor_rollout_ref\.rollout\.prompt_length=4"
    ):
        prompt_given(tiny_task, "error", 4)


@pytest.mark.parametrize("truncation", ["error", "right"])
def test_under_a_trainer_mode_of_verls_the_agent_loop_cuts_as_before(tiny_task, truncation):
    assert prompt_given(tiny_task, truncation, 4, ours=False) == prompt_given(tiny_task, "left", 4)


def test_verl_does_not_read_the_key_itself():
    """Where it does, the patch can go."""
    verls = agent_loop.AgentLoopBase._cap_text_prompt_length.__wrapped__
    assert "return prompt_ids[-prompt_length:]" in inspect.getsource(verls)
    source = inspect.getsource(agent_loop)
    assert "truncation" not in source
    assert source.count("_cap_text_prompt_length(") == 2, "defined, and called for the first prompt alone"
    assert "self.data_config = data_config.config" in source
