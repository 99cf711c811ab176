"""verl's own dataset reads every data file that our checks pass, and fails on the others or cannot train on them."""

import re

import datasets
import pytest
from data_cases import LEFT_OUT, RIGHT, WRONG, parquet, row
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.utils.dataset.rl_dataset import RLHFDataset

from verl_gsd.errors import ConfigError
from verl_gsd.run.checks import validate
from verl_gsd.run.checks.data_files import FILE_KEYS, prompt_problem
from verl_gsd.run.checks.prompt_lengths import check_prompts


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    """``datasets`` keeps a copy of what it loads; none of these is kept."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def check(compose_fast, tiny_task):
    """Both stages that come before Ray, without what verl says of other keys."""

    def check(*words):
        config, line = compose_fast(
            "algo=grpo",
            "task=arithmetic",
            "hardware=cpu",
            f"task.directory={tiny_task}",
            "data.train_batch_size=1",
            "data.max_prompt_length=500",
            *words,
        )
        validate.validate(config, line)
        found = check_prompts(config, remote=False)
        validate.raise_problems(found.problems)
        return found.messages

    return check


def named(files):
    return f"[{','.join(map(str, files))}]" if isinstance(files, list) else str(files)


def load(files, tiny_task, config):
    """verl's own dataset of the files, with the model's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_task / "model")
    files = [str(file) for file in files] if isinstance(files, list) else str(files)
    settings = OmegaConf.create({"filter_overlong_prompts": False, "max_prompt_length": 500, **config})
    return tokenizer, RLHFDataset(files, tokenizer, settings)


@pytest.mark.parametrize("name", RIGHT)
def test_a_file_that_passes_is_read_by_verl(check, tiny_task, tmp_path, name):
    make, config = RIGHT[name]
    files = make(tmp_path)
    words = [f"data.{setting}={value}" for setting, value in config.items()]
    assert check(*(f"{key}={named(files)}" for key in FILE_KEYS), *words) == []
    _, data = load(files, tiny_task, config)
    assert prompt_problem(data[0]["raw_prompt"]) is None
    assert "ground_truth" in data[0]["reward_model"] and data[0]["data_source"] == "sums"


#: Of WRONG, those that verl loads without an error; why each fails or harms the training.
LOADED = {
    "text": "letters are taken for messages",
    "JSON text": "letters are taken for messages",
    "one message": "names of fields are taken for messages",
    "texts": "no chat template takes them",
    "no role": "no chat template takes them",
    "no content": "a chat template leaves it out or fails",
    "a number": "a chat template leaves it out or fails",
    "no answer": "the reward manager fails",
    "an answer as text": "the reward manager fails",
    "JSON without an answer": "the reward manager fails",
}
#: Of WRONG, those that fail at a row after the first.
LATER = {"an empty prompt": 1, "no prompt": 1, "a line in Latin-1": 1}


@pytest.mark.parametrize("name", [name for name in WRONG if name not in LOADED])
def test_verl_fails_on_the_others(tiny_task, tmp_path, name):
    with pytest.raises(Exception) as error:
        tokenizer, data = load(WRONG[name][0](tmp_path), tiny_task, {})
        tokenizer.apply_chat_template(data[LATER.get(name, 0)]["raw_prompt"], add_generation_prompt=True)
    assert not isinstance(error.value, AssertionError)


@pytest.mark.parametrize("name", LOADED)
def test_verl_loads_files_that_training_cannot_use(tiny_task, tmp_path, name):
    """Why those are rejected here. If verl checks them itself, our check may go."""
    _, data = load(WRONG[name][0](tmp_path), tiny_task, {})
    assert len(data) > 0


def test_a_reward_model_needs_no_answers(check, tmp_path):
    file = parquet(tmp_path, [row(reward_model=LEFT_OUT, data_source=LEFT_OUT)])
    words = [f"reward.reward_model.{word}" for word in ("enable=true", "enable_resource_pool=true", "nnodes=1")]
    words.append("reward.reward_model.rollout.name=vllm")
    model = f"reward.reward_model.model_path={tmp_path}"
    function = "reward.custom_reward_function.path=null"
    check(f"data.train_files={file}", f"data.val_files={file}", *words, model, function)


def test_a_home_directory_that_verl_would_not_find_is_rejected(check, tiny_task, tmp_path, monkeypatch):
    """A shell expands ~/x. Within a list nobody does."""
    monkeypatch.setenv("HOME", str(tmp_path))
    parquet(tmp_path, [row()])
    check("data.val_files=~/mine.parquet")
    with pytest.raises(FileNotFoundError):
        load("~/mine.parquet", tiny_task, {})
    with pytest.raises(ConfigError, match=r"data\.val_files=~/mine\.parquet: .* ~ "):
        check('data.val_files=["~/mine.parquet"]')


def test_of_a_large_file_the_first_rows_are_checked_at_once_and_every_prompt_later(compose_fast, tiny_task, tmp_path):
    rows = [row()] * 1500 + [row(prompt=[{"role": "", "content": "x"}])]
    words = ["algo=grpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}"]
    config, line = compose_fast(*words, f"data.train_files={parquet(tmp_path, rows)}")
    validate.validate(config, line)
    (problem,) = check_prompts(config).problems
    assert re.search(r"row 1500 .*prompt .*message 0 .*role", problem)
