"""Connects to a Ray cluster's job server and lists our jobs.

For a cluster with ``RAY_AUTH_MODE=token``, Ray reads the token from ``RAY_AUTH_TOKEN``, from the file that
``RAY_AUTH_TOKEN_PATH`` names, or from ``~/.ray/auth_token``. The token is never part of a config, an argument or our
output.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

from verl_gsd.jobs.submission import RUN_KEY
from verl_gsd.run import own_cluster

#: Seconds to wait for the server's answer, or for the next part of it.
TIMEOUT_S = 60.0


class ClusterError(RuntimeError):
    """The cluster cannot be reached, or rejects us or our request; the message says what to do."""


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the job server at ``address``, for example http://head:8265, after a first request to it.

    Raises:
        ClusterError: the address is missing or has another form, no server answers, the token is missing or wrong, or
            other users of this machine can read it.
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

    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's client, with a timeout. Without one it waits forever for a server that accepts but does not answer."""

        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(*args, **{"timeout": TIMEOUT_S} | options)

    with raising_cluster_errors(address):
        return Client(address)


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
