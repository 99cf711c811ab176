"""What we assume of verl, a fact a test: an upgrade that changes one fails here, by name, and not in a run."""

import contextlib
import importlib.metadata
import importlib.util
import inspect
import logging
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
import forks
import verl
import verls_tests
from memory_queue import MemoryQueue
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.experimental.reward_loop.reward_manager.dapo import DAPORewardManager
from verl.protocol import DataProto
from verl.trainer import main_ppo
from verl.trainer.ppo import core_algos, padding_utils, ray_trainer
from verl.trainer.ppo.metric_utils import compute_timing_metrics
from verl.trainer.ppo.v1 import get_trainer_cls, replay_buffer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils.tracking import Tracking
from verl_parts import actor_config, bare_trainer, fit, loss_of, micro_batch, names_of_calls

from verl_gsd.dynamic_sampling import is_evicted
from verl_gsd.estimators import GROUP_BASELINES, has_group_baseline
from verl_gsd.groups import Group
from verl_gsd.trainer.rows import answer_of


@pytest.fixture
def queue(monkeypatch):
    return MemoryQueue.installed(monkeypatch)


@pytest.fixture
def estimator():
    """(name, calls) of an estimator in verl's registry that writes down what it is called with."""
    calls, name = [], "verl_gsd_contract"

    def estimator(**arguments):
        calls.append(arguments)
        zeros = torch.zeros_like(arguments["token_level_rewards"])
        return zeros, zeros

    core_algos.register_adv_est(name)(estimator)
    yield name, calls
    del core_algos.ADV_ESTIMATOR_REGISTRY[name]


# Plugins


def test_verl_loads_plugins_from_entry_points_and_mentions_one_that_fails_at_debug_level_alone(monkeypatch, caplog):
    groups, broken, sound = [], Mock(), Mock()
    broken.load.side_effect = RuntimeError("the plugin is broken")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: groups.append(group) or [broken, sound])
    spec = importlib.util.spec_from_file_location("verl", verl.__file__)
    with caplog.at_level(logging.DEBUG):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert groups == ["verl.plugins"] and sound.load.called
    assert {record.levelno for record in caplog.records if "the plugin is broken" in record.message} == {logging.DEBUG}


def test_our_plugin_is_an_entry_point():
    assert "verl_gsd.trainer.plugin" in {p.value for p in importlib.metadata.entry_points(group="verl.plugins")}


# Estimators


def test_an_estimator_name_cannot_be_taken_twice():
    core_algos.register_adv_est("gsd")(core_algos.ADV_ESTIMATOR_REGISTRY["gsd"])
    with pytest.raises(ValueError, match="gsd"):
        core_algos.register_adv_est("gsd")(lambda: None)


def test_an_estimator_is_called_with_rewards_mask_config_and_uids_alone(estimator):
    name, calls = estimator
    ones = torch.ones(2, 1)
    data = DataProto.from_dict(
        tensors={"token_level_rewards": ones, "response_mask": ones, "old_log_probs": ones},
        non_tensors={"uid": np.array(["a", "b"], dtype=object), "acc": np.ones(2)},
    )
    ray_trainer.compute_advantage(data, adv_estimator=name, config={"gsd": 1})
    (seen,) = calls
    assert seen.keys() == {"token_level_rewards", "response_mask", "config", "index"}
    assert seen["config"] == {"gsd": 1} and list(seen["index"]) == ["a", "b"]


def test_grpo_and_gae_are_the_names_that_bypass_the_registry(monkeypatch):
    class AskedError(Exception):
        pass

    monkeypatch.setattr(core_algos, "get_adv_estimator_fn", Mock(side_effect=AskedError))
    bypassing, ones = set(), torch.ones(2, 2)
    for name in core_algos.AdvantageEstimator:
        columns = {column: ones for column in ("token_level_rewards", "response_mask", "values")}
        data = DataProto.from_dict(tensors=columns, non_tensors={"uid": np.array(["a", "a"], dtype=object)})
        try:
            ray_trainer.compute_advantage(data, adv_estimator=name, config={})
        except AskedError:
            continue
        bypassing.add(name.value)
    assert bypassing == {"grpo", "gae"}


def compute_advantage(queue, adv_estimator):
    """verl's step over two rows with the same rewards, of which one has an empty mask; returns the config."""
    algorithm = {"adv_estimator": adv_estimator, "use_kl_in_reward": False, "gamma": 1.0, "lam": 1.0, "gsd": {}}
    config = OmegaConf.create({"algorithm": algorithm, "actor_rollout_ref": {"rollout": {"n": 2}}})
    for key, mask in (("u_0_0", [1, 1]), ("u_1_0", [0, 0])):
        row = {"uid": "u", "response_mask": torch.tensor(mask), "rm_scores": torch.tensor([0.0, 2.0])}
        queue.kv_put(key, "train", row, {})
    batch = KVBatchMeta(partition_id="train", keys=["u_0_0", "u_1_0"], tags=[{}, {}])
    bare_trainer(config=config)._compute_advantage(batch, {})
    return config


def test_the_trainer_gives_an_estimator_the_raw_section_uids_and_rewards_that_no_mask_touched(queue, estimator):
    name, calls = estimator
    config = compute_advantage(queue, name)
    (seen,) = calls
    assert seen["config"] is config.algorithm and seen["index"].tolist() == ["u", "u"]
    assert seen["token_level_rewards"].tolist() == [[0, 2], [0, 2]]


def test_verls_trainers_make_no_greedy_response_for_remax(queue):
    """Fails when they learn to: test_remax_is_refused can go then."""
    with pytest.raises(TypeError, match="reward_baselines"):
        compute_advantage(queue, "remax")


def test_verls_grpo_divides_by_the_sample_std_plus_1e_6():
    defaults = inspect.signature(core_algos.compute_grpo_outcome_advantage).parameters
    assert defaults["epsilon"].default == 1e-6
    rewards = torch.tensor([[1.0], [0.0], [0.0]])
    got, _ = core_algos.compute_grpo_outcome_advantage(rewards, torch.ones(3, 1), np.array(["a"] * 3))
    assert got[0, 0].item() == pytest.approx((2 / 3) / (3**-0.5 + 1e-6), rel=1e-6)


def test_the_vectorised_grpo_and_rloo_are_what_the_auditor_says():
    rewards, mask, index = torch.tensor([[1.0], [0.0], [0.0]]), torch.ones(3, 1), np.array(["a"] * 3)
    normed, _ = core_algos.compute_grpo_vectorized_outcome_advantage(rewards, mask, index)
    plain, _ = core_algos.compute_grpo_vectorized_outcome_advantage(rewards, mask, index, norm_adv_by_std_in_grpo=False)
    assert normed[0, 0].item() == pytest.approx((2 / 3) / (3**-0.5 + 1e-6), rel=1e-6)
    assert plain[0, 0].item() == pytest.approx(2 / 3, rel=1e-6)
    rloo, _ = core_algos.compute_rloo_outcome_advantage(rewards, mask, index)
    assert rloo[:, 0].tolist() == pytest.approx([1.0, -0.5, -0.5]), "G/(G-1) times the centred reward"


def test_verl_uses_the_last_output_of_a_session_for_its_own_grpo_alone(estimator):
    name, calls = estimator

    def computed(adv_estimator):
        rewards = torch.tensor([[9.0], [1.0], [0.0]])
        data = DataProto.from_dict(
            tensors={"token_level_rewards": rewards, "response_mask": torch.ones(3, 1)},
            non_tensors={"uid": np.array(["a"] * 3, dtype=object)},
        )
        keys = ["a_0_0", "a_0_1", "a_1_0"]
        return compute_advantage_for_multi_trajectories(data, keys, adv_estimator).batch["advantages"][:, 0]

    first, last, other = computed("grpo").tolist()
    assert first == last == -other > 0, "the reward of the first output counts nowhere"
    computed(name)
    assert calls[0]["token_level_rewards"][:, 0].tolist() == [9, 1, 0]


def test_verl_logs_all_timers_of_a_step():
    """Ours are entries of timing_raw."""
    seconds = compute_timing_metrics(
        DataProto.from_dict({name: torch.ones(1, 2) for name in ("responses", "attention_mask", "response_mask")}),
        {"gsd_read": 0.5},
    )
    assert seconds["timing_s/gsd_read"] == 0.5


# Losses


def test_without_a_constant_verl_divides_token_sums_by_the_width_of_the_padded_micro_batch():
    """Why dr_grpo and gsd set actor.loss_scale_factor."""
    config = actor_config(loss_agg_mode="seq-mean-token-sum-norm")
    alone, beside_a_longer_one = micro_batch([2]), micro_batch([2, 4], advantages=[[1.0, 1.0], [0.0] * 4])
    assert loss_of(config, alone) == 4 * loss_of(config, beside_a_longer_one) != 0
    constant = actor_config(loss_agg_mode="seq-mean-token-sum-norm", loss_scale_factor=8)
    assert loss_of(constant, alone) == 2 * loss_of(constant, beside_a_longer_one) != 0


# Rows of the queue


def test_padding_fills_up_to_any_number_of_rows_whose_uid_starts_with_pad(queue):
    for key in ("u_0_0", "u_1_0"):
        queue.kv_put(key, "train", {"uid": "u", "session_id": 0, "response_mask": torch.ones(3)}, {"seq_len": 9})
    batch = KVBatchMeta(partition_id="train", keys=["u_0_0", "u_1_0"], tags=[{}, {}])
    padded = padding_utils.upsample_batch_to_divisible_size(batch, 7, eos_token_id=0)
    assert padded.keys[:2] == batch.keys and len(set(padded.keys)) == 7
    for key, tag in zip(padded.keys[2:], padded.tags[2:], strict=True):
        assert key.startswith("pad") and queue.columns(key)["uid"] == key.split("_")[0] and tag["is_padding"]
        assert not queue.columns(key)["response_mask"].any()


def test_uids_of_real_rows_are_hexadecimal_and_never_start_with_pad():
    batches = [{"raw_prompt": np.array(["x"] * 3, dtype=object)}]
    trainer = bare_trainer(train_dataloader=batches, train_dataloader_it=None)
    for uid in trainer._fetch_one_gen_batch()["uid"]:
        assert str(uuid.UUID(uid)) == uid


@pytest.mark.parametrize("mode", ["sync", "gsd_sync", "colocate_async"])
def test_verl_compares_a_trainer_mode_with_sync_by_name(queue, compose_fast, mode):
    """Why our mode sets the string back: verl takes a subclass under another name for an asynchronous one."""
    config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")
    trainer = bare_trainer("sync", config=config, agent_loop_manager=Mock())
    trainer.trainer_mode = mode
    is_sync = mode == "sync"
    assert type(trainer._build_replay_buffer()) is (ReplayBuffer if is_sync else ReplayBufferAsync)
    trainer._submit_batch_to_rollout(TensorDict({"uid": ["a"], "index": torch.tensor([7])}, batch_size=[1]))
    assert ("index" in queue.columns("a")) is not is_sync, "the asynchronous modes store prompts"
    assert queue.tag("a") == {"is_prompt": True, "status": "pending", "global_steps": 1}


# The replay buffer


def buffer(kind=ReplayBuffer, **settings):
    """As verl's trainer builds it."""
    settings = {"refill_fn": lambda count: pytest.fail(f"verl asks for {count} more prompts")} | settings
    if not issubclass(kind, ReplayBufferAsync):
        settings = {"train_batch_size": 1, "gen_batch_size": 1} | settings
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    return kind(trainer_mode="sync", trainer_config=None, **sampler | settings)


@pytest.fixture
def on_sleep(monkeypatch):
    """Calls of the functions in this list replace the buffer's sleeps, one function per sleep, in order."""
    functions, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        functions.pop(0)()

    monkeypatch.setattr(replay_buffer, "time", SimpleNamespace(sleep=sleep, time=time.time))
    return SimpleNamespace(functions=functions, slept=slept)


@pytest.mark.parametrize("kind", [ReplayBuffer, ReplayBufferAsync])
def test_the_replay_buffer_sleeps_its_poll_interval_between_looks(queue, on_sleep, kind):
    built = buffer(kind)
    assert built.poll_interval == 2.0
    built.poll_interval = 0.25
    on_sleep.functions += [lambda: None, lambda: queue.put_group("a", [1.0])]
    batch, _ = built.sample(1, "train", 1)
    assert batch.keys == ["a_0_0"] and on_sleep.slept == [0.25, 0.25]


def test_the_trainer_builds_its_replay_buffer_by_a_method(compose_fast):
    class Trainer(get_trainer_cls("sync")):
        def _build_replay_buffer(self):
            return "ours"

    assert Trainer(compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu")[0]).replay_buffer == "ours"


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0, 0.0], [0.5], [0.1] * 3, [0.7] * 7, [1 / 3] * 5])
def test_the_filter_evicts_groups_whose_float_std_is_zero(queue, values):
    built = buffer(filter_groups_metric="acc")
    queue.put_group("a", values)
    built._sync_metadata_from_transfer_queue()
    evicted, _ = built._dapo_filtered_keys("train")
    assert ("a" in evicted) == (len(values) > 1 and float(np.std(values)) == 0)


def test_the_filter_ignores_max_num_gen_batches(compose_fast):
    config, _ = compose_fast("algo=dapo", "task=arithmetic", "hardware=cpu")
    config.trainer.v1.trainer_mode = "sync"
    settings = []
    for limit in (0, 1):
        config.algorithm.filter_groups.max_num_gen_batches = limit
        built = vars(get_trainer_cls("sync")(config).replay_buffer)
        settings.append({name: value for name, value in built.items() if isinstance(value, str | int | float)})
    assert settings[0] == settings[1] and settings[0]["filter_groups_metric"] == "acc"


@pytest.mark.parametrize(
    ("verdicts", "metric", "is_evicted"),
    [([0.0, 1.0], "acc", False), ([1.0, 1.0], "acc", True), ([1.0, 1.0], "reward", False)],
)
def test_dynamic_sampling_reads_the_verdict_beside_the_reward(queue, verdicts, metric, is_evicted):
    built = buffer(filter_groups_metric=metric)
    queue.put_group("a", verdicts)
    queue.columns("a_0_0")["rm_scores"] = torch.tensor([7.0])
    built._sync_metadata_from_transfer_queue()
    assert (built._dapo_filtered_keys("train")[0] == {"a"}) is is_evicted


@pytest.mark.parametrize("metric", ["seq_reward", "seq_final_reward"])
def test_dynamic_sampling_does_not_compute_the_metrics_of_verls_older_trainers(queue, metric):
    built = buffer(filter_groups_metric=metric)
    queue.put_group("a", [1.0, 0.0])
    built._sync_metadata_from_transfer_queue()
    with pytest.raises(RuntimeError, match=f"missing DAPO metric '{metric}'"):
        built._dapo_filtered_keys("train")


@pytest.mark.parametrize(("metric", "is_evicted"), [("reward", False), ("score", True), ("acc", True)])
def test_the_reward_of_dynamic_sampling_has_the_overlong_penalty_and_the_score_has_not(queue, metric, is_evicted):
    """What ``dynamic_sampling.py`` and the audit say of each metric."""
    overlong = {"enable": True, "len": 2, "penalty_factor": 1.0, "log": False}
    config = OmegaConf.create({"reward": {"reward_kwargs": {"max_resp_len": 4, "overlong_buffer_cfg": overlong}}})
    manager = DAPORewardManager(config, Mock(), lambda **_: {"score": 1.0, "acc": 1.0})
    for session, length in enumerate((2, 4)):
        tensors = {"responses": torch.ones(1, length), "attention_mask": torch.ones(1, length + 1, dtype=torch.int64)}
        objects = {"data_source": "s", "reward_model": {"ground_truth": "1"}, "extra_info": {}}
        columns = {name: np.array([value], dtype=object) for name, value in objects.items()}
        result = manager.loop.run_until_complete(manager.run_single(DataProto.from_dict(tensors, columns)))
        row = {"rm_scores": torch.tensor([float(result["reward_score"])])}
        row["extra_fields"] = {"reward_extra_info": result["reward_extra_info"]}
        queue.kv_put(f"a_{session}_0", "train", row, {"status": "success"})
    queue.kv_put("a", "train", tag={"is_prompt": True, "status": "finished", "global_steps": 1})
    built = buffer(filter_groups_metric=metric)
    built._sync_metadata_from_transfer_queue()
    assert (built._dapo_filtered_keys("train")[0] == {"a"}) is is_evicted


@pytest.mark.parametrize("values", [[1.0, 1.0], [0.0, 1.0], [1.0], [0.7] * 7, [0.1] * 3, [1e-9, 0.0]], ids=str)
@pytest.mark.parametrize("metric", ["acc", "reward"])
def test_we_know_which_groups_dynamic_sampling_evicts(queue, values, metric):
    queue.put_group("a", values)
    built = buffer(filter_groups_metric=metric)
    built._sync_metadata_from_transfer_queue()
    rewards = np.array([float(queue.columns(f"a_{n}_0")["rm_scores"].sum()) for n in range(len(values))])
    group = Group("a", "s", 0, rewards, np.array(values), np.ones(len(values), np.int64))
    assert is_evicted(group, metric) is (built._dapo_filtered_keys("train")[0] == {"a"})


class Doors:
    """A mixin that writes down which of the buffer's methods takes which keys out of the queue."""

    doors = ()

    def _through(self, name, *arguments):
        self.doors = (*self.doors, name)
        try:
            return getattr(super(), name)(*arguments)
        finally:
            self.doors = self.doors[:-1]

    def _evict_terminal_groups(self, *arguments):
        return self._through("_evict_terminal_groups", *arguments)

    def _clear_groups(self, *arguments):
        return self._through("_clear_groups", *arguments)

    def _select_prompt_uids(self, *arguments):
        self.selected = super()._select_prompt_uids(*arguments)[0]
        return super()._select_prompt_uids(*arguments)

    def _materialize_batch(self, *arguments):
        return self._through("_materialize_batch", *arguments)


@pytest.mark.parametrize("kind", [ReplayBuffer, ReplayBufferAsync])
def test_groups_leave_the_buffer_by_three_doors(queue, monkeypatch, kind):
    """``replay.py`` stands at them: eviction, which clears; the surplus, which is only cleared; the batch."""
    watched = type("Watched", (Doors, kind), {})
    built = buffer(watched, filter_groups_metric="acc", refill_fn=lambda count: None)
    left, clear = {}, queue.kv_clear

    def cleared(keys, partition_id):
        left.setdefault(built.doors, set()).update(key for key in keys if "_" not in key)
        clear(keys, partition_id)

    monkeypatch.setattr(queue, "kv_clear", cleared)
    queue.put_group("a", [1.0, 1.0])
    for uid in "bcd":
        queue.put_group(uid, [1.0, 0.0])
    batch, _ = built.sample(1, "train", 2)
    surplus = left.pop(("_clear_groups",), set())
    evicted = left.pop(("_evict_terminal_groups", "_clear_groups"))
    trained = left.pop(("_materialize_batch",))
    assert left == {}, "there is no other door"
    assert evicted == {"a"} and len(trained) == 2 and trained == set(built.selected)
    assert {key.split("_")[0] for key in batch.keys} == trained
    assert surplus == ({"b", "c", "d"} - trained if kind is ReplayBuffer else set())


def test_dynamic_sampling_ends_a_step_only_when_nothing_runs(queue, on_sleep):
    """Why a group that is held back counts as running."""
    built = buffer(filter_groups_metric="acc")
    queue.put_group("a", [1.0, 0.0])
    queue.put_group("b", [1.0], status="running")
    queue.put_group("c", [1.0, 0.0], status="pending")
    on_sleep.functions += [
        lambda: queue.kv_put("b", "train", tag={"status": "finished"}),
        lambda: queue.kv_put("c", "train", tag={"status": "finished"}),
    ]
    batch, _ = built.sample(1, "train", 1)
    assert len(on_sleep.slept) == 2 and len({key.split("_")[0] for key in batch.keys}) == 1


@pytest.mark.parametrize("kind", [ReplayBuffer, ReplayBufferAsync])
def test_without_dynamic_sampling_a_step_waits_for_its_own_groups_alone(queue, kind):
    queue.put_group("a", [1.0, 0.0])
    queue.put_group("b", [1.0], status="running")
    assert buffer(kind).sample(1, "train", 1)[0].keys == ["a_0_0", "a_1_0"]


# Steps and checkpoints


def test_verl_saves_a_checkpoint_after_the_step_and_logs_the_step_after_that(monkeypatch):
    ran = fit(monkeypatch, steps=2)
    of_interest = ("step", "_save_checkpoint", "Tracking().log")
    order = [name for name in names_of_calls(ran.calls) if name in of_interest]
    assert order == 2 * list(of_interest) and ran.steps == [1, 1, 1, 2, 2, 2]


def saving(tmp_path, queue, **calls):
    """Save a checkpoint of step 3 where ``calls`` replaces parts of the trainer; returns whether it is announced."""
    settings = {"default_local_dir": str(tmp_path), "default_hdfs_dir": None}
    parts = {name: Mock() for name in ("actor_rollout_wg", "critic_wg", "checkpoint_callback", "train_dataloader")}
    parts["train_dataloader"].state_dict.return_value = {"place": 5}
    queue.save_checkpoint = calls.pop("save_queue", Mock())
    config = OmegaConf.create({"trainer": settings, "actor_rollout_ref": {"actor": {}}})
    trainer = bare_trainer("colocate_async", config=config, use_critic=True, global_steps=3, **parts | calls)
    with contextlib.suppress(RuntimeError):
        trainer._save_checkpoint()
    announced = tmp_path / "latest_checkpointed_iteration.txt"
    return announced.exists() and announced.read_text() == "3"


def test_verl_announces_a_checkpoint_once_everything_is_saved(tmp_path, queue, monkeypatch):
    """What makes a process that is killed while it saves harmless, and an empty marker possible."""
    fails = Mock(side_effect=RuntimeError)
    assert not saving(tmp_path, queue, actor_rollout_wg=Mock(save_checkpoint=fails))
    assert not saving(tmp_path, queue, critic_wg=Mock(save_checkpoint=fails))
    assert not saving(tmp_path, queue, train_dataloader=Mock(state_dict=fails))
    assert not saving(tmp_path, queue, save_queue=fails)
    with monkeypatch.context() as context:
        context.setattr(torch, "save", fails)
        assert not saving(tmp_path, queue)
    assert saving(tmp_path, queue)
    assert torch.load(tmp_path / "global_step_3" / "data.pt") == {"place": 5}


@pytest.mark.parametrize("backend", ["naive", "nccl"])
def test_separate_async_refuses_what_a_cpu_has_for_weights(compose_fast, backend):
    config, _ = compose_fast(
        *("algo=grpo", "task=arithmetic", "hardware=cpu", "data.train_batch_size=32"),
        *("actor_rollout_ref.actor.ppo_mini_batch_size=8", "trainer.v1.separate_async.parameter_sync_step=4"),
        *("actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"),
        f"actor_rollout_ref.rollout.checkpoint_engine.backend={backend}",
    )
    config.trainer.v1.trainer_mode = "separate_async"
    if backend == "nccl":
        assert get_trainer_cls("separate_async")(config).trainer_mode == "separate_async"
    else:
        with pytest.raises(AssertionError, match="nccl"):
            get_trainer_cls("separate_async")(config)


# Loggers, and the program


def test_the_file_logger_writes_where_the_environment_says_and_truncates(tmp_path, monkeypatch):
    """Why every attempt of a run has a metrics file of its own. TensorBoard's folder is tested with its histograms."""
    file = tmp_path / "metrics.jsonl"
    file.write_text("an earlier attempt\n")
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(file))
    tracking = Tracking("project", "experiment", ["file"], {})
    tracking.log({"loss": 0.5}, step=3)
    tracking.finish()
    (line,) = file.read_text().splitlines()
    assert '"loss": 0.5' in line or '"loss":0.5' in line


def test_main_ppo_runs_a_composed_config_with_the_v1_task_runner_and_our_variables(monkeypatch, compose_fast):
    variable = "++ray_kwargs.ray_init.runtime_env.env_vars.VERL_GSD_CONTRACT=on"
    config, _ = compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu", variable)
    ray, runner = Mock(**{"is_initialized.return_value": False}), Mock()
    monkeypatch.setattr(main_ppo, "ray", ray)
    main_ppo.run_ppo(config, runner)
    assert ray.init.call_args.kwargs["runtime_env"]["env_vars"]["VERL_GSD_CONTRACT"] == "on"
    runner.remote().run.remote.assert_called_once_with(config)
    ray.get.assert_called_once_with(runner.remote().run.remote.return_value)
    assert callable(main_ppo.TaskRunnerV1.remote)


VERLS_OWN_TESTS = (
    "trainer/ppo/test_core_algos_on_cpu.py",
    "trainer/ppo/test_loss_aggregation_on_cpu.py",
    "trainer/test_multi_trajectories_advantage_on_cpu.py",
    "test_base_config_on_cpu.py",
)


def test_verls_own_tests_of_the_registries_pass_with_our_plugin_loaded(tmp_path):
    """verl's wheel installs its tests as a top-level package beside it."""
    files = [Path(verl.__file__).parents[1] / "tests" / name for name in VERLS_OWN_TESTS]
    assert all(file.is_file() for file in files), "this build of verl has other tests: choose again"
    status, output = forks.run(tmp_path, verls_tests.run, *map(str, files))
    assert status == 0, output[-5000:]


def test_estimators_with_a_group_baseline_are_those_we_name():
    """Two groups of different tokens whose rewards are all equal, and a mixed one."""
    rewards = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0.0]).unsqueeze(1)
    mask, index = torch.ones_like(rewards), np.repeat([0, 1, 2], 4)
    algorithm = OmegaConf.create({"gamma": 1.0, "norm_adv_by_std_in_grpo": True})
    for name in sorted(GROUP_BASELINES - {"gsd"}):
        estimator = core_algos.get_adv_estimator_fn(name)
        advantages, _ = estimator(token_level_rewards=rewards, response_mask=mask, index=index, config=algorithm)
        assert advantages[:8].abs().max() < 1e-6 < advantages[8:].abs().max(), name
    estimator = core_algos.get_adv_estimator_fn("reinforce_plus_plus")
    advantages, _ = estimator(token_level_rewards=rewards, response_mask=mask, index=index, config=algorithm)
    assert advantages[:8].abs().min() > 0.5 and not has_group_baseline("reinforce_plus_plus")


def test_verls_math_dapo_marks_responses_without_an_answer():
    """The mark is no answer: four such responses do not agree on one."""
    from verl.utils.reward_score import math_dapo

    infos = [math_dapo.compute_score(text, "34") for text in ("I do not know", "Answer: 34", "Answer: 7")]
    assert [answer_of(info) for info in infos] == ["", "34", "7"]
