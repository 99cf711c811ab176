"""What a GPU must hold: an estimate of training's and generation's peaks for a dense transformer, from shapes alone.

Every figure is a count of bytes that one can do by hand; none was fitted to a measurement. What is left out (allocator
fragmentation, kernels' workspaces, other architectures) is why a caller leaves a margin on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
#: CUDA's context, NCCL's buffers, and what a sleeping vLLM keeps, in GiB. A round figure.
OVERHEAD_GIB = 4.0


@dataclass(frozen=True)
class Shape:
    """A dense decoder-only transformer with grouped-query attention and a gated MLP.

    Attributes:
        tied: whether the output layer shares its weights with the embedding.
        positions: longest sequence it reads, in tokens.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    positions: int

    @property
    def layer_parameters(self) -> int:
        """h (2 heads + 2 kv) d + 3 h i + 2 h: attention, MLP, two norms. Biases, under a thousandth, are left out."""
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """V h (twice, unless tied) + layers + h of the last norm."""
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """From a model's ``config.json``; None where it is no dense transformer of this kind."""
        if any("expert" in key and value for key, value in config.items()):
            return None
        try:
            heads = config["num_attention_heads"]
            return cls(
                layers=config["num_hidden_layers"],
                hidden=config["hidden_size"],
                intermediate=config["intermediate_size"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or config["hidden_size"] // heads,
                vocab=config["vocab_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                positions=config["max_position_embeddings"],
            )
        except (KeyError, TypeError):
            return None


#: The recipes' models, as their ``config.json`` on the hub describes them.
SHAPES = {
    "Qwen/Qwen2.5-Math-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, True, 4096),
    "Qwen/Qwen2.5-Math-7B": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 4096),
    "Qwen/Qwen3-4B-Base": Shape(36, 2560, 9728, 32, 8, 128, 151936, True, 32768),
    "Qwen/Qwen3-8B-Base": Shape(36, 4096, 12288, 32, 8, 128, 151936, False, 32768),
    "meta-llama/Llama-3.2-3B-Instruct": Shape(28, 3072, 8192, 24, 8, 128, 128256, True, 131072),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(32, 4096, 14336, 32, 8, 128, 128256, False, 131072),
}


def states_gib(shape: Shape, shards: int, *, copies: int = 4, width: int = 4) -> float:
    """``copies`` numbers of ``width`` bytes a parameter, for one of ``shards``, in GiB.

    Of a model that is trained in float32 there are four in an update (weights, gradients, Adam's two moments) and three
    between updates; of one that is frozen below an adapter, the weights alone.
    """
    return copies * width * shape.parameters / shards / GIB


def update_gib(
    shape: Shape, shards: int, tokens: int, *, states: float, logits: bool = True, sdpa: bool = False
) -> dict[str, float]:
    """The parts of an update's peak on one GPU, in GiB, under FSDP2 with bfloat16 compute and checkpointed layers.

    - ``states``: as given, of ``states_gib``; 0 where FSDP2's offload policy streams them from the CPU.
    - ``gathered``: two units in flight, unsharded: bfloat16 weights and float32 gradients of the largest, 2 x 6 bytes
      a parameter; a unit is a layer, or the embedding.
    - ``activations``: 2 h bytes a token and layer (its checkpointed input), and one layer's own, made again for its
      backward: 2 (8 h + 4 i) bytes a token, twice, with their gradients. SDPA adds 2 x 2 h bytes: where rows are
      packed, two copies of each sequence's output, and elsewhere repeated keys and values.
    - ``logits``: 8 V bytes a token: bfloat16 logits and their gradient, and one float32 copy. 0 where fused
      kernels never make them.

    Args:
        shards: GPUs that share one copy of the states.
        states: what weights, gradients and the optimiser take of one GPU, in GiB.
        logits: whether all of a micro-batch's are made at once.
        sdpa: whether attention is PyTorch's instead of flash-attn's.
        tokens: of the largest micro-batch, on one GPU.
    """
    unit = max(shape.layer_parameters, shape.vocab * shape.hidden)
    one_layer = 2 * 2 * ((10 if sdpa else 8) * shape.hidden + 4 * shape.intermediate)
    return {
        "states": states,
        "gathered": 2 * 6 * unit / GIB,
        "activations": tokens * (2 * shape.hidden * shape.layers + one_layer) / GIB,
        "logits": 8 * tokens * shape.vocab / GIB if logits else 0.0,
        "overhead": OVERHEAD_GIB,
    }


def padded_mask_gib(rows: int, length: int) -> float:
    """SDPA's mask of ``rows`` rows padded to ``length``: one byte an entry, and its copy in bfloat16, in GiB."""
    return 3 * rows * length**2 / GIB


def weights_gib(shape: Shape, tensor_parallel: int) -> float:
    """vLLM's copy: 2 P / tensor_parallel bytes, in GiB."""
    return 2 * shape.parameters / tensor_parallel / GIB


def kv_cache_gib(shape: Shape, tokens: int, tensor_parallel: int) -> float:
    """Keys and values of ``tokens``: 2 x 2 bytes a layer, KV head and dimension; heads are shared out, at least one a
    GPU. In GiB."""
    heads = max(1, shape.kv_heads // tensor_parallel)
    return 2 * 2 * shape.layers * heads * shape.head_dim * tokens / GIB
