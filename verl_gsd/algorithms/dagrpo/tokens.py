"""Demonstrations as the tokens that the policy would have generated, and the reasons for which texts are rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np

from verl_gsd.scalars import without_rounding

#: Why there is no demonstration, or why a candidate is rejected.
#:
#: - ``missing``: the prompt has no candidate.
#: - ``empty``: the text is empty.
#: - ``too_long``: the text is too long with its EOS.
#: - ``no_eos``: the response was cut off.
#: - ``template``: the text contains special tokens of a chat template, or opens a tag that the prompt already opened.
#: - ``failed_verification``: the run's own verifier rates it as wrong.
#: - ``unverified``: the verifier failed or did not answer in time.
Reason = Literal["missing", "empty", "too_long", "no_eos", "template", "failed_verification", "unverified"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that this module uses."""

    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str: ...


def expert_texts(value: Any) -> list[str]:
    """The texts in a cell of the data's column: none, one, or several.

    Raises:
        ValueError: the cell holds something else.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value else []
    texts = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(texts, list | tuple) and all(text is None or isinstance(text, str) for text in texts):
        return [text for text in texts if text]
    raise ValueError(f"{type(value).__name__} is not a demonstration. Use a text, or a list of texts.")


def expert_tokens(text: str, tokenizer: Tokenizer, *, prompt: str, longest: int) -> np.ndarray | Reason:
    """An expert's text as a response that ends with EOS, (j,) int32; or the reason why it is rejected.

    Args:
        prompt: the prompt as the policy sees it, with the chat template applied.
        longest: maximum tokens of a response.
    """
    if not text.strip():
        return "empty"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if not tokens:
        return "empty"
    if tokens[-1] != tokenizer.eos_token_id:
        tokens = [*tokens, tokenizer.eos_token_id]
    opened = prompt.split()[-1:]  # for example <think>, if the template's generation prompt ends with it
    repeats = bool(opened) and opened[0].startswith("<") and text.lstrip().startswith(opened[0])
    if repeats or _has_special(tokens[:-1], tokenizer):
        return "template"
    return _limit_length(tokens, longest)


def own_tokens(tokens: np.ndarray, tokenizer: Tokenizer, *, longest: int) -> np.ndarray | Reason:
    """An earlier response of the policy as a demonstration, (j,) int32; or the reason why it is rejected."""
    if not len(tokens):
        return "empty"
    # A model may end with a special token that is not its tokenizer's EOS. A text that was cut off ends with none.
    if not _has_special(tokens[-1:].tolist(), tokenizer):
        return "no_eos"
    return _limit_length(tokens, longest)


def _has_special(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    text, text_without_special = (tokenizer.decode(list(tokens), skip_special_tokens=skip) for skip in (False, True))
    return text != text_without_special


def _limit_length(tokens: Sequence[int] | np.ndarray, longest: int) -> np.ndarray | Reason:
    return np.asarray(tokens, np.int32) if len(tokens) <= longest else "too_long"


def succeeded(accuracy: float, where: str) -> bool:
    """Whether a response counts as right: its ``acc``, the verifier's verdict in [0, 1], is above 0.5.

    Raises:
        ValueError: ``accuracy`` is outside [0, 1]; the message names ``where``.
    """
    if not 0 <= without_rounding(accuracy) <= 1:
        raise ValueError(
            f"algorithm.gsd.dagrpo.demonstrations needs acc, the verifier's verdict in [0, 1]. A response to {where} "
            f"has acc={accuracy}. Return acc from the reward function."
        )
    return accuracy > 0.5
