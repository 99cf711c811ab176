"""Applies a model's chat template to a prompt, and checks that the template is fit for training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Chat = Sequence[dict[str, str]]


class ChatTemplate:
    """A model's tokenizer and chat template, applied as verl applies them in training.

    Args:
        model: a folder, or a name on Hugging Face's hub.
        revision: the revision on the hub.
        options: further arguments of the template: a run's ``data.apply_chat_template_kwargs``.
        label: how messages name the model: the option or key that chose it, with its value.

    Raises:
        ValueError: the model has no tokenizer, or the tokenizer has no chat template.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        options: Mapping[str, Any] | None = None,
        label: str | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        self._label = label or f"--model {model}"
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"{self._label}: its tokenizer cannot be loaded ({reason}). Use a folder or a hub name with a tokenizer"
            ) from error
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError(
                f"{self._label}: its tokenizer has no chat template, and verl applies one to every prompt. Use a "
                "model with a chat template, or add one to its tokenizer"
            )
        self._model, self._revision, self.options = model, revision, dict(options or {})
        template = self._tokenizer.chat_template
        self.sha256 = hashlib.sha256(str(template).encode()).hexdigest()

    def text(self, chat: Chat) -> str:
        """The prompt as the model reads it, as text.

        Raises:
            ValueError: the template rejects the chat, drops a message, or does not open the assistant's turn.
        """
        try:
            without_turn, prompt = (
                self._tokenizer.apply_chat_template(
                    list(chat), tokenize=False, add_generation_prompt=add_generation_prompt, **self.options
                )
                for add_generation_prompt in (False, True)
            )
        except Exception as error:  # a template is a program of its author and can raise anything
            raise ValueError(f"{self._label}: its chat template rejects the prompt: {error}") from error
        for message in chat:
            # Templates may drop an assistant's reasoning in earlier turns.
            if message["role"] != "assistant" and message["content"].strip() not in prompt:
                text = "problem's text" if message is chat[-1] else f"{message['role']}'s message"
                raise ValueError(f"{self._label}: its chat template drops the {text}. Use another template")
        if prompt == without_turn:
            raise ValueError(
                f"{self._label}: its chat template does not open the assistant's turn "
                "(add_generation_prompt has no effect), so the model would continue the user's message. Use another "
                "template"
            )
        return prompt

    def tokens(self, chat: Chat) -> list[int]:
        """The prompt as the model reads it, as token ids.

        Raises:
            ValueError: as ``text``.
        """
        return self._tokenizer.encode(self.text(chat), add_special_tokens=False)

    def context_length(self) -> int | None:
        """The model's context length in tokens, from its config; None if the config does not have it."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._model, revision=self._revision, trust_remote_code=False)
        return getattr(config, "max_position_embeddings", None)
