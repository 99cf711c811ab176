"""A GVPO step's batch in verl's own trainer and queue: padded, ordered and described as verl's workers will cut it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from agent_rows import answer, columns_of, demonstrations_in, sampled, watched
from tensordict import TensorDict
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import response_from_nested

from verl_gsd import extension
from verl_gsd.algorithms.gvpo import rows as gvpo_rows
from verl_gsd.extension import Update
from verl_gsd.prompts import PromptStore
from verl_gsd.responses import Response
from verl_gsd.trainer.row_store import QueueRows
from verl_gsd.trainer.rows import DEMONSTRATION, is_padding, uid_of
from verl_gsd.trainer.seam import Seam

pytestmark = pytest.mark.usefixtures("queue")

WORKERS = 2


@pytest.fixture(scope="module")
def tokenizer():
    from verl_gsd.tasks.byte_llama import build_tokenizer

    return build_tokenizer()


@pytest.fixture
def words():
    """Of the run. A test may have others."""
    return ["algo=gvpo"]


@pytest.fixture
def trainer(compose_fast, tokenizer, words):
    """Ours, with what its balancing and its advantages ask for and nothing else."""
    from verl_gsd.trainer.trainer import GSDTrainerSync

    words = [*words, "task=arithmetic", "hardware=cpu", "actor_rollout_ref.rollout.n=4"]
    words += ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=2"]
    made = object.__new__(GSDTrainerSync)
    made.config = compose_fast(*words)[0]
    services = SimpleNamespace(config=made.config, rows=QueueRows(), prompts=PromptStore(), step=1, tokenizer=tokenizer)
    extensions = extension.build(made.config.algorithm.gsd, services)
    made.seam = Seam(extensions, services.prompts, services.rows, group_size=4)
    made._unplaced, made._places, made._workers = None, [], 1
    made.parameter_sync_step, made.tokenizer = 1, tokenizer
    made.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": list(range(WORKERS))})
    return made


def buffer():
    """verl's own, which takes what is there."""
    sampler = {"max_off_policy_threshold": None, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    settings = {"refill_fn": lambda count: None, "train_batch_size": 1, "gen_batch_size": 1}
    return ReplayBuffer(trainer_mode="sync", trainer_config=None, **sampler, **settings)


def put_old_log_probs(batch):
    """As verl's workers write them."""
    masks = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=["response_mask"])["response_mask"]
    columns = {
        "old_log_probs": torch.nested.nested_tensor_from_jagged(-torch.ones(masks.values().shape), masks.offsets())
    }
    tq.kv_batch_put(batch.keys, batch.partition_id, fields=TensorDict(columns, batch_size=len(batch.keys)))


#: Responses of eight prompts, 32 in all or what is left of 32.
@pytest.mark.parametrize(
    "sizes", [[4] * 8, [2, 6, 3, 5, 4, 4, 7, 1], [16, 4, 4, 4, 1, 1, 1, 1], [4, 4, 4, 4, 1, 1, 2, 3], [4, 4, 4]]
)
def test_verl_cuts_the_batch_into_the_updates_that_the_config_states(trainer, tokenizer, sizes):
    problem = {"raw_prompt": [{"role": "user", "content": "1+1="}], "reward_model": {"ground_truth": "2"}}
    for number, size in enumerate(sizes):
        answer(f"a{number}", problem, tokenizer, ["2", *["3"] * (size - 1)])
    batch, _ = buffer().sample(1, "train", len(sizes))
    metrics = {}
    batch = trainer._balance_batch(batch, metrics)
    put_old_log_probs(batch)
    batch = trainer._compute_advantage(batch, {})
    told = trainer.seam.worker_flags(Update(step=1, is_first=True))
    expected = min(4, len(sizes))
    assert told["gvpo_theta_is_old"] is True
    assert told["num_mini_batch"] == expected and metrics["gvpo/missing_updates"] == 4 - expected
    assert sum(is_padding(key) for key in batch.keys) == metrics["gvpo/padding_rows"] == len(batch.keys) - sum(sizes)

    share = len(batch.keys) // WORKERS  # as verl's dispatch and its workers divide it
    seen = [set() for _ in range(expected)]
    for worker in range(WORKERS):
        rows = tu.get_tensordict({"row": torch.arange(worker * share, (worker + 1) * share)})
        parts = tu.make_iterator(rows, mini_batch_size=share // expected, epochs=1, dataloader_kwargs={})
        for j, part in enumerate(parts):
            seen[j] |= {batch.keys[row] for row in part["row"].tolist()}
    columns = columns_of(batch.keys)
    groups = [{uid_of(key) for key in keys if not is_padding(key)} for keys in seen]
    assert sorted(uid for of in groups for uid in of) == [f"a{number}" for number in range(len(sizes))], "each once"
    assert np.ptp([len(of) for of in groups]) <= 1
    for keys, of in zip(seen, groups, strict=True):
        counted = sum(sizes[int(uid[1:])] > 1 for uid in of)
        for key in keys:
            size = 0 if is_padding(key) else sizes[int(uid_of(key)[1:])]
            assert int(columns[key][gvpo_rows.SIZE]) == size
            wanted = 1 / (size - 1) / counted if size > 1 else 0
            assert float(columns[key][gvpo_rows.COEFFICIENT]) == pytest.approx(wanted)
            reward = float(columns[key]["rm_scores"].sum())
            wanted = reward - 1 / size if size else 0
            assert float(columns[key][gvpo_rows.ADVANTAGE]) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("words", [["algo=gvpo_demonstrations", "algorithm.gsd.dagrpo.demonstrations.source=self"]])
def test_a_demonstration_is_a_row_of_its_group_like_any_other(trainer, tokenizer):
    """It replaces the last failure. Its tokens are masked until the update, but have log-probabilities before."""
    problem = {"raw_prompt": [{"role": "user", "content": "1+1="}], "reward_model": {"ground_truth": "2"}}
    tokens = [*tokenizer.encode("2", add_special_tokens=False), tokenizer.eos_token_id]
    success = Response(np.array(tokens, np.int32), np.ones(len(tokens), bool), 1.0, 1, {"acc": 1.0})
    trainer.seam.prompts.responses.store(("maths", 0), [success], keep=1)
    key_of = {"a0": ("maths", 0), "a1": ("maths", 1)}
    memory = SimpleNamespace(prompts=trainer.seam.prompts, rows=trainer.seam.rows)
    buffer, trainer.seam = watched(trainer.seam.extensions, memory, key_of=key_of.get)
    trainer.seam.before_rollout(key_of, {})
    answer("a0", problem, tokenizer, ["3", "345", "4", "5"])
    answer("a1", problem, tokenizer, ["2", "3", "4", "5"])
    batch, _ = sampled(buffer, 2)
    assert demonstrations_in(batch) == {"a0": ["a0_3_0"]}
    metrics = {}
    batch = trainer._balance_batch(batch, metrics)
    assert metrics["gvpo/missing_sessions"] == 0
    assert not columns_of(["a0_3_0"])["a0_3_0"]["response_mask"].any()
    # verl's trainer takes the log-probabilities of responses from those of whole rows by lengths, not by masks.
    masks = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=["response_mask"])["response_mask"]
    rows = tq.kv_batch_get(batch.keys, batch.partition_id, select_fields=["input_ids"])["input_ids"]
    of_rows = torch.nested.nested_tensor_from_jagged(-1.0 - torch.arange(len(rows.values())), rows.offsets())
    old = response_from_nested(of_rows, masks)
    assert (old.offsets() == masks.offsets()).all() and (old.values() < 0).all()
    tq.kv_batch_put(
        batch.keys, batch.partition_id, fields=TensorDict({"old_log_probs": old}, batch_size=len(batch.keys))
    )
    batch = trainer._compute_advantage(batch, {})
    columns = columns_of(batch.keys)
    for uid, right in (("a0", "a0_3_0"), ("a1", "a1_0_0")):
        of_group = [key for key in batch.keys if uid_of(key) == uid]
        advantages = {key: float(columns[key][gvpo_rows.ADVANTAGE]) for key in of_group}
        assert advantages == {key: pytest.approx(0.75 if key == right else -0.25) for key in of_group}
        assert {int(columns[key][gvpo_rows.SIZE]) for key in of_group} == {4}
        assert len({int(columns[key][gvpo_rows.RESPONSE]) for key in of_group}) == 4
    shown = columns["a0_3_0"]
    assert shown["response_mask"].tolist() == [1] * len(tokens) == [int(value < 0) for value in shown["old_log_probs"]]
    assert shown[DEMONSTRATION] and not columns["a1_0_0"][DEMONSTRATION]
    group, _ = trainer.seam.gone["a0"]
    assert group.accuracies.tolist() == [0.0] * 4 and group.demonstrations == 1, "no accuracy counts it"
