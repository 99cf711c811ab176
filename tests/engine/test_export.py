"""A LoRA checkpoint of verl's own engine, with two workers, is exported, and loads in transformers, PEFT and vLLM."""

from types import SimpleNamespace

import peft
import ppo_cases
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_gsd.evaluation.answers import read_answers
from verl_gsd.evaluation.vllm_job import EnginePlan, GenerationJob, GenerationTask, generate, missing_parts
from verl_gsd.export.checkpoint import open_checkpoint
from verl_gsd.export.weights import Origins, write_adapter, write_model

LORA = ("actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora_alpha=8")
LENGTH = 8


@pytest.fixture(scope="module")
def exported(tiny_task, tmp_path_factory, compose_fast, engine_workers):
    """The checkpoint after two updates, exported as a model in float32 and as an adapter."""
    folder = tmp_path_factory.mktemp("export")
    words = (*ppo_cases.SETTINGS, "algo=grpo", "hardware=cpu", f"task.directory={tiny_task}", *LORA)
    case = ppo_cases.case(compose_fast(*words)[0], ppo_cases.rows_of_groups(tiny_task))
    case["extra_info"]["mini_batch_size"] //= 2  # of each worker
    checkpoint = folder / "run" / "global_step_1"
    case["checkpoint"] = str(checkpoint / "actor")
    engine_workers.begin(folder, {2: {"lora": case}})()
    (folder / "run" / "latest_checkpointed_iteration.txt").write_text("1")
    for name in ("model", "adapter"):
        (folder / name).mkdir()
    with open_checkpoint(checkpoint, None) as opened:
        write_model(opened, folder / "model", "float32", Origins())
        write_adapter(opened, folder / "adapter", "float32", Origins(), str(tiny_task / "model"))
    return SimpleNamespace(folder=folder, base=tiny_task / "model")


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 25).reshape(2, 10)).logits


def test_the_merged_model_computes_what_base_and_adapter_compute(exported):
    merged = AutoModelForCausalLM.from_pretrained(exported.folder / "model")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(exported.folder / "adapter", dtype=torch.float32)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(logits(merged), logits(adapted), rtol=0, atol=1e-4)
    base = AutoModelForCausalLM.from_pretrained(exported.base, dtype=torch.float32)
    assert (logits(merged) - logits(base)).abs().max() > 0.01, "training changed it"


def test_two_engines_of_vllm_generate_what_transformers_generates(exported):
    """As on two GPUs: each engine has its own process and its share of the parts."""
    model, tokenizer = (
        kind.from_pretrained(exported.folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    chats = [[{"role": "user", "content": f"{number}+{number % 7}="}] for number in range(70)]
    prompts = [tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"] for chat in chats]
    task = GenerationTask(str(exported.folder / "bench"), prompts, 1)
    job = GenerationJob(
        **{"model": str(exported.folder / "model"), "dtype": "float32", "temperature": 0.0, "top_p": 1.0},
        **{"max_tokens": LENGTH, "seed": 0, "tensor_parallel": 1, "on_cpu": True, "revision": None, "tasks": [task]},
    )
    parts = missing_parts([task])
    assert len(parts) == 2
    generate(job, [EnginePlan(None, [part]) for part in parts], exported.folder, lambda: None)
    answers = read_answers(exported.folder / "bench", 70, 1)
    for number in (0, 1, 63, 64, 69):
        prompt = torch.tensor([prompts[number]])
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=LENGTH, do_sample=False)
        assert answers.texts[number] == [tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)]
    assert answers.tokens.max() <= LENGTH
    assert all((exported.folder / f"generation_{number}.log").is_file() for number in (0, 1))
