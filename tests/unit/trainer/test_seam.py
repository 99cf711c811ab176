"""The seam and our extensions over a dict of rows: what they do of a step, without verl and its queue."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from verl_gsd.algorithms.dagrpo.demonstration_settings import DemonstrationSettings
from verl_gsd.algorithms.dagrpo.demonstrations import DemonstrationExtension
from verl_gsd.algorithms.dagrpo.pools import build_pool
from verl_gsd.algorithms.gvpo.extension import Gvpo
from verl_gsd.answer_counts import unpack_answers
from verl_gsd.dial import dial_advantage
from verl_gsd.extension import ROLLOUTS, Extension, ExtensionError, UnplacedRows, Update
from verl_gsd.groups import Group
from verl_gsd.lab.training.rows import DictRows
from verl_gsd.prompts import PromptStore
from verl_gsd.records import LeftGroup, gradient_mass, step_records, unrated_sources
from verl_gsd.responses import Response
from verl_gsd.tasks.byte_llama import build_tokenizer
from verl_gsd.trainer.group_reading import read_groups
from verl_gsd.trainer.metrics import group_metrics, held_out_outside
from verl_gsd.trainer.rows import DEMONSTRATED_BY, DEMONSTRATION, GENERATED_IN, REPLACED, verdict_of
from verl_gsd.trainer.seam import Seam
from verl_gsd.trainer.step_end import step_table

PROMPTS = {"u0": ("maths", 0), "u1": ("maths", 1)}


def group_of(uid, rewards, index=0):
    rewards = np.array(rewards, float)
    keys = tuple(f"{uid}_{session}_0" for session in range(len(rewards)))
    return Group(uid, "maths", index, rewards, rewards, np.full(len(rewards), 2), keys)


def seam_of(**extensions):
    return Seam(extensions, PromptStore(), DictRows(), group_size=4)


def test_the_seam_and_the_extensions_import_neither_verl_nor_ray():
    script = (
        "import sys\n"
        "import verl_gsd.trainer.seam, verl_gsd.algorithms.hadw.extension, verl_gsd.algorithms.gvpo.extension\n"
        "import verl_gsd.algorithms.dagrpo.mask, verl_gsd.algorithms.dagrpo.judging\n"
        "import verl_gsd.algorithms.dagrpo.demonstrations, verl_gsd.algorithms.rollouts.budget\n"
        "import verl_gsd.algorithms.rollouts.sampler\n"
        "print(*sorted({'verl', 'ray', 'vllm', 'transfer_queue', 'tensordict'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.split() == []


class Noting(Extension):
    """Notes every call of its hooks."""

    def __init__(self, name, calls):
        super().__init__({})
        self._name, self._calls, self.counted = name, calls, 0

    def before_rollout(self, visits):
        self._calls.append((self._name, "before_rollout", list(visits.uids)))

    def on_group_left(self, group, fate):
        self._calls.append((self._name, "on_group_left", fate))
        return replace(group, rewards=group.rewards + 1)

    def stage_inputs(self, members, left):
        return {self._name: [None if member is None else member.response_index for member in members]}

    def record(self, group):
        return {f"{self._name}_counted": float(self.counted)}

    def end_step(self, left):
        self.counted += len(left)
        return {f"{self._name}/counted": float(self.counted)}


def test_each_event_reaches_all_extensions_in_order_and_a_group_is_passed_on():
    calls = []
    seam = seam_of(first=Noting("first", calls), second=Noting("second", calls))
    seam.before_rollout(PROMPTS, {})
    assert (seam.waiting, seam.prompt_of("u1")) == (2, ("maths", 1))
    seam.on_group_left(group_of("u0", [0, 1]), "trained")
    seam.on_group_left(group_of("u1", [0, 0], 1), "filtered")
    assert [(name, hook) for name, hook, _ in calls] == [
        *(("first", "before_rollout"), ("second", "before_rollout")),
        *(("first", "on_group_left"), ("second", "on_group_left")) * 2,
    ]
    assert [fate for _, fate in seam.left] == ["trained", "filtered"] and seam.waiting == 0
    assert seam.left[0][0].rewards.tolist() == [2, 3], "changed by both"


def test_records_show_the_state_before_the_step_and_a_step_is_counted_once():
    calls = []
    seam = seam_of(a=Noting("a", calls))
    for step in range(3):
        seam.before_rollout(PROMPTS, {})
        for number, uid in enumerate(PROMPTS):
            seam.on_group_left(group_of(uid, [0, 1], number), "trained")
        batch = SimpleNamespace(keys=["u0_0_0", "pad_0_0", "u1_1_0"], tags=[{}, {"is_padding": True}, {}])
        columns = seam.stage_inputs(batch)
        assert columns.pop("data_source").tolist() == [0, 1, 0], "both prompts are of one source, the padding of none"
        assert columns == {"a": [0, None, 1]}
        seam.observe_trained(batch)
        assert [seam.record(group) for group, _ in seam.left] == [{"a_counted": 2.0 * step}] * 2
        assert seam.end_step() == {"a/counted": 2.0 * step + 2}
        assert seam.left == [] and seam.stage_inputs(batch)["a"] == [None, None, None]


class Placing(Extension):
    """Requests one rollout less for each visit, and keeps what it is asked to place."""

    def before_rollout(self, visits):
        visits.request(visits.rollouts - 1)

    def place(self, rows):
        self.sessions = rows.sessions
        return [], {}


@pytest.mark.parametrize("restart", [False, True])
def test_a_placement_knows_how_many_sessions_each_group_has_if_none_failed(restart):
    seam, columns = seam_of(placing=Placing({})), {ROLLOUTS: np.array([3, 9])}
    columns |= seam.before_rollout(PROMPTS, columns)
    if restart:
        seam = seam_of(placing=Placing({}))
        seam.restore_in_flight(PROMPTS, columns)
    seam.on_group_left(replace(group_of("u0", [0, 1, 1]), earlier=1), "trained")
    seam.on_group_left(group_of("u1", [0, 0], 1), "surplus")
    seam.place(UnplacedRows(["u0_0_0"], [5], [5.0], prompts=1, padding_tokens=1, workers=1))
    assert seam.extensions["placing"].sessions == {"u0": 3}, "two of its own and one of an earlier visit"
    seam.end_step()
    seam.before_rollout({"u0": ("maths", 0)}, {})
    seam.on_group_left(group_of("u0", [0, 1, 1]), "trained")
    seam.place(UnplacedRows(["u0_0_0"], [5], [5.0], prompts=1, padding_tokens=1, workers=1))
    assert seam.extensions["placing"].sessions == {"u0": 3}, "one less than the group size"
    seam.end_step()
    seam.before_rollout({"u0": ("maths", 0)}, {})
    seam.on_group_left(replace(group_of("u0", [0, 1]), demonstrations=1), "trained")  # one of the three failed
    seam.place(UnplacedRows(["u0_0_0", "u0_1_0", "u0_3_0"], [5] * 3, [5.0] * 3, prompts=1, padding_tokens=1, workers=1))
    assert seam.extensions["placing"].sessions == {"u0": 4}, "a demonstration in nobody's place is one more"


def test_a_hook_that_raises_is_named():
    class Careless(Extension):
        def poll(self, now):
            raise ZeroDivisionError("by zero")

    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.careless\b.*\bpoll\b.*ZeroDivisionError"):
        seam_of(careless=Careless({})).poll(0.0)


def test_two_that_request_rollouts_are_named_by_the_second():
    class Asking(Extension):
        def before_rollout(self, visits):
            visits.request(visits.rollouts)

    with pytest.raises(ExtensionError, match=r"algorithm\.gsd\.two\b.*\bbefore_rollout\b"):
        seam_of(one=Asking({}), two=Asking({})).before_rollout(PROMPTS, {})


# Rows

TEMPLATE = {
    "prompts": torch.tensor([1, 2]),
    "position_ids": torch.arange(4),
    "rm_scores": torch.tensor([0.0, 0.0]),
    "loss_mask": torch.ones(2, dtype=torch.int64),
    "old_log_probs": torch.tensor([-0.5, -0.5]),
}


def put_session(rows, uid, session, tokens, reward):
    row = TEMPLATE | {
        "responses": torch.tensor(tokens),
        "response_mask": torch.ones(len(tokens), dtype=torch.int64),
        "rm_scores": torch.tensor([0.0] * (len(tokens) - 1) + [reward]),
        "extra_fields": {"reward_extra_info": {"acc": reward}},
        "metrics": {},
        "num_turns": 2,
    }
    lengths = {"prompt_len": 2, "response_len": len(tokens), "seq_len": 2 + len(tokens)}
    rows.put({f"{uid}_{session}_0": row}, {f"{uid}_{session}_0": lengths})


@pytest.mark.parametrize(
    ("answers", "distinct"),
    [
        ([{"answer": "7"}, {"answer": " 7"}, {"answer": "8"}, {"answer": ""}], 2),
        ([{"pred": "7"}, {"pred": None}, {"pred": 7}, {"pred": "9"}], 2),  # as verl's verifiers return it
        ([{"answer": "1", "pred": "2"}] * 4, 1),
        ([{"answer": ""}] * 4, 0),
        ([{"pred": "[INVALID]"}] * 4, 0),  # as verl's math_dapo returns it
        ([{"pred": "[INVALID]"}, {"pred": "3"}, {"pred": "[INVALID]"}, {"pred": "4"}], 2),
        ([{}] * 4, None),
    ],
)
def test_a_group_has_the_number_of_its_distinct_answers(answers, distinct):
    rows = DictRows()
    for session, answer in enumerate(answers):
        info = {"reward_extra_info": {"acc": 0.0} | answer}
        row = {"rm_scores": torch.tensor([0.0]), "extra_fields": info, "metrics": {}, "num_turns": 2}
        rows.put({f"u0_{session}_0": row}, {f"u0_{session}_0": {"response_len": 1}})
    (group,), _, _ = read_groups(["u0"], rows, lambda uid: ("math", 1))
    assert group.distinct_answers == distinct
    assert (group.answers is None) == (distinct is None)
    if distinct is not None:
        _, digest, count = unpack_answers(pa.chunked_array([pa.array([group.answers])]))
        assert (digest > 0).sum() == distinct and count.sum() == 4, "responses without an answer count too"


@pytest.mark.parametrize(
    ("acc", "read"), [(sum([1 / 9] * 9), 1.0), (1 - 0.9 - 0.1, 0.0), (1.01, 1.01), (-1.0, -1.0), (0.5, 0.5)]
)
def test_a_sum_of_shares_that_rounding_moved_out_of_its_range_is_an_accuracy(acc, read):
    """Nine unit tests that each count a ninth sum to 1.0000000000000002."""
    assert not 0 <= sum([1 / 9] * 9) <= 1 and not 0 <= 1 - 0.9 - 0.1 <= 1
    rows = DictRows()
    info = {"reward_extra_info": {"acc": acc}}
    rows.put(
        {"u0_0_0": {"rm_scores": torch.tensor([1.0]), "extra_fields": info, "metrics": {}, "num_turns": 2}},
        {"u0_0_0": {"response_len": 1}},
    )
    (group,), _, _ = read_groups(["u0"], rows, lambda uid: ("math", 1))
    assert group.accuracies.tolist() == [read]
    assert bool(unrated_sources([group])) == bool(held_out_outside(["math"], [acc])) == (not 0 <= read <= 1)


def test_the_answer_is_no_number_of_a_verdict():
    """A remembered response would return it as a float, and as text the next time."""
    assert verdict_of({"reward_extra_info": {"acc": 1.0, "answer": "12", "pred": "12"}}) == {"acc": 1.0}


@pytest.fixture
def services(compose_fast):
    """The services of a step, over a dict of rows."""

    def services(*words):
        config, _ = compose_fast("task=arithmetic", "hardware=cpu", "actor_rollout_ref.rollout.n=4", *words)
        store = PromptStore()
        return SimpleNamespace(config=config, rows=DictRows(), prompts=store, tokenizer=build_tokenizer(), step=1)

    return services


def test_earlier_responses_fill_a_group_and_new_ones_are_remembered_at_the_end_of_the_step(services):
    of = services("algo=gvpo", "algorithm.gsd.gvpo.history_fraction=0.25")
    gvpo = Gvpo(of.config.algorithm.gsd.gvpo, of)
    seam = Seam({"gvpo": gvpo}, of.prompts, of.rows, group_size=4)
    for of.step, uid, generated in ((1, "u0", 4), (2, "u1", 3)):
        prompts = {uid: ("maths", 7)}
        requested = seam.before_rollout(prompts, {})
        assert requested[ROLLOUTS].tolist() == [generated], "one of four is an earlier response, once there is one"
        for session in range(generated):
            put_session(of.rows, uid, session, [of.step, session], float(session == 0))
        seam.add_rows([uid])
        added = {key: tag for key, tag in of.rows.tags.items() if GENERATED_IN in tag}
        assert list(added) == ([] if of.step == 1 else ["u1_4_0"])
        (read,), _, _ = read_groups([uid], of.rows, prompts.get)
        assert (len(read.keys), read.earlier, (read.tokens > 0).sum()) == (4, 4 - generated, generated)
        seam.on_group_left(group_of(uid, [1, 0, 0, 0], 7), "trained")
        keys = [key for key in of.rows.tags if key.startswith(uid)]
        seam.observe_trained(SimpleNamespace(keys=keys, tags=[of.rows.tags[key] for key in keys]))
        assert len(of.prompts.responses) == of.step - 1, "nothing is remembered before the step ends"
        metrics = seam.end_step()
        assert len(of.prompts.responses) == 1
    earlier = of.rows.read(["u1_4_0"])[0]
    assert earlier["responses"].tolist() == [1, 0] and earlier["rm_scores"].tolist() == [0, 1]
    assert metrics["gvpo/history/share"] == 0.25 and metrics["gvpo/history/age"] == 1


def test_sizes_of_groups_in_the_data_are_noticed():
    seam = seam_of()
    seam.before_rollout(PROMPTS, {})
    assert not seam.sizes_in_data
    seam.before_rollout(PROMPTS, {ROLLOUTS: [4] * len(PROMPTS)})
    seam.before_rollout(PROMPTS, {})
    assert seam.sizes_in_data


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_groups_gradient_mass_is_that_of_its_advantages(alpha):
    """With the dial alone, size times gain: groups of 3, 5 and 4, and one response with two outputs. Then a weight."""
    groups = [group_of("u0", [1, 0, 0]), group_of("u1", [1, 1, 0, 0, 0]), group_of("u2", [1, 1, 1, 1])]
    seam = seam_of()
    seam.before_rollout({group.uid: ("maths", 0) for group in groups}, {})
    for group in groups:
        seam.on_group_left(group, "trained")
    keys = [key for group in groups for key in group.keys]
    rewards = torch.tensor(np.concatenate([group.rewards for group in groups]))
    advantages = dial_advantage(rewards, [key.split("_")[0] for key in keys], alpha=alpha, ddof=0, eps=0.0)
    batch = SimpleNamespace(keys=[*keys, "u0_0_1", "pad0_0_0"])
    seam.on_advantages(batch, torch.cat([advantages, advantages[:1], torch.tensor([9.0])]))
    _, table = step_table(seam, step=1, attempt=1, alpha=alpha)
    gain = table["gain"].to_numpy()
    assert table["mass"].to_pylist() == pytest.approx([3 * gain[0], 5 * gain[1], 0])
    shares = {name: group_metrics(table)[f"dial/gain_share/{name}"] for name in ("hard", "between", "easy")}
    assert shares == {"hard": 0, "between": pytest.approx(1), "easy": 0}
    seam.end_step()
    assert seam.mass == {}
    weighed = LeftGroup(groups[0], "trained", {}, 7.0), LeftGroup(groups[1], "filtered", {})
    assert gradient_mass(step_records(weighed, step=1, attempt=1, alpha=alpha)).tolist() == [
        7,
        pytest.approx(np.nan, nan_ok=True),
    ]
    by_gain = gradient_mass(step_records([LeftGroup(groups[0], "trained")], step=1, attempt=1, alpha=alpha))
    assert by_gain.tolist() == [3 * gain[0]], "an estimator that is not the dial"


def test_a_demonstration_takes_the_last_failures_place_and_the_update_knows_it(services):
    of = services("algo=dagrpo_anchors", "algorithm.gsd.dagrpo.demonstrations.source=self")
    tokens = [*of.tokenizer.encode("5", add_special_tokens=False), of.tokenizer.eos_token_id]
    success = Response(np.array(tokens, np.int32), np.ones(2, bool), 1.0, 1, {"acc": 1.0})
    of.prompts.responses.store(("maths", 7), [success], keep=1)
    of.step = 2
    shown = DemonstrationExtension(of.config.algorithm.gsd.dagrpo.demonstrations, of)
    seam = Seam({"dagrpo.demonstrations": shown}, of.prompts, of.rows, group_size=4)
    prompts = {"u0": ("maths", 7)}
    assert seam.before_rollout(prompts, {}) == {}, "all four are generated"
    for session in range(4):
        put_session(of.rows, "u0", session, [3, session], 0.0)
    failed = group_of("u0", [0, 0, 0, 0], 7)
    seam.add_rows(["u0"])
    seam.on_groups_complete([failed])
    tag = of.rows.tags["u0_3_0"]
    assert (tag[DEMONSTRATED_BY], tag[REPLACED]) == ("self", [0.0, 0.0, 2.0])
    row = of.rows.read(["u0_3_0"])[0]
    assert row["responses"].tolist() == tokens and row["response_mask"].tolist() == [0, 0]
    seam.on_group_left(failed, "trained")
    assert seam.left[0][0].demonstrations == 1
    of.rows.put({"u0_3_0": {"old_log_probs": torch.tensor([-0.5, -0.5])}})
    keys = list(of.rows.tags)
    batch = SimpleNamespace(keys=keys, tags=[of.rows.tags[key] for key in keys])
    columns = seam.loss_columns(batch, torch.tensor([-0.5, -0.5, -0.5, 1.5]))
    assert columns[DEMONSTRATION].tolist() == [False, False, False, True]
    assert of.rows.read(["u0_3_0"])[0]["response_mask"].tolist() == [1, 1]
    assert of.rows.read(["u0_3_0"])[0]["advantages"].tolist() == [1.5, 1.5]
    seam.observe_trained(batch)
    metrics = seam.end_step()
    assert metrics["dagrpo/demonstrations/share"] == 0.25 and metrics["dagrpo/demonstrations/age"] == 1


class CountingRows(DictRows):
    """Notes which columns are read of which rows."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def read(self, keys, columns=None):
        self.reads.append((list(keys), columns))
        return super().read(keys, columns)


@pytest.mark.parametrize("reports", [True, False])
def test_a_response_that_a_demonstration_replaced_still_counts_in_every_figure_of_its_group(services, reports):
    of = services("algo=dagrpo_anchors", "algorithm.gsd.dagrpo.demonstrations.source=self")
    tokens = [*of.tokenizer.encode("5", add_special_tokens=False), of.tokenizer.eos_token_id]
    of.prompts.responses.store(
        ("maths", 7), [Response(np.array(tokens, np.int32), np.ones(2, bool), 1.0, 1, {"acc": 1.0})], keep=1
    )
    of.step = 2
    shown = DemonstrationExtension(of.config.algorithm.gsd.dagrpo.demonstrations, of)
    seam = Seam({"dagrpo.demonstrations": shown}, of.prompts, of.rows, group_size=4)
    seam.before_rollout({"u0": ("maths", 7)}, {})
    for session in range(4):
        put_session(of.rows, "u0", session, [3, session], 0.0)
        report = {"unverified": 1.0, "doubtful": session % 2, "answer": str(session)} if reports else {}
        info = {"reward_extra_info": {"acc": 0.0} | report}
        of.rows.put({f"u0_{session}_0": {"extra_fields": info}})
    seam.add_rows(["u0"])
    ((before,), _, _) = read_groups(["u0"], of.rows, lambda uid: ("maths", 7))
    seam.on_groups_complete([before])
    assert DEMONSTRATED_BY in of.rows.tags["u0_3_0"]
    ((after,), _, _) = read_groups(["u0"], of.rows, lambda uid: ("maths", 7))
    names = ("unverified", "doubtful", "distinct_answers", "answers")
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
    assert (after.unverified, after.doubtful, after.distinct_answers) == ((4, 2, 4) if reports else (None, None, None))


def test_of_the_policys_own_responses_only_those_to_store_are_read_with_their_tokens(services):
    of = services(
        "algo=dagrpo_anchors",
        "algorithm.gsd.dagrpo.demonstrations.source=self",
        "algorithm.gsd.dagrpo.demonstrations.per_group=2",
    )
    of.rows = CountingRows()
    pool = build_pool(DemonstrationSettings.of(of.config.algorithm.gsd.dagrpo.demonstrations), of)
    for uid, rewards in (("u0", [0, 1, 0, 1, 1]), ("u1", [0, 0]), ("u2", [1, 1])):
        for session, reward in enumerate(rewards):
            put_session(of.rows, uid, session, [int(uid[1]), session], float(reward))
    prompts = {"u0": ("maths", 7), "u1": ("maths", 8), "u2": ("maths", 7)}
    for uids in (("u0", "u1"), ("u2",)):  # the step has two batches, and both visit the same prompt
        pool.observe_trained([key for key in of.rows.tags if key.startswith(uids)], prompts, step=1)
    read = [key for keys, columns in of.rows.reads if columns is None or "responses" in columns for key in keys]
    assert read == ["u0_1_0", "u0_3_0"]
    pool.end_step()
    stored = of.prompts.responses.recall(("maths", 7))
    assert [response.tokens.tolist() for response in stored] == [[0, 1], [0, 3]]
    assert of.prompts.responses.recall(("maths", 8)) == []


def test_flags_of_the_workers_come_from_the_extensions(services):
    of = services("algo=gvpo", "algorithm.gsd.gvpo.grouping=prepass")
    seam = Seam({"gvpo": Gvpo(of.config.algorithm.gsd.gvpo, of)}, of.prompts, of.rows, group_size=4)
    assert seam.worker_flags(Update(1, is_first=True))["gvpo_theta_is_old"] is True
    assert seam.worker_flags(Update(1, is_first=False))["gvpo_theta_is_old"] is False
    assert seam.owner("place")[0] == "gvpo" and seam.owner("draw_prompts") is None
