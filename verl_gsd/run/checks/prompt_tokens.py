"""Counts the tokens of prompts as verl's agent loops build them.

An agent loop builds the first prompt of a response with verl's continuous token builder. For most models the builder
applies the tokenizer's chat template and then the tokenizer. This module then renders and tokenizes many prompts at
once. For all other builders it calls the builder once per prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.remote_paths import scheme_of

Chat = list[dict[str, Any]]

#: Arguments of ``apply_chat_template`` that go to the tokenizer and not to the template.
_TOKENIZER_ARGUMENTS = {
    "padding",
    "truncation",
    "max_length",
    "tokenizer_kwargs",
    "return_tensors",
    "tokenize",
    "return_dict",
}
#: Normalizers that do not change ASCII text.
_KEEP_ASCII = ("NFC", "NFKC", "NFD", "NFKD")


class PromptTokens:
    """Counts the tokens of prompts.

    Args:
        tokenizer: the model's tokenizer, as verl loads it.
        processor: the model's image processor, if it has one.
        model_type: from the model's config.json. verl selects the builder by it.
        template_options: data.apply_chat_template_kwargs.

    Raises:
        ValueError: verl has no builder for this model.
    """

    def __init__(
        self, tokenizer: Any, processor: Any, model_type: str | None, template_options: Mapping[str, Any]
    ) -> None:
        from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

        self._tokenizer, self._options = tokenizer, dict(template_options)
        self._builder = create_continuous_token_builder(
            tokenizer, hf_model_type=model_type, chat_template_kwargs=self._options, processor=processor
        )
        self._many_at_once = _renders_and_tokenizes(self._builder, tokenizer, self._options)
        self._is_byte_level = self._many_at_once and _is_byte_level(tokenizer)

    @property
    def has_no_template(self) -> bool:
        """Whether the builder applies the tokenizer's chat template, and there is none."""
        return self._many_at_once and not getattr(self._tokenizer, "chat_template", None)

    def lengths(self, chats: Sequence[Chat], fits: int, tools: list[dict] | None = None) -> list[int | str]:
        """The number of tokens of each prompt, or the reason why the chat template rejects it.

        Args:
            fits: a limit in tokens. For prompts within the limit, the returned number may differ from the exact length,
                but is also within the limit.
            tools: schemas of the tools that the agent loop offers.
        """
        if not self._many_at_once:
            return [self._one(chat, tools) for chat in chats]
        try:
            texts = self._tokenizer.apply_chat_template(
                list(chats), tools=tools, tokenize=False, add_generation_prompt=True, **self._options
            )
        except (
            Exception
        ):  # a template can raise any error; verl then retries in another way, so count each chat with verl
            return [self._one(chat, tools) for chat in chats]
        # A byte-level tokenizer makes at most one token per byte, so short ASCII prompts need not be tokenized.
        counts: list[int | str] = [len(text) if self._is_byte_level and text.isascii() else fits + 1 for text in texts]
        long = [number for number, count in enumerate(counts) if int(count) > fits]
        if long:
            tokens = self._tokenizer([texts[number] for number in long], add_special_tokens=False, verbose=False)
            for number, ids in zip(long, tokens["input_ids"], strict=True):
                counts[number] = len(ids)
        return counts

    def _one(self, chat: Chat, tools: list[dict] | None) -> int | str:
        try:
            return len(self._builder.build_initial_tokens(chat, tools=tools))
        except Exception as error:
            # verl retries a rejected chat with an empty user message added, so the first error is in the context.
            first = error.__context__ if isinstance(error.__context__, Exception) else error
            return first_line(first)


def _renders_and_tokenizes(builder: Any, tokenizer: Any, options: Mapping[str, Any]) -> bool:
    """Whether the builder only calls transformers' ``apply_chat_template``."""
    from transformers import PreTrainedTokenizerBase
    from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

    return (
        type(builder).build_initial_tokens is ContinuousTokenBuilder.build_initial_tokens
        and type(builder)._render_tokens is ContinuousTokenBuilder._render_tokens
        and type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        and not _TOKENIZER_ARGUMENTS & options.keys()
    )


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether an ASCII text never has more tokens than characters: BPE over bytes, and nothing is added to the text."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer, pre_tokenizer = parts["normalizer"], parts["pre_tokenizer"] or {}
    normalizers = normalizer.get("normalizers", [normalizer]) if normalizer else []
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    return (
        parts["model"]["type"] == "BPE"
        and all(step["type"] in _KEEP_ASCII for step in normalizers)
        and bool(byte_level)
        and not any(step.get("add_prefix_space") for step in steps)
        and all(step.get("type") in ("ByteLevel", "Split", "Digits", "Punctuation") for step in steps)
    )


class NotCountableError(Exception):
    """The prompts of a run cannot be counted on this machine. The message says why."""


def prompt_tokens_of(config: DictConfig, tokenizer: Any = None, processor: Any = None) -> PromptTokens:
    """Create the counter for a run's prompts.

    Args:
        tokenizer: the model's tokenizer, as verl loads it. None: it is loaded here, with the processor.
        processor: the model's processor, if there is one and ``tokenizer`` is not None.

    Raises:
        NotCountableError: the tokenizer cannot be loaded, or verl has no builder for the model.
    """
    model = config.actor_rollout_ref.model
    try:
        if tokenizer is None:
            tokenizer, processor = _tokenizer_of(model)
    except NotCountableError:
        raise
    except Exception as error:  # a model's files and code can raise any error
        raise NotCountableError(f"the tokenizer cannot be loaded ({first_line(error)})") from error
    try:
        options = OmegaConf.to_container(OmegaConf.create(config.data.get("apply_chat_template_kwargs") or {}))
        assert isinstance(options, dict)
        return PromptTokens(tokenizer, processor, _model_type(model), {str(k): v for k, v in options.items()})
    except Exception as error:
        raise NotCountableError(f"verl cannot build prompts with this tokenizer ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The type and the first line of an exception."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _tokenizer_of(model: DictConfig) -> tuple[Any, Any]:
    """(tokenizer, processor) as verl's HFModelConfig loads them."""
    from verl.utils.tokenizer import hf_processor, hf_tokenizer

    path = str(model.get("tokenizer_path") or model.path)
    if scheme_of(path):
        raise NotCountableError(f"the tokenizer is in remote storage ({path}), and only the run's workers copy it")
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise NotCountableError(f"the folder {path} of the tokenizer does not exist yet")
    trusted = bool(model.get("trust_remote_code", False))
    tokenizer, processor = hf_tokenizer(path, trust_remote_code=trusted), hf_processor(path, trust_remote_code=trusted)
    if processor is not None and not getattr(processor, "chat_template", None):
        processor.chat_template = tokenizer.chat_template
    if (template := model.get("custom_chat_template")) is not None:
        tokenizer.chat_template = template
        if processor is not None:
            processor.chat_template = template
    return tokenizer, processor


def _model_type(model: DictConfig) -> str | None:
    from transformers import AutoConfig

    path = str(model.get("hf_config_path") or model.path)
    kind = getattr(
        AutoConfig.from_pretrained(path, trust_remote_code=bool(model.get("trust_remote_code"))), "model_type", None
    )
    return kind if isinstance(kind, str) else None


def tools_of(config: DictConfig) -> dict[str, dict]:
    """Name -> schema of the run's tools, as verl's tool agent loop passes them to the chat template.

    Raises:
        NotCountableError: the tools cannot be loaded.
    """
    turns = config.actor_rollout_ref.rollout.multi_turn
    paths = {name: turns.get(name) for name in ("tool_config_path", "function_tool_path")}
    if not any(paths.values()):
        return {}
    from verl.tools.tool_registry import load_all_tools
    from verl.utils.import_utils import resolve_config_path

    try:
        tools = load_all_tools(**{name: resolve_config_path(path) if path else None for name, path in paths.items()})
    except Exception as error:  # the import of the user's modules can raise any error
        raise NotCountableError(f"the tools cannot be loaded ({first_line(error)})") from error
    return {tool.name: tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools}
