"""The sampler in verl's own trainer, no Ray: whose keys it draws, and what we assume of how verl fetches prompts."""

import inspect
import re

import numpy as np
import pytest

pytest.importorskip("verl")
import pyarrow as pa
import pyarrow.parquet as pq
import torchdata.stateful_dataloader as torchdata
from verl.trainer.ppo import utils
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base

from verl_gsd.trainer.config import compose_config, parse_line, resolve
from verl_gsd.trainer.messages import RunStoppedError
from verl_gsd.trainer.sampler import DisagreementSampler


@pytest.fixture
def build(tiny_task):
    def build(*words):
        words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words]
        config = resolve(compose_config(parse_line(words)))
        trainer = get_trainer_cls(config.trainer.v1.trainer_mode)(config)
        trainer.tokenizer = trainer.processor = None  # only prompts that are too long need them
        trainer.global_steps = 1
        trainer._init_dataloader()
        return trainer

    return build


def test_verls_order_is_left_alone_without_a_sampler(build):
    assert type(build().train_dataloader.sampler).__name__ == "RandomSampler"


def indices(trainer):
    batch = trainer._next_train_batch()
    uids = list(batch["uid"])
    trainer._remember_prompts(uids, batch)
    return [trainer.key_of(uid) for uid in uids]


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
            trainer.prompts.observe(key, 4, 8, step=1)
        for key in settled:
            trainer.prompts.observe(key, 8, 8, step=1)
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
    keys = trainer._sampler._rows
    for key in indices(trainer):
        trainer.prompts.observe(key, 3, 8, step=1)
    correct, _ = keys.counts(trainer.prompts.known(1))
    assert (correct == 3).sum() == 4, "the memory's keys are found in the data"


def test_a_batch_larger_than_the_data_is_refused_by_name(build):
    with pytest.raises(RunStoppedError, match=r"data\.train_batch_size=4096: data\.train_files has 32 prompts"):
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
    assert trainer._sampler.state_dict()["draws"] == 1


# What we assume of verl


def test_verl_has_no_hook_for_a_sampler_and_makes_its_loader_in_one_place():
    text = inspect.getsource(utils.create_rl_sampler)
    assert re.findall(r"data_config\.(\w+)", text) == ["shuffle", "get"] and 'data_config.get("seed")' in text
    made = inspect.getsource(trainer_base.PPOTrainer._init_dataloader)
    assert made.count("StatefulDataLoader(") == 2 and "self.train_dataloader_it = None" in made
    assert trainer_base.StatefulDataLoader is torchdata.StatefulDataLoader


def test_prompts_are_fetched_when_a_step_starts_and_the_place_is_saved_after_it():
    trainer = trainer_base.PPOTrainer
    assert "next(self.train_dataloader_it)" in inspect.getsource(trainer._fetch_one_gen_batch)
    step = inspect.getsource(trainer.step)
    assert step.index("self.prepare_step()") < step.index("self._step_once(")
    assert "self._add_batch_to_generate()" in inspect.getsource(trainer.prepare_step)
    saved = inspect.getsource(trainer._save_checkpoint)
    assert "torch.save(self.train_dataloader.state_dict(), dataloader_local_path)" in saved
    assert "self.train_dataloader.load_state_dict(" in inspect.getsource(trainer._load_checkpoint)
