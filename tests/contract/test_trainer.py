"""Our trainer modes, as verl builds them; no Ray."""

import pytest

pytest.importorskip("verl")
import pyarrow as pa
import torch
from datasets import Dataset
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, get_trainer_cls
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from verl_gsd import extension
from verl_gsd.algorithms.rollouts.budget import Budget
from verl_gsd.dial import FLOOR_GROUPS
from verl_gsd.errors import ConfigError
from verl_gsd.extension import Declaration, Extension
from verl_gsd.run.dataset import fingerprints, indices_are_unique


@pytest.fixture
def configure(compose_fast):
    """(overrides) -> resolved config."""
    return lambda *words: compose_fast("algo=grpo", "task=arithmetic", "hardware=cpu", *words)[0]


@pytest.fixture
def trainer(configure):
    """(overrides) -> (trainer of the mode that they select, its config)."""

    def trainer(*words):
        config = configure(*words)
        return get_trainer_cls(config.trainer.v1.trainer_mode)(config), config

    return trainer


@pytest.mark.parametrize(
    ("words", "seconds"),
    [([], 0.1), (["algorithm.gsd.poll_interval=0.5"], 0.5), (["algorithm.gsd.poll_interval=null"], 2.0)],
)
def test_the_replay_buffer_uses_the_configured_poll_interval(trainer, words, seconds):
    built, config = trainer(*words)
    assert built.replay_buffer.poll_interval == seconds
    assert isinstance(built, PPOTrainerSync)
    assert config.trainer.v1.trainer_mode == built.trainer_mode == "sync", "verl compares the mode with 'sync'"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("+algorithm.gsd.alhpa=0.5", r"algorithm\.gsd\.alhpa"),
        ("algorithm.gsd.alpha=much", "alpha=much"),
        ("algorithm.gsd.poll_interval=0", "poll_interval=0"),
        ("algorithm.gsd.state=new", r"algorithm\.gsd\.state=new.*fresh"),
        ("+algorithm.gsd.budget.minimum=1", r"algorithm\.gsd\.budget\.minimum=1"),
        ("reward.reward_model.enable=true", r"enable_resource_pool=false.*reward\."),
    ],
)
def test_under_verls_own_command_the_trainer_rejects_a_wrong_section(trainer, word, message):
    with pytest.raises(ConfigError, match=message):
        trainer(word)


def test_a_stock_mode_is_not_changed(trainer):
    built, _ = trainer("trainer.v1.trainer_mode=sync")
    assert type(built) is PPOTrainerSync and built.replay_buffer.poll_interval == 2.0


SEPARATE = (
    *("trainer.v1.trainer_mode=gsd_separate_async", "data.train_batch_size=32"),
    *("actor_rollout_ref.actor.ppo_mini_batch_size=8", "trainer.v1.separate_async.parameter_sync_step=4"),
    *("actor_rollout_ref.rollout.nnodes=1", "actor_rollout_ref.rollout.n_gpus_per_node=1"),
    "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
)


@pytest.mark.parametrize(
    ("words", "base", "mode", "buffer"),
    [
        ((), PPOTrainerSync, "sync", ReplayBuffer),
        (["trainer.v1.trainer_mode=gsd_colocate_async"], PPOTrainerColocateAsync, "colocate_async", ReplayBufferAsync),
        (SEPARATE, PPOTrainerSeparateAsync, "separate_async", ReplayBufferAsync),
    ],
)
def test_each_mode_is_verls_own_with_its_buffer_watched(trainer, words, base, mode, buffer):
    built, config = trainer(*words)
    assert isinstance(built, base) and isinstance(built.replay_buffer, buffer)
    assert type(built.replay_buffer).__name__ == f"Watched{buffer.__name__}"
    assert config.trainer.v1.trainer_mode == built.trainer_mode == mode
    assert built.parameter_sync_step == (4 if mode == "separate_async" else 1), "read under verl's own name"


def test_counts_are_summed_over_the_parts_of_a_step(trainer, monkeypatch):
    """verl takes the mean of metrics that it does not know."""
    built, _ = trainer(*SEPARATE, "algo=gvpo")
    counts = {"gvpo/padding_rows": 3.0, "gvpo/missing_sessions": 5.0, "gvpo/missing_updates": 1.0, FLOOR_GROUPS: 2.0}

    def part(self, metrics, timing, size):
        metrics.update(counts | {"gvpo/route_whole": 1.0})
        return KVBatchMeta(partition_id="train", keys=[f"u{self.local_trigger_step}_0_0"], tags=[{}])

    monkeypatch.setattr(PPOTrainer, "_step_once", part)
    built.prepare_step, metrics = lambda: None, {}
    PPOTrainer.step(built, metrics, {})
    assert metrics == {"gvpo/route_whole": 1.0}
    assert built._counts == {name: 4 * number for name, number in counts.items()}


def test_a_stage_under_an_estimator_that_does_not_run_it_is_rejected(compose_fast):
    config, _ = compose_fast("algo=hadw", "task=arithmetic", "algorithm.adv_estimator=grpo")
    with pytest.raises(ConfigError, match=r"adv_estimator=grpo.*algorithm\.gsd\.hadw.*algorithm\."):
        get_trainer_cls("gsd_sync")(config)


def test_a_budget_requests_rollouts_and_sets_the_half_life_of_memory(trainer):
    built, config = trainer("budget=adaptive")
    prompts = built.seam.prompts
    (first, *_) = built.seam.extensions.values()
    assert type(first) is Budget
    assert prompts.half_life == 100 and prompts.prior == tuple(config.algorithm.gsd.budget.prior)
    assert built.memories.keys() == {"prompts"}, "a checkpoint made without a budget goes on with one"
    without, _ = trainer("budget=uniform")
    assert without.seam.extensions == {} and without.seam.prompts.half_life == 100


def test_under_verls_own_command_metrics_are_written_too(trainer):
    assert trainer("trainer.logger=wandb")[1].trainer.logger == ["wandb", "file"]
    assert trainer("trainer.logger=[file,console]")[1].trainer.logger == ["file", "console"]


def test_rollouts_from_a_file_are_rejected(trainer):
    with pytest.raises(ConfigError, match=r"skip\.rollout_tq\.enable=true.*skip\."):
        trainer("skip.rollout_tq.enable=true")


def test_a_checkpoint_without_our_memory_is_rejected_before_anything_starts(trainer, tmp_path):
    (tmp_path / "global_step_7").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    words = (f"trainer.default_local_dir={tmp_path}",)
    for where in ((), ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_7")):
        with pytest.raises(ConfigError, match=r"global_step_7.*algorithm\.gsd\.state=fresh"):
            trainer(*words, *where)
    trainer(*words, "algorithm.gsd.state=fresh")
    trainer(*words, "trainer.resume_mode=disable")


def test_a_data_set_is_identified_by_its_content_and_not_by_its_path(tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c", "d")]
    for path, content in zip(files, (b"x" * 3_000_000, b"x" * 3_000_000, b"x" * 2_999_999 + b"y", b""), strict=True):
        path.write_bytes(content)
    first, moved, other, empty = fingerprints([str(path) for path in files])
    assert first == moved and len({first, other, empty}) == 3
    assert fingerprints("hdfs://there/train.parquet") == ["hdfs://there/train.parquet"]


class Data:
    """Stub of verl's data set with a Hugging Face table."""

    def __init__(self, *rows):
        self.dataframe = Dataset.from_list([{"data_source": source, "extra_info": extra} for source, extra in rows])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (Data(("a", {"index": 0}), ("b", {"index": 0}), ("a", {"index": 1})), ""),
        (Data(("a", {"index": 3}), ("a", {"index": 3})), "extra_info.index=3 of a appears 2 times"),
        (Data(("a", {"split": "train"}), ("a", {"split": "train"})), "extra_info has no index"),
        (Data(("a", {"index": 0}), ("a", {"index": None})), "int64 with 1 missing"),
        (Data(("a", {"index": "x"}), ("a", {"index": "y"})), "is string"),
        (object(), "object has no table"),
    ],
)
def test_indices_that_do_not_identify_prompts_are_not_used_and_the_log_says_why(data, reason, caplog):
    assert indices_are_unique(data) == (reason == "")
    assert reason in caplog.text


def test_rows_that_were_filtered_out_do_not_count():
    data = Data(("a", {"index": 0}), ("a", {"index": 0}))
    data.dataframe = data.dataframe.select([1])
    assert isinstance(data.dataframe.data.table, pa.Table) and indices_are_unique(data)


class AnchorStub(Extension):
    """Weights rows by figures of their groups."""

    def weight(self, rows, advantages):
        return torch.ones_like(advantages)


@pytest.mark.parametrize(("mode", "wanted"), [("sync", "gsd_sync"), ("colocate_async", "gsd_colocate_async")])
def test_a_stage_that_needs_groups_rejects_a_stock_mode(configure, mode, wanted, monkeypatch):
    from verl_gsd.run.checks.gsd_section import check_extensions_build, gsd_section_problems

    extension.declarations()
    monkeypatch.setattr(extension, "_DECLARED", dict(extension._DECLARED))
    monkeypatch.setattr(extension, "_REJECTED", list(extension._REJECTED))
    extension.register(Declaration("anchor_stub", AnchorStub))
    window = "+algorithm.gsd.anchor_stub.window=3"
    config = configure(window, f"trainer.v1.trainer_mode={mode}")
    (problem,) = gsd_section_problems(config)
    named = (f"trainer.v1.trainer_mode={mode}", "algorithm.gsd.anchor_stub", f"trainer.v1.trainer_mode={wanted}")
    assert all(name in problem for name in named)
    config = configure(window, f"trainer.v1.trainer_mode={wanted}")
    assert list(check_extensions_build(config)) == gsd_section_problems(config) == []


def test_names_that_verl_does_not_know_are_rejected_before_ray_starts(configure):
    from verl_gsd.run.checks.with_verl import validate_with_verl

    validate_with_verl(configure())
    for word, message in (
        ("trainer.v1.trainer_mode=gsd_snyc", r"trainer_mode=gsd_snyc.*gsd_sync"),
        ("algorithm.adv_estimator=grop", r"adv_estimator=grop.*grpo"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=gpso", r"loss_mode=gpso.*gspo"),
        ("trainer.logger=[wandbb]", r"trainer\.logger=wandbb.*wandb\b"),
        ("actor_rollout_ref.actor.use_dynamic_bsz=false", "micro_batch_size"),
        ("actor_rollout_ref.rollout.mode=sync", "rollout.mode=async"),
        ("actor_rollout_ref.rollout.pipeline_model_parallel_size=2", "pipeline_model_parallel_size > 1"),
        (
            "reward.custom_reward_function.name=no_such_function",
            r"custom_reward_function\.path=pkg://verl_gsd\.tasks\.arithmetic name=no_such_function: AttributeError",
        ),
        ("reward.custom_reward_function.path=/no/reward.py", r"path=/no/reward\.py name=compute_score: FileNotFound"),
        ("+algorithm.gsd.alhpa=0.5", r"algorithm\.gsd\.alhpa: .*Did you mean alpha\?"),
        ("+algorithm.gsd.zzz=0.5", r"algorithm\.gsd\.zzz: .*alpha, .*poll_interval"),
    ):
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            validate_with_verl(configure(word))


def test_messages_differ_for_a_plugin_that_verl_did_not_load_and_one_that_raised(monkeypatch):
    """verl swallows a plugin's exception. Our keys would then have no effect in any worker."""
    import sys

    import wrapt

    from verl_gsd.run.checks import with_verl

    monkeypatch.setattr(wrapt, "when_imported", lambda name: lambda hook: None)  # verl is patched already
    monkeypatch.delitem(sys.modules, with_verl.PLUGIN)
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    assert "VERL_USE_EXTERNAL_PLUGINS=none" in next(with_verl.check_plugin_loaded())

    monkeypatch.delitem(sys.modules, with_verl.PLUGIN)
    monkeypatch.setitem(sys.modules, "verl_gsd.run.verl_hooks", None)  # as if a module were missing
    assert "ModuleNotFoundError" in next(with_verl.check_plugin_loaded())
