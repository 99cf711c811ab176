"""A model's own code runs in verl's reward workers only if the user trusts it."""

import inspect
import json
import shutil
from types import SimpleNamespace

import pytest

pytest.importorskip("verl")

from verl.experimental.reward_loop import reward_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

from verl_gsd.trainer import reward_tokenizers

#: A tokenizer class of the model's author. Importing it writes a file.
CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path({mark!r}).touch()
class TheirTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture
def model_with_code(tiny_task, tmp_path, monkeypatch):
    """(name) -> (the folder of a model whose tokenizer has code, the file that the code writes)."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def make(name):
        folder, mark = tmp_path / name, tmp_path / f"{name}_ran"
        shutil.copytree(f"{tiny_task}/model", folder)
        (folder / f"{name}_code.py").write_text(CODE.format(mark=str(mark)))
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["auto_map"] = {"AutoTokenizer": [None, f"{name}_code.TheirTokenizer"]}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        return folder, mark

    return make


@pytest.fixture
def started(compose_fast, tiny_task):
    """(policy, reward model, trusted) -> verl's reward worker after its start, in this process."""

    def start(policy, reward_model, trusted):
        words = [f"actor_rollout_ref.model.path={policy}", f"actor_rollout_ref.model.trust_remote_code={trusted}"]
        words += ["reward.reward_model.enable=true", f"reward.reward_model.model_path={reward_model}"]
        words += ["reward.reward_model.rollout.name=vllm", "reward.custom_reward_function.path=null"]
        line = ("algo=gvpo", "task=arithmetic", "hardware=cpu", f"task.directory={tiny_task}", *words)
        worker = object.__new__(RewardLoopWorker)
        worker.config, worker.reward_router_address = compose_fast(*line)[0], None
        worker._init_reward_fn()
        return worker

    return start


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_both_models_runs_only_if_the_user_trusts_it(model_with_code, started, trusted):
    (policy, of_policy), (reward_model, of_reward_model) = model_with_code("policy"), model_with_code("scorer")
    worker = started(policy, reward_model, trusted)
    assert (of_policy.exists(), of_reward_model.exists()) == (trusted, trusted)
    assert worker.input_tokenizer.decode(worker.input_tokenizer.encode("1+1", add_special_tokens=False)) == "1+1"
    assert worker.reward_model_tokenizer.eos_token


def test_other_callers_of_the_modules_function_do_not_run_code():
    """Also if a start fails, trust does not outlast it."""
    asked = []

    class WorkerStub:
        config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(model={"trust_remote_code": True}))

        def _init_reward_fn(self):
            module.hf_tokenizer("a", trust_remote_code=True)
            raise OSError

    module = SimpleNamespace(
        RewardLoopWorker=WorkerStub, hf_tokenizer=lambda path, **named: asked.append(named["trust_remote_code"])
    )
    reward_tokenizers.install(module)
    with pytest.raises(OSError):
        WorkerStub()._init_reward_fn()
    module.hf_tokenizer("a", trust_remote_code=True)
    assert asked == [True, False]


def test_the_patch_is_still_needed_because_verl_trusts_every_model():
    source = inspect.getsource(inspect.unwrap(RewardLoopWorker._init_reward_fn))
    assert source.count("trust_remote_code=True") == source.count("hf_tokenizer(") == 2
    assert inspect.unwrap(reward_loop.hf_tokenizer) is not reward_loop.hf_tokenizer
