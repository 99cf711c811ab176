"""``verl-gsd lab train`` with verl's worker, data code and losses: every algorithm family, and what a run leaves.

The policy has random weights, and ``lab_reward.py`` rewards it sometimes, so that groups are mixed.
"""

import json
import math
import os
import re
from pathlib import Path

import lab_commands
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from places import SUPPORT
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.errors import ConfigError
from verl_gsd.lab.training.buffer import NoMixedGroupError
from verl_gsd.lab.training.prompts import all_training_prompts
from verl_gsd.lab.training.trainer import LabTrainer
from verl_gsd.records import read_records
from verl_gsd.run.messages import RunStoppedError, read_messages
from verl_gsd.rundir import RunDirectory, read_metrics
from verl_gsd.tasks.byte_llama import build_tokenizer

STEPS = 2
SMALL = (
    "task=arithmetic",
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    f"trainer.total_training_steps={STEPS}",
    f"trainer.test_freq={STEPS}",
    "data.val_max_samples=8",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.actor.optim.lr_warmup_steps=0",
    f"reward.custom_reward_function.path={SUPPORT / 'lab_reward.py'}",
)
FAMILIES = {
    "grpo": ("algo=grpo",),
    "dr_grpo and a KL loss": ("algo=dr_grpo", "actor_rollout_ref.actor.use_kl_loss=true"),
    "gsd and a KL penalty": ("algo=gsd", "algorithm.use_kl_in_reward=true", "actor_rollout_ref.actor.ppo_epochs=2"),
    "dapo": ("algo=dapo",),
    "gspo": ("algo=gspo",),
    "gvpo": ("algo=gvpo", "algorithm.gsd.gvpo.history_fraction=0.5"),
    "gvpo with demonstrations": ("algo=gvpo_demonstrations",),
    "hadw_dapo": ("algo=hadw_dapo", "algorithm.gsd.hadw.n_min=1"),
    "dagrpo": (
        "algo=dagrpo",
        "algorithm.gsd.dagrpo.judge.scorer=stub",
        "algorithm.gsd.dagrpo.judge.cache=null",
        "algorithm.gsd.dagrpo.delta=0",
    ),
    "budget and sampler": ("algo=grpo", "budget=adaptive", "sampler=disagreement"),
    "hadw without silent groups": ("algo=hadw", "algorithm.gsd.hadw.n_min=1", "silent_groups=left_out"),
}


@pytest.fixture(scope="module", autouse=True)
def _other_tests_find_the_process_as_it_was():
    """The laboratory's worker creates the process group of its process and sets variables that verl reads."""
    before = dict(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def trained(compose_fast, tiny_task, tmp_path_factory):
    """(words) -> the trainer after its last step, the run, and the weights before."""

    def train(*words):
        config, _ = compose_fast(*SMALL, "hardware=cpu", f"task.directory={tiny_task}", *words)
        folder = config.trainer.default_local_dir
        if not any(word.startswith("trainer.default_local_dir=") for word in words):
            folder = config.trainer.default_local_dir = str(tmp_path_factory.mktemp("lab"))
        trainer = LabTrainer(config)
        before = [parameter.detach().clone() for parameter in trainer.module.parameters()]
        trainer.train()
        return trainer, RunDirectory(Path(folder)), before

    return train


def metrics_of(run):
    """Step -> metrics without times, in the order of the file."""
    return {
        step: {name: value for name, value in data.items() if not re.search("timing_s/|perf/", name)}
        for step, data in read_metrics(run.metrics(1))
    }


@pytest.mark.parametrize("words", FAMILIES.values(), ids=FAMILIES)
def test_every_family_trains_and_leaves_records_and_metrics(words, trained):
    trainer, run, before = trained(*words)
    metrics = metrics_of(run)
    assert list(metrics) == list(range(STEPS + 1))
    assert [step for step, data in metrics.items() if "val-core/arithmetic/acc/mean@1" in data] == [0, STEPS]
    assert all(data["actor/grad_norm"] > 0 for step, data in metrics.items() if step)
    assert all(data["actor/skipped_updates"] == 0 for step, data in metrics.items() if step)
    assert any(not torch.equal(*pair) for pair in zip(before, trainer.module.parameters(), strict=True))
    records = read_records(run.path, ["step", "fate", "tokens"]).to_pylist()
    assert [sum(row["step"] == step and row["fate"] == "trained" for row in records) for step in (1, 2)] == [4, 4]
    assert all(row["tokens"] > 0 for row in records)


def test_under_gvpo_a_demonstration_is_trained_on_and_counted_as_no_response(trained):
    _, run, _ = trained("algo=gvpo_demonstrations", "algorithm.gsd.dagrpo.demonstrations.mode=always")
    records = read_records(run.path, ["size", "demonstrations"]).to_pylist()
    assert {(row["size"], row["demonstrations"]) for row in records} == {(3, 1)}, "the reward accepts all of them"
    for data in list(metrics_of(run).values())[1:]:
        assert data["dagrpo/demonstrations/share"] == 0.25
        assert data["gvpo/missing_sessions"] == 0 and data["gvpo/s_std"] > 0


def test_silent_groups_left_out_of_the_denominator_are_those_of_the_records(trained):
    """Each step has one mini-batch, of one worker. Without KL and entropy terms, its gradient grows by the scale."""
    first = {}
    for choice in ("counted", "left_out"):
        # A clipped gradient would have the same norm whatever the scale.
        words = ("algo=dr_grpo", f"silent_groups={choice}", "actor_rollout_ref.actor.optim.clip_grad=1e9")
        # Of groups of two, half are silent.
        words += ("actor_rollout_ref.rollout.n=2", "data.seed=1", "actor_rollout_ref.rollout.seed=1")
        _, run, _ = trained(*words)
        first[choice] = metrics_of(run)[1]
    records = read_records(run.path, ["step", "silent", "size", "tokens"]).to_pylist()
    groups = [row for row in records if row["step"] == 1]
    left_out = first["left_out"]
    for name, column in (("responses", "size"), ("tokens", "tokens")):
        share = sum(row[column] for row in groups if row["silent"]) / sum(row[column] for row in groups)
        assert left_out[f"silent_groups/share_of_{name}"] == pytest.approx(share)
    assert 0 < left_out["silent_groups/share_of_responses"] < 1
    scale = 1 / (1 - left_out["silent_groups/share_of_responses"])
    assert left_out["silent_groups/scale"] == pytest.approx(scale)
    assert left_out["actor/grad_norm"] == pytest.approx(scale * first["counted"]["actor/grad_norm"], rel=1e-4)
    assert not any(name.startswith("silent_groups/") for name in first["counted"])


def test_a_seed_gives_equal_metrics_and_another_seed_gives_others(trained):
    first, again, other = (
        metrics_of(trained("algo=grpo", f"data.seed={seed}", f"actor_rollout_ref.rollout.seed={seed}")[1])
        for seed in (1, 1, 2)
    )
    assert first == again and first != other


@pytest.mark.parametrize("algo", ["grpo", "dapo", "dr_grpo", "gspo", "gvpo"])
def test_the_size_of_micro_batches_changes_nothing(algo, trained):
    """With SGD. Adam divides by the gradient, which enlarges rounding errors where the gradient is almost 0."""
    words = (f"algo={algo}", "actor_rollout_ref.actor.optim.optimizer=SGD", "actor_rollout_ref.actor.optim.lr=0.1")
    small = (
        "actor_rollout_ref.actor.use_dynamic_bsz=false",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    )
    runs = [trained(*words), trained(*words, *small)]
    for one, two in zip(*(trainer.module.parameters() for trainer, _, _ in runs), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    whole, parts = (metrics_of(run)[STEPS] for _, run, _ in runs)
    for name in ("actor/grad_norm", "critic/rewards/mean", "val-core/arithmetic/acc/mean@1"):
        assert whole[name] == pytest.approx(parts[name], rel=1e-4)


def test_validations_are_those_of_the_stack(trained):
    """After every test_freq steps and after the last one; before the first one if val_before_train."""
    name = "val-core/arithmetic/acc/mean@1"

    def steps(*words):
        _, run, _ = trained("algo=grpo", *words)
        return [step for step, data in metrics_of(run).items() if name in data]

    assert steps("trainer.total_training_steps=3", "trainer.test_freq=2") == [0, 2, 3]
    assert steps("trainer.val_before_train=false") == [STEPS]
    assert steps("trainer.test_freq=-1") == [0]


def test_epochs_give_the_number_of_steps_and_the_learning_rate_follows_it(trained):
    cosine = "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine"
    words = ("trainer.total_training_steps=null", "trainer.total_epochs=1", "data.train_max_samples=12", cosine)
    _, run, _ = trained("algo=grpo", *words)
    rates = [data["actor/lr"] for step, data in metrics_of(run).items() if step]
    assert len(rates) == 3
    # verl's cosine from 1e-3 to 0 over 3 updates, logged after each of them.
    assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * done / 3)) / 2 for done in (1, 2, 3)], abs=1e-9)
    with pytest.raises(ConfigError, match=r"trainer\.total_training_steps=9: .*only 3 steps.*trainer\.total_epochs"):
        trained("algo=grpo", *words, "trainer.total_training_steps=9")


def test_each_source_of_held_out_prompts_has_its_accuracy_or_its_reward(trained, tiny_task, tmp_path):
    table = pq.read_table(tiny_task / "test.parquet")
    other = table.set_column(table.schema.get_field_index("data_source"), "data_source", [["other"] * len(table)])
    pq.write_table(other, tmp_path / "other.parquet")
    files = f"data.val_files=[{tiny_task / 'test.parquet'},{tmp_path / 'other.parquet'}]"
    _, run, _ = trained("algo=grpo", files, "data.val_max_samples=-1")
    held_out = {name for name in metrics_of(run)[STEPS] if name.startswith("val-core")}
    assert held_out == {"val-core/arithmetic/acc/mean@1", "val-core/other/acc/mean@1"}
    (tmp_path / "reward.py").write_text("def compute_score(**_):\n    return {'score': 0.25}\n")
    reward = f"reward.custom_reward_function.path={tmp_path / 'reward.py'}"
    _, run, _ = trained("algo=grpo", reward)
    assert metrics_of(run)[STEPS]["val-core/arithmetic/reward/mean@1"] == 0.25


def test_held_out_prompts_that_are_repeated_are_counted_once(trained, tiny_task):
    file = tiny_task / "test.parquet"
    chats, models = (pq.read_table(file)[name].to_pylist() for name in ("prompt", "reward_model"))
    questions = {(str(chat), model["ground_truth"]) for chat, model in zip(chats, models, strict=True)}
    _, run, _ = trained("algo=grpo", f"data.val_files=[{file},{file}]", "data.val_max_samples=-1")
    found = metrics_of(run)[STEPS]
    assert found["val/prompts/arithmetic"] == 2 * len(chats) > found["val/independent/arithmetic"]
    assert found["val/independent/arithmetic"] <= len(questions)


def test_dynamic_sampling_without_any_mixed_group_ends_with_the_remedy(trained, tmp_path):
    (tmp_path / "reward.py").write_text("def compute_score(**_):\n    return {'score': 0.0, 'acc': 0.0}\n")
    reward = f"reward.custom_reward_function.path={tmp_path / 'reward.py'}"
    with pytest.raises(NoMixedGroupError, match=r"evicted \d+ groups.*Set algorithm\.filter_groups\.enable=false"):
        trained("algo=dapo", reward)


def test_an_update_with_an_infinite_gradient_is_skipped_and_counted(trained):
    trainer, _, _ = trained("algo=grpo")
    engine = trainer._worker.actor.engine
    for parameter in trainer.module.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    engine.optimizer_step()
    assert engine.skipped_updates == 1


@pytest.fixture
def with_column(tiny_task, tmp_path):
    """(file of the task, column, value) -> a copy of the file with this column."""

    def write(name, column, value):
        table = pq.read_table(tiny_task / f"{name}.parquet")
        pq.write_table(table.append_column(column, [[value] * len(table)]), tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    return write


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [("agent_name", "tool_agent", "agent_name has the value tool_agent"), ("__rollout_n__", 3, "__rollout_n__")],
)
def test_columns_that_the_laboratory_cannot_honour_are_rejected(column, value, message, trained, with_column):
    with pytest.raises(ConfigError, match=rf"^data\.val_files\b.*{message}"):
        trained("algo=grpo", f"data.val_files={with_column('test', column, value)}")


def test_a_rejected_column_is_reported_with_the_key_of_its_files(trained, with_column, compose_fast, tiny_task):
    with pytest.raises(ConfigError, match=r"^data\.train_files: the column agent_name has the value tool_agent"):
        trained("algo=grpo", f"data.train_files={with_column('train', 'agent_name', 'tool_agent')}")
    file = with_column("train", "__rollout_n__", 3)
    words = ("algo=grpo", *SMALL, "hardware=cpu", f"task.directory={tiny_task}", f"data.train_files={file}")
    message = rf"^data\.train_files={file}: the column __rollout_n__ .* set actor_rollout_ref\.rollout\.n\."
    with pytest.raises(ConfigError, match=message):
        all_training_prompts(compose_fast(*words)[0], build_tokenizer())


def test_a_prompt_that_is_not_text_is_reported_with_the_key_of_its_file(trained, tiny_task, tmp_path):
    rows = pq.read_table(tiny_task / "train.parquet").to_pylist()
    for row in rows:
        row["prompt"] = [{"role": "user", "content": [{"type": "text", "text": "1 + 1"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(ConfigError, match=r"^data\.train_files: the prompt data_source=arithmetic, .*not text"):
        trained("algo=grpo", f"data.train_files={tmp_path / 'train.parquet'}")


def tiny_model(folder, kind, settings):
    tokenizer = build_tokenizer()
    sizes = {
        "vocab_size": 288,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(0)
    kind(settings(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("kind", "settings"), [(Qwen2ForCausalLM, Qwen2Config), (LlamaForCausalLM, LlamaConfig)])
def test_a_small_model_by_path_is_trained(kind, settings, trained, tmp_path):
    folder = tiny_model(tmp_path / "model", kind, settings)
    trainer, _, before = trained("algo=grpo", f"actor_rollout_ref.model.path={folder}")
    assert type(trainer.module) is kind
    assert any(not torch.equal(*pair) for pair in zip(before, trainer.module.parameters(), strict=True))


def test_every_end_token_of_the_generation_config_ends_a_response(trained, tmp_path):
    """vLLM reads this file, too. Here each token ends a response, so that all responses have one token."""
    folder = tiny_model(tmp_path / "model", LlamaForCausalLM, LlamaConfig)
    GenerationConfig(eos_token_id=list(range(288))).save_pretrained(folder)
    words = (f"actor_rollout_ref.model.path={folder}", "trainer.total_training_steps=1", "trainer.test_freq=-1")
    _, run, _ = trained("algo=grpo", *words)
    assert metrics_of(run)[1]["response_length/max"] == 1


# Rewards that fail

IN_EVERY_WAY = (
    f"reward.custom_reward_function.path={SUPPORT / 'failing_rewards.py'}",
    "reward.custom_reward_function.name=compute_score_in_every_way",
)
#: The accuracy with failed rewards as wrong responses, and that without them.
VALIDATED = ("core/arithmetic/acc", "aux/arithmetic/acc_success_only")


def failed_rewards(run, step):
    """[(fate, responses, failed rewards)] of the groups in the records of a step."""
    rows = read_records(run.path, ["step", "fate", "size", "failed_rewards"]).to_pylist()
    return [(row["fate"], row["size"], row["failed_rewards"]) for row in rows if row["step"] == step]


@pytest.mark.parametrize("algo", ["grpo", "gvpo", "hadw_dapo"])
def test_responses_without_a_reward_leave_their_groups_and_are_counted(algo, trained):
    """As on the stack: the same metrics, records and messages."""
    _, run, _ = trained(f"algo={algo}", *IN_EVERY_WAY, "algorithm.gsd.limits.failed_rewards=1", "data.seed=3")
    metrics = metrics_of(run)
    kinds = ("raised", "none", "not_finite", "no_score")
    for step in (1, STEPS):
        groups = failed_rewards(run, step)
        lost = sum(failed for _, _, failed in groups)
        assert {size + failed for _, size, failed in groups} == {4}
        assert metrics[step]["reward/failed"] == lost > 0
        assert metrics[step]["reward/failed_share"] == lost / (4 * len(groups))
        assert sum(metrics[step][f"reward/failures/{kind}"] for kind in kinds) == lost
        assert not any(math.isnan(value) for value in metrics[step].values())
    for step in (0, STEPS):
        lost = metrics[step]["val/failed_rewards"]
        accuracy, of_others = (metrics[step][f"val-{name}/mean@1"] for name in VALIDATED)
        assert 0 < lost < 8 and accuracy * 8 == pytest.approx(of_others * (8 - lost))
    messages = read_messages(run.messages(1))
    assert {message.kind for message in messages} == {"warning"}
    first = messages[0].text
    assert "lost its reward in the validation at step 0: compute_score_in_every_way of" in first
    assert "failing_rewards.py" in first and "algorithm.gsd.limits.failed_rewards=1" in first


def test_too_many_failed_rewards_stop_the_run_before_its_update(trained, tmp_path):
    with pytest.raises(RunStoppedError, match=r"In the validation at step 0, \d of 8 responses lost their reward"):
        trained("algo=grpo", *IN_EVERY_WAY)
    folder = f"trainer.default_local_dir={tmp_path / 'run'}"
    with pytest.raises(RunStoppedError) as stopped:
        trained("algo=grpo", *IN_EVERY_WAY, "trainer.val_before_train=false", folder)
    assert re.search(
        r"In step 1, \d+ of 16 responses lost .*algorithm\.gsd\.limits\.failed_rewards=0\.05", str(stopped.value)
    )
    run = RunDirectory(tmp_path / "run")
    assert metrics_of(run) == {} and not run.records(1).exists()
    *warnings, stop = read_messages(run.messages(1))
    assert (stop.kind, stop.text) == ("stop", str(stopped.value)) and warnings


def test_a_batch_without_any_reward_stops_the_run(trained):
    name = "reward.custom_reward_function.name=compute_score_raises"
    limit = "algorithm.gsd.limits.failed_rewards=1"
    with pytest.raises(RunStoppedError, match="In step 1, all responses of the batch lost their reward"):
        trained("algo=grpo", IN_EVERY_WAY[0], name, limit)


# Settings that change what is sampled, the loss or the update

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
SGD = (f"{ACTOR}.optim.optimizer=SGD", f"{ACTOR}.optim.lr=0.1")
#: Neither Adam nor a division by a group's standard deviation enlarges rounding errors.
PLAIN = ("algo=dr_grpo", *SGD)


@pytest.fixture(scope="module")
def plain(trained):
    """Step -> metrics of a run without a reference and without an entropy term."""
    return metrics_of(trained(*PLAIN)[1])


def test_the_kl_loss_is_relative_to_the_first_policy(trained):
    metrics = metrics_of(trained("algo=grpo", f"{ACTOR}.use_kl_loss=true")[1])
    assert metrics[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-9) and metrics[2]["actor/kl_loss"] > 1e-4


def test_sampling_the_reference_and_the_update_use_the_temperature_of_rollouts(trained):
    words = (f"{ROLLOUT}.temperature=0.7", f"{ACTOR}.use_kl_loss=true", "trainer.total_training_steps=1")
    metrics = metrics_of(trained("algo=grpo", *words)[1])
    # All of them have the same weights, and therefore the same log-probabilities.
    assert metrics[1]["actor/ppo_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-6)


def test_the_kl_penalty_changes_the_rewards_and_the_gradient(trained, plain):
    words = ("algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.kl_coef=1")
    _, run, _ = trained(*PLAIN, *words)
    metrics = metrics_of(run)
    # In step 1 the policy is the reference, so that step 2 samples the same responses as without a penalty.
    assert metrics[1]["critic/rewards/mean"] == pytest.approx(metrics[1]["critic/score/mean"], abs=1e-6)
    assert metrics[2]["critic/score/mean"] == plain[2]["critic/score/mean"]
    assert abs(metrics[2]["critic/rewards/mean"] - metrics[2]["critic/score/mean"]) > 1e-4
    assert metrics[1]["actor/grad_norm"] == pytest.approx(plain[1]["actor/grad_norm"], rel=1e-4)
    assert metrics[2]["actor/grad_norm"] != pytest.approx(plain[2]["actor/grad_norm"], rel=1e-3)
    records = read_records(run.path).to_pylist()
    assert all(row["gain"] is None and row["silent"] == (row["mass"] == 0) for row in records)


@pytest.mark.parametrize("algo", ["grpo", "dr_grpo"])
def test_the_metric_of_entropy_is_per_token_whatever_the_loss_averages(trained, algo):
    metrics = metrics_of(trained(f"algo={algo}", *PLAIN[1:], "trainer.total_training_steps=1")[1])
    longest = 8  # data.max_response_length of the task
    of_verl = {"grpo": 1, "dr_grpo": metrics[1]["response_length/mean"] / longest}[algo]
    assert metrics[1]["actor/entropy"] == pytest.approx(metrics[1]["policy/entropy"] * of_verl, rel=1e-4)


def test_the_entropy_coefficient_changes_the_gradient(trained, plain):
    metrics = metrics_of(trained(*PLAIN, f"{ACTOR}.entropy_coeff=10", "trainer.total_training_steps=1")[1])
    assert metrics[1]["actor/entropy_loss"] == pytest.approx(plain[1]["actor/entropy"], rel=1e-4)
    assert metrics[1]["actor/grad_norm"] != pytest.approx(plain[1]["actor/grad_norm"], rel=1e-2)


def test_gradients_are_clipped_to_clip_grad(trained):
    words = (f"{ACTOR}.optim.clip_grad=0.01", f"{ACTOR}.optim.weight_decay=0", "trainer.total_training_steps=1")
    trainer, run, before = trained(*PLAIN, *words)
    assert metrics_of(run)[1]["actor/grad_norm"] > 0.1  # before clipping
    changes = [after - first for after, first in zip(trainer.module.parameters(), before, strict=True)]
    change = torch.stack([of_parameter.norm() for of_parameter in changes]).norm()
    assert float(change) == pytest.approx(0.1 * 0.01, rel=1e-2)  # the learning rate times the norm


def test_a_ratio_of_warm_up_steps_raises_the_learning_rate(trained):
    ratio = (f"{ACTOR}.optim.lr_warmup_steps=-1", f"{ACTOR}.optim.lr_warmup_steps_ratio=0.5")
    metrics = metrics_of(trained("algo=grpo", *ratio, "trainer.total_training_steps=4", "trainer.test_freq=-1")[1])
    # Each rate is logged after its update.
    assert [metrics[step]["actor/lr"] for step in (1, 2, 3, 4)] == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])


def test_padding_rows_change_neither_metrics_nor_weights(trained):
    """With a mean over tokens. A mean over rows is divided by the size of the mini-batch, with padding, as in verl."""
    words = ("data.train_batch_size=3", f"{ACTOR}.loss_agg_mode=token-mean", *SGD)
    whole, filled = (trained("algo=grpo", *words, f"{ACTOR}.ppo_mini_batch_size={size}") for size in (3, 4))
    for one, two in zip(whole[0].module.parameters(), filled[0].module.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
    without, padded = metrics_of(whole[1]), metrics_of(filled[1])
    assert padded.keys() == without.keys()
    for step, data in without.items():
        assert padded[step] == pytest.approx(data, rel=1e-4, abs=1e-6), step


@pytest.mark.parametrize("setting", ["top_k=1", "top_p=1e-6"])
def test_top_k_and_top_p_limit_the_rollouts_and_not_the_validation(setting, recorded):
    held_out, training = recorded(f"{ROLLOUT}.{setting}")
    assert all(len(set(group)) == 1 for group in training)
    assert any(len(set(group)) > 1 for group in held_out)


@pytest.mark.parametrize("setting", ["temperature=0", "top_k=1", "top_p=1e-6"])
def test_val_kwargs_set_the_sampling_of_the_validation_and_not_of_rollouts(setting, recorded):
    held_out, training = recorded(f"{ROLLOUT}.val_kwargs.{setting}")
    assert all(len(set(group)) == 1 for group in held_out)
    assert any(len(set(group)) > 1 for group in training)


RECORDING_REWARD = """
import json, pathlib

def compute_score(solution_str, **_):
    with pathlib.Path(__file__).with_suffix(".jsonl").open("a") as file:
        file.write(json.dumps(solution_str) + "\\n")
    return {"score": float(len(solution_str) % 2), "acc": len(solution_str) % 2}
"""


@pytest.fixture
def recorded(trained, tmp_path):
    """(word) -> the 4 responses per prompt of a validation, and those of the first step."""

    def record(word):
        reward = tmp_path / "reward.py"
        reward.write_text(RECORDING_REWARD)
        held_out = {"n": 4, "temperature": 1, "top_k": -1, "top_p": 1}
        base = {f"{ROLLOUT}.val_kwargs.{name}": value for name, value in held_out.items()}
        base |= {
            "trainer.total_training_steps": 1,
            "trainer.test_freq": -1,
            "reward.custom_reward_function.path": reward,
        }
        base |= dict([word.split("=")])
        trained("algo=grpo", *(f"{key}={value}" for key, value in base.items()))
        responses = list(map(json.loads, reward.with_suffix(".jsonl").read_text().splitlines()))
        groups = [responses[start : start + 4] for start in range(0, len(responses), 4)]
        assert len(groups) == 8 + 4
        return groups[:8], groups[8:]

    return record


# The command


def flat(text):
    return re.sub(r"\s+", " ", text)


REWARDS_FAIL = ["algo=grpo", *IN_EVERY_WAY]
RUNS = {
    "single": (["algo=grpo", "trainer.default_local_dir=run"], None),
    "again": (["algo=grpo", "trainer.default_local_dir=run"], None),
    "grpo": (["algo=grpo", "--seeds", "1..2"], None),
    "dr_grpo": (["algo=dr_grpo", "--seeds", "1..2"], None),
    "more": (["algo=grpo", "--seeds", "1..3"], None),
    "other line": (["algo=grpo", "--seeds", "1", "trainer.test_freq=1"], None),
    "a seed fails": (["algo=grpo", "--seeds", "1..3", "--label", "failing"], 2),
    "rewards fail": ([*REWARDS_FAIL, "algorithm.gsd.limits.failed_rewards=1"], None),
    "too many rewards fail": ([*REWARDS_FAIL, "--seeds", "5"], None),
}


@pytest.fixture(scope="module")
def commands(tiny_task, tmp_path_factory):
    """Name of ``RUNS`` -> (exit code, stdout, stderr); the folder; and what the process itself printed."""
    folder = tmp_path_factory.mktemp("commands")
    line = [*SMALL, f"task.directory={tiny_task}"]
    results, printed = lab_commands.run_all(
        [([words[0], *line, *words[1:]], fails) for words, fails in RUNS.values()], folder, dict(os.environ)
    )
    return dict(zip(RUNS, results, strict=True)), folder, printed


def test_a_run_prints_its_validations_and_its_result_and_can_be_reported(commands):
    results, folder, printed = commands
    code, told, problems = results["single"]
    assert code == 0, told + problems
    for step in (0, 2):
        assert re.search(rf"step +{step}/2 +held-out arithmetic \d", problems)
        assert not re.search(rf"step +{step}/2", told), "standard output is for the result"
    assert "held-out accuracy, arithmetic" in told and "seconds per step" in told
    for noise in ("engine is not available", "Loading weights", "Platform override", "Continuous Token", "dataset len"):
        assert noise not in told + problems + printed
    run = folder / "run"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "overrides.yaml", "metrics", "records", "logs"}
    assert "dataset len" in (run / "logs" / "attempt_1.log").read_text()
    reported = CliRunner().invoke(app, ["report", str(run), "--output", str(folder / "page.html")])
    assert reported.exit_code == 0, reported.output
    code, _, problems = results["again"]
    assert code == 2 and "this folder is not empty" in flat(problems)


def test_seeds_are_trained_resumed_and_compared(commands, monkeypatch):
    results, folder, _ = commands
    assert results["grpo"][0] == 0, results["grpo"]
    code, told, problems = results["dr_grpo"]
    assert code == 0 and re.search(r"mean of 2 seeds: 0\.\d+ \[.* -> 0\.\d+ \[", told), told + problems
    (command,) = re.findall(r"^verl-gsd (compare .*)$", told, re.MULTILINE)
    assert (
        command == "compare runs/lab/grpo/seed_* runs/lab/dr_grpo/seed_*"
    )  # its reward function may accept several answers
    monkeypatch.chdir(folder)
    folders = [str(Path("runs/lab") / label / f"seed_{seed}") for label in ("grpo", "dr_grpo") for seed in (1, 2)]
    compared = CliRunner().invoke(app, ["compare", *folders, "--output", "compared.json"])
    assert compared.exit_code == 0, compared.output
    rows = json.loads(Path("compared.json").read_text())["rows"]
    assert [(row["label"], row["seeds"]) for row in rows] == [("grpo", [1, 2]), ("dr_grpo", [1, 2])]
    code, told, problems = results["more"]
    assert code == 0 and "1 seed to train; 2 have finished before" in flat(problems), told + problems
    code, _, problems = results["other line"]
    assert code == 2 and "this line has trainer.test_freq=1" in flat(problems)


def test_a_seed_that_fails_is_named_and_ends_the_command_with_1(commands):
    code, told, problems = commands[0]["a seed fails"]
    assert code == 1
    assert "seed 2 failed: RuntimeError: the stage divided by zero" in flat(problems)
    assert "1 of 3 seeds failed: seed 2." in flat(problems) and "mean of 2 seeds" in flat(told)


def test_failed_rewards_are_printed(commands):
    code, told, problems = commands[0]["rewards fail"]
    assert code == 0 and "held-out accuracy, arithmetic" in told, told + problems
    assert "warning: the run: A response lost its reward in the validation at step 0: compute_score_in" in flat(
        problems
    )
    code, _, problems = commands[0]["too many rewards fail"]
    assert code == 1
    assert re.search(r"seed 5 failed: In the validation at step 0, \d of 8 responses lost their reward", flat(problems))
    assert flat(problems).count("lost their reward") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("hardware=gpu",), "hardware=gpu: the laboratory trains on one core"),
        (("resume=runs/a",), "resume=runs/a: the laboratory saves no checkpoints"),
        (("--label", "x"), "--label: only runs of --seeds"),
        (("--seeds", "4..1"), "--seeds 4..1: not a list of seeds"),
        (("--seeds", "1..2", "--seeds", "2..4"), "--seeds 1..2,2..4: seed 2 is repeated"),
        (("--seeds", "1", "data.seed=3"), "data.seed: --seeds sets this key"),
        (("--seeds", "1", "--label", "a/b"), "--label a/b: not a folder name"),
        (("trainer.save_freq=5", "critic.enable=true"), "critic.enable=true.* no critic.*trainer.save_freq=5"),
        (("algorithm.gsd.alpha=x",), "algorithm.gsd.alpha=x"),
    ],
)
def test_mistakes_end_with_code_2_before_anything_is_written(words, message, tiny_task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["algo=grpo", *SMALL, f"task.directory={tiny_task}", *words]
    done = CliRunner().invoke(app, ["lab", "train", *line], env={"COLUMNS": "200"})
    assert done.exit_code == 2 and re.search(message, flat(done.stderr)), done.output
    assert list(tmp_path.iterdir()) == []
