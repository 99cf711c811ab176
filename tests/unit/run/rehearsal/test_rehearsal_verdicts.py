"""The values that the config of a run reads are among those that its reward function returns."""

import pytest
from omegaconf import OmegaConf

import verl_gsd.algorithms  # noqa: F401  # registers the extensions
from verl_gsd.run.rehearsal.references import check_references
from verl_gsd.run.rehearsal.verdicts import verdict_problems

ROWS = [{"data_source": "mine", "reward_model": {"ground_truth": "7"}, "extra_info": {"index": 0}}]
SAMPLER, HADW = {"gsd": {"sampler": {}}}, {"gsd": {"hadw": {}}}
DEMONSTRATIONS = {"gsd": {"dagrpo": {"demonstrations": {}}}}
RESCALED = {"gsd": {"hadw": {"accuracy_range": [-1, 1]}}}
FILTER = {"filter_groups": {"enable": True, "metric": "acc"}}


def problems(algorithm, answer):
    """Of the function that returns ``answer(is_right)``, for the settings ``algorithm``."""
    config = OmegaConf.create({"algorithm": algorithm})
    references = check_references(lambda solution_str, **kwargs: answer("7" in solution_str), {}, ROWS)
    return list(verdict_problems(config, references.returned))


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
