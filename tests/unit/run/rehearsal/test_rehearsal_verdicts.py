"""The values that the config of a run reads are among those that its reward function returns."""

import pytest
from omegaconf import OmegaConf

import verl_gsd.algorithms  # noqa: F401  # registers the extensions
from verl_gsd.run.rehearsal.references import check_references
from verl_gsd.run.rehearsal.verdicts import accuracy_warning, verdict_problems

ROWS = [{"data_source": "mine", "reward_model": {"ground_truth": "7"}, "extra_info": {"index": 0}}]
SAMPLER, HADW = {"gsd": {"sampler": {}}}, {"gsd": {"hadw": {}}}
DEMONSTRATIONS = {"gsd": {"dagrpo": {"demonstrations": {}}}}
RESCALED = {"gsd": {"hadw": {"accuracy_range": [-1, 1]}}}
RESCALED_SOURCE = {"gsd": {"hadw": {"accuracy_range": {"mine": [-1, 1]}}}}
RESCALED_OTHER = {"gsd": {"hadw": {"accuracy_range": {"other": [-1, 1]}}}}
FILTER = {"filter_groups": {"enable": True, "metric": "acc"}}


def returned_by(answer):
    """What the function that returns ``answer(is_right)`` returned for the rows."""
    return check_references(lambda solution_str, **kwargs: answer("7" in solution_str), {}, ROWS).returned


def problems(algorithm, answer):
    """Of the function that returns ``answer(is_right)``, for the settings ``algorithm``."""
    return list(verdict_problems(OmegaConf.create({"algorithm": algorithm}), returned_by(answer)))


def plain(right):
    return float(right)


def signs(right):
    return 1.0 if right else -1.0


def score_only(right):
    return {"score": float(right)}


def verdicts(right):
    return {"score": signs(right), "acc": right}


@pytest.mark.parametrize("algorithm", [{"gsd": {}}, {}, SAMPLER, HADW, DEMONSTRATIONS, FILTER])
def test_a_plain_number_and_a_verdict_are_enough(algorithm):
    assert problems(algorithm, plain) == problems(algorithm, verdicts) == []


@pytest.mark.parametrize(
    ("algorithm", "section"),
    [
        (SAMPLER, "sampler"),
        (HADW, "hadw"),
        (DEMONSTRATIONS, "dagrpo.demonstrations"),
        ({"gsd": {"budget": {}}}, "budget"),
    ],
)
@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (score_only, "no acc"),
        (signs, "acc=-1.0"),
        (lambda right: {"score": 1.0 * right, "acc": None}, "acc=None"),
        (lambda right: {"score": 1.0 * right, "acc": float("nan")}, "acc=nan"),
    ],
)
def test_a_missing_verdict_is_named_with_the_setting_that_reads_it(algorithm, section, answer, given):
    (problem,) = problems(algorithm, answer)
    assert problem.startswith(f"algorithm.gsd.{section} reads acc") and f"returns {given} for row 0" in problem
    assert f"or set algorithm.gsd.{section}=null" in problem


def test_verdicts_may_lie_in_the_range_that_the_section_rescales():
    assert problems(RESCALED, signs) == []
    (problem,) = problems(RESCALED, lambda right: 2 * signs(right))
    assert "from -1 to 1" in problem


def test_dynamic_sampling_needs_the_value_that_it_compares():
    (problem,) = problems(FILTER, score_only)
    assert problem.startswith("algorithm.filter_groups.metric=acc: ") and "metric=reward" in problem
    for metric, answer in (("reward", score_only), ("score", score_only), ("acc", signs)):
        assert problems({"filter_groups": {"enable": True, "metric": metric}}, answer) == []
    assert problems({"filter_groups": {"enable": False, "metric": "acc"}}, score_only) == []


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        (plain, None),
        (verdicts, None),
        (lambda right: 0.25 + right / 2, None),
        (signs, "acc=-1.0"),
        (score_only, "no acc"),
        (lambda right: {"score": 1.0 * right, "acc": "yes"}, "acc=yes"),
    ],
)
def test_a_function_whose_accuracies_the_run_will_lack_is_warned_of(answer, given):
    """Although no setting of the run reads them. Seeded scores hide this from the rehearsal's run."""
    warning = accuracy_warning(OmegaConf.create({"algorithm": {"gsd": {}}}), returned_by(answer))
    if given is None:
        assert warning is None
    else:
        assert f"returns {given} for row 0" in warning and "no pass@K" in warning and "Return acc" in warning


def test_a_function_without_acc_for_some_responses_is_told_that_they_count_as_wrong():
    returned = returned_by(lambda right: verdicts(1.0) if right else {"score": 0.0})
    warning = accuracy_warning(OmegaConf.create({"algorithm": {"gsd": {}}}), returned)
    assert "returns no acc for row 0" in warning and "count responses without acc as wrong" in warning
    assert "Return acc for every response" in warning and "no pass@K" not in warning


def test_accuracies_in_a_range_that_a_section_rescales_are_not_warned_of():
    assert accuracy_warning(OmegaConf.create({"algorithm": RESCALED}), returned_by(signs)) is None


def test_a_range_is_that_of_the_rows_data_source():
    assert problems(RESCALED_SOURCE, signs) == []
    assert accuracy_warning(OmegaConf.create({"algorithm": RESCALED_SOURCE}), returned_by(signs)) is None
    (problem,) = problems(RESCALED_OTHER, signs)
    assert "from 0 to 1" in problem
    assert "from 0 to 1" in accuracy_warning(OmegaConf.create({"algorithm": RESCALED_OTHER}), returned_by(signs))
