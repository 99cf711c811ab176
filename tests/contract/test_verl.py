"""What we assume of verl, a fact a test: an upgrade that changes one fails here, by name, and not in a run."""

import importlib.metadata
import inspect
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("verl")
import verl
from verl.protocol import DataProto
from verl.trainer import main_ppo
from verl.trainer.ppo import core_algos, padding_utils, ray_trainer
from verl.trainer.ppo.metric_utils import compute_timing_metrics
from verl.trainer.ppo.v1 import replay_buffer, trainer_base, trainer_separate_async
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories
from verl.utils import tracking
from verl.workers.utils import losses


def source(thing):
    return inspect.getsource(thing)


def test_plugins_are_entry_points_whose_exceptions_are_swallowed():
    text = Path(verl.__file__).read_text()
    assert 'entry_points(group="verl.plugins")' in text.replace("_entry_points", "entry_points")
    assert "except Exception" in text and "logger" in text.lower()
    assert logging.getLogger("verl").level != logging.DEBUG, "which is where verl mentions it"
    assert "verl_gsd.trainer.plugin" in {p.value for p in importlib.metadata.entry_points(group="verl.plugins")}


def test_an_estimator_name_cannot_be_taken_twice():
    core_algos.register_adv_est("gsd")(core_algos.ADV_ESTIMATOR_REGISTRY["gsd"])
    with pytest.raises(ValueError, match="already been registered"):
        core_algos.register_adv_est("gsd")(lambda: None)


def test_an_estimator_is_called_with_rewards_mask_config_and_uids_alone():
    seen = {}

    def estimator(**arguments):
        seen.update(arguments)
        return torch.zeros(2, 1), torch.zeros(2, 1)

    name = "verl_gsd_contract"
    core_algos.register_adv_est(name)(estimator)
    try:
        ones = torch.ones(2, 1)
        data = DataProto.from_dict(
            tensors={"token_level_rewards": ones, "response_mask": ones, "old_log_probs": ones},
            non_tensors={"uid": np.array(["a", "b"], dtype=object), "acc": np.ones(2)},
        )
        ray_trainer.compute_advantage(data, adv_estimator=name, config={"gsd": 1})
    finally:
        del core_algos.ADV_ESTIMATOR_REGISTRY[name]
    assert seen.keys() == {"token_level_rewards", "response_mask", "config", "index"}
    assert seen["config"] == {"gsd": 1} and list(seen["index"]) == ["a", "b"]


def test_grpo_and_gae_are_the_names_that_bypass_the_registry():
    text = source(ray_trainer.compute_advantage)
    assert "AdvantageEstimator.GAE" in text and "AdvantageEstimator.GRPO:" in text
    assert "get_adv_estimator_fn(adv_estimator)" in text


def test_the_trainer_passes_the_raw_algorithm_section_and_uids_as_index():
    text = source(trainer_base.PPOTrainer._compute_advantage)
    assert "config=self.config.algorithm," in text
    assert 'data.non_tensor_batch["uid"] = ' in text


def test_padding_rows_have_a_uid_that_starts_with_pad_and_uids_of_real_rows_cannot():
    assert 'f"pad{uuid.uuid4().hex}"' in source(padding_utils)
    assert "is_padding=True" in source(padding_utils)
    assert "uuid.uuid4()" in source(trainer_base.PPOTrainer._submit_batch_to_rollout) or "uuid.uuid4()" in source(
        trainer_base
    ), "hexadecimal: no p"


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


def test_the_filter_evicts_where_the_float_std_is_zero_and_ignores_max_num_gen_batches():
    text = source(replay_buffer)
    assert "np.std(" in text and "max_num_gen_batches" not in text


def test_a_constant_to_divide_token_sums_by_must_be_given():
    """Why dr_grpo and gsd set actor.loss_scale_factor: otherwise it is the width of the padded micro-batch."""
    assert "horizon = loss_mask.shape[-1]" in source(core_algos.agg_loss)
    assert "data.select(*fields).to_padded_tensor()" in source(losses.ppo_loss)
    one, wide = (
        core_algos.agg_loss(
            torch.ones(2, width), torch.ones(2, width) * (torch.arange(width) < 2), "seq-mean-token-sum-norm"
        )
        for width in (2, 4)
    )
    assert one == 2 * wide


def test_trainer_modes_are_compared_with_sync_by_name():
    """Why our mode sets the string back: a subclass under another name would be taken for an asynchronous one."""
    text = source(trainer_base)
    assert text.count('trainer_mode != "sync"') + text.count('trainer_mode == "sync"') >= 6


def test_the_replay_buffer_is_built_in_one_place_and_sleeps_its_poll_interval():
    assert callable(trainer_base.PPOTrainer._build_replay_buffer)
    assert inspect.signature(replay_buffer.ReplayBuffer.__init__).parameters["poll_interval"].default == 2.0
    assert "time.sleep(self.poll_interval)" in source(replay_buffer)


def test_groups_leave_the_buffer_by_three_doors():
    """``replay.py`` stands at them: eviction, which clears; the surplus, which is only cleared; the batch."""
    text = source(replay_buffer)
    assert text.count("self._clear_groups(") == 2
    assert "self._clear_groups(partition_id, evicted_uids)" in source(replay_buffer.ReplayBuffer._evict_terminal_groups)
    assert "self._clear_groups(partition_id, surplus_uids)" in source(replay_buffer.ReplayBuffer.sample)
    for kind in (replay_buffer.ReplayBuffer, replay_buffer.ReplayBufferAsync):
        assert source(kind.sample).count("self._materialize_batch(") == 1
    assert source(replay_buffer).count("tq.kv_clear(") == 2, "in _clear_groups and in _materialize_batch"
    asynchronous = source(replay_buffer.ReplayBufferAsync)
    for name in ("_evict_terminal_groups", "_clear_groups", "_materialize_batch", "_sync_metadata_from_transfer_queue"):
        assert f"def {name}" not in asynchronous


def test_dynamic_sampling_ends_a_step_only_when_nothing_runs():
    """Why a group that is held back counts as running."""
    text = source(replay_buffer.ReplayBuffer.sample)
    assert "len(self.pending_keys[partition_id]) + len(self.running_keys[partition_id])" in text
    assert "(not dapo_enabled or inflight_count == 0)" in text


def test_a_checkpoint_is_announced_last_and_saved_after_the_step():
    save = source(trainer_base.PPOTrainer._save_checkpoint)
    assert save.index("latest_checkpointed_iteration.txt") > save.index("data.pt") > save.index("save_checkpoint(")
    fit = source(trainer_base.PPOTrainer.fit)
    assert fit.index("self.step(") < fit.index("self._save_checkpoint()") < fit.index("self.logger.log(data=metrics")


def test_asynchronous_modes_store_prompts_and_the_synchronous_one_does_not():
    text = source(trainer_base.PPOTrainer._submit_batch_to_rollout)
    assert 'if self.trainer_mode != "sync"' in text and "fields=batch.select(" in text


def test_the_last_output_of_a_session_speaks_for_it_in_verls_grpo_alone():
    text = source(compute_advantage_for_multi_trajectories)
    assert "adv_estimator != core_algos.AdvantageEstimator.GRPO" in text and 'key.rsplit("_", 2)' in text


def test_all_timers_of_a_step_are_logged():
    """Ours are entries of timing_raw."""
    seconds = compute_timing_metrics(
        DataProto.from_dict({name: torch.ones(1, 2) for name in ("responses", "attention_mask", "response_mask")}),
        {"gsd_read": 0.5},
    )
    assert seconds["timing_s/gsd_read"] == 0.5


def test_separate_async_refuses_what_a_cpu_has_for_weights():
    assert 'checkpoint_engine.backend != "naive"' in source(trainer_separate_async)


def test_loggers_read_where_to_write_from_the_environment_and_the_file_logger_truncates():
    text = source(tracking)
    for name in ("VERL_FILE_LOGGER_PATH", "TENSORBOARD_DIR"):
        assert f'"{name}"' in text
    assert 'open(self.filepath, "wb"' in text, "why every attempt of a run has a metrics file of its own"


def test_main_ppo_runs_a_composed_config_with_the_v1_task_runner():
    parameters = inspect.signature(main_ppo.run_ppo).parameters
    assert list(parameters)[:2] == ["config", "task_runner_class"]
    assert hasattr(main_ppo, "TaskRunnerV1")
    assert 'ray_init_kwargs.get("runtime_env"' in source(main_ppo.run_ppo)


VERLS_OWN_TESTS = (
    "trainer/ppo/test_core_algos_on_cpu.py",
    "trainer/ppo/test_loss_aggregation_on_cpu.py",
    "trainer/test_multi_trajectories_advantage_on_cpu.py",
    "test_base_config_on_cpu.py",
)


def test_verls_own_tests_of_the_registries_pass_with_our_plugin_loaded():
    """verl's wheel installs its tests as a top-level package beside it."""
    folder = Path(verl.__file__).parents[1] / "tests"
    files = [folder / name for name in VERLS_OWN_TESTS]
    assert all(file.is_file() for file in files), "this build of verl has other tests: choose again"
    code = (
        "import sys, pytest, verl; assert 'verl_gsd.trainer.plugin' in sys.modules;"
        "from verl.trainer.ppo import core_algos; assert 'gsd' in core_algos.ADV_ESTIMATOR_REGISTRY;"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-c', '/dev/null', *sys.argv[1:]]))"
    )
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
