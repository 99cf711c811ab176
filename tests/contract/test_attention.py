"""Attention over packed rows in verl's FSDP engine: how it is installed, and which models are rejected."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, FalconConfig, LlamaConfig
from transformers import masking_utils as masks
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from verl.utils import tensordict_utils as tu

from verl_gsd.trainer.attention import NotKeptApartError, install


class StubOfAnEngine:
    """Stub of verl's engine that runs a model on a micro-batch packed into one row."""

    def __init__(self, model, **config):
        self.model, self.model_config = model, SimpleNamespace(hf_config=model.config)

    def forward_step(self, micro_batch, loss_function=None, forward_only=True):
        rows = micro_batch["input_ids"].unbind()
        positions = torch.cat([torch.arange(len(row)) for row in rows]).unsqueeze(0)
        with torch.no_grad():
            return self.model(input_ids=torch.cat(rows).unsqueeze(0), position_ids=positions, use_cache=False).logits[0]


@pytest.fixture
def installed():
    """Installs our attention in transformers and in the stub, and restores transformers' own."""
    before = (masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"], ALL_ATTENTION_FUNCTIONS["sdpa"])
    install(SimpleNamespace(FSDPEngineWithLMHead=StubOfAnEngine))
    yield
    masks.ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", before[0])
    ALL_ATTENTION_FUNCTIONS.register("sdpa", before[1])


def test_a_model_that_does_not_keep_packed_sequences_apart_is_rejected(installed):
    """Falcon creates its mask without position ids, so its packed sequences would silently attend to each other."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 64}
    models = {"falcon": FalconConfig(**sizes, alibi=False), "llama": LlamaConfig(**sizes, intermediate_size=48)}
    rows = [torch.randint(0, 64, (length,)) for length in (5, 3)]
    one, several = (tu.list_of_dict_to_tensordict([{"input_ids": row} for row in of]) for of in (rows[:1], rows))
    for name, config in models.items():
        engine = StubOfAnEngine(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval())
        engine.forward_step(one)
        if name == "falcon":
            with pytest.raises(NotKeptApartError, match="use_remove_padding=false") as error:
                engine.forward_step(several)
            assert "falcon" in str(error.value)
        else:
            engine.forward_step(several)
        tu.assign_non_tensor(several, use_remove_padding=False)
        engine.forward_step(several)
        tu.assign_non_tensor(several, use_remove_padding=True)
