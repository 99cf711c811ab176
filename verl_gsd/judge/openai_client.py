"""A client for any server with OpenAI's chat completions API. Servers are not trusted."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from email.utils import mktime_tz, parsedate_tz
from typing import Any, TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, stop_after_attempt, wait_random_exponential

from verl_gsd.judge import key_receiver
from verl_gsd.judge.scorer import JudgementError, Reason
from verl_gsd.judge.settings import api_key, require_plain

#: Failures that may be over at the next call.
_TRANSIENT: frozenset[Reason] = frozenset({"timed_out", "rate_limited", "server_error", "connection"})
#: Failures of the answer itself: the model may do better if it is asked once more.
_UNUSABLE: frozenset[Reason] = frozenset({"unreadable", "off_scale"})

_MAX_BODY_BYTES = 1 << 20  # of an answer; a long chain of thought takes a tenth of it
_MAX_WAIT_S = 30.0  # limit of the back-off, and of the wait that a server's Retry-After header can request
_back_off = wait_random_exponential(multiplier=0.5, max=_MAX_WAIT_S)
_sleep = asyncio.sleep

_T = TypeVar("_T")

# At DEBUG, openai before version 3 logs whole requests, including the texts to be graded.
logging.getLogger("openai._base_client").setLevel(logging.INFO)


def set_headers(request: Any, key: str) -> None:
    """Replace all headers of an httpx request, so that nothing but ``key`` comes from the environment.

    openai adds headers from OPENAI_ORG_ID, OPENAI_PROJECT_ID and OPENAI_CUSTOM_HEADERS, which belong to another server.
    """
    headers = {
        "Host": request.url.netloc.decode("ascii"),
        "Accept": "application/json",
        "Accept-Encoding": "identity",  # the size of a compressed body cannot be limited well
        "User-Agent": "verl-gsd",
        "Authorization": f"Bearer {key}",
        "X-Stainless-Raw-Response": "stream",  # openai reads it from the request: do not read the response's body
    }
    if request.content:
        headers |= {"Content-Type": "application/json", "Content-Length": str(len(request.content))}
    for name in list(request.headers):
        del request.headers[name]
    request.headers.update(headers)


class OpenAIClient:
    """Requests a completion at temperature 0 and parses it.

    Transient failures (no answer in time, no connection, 429, 5xx) are retried after a random, growing wait. The wait
    also respects the server's Retry-After header, up to 30 seconds. An answer that cannot be used is requested once
    more. Both kinds of retries count towards ``retries``. Redirects are not followed, because they would send the
    texts, and maybe the key, to another server. The key is not sent to another user of this machine.

    Args:
        base_url: URL of the API, for example http://localhost:8000/v1.
        model: the model's name on the server.
        api_key_env: the environment variable that holds the key. It may be unset if the server needs no key.
        timeout_s: maximum seconds per call, from connecting to the last byte.
        retries: maximum number of calls after the first one.

    Raises:
        ValueError: ``base_url`` is not a URL, or contains credentials; or the key is not valid in an HTTP header.
    """

    def __init__(self, base_url: str, model: str, *, api_key_env: str, timeout_s: float, retries: int) -> None:
        require_plain(base_url)
        key = api_key(api_key_env)

        async def set_request_headers(request: Any) -> None:
            set_headers(request, key)
            key_receiver.check_async(request, key)

        self._model = model
        self._timeout_s = timeout_s
        self._retries = retries
        self._calls = 0
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key,
            max_retries=0,
            timeout=None,  # we time the whole call ourselves; httpx times each read
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,
                timeout=None,
                event_hooks={"request": [set_request_headers], "response": [_close_failed_response]},
            ),
        )

    @property
    def calls(self) -> int:
        """Number of HTTP requests made so far."""
        return self._calls

    async def ask(self, chat: list[dict[str, str]], options: Mapping[str, Any], parse: Callable[[str], _T]) -> _T:
        """The model's answer to ``chat``, parsed by ``parse``.

        Args:
            options: further fields of the request, for example ``max_tokens``.
            parse: raises a JudgementError "unreadable" or "off_scale" if an answer cannot be used.

        Raises:
            JudgementError: there is no usable answer. The message quotes no request, no answer and no secret.
        """
        unusable = 0

        def should_retry(state: RetryCallState) -> bool:
            nonlocal unusable
            error = state.outcome.exception() if state.outcome else None
            if not isinstance(error, JudgementError):
                return False
            unusable += error.reason in _UNUSABLE
            return error.reason in _TRANSIENT or (error.reason in _UNUSABLE and unusable == 1)

        retrying = AsyncRetrying(
            retry=should_retry, stop=stop_after_attempt(1 + self._retries), wait=_wait, sleep=_sleep, reraise=True
        )
        return await retrying(self._call, chat, options, parse)

    async def close(self) -> None:
        """Release connections. Must run in the event loop that called ``ask``."""
        await self._client.close()

    async def _call(self, chat: list[dict[str, str]], options: Mapping[str, Any], parse: Callable[[str], _T]) -> _T:
        self._calls += 1
        try:
            body = await asyncio.wait_for(self._body(chat, options), self._timeout_s)
        except asyncio.TimeoutError:
            failure: JudgementError = JudgementError("timed_out", f"no answer within {self._timeout_s} s")
        except openai.APIStatusError as error:
            failure = _StatusError(error.status_code, error.response.headers.get("retry-after", ""))
        except (openai.APIConnectionError, key_receiver.ForeignJudgeError, key_receiver.NoListenerError) as error:
            foreign = key_receiver.foreign_judge(error)
            failure = (
                JudgementError("refused", str(foreign)) if foreign else JudgementError("connection", "no connection")
            )
        else:
            return parse(_content(body))
        # Raised outside the except blocks, so that no error is chained: those hold the request with key and texts.
        raise failure

    async def _body(self, chat: list[dict[str, str]], options: Mapping[str, Any]) -> bytes:
        body, is_whole = bytearray(), True
        create: Any = self._client.chat.completions.with_streaming_response.create  # expects typed messages
        async with create(messages=chat, model=self._model, temperature=0, **options) as response:
            try:
                async for chunk in response.http_response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_BODY_BYTES:
                        break
            except Exception:  # only transport errors; httpx's or httpx2's classes, depending on openai's version
                is_whole = False
        if len(body) > _MAX_BODY_BYTES:
            raise JudgementError("unreadable", f"the answer is larger than {_MAX_BODY_BYTES} bytes")
        if not is_whole:
            raise JudgementError("connection", "the connection broke during the answer")
        return bytes(body)


class _StatusError(JudgementError):
    """An HTTP status that is not a success. ``after_s``: seconds to wait, as requested by the server."""

    def __init__(self, status: int, retry_after: str) -> None:
        reason: Reason = "rate_limited" if status == 429 else "server_error" if status >= 500 else "refused"
        super().__init__(reason, f"HTTP status {status}")
        self.after_s = _seconds(retry_after)


def _seconds(retry_after: str) -> float:
    """Seconds requested by a Retry-After header (a number or a date), limited to 0..30. 0 if it cannot be parsed."""
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", retry_after):
            seconds = float(retry_after)
        else:
            date = parsedate_tz(retry_after)
            seconds = mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    return min(max(seconds, 0.0), _MAX_WAIT_S)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    # The random part is added, so that calls rejected at the same time do not return at the same time.
    return _back_off(state) + (error.after_s if isinstance(error, _StatusError) else 0.0)


async def _close_failed_response(response: Any) -> None:
    """Close an unsuccessful response before openai reads its body, which is unlimited and would end up in the error."""
    if not response.is_success:
        await response.aclose()


def _content(body: bytes) -> str:
    """The text of a chat completion's first choice. Raises a JudgementError "unreadable" if there is none."""
    content = finish_reason = None
    try:
        choice = json.loads(body)["choices"][0]
        content, finish_reason = choice["message"]["content"], choice.get("finish_reason")
    except Exception:  # the server may send anything; ``content`` stays None
        pass
    if not isinstance(content, str):
        raise JudgementError("unreadable", "the body is not a chat completion with a text")
    if finish_reason == "length":  # the last line may be the 1 of a 10
        raise JudgementError("unreadable", "the answer was cut off at max_tokens")
    return content
