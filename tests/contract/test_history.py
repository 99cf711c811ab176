"""Earlier responses in verl's own replay buffer over a real queue."""

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

import transfer_queue as tq
from agent_rows import plan, services_of, watched
from tensordict import NonTensorStack, TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.algorithms.gvpo.extension import Gvpo
from verl_gsd.algorithms.gvpo.replayed import PLANNED, history_size
from verl_gsd.extension import ROLLOUTS, ExtensionError
from verl_gsd.trainer.rows import GENERATED_IN

pytestmark = pytest.mark.usefixtures("queue")

KEY, SIZE = ("maths", 7), 4


class Run:
    """GVPO as the trainer has it, in verl's buffer; ``prompts`` is what an earlier run remembers."""

    def __init__(self, config, share, longest, prompts):
        config = config.copy()
        config.algorithm.gsd.gvpo.history_fraction, config.data.max_response_length = share, longest
        self.services = services_of(config=config, **({} if prompts is None else {"prompts": prompts}))
        self.extensions = {"gvpo": Gvpo(config.algorithm.gsd.gvpo, self.services)}
        self.store = self.services.prompts.responses
        self.watch()

    def watch(self):
        """In a buffer that has seen nothing yet."""
        self.buffer, self.seam = watched(self.extensions, self.services, key_of=lambda uid: KEY, group_size=SIZE)

    def submitted(self, uid, own=None):
        """Sessions that verl is asked for."""
        columns = {"uid": NonTensorStack(uid)} | ({ROLLOUTS: torch.tensor([own])} if own else {})
        batch = TensorDict(columns, batch_size=[1])
        plan(self.seam, {uid: KEY}, batch)
        assert int(batch[ROLLOUTS][0]) + int(batch[PLANNED][0]) == (own or SIZE)
        return int(batch[ROLLOUTS][0])

    def trained(self, step, groups=1):
        """(the batch, metrics of the step's end), which alone changes what is remembered."""
        batch, _ = self.buffer.sample(global_steps=step, partition_id="train", batch_size=groups)
        self.services.step, known = step, list(self.store.recall(KEY))
        self.seam.observe_trained(batch)
        assert self.store.recall(KEY) == known
        return batch, self.seam.end_step()


@pytest.fixture(scope="module")
def config(compose_fast):
    return compose_fast("algo=gvpo", "task=arithmetic", "hardware=cpu", f"actor_rollout_ref.rollout.n={SIZE}")[0]


@pytest.fixture
def begin(config):
    """(share, longest response, what an earlier run remembers) -> a run of one prompt."""
    return lambda share=0.5, longest=100, prompts=None: Run(config, share, longest, prompts)


def answered(uid, sessions, step, outputs=1, tag=None, **further):
    """Rows as agent loop workers write them: response ``session`` has ``2 + session`` tokens, the second a tool's."""
    keys, fields, tags = [], [], []
    for session in sessions:
        for output in range(outputs):
            prompt, response = torch.arange(5), torch.arange(2 + session) + 100 * step
            mask, scores = torch.ones(2 + session, dtype=torch.int64), torch.zeros(2 + session)
            mask[1], scores[-1] = 0, session / 2
            ids = torch.cat([prompt, response])
            keys.append(f"{uid}_{session}_{output}")
            fields.append(
                {
                    "prompts": prompt,
                    "responses": response,
                    "response_mask": mask,
                    "loss_mask": mask,
                    "input_ids": ids,
                    "position_ids": torch.arange(len(ids)),
                    "rm_scores": scores,
                    "metrics": {"compute_score": 0.5},
                    "num_turns": 2,
                    "extra_fields": {"raw": "kept", "reward_extra_info": {"acc": session / 2, "why": "text"}},
                    "multi_modal_inputs": {},
                    "session_id": session,
                    "uid": uid,
                }
                | further
            )
            lengths = {"prompt_len": 5, "response_len": 2 + session, "seq_len": 7 + session}
            tags.append({"status": "success", "global_steps": step, **lengths, **(tag or {})})
    if keys:
        tq.kv_batch_put(keys=keys, fields=list_of_dict_to_tensordict(fields), tags=tags, partition_id="train")
    tq.kv_put(key=uid, partition_id="train", tag={"is_prompt": True, "status": "finished", "global_steps": step})


@pytest.fixture
def visited_once(begin):
    """(share) -> a run in which the prompt was visited once."""

    def visited(share=0.5):
        run = begin(share)
        assert run.submitted("first") == SIZE
        answered("first", range(SIZE), step=1)
        _, metrics = run.trained(step=1)
        assert metrics["gvpo/history/share"] == 0 and metrics["gvpo/history/first_visits"] == 1
        assert metrics["gvpo/history/prompts"] == 1 and "gvpo/history/age" not in metrics
        return run

    return visited


def test_from_the_second_visit_on_earlier_responses_take_sessions_places(visited_once):
    run = visited_once()
    assert run.submitted("second") == 2
    answered("second", range(2), step=3)
    batch, metrics = run.trained(step=3)
    assert sorted(batch.keys) == [f"second_{session}_0" for session in (0, 1, 4, 5)]
    data = tq.kv_batch_get(keys=["second_4_0", "second_5_0"], partition_id="train")
    for at, session in enumerate((0, 1)):
        row, tokens = data[at], list(range(100, 102 + session))
        assert row["responses"].tolist() == tokens and row["input_ids"].tolist() == [*range(5), *tokens]
        assert row["position_ids"].tolist() == list(range(7 + session))
        assert row["response_mask"].tolist() == row["loss_mask"].tolist() == [1, 0, 1][: 2 + session]
        assert row["rm_scores"].tolist() == [0.0] * (1 + session) + [session / 2]
        extra = getattr(row["extra_fields"], "data", row["extra_fields"])
        assert extra == {"raw": "kept", "reward_extra_info": {"acc": session / 2}}
        assert int(row["session_id"]) == 4 + session
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    assert (
        tags["second_5_0"] | {GENERATED_IN: 1, "response_len": 3, "seq_len": 8, "global_steps": 3} == tags["second_5_0"]
    )
    assert metrics == {
        "gvpo/history/share": 0.5,
        "gvpo/history/responses_saved": 2,
        "gvpo/history/tokens_saved": 5,
        "gvpo/history/first_visits": 0,
        "gvpo/history/shortage": 0,
        "gvpo/history/prompts": 1,
        "gvpo/history/age": 2,
    }


def test_the_group_has_their_rewards_and_counts_them_nowhere_else(visited_once):
    run = visited_once()
    run.submitted("second")
    answered("second", range(2), step=2)
    run.trained(step=2)
    group, fate = run.seam.gone["second"]
    assert fate == "trained" and sorted(group.rewards.tolist()) == [0, 0, 0.5, 0.5]
    assert sorted(group.accuracies[group.accuracies == group.accuracies].tolist()) == [0, 0.5], "two are of this visit"
    assert sorted(group.tokens.tolist()) == [0, 0, 2, 3]


def test_what_is_remembered_is_of_the_latest_visit(visited_once):
    for share, new, steps in ((0.5, 2, [2, 2]), (0.75, 1, [2, 1, 1])):  # older ones where one is not enough
        run = visited_once(share)
        run.submitted(f"second{share}")
        answered(f"second{share}", range(new), step=2)
        run.trained(step=2)
        assert [response.step for response in run.store.recall(KEY)] == steps


def test_a_larger_group_of_the_data_sets_own_is_completed_behind_its_sessions(visited_once):
    run = visited_once()
    generated = run.submitted("second", own=9)
    assert generated == 7
    answered("second", range(generated), step=2)
    batch, metrics = run.trained(step=2)
    assert {"second_9_0", "second_10_0"} <= set(batch.keys) and len(run.seam.gone["second"][0].rewards) == 9
    assert metrics["gvpo/history/shortage"] == 0


def test_prompts_submitted_without_a_history_get_none(visited_once):
    run = visited_once()
    run.seam.restore_in_flight({"second": KEY}, {"uid": ["second"]})
    answered("second", range(SIZE), step=2)
    run.buffer._sync_metadata_from_transfer_queue()
    assert len(run.seam.whole[1].rewards) == SIZE


def test_responses_longer_than_this_run_allows_are_not_used(begin, visited_once):
    shorter = begin(longest=2, prompts=visited_once().services.prompts)
    assert shorter.submitted("second") == SIZE - 1, "one of two tokens is left, one of three is too long"


@pytest.mark.parametrize("acc", [np.bool_(True), torch.tensor(1.0), 1, True])
def test_a_verdict_of_any_kind_of_number_is_kept(begin, acc):
    run = begin()
    answered("first", range(SIZE), step=1, extra_fields={"reward_extra_info": {"acc": acc, "why": "text"}})
    run.trained(step=1)
    assert run.store.recall(KEY)[0].verdict == {"acc": 1.0}


def test_earlier_responses_have_the_age_they_have(visited_once):
    run = visited_once()
    run.submitted("second")
    versions = {"min_global_steps": 8, "max_global_steps": 8}
    answered("second", range(2), step=9, extra_fields={"reward_extra_info": {}} | versions, tag=versions)
    batch, _ = run.trained(step=9)
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    assert tags["second_0_0"]["max_global_steps"] == 8
    assert tags["second_4_0"]["min_global_steps"] == tags["second_4_0"]["max_global_steps"] == 0
    extra = tq.kv_batch_get(keys=["second_4_0"], partition_id="train")[0]["extra_fields"]
    assert getattr(extra, "data", extra)["max_global_steps"] == 0


def test_responses_that_were_trained_on_late_are_as_old_as_they_are(begin):
    """In the asynchronous modes, a step trains on responses of earlier weights."""
    run = begin()
    run.submitted("first")
    versions = {"min_global_steps": 1, "max_global_steps": 2}
    answered("first", range(SIZE), step=5, extra_fields={"reward_extra_info": {}} | versions, tag=versions)
    run.trained(step=5)
    assert [response.step for response in run.store.recall(KEY)] == [3, 3], "step 3 generates with the weights of 2"
    run.submitted("second")
    answered("second", range(2), step=9, tag={"min_global_steps": 8, "max_global_steps": 8})
    batch, metrics = run.trained(step=9)
    assert metrics["gvpo/history/age"] == 6
    assert dict(zip(batch.keys, batch.tags, strict=True))["second_4_0"]["max_global_steps"] == 2


def test_a_data_sets_own_number_of_sessions_is_lessened_and_one_is_always_new(visited_once):
    run = visited_once(share=0.75)
    assert [run.submitted(f"again{n}", own=n) for n in (6, 3, 1)] == [3, 1, 1]


def test_a_group_without_a_session_that_answered_is_left_short_and_counted(visited_once):
    run = visited_once()
    run.submitted("second")
    answered("second", (), step=2)
    run.submitted("third")
    answered("third", range(2), step=2)
    run.buffer._sync_metadata_from_transfer_queue()
    assert {group.uid: len(group.rewards) for group in run.seam.whole[1:]} == {"second": 0, "third": 4}
    _, metrics = run.trained(step=2, groups=2)
    assert dict(run.seam.fates[1:]) == {"second": "failed", "third": "trained"}
    assert metrics["gvpo/history/shortage"] == 2


def test_responses_forgotten_meanwhile_are_counted(visited_once):
    run = visited_once()
    run.submitted("second")
    run.store.forget(KEY)
    answered("second", range(2), step=2)
    batch, metrics = run.trained(step=2)
    assert len(batch.keys) == 2 and metrics["gvpo/history/shortage"] == 2


def test_a_group_that_a_checkpoint_held_is_completed_once(visited_once):
    run = visited_once()
    prompts = {ROLLOUTS: torch.tensor([2]), PLANNED: torch.tensor([2])}
    answered("second", range(2), step=2)
    for _ in range(2):
        run.watch()
        run.seam.restore_in_flight({"second": KEY}, prompts)
        run.buffer._sync_metadata_from_transfer_queue()
        (group,) = run.seam.whole
        assert len(group.rewards) == SIZE


def test_sessions_of_several_outputs_are_not_remembered(begin):
    run = begin()
    answered("first", range(SIZE), step=1, outputs=2)
    _, metrics = run.trained(step=1)
    assert metrics["gvpo/history/prompts"] == 0


@pytest.mark.parametrize("further", [{"rollout_log_probs": torch.zeros(2)}, {"multi_modal_inputs": {"image": 1}}])
def test_columns_that_cannot_be_remade_are_refused(visited_once, further):
    run = visited_once()
    run.submitted("second")
    answered("second", range(2), step=2, **further)
    with pytest.raises(ExtensionError, match=rf"{next(iter(further))}.*history_fraction=0") as raised:
        run.buffer._sync_metadata_from_transfer_queue()
    assert str(raised.value).startswith("algorithm.gsd.gvpo: its hook add_rows raised an error: ")
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_share_is_rounded_and_leaves_one_new_response():
    assert [history_size(share, 8) for share in (0, 0.05, 0.0625, 0.25, 0.5, 0.99)] == [0, 0, 1, 2, 4, 7]
