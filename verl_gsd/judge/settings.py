"""The settings of a judge: a config section, and the scorer that it describes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from verl_gsd.settings import SectionSettings

#: Sent in place of a key to servers that need none.
NO_KEY = "none"


def _shared_cache() -> str:
    """The file that all runs of a machine share."""
    folder = os.environ.get("VERL_GSD_CACHE", f"{Path.home()}/.cache/verl_gsd")
    return f"{folder}/judge.sqlite"


class JudgeSettings(SectionSettings):
    """Who judges, and how long a run waits for a judgement.

    Attributes:
        scorer: ``openai``, any server of that protocol; ``reward_model``, verl's own; ``distilled``, a head that
            ``verl-gsd judge distill`` made; ``stub``, which measures nothing.
        base_url: of ``openai``. It may hold no secret.
        model: of ``openai``, as the server names it, null for the only one it has; of ``distilled``, the head's folder.
        api_key_env: the environment variable that has the key; it need not be set for a server that asks for none.
        answer: how ``openai`` is asked: for a ``choice`` among the scores (vLLM), for JSON by a ``json_schema``, or for
            ``text``, whose last line is the score.
        concurrency: calls in flight at most.
        timeout_s: seconds that a call may take.
        retries: further calls after one that failed for a reason that may pass.
        budget_s: seconds that a whole group may wait for its scores, and so the longest that a step can stall.
        cache: the file that keeps scores; null for none.
        cache_mb: its size at most, in MiB.
    """

    scorer: Literal["openai", "reward_model", "distilled", "stub"] = "openai"
    base_url: str | None = Field("http://localhost:8000/v1", min_length=1, repr=False)
    model: str | None = Field(None, min_length=1, validate_default=True)
    api_key_env: str = Field("VERL_GSD_JUDGE_API_KEY", min_length=1, repr=False)  # it may be the key itself
    answer: Literal["choice", "json_schema", "text"] = "choice"
    concurrency: int = Field(64, ge=1)
    timeout_s: float = Field(30.0, gt=0)
    retries: int = Field(2, ge=0)
    budget_s: float = Field(60.0, gt=0)
    cache: str | None = Field(default_factory=_shared_cache, min_length=1)
    cache_mb: int = Field(1024, ge=1)

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, base_url: str | None, others: ValidationInfo) -> str | None:
        if others.data.get("scorer") == "openai" and (problem := _url_problem(base_url)):
            raise ValueError(problem)
        return base_url

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: str | None, others: ValidationInfo) -> str | None:
        if others.data.get("scorer") == "distilled" and not (Path(model or "") / "head.json").is_file():
            raise ValueError("no head.json there. Set it to a folder that verl-gsd judge distill made")
        return model

    @field_validator("api_key_env")
    @classmethod
    def _check_api_key_env(cls, name: str) -> str:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("no name of an environment variable. Set it to one, and export the key there")
        return name


def _url_problem(base_url: str | None) -> str:
    """What is wrong with a URL, without repeating it; an empty string if nothing is."""
    parts = urlsplit(base_url or "")
    if "@" in parts.netloc or parts.query:
        return "holds credentials or a query. Set it to the URL alone, and export the key in the environment"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "no URL. Set it to one, such as http://localhost:8000/v1"
    return ""


def require_plain(base_url: str | None) -> None:
    """Raise a ValueError, which does not repeat it, for a URL that is none or that may hold a secret."""
    if problem := _url_problem(base_url):
        raise ValueError(f"base_url: {problem}")


def api_key(variable: str) -> str:
    """The key in the environment variable, or ``NO_KEY``.

    Raises:
        ValueError: what is there can be no key.
    """
    key = os.environ.get(variable, "").strip() or NO_KEY
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"{variable}: the key in it has characters that no key has. Set it again")
    return key
