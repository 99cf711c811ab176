"""Writes the tiny random model of a rehearsal, with the tokenizer of the original model or a named stand-in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from verl_gsd.errors import ConfigError
from verl_gsd.planning.memory import SHAPES, Shape
from verl_gsd.run.remote_paths import scheme_of
from verl_gsd.writing import atomic_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LAYERS, HEADS, INTERMEDIATE = 2, 2, 128
#: verl builds the prompts of Qwen models with this token, and rejects a tokenizer without it.
_END_OF_TURN_IN_QWEN = "<|im_end|>"
SEED = 0


@dataclass(frozen=True)
class TinyModel:
    """A written model.

    Attributes:
        architecture: its ``model_type`` and its sizes, for the report.
        stand_ins: what is not that of the original model, one sentence each; empty if the model was found.
    """

    folder: Path
    architecture: str
    stand_ins: tuple[str, ...]


def write_tiny_model(config: DictConfig, folder: Path) -> TinyModel:
    """Write a random model with the architecture, head size and vocabulary of the run's model, and its tokenizer.

    If the model or its tokenizer cannot be loaded, a stand-in replaces it. Both come from a stand-in or neither does,
    because the vocabulary of a model must be that of its tokenizer.

    Raises:
        ConfigError: transformers has no such language model, or it has no layers and heads to reduce.
    """
    model = config.actor_rollout_ref.model
    name = str(model.path)
    trusted = bool(model.get("trust_remote_code", False))
    try:
        if scheme_of(name):
            raise OSError("the model is in remote storage, which only the run's workers copy")
        original = _config_of(str(model.get("hf_config_path") or name), trusted)
        tokenizer = _tokenizer_of(str(model.get("tokenizer_path") or name), trusted)
        stand_ins: tuple[str, ...] = ()
    except (OSError, ValueError, ImportError) as error:
        from verl_gsd.tasks import byte_llama

        original, architecture = _known_config(name)
        tokenizer = byte_llama.build_tokenizer()
        tokenizer.add_tokens([_END_OF_TURN_IN_QWEN], special_tokens=True)
        original.vocab_size = byte_llama.VOCABULARY_SIZE
        stand_ins = (
            f"actor_rollout_ref.model.path={name} cannot be loaded here ({_first_line(error)})",
            f"the architecture is {architecture}",
            f"the tokenizer is a stand-in that reads bytes, and the vocabulary has {original.vocab_size} entries",
        )
        if model.get("custom_chat_template") is None:
            stand_ins += ("the chat template is a stand-in, so that the original template is not rehearsed",)
    try:
        tiny = shrink(original)
        for name_of_id in ("bos_token_id", "eos_token_id", "pad_token_id") if stand_ins else ():
            setattr(tiny, name_of_id, getattr(tokenizer, name_of_id))
        model_of_run = _random_model(tiny)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"actor_rollout_ref.model.path={name}: a rehearsal cannot make a tiny model of this architecture "
            f"({_first_line(error)}). Rehearse with another dense language model, or start the run without --rehearse."
        ) from error
    with atomic_folder(folder) as building:
        model_of_run.save_pretrained(building)
        tokenizer.save_pretrained(building)
    return TinyModel(folder, describe(tiny), stand_ins)


def write_tiny_reward_model(folder: Path) -> None:
    """Write a random Llama that scores a text with one number, with the stand-in tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from verl_gsd.tasks import byte_llama

    tokenizer = byte_llama.build_tokenizer()
    torch.manual_seed(SEED)
    model = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=byte_llama.VOCABULARY_SIZE,
            hidden_size=64,
            intermediate_size=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=byte_llama.CONTEXT_LENGTH,
            num_labels=1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    with torch.no_grad():  # otherwise all texts have nearly the same score
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 10
    with atomic_folder(folder) as building:
        model.save_pretrained(building)
        tokenizer.save_pretrained(building)


def shrink(original: PretrainedConfig) -> PretrainedConfig:
    """A copy with 2 layers, 2 heads of the original size and a narrow MLP. All other settings stay."""
    tiny = type(original).from_dict(original.to_dict())
    head_dim = getattr(original, "head_dim", None) or original.hidden_size // original.num_attention_heads
    grouped = getattr(original, "num_key_value_heads", None) or original.num_attention_heads
    sizes: dict[str, Any] = {
        "num_hidden_layers": min(LAYERS, original.num_hidden_layers),
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1 if grouped < original.num_attention_heads else HEADS,
        "hidden_size": HEADS * head_dim,
        "intermediate_size": INTERMEDIATE,
    }
    if hasattr(original, "head_dim"):
        sizes["head_dim"] = head_dim
    if getattr(original, "layer_types", None):
        sizes["layer_types"] = original.layer_types[: sizes["num_hidden_layers"]]
    if hasattr(original, "max_window_layers"):
        sizes["max_window_layers"] = sizes["num_hidden_layers"]
    for name, value in sizes.items():
        setattr(tiny, name, value)
    return tiny


def describe(tiny: PretrainedConfig) -> str:
    """For example ``qwen2, 2 layers of width 256, 2 heads of 128, 151936 tokens``."""
    head_dim = getattr(tiny, "head_dim", None) or tiny.hidden_size // tiny.num_attention_heads
    return (
        f"{tiny.model_type}, {tiny.num_hidden_layers} layers of width {tiny.hidden_size}, "
        f"{tiny.num_attention_heads} heads of {head_dim}, {tiny.vocab_size} tokens"
    )


def opens_assistant_turn(tokenizer: Any, template_options: dict[str, Any]) -> bool:
    """Whether the chat template has a generation prompt. Without one, the policy continues the user's message."""
    chat = [{"role": "user", "content": "1 + 1"}]
    with_turn, without_turn = (
        tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens, **template_options)
        for opens in (True, False)
    )
    return with_turn != without_turn


def _config_of(path: str, trusted: bool) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(_expanded(path)), trust_remote_code=trusted)


def _tokenizer_of(path: str, trusted: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(_expanded(path)), trust_remote_code=trusted)


def _expanded(path: str) -> str | Path:
    return Path(path).expanduser() if path.startswith("~") else path


def _known_config(name: str) -> tuple[PretrainedConfig, str]:
    """The config of a model that cannot be loaded, and what it was made from: the model's name and known sizes."""
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    kinds = {"qwen3": Qwen3Config, "qwen2": Qwen2Config, "llama": LlamaConfig}
    kind = next((kind for kind in kinds if kind in name.lower()), None)
    shape = SHAPES.get(name, Shape(2, 256, INTERMEDIATE, 4, 2, 64, 0, True, 4096))
    config = kinds[kind or "llama"](
        num_hidden_layers=shape.layers,
        hidden_size=shape.heads * shape.head_dim,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=shape.positions,
    )
    if name in SHAPES:
        return config, f"{config.model_type}, as known for {name}"
    return config, f"{config.model_type}, {'by its name' if kind else 'a guess'}, with heads of {shape.head_dim}"


def _random_model(config: PretrainedConfig) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"
