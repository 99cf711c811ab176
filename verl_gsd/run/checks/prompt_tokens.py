"""The length of prompts in tokens, as verl's agent loops build them.

An agent loop builds the first prompt of a response with verl's continuous token builder. For most models that is the
tokenizer's chat template and then the tokenizer, so that many prompts can be rendered and tokenized at once. Builders
that do anything else are asked prompt by prompt.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_gsd.run.remote_paths import scheme_of

Chat = list[dict[str, Any]]

#: Arguments of ``apply_chat_template`` that reach the tokenizer and not the template.
_OF_TOKENIZER = {"padding", "truncation", "max_length", "tokenizer_kwargs", "return_tensors", "tokenize", "return_dict"}
#: Normalizers that leave ASCII text as it is.
_ASCII_STAYS = ("NFC", "NFKC", "NFD", "NFKD")


class PromptTokens:
    """Counts the tokens of prompts.

    Args:
        tokenizer: the model's, as verl loads it.
        processor: the model's processor of images, if it has one.
        model_type: of the model's config.json. verl chooses the builder by it.
        template_options: data.apply_chat_template_kwargs.

    Raises:
        ValueError: verl has no builder for such a model.
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

    def lengths(self, chats: Sequence[Chat], fits: int, tools: list[dict] | None = None) -> list[int | str]:
        """Tokens of each prompt, or why the chat template rejects it.

        Args:
            fits: a length. Of a prompt that is not longer, a number up to ``fits`` is returned, not always its length.
            tools: schemas of the tools that the agent loop offers.
        """
        if not self._many_at_once:
            return [self._one(chat, tools) for chat in chats]
        try:
            texts = self._tokenizer.apply_chat_template(
                list(chats), tools=tools, tokenize=False, add_generation_prompt=True, **self._options
            )
        except Exception:  # a template is a program of its author's; verl then tries another way, chat by chat
            return [self._one(chat, tools) for chat in chats]
        # A byte-level tokenizer makes no more tokens than bytes: such a prompt need not be tokenized.
        found: list[int | str] = [len(text) if self._is_byte_level and text.isascii() else fits + 1 for text in texts]
        places = [place for place, length in enumerate(found) if int(length) > fits]
        if places:
            tokens = self._tokenizer([texts[place] for place in places], add_special_tokens=False, verbose=False)
            for place, ids in zip(places, tokens["input_ids"], strict=True):
                found[place] = len(ids)
        return found

    def _one(self, chat: Chat, tools: list[dict] | None) -> int | str:
        try:
            return len(self._builder.build_initial_tokens(chat, tools=tools))
        except Exception as error:
            # verl tries a chat that the template rejects a second time, after an empty message of a user.
            first = error.__context__ if isinstance(error.__context__, Exception) else error
            return first_line(first)


def _renders_and_tokenizes(builder: Any, tokenizer: Any, options: Mapping[str, Any]) -> bool:
    """Whether the builder does nothing but transformers' own ``apply_chat_template``."""
    from transformers import PreTrainedTokenizerBase
    from verl.utils.tokenizer.continuous_token import ContinuousTokenBuilder

    return (
        type(builder).build_initial_tokens is ContinuousTokenBuilder.build_initial_tokens
        and type(builder)._render_tokens is ContinuousTokenBuilder._render_tokens
        and type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
        and not _OF_TOKENIZER & options.keys()
    )


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether each token of an ASCII text stands for at least one of its characters: BPE over bytes, nothing added."""
    if not getattr(tokenizer, "is_fast", False):
        return False
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    normalizer, pre_tokenizer = parts["normalizer"], parts["pre_tokenizer"] or {}
    normalizers = normalizer.get("normalizers", [normalizer]) if normalizer else []
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    return (
        parts["model"]["type"] == "BPE"
        and all(step["type"] in _ASCII_STAYS for step in normalizers)
        and bool(byte_level)
        and not any(step.get("add_prefix_space") for step in steps)
        and all(step.get("type") in ("ByteLevel", "Split", "Digits", "Punctuation") for step in steps)
    )


class NotCountableError(Exception):
    """Why the prompts of a run cannot be counted on this machine."""


def prompt_tokens_of(config: DictConfig, tokenizer: Any = None, processor: Any = None) -> PromptTokens:
    """The counter of a run's prompts.

    Args:
        tokenizer: the model's, as verl loads it; loaded here if it is None.
        processor: the model's, next to a ``tokenizer``.

    Raises:
        NotCountableError: the tokenizer cannot be loaded, or verl has no builder for the model.
    """
    model = config.actor_rollout_ref.model
    try:
        if tokenizer is None:
            tokenizer, processor = _tokenizer_of(model)
        options = OmegaConf.to_container(OmegaConf.create(config.data.get("apply_chat_template_kwargs") or {}))
        assert isinstance(options, dict)
        return PromptTokens(tokenizer, processor, _model_type(model), {str(k): v for k, v in options.items()})
    except NotCountableError:
        raise
    except Exception as error:  # files of a model, and its own code: whatever they raise
        raise NotCountableError(f"the tokenizer cannot be loaded ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def _tokenizer_of(model: DictConfig) -> tuple[Any, Any]:
    """(tokenizer, processor) as verl's HFModelConfig loads them."""
    from verl.utils.tokenizer import hf_processor, hf_tokenizer

    path = str(model.get("tokenizer_path") or model.path)
    if scheme_of(path):
        raise NotCountableError(f"the tokenizer is in remote storage ({path}), which only the run's workers copy")
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise NotCountableError(f"there is no tokenizer yet in {path}")
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
    """Schemas of the run's tools by name, as verl's tool agent loop passes them to the chat template.

    Raises:
        NotCountableError: they cannot be loaded.
    """
    turns = config.actor_rollout_ref.rollout.multi_turn
    paths = {name: turns.get(name) for name in ("tool_config_path", "function_tool_path")}
    if not any(paths.values()):
        return {}
    from verl.tools.tool_registry import load_all_tools
    from verl.utils.import_utils import resolve_config_path

    try:
        tools = load_all_tools(**{name: resolve_config_path(path) if path else None for name, path in paths.items()})
    except Exception as error:  # the user's modules are imported
        raise NotCountableError(f"the tools cannot be loaded ({first_line(error)})") from error
    return {tool.name: tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools}
