"""What a model's chat template makes of a prompt: whether it takes it, keeps the problem, and how long it gets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

Chat = Sequence[dict[str, str]]


class Template:
    """The tokenizer of ``model``, a folder or a name on the hub, with its chat template, as training applies it.

    Args:
        revision: of the hub's.
        options: what the template is given beside the chat: a run's ``data.apply_chat_template_kwargs``.

    Raises:
        ValueError: there is no tokenizer, or it has no chat template.
    """

    def __init__(self, model: str, revision: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"--model {model}: no tokenizer of it: {reason}") from error
        if not getattr(self._tokenizer, "chat_template", None):
            raise ValueError(f"--model {model}: its tokenizer has no chat template, which verl applies to every prompt")
        self._model, self._revision, self.options = model, revision, dict(options or {})
        template = self._tokenizer.chat_template
        self.sha256 = hashlib.sha256(str(template).encode()).hexdigest()

    def text(self, chat: Chat) -> str:
        """What the model reads.

        Raises:
            ValueError: the template refuses the chat, loses what the user says, or does not ask for an answer.
        """
        try:
            shown, asked = (
                self._tokenizer.apply_chat_template(
                    list(chat), tokenize=False, add_generation_prompt=asking, **self.options
                )
                for asking in (False, True)
            )
        except Exception as error:  # a template is a program of its author's
            raise ValueError(f"--model {self._model}: its chat template refuses the prompt: {error}") from error
        if chat[-1]["content"].strip() not in asked:
            raise ValueError(f"--model {self._model}: its chat template does not keep the problem's text")
        if asked == shown:
            raise ValueError(
                f"--model {self._model}: its chat template does not begin an answer (add_generation_prompt changes "
                "nothing): the model would go on with the user's words"
            )
        return asked

    def tokens(self, chat: Chat) -> list[int]:
        """The prompt as the model reads it.

        Raises:
            ValueError: as ``text``.
        """
        return self._tokenizer.encode(self.text(chat), add_special_tokens=False)

    def context_length(self) -> int | None:
        """Tokens that the model's config says it reads; None where it does not say."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._model, revision=self._revision)
        return getattr(config, "max_position_embeddings", None)
