"""Follows a job's log while it is written, and reconnects when the connection drops.

The job itself does not depend on the connection. The job server sends the log from its beginning on every new
connection, so the reader skips the characters that it has already shown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
import requests
import tenacity

from verl_gsd.jobs.cluster import ClusterError, ForeignServerError

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

#: Seconds without output before we check the connection: a machine that crashes does not close its connections.
SILENCE_S = 60.0
#: Seconds without an answer of the cluster before we give up. The job continues regardless.
GIVE_UP_S = 600.0

#: Failures of aiohttp, requests and the socket. Ray raises a plain RuntimeError if a stream breaks off.
_CONNECTION_ERRORS = (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)


class ConnectionLostError(ClusterError):
    """The cluster did not answer for ``GIVE_UP_S`` seconds, or it refused to send more of the log."""


class NoAnswerError(ConnectionLostError):
    """The cluster did not answer for ``GIVE_UP_S`` seconds, so that it will not answer about other jobs either."""


def follow(
    client: JobSubmissionClient,
    identifier: str,
    write: Callable[[str], None],
    on_drop: Callable[[], None] = lambda: None,
    wait: tenacity.wait.wait_base | None = None,
) -> JobStatus:
    """Pass each piece of the job's log to ``write`` exactly once, until the job has ended, and return its final status.

    Args:
        on_drop: called after a connection is lost, before the next attempt.
        wait: time before each new connection; by default 1 s, doubling up to 30 s, with jitter.

    Raises:
        NoAnswerError: the cluster stopped answering, for example because nobody listens at its address any more.
        ConnectionLostError: the cluster refused to send more, or another user listens at its address.
    """
    return asyncio.run(_follow(client, identifier, _LogReader(write), on_drop, wait))


class _LogReader:
    """Passes on the new part of a log that every connection sends from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = 0
        self.last_heard = time.monotonic()

    async def read(self, client: JobSubmissionClient, identifier: str) -> bool:
        """Read until the stream ends (True), or until there is no output for ``SILENCE_S`` seconds (False)."""
        position = 0
        stream = client.tail_job_logs(identifier)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), SILENCE_S)
            except StopAsyncIteration:
                return True
            except asyncio.TimeoutError:
                return False
            self.last_heard = time.monotonic()
            new = text[max(0, self._shown - position) :]
            position += len(text)
            if new:
                self._write(new)
                self._shown = position


async def _until_end(client: JobSubmissionClient, identifier: str, reader: _LogReader) -> JobStatus:
    while True:
        ended = await reader.read(client, identifier)
        status = await asyncio.to_thread(client.get_job_status, identifier)
        reader.last_heard = time.monotonic()
        if ended and status.is_terminal():
            return status
        if ended:  # the stream was closed normally, but the job still runs: something in between cut the connection
            raise ConnectionResetError(f"the log of {identifier} broke off")


async def _follow(
    client: JobSubmissionClient,
    identifier: str,
    reader: _LogReader,
    on_drop: Callable[[], None],
    wait: tenacity.wait.wait_base | None,
) -> JobStatus:
    attempts = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(_is_drop),
        wait=wait or tenacity.wait_exponential_jitter(initial=1, max=30),
        stop=lambda _: time.monotonic() - reader.last_heard > GIVE_UP_S,
        before_sleep=lambda _: on_drop(),
        reraise=True,
    )
    try:
        async for attempt in attempts:
            with attempt:
                status = await _until_end(client, identifier, reader)
    except _CONNECTION_ERRORS as error:
        reason = str(error) or type(error).__name__
        if _is_drop(error):
            raise NoAnswerError(f"{reason}. It did not answer for {GIVE_UP_S / 60:g} minutes") from error
        raise ConnectionLostError(reason) from error
    return status


def _is_drop(error: BaseException) -> bool:
    """Whether reconnecting may help: not if the cluster refuses the request, does not have the job, or is another's."""
    refused = isinstance(error, aiohttp.WSServerHandshakeError) and error.status in (401, 403, 404)
    refused |= isinstance(error, ForeignServerError)
    unknown = isinstance(error, RuntimeError) and "status code 404" in str(error)
    return isinstance(error, _CONNECTION_ERRORS) and not refused and not unknown
