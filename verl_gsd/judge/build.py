"""Builds the scorer that a judge's settings describe."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_gsd.judge.prompt import digest
from verl_gsd.judge.scorer import Scorer
from verl_gsd.judge.settings import JudgeSettings, api_key

#: Maximum time in seconds, and maximum size, of a server's list of models.
LISTING_S = 10.0
LISTING_BYTES = 1 << 20
#: What identifies the weights and the context in a server's list of models. vLLM gives ``root`` (the model's path),
#: ``parent`` (of a LoRA adapter) and ``max_model_len``.
_FACTS = ("root", "parent", "max_model_len", "fingerprint", "system_fingerprint")
_FACT_CHARACTERS = 300


def build_scorer(settings: JudgeSettings) -> Scorer:
    """The scorer for ``scorer=openai``, ``distilled`` or ``stub``.

    Raises:
        ValueError: the server does not answer or does not have the model, or a distilled judge's files are damaged. The
            message says what to do.
    """
    if settings.scorer == "stub":
        from verl_gsd.judge.stub import StubScorer

        return StubScorer()
    if settings.scorer == "distilled":
        from verl_gsd.judge.distilled import DistilledScorer

        return DistilledScorer(Path(settings.model or ""))
    if settings.scorer == "openai":
        from verl_gsd.judge.openai_scorer import OpenAIScorer

        model = describe_model(settings)
        return OpenAIScorer(
            str(settings.base_url),
            model.name,
            facts=model.facts,
            api_key_env=settings.api_key_env,
            timeout_s=settings.timeout_s,
            retries=settings.retries,
            answer=settings.answer,
        )
    raise ValueError(
        f"scorer={settings.scorer} needs verl's reward workers, which exist only in a training run. Use another scorer"
    )


@dataclass(frozen=True)
class ServedModel:
    """A model of a server.

    Attributes:
        name: its name on the server.
        facts: what the server says about it and a cached score depends on, as ``name=value`` words. It may be empty.
    """

    name: str
    facts: str = ""


def served_model(settings: JudgeSettings) -> str:
    """The name of the model that ``describe_model`` describes. Raises what it raises."""
    return describe_model(settings).name


def describe_model(settings: JudgeSettings) -> ServedModel:
    """``settings.model``, or the server's only model if that is None.

    Raises:
        ValueError: the server does not answer, does not have the model, or has several models to choose from.
    """
    import openai

    from verl_gsd.judge.key_receiver import foreign_judge

    where = f"base_url={settings.base_url}"
    try:
        models = _list_models(settings)
    except openai.AuthenticationError:
        raise ValueError(
            f"{where}: the server rejects the API key. Export a valid key as {settings.api_key_env}"
        ) from None
    except openai.OpenAIError as error:
        if foreign := foreign_judge(error):
            raise ValueError(f"{where}: {foreign}") from None
        if settings.model is not None and isinstance(error, openai.APIStatusError):
            return ServedModel(settings.model)  # the server answers, but does not list its models
        raise ValueError(
            f"{where}: no judge answers at this URL ({type(error).__name__}). Start a server, for example with vllm "
            "serve, or set scorer=stub for a first run without a server"
        ) from None
    listed = ", ".join(model.name[:80] for model in models[:20]) or "none"
    if settings.model is None and len(models) == 1:
        return models[0]
    if settings.model is None:
        raise ValueError(f"model=null: the models of {settings.base_url} are: {listed}. Set model to one of them")
    for model in models:
        if model.name == settings.model:
            return model
    raise ValueError(
        f"model={settings.model}: the models of {settings.base_url} are: {listed}. Set model to one of them"
    )


def _list_models(settings: JudgeSettings) -> list[ServedModel]:
    """The server's models. Time and size are limited, and entries without a name are left out.

    Raises:
        openai.OpenAIError: there is no answer, or it cannot be parsed.
    """
    import openai

    from verl_gsd.judge.key_receiver import check_sync
    from verl_gsd.judge.openai_client import set_headers

    deadline = time.monotonic() + LISTING_S
    key = api_key(settings.api_key_env)
    hooks = [lambda request: set_headers(request, key), lambda request: check_sync(request, key)]
    with openai.OpenAI(
        base_url=settings.base_url,
        api_key=key,
        timeout=LISTING_S,
        max_retries=0,
        http_client=openai.DefaultHttpxClient(follow_redirects=False, event_hooks={"request": hooks}),
    ) as client:
        body = b""
        try:
            with client.models.with_streaming_response.list() as response:
                for chunk in response.iter_bytes():
                    body += chunk
                    if len(body) > LISTING_BYTES or time.monotonic() > deadline:
                        raise openai.OpenAIError("the list of models is too long or too slow")
        except openai.OpenAIError:
            raise
        except Exception as error:  # while a body is read, the client passes on errors of its HTTP library
            raise openai.OpenAIError(f"the list of models ended early ({type(error).__name__})") from error
    try:
        entries = json.loads(body)["data"]
        named = [(entry["id"], entry) for entry in entries]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise openai.OpenAIError("the answer is not a list of models") from None
    # isprintable() excludes terminal control characters and lone surrogates.
    return [
        ServedModel(name, _facts(entry))
        for name, entry in named
        if isinstance(name, str) and name and name.isprintable()
    ]


def _facts(entry: dict[str, Any]) -> str:
    """The facts of an entry in the list of models, as in ``ServedModel``.

    ``created`` is none of them. Some servers set it to the time of the request, as vLLM does, or to the time of their
    start, so that it differs for the same weights.
    """
    facts = {name: entry[name] for name in _FACTS if isinstance(entry.get(name), str | int)}
    # JSON in ASCII is one line without control characters. A long text is shortened to its digest.
    texts = {name: json.dumps(value) for name, value in facts.items()}
    return " ".join(
        f"{name}={text if len(text) <= _FACT_CHARACTERS else digest(text).hex()}" for name, text in texts.items()
    )
