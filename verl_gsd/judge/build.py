"""From a judge's settings to its scorer."""

from __future__ import annotations

import os
from pathlib import Path

from verl_gsd.judge.scorer import Scorer
from verl_gsd.judge.settings import Settings

#: Seconds that a server may take to say which models it has.
LISTING_S = 10.0


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
    """``settings.model``, if the server has it, or the only one it has.

    Raises:
        ValueError: it does not answer, or has another, or several to choose from.
    """
    import openai

    where = f"base_url={settings.base_url}"
    key = os.environ.get(settings.api_key_env) or "none"
    try:
        with openai.OpenAI(base_url=settings.base_url, api_key=key, timeout=LISTING_S, max_retries=0) as client:
            models = [model.id for model in client.models.list().data or []]
    except openai.AuthenticationError:
        raise ValueError(f"{where}: the server refuses the key. Export it as {settings.api_key_env}") from None
    except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where}: no judge answers there ({type(error).__name__}). Start a server, as recipes/dagrpo says, or "
            "write scorer=stub for a first run without one"
        ) from None
    if settings.model is not None:
        if settings.model not in models:
            raise ValueError(
                f"model={settings.model}: the judge at {settings.base_url} has {', '.join(models) or 'none'}"
            )
        return settings.model
    if len(models) != 1:
        raise ValueError(f"model=null: the judge at {settings.base_url} has {', '.join(models) or 'none'}. Name one")
    return models[0]
