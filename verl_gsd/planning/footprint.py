"""The memory that a run needs on each of its GPUs, from its model and from the settings that decide about memory.

``Footprint`` holds everything that the estimates read. The checks before a run (``run/checks/memory.py``) and the
choice of settings (``run/sizing.py``) both use it, so that they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from verl_gsd.planning.memory import (
    OVERHEAD_GIB,
    Shape,
    kv_cache_gib,
    padded_mask_gib,
    states_gib,
    update_gib,
    weights_gib,
)

#: An update whose estimate is above these shares of a GPU's memory leads to a warning, or is rejected.
TIGHT, TOO_MUCH = 0.9, 1.1
#: GiB that vLLM needs for activations and CUDA graphs, in addition to weights and KV cache. A rough figure.
VLLM_OWN_GIB = 3.0
#: The parts of an update's memory that vLLM keeps if it does not release it, for the policy and for a reward model.
AWAKE, REWARD_AWAKE = "vLLM awake", "reward model awake"
#: The part of an update's memory that only the optimizer's step takes.
STEP_COPY = "temporary copy of AdamW"


@dataclass(frozen=True)
class Footprint:
    """What the memory of a run on one GPU depends on, for training with FSDP and generation with vLLM on the same GPUs.

    Attributes:
        shape: the model.
        memory_gib: GiB of one GPU.
        gpus_per_node: GPUs of a node that train.
        shards: GPUs that share one copy of weights and optimizer.
        length: tokens of the longest prompt and response together.
        responses: responses per prompt.
        adapter: whether a LoRA adapter is trained. The weights are then frozen; the adapter's size is ignored.
        fsdp2: whether the engine is FSDP2. Only FSDP2 has ``offload_policy``.
        half: whether weights, gradients and moments have 2 bytes per number instead of 4.
        fused: whether fused kernels avoid the logits.
        sdpa: whether attention is PyTorch's SDPA instead of flash-attn.
        packed: whether rows are packed (``use_remove_padding``).
        dynamic: whether micro-batches are filled by number of tokens (``use_dynamic_bsz``).
        sleeps: whether vLLM releases its memory during an update.
        tokens: tokens of the largest micro-batch on one GPU.
        sequence_parallel: GPUs over which a sequence is split (Ulysses).
        param_offload: whether the weights are in host memory while vLLM generates.
        optimizer_offload: the same for the optimizer's moments.
        offload_policy: whether weights and optimizer are always in host memory and stream through the GPU.
        utilization: the share of the GPU that vLLM uses (``gpu_memory_utilization``).
        tensor_parallel: GPUs per vLLM replica.
        max_model_len: the longest sequence in vLLM, in tokens; None for the model's whole context.
        reward_share: the share of the GPU that a reward model on the same GPUs uses; 0 if there is none.
        reward_sleeps: whether that reward model releases its memory while it does not score.
    """

    shape: Shape
    memory_gib: float
    gpus_per_node: int
    shards: int
    length: int
    responses: int
    adapter: bool = False
    fsdp2: bool = True
    half: bool = False
    fused: bool = False
    sdpa: bool = False
    packed: bool = True
    dynamic: bool = True
    sleeps: bool = True
    tokens: int = 16384
    sequence_parallel: int = 1
    param_offload: bool = False
    optimizer_offload: bool = False
    offload_policy: bool = False
    utilization: float = 0.7
    tensor_parallel: int = 1
    max_model_len: int | None = None
    reward_share: float = 0.0
    reward_sleeps: bool = True

    @property
    def streamed(self) -> bool:
        """Whether weights and optimizer states are kept in host memory. verl reads that key only under FSDP2."""
        return self.fsdp2 and self.offload_policy

    @property
    def least_tokens(self) -> int:
        """Tokens on one GPU of a micro-batch with one sequence of full length. verl fails with fewer."""
        return -(-self.length // self.sequence_parallel)

    def states_gib(self, copies: int) -> float:
        """GiB of ``copies`` numbers per parameter on one GPU."""
        return states_gib(self.shape, self.shards, copies=copies, width=2 if self.half else 4)

    def trained_states_gib(self) -> float:
        """GiB per GPU of the weights and, if they are trained, of gradients and Adam's two moments."""
        return self.states_gib(1 if self.adapter else 4)

    def update_parts(self) -> dict[str, float]:
        """The parts of an update's peak on one GPU, in GiB.

        The peak is in the backward pass (``planning.memory.update_gib``) or in the optimizer's step, whichever needs
        more. In a step, verl's AdamW processes all parameters at once (torch's default on a GPU), for which it takes
        the square root of the second moments: one more number per parameter. Activations and logits are free by then.
        """
        backward, step = self._backward_parts(), {"states": 0.0 if self.streamed else self.trained_states_gib()}
        if not self.streamed and not self.adapter:
            step[STEP_COPY] = self.states_gib(1)
        step["overhead"] = OVERHEAD_GIB
        parts = max(backward, step, key=lambda moment: sum(moment.values()))
        if not self.sleeps:
            parts[AWAKE] = self.share_gib()
        if not self.reward_sleeps:
            parts[REWARD_AWAKE] = self.reward_gib()
        return parts

    def _backward_parts(self) -> dict[str, float]:
        parts = update_gib(
            self.shape,
            self.shards,
            self.tokens,
            states=0.0 if self.streamed else self.trained_states_gib(),
            logits=not self.fused,
            sdpa=self.sdpa,
            trained=not self.adapter,
        )
        if self.sdpa and not self.packed:
            # For a micro-batch of full-length rows. Packed rows need no mask (trainer/attention.py).
            rows = max(1, self.tokens * self.sequence_parallel // self.length)
            parts["attention mask"] = padded_mask_gib(rows, self.length)
        return parts

    def resident_gib(self) -> float:
        """GiB that the actor keeps on a GPU while vLLM generates: weights and Adam's two moments, unless offloaded."""
        if self.streamed:
            return 0.0
        moments = 0 if self.optimizer_offload or self.adapter else 2
        return self.states_gib((0 if self.param_offload else 1) + moments)

    def share_gib(self) -> float:
        """GiB of one GPU that vLLM uses."""
        return self.utilization * self.memory_gib

    def reward_gib(self) -> float:
        """GiB of one GPU that a reward model on the same GPUs uses while it is awake."""
        return self.reward_share * self.memory_gib

    def generation_gib(self) -> float:
        """GiB of one GPU that are in use while vLLM generates."""
        return self.share_gib() + self.resident_gib() + (0.0 if self.reward_sleeps else self.reward_gib())

    def scoring_gib(self) -> float:
        """GiB of one GPU that are in use while a reward model on the same GPUs scores."""
        return self.reward_gib() + self.resident_gib() + (0.0 if self.sleeps else self.share_gib())

    def vllm_weights_gib(self) -> float:
        """GiB of vLLM's copy of the weights on one GPU."""
        return weights_gib(self.shape, self.tensor_parallel)

    def vllm_length(self) -> int:
        """Tokens of the longest sequence that vLLM's KV cache must hold, or vLLM does not start."""
        return self.max_model_len or self.shape.positions

    def one_sequence_gib(self) -> float:
        """GiB of the KV cache of one sequence of ``vllm_length`` tokens on one GPU."""
        return kv_cache_gib(self.shape, self.vllm_length(), self.tensor_parallel)

    def cached_sequences(self) -> int:
        """Sequences of ``length`` tokens that the KV cache of one vLLM replica holds at the same time."""
        cache = max(0.0, self.share_gib() - self.vllm_weights_gib() - VLLM_OWN_GIB)
        return int(cache / kv_cache_gib(self.shape, self.length, self.tensor_parallel))
