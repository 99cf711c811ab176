"""What GVPO asks of a step: the route and why, the rows' places, the loss's columns, orders to the workers."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl_gsd.algorithms.gvpo import rows as gvpo_rows
from verl_gsd.algorithms.gvpo.placement import Placement
from verl_gsd.extension import UnplacedRows
from verl_gsd.trainer.batching import PADDING, mini_batch_of
from verl_gsd.trainer.metrics import strip_actor_prefix

WORDS = ("algo=gvpo", "task=arithmetic", "hardware=cpu", "data.train_batch_size=8", "actor_rollout_ref.rollout.n=4")
STATIC = ("actor_rollout_ref.actor.use_dynamic_bsz=false", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8")


@pytest.fixture
def update(compose_fast):
    def update(*words):
        return Placement(compose_fast(*WORDS, *words)[0])

    return update


def keys(groups=8, sessions=4):
    return [f"uid{group}_{session}_0" for group in range(groups) for session in range(sessions)]


def place(update, of=None, length=10, workers=1, padding_tokens=12, prompts=8):
    of = of or keys()
    lengths = [length] * len(of)
    return update.place(UnplacedRows(of, lengths, lengths, prompts, padding_tokens, workers))


def test_by_default_a_quarter_of_the_batch_is_a_mini_batch_and_groups_are_kept_whole(update, compose_fast):
    assert compose_fast(*WORDS)[0].actor_rollout_ref.actor.ppo_mini_batch_size == 2
    by_default = update()
    places, metrics = place(by_default)
    none = {"gvpo/padding_rows": 0, "gvpo/missing_sessions": 0, "gvpo/missing_updates": 0}
    assert metrics == {"gvpo/route_whole": 1} | none
    assert sorted(places) == list(range(32))
    assert by_default.flags(theta_is_old=True) == {
        "gvpo_route": "whole",
        "gvpo_theta_is_old": True,
        "num_mini_batch": 4,
        "force_group_size": 4,
    }


def test_micro_batches_of_rows_are_counted_in_groups_under_whole(update):
    static = update(*STATIC)
    place(static)
    assert static.flags(theta_is_old=False)["micro_batch_size_per_gpu"] == 2
    rows = update(*STATIC, "algorithm.gsd.gvpo.grouping=prepass")
    place(rows)
    assert "micro_batch_size_per_gpu" not in rows.flags(theta_is_old=False)


LONG = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=39"


@pytest.mark.parametrize(
    ("words", "of", "workers", "reason"),
    [
        ((LONG,), None, 1, "40 tokens.*ppo_max_token_len_per_gpu .* 39"),
        (("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=41",), keys()[1:], 1, "42 tokens"),
        (("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=47",), keys(groups=7), 1, "48 tokens"),
        (("+actor_rollout_ref.actor.megatron.virtual_pipeline_model_parallel_size=2",), None, 1, "virtual pipeline"),
        ((), keys(sessions=5), 1, r"5 .*actor_rollout_ref\.rollout\.n=4"),
        ((), [*keys()[:-1], "uid7_2_1"], 1, "several outputs"),
        (
            (*STATIC[:1], "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"),
            None,
            1,
            "ppo_micro_batch_size_per_gpu=2 .*n=4",
        ),
        (("actor_rollout_ref.actor.ppo_mini_batch_size=1",), None, 2, "ppo_mini_batch_size=1 .*2 workers"),
    ],
)
def test_auto_makes_a_pass_where_groups_cannot_be_kept_whole_and_says_why(update, caplog, words, of, workers, reason):
    of = of or keys()
    auto = update(*words)
    with caplog.at_level(logging.WARNING):
        _, metrics = place(auto, of, workers=workers)
        place(auto, of, workers=workers)
    assert metrics["gvpo/route_whole"] == 0
    (record,) = caplog.records  # once, not at every step
    assert "grouping=prepass" in record.message
    whole = update(*words, "algorithm.gsd.gvpo.grouping=whole")
    with pytest.raises(ValueError, match=rf"grouping=whole: .*{reason}.*algorithm\.gsd\.gvpo\.grouping=prepass"):
        place(whole, of, workers=workers)


def test_auto_decides_anew_at_every_step(update):
    auto = update(LONG)
    assert [place(auto, length=length)[1]["gvpo/route_whole"] for length in (10, 9, 10)] == [0, 1, 0]


def test_with_one_update_a_step_no_pass_is_needed_and_no_group_kept_whole(update):
    one = update("actor_rollout_ref.actor.ppo_mini_batch_size=8")
    assert place(one)[1]["gvpo/route_whole"] == 0
    two = update("actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.actor.ppo_epochs=2")
    assert place(two)[1]["gvpo/route_whole"] == 1


@pytest.mark.parametrize("grouping", ["whole", "prepass"])
def test_missing_sessions_are_filled_and_counted(update, grouping):
    of = [key for key in keys() if key not in {"uid0_1_0", "uid0_3_0", "uid5_0_0"}]
    places, metrics = place(update(f"algorithm.gsd.gvpo.grouping={grouping}"), of, workers=2)
    assert metrics["gvpo/missing_sessions"] == metrics["gvpo/padding_rows"] == places.count(PADDING) == 3


def test_no_session_is_missing_of_those_that_nobody_requested(update):
    """The data can set the number of rollouts per prompt, and a history adds responses of earlier visits."""
    sizes = [2, 6] * 4
    of = [f"uid{group}_{session}_0" for group, size in enumerate(sizes) for session in range(size)]
    sessions = {f"uid{group}": size for group, size in enumerate(sizes)}
    for rows, missing in ((of, 0), (of[1:], 1)):
        _, metrics = update().place(UnplacedRows(rows, [10] * len(rows), [10] * len(rows), 8, 12, 1, sessions))
        assert metrics["gvpo/missing_sessions"] == missing


@pytest.mark.parametrize("grouping", ["whole", "prepass"])
def test_columns_number_groups_and_responses_within_each_mini_batch(update, grouping):
    made = update(f"algorithm.gsd.gvpo.grouping={grouping}")
    of = [key for key in keys() if key not in {"uid0_1_0", "uid1_0_0", "uid1_1_0", "uid1_3_0"}]
    places, _ = place(made, of, workers=2)
    placed = [f"pad{at}_0_0" if row == PADDING else of[row] for at, row in enumerate(places)]
    columns = made.columns(placed, torch.arange(len(placed), dtype=torch.float64))
    number = mini_batch_of(len(placed), mini_batches=4, workers=2)
    assert columns[gvpo_rows.ADVANTAGE].tolist() == list(range(len(placed)))
    for j in set(number.tolist()):
        at = [row for row in range(len(placed)) if number[row] == j]
        real = [row for row in at if not placed[row].startswith("pad")]
        groups = {}
        for row in real:
            groups.setdefault(placed[row].split("_")[0], []).append(row)
        several = [rows for rows in groups.values() if len(rows) > 1]
        for rows in groups.values():
            assert len({int(columns[gvpo_rows.GROUP][row]) for row in rows}) == 1
            for row in rows:
                assert columns[gvpo_rows.SIZE][row] == len(rows)
                wanted = 1 / (len(rows) - 1) / len(several) if len(rows) > 1 else 0
                assert columns[gvpo_rows.COEFFICIENT][row] == pytest.approx(wanted)
        assert sorted(columns[gvpo_rows.RESPONSE][real].tolist()) == list(range(len(real)))
        for row in set(at) - set(real):
            assert columns[gvpo_rows.RESPONSE][row] == columns[gvpo_rows.GROUP][row] == -1
            assert columns[gvpo_rows.COEFFICIENT][row] == 0


def test_outputs_of_one_session_are_one_response(update):
    made = update("algorithm.gsd.gvpo.grouping=prepass")
    of = [*keys()[:-1], "uid7_2_1"]
    places, metrics = place(made, of)
    placed = [of[row] for row in places]
    columns = made.columns(placed, torch.zeros(32))
    first, second = placed.index("uid7_2_0"), placed.index("uid7_2_1")
    assert columns[gvpo_rows.RESPONSE][first] == columns[gvpo_rows.RESPONSE][second]
    assert columns[gvpo_rows.SIZE][first] == 3 and metrics["gvpo/missing_sessions"] == 1


@pytest.fixture(scope="module")
def with_epochs(compose_fast):
    """(number of epochs) -> what a step asks, of a config composed once."""
    configs = {n: compose_fast(*WORDS, f"actor_rollout_ref.actor.ppo_epochs={n}")[0] for n in (1, 2)}
    return lambda epochs: Placement(configs[epochs])


@given(st.lists(st.integers(1, 16), min_size=1, max_size=8), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]))
def test_the_updates_are_those_the_config_states_whatever_the_sizes(with_epochs, sizes, workers, epochs):
    made = with_epochs(epochs)
    of = [f"uid{group}_{session}_0" for group, size in enumerate(sizes) for session in range(size)]
    places, metrics = place(made, of, workers=workers)
    assert made.mini_batches == min(4, len(sizes)) == made.flags(theta_is_old=True)["num_mini_batch"]
    assert metrics["gvpo/missing_updates"] == epochs * max(0, 4 - len(sizes))
    number = mini_batch_of(len(places), mini_batches=made.mini_batches, workers=workers)
    placed = [f"pad{at}_0_0" if row == PADDING else of[row] for at, row in enumerate(places)]
    columns = made.columns(placed, torch.zeros(len(placed)))
    for j in range(made.mini_batches):
        at = [row for row in range(len(placed)) if number[row] == j and not placed[row].startswith("pad")]
        rows_of = {group: [row for row in at if columns[gvpo_rows.GROUP][row] == group] for group in range(len(sizes))}
        # (k - 1) c summed over groups of two or more is 1: each is 1 / P of the mini-batch's mean.
        shares = [(len(rows) - 1) * float(columns[gvpo_rows.COEFFICIENT][rows[0]]) for rows in rows_of.values() if rows]
        assert not any(shares) or sum(shares) == pytest.approx(1)
        assert len({round(share, 6) for share in shares if share}) <= 1


def test_fewer_prompts_than_updates_are_warned_of_once_and_counted(update, caplog):
    made = update()
    with caplog.at_level(logging.WARNING):
        found = [place(made, keys(groups=groups))[1]["gvpo/missing_updates"] for groups in (3, 4, 2)]
    assert found == [1, 0, 2]
    (warning,) = (record.message for record in caplog.records if "missing_updates" in record.message)
    assert "3 prompts" in warning and "4 mini-batches" in warning


def test_a_step_in_pieces_has_its_updates_in_pieces(update):
    """verl samples train_batch_size / parameter_sync_step prompts at a time."""
    made = update()
    place(made, keys(groups=2), prompts=2)
    assert made.mini_batches == 1


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        (("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=3",), 12),  # 4 mini-batches of 10 do not divide
        (("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",), 10),  # all four together do
        (("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",), 16),
    ],
)
def test_slices_are_such_that_verls_fixed_micro_batches_leave_no_rest(update, words, rows):
    """verl asserts it: a worker's rows of a mini-batch for the update, all its rows for the log-probabilities."""
    fixed = ("actor_rollout_ref.actor.use_dynamic_bsz=false", "algorithm.gsd.gvpo.grouping=prepass")
    small = ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",)
    of = [f"uid{group}_{session}_0" for group in range(8) for session in range(5)]
    places, metrics = place(update(*fixed, *small, *words), of)
    assert len(places) == 4 * rows and metrics["gvpo/padding_rows"] == 4 * rows - 40


def test_figures_of_the_workers_are_named_as_ours():
    told = {"actor/gvpo/mse": 1.0, "actor/grad_norm": 2.0, "gvpo/route_whole": 0.0}
    found = strip_actor_prefix(told, ["hadw", "gvpo"])
    assert found == {"gvpo/mse": 1.0, "actor/grad_norm": 2.0, "gvpo/route_whole": 0.0}
    assert strip_actor_prefix(told, ["hadw"]) == told, "of an extension that takes no part"
