"""What verl's reward worker and managers return to the agent loop if a reward function raises, hangs or is invalid."""

import asyncio
import concurrent.futures
import inspect
import itertools
import math
import sys
import threading
import time
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import failing_rewards
import forks
import ray
import stopped_reward_worker
from omegaconf import OmegaConf
from ports import free_ports
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_manager.limited import RateLimitedRewardManager
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.experimental.reward_loop.reward_manager.remote import RemoteRewardManager
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl_parts import AGENT_LOOP_WORKER, bare

from verl_gsd.extension import Verdict
from verl_gsd.lab.training.verifier import InlineVerifier
from verl_gsd.run.checks import limits
from verl_gsd.trainer.reward_failures import Failure, failure_of_score, mark_failures
from verl_gsd.trainer.verifying import RewardWorkers

SECONDS = 300.0


@pytest.fixture(scope="module")
def base_config(compose_fast, tiny_task):
    return compose_fast("algo=gsd", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}")[0]


@pytest.fixture(scope="module")
def tokenizer():
    from verl_gsd.tasks.byte_llama import build_tokenizer

    return build_tokenizer()


@pytest.fixture
def worker(base_config, tokenizer):
    """(function, seconds, manager) -> verl's reward worker. seconds=None: under verl's own trainer modes."""

    def build(function, seconds=SECONDS, manager=NaiveRewardManager):
        built = object.__new__(reward_loop.RewardLoopWorker)
        built.config = base_config.copy()
        if seconds is not None:
            mark_failures(built.config, seconds)
        built.manager_of = lambda: manager(built.config, tokenizer, function)
        return built

    return build


def response(tokenizer, text, index=0):
    """One response in the format of an agent loop."""
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    columns = {"data_source": "math", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": index}}
    array = {}
    for name, value in columns.items():
        array[name] = np.empty(1, dtype=object)
        array[name][0] = value
    batch = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
    return DataProto(batch=batch, non_tensor_batch=array)


def answers(worker, *data):
    """The worker's results for ``data``, all requested at once."""

    async def ask():
        worker.reward_manager = worker.manager_of()  # which keeps the running loop
        return await asyncio.gather(*(worker.compute_score(item) for item in data))

    return asyncio.run(ask())


def failure(worker, tokenizer, text="4"):
    (result,) = answers(worker, response(tokenizer, text))
    assert result["reward_score"] == 0.0
    return Failure.from_extra_info(result["reward_extra_info"])


def of_result(result):
    return Failure.from_extra_info(result["reward_extra_info"])


def returning(value):
    return lambda **_: value


# Failures


@pytest.mark.parametrize(
    ("value", "kind", "what"),
    [
        (None, "none", "returned None"),
        (math.nan, "not_finite", "returned nan"),
        (-math.inf, "not_finite", "returned -inf"),
        ({"score": np.float32("nan"), "acc": 1.0}, "not_finite", "returned nan"),
        ({"score": None}, "none", "returned None"),
        ("1.0", "not_a_number", "returned a score of type str"),
        ([1.0], "not_a_number", "returned a score of type list"),
        (torch.ones(2), "not_a_number", "returned a score of type Tensor"),
        ({"acc": 1.0}, "no_score", "returned a dict without score"),
    ],
)
def test_invalid_rewards_are_marked(worker, tokenizer, value, kind, what):
    assert failure(worker(returning(value)), tokenizer) == Failure(kind, what)


@pytest.mark.parametrize("value", [1, True, np.float64(0.5), torch.tensor(0.5), -3.0])
def test_a_finite_number_of_any_type_is_not_changed(worker, tokenizer, value):
    (result,) = answers(worker(returning(value)), response(tokenizer, "4"))
    assert result == {"reward_score": value, "reward_extra_info": {"acc": value}}
    assert failure_of_score(value) is None and Failure.from_extra_info(result["reward_extra_info"]) is None


def test_other_values_that_a_reward_function_returns_are_kept(worker, tokenizer):
    (result,) = answers(worker(failing_rewards.compute_score_raises_on_some), response(tokenizer, "4"))
    assert result == {"reward_score": 1.0, "reward_extra_info": {"score": 1.0, "acc": 1.0}}


def test_an_exception_is_marked_with_its_traceback(worker, tokenizer):
    found = failure(worker(failing_rewards.compute_score_raises), tokenizer, "12")
    assert (found.kind, found.what, found.text) == ("raised", "KeyError", "'12'")
    assert found.describe() == "raised KeyError: '12'"
    lines = found.trace.splitlines()
    assert "failing_rewards.py" in lines[1] and "raise KeyError(solution_str)" in lines[2], (
        "verl's own frames are left out"
    )


def test_a_key_error_of_the_users_own_about_score_is_an_exception(worker, tokenizer):
    def function(**_):
        return {}["score"]

    assert failure(worker(function), tokenizer).what == "KeyError"


def test_exceptions_of_async_functions_are_marked(worker, tokenizer):
    async def function(**_):
        raise ValueError("no server")

    assert failure(worker(function), tokenizer).describe() == "raised ValueError: no server"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_reward_function_that_exits_does_not_end_the_worker(worker, tokenizer, is_async):
    async def exits(**_):
        sys.exit(3)

    found = failure(worker(exits if is_async else lambda **_: sys.exit(3)), tokenizer)
    assert found.kind == "raised" and "called sys.exit(3)" in found.text


@pytest.mark.parametrize("error", [asyncio.CancelledError, concurrent.futures.CancelledError])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_reward_function_that_raises_cancelled_error_has_failed(worker, tokenizer, is_async, error):
    """asyncio's ``CancelledError`` is not an ``Exception``, and that of ``concurrent.futures`` becomes asyncio's."""

    def raises(**_):
        raise error

    async def raises_async(**_):
        raises()

    found = failure(worker(raises_async if is_async else raises), tokenizer)
    assert (found.kind, found.what) == ("raised", "CancelledError")


def test_a_worker_whose_call_is_cancelled_cancels_the_function(worker, tokenizer):
    built = worker(None)

    async def ask():
        begun, ended = asyncio.Event(), []

        async def function(**_):
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        built.reward_manager = NaiveRewardManager(built.config, tokenizer, function)
        call = asyncio.ensure_future(built.compute_score(response(tokenizer, "4")))
        await begun.wait()
        call.cancel()
        await asyncio.wait({call})
        await asyncio.sleep(0)
        return call.cancelled(), ended

    assert asyncio.run(ask()) == (True, [True])


def test_the_text_of_an_exception_cannot_control_a_terminal_or_fill_a_disk(worker, tokenizer):
    def function(**_):
        raise ValueError("\x1b[2J\ud800" + "x" * 100_000)

    found = failure(worker(function), tokenizer)
    assert len(found.text) < 1000 and len(found.trace) < 10_000
    assert "\x1b" not in found.text + found.trace and "\x1b" not in found.describe()
    found.text.encode(), found.trace.encode()


def test_an_exception_whose_text_raises_is_still_marked(worker, tokenizer):
    class HostileError(Exception):
        def __str__(self):
            raise RuntimeError

    def function(**_):
        raise HostileError

    assert failure(worker(function), tokenizer).describe() == "raised HostileError"


def test_an_exception_of_a_reward_manager_has_its_whole_traceback(worker, tokenizer):
    built = worker(returning(1.0))
    data = response(tokenizer, "4")
    del data.non_tensor_batch["reward_model"]
    (result,) = answers(built, data)
    found = Failure.from_extra_info(result["reward_extra_info"])
    assert found.what == "KeyError" and "naive.py" in found.trace


def test_one_failure_does_not_affect_other_responses(worker, tokenizer):
    def function(solution_str, **_):
        return {"4": 1.0, "5": None}.get(solution_str) if solution_str != "6" else {}["key"]

    results = answers(worker(function), *(response(tokenizer, text) for text in ("4", "5", "6", "4")))
    assert [result["reward_score"] for result in results] == [1.0, 0.0, 0.0, 1.0]
    kinds = [failed and failed.kind for failed in map(of_result, results)]
    assert kinds == [None, "none", "raised", None]


def test_under_verls_own_trainer_modes_nothing_changes(worker, tokenizer):
    """verl would train on the 0.0."""
    with pytest.raises(KeyError):
        answers(worker(failing_rewards.compute_score_raises, seconds=None), response(tokenizer, "4"))
    (result,) = answers(worker(returning(None), seconds=None), response(tokenizer, "4"))
    assert result["reward_score"] is None


# The laboratory


class UnusableNumber:
    def __float__(self):
        raise ZeroDivisionError("no number")


def raising(kind, *arguments):
    def function(**_):
        raise kind(*arguments)

    return function


@pytest.fixture
def lab_reward(base_config, tokenizer):
    """(function) -> the reward of a response in the laboratory, for the prompt of ``response``."""

    def reward(function, **further):
        verifier = InlineVerifier(base_config, tokenizer)
        verifier._compute_score = function
        columns = {"data_source": "math", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 0}}
        return verifier.reward(columns | further, tokenizer.encode("4", add_special_tokens=False))

    return reward


@pytest.mark.parametrize(
    "function",
    [
        *map(
            returning, (None, math.nan, -math.inf, {"score": math.nan}, "1.0", [1.0], {"acc": 1.0}, UserDict(score=1.0))
        ),
        returning(UnusableNumber()),
        raising(KeyError, "score"),  # not by the caller, which finds no score
        raising(ValueError, "bad \x1b[31m answer"),
        failing_rewards.compute_score_raises,
    ],
)
def test_a_reward_fails_in_the_laboratory_as_in_a_worker(worker, lab_reward, tokenizer, function):
    reward = lab_reward(function)
    assert reward.score == 0.0 and reward.failure is not None
    assert reward.failure == failure(worker(function), tokenizer)


@pytest.mark.parametrize("function", [raising(SystemExit, 3), raising(asyncio.CancelledError)])
def test_a_reward_function_that_exits_does_not_end_the_laboratory(worker, lab_reward, tokenizer, function):
    found, expected = lab_reward(function).failure, failure(worker(function), tokenizer)
    assert (found.kind, found.what, found.text) == (expected.kind, expected.what, expected.text)
    assert found.trace.splitlines()[1].endswith("in function")


def test_ctrl_c_in_a_reward_function_ends_the_laboratory(lab_reward):
    with pytest.raises(KeyboardInterrupt):
        lab_reward(raising(KeyboardInterrupt))


@pytest.mark.parametrize("value", [1, True, np.float64(0.5), torch.tensor(0.5), {"score": 1, "acc": 0, "note": "x"}])
def test_a_finite_number_is_the_reward_in_the_laboratory_and_in_a_worker(worker, lab_reward, tokenizer, value):
    reward = lab_reward(returning(value))
    (expected,) = answers(worker(returning(value)), response(tokenizer, "4"))
    assert reward.score == expected["reward_score"] and reward.info == expected["reward_extra_info"]
    assert reward.failure is None


def test_a_prompt_without_a_ground_truth_has_no_reward(lab_reward):
    found = lab_reward(returning(1.0), reward_model={}).failure
    assert (found.kind, found.describe()) == ("raised", "raised KeyError: 'ground_truth'")


def test_the_laboratorys_verifier_gives_no_verdict_if_the_function_failed(base_config, tokenizer, caplog):
    verifier = InlineVerifier(base_config, tokenizer)
    verifier._compute_score = returning(math.nan)
    answer = verifier.submit({"data_source": "math", "reward_model": {"ground_truth": "4"}}, [1], [2])
    assert verifier.has_answered(answer) and verifier.verdict(answer, 1.0) is None
    assert "a demonstration could not be verified: the reward function returned nan" in caplog.text


# Calls that hang


@pytest.fixture
def released():
    """An event that is set when the test has ended. Calls that hang in a thread wait for it."""
    event = threading.Event()
    yield event
    event.set()


#: As many calls of a function run at a time.
THREADS = ThreadPoolExecutor()._max_workers


def test_other_calls_succeed_even_if_more_calls_hang_than_there_are_threads(worker, tokenizer, released):
    def function(solution_str, **_):
        return 1.0 if solution_str == "4" else float(released.wait())

    built = worker(function, seconds=1.0)

    async def ask():
        built.reward_manager = built.manager_of()
        texts = ["5"] * (THREADS + 2) + ["4"] * 40
        first = await asyncio.gather(*(built.compute_score(response(tokenizer, text)) for text in texts))
        return first, await built.compute_score(response(tokenizer, "4"))

    first, later = asyncio.run(ask())
    assert {of_result(result).what for result in first[: THREADS + 2]} == {"took longer than 1 s"}
    right = {"reward_score": 1.0, "reward_extra_info": {"acc": 1.0}}
    assert first[THREADS + 2 :] == [right] * 40 and later == right


def test_waiting_for_a_thread_does_not_count(worker, tokenizer):
    """Four calls per thread, of 0.5 s each, take 2 s in all. None of them takes 1.5 s."""
    built = worker(lambda **_: time.sleep(0.5) or 1.0, seconds=1.5)
    results = answers(built, *(response(tokenizer, "4") for _ in range(4 * THREADS)))
    assert [result["reward_score"] for result in results] == [1.0] * (4 * THREADS)


def test_an_async_function_that_hangs_is_cancelled(worker, tokenizer):
    ended = []

    async def function(**_):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    assert failure(worker(function, seconds=1.0), tokenizer).kind == "too_slow"
    assert ended == [True]


# verl's managers that have their own queue


@pytest.fixture
def rate_limited(monkeypatch):
    """(settings of ``reward``) -> the manager's class. Its first instance sets the limits for the whole process."""

    def build(**settings):
        for name in ("_class_initialized", "_semaphore", "_max_concurrent"):
            monkeypatch.setattr(RateLimitedRewardManager, name, False)
        return lambda config, *further: RateLimitedRewardManager(
            OmegaConf.merge({"reward": settings}, config), *further
        )

    return build


@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_that_the_rate_limited_manager_catches_is_a_failed_reward(
    worker, tokenizer, rate_limited, is_async
):
    def raises(**_):
        raise ValueError("no server\x1b")

    async def raises_async(**_):
        raises()

    found = failure(worker(raises_async if is_async else raises, manager=rate_limited()), tokenizer)
    assert found == Failure("raised", "an error", "no server ")


def test_a_timeout_of_the_rate_limited_manager_is_a_failed_reward_and_its_thread_is_replaced(
    worker, tokenizer, rate_limited, released
):
    def function(solution_str, **_):
        return 1.0 if solution_str == "4" else float(released.wait())

    built = worker(function, manager=rate_limited(timeout=0.5, max_concurrent=100))

    async def ask():
        built.reward_manager = built.manager_of()
        first = await asyncio.gather(*(built.compute_score(response(tokenizer, "5")) for _ in range(40)))
        return first, await built.compute_score(response(tokenizer, "4"))

    first, later = asyncio.run(ask())
    found = {(failure.kind, failure.what) for failure in map(of_result, first)}
    assert found == {("too_slow", "took longer than reward.timeout=0.5 s")}
    assert later == {"reward_score": 1.0, "reward_extra_info": {"acc": 1.0}}


def test_a_score_with_an_entry_error_is_not_a_failed_reward(worker, tokenizer, rate_limited):
    built = worker(returning({"score": 1.0, "error": "", "timeout": False}), manager=rate_limited())
    (result,) = answers(built, response(tokenizer, "4"))
    assert result["reward_score"] == 1.0 and of_result(result) is None


def test_waiting_in_the_queue_of_the_rate_limited_manager_does_not_count(worker, tokenizer, rate_limited):
    """Eight calls of 0.25 s, one at a time, take 2 s."""

    async def function(**_):
        await asyncio.sleep(0.25)
        return 1.0

    built = worker(function, seconds=1.0, manager=rate_limited(max_concurrent=1))
    results = answers(built, *(response(tokenizer, "4") for _ in range(8)))
    assert [result["reward_score"] for result in results] == [1.0] * 8


def test_waiting_for_an_actor_of_the_remote_manager_does_not_count(worker, tokenizer):
    class Actor:
        """Handles one call at a time, like Ray's actors."""

        def __init__(self):
            self.turn = asyncio.Lock()

        async def answer(self, **_):
            async with self.turn:
                await asyncio.sleep(0.25)
                return 1.0

    class OneActor(RemoteRewardManager):
        def __init__(self, config, tokenizer, function):  # verl's starts Ray's actors
            self.tokenizer, self.loop, self.reward_router_address = tokenizer, asyncio.get_running_loop(), None
            self.reward_worker_pool = itertools.repeat(
                SimpleNamespace(compute_score=SimpleNamespace(remote=Actor().answer))
            )

    built = worker(None, seconds=1.0, manager=OneActor)
    results = answers(built, *(response(tokenizer, "4") for _ in range(8)))
    assert [result["reward_score"] for result in results] == [1.0] * 8


def test_a_reward_model_has_at_least_the_time_of_verls_retries(base_config):
    config = base_config.copy()
    config.algorithm.gsd.limits.reward_seconds = 300
    assert limits.seconds_for_a_reward(config) == 300
    config.reward.reward_model.enable = True
    assert limits.seconds_for_a_reward(config) == 300, "a custom function asks the model itself"
    config.reward.custom_reward_function.path = None
    assert limits.seconds_for_a_reward(config) == 600
    config.algorithm.gsd.limits.reward_seconds = 900
    assert limits.seconds_for_a_reward(config) == 900


def test_a_worker_blocked_by_its_function_ends_and_its_log_says_where(tmp_path):
    """A regular expression never releases the interpreter: no other thread and no event loop can run."""
    status, log = forks.run(tmp_path, stopped_reward_worker.ask_the_function_that_hangs)
    assert status == 1
    assert "Timeout" in log and "in compute_score_hangs_alone" in log


@pytest.mark.usefixtures("queue")
def test_a_worker_in_its_own_process_has_the_patch(base_config, tokenizer):
    """Uses Ray's event loop, like a run. A demonstration whose reward failed gets no verdict."""
    config = base_config.copy()
    mark_failures(config, 2.0)
    config.reward.custom_reward_function.path = failing_rewards.__file__
    config.reward.custom_reward_function.name = "compute_score_hangs"
    columns = {"data_source": "math", "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 0}}
    numbers = [str(number) for number in range(2000)]
    hanging = [text for text in numbers if failing_rewards.chosen(0.02, text, {"index": 0})][:40]
    assert len(hanging) == 40 > ThreadPoolExecutor()._max_workers, "or a thread would be left"
    actor = ray.remote(reward_loop.RewardLoopWorker).options(num_cpus=0).remote(config, None)
    try:
        tokens = {text: tokenizer.encode(text, add_special_tokens=False) for text in [*hanging, "4"]}
        verifier = RewardWorkers([actor])
        first = [verifier.submit(columns, [1], tokens[text]) for text in hanging]
        assert [verifier.verdict(answer, 120.0) for answer in first] == [None] * 40
        assert all(verifier.has_answered(answer) for answer in first)
        whats = {Failure.from_extra_info(ray.get(answer)["reward_extra_info"]).what for answer in first}
        assert whats == {"took longer than 2 s"}
        later = verifier.verdict(verifier.submit(columns, [1], tokens["4"]), 120.0)
        assert later == Verdict(1.0, {"score": 1.0, "acc": 1.0})
    finally:
        ray.kill(actor)


# Contracts with verl: the behaviour that this package relies on.


def test_the_agent_loop_reads_score_and_info_from_a_worker_and_measures_the_wait():
    async def score(data):
        await asyncio.sleep(0.01)
        return {"reward_score": 0.5, "reward_extra_info": {"acc": 1.0}}

    handle = SimpleNamespace(compute_score=SimpleNamespace(remote=score))
    worker = bare(AGENT_LOOP_WORKER, processor=None, mm_processor_kwargs={}, reward_loop_worker_handles=[handle])
    output = AgentLoopOutput(
        prompt_ids=[1], response_ids=[2], response_mask=[1], num_turns=2, metrics=AgentLoopMetrics()
    )
    assert output.metrics.model_dump(exclude_unset=True) == {}, "a column of the row, without what nobody set"
    asyncio.run(worker._compute_score([output], {"raw_prompt": []}))
    assert output.reward_score == 0.5 and output.extra_fields["reward_extra_info"] == {"acc": 1.0}
    assert output.metrics.model_dump(exclude_unset=True)["compute_score"] >= 0.01


def test_reward_workers_are_actors_of_the_patched_class(base_config, monkeypatch):
    """Ray pickles the class by its name, so a worker imports the patched class."""
    stub = MagicMock(**{"nodes.return_value": [{"NodeID": "n", "Alive": True, "Resources": {"CPU": 2}}]})
    monkeypatch.setattr(reward_loop, "ray", stub)
    handles = reward_loop.RewardLoopManager(base_config).reward_loop_worker_handles
    stub.remote.assert_called_once_with(reward_loop.RewardLoopWorker)
    started = stub.remote.return_value.options.return_value.remote
    assert handles and set(handles) == {started.return_value} and started.call_args.args == (base_config, None)
    assert inspect.iscoroutinefunction(reward_loop.RewardLoopWorker.compute_score)
    assert inspect.unwrap(reward_loop.RewardLoopWorker.compute_score) is not reward_loop.RewardLoopWorker.compute_score


def test_verl_waits_between_its_requests_to_a_reward_model(base_config, monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    (port,) = free_ports(1)
    monkeypatch.setattr(reward_loop, "asyncio", SimpleNamespace(sleep=sleep, TimeoutError=asyncio.TimeoutError))
    worker = bare(reward_loop.RewardLoopWorker, reward_router_address=f"127.0.0.1:{port}")
    with pytest.raises(OSError):
        asyncio.run(worker._post_request({}, "classify"))
    config = base_config.copy()
    config.reward.reward_model.enable, config.reward.custom_reward_function.path = True, None
    assert sum(waits) == 331 < limits.seconds_for_a_reward(config)


@pytest.mark.parametrize("kind", [ReplayBuffer, ReplayBufferAsync])
def test_a_finished_group_without_rows_ends_dynamic_sampling(kind):
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    settings = {"refill_fn": lambda count: None, "filter_groups_metric": "acc"}
    buffer = kind(trainer_mode="sync", trainer_config=None, **sampler, **settings)
    buffer.finished_keys["train"] = {"a1"}
    with pytest.raises(RuntimeError, match="acc"):
        buffer._dapo_filtered_keys("train")


def test_verl_counts_failed_sessions_of_a_validation_as_wrong_and_also_reports_the_others_alone():
    expected = {("math", "a"): 2, ("math", "b"): 2}
    infos = {"reward": [1.0, 1.0, 0.0], "acc": [1.0, 1.0, 0.0]}
    found = process_validation_metrics(["math"] * 3, ["a", "b", "b"], infos, expected_acc_counts=expected)["math"]
    assert found["acc"]["mean@2"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["acc_success_only"]["mean@1"] == 1.0 and found["acc_success_only"]["mean@2"] == 0.5
