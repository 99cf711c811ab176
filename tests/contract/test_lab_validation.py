"""The laboratory's metrics of a validation are those that verl computes from the same rewards."""

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("verl")

from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl_parts import bare

from verl_gsd.lab.training.validation import validation_metrics
from verl_gsd.lab.training.verifier import Reward
from verl_gsd.trainer.reward_failures import Failure

LOST = Reward(0.0, Failure("raised", "KeyError").as_extra_info())
RIGHT, WRONG = Reward(1.0, {"score": 1.0, "acc": True}), Reward(-0.5, {"score": -0.5, "acc": 0.0})
#: A reward function may leave the accuracy out.
UNRATED = Reward(0.25, {"score": 0.25})


def verls_metrics(prompts, responses):
    """The means that verl computes. It has no row of a response whose reward failed."""
    sources, uids, infos, expected = [], [], defaultdict(list), {}
    for number, (source, rewards) in enumerate(prompts):
        expected[source, str(number)] = responses
        for reward in rewards:
            if reward is not LOST:
                sources.append(source)
                uids.append(str(number))
                infos["reward"].append(reward.score)
                infos["acc"].append(reward.info.get("acc"))
    found = PPOTrainer._val_metrics_update(None, sources, uids, infos, [], expected_acc_counts=expected)
    return {name: value for name, value in found.items() if "/mean@" in name and "/best@" not in name}


@st.composite
def validations(draw):
    responses = draw(st.integers(1, 3))
    kinds = st.sampled_from(
        draw(st.sampled_from([[RIGHT, WRONG], [RIGHT, WRONG, LOST], [UNRATED, LOST], [UNRATED, RIGHT]]))
    )
    prompt = st.tuples(st.sampled_from(["math", "code"]), st.lists(kinds, min_size=responses, max_size=responses))
    return draw(st.lists(prompt, min_size=1, max_size=4)), responses


@example(([("math", [RIGHT, LOST]), ("math", [WRONG, RIGHT]), ("code", [UNRATED, LOST])], 2))
@example(([("math", [LOST]), ("math", [RIGHT])], 1))
@settings(max_examples=25, deadline=None)
@given(validations())
def test_metrics_are_those_of_verl(validation):
    prompts, responses = validation
    assert validation_metrics(prompts) == pytest.approx(verls_metrics(prompts, responses))


def test_held_out_values_outside_0_and_1_are_counted():
    from verl_gsd.trainer.trainer import GSDTrainerSync

    sources, uids = ["math", "math", "code", "code", "code"], list("abcde")
    infos = {"reward": [1.0, 0.0, 1.0, -1.0, 1.2], "acc": [1.0, None, 1.0, -1.0, 1.2]}
    expected = {(source, uid): 1 for source, uid in zip(sources, uids, strict=True)}
    trainer = bare(GSDTrainerSync)
    found = trainer._val_metrics_update(sources, uids, infos, [], expected_acc_counts=expected)
    assert {name: value for name, value in found.items() if name.startswith("val/")} == {
        "val/prompts/math": 2.0,
        "val/prompts/code": 3.0,
        "val/outside/code": 2.0,
    }
    assert found["val-core/code/acc/mean@1"] == pytest.approx(0.4), "the mean looks like an accuracy"


def test_a_failed_reward_counts_as_wrong_and_not_as_a_reward_of_0():
    metrics = validation_metrics([("math", [RIGHT]), ("math", [LOST]), ("code", [LOST])])
    assert metrics == {
        "val-aux/math/reward/mean@1": 1.0,
        "val-aux/math/acc_success_only/mean@1": 1.0,
        "val-core/math/acc/mean@1": 0.5,
    }


def test_repeated_held_out_prompts_are_counted_once(monkeypatch):
    """verl gives each row a uid of its own."""
    from verl_gsd.trainer.trainer import GSDTrainerSync, PPOTrainer

    def rows(*texts):
        chats = [[{"role": "user", "content": text}] for text in texts]
        return {"raw_prompt": np.array(chats, dtype=object), "data_source": np.array(["math"] * len(texts))}

    def validate_stub(self):
        uids = [f"{batch}_{row}" for batch, data in enumerate(self.val_dataloader) for row in range(len(data["uid"]))]
        expected = {("math", uid): 1 for uid in uids}
        infos = {"reward": [1.0] * len(uids), "acc": [1.0] * len(uids)}
        return self._val_metrics_update(["math"] * len(uids), uids, infos, [], expected_acc_counts=expected)

    def taken(loader):
        for batch in loader:
            batch["uid"] = np.arange(len(batch["raw_prompt"]))
            yield batch

    monkeypatch.setattr(PPOTrainer, "_validate", validate_stub)
    monitor = SimpleNamespace(rewards=SimpleNamespace(end_validation=lambda step: {}))
    for texts, counts in (
        ([("a", "b"), ("a", "b")], {"val/prompts/math": 4.0, "val/independent/math": 2.0}),
        ([("a", "b"), ("c",)], {"val/prompts/math": 3.0}),
    ):
        trainer = bare(GSDTrainerSync, monitor=monitor, global_steps=1)
        loader = trainer.val_dataloader = list(taken([rows(*batch) for batch in texts]))
        found = trainer._validate()
        assert {name: value for name, value in found.items() if name.startswith("val/")} == counts
        assert trainer.val_dataloader is loader
