"""A job's log as it is written, across connections that drop.

A job does not depend on who watches it. The job server sends a log from its beginning to whoever connects, so a new
connection leaves out the characters that were shown already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import aiohttp
import requests
import tenacity

from verl_gsd.jobs.cluster import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobStatus, JobSubmissionClient

#: Seconds without a word before a connection counts as dropped: a machine that vanished closes nothing.
SILENCE = 60.0
#: Seconds without a cluster that answers before we give up; the job goes on whatever we do.
PATIENCE = 600.0

#: aiohttp's, requests' and the socket's own failures. Ray raises a bare RuntimeError for a stream that broke off.
_DROPPED = (aiohttp.ClientError, requests.RequestException, OSError, RuntimeError)


class LostError(ClusterError):
    """The cluster did not answer for ``PATIENCE`` seconds, or refused to go on showing the log."""


def follow(
    client: JobSubmissionClient,
    identifier: str,
    write: Callable[[str], None],
    on_drop: Callable[[], None] = lambda: None,
    wait: tenacity.wait.wait_base | None = None,
) -> JobStatus:
    """Hand every piece of the job's log to ``write``, once, until the job has ended; its final status.

    Args:
        on_drop: called when a connection was lost, before the next is made.
        wait: how long before each new connection; by default 1 s, doubling up to 30 s, with jitter.

    Raises:
        LostError: as it says. KeyboardInterrupt passes, as anywhere.
    """
    return asyncio.run(_follow(client, identifier, _LogReader(write), on_drop, wait))


class _LogReader:
    """Hands on what is new of a log that is sent from its beginning again and again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._shown = 0
        self.last_heard = time.monotonic()

    async def read(self, client: JobSubmissionClient, identifier: str) -> bool:
        """Until the stream ends (True), or nothing has come for ``SILENCE`` seconds (False)."""
        position = 0
        stream = client.tail_job_logs(identifier)
        while True:
            try:
                text = await asyncio.wait_for(anext(stream), SILENCE)
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
        at_end = await reader.read(client, identifier)
        status = await asyncio.to_thread(client.get_job_status, identifier)
        reader.last_heard = time.monotonic()
        if at_end and status.is_terminal():
            return status
        if at_end:  # in good order, but before the job: something between us cut it
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
        stop=lambda _: time.monotonic() - reader.last_heard > PATIENCE,
        before_sleep=lambda _: on_drop(),
        reraise=True,
    )
    try:
        async for attempt in attempts:
            with attempt:
                status = await _until_end(client, identifier, reader)
    except _DROPPED as error:
        raise LostError(str(error) or type(error).__name__) from error
    return status


def _is_drop(error: BaseException) -> bool:
    """Whether a new connection may help: not where the cluster answers that it will not, or knows no such job."""
    refused = isinstance(error, aiohttp.WSServerHandshakeError) and error.status in (401, 403, 404)
    unknown = isinstance(error, RuntimeError) and "status code 404" in str(error)
    return isinstance(error, _DROPPED) and not refused and not unknown
