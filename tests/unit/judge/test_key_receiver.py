"""The judge's key is sent to no other user of this machine."""

import asyncio
import importlib
import os
from contextlib import contextmanager

import pytest
from hostile_server import JSON, HostileServer, completion, http

from verl_gsd import listeners
from verl_gsd.judge import key_receiver
from verl_gsd.judge.build import served_model
from verl_gsd.judge.openai_scorer import OpenAIScorer
from verl_gsd.judge.scorer import JudgementError, Question
from verl_gsd.judge.settings import JudgeSettings

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

NOBODY = 65534
KEY, VARIABLE = "a-key-of-the-victim", "VERL_GSD_JUDGE_API_KEY"
MODELS = http(200, b'{"data": [{"id": "judge-7b"}]}', JSON)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", listeners.TRUSTED_JUDGE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(VARIABLE, KEY)


@contextmanager
def serving(*script, user=0):
    """A server of another user. A socket belongs to the user who creates it."""
    server = HostileServer(*script)
    os.seteuid(user)
    try:
        server.__enter__()
    finally:
        os.seteuid(0)
    try:
        yield server
    finally:
        server.__exit__()


def ask(url):
    """The score, or the JudgementError."""

    async def asked():
        scorer = OpenAIScorer(url, "judge-7b")
        try:
            return await scorer.score(Question("1+1?", "2", "2"))
        except JudgementError as error:
            return error
        finally:
            await scorer.close()

    return asyncio.run(asked())


@as_root
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_another_user_who_listens_at_the_judges_address_gets_no_key(host):
    """The reproduction of a review: the other user took the port before the judge was up."""
    with serving(completion("7"), user=NOBODY) as server:
        url = server.url.replace("127.0.0.1", host)
        failure = ask(url)
        assert failure.reason == "refused" and f"another user of this machine (id {NOBODY})" in str(failure)
        with pytest.raises(ValueError, match=rf"^base_url={url}: another user .*VERL_GSD_JUDGE_USER={NOBODY}"):
            served_model(JudgeSettings.of({"base_url": url}))
        assert server.headers == []


@as_root
def test_another_user_who_takes_the_port_of_a_judge_that_has_ended_gets_no_key(monkeypatch):
    """The same client was connected to the user's own server before."""

    async def asked():
        with HostileServer(completion("7")) as own:
            scorer = OpenAIScorer(own.url, "judge-7b")
            first = await scorer.score(Question("1+1?", "2", "2"))
        port = int(own.url.rpartition(":")[2].partition("/")[0])
        os.seteuid(NOBODY)
        try:
            other = await asyncio.start_server(receive, "127.0.0.1", port)
        finally:
            os.seteuid(0)
        async with other:
            with pytest.raises(JudgementError, match="another user"):
                await scorer.score(Question("1+2?", "3", "3"))
        await scorer.close()
        return first

    received = []

    async def receive(reader, writer):
        received.append(await reader.read(1 << 16))
        writer.close()

    assert asyncio.run(asked()) == 7.0 and b"".join(received) == b""


@as_root
def test_a_user_whom_the_variable_names_gets_the_key(monkeypatch):
    with serving(MODELS, completion("7"), user=NOBODY) as server:
        monkeypatch.setenv(listeners.TRUSTED_JUDGE, str(NOBODY))
        assert served_model(JudgeSettings.of({"base_url": server.url})) == "judge-7b"
        assert ask(server.url) == 7.0
        monkeypatch.setenv(listeners.TRUSTED_JUDGE, "no such user")
        failure = ask(server.url)
    assert failure.reason == "refused" and "VERL_GSD_JUDGE_USER=no such user: this machine has no such" in str(failure)
    assert [f"authorization: bearer {KEY}" in head.lower() for head in server.headers] == [True, True]


@as_root
def test_nothing_is_checked_without_a_key(monkeypatch):
    monkeypatch.delenv(VARIABLE)
    with serving(MODELS, completion("7"), user=NOBODY) as server:
        assert served_model(JudgeSettings.of({"base_url": server.url})) == "judge-7b"
        assert ask(server.url) == 7.0


def test_a_server_of_this_user_gets_the_key():
    with HostileServer(MODELS, completion("7")) as server:
        assert served_model(JudgeSettings.of({"base_url": server.url})) == "judge-7b"
        assert ask(server.url) == 7.0
    assert all(f"authorization: bearer {KEY}" in head.lower() for head in server.headers)


@as_root
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_connections_of_both_http_libraries_are_checked(library):
    """Which of the two openai uses depends on its version."""
    module = pytest.importorskip(library) if library == "httpx2" else importlib.import_module(library)

    async def get(url):
        async def check(request):
            key_receiver.check_async(request, KEY)

        async with module.AsyncClient(event_hooks={"request": [check]}) as client:
            await client.get(url)

    hook = {"request": [lambda request: key_receiver.check_sync(request, KEY)]}
    with serving(MODELS, user=NOBODY) as server:
        with module.Client(event_hooks=hook) as client, pytest.raises(key_receiver.ForeignJudgeError):
            client.get(server.url)
        with pytest.raises(key_receiver.ForeignJudgeError):
            asyncio.run(get(server.url))
    assert server.headers == []


@pytest.mark.parametrize("accepted_by", [set(), {0}])
def test_a_connection_to_an_address_at_which_nobody_listens_gets_no_key(monkeypatch, accepted_by):
    """The kernel shows root for some connections that it accepts for a user, who can close the listener afterwards."""
    monkeypatch.setattr(listeners, "users_of_connection", lambda *_: accepted_by)
    monkeypatch.setattr(listeners, "listening_users", lambda *_: set())
    with HostileServer(MODELS, completion("7")) as server:
        failure = ask(server.url)
        with pytest.raises(ValueError, match="no judge answers at this URL"):
            served_model(JudgeSettings.of({"base_url": server.url}))
    assert failure.reason == "connection" and server.headers == []


def test_the_error_is_found_where_openai_wraps_it():
    """Versions before 3 do, and version 3 does not."""
    error, wrapping = key_receiver.ForeignJudgeError("x"), ValueError()
    wrapping.__cause__ = error
    assert key_receiver.foreign_judge(error) is key_receiver.foreign_judge(wrapping) is error
    assert key_receiver.foreign_judge(ValueError()) is None
