"""Following a job's log when connections drop."""

import asyncio

import aiohttp
import pytest
import tenacity
import yarl
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from ray.job_submission import JobStatus

from verl_gsd.jobs import following
from verl_gsd.jobs.following import ConnectionLostError, NoAnswerError, follow


class StubServer:
    """Stands in for Ray's job client. Sends a log from its beginning at each connection, and drops it as scripted."""

    def __init__(self, log, drops, statuses=(JobStatus.SUCCEEDED,), size=3):
        self.log, self.size = log, size
        self.drops, self.statuses = list(drops), list(statuses)
        self.connections = 0

    async def tail_job_logs(self, job):
        self.connections += 1
        end, error = self.drops.pop(0) if self.drops else (len(self.log), None)
        for start in range(0, end, self.size):
            yield self.log[start : min(start + self.size, end)]
        if error == "silence":
            await asyncio.Event().wait()
        elif error is not None:
            raise error

    def get_job_status(self, job):
        status = self.statuses[0] if len(self.statuses) == 1 else self.statuses.pop(0)
        if isinstance(status, Exception):
            raise status
        return status


def followed(server, **kwargs):
    shown, drops = [], []
    state = follow(server, "job", shown.append, on_drop=lambda: drops.append(1), wait=tenacity.wait_none(), **kwargs)
    return state, "".join(shown), len(drops)


LOG = "step 1\nstep 2\nστεπ 3\n"


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(LOG)),
            st.sampled_from([aiohttp.ClientConnectionError(), RuntimeError("closed"), ConnectionResetError()]),
        ),
        max_size=6,
    ),
    st.integers(1, 8),
)
def test_every_character_is_shown_once_despite_drops(drops, size):
    server = StubServer(LOG, drops, size=size)
    assert followed(server) == (JobStatus.SUCCEEDED, LOG, len(drops))
    assert server.connections == len(drops) + 1


def test_stream_that_ends_before_the_job_counts_as_a_drop():
    server = StubServer(LOG, [(5, None)], statuses=[JobStatus.RUNNING, JobStatus.FAILED])
    assert followed(server) == (JobStatus.FAILED, LOG, 1)


def test_unreachable_server_is_asked_for_the_state_again():
    server = StubServer(LOG, [], statuses=[ConnectionRefusedError(), JobStatus.SUCCEEDED])
    assert followed(server) == (JobStatus.SUCCEEDED, LOG, 1)


def test_silence_leads_to_a_reconnect_but_is_not_a_drop(monkeypatch):
    monkeypatch.setattr(following, "SILENCE_S", 0.01)
    server = StubServer(LOG, [(9, "silence"), (12, "silence")], statuses=[JobStatus.RUNNING, JobStatus.SUCCEEDED])
    assert followed(server) == (JobStatus.SUCCEEDED, LOG, 0)
    assert server.connections == 3


def handshake(status):
    request = aiohttp.RequestInfo(yarl.URL("http://head:8265"), "GET", CIMultiDictProxy(CIMultiDict()))
    return aiohttp.WSServerHandshakeError(request, (), status=status, message="refused")


@pytest.mark.parametrize("error", [handshake(403), handshake(404), RuntimeError("Request failed with status code 404")])
def test_refusals_are_not_retried(error):
    server = StubServer(LOG, [(3, error)])
    with pytest.raises(ConnectionLostError) as refused:
        followed(server)
    assert server.connections == 1 and not isinstance(refused.value, NoAnswerError)


def test_unreachable_cluster_is_given_up(monkeypatch):
    monkeypatch.setattr(following, "GIVE_UP_S", 0.0)
    server = StubServer(LOG, [(0, ConnectionRefusedError("away"))] * 9)
    with pytest.raises(NoAnswerError, match=r"away\. It did not answer for 0 minutes"):
        followed(server)
