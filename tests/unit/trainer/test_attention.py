"""Attention over packed rows equals attention with transformers' T x T mask, without creating such a mask."""

import importlib.util
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config, Qwen3Config
from transformers import masking_utils as masks
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from verl_gsd.config import attention as environment
from verl_gsd.trainer.attention import Blocks, packed_attention, packed_mask

LENGTHS = (5, 1, 9, 2, 1)
T = sum(LENGTHS)


@pytest.fixture
def installed():
    """Replaces transformers' attention ``sdpa`` by ours, and restores it."""
    before = (masks.ALL_MASK_ATTENTION_FUNCTIONS["sdpa"], ALL_ATTENTION_FUNCTIONS["sdpa"])
    masks.ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", packed_mask)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", packed_attention)
    yield
    masks.ALL_MASK_ATTENTION_FUNCTIONS.register("sdpa", before[0])
    ALL_ATTENTION_FUNCTIONS.register("sdpa", before[1])


def packed_function(base, lengths=LENGTHS):
    """The mask function ``base`` within each packed sequence, as transformers builds it."""
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    packed = masks.find_packed_sequence_indices(positions)
    return base if packed is None else masks.and_masks(base, masks.packed_sequence_mask_function(packed))


def arguments(function, length=T):
    return {"batch_size": 1, "q_length": length, "kv_length": length, "mask_function": function}


PATTERNS = {
    "causal": masks.causal_mask_function,
    "a window of 3": masks.sliding_window_causal_mask_function(3),
    "a window of 1": masks.sliding_window_causal_mask_function(1),
    "a window longer than any sequence": masks.sliding_window_causal_mask_function(50),
    "chunks of 4": masks.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.int64)),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_outputs_and_gradients_equal_those_with_the_full_mask(pattern, kv_heads):
    function = packed_function(PATTERNS[pattern])
    whole = masks.sdpa_mask(**arguments(function), allow_is_causal_skip=False)
    blocks = packed_mask(**arguments(function), allow_is_causal_skip=False)
    assert isinstance(blocks, Blocks) and sum(blocks.lengths) == T
    layer = torch.nn.Module()
    layer.num_key_value_groups = 4 // kv_heads
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, heads, T, 8, generator=generator, dtype=torch.float64) for heads in (4, kv_heads, kv_heads)
    )
    upstream = torch.randn(1, T, 4, 8, generator=generator, dtype=torch.float64)
    found = []
    for attend, mask in ((packed_attention, blocks), (sdpa_attention_forward, whole)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        output, weights = attend(layer, *leaves, mask, scaling=0.3)
        assert weights is None
        (output * upstream).sum().backward()
        found.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_causal_blocks_are_recognised_and_have_no_mask():
    for pattern in ("causal", "a window longer than any sequence"):
        blocks = packed_mask(**arguments(packed_function(PATTERNS[pattern])), allow_is_causal_skip=False)
        assert blocks.lengths == list(LENGTHS) and blocks.masks == [None] * len(LENGTHS)
    blocks = packed_mask(**arguments(packed_function(PATTERNS["a window of 3"])), allow_is_causal_skip=False)
    assert [mask.shape[-1] for mask in blocks.masks] == list(LENGTHS)


def test_rows_that_are_not_packed_use_transformers_own_mask():
    causal = masks.causal_mask_function
    assert packed_mask(**arguments(causal)) is None, "one causal sequence needs no mask"
    padding = torch.ones(2, T, dtype=torch.bool)
    padding[1, -3:] = False
    padded = arguments(causal) | {"batch_size": 2, "attention_mask": padding}
    torch.testing.assert_close(packed_mask(**padded), masks.sdpa_mask(**padded))
    both_ways = arguments(masks.bidirectional_mask_function)
    torch.testing.assert_close(packed_mask(**both_ways), masks.sdpa_mask(**both_ways))


def test_bidirectional_blocks_keep_their_mask():
    """Attention within an image is bidirectional, even inside a causal text."""
    image = torch.full((1, T), -1)
    image[0, 7:10] = 0
    function = packed_function(masks.or_masks(masks.causal_mask_function, masks.blockwise_overlay(image)))
    blocks = packed_mask(**arguments(function), allow_is_causal_skip=False)
    assert blocks.lengths == list(LENGTHS)
    assert blocks.masks[2][0, 0, 1, 3], "the third sequence begins at 6"


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 64}
MODELS = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
    "gemma3, windows of 4 in every other layer": Gemma3TextConfig(
        **SIZES, head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
    ),
}


class LargestTensor(TorchDispatchMode):
    """Stores the number of elements of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return output


@pytest.mark.parametrize("name", MODELS)
def test_models_keep_packed_sequences_apart(installed, name):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], attn_implementation="sdpa").double().eval()
    ids = torch.randint(0, 64, (1, T))
    positions = torch.cat([torch.arange(length) for length in LENGTHS]).unsqueeze(0)
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        apart = [model(input_ids=part, use_cache=False).logits[0] for part in ids.split(LENGTHS, dim=1)]
    torch.testing.assert_close(packed, torch.cat(apart), rtol=1e-10, atol=1e-12)


def test_no_tensor_of_a_packed_update_grows_quadratically_with_its_length(installed):
    from transformers import AutoModelForCausalLM

    lengths = [32] * 64
    model = AutoModelForCausalLM.from_config(MODELS["qwen2"], attn_implementation="sdpa")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    ids = torch.randint(0, 64, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    with LargestTensor() as largest:
        model(input_ids=ids, position_ids=positions, use_cache=False).logits.float().square().mean().backward()
    assert largest.elements <= 4 * 64 * sum(lengths), "of which a mask of T x T has 8 times as many"
    torch.testing.assert_close(model.lm_head.weight.grad.isfinite().all(), torch.tensor(True))


def test_transformers_own_sdpa_still_creates_a_mask_of_the_whole_row():
    """If this fails, transformers separates packed rows without T x T entries. Remove ``attention.install``."""
    mask = masks.sdpa_mask(**arguments(packed_function(masks.causal_mask_function)), allow_is_causal_skip=False)
    assert isinstance(mask, torch.Tensor) and mask.shape == (1, 1, T, T)


@pytest.fixture
def forgetful():
    """A function that clears all caches about flash-attn. It is also called at the end."""
    imported = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "flash_attn"}

    def forget():
        environment.flash_attention_problem.cache_clear()
        for name in [name for name in sys.modules if name.partition(".")[0] == "flash_attn"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    yield forget
    forget()
    sys.modules.update(imported)


def test_flash_attention_is_chosen_if_it_can_be_imported(tmp_path, monkeypatch, forgetful):
    def here():
        forgetful()
        return environment.attention_here(), environment.flash_attention_problem()

    if importlib.util.find_spec("flash_attn") is None:
        chosen, problem = here()
        assert chosen == "sdpa" and "flash-attn" in problem
    package = tmp_path / "flash_attn"
    package.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    (package / "__init__.py").write_text("raise ImportError('undefined symbol: _ZN3c10')\n")
    chosen, problem = here()
    assert chosen == "sdpa" and "undefined symbol" in problem
    (package / "__init__.py").write_text("")
    assert here() == ("flash_attention_2", "")
