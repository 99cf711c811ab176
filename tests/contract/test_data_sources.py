"""verl has reward functions for the sources that our check knows, and runs no text of the data as code in our runs."""

import ast
import asyncio
import inspect
import pickle
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytest.importorskip("verl")

from verl.trainer.ppo import reward
from verl.trainer.ppo.reward import load_reward_manager
from verl.utils.reward_score import default_compute_score

from verl_gsd.errors import ConfigError
from verl_gsd.lab.training.verifier import InlineVerifier
from verl_gsd.run import our_runs
from verl_gsd.run.checks.data_files import check_data_file
from verl_gsd.run.checks.data_sources import VERL_PREFIX, VERL_SOURCES
from verl_gsd.run.rehearsal.seeded_rewards import real_function


def test_verl_knows_exactly_our_list_of_sources():
    from verl.utils import reward_score

    tree = ast.parse(inspect.getsource(reward_score.default_compute_score))
    tests = [node.test for node in ast.walk(tree) if isinstance(node, ast.If)]
    about_source = [test for test in tests if "data_source" in ast.unparse(test)]
    texts = [node.value for test in about_source for node in ast.walk(test) if isinstance(node, ast.Constant)]
    assert set(texts) == VERL_SOURCES | {VERL_PREFIX}
    assert f"data_source.startswith('{VERL_PREFIX}')" in ast.unparse(tree)


def test_verl_raises_for_any_other_source():
    with pytest.raises(NotImplementedError, match="mine"):
        default_compute_score("mine", "1", "1")


#: A ground truth that writes a file when verl's grader of numina evaluates it. It looks like mathematics with a pi.
CODE = r"exec(bytes.fromhex('{code}'))#\pi"


@pytest.fixture
def run(compose_fast, tiny_task):
    """(further words) -> the config of a run whose reward function verl chooses by data_source."""
    words = ("algo=gsd", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}")
    own = ("reward.custom_reward_function.path=null",)
    return lambda *more: compose_fast(*words, *own, *more)[0]


@pytest.fixture
def swapped(tmp_path, run):
    """(the row that verl reads, the file that its ground truth writes): the data's owner replaced the checked file."""
    mark, checked = tmp_path / "ran", tmp_path / "train.parquet"
    row = {"data_source": "openai/gsm8k", "prompt": [{"role": "user", "content": "3 + 4"}]}
    row |= {"reward_model": {"style": "rule", "ground_truth": "7"}, "extra_info": {"index": 0}}
    pq.write_table(pa.Table.from_pylist([row]), checked)
    assert list(check_data_file("data.train_files", str(checked), run())) == []
    code = f"open({str(mark)!r}, 'w')".encode().hex()
    row |= {
        "data_source": "numina_olympiads",
        "reward_model": {"style": "rule", "ground_truth": CODE.format(code=code)},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "other.parquet")
    (tmp_path / "other.parquet").replace(checked)
    (read,) = pq.read_table(checked).to_pylist()
    return read, mark


@pytest.fixture
def score(monkeypatch):
    """(config, row) -> the score of a response, from the reward manager that verl loads in a worker of our run."""
    monkeypatch.setenv(our_runs.MARK, "1")

    def score(config, row):
        async def in_a_loop():
            return load_reward_manager(config, tokenizer=object()).compute_score

        compute_score = pickle.loads(pickle.dumps(asyncio.run(in_a_loop())))  # the manager ``remote`` sends it
        answer = r"It is \boxed{7} #### 7"
        truth = row["reward_model"]["ground_truth"]
        return compute_score(data_source=row["data_source"], solution_str=answer, ground_truth=truth, extra_info={})

    return score


@pytest.mark.parametrize("manager", ["naive", "dapo", "gdpo", "rate_limited"])
def test_a_file_that_is_replaced_after_the_check_does_not_run(run, swapped, score, manager):
    row, mark = swapped
    config = run(f"reward.reward_manager.name={manager}")
    with pytest.raises(
        ConfigError, match=r"data_source=numina_olympiads: .* Set reward\.custom_reward_function\.path="
    ):
        score(config, row)
    assert not mark.exists()
    assert score(config, {"data_source": "openai/gsm8k", "reward_model": {"ground_truth": "7"}}) == 1.0


def test_the_laboratory_and_rehearsals_do_not_run_it_either(run, swapped):
    row, mark = swapped
    failure = InlineVerifier(run(), SimpleNamespace(decode=lambda *_, **__: r"\boxed{7}")).reward(row, [1]).failure
    assert "data_source=numina_olympiads" in failure.describe()
    with pytest.raises(ConfigError, match="data_source=numina_olympiads"):
        real_function(None, None)(row["data_source"], r"\boxed{7}", row["reward_model"]["ground_truth"])
    assert not mark.exists()


def test_whoever_names_verls_function_has_it_as_it_is(run, swapped, score):
    row, mark = swapped
    named = ("path=pkg://verl.utils.reward_score", "name=default_compute_score")
    score(run(*(f"reward.custom_reward_function.{word}" for word in named)), row)
    assert mark.exists(), "verl still evaluates such texts, so that the protection is needed"


def test_a_run_that_does_not_use_us_keeps_verls_function(run, monkeypatch):
    monkeypatch.delenv(our_runs.MARK, raising=False)
    assert reward.get_default_compute_score("naive") is default_compute_score
