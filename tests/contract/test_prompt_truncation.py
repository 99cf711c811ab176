"""verl's agent loop cuts prompts as data.truncation says."""

import asyncio
import functools
import inspect
from types import SimpleNamespace

import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop import agent_loop
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.dataset.rl_dataset import RLHFDataset
from verl.utils.torch_functional import postprocess_data
from verl.workers.rollout.replica import TokenOutput
from verl_parts import AGENT_LOOP_WORKER as WORKER
from verl_parts import bare

from verl_gsd.run.truncation import obey_truncation
from verl_gsd.trainer.prompt_truncation import cut
from verl_gsd.trainer.reward_failures import Failure


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
    st.integers(1, 14),
    st.sampled_from(["left", "right", "middle"]),
)
def test_cuts_equal_those_of_verls_postprocess_data(tokens, limit, truncation):
    ids = torch.tensor([tokens])
    expected, _ = postprocess_data(ids, torch.ones_like(ids), limit, 0, left_pad=False, truncation=truncation)
    assert cut(tokens, limit, truncation) == expected[0, : min(len(tokens), limit)].tolist()


@pytest.mark.parametrize("truncation", ["error", "both"])
def test_a_prompt_that_must_not_be_cut_is_an_error(truncation):
    assert cut([1, 2], 2, truncation) == [1, 2]
    with pytest.raises(ValueError, match=rf"3 tokens.*prompt_length=2.*data\.truncation={truncation}"):
        cut([1, 2, 3], 2, truncation)


class Server:
    """Stub of vLLM's client, with its one method. Stores the prompt."""

    async def generate(self, prompt_ids, **_):
        self.prompt = prompt_ids
        return TokenOutput(token_ids=[1], log_probs=None)


def prompt_given(task, truncation, limit, ours=True):
    """The prompt that verl's single-turn agent loop sends to the server, under our trainer modes or verl's."""
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
def test_the_agent_loop_sends_the_cut_prompt_to_the_policy(tiny_task, truncation, expected):
    assert prompt_given(tiny_task, truncation, 4) == expected
    assert prompt_given(tiny_task, truncation, 11) == "<|user|>12+34+56=<|assistant|>"


def test_an_agent_loop_outside_a_worker_fails_on_a_prompt_that_must_not_be_cut(tiny_task):
    with pytest.raises(ValueError, match=r"11 tokens.*actor_rollout_ref\.rollout\.prompt_length=4"):
        prompt_given(tiny_task, "error", 4)


@pytest.mark.parametrize("truncation", ["error", "right"])
def test_under_verls_own_trainer_modes_the_agent_loop_cuts_as_before(tiny_task, truncation):
    assert prompt_given(tiny_task, truncation, 4, ours=False) == prompt_given(tiny_task, "left", 4)


# A prompt that must not be cut, in verl's agent loop worker

SHORT, LONG = ({"role": "user", "content": text} for text in ("1+1=", "12+34+56="))  # 6 and 11 tokens


class TwoTurns(agent_loop.AgentLoopBase):
    """A custom agent loop that builds two contexts, each in its own task, and returns one output per context."""

    async def run(self, sampling_params, **kwargs):
        first = asyncio.create_task(self.ct_build_initial_tokens([SHORT]))
        second = asyncio.create_task(self.ct_build_initial_tokens(kwargs["raw_prompt"]))
        return [
            AgentLoopOutput(
                prompt_ids=await built, response_ids=[1], response_mask=[1], num_turns=2, metrics=AgentLoopMetrics()
            )
            for built in (first, second)
        ]


class RewardWorker:
    """Stub of Ray's handle of a reward worker, with its one method. Counts the responses that it scored."""

    def __init__(self):
        self.scored, self.compute_score = 0, SimpleNamespace(remote=self._score)

    async def _score(self, data):
        self.scored += 1
        return {"reward_score": 1.0, "reward_extra_info": {"acc": 1.0}}


def rows_of(task, monkeypatch, prompts, loop="single_turn_agent", ours=True):
    """(rows that verl's worker puts into the queue for ``prompts``, all running at once; responses scored)."""
    rows, scorer = {}, RewardWorker()

    async def put(keys, fields, tags, partition_id):
        extras = [getattr(extra, "data", extra) for extra in list(fields["extra_fields"])]
        for key, tag, scores, extra in zip(keys, tags, list(fields["rm_scores"]), extras, strict=True):
            rows[key] = tag["prompt_len"], float(scores.sum()), extra["reward_extra_info"]

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", put)
    target = f"{TwoTurns.__module__}.{TwoTurns.__qualname__}"
    monkeypatch.setitem(agent_loop._agent_loop_registry, "two_turns", {"_target_": target})
    rollout = {"prompt_length": 10, "response_length": 4}
    config = {"actor_rollout_ref": {"rollout": rollout}, "data": {"truncation": "error"}, "trainer": {"v1": {}}}
    worker = bare(WORKER)
    worker.config, worker.llm_client, worker.reward_loop_worker_handles = OmegaConf.create(config), Server(), [scorer]
    worker.tokenizer, worker.processor = AutoTokenizer.from_pretrained(task / "model"), None
    worker.hf_model_type, worker.dataset_cls, worker.tools = "llama", RLHFDataset, []
    worker.mm_processor_kwargs, worker.distillation_enabled = {}, False
    if ours:
        obey_truncation(worker.config)
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}
    one = functools.partial(worker._run_agent_loop, {}, trajectory, agent_name=loop, trace=False, session_id=0)

    async def run():
        sessions = ((f"a{place}", [prompt]) for place, prompt in enumerate(prompts))
        await asyncio.gather(*(one(uid=uid, raw_prompt=chat, global_steps=1) for uid, chat in sessions))

    asyncio.run(run())
    return rows, scorer.scored


TOO_LONG = Failure(
    "prompt_too_long",
    "prompt too long",
    "built a prompt of 11 tokens, more than actor_rollout_ref.rollout.prompt_length=10, with data.truncation=error",
).as_extra_info()


def test_a_prompt_that_must_not_be_cut_gives_a_failed_reward_and_others_are_unchanged(tiny_task, monkeypatch):
    rows, scored = rows_of(tiny_task, monkeypatch, [SHORT, LONG, SHORT])
    right = (6, 1.0, {"acc": 1.0})
    assert rows == {"a0_0_0": right, "a1_0_0": (10, 0.0, TOO_LONG), "a2_0_0": right}
    assert scored == 2, "nobody needs the reward of a response that is not trained on"


def test_a_long_prompt_in_a_later_turn_of_a_custom_agent_loop_gives_a_failed_reward(tiny_task, monkeypatch):
    rows, scored = rows_of(tiny_task, monkeypatch, [LONG], loop="two_turns")
    assert rows == {"a0_0_0": (6, 0.0, TOO_LONG), "a0_0_1": (10, 0.0, TOO_LONG)} and scored == 0
    rows, scored = rows_of(tiny_task, monkeypatch, [SHORT], loop="two_turns")
    assert {length for length, *_ in rows.values()} == {6} and scored == 1


def test_under_verls_own_trainer_modes_no_reward_is_removed(tiny_task, monkeypatch):
    rows, scored = rows_of(tiny_task, monkeypatch, [LONG], ours=False)
    assert rows == {"a0_0_0": (10, 1.0, {"acc": 1.0})} and scored == 1


def test_workers_inherit_the_patched_methods():
    """Ray pickles the class of an agent loop worker itself, and its base by name: a worker imports the patched base."""
    pickled = ray.cloudpickle.dumps(WORKER)
    assert b"verl.experimental.agent_loop.agent_loop" in pickled and b"prompt_truncation" not in pickled
    for name in ("_run_agent_loop", "_compute_score"):
        patched = getattr(agent_loop.AgentLoopWorker, name)
        assert getattr(WORKER, name).__wrapped__ is patched, "Ray's wrapper around it"
        assert patched.__wrapped__.__qualname__ == f"AgentLoopWorker.{name}"
        assert inspect.iscoroutinefunction(patched)


@pytest.mark.parametrize("truncation", ["error", "right", "middle"])
def test_verl_does_not_read_the_key_itself(truncation):
    """If this fails, verl reads the key. Remove the patch."""
    verls = agent_loop.AgentLoopBase._cap_text_prompt_length.__wrapped__
    settings = {"rollout_config": SimpleNamespace(prompt_length=2), "config": None}
    loop = bare(SingleTurnAgentLoop, data_config=OmegaConf.create({"truncation": truncation}), **settings)
    assert verls(loop, [1, 2, 3, 4]) == [3, 4] and verls(loop, [1, 2]) == [1, 2]


def test_verl_cuts_a_prompt_where_it_builds_the_first_tokens_and_nowhere_else():
    methods = inspect.getmembers(agent_loop.AgentLoopBase, inspect.isfunction)
    methods += inspect.getmembers(agent_loop.AgentLoopWorker, inspect.isfunction)
    called = {name for name, method in methods if "_cap_text_prompt_length" in inspect.unwrap(method).__code__.co_names}
    assert called == {"ct_build_initial_tokens"}
