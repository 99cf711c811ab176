"""The sources for which verl has a reward function are those that our check knows."""

import ast
import inspect

import pytest

from verl_gsd.run.checks.data_sources import VERL_PREFIX, VERL_SOURCES


def test_verl_knows_exactly_our_list_of_sources():
    from verl.utils import reward_score

    tree = ast.parse(inspect.getsource(reward_score.default_compute_score))
    tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.If)]
    about_source = [test for test in tests if "data_source" in ast.unparse(test)]
    texts = [node.value for test in about_source for node in ast.walk(test) if isinstance(node, ast.Constant)]
    assert set(texts) == VERL_SOURCES | {VERL_PREFIX}
    assert f"data_source.startswith('{VERL_PREFIX}')" in ast.unparse(tree)


def test_verl_raises_for_any_other_source():
    from verl.utils.reward_score import default_compute_score

    with pytest.raises(NotImplementedError, match="mine"):
        default_compute_score("mine", "1", "1")
