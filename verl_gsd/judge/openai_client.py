"""The way to a model behind HTTP: any server that speaks OpenAI's chat completions. Servers are not trusted."""

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

from verl_gsd.judge.scorer import JudgementError, Reason
from verl_gsd.judge.settings import api_key, require_plain

#: Failures of a moment; and those of a judge that may do better asked once more.
_PASSING: frozenset[Reason] = frozenset({"timed_out", "rate_limited", "server_error", "connection"})
_UNUSABLE: frozenset[Reason] = frozenset({"unreadable", "off_scale"})

_LARGEST_BODY = 1 << 20  # bytes of an answer; a long chain of thought takes a tenth
_LONGEST_WAIT_S = 30.0  # that a server's Retry-After can ask for, and that the back-off grows to
_back_off = wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT_S)
_sleep = asyncio.sleep

_T = TypeVar("_T")

# At DEBUG openai's versions before 3 log whole requests, the texts to be graded included.
logging.getLogger("openai._base_client").setLevel(logging.INFO)


class OpenAIClient:
    """Asks a model for a text at temperature 0, and reads it.

    Calls that fail for a moment (no answer in time, no connection, 429, 5xx) are made again after a random wait that
    widens, no sooner than the server's Retry-After asks, which counts up to 30 seconds; an answer that cannot be used
    is asked for once more. All of it within ``retries``. Redirects are not followed: they would take the texts, and
    maybe the key, elsewhere.

    Args:
        base_url: where the API is, such as http://localhost:8000/v1.
        model: as the server names it.
        api_key_env: the environment variable that has the key; unset for a server that asks for none.
        timeout_s: seconds one call takes at most, from connecting to the last byte.
        retries: calls beyond the first, at most.

    Raises:
        ValueError: ``base_url`` is no URL, or holds credentials; or the key cannot be part of a header.
    """

    def __init__(self, base_url: str, model: str, *, api_key_env: str, timeout_s: float, retries: int) -> None:
        require_plain(base_url)
        key = api_key(api_key_env)
        self._model = model
        self._timeout_s = timeout_s
        self._retries = retries
        self._calls = 0
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=key,
            max_retries=0,
            timeout=None,  # ours covers the whole of a call, which httpx's does not
            default_headers={"Accept-Encoding": "identity"},  # a compressed body has no bound worth the name
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False, timeout=None, event_hooks={"response": [_leave_body_of_failure]}
            ),
        )

    @property
    def calls(self) -> int:
        """HTTP requests made so far."""
        return self._calls

    async def ask(self, chat: list[dict[str, str]], form: Mapping[str, Any], read: Callable[[str], _T]) -> _T:
        """What ``read`` makes of the model's answer.

        Args:
            form: the part of a request that says what form the answer has, ``max_tokens`` and the like.
            read: raises JudgementError "unreadable" or "off_scale" for an answer that cannot be used.

        Raises:
            JudgementError: there is none; the message has no text of a request or an answer, and no secret.
        """
        unusable = 0

        def may_help(state: RetryCallState) -> bool:
            nonlocal unusable
            error = state.outcome.exception() if state.outcome else None
            if not isinstance(error, JudgementError):
                return False
            unusable += error.reason in _UNUSABLE
            return error.reason in _PASSING or (error.reason in _UNUSABLE and unusable == 1)

        retrying = AsyncRetrying(
            retry=may_help, stop=stop_after_attempt(1 + self._retries), wait=_wait, sleep=_sleep, reraise=True
        )
        return await retrying(self._call, chat, form, read)

    async def close(self) -> None:
        """Give back connections; in the event loop that asked."""
        await self._client.close()

    async def _call(self, chat: list[dict[str, str]], form: Mapping[str, Any], read: Callable[[str], _T]) -> _T:
        self._calls += 1
        try:
            body = await asyncio.wait_for(self._body(chat, form), self._timeout_s)
        except asyncio.TimeoutError:
            failure: JudgementError = JudgementError("timed_out", f"no answer in {self._timeout_s} s")
        except openai.APIStatusError as error:
            failure = _StatusError(error.status_code, error.response.headers.get("retry-after", ""))
        except openai.APIConnectionError:
            failure = JudgementError("connection", "no connection")
        else:
            return read(_content(body))
        # Out here nothing is chained to it: the errors above know the request, key and texts included.
        raise failure

    async def _body(self, chat: list[dict[str, str]], form: Mapping[str, Any]) -> bytes:
        body, is_whole = bytearray(), True
        create: Any = self._client.chat.completions.with_streaming_response.create  # its messages are of typed classes
        async with create(messages=chat, model=self._model, temperature=0, **form) as response:
            try:
                async for chunk in response.http_response.aiter_raw():
                    body += chunk
                    if len(body) > _LARGEST_BODY:
                        break
            except Exception:  # of the transport alone; by openai's version its classes are httpx's or httpx2's
                is_whole = False
        if len(body) > _LARGEST_BODY:
            raise JudgementError("unreadable", f"an answer of more than {_LARGEST_BODY} bytes")
        if not is_whole:
            raise JudgementError("connection", "the connection broke within the answer")
        return bytes(body)


class _StatusError(JudgementError):
    """An answer with a status that is no success; ``after_s``: seconds the server asks to wait."""

    def __init__(self, status: int, retry_after: str) -> None:
        reason: Reason = "rate_limited" if status == 429 else "server_error" if status >= 500 else "refused"
        super().__init__(reason, f"HTTP status {status}")
        self.after_s = _seconds(retry_after)


def _seconds(retry_after: str) -> float:
    """What a Retry-After header asks for, seconds or a date, within 0..30; 0 where it cannot be read."""
    try:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", retry_after):
            seconds = float(retry_after)
        else:
            date = parsedate_tz(retry_after)
            seconds = mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        seconds = 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT_S)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    # The random part comes on top: calls refused together are not to come back together.
    return _back_off(state) + (error.after_s if isinstance(error, _StatusError) else 0.0)


async def _leave_body_of_failure(response: Any) -> None:
    """Close a response that is no success before openai reads it: it has no bound, and the error would quote it."""
    if not response.is_success:
        await response.aclose()


def _content(body: bytes) -> str:
    """The text of a chat completion's first choice; JudgementError "unreadable" where there is none."""
    content = ending = None
    try:
        choice = json.loads(body)["choices"][0]
        content, ending = choice["message"]["content"], choice.get("finish_reason")
    except Exception:  # whatever a server may send in place of this; ``content`` stays None
        pass
    if not isinstance(content, str):
        raise JudgementError("unreadable", "the body is no chat completion with a text")
    if ending == "length":  # its last line may be the 1 of a 10
        raise JudgementError("unreadable", "the answer was cut off at max_tokens")
    return content
