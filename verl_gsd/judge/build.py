"""From a judge's settings to its scorer."""

from __future__ import annotations

import json
import time
from pathlib import Path

from verl_gsd.judge.scorer import Scorer
from verl_gsd.judge.settings import Settings, api_key

#: Seconds that a server may take to say which models it has.
LISTING_S = 10.0
#: And bytes.
LISTING_BYTES = 1 << 20


def scorer_of(settings: Settings) -> Scorer:
    """The scorer of ``openai``, ``distilled`` or ``stub``.

    Raises:
        ValueError: the server does not answer, or has not the model; a head is damaged; the message says what to write.
    """
    if settings.scorer == "stub":
        from verl_gsd.judge.stub import StubScorer

        return StubScorer()
    if settings.scorer == "distilled":
        from verl_gsd.judge.distilled import DistilledScorer

        return DistilledScorer(Path(settings.model or ""))
    if settings.scorer == "openai":
        from verl_gsd.judge.openai_scorer import OpenAIScorer

        return OpenAIScorer(
            str(settings.base_url),
            served_model(settings),
            api_key_env=settings.api_key_env,
            timeout_s=settings.timeout_s,
            retries=settings.retries,
            answer=settings.answer,
        )
    raise ValueError(f"scorer={settings.scorer}: needs verl's reward workers, which a training run alone has")


def served_model(settings: Settings) -> str:
    """``settings.model``, or the only one that the server has.

    Raises:
        ValueError: the server does not answer, has not the model, or several to choose from.
    """
    import openai

    where = f"base_url={settings.base_url}"
    try:
        models = _listed(settings)
    except openai.AuthenticationError:
        raise ValueError(f"{where}: the server refuses the key. Export it as {settings.api_key_env}") from None
    except openai.OpenAIError as error:
        if settings.model is not None and isinstance(error, openai.APIStatusError):
            return settings.model  # a server that answers, and lists nothing
        raise ValueError(
            f"{where}: no judge answers there ({type(error).__name__}). Start a server, for example with "
            "vllm serve, or set scorer=stub for a first run without one."
        ) from None
    listed = ", ".join(model[:80] for model in models[:20]) or "none"
    if settings.model is None and len(models) == 1:
        return models[0]
    if settings.model is None:
        raise ValueError(f"model=null: the judge at {settings.base_url} has {listed}. Name one")
    if settings.model not in models:
        raise ValueError(f"model={settings.model}: the judge at {settings.base_url} has {listed}")
    return settings.model


def _listed(settings: Settings) -> list[str]:
    """The names that the server lists, of a bounded answer in bounded time; what is no name is left out.

    Raises:
        openai.OpenAIError: there is no answer that could be read.
    """
    import openai

    late = time.monotonic() + LISTING_S
    with openai.OpenAI(
        base_url=settings.base_url,
        api_key=api_key(settings.api_key_env),
        timeout=LISTING_S,
        max_retries=0,
        default_headers={"Accept-Encoding": "identity"},
        http_client=openai.DefaultHttpxClient(follow_redirects=False),
    ) as client:
        body = b""
        with client.models.with_streaming_response.list() as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > LISTING_BYTES or time.monotonic() > late:
                    raise openai.OpenAIError("the list of models has no end")
    try:
        entries = json.loads(body)["data"]
        names = [entry["id"] for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise openai.OpenAIError("no list of models") from None
    # isprintable: no control characters for a terminal, and no lone surrogates.
    return [name for name in names if isinstance(name, str) and name and name.isprintable()]
