"""A demonstration as the tokens a policy would have generated, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np

#: ``missing``: the prompt has none; ``empty``; ``too_long`` with its EOS; ``no_eos``: it was cut off; ``template``: it
#: has a chat template's own tokens, or opens what the prompt's end has opened already; ``failed_verification``: the
#: run's own verifier says it is wrong; ``unverified``: the verifier failed or did not answer.
Reason = Literal["missing", "empty", "too_long", "no_eos", "template", "failed_verification", "unverified"]
REASONS: tuple[Reason, ...] = get_args(Reason)


class Tokenizer(Protocol):
    """What is asked of a Hugging Face tokenizer."""

    eos_token_id: int

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool) -> str: ...


def expert_texts(value: Any) -> list[str]:
    """The texts in a cell of the data's column: none, one, or several.

    Raises:
        ValueError: it holds something else.
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [value] if value else []
    texts = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(texts, list | tuple) and all(text is None or isinstance(text, str) for text in texts):
        return [text for text in texts if text]
    raise ValueError(f"a demonstration is a text or a list of texts, and this is {type(value).__name__}")


def expert_tokens(text: str, tokenizer: Tokenizer, *, prompt: str, longest: int) -> np.ndarray | Reason:
    """An expert's text as a response, EOS at its end: (j,) int32, or why it is none.

    Args:
        prompt: the prompt as the policy sees it, chat template and all.
        longest: tokens of a response at most.
    """
    if not text.strip():
        return "empty"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    if not tokens:
        return "empty"
    if tokens[-1] != tokenizer.eos_token_id:
        tokens = [*tokens, tokenizer.eos_token_id]
    opened = prompt.split()[-1:]  # such as <think>, where the template's generation prompt ends with it
    repeats = bool(opened) and opened[0].startswith("<") and text.lstrip().startswith(opened[0])
    if repeats or _has_special(tokens[:-1], tokenizer):
        return "template"
    return _fitting(tokens, longest)


def own_tokens(tokens: np.ndarray, tokenizer: Tokenizer, *, longest: int) -> np.ndarray | Reason:
    """An earlier response of the policy's as a demonstration: (j,) int32, or why it is none."""
    if not len(tokens):
        return "empty"
    # A model may end with another special token than its tokenizer's EOS, and a text that was cut off ends with none.
    if not _has_special(tokens[-1:].tolist(), tokenizer):
        return "no_eos"
    return _fitting(tokens, longest)


def _has_special(tokens: Sequence[int], tokenizer: Tokenizer) -> bool:
    whole, rest = (tokenizer.decode(list(tokens), skip_special_tokens=skip) for skip in (False, True))
    return whole != rest


def _fitting(tokens: Sequence[int] | np.ndarray, longest: int) -> np.ndarray | Reason:
    return np.asarray(tokens, np.int32) if len(tokens) <= longest else "too_long"


def succeeded(accuracy: float, where: str) -> bool:
    """Whether a response counts as right: ``acc``, the verifier's verdict in [0, 1], is above one half.

    Raises:
        ValueError: there is no such verdict; the message names ``where``.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(
            f"algorithm.gsd.dagrpo.demonstrations reads acc, the verifier's verdict in [0, 1], and a response to "
            f"{where} has {accuracy}. Return acc from the reward function."
        )
    return accuracy > 0.5
