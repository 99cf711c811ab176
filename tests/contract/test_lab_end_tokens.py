"""The laboratory ends responses at the tokens at which vLLM ends them in verl's server."""

from types import SimpleNamespace

import pytest

pytest.importorskip("verl")
pytest.importorskip("vllm")

from transformers import AutoTokenizer, GenerationConfig, LlamaConfig
from verl.workers.config import RolloutConfig
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer
from vllm.sampling_params import SamplingParams
from vllm.transformers_utils.config import try_get_generation_config

from verl_gsd.lab.training.policy import end_tokens
from verl_gsd.tasks.byte_llama import build_tokenizer


def vllms_end_tokens(folder):
    """As in ``vllm/v1/engine/input_processor.py``, which reads the folder that verl names."""
    server = SimpleNamespace(config=RolloutConfig(name="vllm"))
    fields = try_get_generation_config(str(folder), trust_remote_code=False).to_diff_dict()
    fields |= vLLMHttpServer._get_override_generation_config(server)
    sampling = SamplingParams(ignore_eos=server.config.ignore_eos)
    sampling.update_from_generation_config(fields, AutoTokenizer.from_pretrained(folder).eos_token_id)
    return {sampling.eos_token_id, *sampling.stop_token_ids}


@pytest.mark.parametrize("of_model", [None, 4, [4, 5]], ids=str)
@pytest.mark.parametrize("generation", [None, {}, {"eos_token_id": 6}, {"eos_token_id": [6, 7]}], ids=str)
def test_end_tokens_are_those_of_vllm(of_model, generation, tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    LlamaConfig(eos_token_id=of_model).save_pretrained(tmp_path)
    if generation is not None:
        GenerationConfig(**generation).save_pretrained(tmp_path)
    assert end_tokens(str(tmp_path)) == vllms_end_tokens(tmp_path)
