"""Records: values of groups, fates, crashes and resumes."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from places import ROOT

from verl_gsd import chain
from verl_gsd.groups import Group
from verl_gsd.lab.training.rows import DictRows
from verl_gsd.prompts import PromptStore
from verl_gsd.records import (
    LeftGroup,
    is_silent,
    outside_sources,
    read_records,
    schema,
    step_records,
    with_valid_accuracies,
    write_step,
)
from verl_gsd.trainer.metrics import doubt, group_metrics, with_prediction
from verl_gsd.trainer.seam import Seam
from verl_gsd.trainer.step_end import end_step, step_table


def group(rewards, accuracies=None, index=7, source="math"):
    rewards = np.array(rewards, dtype=np.float64)
    accuracies = rewards if accuracies is None else np.array(accuracies, dtype=np.float64)
    return Group("uid", source, index, rewards, accuracies, np.full(len(rewards), 5))


def rows(*left, step=1, attempt=1, alpha=1.0):
    return step_records([LeftGroup(*entry) for entry in left], step=step, attempt=attempt, alpha=alpha)


def test_with_a_kl_penalty_in_the_reward_the_mass_tells_whether_a_group_is_silent():
    """Records have the rewards before the penalty, which makes equal ones differ. They do not tell the gain, either."""
    equal, unequal = group([1, 1]), group([0, 1])
    left = [LeftGroup(equal, "trained", {}, 0.5), LeftGroup(unequal, "trained", {}, 1.0)]
    left += [LeftGroup(equal, "trained", {}, 0.0), LeftGroup(unequal, "filtered"), LeftGroup(equal, "surplus")]
    penalized = step_records(left, step=1, attempt=1, alpha=1.0, kl_in_reward=True)
    assert penalized["silent"].to_pylist() == [False, False, True, True, False]
    assert penalized["gain"].null_count == len(left)
    assert penalized["kind"].to_pylist() == ["all_right", "mixed", "all_right", "mixed", "all_right"]
    metrics = group_metrics(penalized)
    assert "dial/gain/mean" not in metrics and metrics["dial/gain_share/easy"] == pytest.approx(0.5 / 1.5)
    plain = step_records(left, step=1, attempt=1, alpha=1.0)
    assert plain["silent"].to_pylist() == [True, False, True, True, True]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_figures_of_a_group(alpha):
    (row,) = rows((group([0, 1, 1, 1]), "trained"), step=3, attempt=2, alpha=alpha).to_pylist()
    sigma = np.sqrt(3 * 1) / 4
    assert row == {
        **{"step": 3, "attempt": 2, "fate": "trained", "data_source": "math", "index": 7, "size": 4, "tokens": 20},
        **{"correct": 3.0, "total": 4, "mean": 0.75, "kind": "mixed", "silent": False},
        **{"std": pytest.approx(sigma), "gain": pytest.approx(sigma ** (2 - alpha))},
        **{"hadw_anchor": None, "hadw_factor_right": None, "hadw_factor_wrong": None, "demonstrations": 0},
        **{"dagrpo_pairs": None, "dagrpo_pairs_kept": None, "dagrpo_pairs_contradicted": None},
        "dagrpo_pairs_shaped": None,
        **{"judge_failed": None, "judge_score": None, "asked": None, "silent_predicted": None},
        **{"unverified": None, "failed_rewards": 0, "distinct_answers": None, "partial": 0.0, "answers": None},
        **{"earlier": 0, "mass": None, "without_acc": 0},
    }


@pytest.mark.parametrize(
    ("rewards", "accuracies", "kind", "silent"),
    [
        ([1, 1], None, "all_right", True),
        ([0, 0], None, "all_wrong", True),
        ([0, 1], None, "mixed", False),
        ([0.7] * 7, [1] * 7, "all_right", True),
        ([0, 0.2], [1, 1], "all_right", False),
        # Without accuracies, nothing tells whether equal responses are right: 0.1 may be a bonus for their format.
        ([-1, -1], [np.nan, np.nan], "equal", True),
        ([0.1, 0.1], [np.nan, np.nan], "equal", True),
        ([0.1, 1.1], [np.nan, np.nan], "mixed", False),
        ([0.3, 0.4], [0, 0], "all_wrong", False),  # a penalty teaches where the verdicts agree
        ([1, 0.7], [1, 1], "all_right", False),
        ([0.5, 0.5], [1, 0], "mixed", True),  # the verdicts differ, and nothing is learned from it
        ([1, 0.7], [1, np.nan], "mixed", False),  # a response without acc counts as wrong
        ([1, 1], [1, np.nan], "mixed", True),
        ([0.1, 0], [0, np.nan], "all_wrong", False),
        ([1, 0.7], [2, np.nan], "mixed", False),  # not every response has a verdict
        ([1], None, "all_right", True),
        ([-1, -1], None, "equal", True),  # a verifier that returns a number: verl takes it for the accuracy too
        ([-1, -1.3], [-1, -1], "equal", False),
        ([1, -0.9], [1, 1], "all_right", False),
        ([1.2, 1.2], None, "equal", True),
        ([0.6, 0.6], None, "equal", True),  # no response passes all tests, and none fails all
        ([0.1, 0.1], None, "equal", True),
        ([0.6, 0.4], [0.6, 0.6], "equal", False),
        ([0.6, 0.4], None, "mixed", False),
    ],
)
def test_kinds_go_by_verdicts_and_silence_by_rewards(rewards, accuracies, kind, silent):
    (row,) = rows((group(rewards, accuracies), "trained"), alpha=2.0).to_pylist()
    assert (row["kind"], row["silent"]) == (kind, silent)
    assert (row["gain"] == 0) == silent


def test_an_evicted_group_is_silent_even_if_a_penalty_makes_its_rewards_differ():
    """DAPO's overlong penalty on one response per group, with algorithm.filter_groups.metric=acc."""
    penalty = np.array([0.0] * 7 + [-0.3])
    left = [
        (group(2 * np.array(verdicts) - 1 + penalty, verdicts, index=index), fate)
        for index, (verdicts, fate) in enumerate(
            [([1] * 8, "filtered"), ([1] * 8, "filtered"), ([0] * 8, "filtered"), ([1, 0] * 4, "trained")]
        )
    ]
    prompts = PromptStore()
    for index in range(4):
        prompts.observe(("math", index), 4, 8, step=1)
    table = with_prediction(rows(*left), prompts, 2, (0.5, 0.5))
    assert table["kind"].to_pylist() == ["all_right", "all_right", "all_wrong", "mixed"]
    assert table["silent"].to_pylist() == [True, True, True, False]
    assert table["gain"].to_pylist() == [0, 0, 0, table["std"][3].as_py()]
    metrics = group_metrics(table)
    assert [metrics[f"group/frac_{name}"] for name in ("mixed", "all_correct", "all_wrong")] == [0.25, 0.5, 0.25]
    assert metrics["group/silent/observed"] == metrics["group/frac_tokens_silent"] == 0.75
    assert metrics["dial/gain_share/between"] == 1


def test_the_gain_of_a_nearly_unanimous_group_has_the_floor_of_the_dial():
    near, split = [0.83, 0.8301, 0.8299, 0.83], [0, 1, 0, 1]
    table = rows((group(near), "trained"), (group(split), "trained"), alpha=2.0)
    assert table["gain"].to_pylist() == [pytest.approx(np.var(near) * 4**2), pytest.approx(1)]
    table = rows((group(near), "trained"), (group(split), "trained"), alpha=1.0)
    assert table["gain"].to_pylist() == [pytest.approx(np.std(near)), pytest.approx(0.5)]


@pytest.mark.parametrize("alpha", [0.5, 1.5, 2.0])
def test_the_gain_is_that_of_the_update_whatever_other_groups_left(alpha):
    """The scale of each source is that of its trained groups: neither evicted groups nor another source set it."""
    near, split, points = [0.83, 0.8301, 0.8299, 0.83], [0.0, 1, 0, 1], [0.0, 10, 4, 3]
    trained = [("maths", near), ("code", points), ("maths", split)]
    rewards = torch.tensor([rewards for _, rewards in trained], dtype=torch.float64)
    columns = {"data_source": torch.tensor([0, 1, 0]).repeat_interleave(4)}
    gsd = {"alpha": alpha, "ddof": 0, "eps": 0.0}
    advantages = chain.advantages(rewards.flatten(), [0] * 4 + [1] * 4 + [2] * 4, gsd, columns=columns).view(3, 4)
    left = [(group(rewards, source=source), "trained") for source, rewards in trained]
    left.insert(1, (group([-100.0, -100, -100, 3], source="maths"), "filtered"))
    gain = rows(*left, alpha=alpha).filter(pc.field("fate") == "trained")["gain"].to_numpy()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    expected = (advantages * centred).mean(dim=1)
    assert gain == pytest.approx(expected.numpy(), rel=1e-9)


@pytest.mark.parametrize("rewards", [[-1, 1, -1, 1], [2, 2, 0, 0], [100, 0, 0, 0], [0, 1, np.inf, 0]])
def test_values_outside_0_and_1_do_not_count_as_accuracies(rewards):
    (row,) = rows((group([0, 1, 0, 1], rewards), "trained")).to_pylist()
    assert (row["correct"], row["total"]) == (0, 0), "the 1s of 1 and -1 would look like all right"
    prompts = PromptStore()
    prompts.observe(("math", 7), row["correct"], row["total"], step=1)
    table = with_prediction(rows((group([0, 1, 0, 1], rewards), "trained")), prompts, 2, (1.0, 1.0))
    assert table["silent_predicted"].null_count == 1


#: Groups of a verifier that returns 1 and -1, and of one that returns 1.0 for a right answer plus 0.2 for its format.
SIGNED = ([1, 1], [1, -1], [-1, -1], [1, 1])
BONUS = ([0.2, 0.2], [1.2, 0.2], [0, 0.2], [0.2, 0])


@pytest.mark.parametrize("outcomes", [SIGNED, BONUS])
def test_one_value_outside_0_and_1_takes_the_accuracies_of_its_whole_source(outcomes):
    left = [(group(values, source="code", index=index), "trained") for index, values in enumerate(outcomes)]
    left += [(group([0, 1], index=index), "trained") for index in range(3)]
    table = with_prediction(rows(*left), PromptStore(), 1, (0.5, 0.5))
    assert table["total"].to_pylist() == [0] * 4 + [2] * 3
    assert table["correct"].to_pylist() == [0] * 4 + [1] * 3
    metrics = group_metrics(table)
    assert metrics["group/pass@2"] == 1 and metrics["dial/gain_share/between"] == 1, "those of the other source"
    alone = group_metrics(with_prediction(rows(*left[:4]), PromptStore(), 1, (0.5, 0.5)))
    assert not [name for name in alone if "pass@" in name or "gain_share" in name or "group/silent" in name]


def test_unverified_responses_are_counted_only_where_there_are_verdicts():
    signed = [replace(group(values, source="code"), unverified=1) for values in SIGNED]
    table = rows(*((one, "trained") for one in [*signed, replace(group([0, 1]), unverified=0)]))
    assert group_metrics(table)["verifier/unverified"] == 0


def a_step(seam, step, *groups):
    """The records of a step, and the state after it."""
    seam.left = [(one, "trained") for one in groups]
    _, table = step_table(seam, step=step, attempt=1, alpha=1.0)
    end_step(seam, step)
    return table


def test_a_source_stays_without_accuracies_in_later_steps_and_after_a_resume():
    right, signed, other = group([1, 1], source="code"), group([1, -1], source="code", index=8), group([0, 1])
    seam = Seam({}, PromptStore(), DictRows(), group_size=2)
    assert a_step(seam, 1, right, other)["total"].to_pylist() == [2, 2], "nothing is known yet"
    assert a_step(seam, 2, signed, right, other)["total"].to_pylist() == [0, 0, 2]
    assert [int(visits) for visits in seam.prompts.counts([("code", 7), ("code", 8), ("math", 7)])[0]] == [0, 0, 2]
    resumed = Seam({}, PromptStore(), DictRows(), group_size=2)
    resumed.prompts.load_state_dict(seam.prompts.state_dict())
    for later in (seam, resumed):
        table = a_step(later, 3, right, other)
        assert table["total"].to_pylist() == [0, 2]
        assert table["silent_predicted"].to_pylist()[0] is None and table["silent_predicted"].to_pylist()[1] > 0
        assert len(later.prompts) == 1
    assert table["kind"].to_pylist() == ["equal", "mixed"], "verdicts are compared all the same"
    assert group_metrics(table).keys() >= {f"group/frac_{name}" for name in ("all_correct", "all_wrong", "equal")}


def test_shares_of_right_and_wrong_groups_exist_only_with_accuracies():
    """A reward of 0.1 for the format and 1.1 for a right answer: the policy solves nothing yet."""
    unrated = rows(*((group([reward] * 2, [np.nan] * 2), "trained") for reward in (0.1, 0.1, 1.1)))
    metrics = group_metrics(unrated)
    assert metrics["group/frac_mixed"] == 0 and metrics["group/frac_equal"] == 1
    assert "group/frac_all_correct" not in metrics and "group/frac_all_wrong" not in metrics
    assert "group/frac_equal" not in group_metrics(rows((group([1, 1]), "trained"), (group([0, 1]), "trained")))


def test_equal_partial_credit_is_neither_right_nor_wrong():
    """A verifier that returns the share of tests passed. No response has passed more than 60% of them."""
    left = [group(values) for values in ([0.6] * 8, [0.4] * 8, [1.0] * 8, [0.0] * 8)]
    table = rows(*((one, "trained") for one in left))
    kinds = ["equal", "equal", "all_right", "all_wrong"]
    assert table["kind"].to_pylist() == kinds
    metrics = group_metrics(table)
    assert [metrics[f"group/frac_{name}"] for name in ("equal", "all_correct", "all_wrong")] == [0.5, 0.25, 0.25]
    claimed = pa.array(["all_right", "all_wrong", "all_right", "all_wrong"])
    older = table.set_column(table.schema.get_field_index("kind"), "kind", claimed)
    assert with_valid_accuracies(older)["kind"].to_pylist() == kinds
    oldest = older.set_column(table.schema.get_field_index("partial"), "partial", pa.nulls(4, pa.float64()))
    assert with_valid_accuracies(oldest)["kind"].to_pylist() == kinds, "a sum that all or none would not have"


def older_rows(*groups):
    """Records of versions that left out a group if it had a value outside [0, 1], whatever its source had before."""
    table = rows(
        *((replace(one, data_source=f"{one.data_source} {number}"), "trained") for number, one in enumerate(groups))
    )
    field = table.schema.field("data_source")
    names = pa.array([one.data_source for one in groups], pa.string())
    return table.set_column(table.schema.get_field_index("data_source"), field, names)


def test_readers_leave_out_the_accuracies_of_such_a_source_in_all_steps():
    code = [group(values, source="code", index=index) for index, values in enumerate(SIGNED)]
    older = older_rows(*code, group([0, 1]))
    assert older["total"].to_pylist() == [2, 0, 0, 2, 2], "biased: all known solve rates of code are 1"
    predicted = pa.array([0.9] * 5, pa.float64())
    older = older.set_column(older.schema.get_field_index("silent_predicted"), "silent_predicted", predicted)
    newer = rows((code[0], "trained")), rows(*((one, "trained") for one in [*code, group([0, 1])]))
    for table in (older, pa.concat_tables(newer)):
        assert outside_sources(table) == ["code"]
        read = with_valid_accuracies(table)
        changed = ["total", "correct", "silent_predicted", "kind"]
        assert read.schema.equals(table.schema) and read.drop(changed).equals(table.drop(changed))
        assert read["kind"].to_pylist()[-5:] == ["equal", "mixed", "equal", "equal", "mixed"], "also before step 2"
        assert read["kind"][0].as_py() == "equal"
        assert all(row["total"] == row["correct"] == 0 for row in read.to_pylist() if row["data_source"] == "code")
        assert read.to_pylist()[-1] == table.to_pylist()[-1], "another source keeps its accuracies"
    assert with_valid_accuracies(older)["silent_predicted"].to_pylist() == [None] * 4 + [0.9]
    without_partial = older.set_column(older.schema.get_field_index("partial"), "partial", pa.nulls(5, pa.float64()))
    assert outside_sources(without_partial) == ["code"], "files of older versions lack the column"


def test_accuracies_that_are_missing_for_another_reason_cost_no_other_group_its_own():
    earlier = replace(group([1, 0], [np.nan, np.nan]), earlier=2)
    missing = group([1, 0], [np.nan, np.nan], index=8)
    never = replace(missing, data_source="reward model")
    lost = replace(group([], index=9), failed_rewards=2)
    table = rows(*((one, "trained") for one in (earlier, never, lost, missing, group([0, 1], index=10))))
    assert table["partial"].to_pylist() == [0, None, 0, 0, 0], "null tells a missing accuracy from one outside [0, 1]"
    assert table["total"].to_pylist() == [0, 0, 0, 2, 2] and table["correct"].to_pylist() == [0, 0, 0, 0, 1]
    assert table["without_acc"].to_pylist() == [0, 2, 0, 2, 0]
    assert outside_sources(table) == [] and with_valid_accuracies(table) is table
    assert outside_sources(rows()) == []


def test_responses_of_an_earlier_visit_do_not_hide_the_verdicts_of_the_others():
    """They have no accuracy. The rewards of the others differ by a penalty on their length."""
    shaped = [1, 1, 1, 1, 1, 0.8]
    for earlier in (0, 2):
        visit = replace(group([*shaped, *[1] * earlier], [*[1] * 6, *[np.nan] * earlier]), earlier=earlier)
        (row,) = rows((visit, "trained")).to_pylist()
        assert (row["kind"], row["silent"], row["correct"], row["total"]) == ("all_right", False, 6, 6)
    (row,) = rows((replace(group([1, 0, 0], [1, 0, np.nan]), earlier=1), "trained")).to_pylist()
    assert row["kind"] == "mixed"
    (row,) = rows((replace(group([1, 0, 0], [1, np.nan, np.nan]), earlier=1), "trained")).to_pylist()
    assert (row["kind"], row["correct"], row["total"]) == ("mixed", 1, 2), "a response of the visit has no verdict"


def partly(rewards, index=7):
    """A group of the usual reward function that returns {"score": 0.0} without acc if it finds no answer."""
    return group(rewards, [1.0 if reward else np.nan for reward in rewards], index=index)


def test_a_response_without_acc_counts_as_wrong_in_every_solve_rate():
    """verl counts it as wrong in validations. Without it, a prompt solved once in four times has the rate 1."""
    seam = Seam({}, PromptStore(), DictRows(), group_size=4)
    table = a_step(seam, 1, partly([1, 0, 0, 0]), partly([0, 0, 0, 0], index=8))
    assert (table["correct"].to_pylist(), table["total"].to_pylist()) == ([1, 0], [4, 4])
    assert table["kind"].to_pylist() == ["mixed", "all_wrong"] and table["without_acc"].to_pylist() == [3, 4]
    assert table["partial"].to_pylist() == [0, 0]
    metrics = group_metrics(table)
    assert metrics["group/pass@2"] == pytest.approx((1 / 2 + 0) / 2) and metrics["dial/gain_share/hard"] == 1
    assert [values.tolist() for values in seam.prompts.counts([("math", 7), ("math", 8)])] == [[1, 1], [1, 0], [4, 4]]
    again = a_step(seam, 2, partly([1, 0, 0, 0]))
    assert again["silent_predicted"].null_count == 0, "every response has an accuracy, so a prediction is possible"
    assert doubt([replace(partly([1, 0, 0, 0]), doubtful=1)]) == {"verifier/doubtful": 1 / 4}


def test_a_source_has_accuracies_from_the_first_step_on_in_which_a_response_has_acc():
    """The memory agrees with the records. Readers of the whole run count the responses of earlier steps, too."""
    seam = Seam({}, PromptStore(), DictRows(), group_size=2)
    never = group([0.5, 0.5], [np.nan, np.nan], source="reward model")
    tables = [a_step(seam, 1, partly([0, 0]), never)]
    assert tables[0]["total"].to_pylist() == [0, 0] and len(seam.prompts) == 0, "nothing is known yet"
    tables.append(a_step(seam, 2, partly([1, 0]), never))
    resumed = Seam({}, PromptStore(), DictRows(), group_size=2)
    resumed.prompts.load_state_dict(seam.prompts.state_dict())
    for later in (seam, resumed):
        table = a_step(later, 3, partly([0, 0]), never)
        assert table["total"].to_pylist() == [2, 0] and later.prompts.rated == {"math"}
        assert [int(values[0]) for values in later.prompts.counts([("math", 7)])] == [2, 1, 4]
        assert len(later.prompts) == 1
    whole = pa.concat_tables([*tables, table])
    read = with_valid_accuracies(whole)
    assert read["total"].to_pylist() == [2, 0] * 3 and read["correct"].to_pylist() == [0, 0, 1, 0, 0, 0]
    assert read["kind"].to_pylist()[::2] == ["all_wrong", "mixed", "all_wrong"]
    assert read["partial"].to_pylist() == [0, None] * 3 and read["without_acc"].to_pylist() == [2, 2, 1, 2, 2, 2]
    assert read.schema.equals(whole.schema)


def test_readers_count_the_responses_that_version_7_left_out():
    left = [partly([1, 0, 0, 0]), partly([0, 0, 0, 0], index=8), replace(partly([1, 0, 0], index=9), earlier=1)]
    table = rows(*((one, "trained") for one in left))
    places = {name: table.schema.get_field_index(name) for name in ("total", "partial", "kind", "without_acc")}
    older = table
    for name, values in (("total", [1, 0, 1]), ("partial", [0, None, 0]), ("kind", ["mixed", "all_wrong", "mixed"])):
        older = older.set_column(places[name], name, pa.array(values, table.schema.field(name).type))
    older = older.set_column(places["without_acc"], "without_acc", pa.nulls(3, pa.int32()))
    assert with_valid_accuracies(older).equals(table)
    sixth = older.set_column(older.schema.get_field_index("earlier"), "earlier", pa.nulls(3, pa.int32()))
    read = with_valid_accuracies(sixth)
    assert read["total"].to_pylist() == [1, 0, 1], "they do not tell which responses are of an earlier visit"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["math", "code"]),
            st.lists(st.sampled_from([0.0, 1.0, 0.5, -1.0, 1.2, np.nan]), min_size=1, max_size=3),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_source_has_the_accuracies_of_all_its_responses_or_none(visits):
    groups = [
        group(np.nan_to_num(values), values, index=index, source=source)
        for index, (source, values) in enumerate(visits)
    ]
    outside = {source for source, values in visits if any(value < 0 or value > 1 for value in values)}
    accuracies = {source: np.concatenate([of for name, of in visits if name == source]) for source, _ in visits}
    for table in (rows(*((one, "trained") for one in groups)), older_rows(*groups)):
        read = with_valid_accuracies(table)
        for source, values in accuracies.items():
            of_source = read.filter(pc.equal(read["data_source"], source))
            total, correct = sum(of_source["total"].to_pylist()), sum(of_source["correct"].to_pylist())
            # A response without an acc counts as wrong, unless no response of the source has one.
            has_none = source in outside or np.isnan(values).all()
            expected = (0, 0) if has_none else (len(values), np.nansum(values))
            assert (total, correct) == pytest.approx(expected)


def test_a_group_without_responses_and_an_estimator_without_a_gain_have_nulls():
    table = rows((group([]), "failed"), (group([0, 1]), "trained"))
    empty, whole = table.to_pylist()
    assert [empty[name] for name in ("size", "total", "tokens")] == [0, 0, 0]
    assert [empty[name] for name in ("mean", "std", "kind", "silent", "gain")] == [None] * 5
    assert whole["gain"] == pytest.approx(0.5)
    assert rows((group([0, 1]), "trained"), alpha=None)["gain"].null_count == 1
    assert rows().schema.equals(schema()) and len(rows()) == 0


def test_a_reward_that_is_not_a_number_is_an_error():
    with pytest.raises(ValueError, match=r"rewards\[1\].*nan"):
        rows((group([0, np.nan]), "trained"))


def write(run, step, attempt, index=0):
    table = rows((group([0, 1], index=index), "trained"), step=step, attempt=attempt)
    return write_step(run, table, step=step, attempt=attempt)


def test_an_undeclared_column_of_an_extension_is_kept(tmp_path):
    group = Group("u", "math", 1, np.array([1.0, 0]), np.array([1.0, 0]), np.array([2, 2]))
    for step, values in ((1, {}), (2, {"tally_seen": 4.0}), (3, {"tally_seen": None, "hadw_anchor": 0.5})):
        table = step_records([LeftGroup(group, "trained", values)], step=step, attempt=1, alpha=1.0)
        write_step(tmp_path, table, step=step, attempt=1)
    found = read_records(tmp_path)
    assert found["tally_seen"].to_pylist() == [None, 4.0, None]
    assert found["hadw_anchor"].to_pylist() == [None, None, 0.5]


def test_a_resumed_attempt_replaces_later_steps(tmp_path):
    for step in range(1, 7):
        write(tmp_path, step, attempt=1)
    for step in (4, 5):  # resumed from step 3, stopped at 5: step 6 of the first attempt never was
        write(tmp_path, step, attempt=2)
    read = read_records(tmp_path)
    assert list(zip(read["step"].to_pylist(), read["attempt"].to_pylist(), strict=True)) == [
        *((step, 1) for step in (1, 2, 3)),
        *((step, 2) for step in (4, 5)),
    ]
    write(tmp_path, 3, attempt=10)  # attempt 10 comes after attempt 2, not between 1 and 2
    assert read_records(tmp_path)["attempt"].to_pylist() == [1, 1, 10]


def test_a_crashed_runs_directory_is_readable_and_a_damaged_file_is_named(tmp_path):
    assert len(read_records(str(tmp_path))) == 0
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        read_records(tmp_path / "elsewhere")
    path = write(tmp_path, 1, attempt=1)
    (path.parent / "step_000002.tmp").write_bytes(path.read_bytes()[:100])
    (tmp_path / "records" / "attempt_2").mkdir()
    (tmp_path / "records" / "attempt_1.bak").mkdir()
    assert read_records(tmp_path)["step"].to_pylist() == [1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"step_000001\.parquet: "):
        read_records(tmp_path)


def test_records_of_a_newer_version_are_rejected(tmp_path):
    path = write(tmp_path, 1, attempt=1)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"verl_gsd.records": "99"}), path)
    with pytest.raises(ValueError, match=r"step_000001\.parquet: .*\b99\b"):
        read_records(tmp_path)


def test_columns_that_an_older_version_did_not_write_are_null(tmp_path):
    path = write(tmp_path, 1, attempt=1)
    old = pq.read_table(path).drop_columns(["demonstrations", "judge_score"])
    pq.write_table(old.replace_schema_metadata({"verl_gsd.records": "1"}), path)
    write(tmp_path, 2, attempt=1)
    found = read_records(tmp_path)
    assert found.schema.names == schema().names
    # Of version 3, and as a report reads it.
    write(tmp_path / "third", 1, attempt=1)
    (path,) = (tmp_path / "third").rglob("*.parquet")
    third = pq.read_table(path).drop_columns(["unverified"])
    pq.write_table(third.replace_schema_metadata({"verl_gsd.records": "3"}), path)
    assert read_records(tmp_path / "third", ["step", "unverified"]).to_pylist() == [{"step": 1, "unverified": None}]
    # Of version 4.
    write(tmp_path / "fourth", 1, attempt=1)
    (path,) = (tmp_path / "fourth").rglob("*.parquet")
    fourth = pq.read_table(path).drop_columns(["failed_rewards"])
    pq.write_table(fourth.replace_schema_metadata({"verl_gsd.records": "4"}), path)
    assert read_records(tmp_path / "fourth")["failed_rewards"].to_pylist() == [None]
    assert found["demonstrations"].to_pylist() == [None] * (len(found) // 2) + [0] * (len(found) // 2)


#: Columns that versions 7 and 8 added.
_NEW = ("dagrpo_pairs_shaped", "partial", "answers", "earlier", "mass", "without_acc")


@pytest.mark.parametrize("run", ["dagrpo", "grpo", "gvpo_whole", "hadw_dapo"])
def test_records_of_runs_from_before_extensions_declared_their_columns_are_read(tmp_path, run):
    kept = ROOT / "tests" / "support" / "golden" / "data" / run / "records.parquet"
    (tmp_path / "records" / "attempt_1").mkdir(parents=True)
    old = tmp_path / "records" / "attempt_1" / "step_000001.parquet"
    content = pq.read_table(kept)
    older = content.drop_columns([name for name in ("silent", *_NEW) if name in content.schema.names])
    pq.write_table(older, old)  # version 5 and older
    wanted, found = pq.read_table(old), read_records(tmp_path)
    missing = set(found.schema.names) - set(wanted.schema.names)
    assert missing == {"silent", *_NEW} and found.schema.equals(schema())
    assert all(found[name].null_count == len(found) for name in missing)
    assert found.select(wanted.schema.names).equals(wanted)


def test_a_full_disk_leaves_no_incomplete_file(tmp_path, monkeypatch):
    def full_disk_stub(table, where, **_):
        where.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk_stub)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, 1, attempt=1)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_tokens_of_groups_with_a_demonstration_are_not_silent():
    """The report says the same of them. Dynamic sampling can still evict such a group."""
    joined = replace(group([0, 0]), demonstrations=1)
    table = rows(*((one, "trained") for one in (joined, joined, group([1, 0]), group([1, 1]))))
    assert table["silent"].to_pylist() == [True, True, False, True], "the column is about the responses alone"
    assert is_silent(table).tolist() == [False, False, False, True]
    assert group_metrics(table)["group/frac_tokens_silent"] == 0.25
    assert group_metrics(rows((joined, "filtered"), (group([1, 0]), "trained")))["group/frac_tokens_silent"] == 0.5


def test_a_demonstration_teaches_nothing_beside_responses_that_are_all_right():
    """With demonstrations.mode=always, every group has one. Where the mass is known, it tells."""
    joined = [replace(group(rewards), demonstrations=1) for rewards in ([1, 1], [0, 0], [1, 1], [0, 0])]
    table = rows(*((one, "trained") for one in joined))
    assert is_silent(table).tolist() == [True, False, True, False]
    mass = pa.array([0.0, 0.0, 0.5, 0.5])
    known = table.set_column(table.schema.get_field_index("mass"), table.schema.field("mass"), mass)
    assert is_silent(known).tolist() == [True, True, False, False]


def test_the_reward_of_all_responses_is_there_if_a_demonstration_can_have_replaced_one():
    joined, alone = replace(group([0, 0]), demonstrations=1), group([1, 0])
    assert group_metrics(rows((joined, "trained"), (alone, "trained")))["group/reward/generated"] == 0.25
    assert "group/reward/generated" not in group_metrics(rows((alone, "trained")))


def test_metrics_count_every_fate_once():
    table = rows(
        (group([0, 0, 0, 1]), "trained"),
        (group([0, 1, 1, 1]), "trained"),
        (group([0] * 4), "filtered"),
        (group([1] * 4), "filtered"),
        (group([0, 1]), "surplus"),
        (group([1]), "stale"),
        (group([]), "failed"),
    )
    metrics = group_metrics(table)
    assert {name: metrics[f"group/count/{name}"] for name in ("trained", "filtered", "surplus", "stale", "failed")} == {
        **{"trained": 2, "filtered": 2, "surplus": 1, "stale": 1, "failed": 1}
    }
    assert metrics["group/count/one_sample"] == 1
    assert metrics["group/frac_mixed"] == 3 / 6
    assert metrics["group/frac_all_correct"] == 2 / 6
    assert metrics["group/frac_all_wrong"] == 1 / 6
    assert metrics["group/reward/generated"] == pytest.approx((1 + 3 + 0 + 4 + 1 + 1) / 19), (
        "per response, not per group"
    )
    batch = rows((group([0, 0, 0, 1]), "trained"), (group([]), "failed"))
    assert "group/reward/generated" not in group_metrics(batch), "verl's own mean is that of all responses"
    sigmas = [np.sqrt(3) / 4, np.sqrt(3) / 4, 0, 0, 0.5, 0]
    assert metrics["group/std/mean"] == metrics["dial/gain/mean"] == pytest.approx(np.mean(sigmas))
    assert metrics["group/std/p50"] == pytest.approx(np.median(sigmas))
    assert metrics["group/frac_tokens_silent"] == pytest.approx((20 + 20 + 5) / (20 * 4 + 10 + 5))
    share = np.array([0.5, 0.5, 0])  # of the gradient: the surplus group has none
    for name, value in zip(("hard", "easy", "between"), share, strict=True):
        assert metrics[f"dial/gain_share/{name}"] == pytest.approx(value)


def test_pass_at_k_of_the_groups_is_without_bias():
    table = rows((group([0, 0, 0, 1]), "trained"), (group([1, 1, 1, 1]), "filtered"), (group([]), "failed"))
    metrics = group_metrics(table)
    assert metrics["group/pass@2"] == pytest.approx((1 / 2 + 1) / 2)  # 3 of the 6 pairs have the right response
    assert metrics["group/pass@4"] == pytest.approx(1)
    assert "group/pass@8" not in metrics


@pytest.mark.parametrize(
    "other",
    [
        [1],  # a mean over larger groups alone would be biased if a budget gives hard prompts more rollouts
        [0.5, 1, 1, 1],
        [0.5, 0.5, 1, 1],  # the sum is a whole number
    ],
)
def test_there_is_no_pass_at_k_if_it_would_be_biased(other):
    metrics = group_metrics(rows((group([0, 0, 0, 1]), "trained"), (group(other), "trained")))
    assert not [name for name in metrics if name.startswith("group/pass@")]


def test_distinct_answers_are_averaged_over_the_groups_whose_verifier_returns_them():
    table = rows(
        (replace(group([0, 0, 1]), distinct_answers=3), "trained"),
        (replace(group([1, 1, 1]), distinct_answers=1), "filtered"),
        (group([0, 1]), "trained"),
    )
    assert table["distinct_answers"].to_pylist() == [3, 1, None]
    assert group_metrics(table)["group/answers/distinct"] == 2
    assert "group/answers/distinct" not in group_metrics(rows((group([0, 1]), "trained")))


def test_the_share_of_unverified_responses_counts_only_verifiers_that_report_it():
    silent = group([0, 1]), "trained"
    assert "verifier/unverified" not in group_metrics(rows(silent))
    reported = [
        (replace(group([0, 0, 0, 1]), unverified=2), "filtered"),
        (replace(group([1] * 4), unverified=0), "surplus"),
    ]
    none = replace(group([]), unverified=None), "failed"
    table = rows(silent, *reported, none)
    assert table["unverified"].to_pylist() == [None, 2, 0, None]
    assert group_metrics(table)["verifier/unverified"] == 2 / 8


def test_the_share_of_doubtful_responses_counts_only_verifiers_that_report_it():
    assert doubt([]) == doubt([group([0, 1])]) == doubt([replace(group([]), doubtful=None)]) == {}
    reported = [replace(group([0, 0, 0, 1]), doubtful=3), replace(group([1] * 4), doubtful=0)]
    assert doubt([group([0, 1]), *reported, group([])]) == {"verifier/doubtful": 3 / 8}
    assert doubt([replace(group([1, -1]), doubtful=1)]) == {}, "these are no accuracies"


def test_silence_is_predicted_from_earlier_visits_only():
    prompts = PromptStore()
    left = (group([1] * 8, index=1), "trained"), (group([0, 1] * 4, index=2), "trained"), (group([], index=1), "failed")
    table = with_prediction(rows(*left), prompts, 2, (1.0, 1.0))
    assert table["silent_predicted"].to_pylist() == [None] * 3
    assert "group/silent/predicted" not in group_metrics(table)
    prompts.observe(("math", 1), 8, 8, step=1)
    exact = np.prod([(9 + i) / (10 + i) for i in range(8)])  # all right under Beta(9, 1)
    exact += np.prod([(1 + i) / (10 + i) for i in range(8)])
    table = with_prediction(rows(*left), prompts, 2, (1.0, 1.0))
    assert table.schema.equals(schema())
    assert table["silent_predicted"].to_pylist() == [pytest.approx(exact), None, None]
    metrics = group_metrics(table)
    assert metrics["group/silent/observed"] == 1, "of the prompts visited before"
    assert metrics["group/silent/predicted"] == pytest.approx(exact)


@pytest.mark.parametrize("accuracies", [[0.5] * 8, [0.5] * 2 + [1.0] * 3, [0.25] * 4])
def test_partial_credit_is_no_prediction_even_where_it_adds_up_to_a_whole_number(accuracies):
    seam = Seam({}, PromptStore(), DictRows(), group_size=8)
    seam.left = [(group(accuracies), "trained")]
    end_step(seam, step=1)
    (visits,), (correct,), (total,) = seam.prompts.counts([("math", 7)])
    assert (visits, correct, total) == (1, sum(accuracies), len(accuracies)) and correct == round(correct)
    table = with_prediction(rows((group([0, 1]), "trained")), seam.prompts, 2, (1.0, 1.0))
    assert table["silent_predicted"].to_pylist() == [None]


def test_a_prediction_forgets_as_the_memory_does_and_starts_from_its_prior():
    prompts = PromptStore(half_life=4)
    prompts.observe(("math", 7), 2, 2, step=1)
    (found,) = with_prediction(rows((group([1, 1]), "trained")), prompts, 9, (2.0, 1.0))["silent_predicted"].to_pylist()
    a, b = 2 + 2 / 4, 1.0  # two half-lives later
    assert found == pytest.approx((a * (a + 1) + b * (b + 1)) / ((a + b) * (a + b + 1)))


def test_no_name_of_a_metric_makes_verl_reduce_it_in_another_way():
    """verl takes the maximum, minimum or sum of a metric whose name has such a syllable."""
    prompts = PromptStore()
    prompts.observe(("math", 7), 1, 2, step=0)
    reported = replace(group([0, 1]), unverified=1)
    names = group_metrics(with_prediction(rows((reported, "trained")), prompts, 1, (1.0, 1.0))).keys()
    assert "verifier/unverified" in names
    assert len(names) >= 17
    for name, syllable in itertools.product(names, ("max", "min", "sum", "total")):
        assert syllable not in name


def test_numpys_booleans_and_numbers_are_values_of_a_column():
    left = [
        LeftGroup(group([1, 0]), "trained", {"mine_flag": np.bool_(True), "mine_count": np.int32(3), "mine_is": False})
    ]
    table = step_records(left, step=1, attempt=1, alpha=1.0)
    assert [table[name].to_pylist() for name in ("mine_flag", "mine_count", "mine_is")] == [[1.0], [3.0], [0.0]]
