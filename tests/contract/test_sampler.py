"""The sampler in verl's own trainer, no Ray: whose keys it draws, and what we assume of how verl fetches prompts."""

from unittest.mock import Mock

import numpy as np
import pytest

pytest.importorskip("verl")
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchdata.stateful_dataloader as torchdata
import transfer_queue
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer import main_ppo
from verl.trainer.ppo import utils
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base
from verl_parts import bare_trainer, names_of_calls

from verl_gsd.algorithms.rollouts.sampler import DisagreementSampler
from verl_gsd.run.messages import RunStoppedError, read_messages
from verl_gsd.rundir import RunDirectory


@pytest.fixture
def build(compose_fast, tiny_task):
    def build(*words):
        groups = ["task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}"]
        algorithm = [] if any(word.startswith("algo=") for word in words) else ["algo=grpo"]
        config, _ = compose_fast(*algorithm, *groups, *words)
        trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
        trainer.tokenizer = trainer.processor = None  # only prompts that are too long need them
        trainer.global_steps = 1
        trainer._init_dataloader()
        return trainer

    return build


def test_verls_order_is_left_alone_without_a_sampler(build):
    assert type(build().train_dataloader.sampler).__name__ == "RandomSampler"


@pytest.mark.parametrize(("epochs", "total", "last"), [(2, 500, "all"), (2, 3, 3), (2, "null", "all")])
def test_the_last_step_is_that_of_the_epochs_or_of_the_total(build, tmp_path, epochs, total, last):
    """verl saves and validates at the end only if it reaches the total, and its schedule would have the total."""
    steps = [f"trainer.total_epochs={epochs}", f"trainer.total_training_steps={total}"]
    trainer = build("data.train_batch_size=4", f"trainer.default_local_dir={tmp_path}/run", *steps)
    of_epochs = epochs * trainer.steps_per_epoch
    expected = of_epochs if last == "all" else last
    assert 0 < trainer.total_training_steps == expected
    assert trainer.config.actor_rollout_ref.actor.optim.total_training_steps == expected
    messages = read_messages(RunDirectory(tmp_path / "run").messages(1))
    warnings = [message.text for message in messages if message.kind == "warning"]
    if total == 500:
        (text,) = warnings
        assert f"the run has {of_epochs} steps" in text and "trainer.total_epochs" in text
    else:
        assert warnings == []


def indices(trainer):
    batch = trainer._next_train_batch()
    return list(trainer._prompts_of(list(batch["uid"]), batch).values())


def test_what_a_step_knows_decides_what_the_next_draws(build):
    """Prompts that came out split are drawn again; those of another outcome, of the same number, are not."""
    trainer = build("sampler=disagreement", "data.train_batch_size=4", "algorithm.gsd.sampler.explore=0.001")
    assert isinstance(trainer.train_dataloader.sampler, DisagreementSampler)
    assert len(trainer.train_dataloader) == trainer.steps_per_epoch
    drawn = indices(trainer)
    assert len(set(drawn)) == 4
    every = [("arithmetic", index) for index in range(len(trainer.train_dataset))]
    split, settled = every[:4], every[4:]
    for _ in range(200):
        for key in split:
            trainer.seam.prompts.observe(key, 4, 8, step=1)
        for key in settled:
            trainer.seam.prompts.observe(key, 8, 8, step=1)
    trainer.global_steps = 2
    again = [key for _ in range(5) for key in indices(trainer)]
    assert again.count(split[0]) >= 4 and np.mean([key in split for key in again]) > 0.8


def test_keys_without_indices_are_hashes_of_the_same_texts(build, tiny_task, tmp_path):
    table = pq.read_table(tiny_task / "train.parquet")
    place = table.column_names.index("extra_info")
    pq.write_table(
        table.set_column(place, "extra_info", pa.array([{"split": "x"}] * len(table))), tmp_path / "t.parquet"
    )
    trainer = build("sampler=disagreement", f"data.train_files={tmp_path / 't.parquet'}", "data.train_batch_size=4")
    drawn, everywhere = indices(trainer), []
    for keys in ((), drawn[:2], drawn[2:]):  # the expected disagreement of all prompts moves by that of each known one
        for key in keys:
            trainer.seam.prompts.observe(key, 3, 8, step=1)
        indices(trainer)
        everywhere.append(trainer.train_dataloader.sampler.metrics()["sampler/disagreement/everywhere"])
    unknown, two, four = everywhere
    assert four - unknown == pytest.approx(2 * (two - unknown)) != 0, "the memory's keys are found in the data"


def test_a_batch_larger_than_the_data_is_refused_by_name(build):
    with pytest.raises(RunStoppedError, match=r"data\.train_batch_size=4096.*32 prompts"):
        build("sampler=disagreement", "data.train_batch_size=4096", "actor_rollout_ref.actor.ppo_mini_batch_size=4096")


@pytest.mark.parametrize(
    ("words", "fetched"),
    [
        ((), 24),
        (("algo=dapo",), 1),
        (("trainer.v1.trainer_mode=gsd_colocate_async",), 1),
    ],
)
def test_whatever_verl_fetches_at_once_a_draw_is_of_a_batch(build, words, fetched):
    trainer = build("sampler=disagreement", *words)
    assert trainer.train_dataloader.batch_size == fetched
    assert len(set(indices(trainer))) == 24
    assert trainer.train_dataloader.sampler.state_dict()["draws"] == 1


# What we assume of verl


def test_verl_makes_its_sampler_from_two_keys_and_its_loaders_in_one_place(build, monkeypatch):
    asked, loaders = set(), []

    class Config(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def __getattr__(self, key):
            asked.add(key)
            return self[key]

    order = [list(utils.create_rl_sampler(Config(shuffle=True, seed=3), range(9))) for _ in range(2)]
    assert order[0] == order[1] != sorted(order[0])
    assert list(utils.create_rl_sampler(Config(shuffle=False), range(9))) == sorted(order[0])
    assert asked == {"shuffle", "seed"}, "there is no hook for a sampler"

    class Loader(torchdata.StatefulDataLoader):
        def __init__(self, **arguments):
            loaders.append(arguments["dataset"])
            super().__init__(**arguments)

    assert trainer_base.StatefulDataLoader is torchdata.StatefulDataLoader
    monkeypatch.setattr(trainer_base, "StatefulDataLoader", Loader)
    trainer = build()
    assert loaders == [trainer.train_dataset, trainer.val_dataset]
    assert isinstance(trainer.train_dataloader, Loader) and trainer.train_dataloader_it is None


def test_verl_fetches_prompts_when_a_step_starts():
    calls = Mock()
    calls._fetch_one_gen_batch.side_effect = lambda: TensorDict({"index": torch.arange(4)}, batch_size=4)
    calls._step_once.return_value = KVBatchMeta(partition_id="train")
    config = {"data": {"train_batch_size": 8, "gen_batch_size": 4}, "skip": {"rollout_tq": {"enable": False}}}
    trainer = bare_trainer(config=OmegaConf.create(config), parameter_sync_step=1)
    for name in ("_fetch_one_gen_batch", "_submit_batch_to_rollout", "_step_once"):
        setattr(trainer, name, getattr(calls, name))
    trainer.step({}, {})
    assert names_of_calls(calls) == [*2 * ["_fetch_one_gen_batch"], "_submit_batch_to_rollout", "_step_once"]


def test_verl_saves_the_loaders_place_with_a_checkpoint_and_restores_it(tmp_path):
    settings = {"default_local_dir": str(tmp_path), "default_hdfs_dir": None, "resume_mode": "auto"}
    settings |= {"del_local_ckpt_after_load": False}
    config = OmegaConf.create({"trainer": settings, "actor_rollout_ref": {"actor": {}}})

    def trainer():
        data = [{"raw_prompt": "a prompt", "index": index} for index in range(12)]
        loader = torchdata.StatefulDataLoader(data, batch_size=4)
        parts = {"actor_rollout_wg": Mock(), "checkpoint_callback": Mock(), "train_dataloader_it": None}
        return bare_trainer(config=config, train_dataloader=loader, **parts)

    first, second = trainer(), trainer()
    assert first._fetch_one_gen_batch()["index"].tolist() == [0, 1, 2, 3]
    first._save_checkpoint()
    second._load_checkpoint()
    assert second._fetch_one_gen_batch()["index"].tolist() == [4, 5, 6, 7]


def test_the_trainer_rejects_a_finished_run_by_the_steps_per_epoch_that_verl_uses(build, tmp_path):
    """Under verl's own command, and if verl's dataset drops prompts, only the trainer knows the number."""
    steps = build("data.train_batch_size=4").steps_per_epoch
    words = ["data.train_batch_size=4", "trainer.total_training_steps=null", "trainer.resume_mode=resume_path"]
    words.append("algorithm.gsd.state=fresh")  # the checkpoint of this test has no files
    finished, unfinished = (f"trainer.resume_from_path={tmp_path}/global_step_{step}" for step in (steps, steps - 1))
    with pytest.raises(RunStoppedError, match=rf"trainer\.total_epochs=1: .* {steps} steps"):
        build(*words, finished, "trainer.total_epochs=1")
    assert build(*words, unfinished, "trainer.total_epochs=1").total_training_steps == steps
    assert build(*words, finished, "trainer.total_epochs=2").total_training_steps == 2 * steps


def test_verls_own_command_ends_without_an_error_if_the_run_is_finished(
    compose_fast, tiny_task, tmp_path, monkeypatch, capfd
):
    """verl's task runner itself, without Ray and the queue. Nothing starts. ``verl-gsd`` still rejects the run."""
    words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", "data.train_batch_size=4"]
    words += [f"trainer.default_local_dir={tmp_path}/run", "trainer.total_training_steps=8"]
    words += ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_8"]
    words.append("algorithm.gsd.state=fresh")  # the checkpoint of this test has no files
    calls = []
    monkeypatch.setattr(transfer_queue, "init", lambda *_: calls.append("init"))
    monkeypatch.setattr(transfer_queue, "close", lambda: calls.append("close"))
    monkeypatch.setattr(trainer_base.PPOTrainer, "_init_resource_pool_mgr", Mock(side_effect=AssertionError))
    monkeypatch.delenv("VERL_GSD_ATTEMPT", raising=False)
    run = main_ppo.TaskRunnerV1.__ray_metadata__.modified_class().run
    run(compose_fast(*words)[0])
    assert calls == ["init", "close"]
    _, _, said = capfd.readouterr().err.partition("note: ")
    assert said.startswith("The run is finished: nothing to do. ") and "trainer.total_training_steps=8: " in said
    monkeypatch.setenv("VERL_GSD_ATTEMPT", "1")
    with pytest.raises(RunStoppedError, match=r"trainer\.total_training_steps=8: .* 8 steps"):
        run(compose_fast(*words)[0])
