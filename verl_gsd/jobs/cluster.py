"""A Ray cluster's job server: reaching it, and what it says of our jobs.

Ray takes the token of a cluster with ``RAY_AUTH_MODE=token`` from ``RAY_AUTH_TOKEN``, from the file that
``RAY_AUTH_TOKEN_PATH`` names, or from ``~/.ray/auth_token``. It is in no config, no argument and nothing we print.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

from verl_gsd.jobs.submission import RUN

#: Seconds that a server may take for an answer, or for the next part of it.
TIMEOUT_S = 60.0


class ClusterError(RuntimeError):
    """The cluster cannot be reached, refuses us, or refuses what we ask; the message says what to do."""


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the job server at ``address``, e.g. http://head:8265; its answers are checked once.

    Raises:
        ClusterError: no address, one of another kind, nobody there, or a token that is missing or wrong.
    """
    if not address:
        raise ClusterError("which cluster? Write --address http://HEAD:8265, or set RAY_API_SERVER_ADDRESS.")
    if not address.startswith(("http://", "https://")):
        raise ClusterError(f"--address {address}: write that of the job server, http://HEAD:8265.")
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray lets RAY_ADDRESS win over what it is told

    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        """Ray's waits for ever for a server that accepts and does not answer."""

        def _do_request(self, *words: Any, **options: Any) -> Any:
            return super()._do_request(*words, **{"timeout": TIMEOUT_S} | options)

    with answering(address):
        return Client(address)


@contextmanager
def answering(address: str) -> Iterator[None]:
    """Whatever goes wrong between us and the job server at ``address``, as a ``ClusterError``."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(
            f"{address} wants a token, and none or another was given. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or "
            "RAY_AUTH_TOKEN_PATH to a file that has it."
        ) from error
    except (ConnectionError, requests.RequestException) as error:
        raise ClusterError(f"{address}: no job server answers there. It is the head's dashboard.") from error
    except RuntimeError as error:
        if isinstance(error, ClusterError):
            raise
        raise ClusterError(f"{address}: {error}") from error  # Ray's, for whatever the server refuses


def our_jobs(client: JobSubmissionClient) -> list[JobDetails]:
    """Jobs that ``verl-gsd submit`` made on this cluster, oldest first."""
    jobs = [job for job in client.list_jobs() if RUN in (job.metadata or {})]
    return sorted(jobs, key=lambda job: job.start_time or 0)


def job(client: JobSubmissionClient, identifier: str) -> JobDetails:
    """What the cluster knows of one job.

    Raises:
        ClusterError: it knows none of that name.
    """
    try:
        return client.get_job_info(identifier)
    except RuntimeError as error:
        if "status code 404" not in str(error):
            raise
        names = [job.submission_id for job in our_jobs(client)]
        known = f"It has {', '.join(map(str, names))}." if names else "It has none of ours."
        raise ClusterError(f"{identifier}: the cluster knows no such job. {known}") from error
