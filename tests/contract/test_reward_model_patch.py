"""A discriminative reward model's scores, from an HTTP server through verl's own workers to groups and validation.

A small HTTP server replaces the reward model and answers in vLLM's format. Nothing is generated: the test passes
responses to verl's agent loop worker.
"""

import asyncio
import importlib
import inspect
import json
import pkgutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

pytest.importorskip("verl")

import ray
import torch
import transfer_queue as tq
from agent_rows import watched
from omegaconf import OmegaConf
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop import reward_manager
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.experimental.reward_loop.reward_manager.remote import RemoteRewardManager
from verl_parts import AGENT_LOOP_WORKER, bare

from verl_gsd import records
from verl_gsd.run.checks import gsd_section
from verl_gsd.run.compose import Line
from verl_gsd.run.messages import MessageWriter
from verl_gsd.trainer.reward_monitor import RewardMonitor
from verl_gsd.trainer.rows import verdict_of
from verl_gsd.trainer.verifying import as_data

MODEL = "reward.reward_model"
SOURCE = "tldr"


def scored(text):
    """The server's score of a chat: the number in its answer, which may be above 1 or negative."""
    return float(text.rsplit("says", 1)[1].split("<")[0])


class RewardServer(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/classify" and asked["use_activation"] is False
        body = json.dumps({"data": [{"probs": [scored(asked["input"])]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), RewardServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def config(compose_fast, tiny_task):
    """The reward settings of recipe=gvpo/summarisation, with the tests' tiny models."""
    words = ["reward.custom_reward_function.path=null", f"actor_rollout_ref.model.path={tiny_task}/model"]
    words += [f"{MODEL}.enable=true", f"{MODEL}.enable_resource_pool=true", f"{MODEL}.model_path={tiny_task}/model"]
    words += [f"{MODEL}.rollout.name=vllm"]
    return compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words)[0]


@pytest.fixture(scope="module")
def worker(running_queue, config, address):
    """verl's reward worker, in its own process, which loads the plugin."""
    actor = ray.remote(RewardLoopWorker).options(num_cpus=0).remote(config, address)
    yield actor
    ray.kill(actor)


@pytest.fixture(scope="module")
def tokenizer():
    from verl_gsd.tasks.byte_llama import build_tokenizer

    return build_tokenizer()


@pytest.fixture
def agent_loop_of(config):
    """(reward worker) -> verl's agent loop worker without an engine. It generates nothing."""
    parts = {"config": config, "processor": None, "mm_processor_kwargs": {}, "distillation_enabled": False}
    return lambda worker: bare(AGENT_LOOP_WORKER, reward_loop_worker_handles=[worker], **parts)


@pytest.fixture
def agent_loop(worker, agent_loop_of):
    return agent_loop_of(worker)


def respond(agent_loop, tokenizer, uid, scores, *, validate=False, outputs=1):
    """Complete a prompt with one session per score. Its responses make the server return these scores."""
    chat = [{"role": "user", "content": "a post"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    columns = {"uid": uid, "raw_prompt": chat, "data_source": SOURCE, "index": 0, "global_steps": 1}
    columns |= {"reward_model": {"style": "model", "ground_truth": ""}, "extra_info": {"index": 0}}

    async def sessions():
        for session, score in enumerate(scores):
            given = [
                AgentLoopOutput(
                    prompt_ids=prompt,
                    response_ids=[*tokenizer.encode(f"says{score}", add_special_tokens=False), tokenizer.eos_token_id],
                    response_mask=[1] * (len(f"says{score}") + 1),
                    num_turns=2,
                    metrics=AgentLoopMetrics(),
                    extra_fields={"min_global_steps": 0, "max_global_steps": 0},
                )
                for _ in range(outputs)
            ]
            await agent_loop._agent_loop_postprocess(given, validate, session_id=session, **columns)

    asyncio.run(sessions())
    tag = {"is_prompt": True, "status": "finished", "global_steps": 1}
    tq.kv_put(key=uid, partition_id="val" if validate else "train", tag=tag)


def key_of(uid):
    return (SOURCE, int(uid[1:]))


@pytest.mark.usefixtures("queue")
@pytest.mark.parametrize("outputs", [1, 2])
def test_every_session_has_its_score_and_no_verdict(agent_loop, tokenizer, outputs):
    buffer, seam = watched(key_of=key_of)
    respond(agent_loop, tokenizer, "a0", [-3.5, 0.25, 7.0], outputs=outputs)
    batch, _ = buffer.sample(1, "train", 1)
    assert len(batch.keys) == 3 * outputs
    group, fate = seam.gone["a0"]
    assert fate == "trained" and group.rewards.tolist() == [-3.5, 0.25, 7.0]
    assert np.isnan(group.accuracies).all()
    data = tq.kv_batch_get(keys=batch.keys, partition_id="train", select_fields=["extra_fields"])
    assert all(verdict_of(extra) == {} for extra in data["extra_fields"])


@pytest.mark.usefixtures("queue")
def test_records_of_such_groups_have_rewards_but_no_accuracy(agent_loop, tokenizer):
    buffer, seam = watched(key_of=key_of)
    respond(agent_loop, tokenizer, "a0", [-1.0, 1.0])
    respond(agent_loop, tokenizer, "a1", [0.5, 0.5])
    buffer.sample(1, "train", 2)
    left = [records.LeftGroup(*seam.gone[uid]) for uid in ("a0", "a1")]
    table = records.step_records(left, step=1, attempt=1, alpha=None)
    assert table["total"].to_pylist() == [0, 0] and table["correct"].to_pylist() == [0, 0]
    assert table["mean"].to_pylist() == [0.0, 0.5] and table["std"].to_pylist() == [1.0, 0.0]
    assert table["kind"].to_pylist()[0] == "mixed"


@pytest.mark.usefixtures("queue")
def test_dynamic_sampling_by_reward_evicts_groups_of_equal_rewards(agent_loop, tokenizer):
    buffer, seam = watched(key_of=key_of, filtering="reward")
    respond(agent_loop, tokenizer, "a0", [0.5, 0.5])
    respond(agent_loop, tokenizer, "a1", [0.5, 0.75])
    buffer.sample(1, "train", 1)
    assert dict(seam.fates) == {"a0": "filtered", "a1": "trained"}


@pytest.mark.usefixtures("queue")
def test_validation_reports_the_mean_reward_and_no_accuracy(agent_loop, config, tokenizer, tmp_path):
    from verl_gsd.trainer.trainer import GSDTrainerSync

    class AgentLoopStub:
        """Adds responses instead of vLLM."""

        def generate_sequences(self, prompts):
            for uid, score in zip(prompts["uid"], (0.5, -2.0), strict=True):
                respond(agent_loop, tokenizer, uid, [score], validate=True)

    trainer = bare(GSDTrainerSync, config=config, tokenizer=tokenizer, global_steps=1)
    trainer.replay_buffer, _ = watched(key_of=key_of)
    messages = MessageWriter(tmp_path / "messages.jsonl")
    rewards = RewardMonitor.from_config(config, messages, batch_groups=2, overlaps=False)
    trainer.monitor = SimpleNamespace(rewards=rewards)
    trainer.agent_loop_manager = AgentLoopStub()
    trainer.reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=agent_loop.reward_loop_worker_handles)
    raw_prompt = np.empty(2, dtype=object)
    raw_prompt[:] = [[{"role": "user", "content": "a post"}]] * 2
    batch = {"raw_prompt": raw_prompt, "data_source": np.array([SOURCE] * 2, dtype=object), "index": torch.arange(2)}
    trainer.val_dataloader = [batch]
    found = trainer._validate()
    assert found[f"val-core/{SOURCE}/reward/mean@1"] == pytest.approx(-0.75)
    assert found[f"val/prompts/{SOURCE}"] == 2
    assert not [name for name in found if "/acc" in name]


def test_settings_that_need_a_verdict_are_rejected_with_only_a_reward_model(compose_fast):
    words = [f"{MODEL}.enable=true", f"{MODEL}.enable_resource_pool=true", "reward.custom_reward_function.path=null"]
    dapo, _ = compose_fast("algo=dapo", "task=arithmetic", "hardware=cpu", *words)
    (problem,) = gsd_section.check_accuracies_known(dapo, Line({}, ()))
    assert all(word in problem for word in ("filter_groups.metric=acc", "algorithm.filter_groups.metric=reward"))
    dapo.algorithm.filter_groups.metric = "reward"
    assert not list(gsd_section.check_accuracies_known(dapo, Line({}, ())))
    for choice in ("algo=hadw", "budget=adaptive", "sampler=disagreement", "algo=dagrpo"):
        line = [choice] if choice.startswith("algo") else ["algo=grpo", choice]
        config, _ = compose_fast(*line, "task=arithmetic", "hardware=cpu", *words)
        problems = list(gsd_section.check_accuracies_known(config, Line({}, ())))
        assert problems and all("reward.custom_reward_function.path" in problem for problem in problems), choice
        config.reward.custom_reward_function.path = "mine.py"
        assert not list(gsd_section.check_accuracies_known(config, Line({}, ())))


def test_the_fix_for_a_colocated_reward_model_gives_a_valid_config(config):
    colocated = config.copy()
    colocated.reward.reward_model.enable_resource_pool = False
    (problem,) = gsd_section.check_reward_model_pool(colocated, Line({}, ()))
    assert "reward.reward_model.enable_resource_pool=true reward.reward_model.nnodes=1 " in problem
    fixed = config.copy()
    fixed.reward.reward_model.nnodes = 1  # verl's default is 0, with which it would stop after Ray has started
    assert not [problem for check in gsd_section.CHECKS for problem in check(fixed, Line({}, ()))]


# Contracts with verl. If one fails, the patch or a part of it can be removed.


def test_the_patch_is_still_needed(config, address):
    """verl issue 7368: verl's method returns only a score, and the agent loop reads more."""
    original = inspect.unwrap(RewardLoopWorker.compute_score_disrm)
    assert original is not RewardLoopWorker.compute_score_disrm
    worker = object.__new__(RewardLoopWorker)
    worker.config, worker.reward_router_address = config, address

    async def chat(data):
        return "says1<eos>"

    worker._preprocess_reward_inputs = chat
    assert asyncio.run(original(worker, None)) == {"reward_score": 1.0}
    assert asyncio.run(worker.compute_score_disrm(None)) == {"reward_score": 1.0, "reward_extra_info": {}}


def test_the_agent_loop_reads_the_info_that_the_method_lacks(agent_loop_of):
    async def score(data):
        return {"reward_score": 1.0}

    output = AgentLoopOutput(
        prompt_ids=[1], response_ids=[2], response_mask=[1], num_turns=2, metrics=AgentLoopMetrics()
    )
    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=score))
    with pytest.raises(KeyError, match="reward_extra_info"):
        asyncio.run(agent_loop_of(handle)._compute_score([output], {"raw_prompt": []}))


def test_no_other_result_of_verls_reward_workers_lacks_the_key(tokenizer, monkeypatch):
    """Also, all of verl's managers pass the two columns that a data file must have to the reward function."""
    scorers = {name for name in vars(RewardLoopWorker) if name.startswith("compute_score")}
    assert scorers == {"compute_score", "compute_score_batch", "compute_score_disrm"}
    managers = []
    for module in pkgutil.iter_modules(reward_manager.__path__):
        loaded = importlib.import_module(f"{reward_manager.__name__}.{module.name}")
        managers += [kind for kind in vars(loaded).values() if "run_single" in getattr(kind, "__dict__", {})]
    managers = {kind for kind in managers if not inspect.isabstract(kind)}
    assert len(managers) >= 5
    config = OmegaConf.create({"reward": {"num_workers": 1}, "trainer": {"experiment_name": "e"}})
    columns = {"data_source": "s", "reward_model": {"ground_truth": "4"}, "extra_info": {}}

    async def half_of(**asked):
        return half(**asked)

    def half(data_source, ground_truth, **_):
        assert (data_source, ground_truth) == ("s", "4")
        return 0.5

    async def answer(kind):
        made = kind(config, tokenizer, half)
        if kind is RemoteRewardManager:  # whose actors are Ray's
            made.choose_reward_worker = lambda: SimpleNamespace(compute_score=SimpleNamespace(remote=half_of))
        return await made.run_single(as_data(columns, [1], tokenizer.encode("4")))

    monkeypatch.setattr(importlib.import_module(RemoteRewardManager.__module__), "RewardComputeWorker", MagicMock())
    monkeypatch.setattr(importlib.import_module(RemoteRewardManager.__module__), "ray", MagicMock())
    for kind in managers:
        assert asyncio.run(answer(kind)) == {"reward_score": 0.5, "reward_extra_info": {"acc": 0.5}}, kind


def test_a_reward_model_that_adds_its_own_info_keeps_it():
    from verl_gsd.trainer.reward_model_patch import add_extra_info

    class WorkerStub:
        async def compute_score_disrm(self, data):
            return {"reward_score": 1.0, "reward_extra_info": {"acc": data}}

    add_extra_info(SimpleNamespace(RewardLoopWorker=WorkerStub))
    assert asyncio.run(WorkerStub().compute_score_disrm(0.5))["reward_extra_info"] == {"acc": 0.5}
