"""The settings of a judge: a config section, and the scorer that it describes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from verl_gsd.sections import is_finite, is_whole, settings_of

SCORERS = ("openai", "reward_model", "distilled", "stub")
ANSWERS = ("choice", "json_schema", "text")


@dataclass(frozen=True)
class Settings:
    """Who judges, and how long one waits.

    Attributes:
        scorer: ``openai``, any server of that protocol; ``reward_model``, verl's own; ``distilled``, a head that
            ``verl-gsd judge distill`` made; ``stub``, which measures nothing.
        base_url: of ``openai``.
        model: of ``openai``, as the server names it, null for the only one it has; of ``distilled``, the head's folder.
        api_key_env: the environment variable that has the key; it need not be set for a server that asks for none.
        answer: how ``openai`` is asked: for a ``choice`` among the scores (vLLM), for JSON by a ``json_schema``, or for
            ``text``, whose last line is the score.
        concurrency: calls in flight at most.
        timeout_s: seconds a call may take.
        retries: further calls after one that failed for want of luck.
        budget_s: seconds a whole group may wait for its scores, and so the longest that a step can stall.
        cache: the file that keeps scores; null for none.
        cache_mb: its size at most, in MiB.

    Raises:
        ValueError: a value is out of range, or one that the scorer needs is missing.
    """

    scorer: Literal["openai", "reward_model", "distilled", "stub"] = "openai"
    base_url: str | None = None
    model: str | None = None
    api_key_env: str = "VERL_GSD_JUDGE_API_KEY"
    answer: Literal["choice", "json_schema", "text"] = "choice"
    concurrency: int = 64
    timeout_s: float = 30.0
    retries: int = 2
    budget_s: float = 60.0
    cache: str | None = None
    cache_mb: int = 1024

    def __post_init__(self) -> None:
        for name, choices in (("scorer", SCORERS), ("answer", ANSWERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)}: write one of {', '.join(choices)}")
        for name, least in (("concurrency", 1), ("retries", 0), ("cache_mb", 1)):
            value = getattr(self, name)
            if not is_whole(value, least):
                raise ValueError(f"{name}={value}: write a whole number of {least} or more")
        for name in ("timeout_s", "budget_s"):
            value = getattr(self, name)
            if not (is_finite(value) and value > 0):
                raise ValueError(f"{name}={value}: write a number of seconds above 0")
        for name in ("base_url", "model", "api_key_env", "cache"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"{name}={value}: write a text, or null")
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.api_key_env):  # not repeated: it may be the key itself
            raise ValueError("api_key_env: write the name of an environment variable, and export the key there")
        if self.scorer == "openai":
            require_plain(self.base_url)
        if self.scorer == "distilled" and not (Path(self.model or "") / "head.json").is_file():
            raise ValueError(f"model={self.model}: no head.json there. Write a folder that verl-gsd judge distill made")

    @classmethod
    def of(cls, section: Mapping[str, Any]) -> Settings:
        """From the config section; a ValueError for a key nobody reads."""
        return settings_of(cls, section)


def require_plain(base_url: str | None) -> None:
    """Raise a ValueError, which does not repeat it, for a URL that is none or that may hold a secret."""
    parts = urlsplit(base_url or "")
    if "@" in parts.netloc or parts.query:
        raise ValueError("base_url: holds credentials or a query. Write the URL alone, the key in the environment")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("base_url: no URL. Write one such as http://localhost:8000/v1")


def api_key(variable: str) -> str:
    """The key in the environment variable, or a word for servers that ask for none.

    Raises:
        ValueError: what is there can be no key.
    """
    key = os.environ.get(variable, "").strip() or "none"
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable}: the key in it has characters that no key has. Set it again")
    return key
