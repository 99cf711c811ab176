"""Connects to a Ray cluster's job server and lists our jobs.

For a cluster with ``RAY_AUTH_MODE=token``, Ray reads the token from ``RAY_AUTH_TOKEN``, from the file that
``RAY_AUTH_TOKEN_PATH`` names, or from ``~/.ray/auth_token``. The token is never part of a config, an argument or our
output.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

from verl_gsd import listeners
from verl_gsd.errors import ConfigError
from verl_gsd.jobs import checked_connections
from verl_gsd.jobs.submission import RUN_KEY
from verl_gsd.run import own_cluster

#: Seconds to wait for the server's answer, or for the next part of it.
TIMEOUT_S = 60.0


class ClusterError(RuntimeError):
    """The cluster cannot be reached, or rejects us or our request; the message says what to do."""


class ForeignServerError(ClusterError):
    """Another user of this machine listens at the address, so that nothing was sent there."""


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the job server at ``address``, for example http://head:8265, after a first request to it.

    Raises:
        ClusterError: the address is missing or has another form, no server answers, the token is missing or wrong,
            other users of this machine can read it, or one of them listens at the address.
    """
    if not address:
        raise ClusterError(
            "no cluster address is given. Use --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS."
        )
    if not address.startswith(("http://", "https://")):
        raise ClusterError(
            f"--address {address}: not an http:// or https:// URL. Use that of the job server, http://HEAD:8265."
        )
    if problem := own_cluster.token_problem():
        raise ClusterError(problem)
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # otherwise Ray prefers RAY_ADDRESS to its argument

    from ray._private.authentication.http_token_authentication import format_authentication_http_error
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    server = address

    def check(own: tuple[str, int], peer: tuple[str, int]) -> None:
        _check_users(server, listeners.users_of_connection(own, peer))
        # Linux shows root for some connections that the kernel itself accepts for a user (AF_SMC). So one of the
        # permitted users must still listen there.
        _check_users(server, listeners.listening_users(*peer))

    class Client(JobSubmissionClient):
        """Ray's client, with a timeout and a check of who listens, which both hold for every request.

        Without a timeout it waits forever for a server that accepts but does not answer. The server may end while a log
        is followed, and another user could then take its port. The users are checked before a connection, for nothing
        to reach another user who already listens, and again when it is made, before the token is sent. Ray has no place
        for the second check. Both methods therefore replace Ray's, and send the same requests.
        """

        def _do_request(
            self, method: str, endpoint: str, *, data: bytes | None = None, json_data: Any = None, **options: Any
        ) -> Any:
            _check_listener(server)
            options = {"timeout": TIMEOUT_S, "headers": self._headers, "cookies": self._cookies} | options
            with checked_connections.session(check) as session:
                response = session.request(method, self._address + endpoint, data=data, json=json_data, **options)
            if problem := format_authentication_http_error(response.status_code, response.text):
                raise AuthenticationError(problem)
            return response

        async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
            _check_listener(server)
            is_plain = server.startswith("http://")  # otherwise, a certificate says who receives the token
            connector = checked_connections.CheckedConnector(check) if is_plain else None
            async with (
                aiohttp.ClientSession(connector=connector, headers=self._headers, cookies=self._cookies) as session,
                session.ws_connect(f"{self._address}/api/jobs/{job_id}/logs/tail") as stream,
            ):
                async for message in stream:
                    if message.type is aiohttp.WSMsgType.ERROR:
                        raise ConnectionError(str(message.data))
                    if message.type is aiohttp.WSMsgType.TEXT:
                        yield message.data
            if stream.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
                raise ConnectionError(f"the log of {job_id} broke off")

    with raising_cluster_errors(address):
        return Client(address)


def _check_listener(address: str) -> None:
    """Check, before the token is sent to an address of this machine, that this user or root listens there.

    Raises:
        ConnectionError: no process listens there.
        ClusterError: the address has no host or no valid port, or names a user wrongly.
        ForeignServerError: another user listens there.
    """
    try:
        url = urlsplit(address)
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError as error:
        raise ClusterError(f"--address {address}: {error}. Use http://HEAD:8265.") from error
    _check_users(address, listeners.listening_users(url.hostname or "", port))


def _check_users(address: str, users: set[int] | None) -> None:
    """Check that each of the users who would receive what is sent to ``address`` is this user or root.

    Args:
        users: their ids; None if nothing is known, because the address is of another machine.

    Raises:
        ConnectionError: there are none, so that another user could listen there before the request arrives.
        ClusterError: the variable with a trusted user names no user.
        ForeignServerError: one of them is another user.
    """
    if users is None:
        return
    if not users:
        raise ConnectionError(f"no process listens at {address}")
    try:
        foreign = listeners.foreign_user(users)
    except ConfigError as error:
        raise ClusterError(str(error)) from error
    if foreign is not None:
        raise ForeignServerError(
            f"{address}: another user of this machine (id {foreign}) listens there, who would receive the cluster's "
            "token and could run code as you. Nothing was sent. Use the address of your own cluster. If you trust that "
            f"user, set {listeners.TRUSTED}={foreign}."
        )


@contextmanager
def raising_cluster_errors(address: str) -> Iterator[None]:
    """Turn every failure of a request to the job server at ``address`` into a ``ClusterError``."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{address} requires a token, and ours is missing or wrong. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
            "set RAY_AUTH_TOKEN_PATH to a file that contains the token."
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(
            f"{address}: no job server answers there. Use the address of the head node's dashboard."
        ) from error
    except RuntimeError as error:
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(f"{address}: {error}") from error  # Ray's error for any request that the server rejects


def submitted_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """Return the jobs that ``verl-gsd submit`` made on this cluster, oldest first."""
    jobs = [job for job in client.list_jobs() if RUN_KEY in (job.metadata or {})]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def get_job(client: JobSubmissionClient, identifier: str) -> JobDetails:
    """Return the details of a job.

    Raises:
        ClusterError: the cluster has no job with this identifier.
    """
    try:
        return client.get_job_info(identifier)
    except RuntimeError as error:
        if "status code 404" not in str(error):
            raise
        identifiers = [job.submission_id for job in submitted_jobs(client)]
        ours = (
            f"Use one of {', '.join(map(str, identifiers))}." if identifiers else "It has no jobs of verl-gsd submit."
        )
        raise ClusterError(f"{identifier}: the cluster has no such job. {ours}") from error
