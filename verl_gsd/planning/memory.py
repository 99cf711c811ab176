"""Estimates of the peak GPU memory of training and generation for a dense transformer, from its shapes alone.

Every figure is a count of bytes that can be checked by hand; none was fitted to a measurement. Allocator fragmentation,
workspaces of kernels and other architectures are not modelled, so callers allow a margin in both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
#: The CUDA context, NCCL's buffers and the memory that a sleeping vLLM keeps, in GiB. A round figure.
OVERHEAD_GIB = 4.0


@dataclass(frozen=True)
class Shape:
    """A dense decoder-only transformer with grouped-query attention and a gated MLP.

    Attributes:
        tied: whether the output layer shares its weights with the embedding.
        positions: the longest sequence that the model accepts, in tokens.
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

    def divides_into(self, gpus: int) -> bool:
        """Whether so many GPUs can share the attention heads. With fewer heads of keys and values, each has a copy."""
        return self.heads % gpus == 0 and (self.kv_heads % gpus == 0 or gpus % self.kv_heads == 0)

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer: h (2 heads + 2 kv) d for attention, 3 h i for the MLP, 2 h for two norms.

        Biases are ignored; they are less than 0.1% of the parameters.
        """
        attention = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters: V h for the embedding (twice unless tied), the layers, and h for the last norm."""
        embeddings = (1 if self.tied else 2) * self.vocab * self.hidden
        return embeddings + self.layers * self.layer_parameters + self.hidden

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape | None:
        """The shape in a model's ``config.json``; None if the model is not a dense transformer of this kind."""
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


#: The models of the recipes and the Qwen2.5 family, from their ``config.json`` on the Hugging Face hub.
SHAPES = {
    "Qwen/Qwen2.5-0.5B": Shape(24, 896, 4864, 14, 2, 64, 151936, True, 32768),
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(24, 896, 4864, 14, 2, 64, 151936, True, 32768),
    "Qwen/Qwen2.5-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, True, 131072),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(28, 1536, 8960, 12, 2, 128, 151936, True, 32768),
    "Qwen/Qwen2.5-3B": Shape(36, 2048, 11008, 16, 2, 128, 151936, True, 32768),
    "Qwen/Qwen2.5-3B-Instruct": Shape(36, 2048, 11008, 16, 2, 128, 151936, True, 32768),
    "Qwen/Qwen2.5-7B": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 131072),
    "Qwen/Qwen2.5-7B-Instruct": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 32768),
    "Qwen/Qwen2.5-14B": Shape(48, 5120, 13824, 40, 8, 128, 152064, False, 131072),
    "Qwen/Qwen2.5-14B-Instruct": Shape(48, 5120, 13824, 40, 8, 128, 152064, False, 32768),
    "Qwen/Qwen2.5-32B": Shape(64, 5120, 27648, 40, 8, 128, 152064, False, 131072),
    "Qwen/Qwen2.5-32B-Instruct": Shape(64, 5120, 27648, 40, 8, 128, 152064, False, 32768),
    "Qwen/Qwen2.5-Math-1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151936, True, 4096),
    "Qwen/Qwen2.5-Math-7B": Shape(28, 3584, 18944, 28, 4, 128, 152064, False, 4096),
    "Qwen/Qwen3-4B-Base": Shape(36, 2560, 9728, 32, 8, 128, 151936, True, 32768),
    "Qwen/Qwen3-8B-Base": Shape(36, 4096, 12288, 32, 8, 128, 151936, False, 32768),
    "meta-llama/Llama-3.2-3B-Instruct": Shape(28, 3072, 8192, 24, 8, 128, 128256, True, 131072),
    "meta-llama/Llama-3.1-8B-Instruct": Shape(32, 4096, 14336, 32, 8, 128, 128256, False, 131072),
}


def states_gib(shape: Shape, shards: int, *, copies: int = 4, width: int = 4) -> float:
    """Memory of one shard for ``copies`` numbers of ``width`` bytes per parameter, in GiB.

    A model that is trained in float32 has 4 copies during an update (weights, gradients, Adam's two moments) and 3
    between updates. A frozen model under an adapter has only its weights.

    Args:
        shards: GPUs that share one copy of the states.
    """
    return copies * width * shape.parameters / shards / GIB


def update_gib(
    shape: Shape,
    shards: int,
    tokens: int,
    *,
    states: float,
    logits: bool = True,
    sdpa: bool = False,
    trained: bool = True,
) -> dict[str, float]:
    """The parts of a backward pass's peak on one GPU, in GiB, for FSDP2 with bfloat16 compute and checkpointed layers.

    - ``states``: the argument of that name.
    - ``gathered``: two unsharded units in flight, each with bfloat16 weights and float32 gradients: 2 x 6 bytes per
      parameter of the largest unit. A unit is a layer or the embedding. Frozen weights have no gradients: 2 x 2 bytes.
    - ``activations``: 2 h bytes per token and layer for its checkpointed input. In addition, the activations of one
      layer, recomputed for its backward pass: 2 (8 h + 4 i) bytes per token, twice, with their gradients. SDPA adds
      2 x 2 h bytes per token: two copies of each sequence's output if rows are packed, and repeated keys and values
      otherwise.
    - ``logits``: 8 V bytes per token, for bfloat16 logits, their gradient and one float32 copy. 0 with fused kernels,
      which never materialize the logits.
    - ``overhead``: ``OVERHEAD_GIB``.

    Args:
        shards: GPUs that share one copy of the states.
        tokens: tokens of the largest micro-batch on one GPU.
        states: GiB that weights, gradients and the optimizer take on one GPU (``states_gib``); 0 if FSDP2's offload
            policy streams them from the CPU.
        logits: whether the logits of a whole micro-batch are materialized at once.
        sdpa: whether attention is PyTorch's SDPA instead of flash-attn.
        trained: whether the weights are trained. They are frozen under an adapter.
    """
    unit = max(shape.layer_parameters, shape.vocab * shape.hidden)
    one_layer = 2 * 2 * ((10 if sdpa else 8) * shape.hidden + 4 * shape.intermediate)
    return {
        "states": states,
        "gathered": 2 * (6 if trained else 2) * unit / GIB,
        "activations": tokens * (2 * shape.hidden * shape.layers + one_layer) / GIB,
        "logits": 8 * tokens * shape.vocab / GIB if logits else 0.0,
        "overhead": OVERHEAD_GIB,
    }


def padded_mask_gib(rows: int, length: int) -> float:
    """GiB of SDPA's mask for ``rows`` rows padded to ``length``: 1 byte per entry, and 2 bytes for a bfloat16 copy."""
    return 3 * rows * length**2 / GIB


def weights_gib(shape: Shape, tensor_parallel: int) -> float:
    """GiB of vLLM's copy of the weights on one GPU: 2 P / tensor_parallel bytes."""
    return 2 * shape.parameters / tensor_parallel / GIB


def kv_cache_gib(shape: Shape, tokens: int, tensor_parallel: int) -> float:
    """GiB of the KV cache of ``tokens`` tokens on one GPU: 2 x 2 bytes per token, layer, KV head and head dimension.

    KV heads are divided among the tensor-parallel GPUs, and every GPU has at least one.
    """
    heads = max(1, shape.kv_heads // tensor_parallel)
    return 2 * 2 * shape.layers * heads * shape.head_dim * tokens / GIB
