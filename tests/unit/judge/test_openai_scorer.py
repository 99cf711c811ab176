"""OpenAIScorer against a misbehaving server: every failure has its reason, and none becomes a score."""

import asyncio
import datetime
import email.utils
import json
import logging
import socket
import traceback

import pytest
from hostile_server import (
    JSON,
    HostileServer,
    completion,
    endless,
    endless_failure,
    hang,
    http,
    trickle,
)

from verl_gsd.judge import openai_client
from verl_gsd.judge.build import served_model
from verl_gsd.judge.openai_scorer import OpenAIScorer
from verl_gsd.judge.scorer import JudgementError, Question
from verl_gsd.judge.settings import JudgeSettings
from verl_gsd.judge.verdicts import verify_all

QUESTION = Question("What is 6 times 7?", "42", "Six sevens are forty-two. 42")
KEY = "sk-very-secret-0123456789"
MODELS = json.dumps({"data": [{"id": "judge-7b"}]}).encode()


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Remove proxies and keys. Returns the waits between calls, which are recorded instead of slept."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "VERL_GSD_JUDGE_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    waited = []

    async def wait(seconds):
        waited.append(seconds)

    monkeypatch.setattr(openai_client, "_sleep", wait)
    return waited


def ask(server, question=QUESTION, **options):
    """(score or reason of failure, number of HTTP requests)."""

    async def asked():
        scorer = OpenAIScorer(server.url, "judge-7b", **options)
        try:
            return await scorer.score(question), scorer.calls
        except JudgementError as error:
            assert error.__context__ is None and error.__cause__ is None
            return error.reason, scorer.calls
        finally:
            await scorer.close()

    return asyncio.run(asked())


def test_the_score_is_parsed_from_the_answer():
    with HostileServer(completion("7")) as server:
        assert ask(server) == (7.0, 1)
    (request,), (head,) = server.requests, server.headers
    assert "accept-encoding: identity" in head.lower() and head.startswith("POST /v1/chat/completions ")
    assert request["temperature"] == 0 and request["model"] == "judge-7b" and request["max_tokens"] <= 16
    assert request["structured_outputs"] == {"choice": [str(score) for score in range(11)]}


def test_json_schema_and_text_answers():
    with HostileServer(completion('{"score": 3}'), completion("It is sound.\n9")) as server:
        assert ask(server, answer="json_schema", max_tokens=99) == (3.0, 1)
        assert ask(server, answer="text", max_tokens=99) == (9.0, 1)
    schema, text = server.requests
    assert schema["response_format"]["json_schema"]["schema"]["properties"]["score"]["enum"] == list(range(11))
    assert schema["max_tokens"] == text["max_tokens"] == 99
    assert "response_format" not in text and "structured_outputs" not in text


UNREADABLE = {
    "truncated JSON": http(200, b'{"choices": [{"message": {"content": "7', JSON),
    "no JSON": http(200, b"<html>7</html>", "Content-Type: text/html"),
    "not UTF-8": http(200, b'{"choices": [{"message": {"content": "\xff7"}}]}', JSON),
    "nested without end": http(200, b"[" * 200_000, JSON),
    "nothing": http(200, b"", JSON),
    "no content": http(204),
    "compressed": http(200, b"\x1f\x8b\x08\x00junk", JSON, "Content-Encoding: gzip"),
    "a list": http(200, b"[7]", JSON),
    "a number": http(200, b"7", JSON),
    "null": http(200, b"null", JSON),
    "no choices": http(200, b'{"choices": []}', JSON),
    "choices of text": http(200, b'{"choices": "7"}', JSON),
    "choices by name": http(200, b'{"choices": {"0": {"message": {"content": "7"}}}}', JSON),
    "no message": http(200, b'{"choices": [{"message": null}]}', JSON),
    "an error with 200": http(200, b'{"error": {"message": "7"}}', JSON),
    "content null": completion(None),
    "content a list": completion([{"type": "text", "text": "7"}]),
    "content a number": completion(7),
    "content true": completion(True),
    "a word": completion("ten"),
    "empty": completion(""),
    "two": completion("10 10"),
    "a share": completion("7/100"),
    "cut off": completion("It is sound.\n1", ending="length"),
}


@pytest.mark.parametrize("answer", UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_answer_is_requested_once_more(answer):
    with HostileServer(answer) as server:
        assert ask(server, retries=5) == ("unreadable", 2)


def test_the_second_answer_is_used_unless_retries_is_zero():
    for answer in (UNREADABLE["no JSON"], UNREADABLE["a word"]):
        with HostileServer(answer, completion("4")) as server:
            assert ask(server) == (4.0, 2)
        with HostileServer(answer) as server:
            assert ask(server, retries=0) == ("unreadable", 1)


@pytest.mark.parametrize("score", ["11", "-1", "999999999999999999999", '{"score": 11}'])
def test_a_score_off_the_scale_is_a_failure(score):
    with HostileServer(completion(score)) as server:
        assert ask(server, retries=5) == ("off_scale", 2)


def test_two_unusable_answers_of_different_kinds_are_a_failure():
    with HostileServer(completion("11"), completion("eleven"), completion("1")) as server:
        assert ask(server, retries=5) == ("unreadable", 2)


@pytest.mark.parametrize(
    "answer, reason",
    [
        (http(429, b"slow down"), "rate_limited"),
        (http(500, b"7"), "server_error"),
        (http(503, b'{"error": {"message": "7"}}', JSON), "server_error"),
        (http(500, b"[" * 200_000, JSON), "server_error"),
        (endless_failure, "server_error"),
        (http(200, b'{"choices": [{"message": {"content": "7"}', JSON, length=100_000), "connection"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n7", "connection"),
        (b"", "connection"),
        (b"220 mail ready\r\n", "connection"),
        (http(200, b"", "Content-Length: 7"), "connection"),
    ],
)
def test_transient_failures_are_retried_until_retries_run_out(answer, reason, waits):
    with HostileServer(answer) as server:
        assert ask(server, retries=3) == (reason, 4)
    assert len(waits) == 3 and all(0 <= wait <= 2 * 30 for wait in waits)


@pytest.mark.parametrize("answer", [http(429, b"slow down"), http(500, b"7"), b""], ids=["limit", "error", "nothing"])
def test_a_retry_after_a_transient_failure_gives_a_score(answer):
    with HostileServer(answer, answer, completion("6")) as server:
        assert ask(server, retries=2) == (6.0, 3)


@pytest.mark.parametrize("answer", [hang, trickle])
def test_a_call_ends_at_its_timeout(answer):
    with HostileServer(answer) as server:
        assert ask(server, retries=1, timeout_s=0.2) == ("timed_out", 2)


def test_an_endless_body_is_aborted():
    with HostileServer(endless) as server:
        assert ask(server, timeout_s=600) == ("unreadable", 2)


def test_a_server_that_does_not_run():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        class Nobody:
            url = f"http://127.0.0.1:{port}/v1"

        assert ask(Nobody) == ("connection", 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_a_rejected_request_is_not_retried(status):
    with HostileServer(http(status, b'{"error": {"message": "7"}}', JSON)) as server:
        assert ask(server) == ("refused", 1)


@pytest.mark.parametrize(
    ("status", "location"),
    [(307, "/v1/elsewhere")]
    + [(301, place) for place in ("/v1/elsewhere", "http://127.0.0.1:1/v1", "http://[", "//:x", "\x00\xff")],
)
def test_redirects_are_not_followed(status, location):
    with HostileServer(http(status, b"", f"Location: {location}"), completion("7")) as server:
        outcome, calls = ask(server, retries=0)
    assert outcome in ("refused", "connection") and calls == len(server.requests) == 1


@pytest.mark.parametrize(
    "retry_after, least",
    [("3", 3), ("2.5", 2.5), ("1000000", 30), ("9" * 500, 30)]
    + [
        (nonsense, 0) for nonsense in ("-5", "nan", "inf", "soon", "1e3", "Fri, 99 Foo 99999 99:99:99 GMT", "\xff", "٣")
    ],
)
def test_retry_after_is_respected_up_to_a_limit(retry_after, least, waits):
    with HostileServer(
        http(429, b"", f"Retry-After: {retry_after}").decode().encode("utf-8"), completion("5")
    ) as server:
        assert ask(server) == (5.0, 2)
    (wait,) = waits
    assert least <= wait <= least + 0.5  # the first back-off is half a second at most


@pytest.mark.parametrize("days, least", [(1, 30), (-1, 0)])
def test_a_date_in_retry_after(days, least, waits):
    when = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    answer = http(503, b"", f"Retry-After: {email.utils.format_datetime(when, usegmt=True)}")
    with HostileServer(answer, completion("5")) as server:
        assert ask(server) == (5.0, 2)
    assert least <= waits[0] <= least + 0.5


def test_the_key_is_sent_to_the_server_and_appears_nowhere_else(monkeypatch, caplog):
    monkeypatch.setenv("VERL_GSD_JUDGE_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "another-secret")
    caplog.set_level(logging.DEBUG)
    answers = [completion("11"), http(401), http(429), http(500), b"", endless, http(200, KEY.encode())]
    seen = []
    for answer in answers:
        with HostileServer(answer) as server:
            scorer = OpenAIScorer(server.url, "judge-7b", retries=1)

            async def failing(scorer=scorer):
                try:
                    await scorer.score(QUESTION)
                finally:
                    await scorer.close()

            with pytest.raises(JudgementError) as failure:
                asyncio.run(failing())
            seen += [*traceback.format_exception(failure.value), repr(failure.value), repr(scorer), scorer.identity]
        assert f"bearer {KEY}" in server.headers[0].lower() and "another-secret" not in server.headers[0]
    seen += [record.getMessage() + str(record.args) for record in caplog.records]
    assert not any(KEY in text or QUESTION.response in text for text in seen)


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "another-secret")
    with HostileServer(completion("1")) as server:
        assert ask(server) == (1.0, 1)
    assert "bearer none" in server.headers[0].lower()


@pytest.mark.parametrize("key", ["secret\nX-Evil: 1", "sécret", "secret\x1b"])
def test_a_key_that_is_invalid_in_a_header_is_rejected_without_quoting_it(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ValueError, match="MY_KEY") as failure:
        OpenAIScorer("http://localhost:1/v1", "judge-7b", api_key_env="MY_KEY")
    assert "cret" not in str(failure.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://me:hunter2@localhost/v1",
        "http://hunter2@localhost/v1",
        "http://h/v1?key=hunter2",
        "hunter2",
        "ftp://hunter2/",
    ],
)
def test_an_invalid_url_or_one_with_a_secret_is_rejected_without_quoting_it(url):
    with pytest.raises(ValueError, match="base_url") as failure:
        OpenAIScorer(url, "judge-7b")
    assert "hunter2" not in str(failure.value)


def test_the_identity_has_the_settings_of_a_score_but_not_the_name_of_the_server():
    scorer = OpenAIScorer("http://judge.example.org/v1", "judge-7b", answer="text")
    for part in ("openai", "judge-7b", "v1", "text", "temperature=0"):
        assert part in scorer.identity
    assert "example" not in scorer.identity and scorer.identity.count("\n") == 0


@pytest.mark.parametrize("text", ["lone \ud800 surrogate", "nul \x00 byte", "", "9" * 3_000_000, "\u202e\uffff"])
def test_any_text_can_be_scored(text):
    with HostileServer(completion("2")) as server:
        assert ask(server, Question(text, text, text)) == (2.0, 1)
    json.dumps(server.requests)


def test_a_cancelled_call_is_not_retried(waits):
    async def cancelled(url):
        scorer = OpenAIScorer(url, "judge-7b")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(scorer.score(QUESTION), 0.2)
        await scorer.close()
        return scorer.calls

    with HostileServer(hang) as server:
        assert asyncio.run(cancelled(server.url)) == 1
    assert waits == []


@pytest.mark.parametrize("client", ["scorer", "verifier", "list of models"])
def test_nothing_of_the_environment_is_sent_but_the_key(client, monkeypatch):
    """openai adds headers from variables that belong to OpenAI or to a gateway in front of it."""
    for name in ("ORG_ID", "PROJECT_ID", "API_KEY", "ADMIN_KEY", "WEBHOOK_SECRET"):
        monkeypatch.setenv(f"OPENAI_{name}", f"own-{name}")
    custom = (
        "X-Gateway-Key: own-gateway\nAuthorization: Bearer own-token\nUser-Agent: own-agent\nHost: own-host\nA: own"
    )
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", custom)
    monkeypatch.setenv("VERL_GSD_JUDGE_API_KEY", KEY)
    with HostileServer(completion("10") if client != "list of models" else http(200, MODELS, JSON)) as server:
        if client == "scorer":
            assert ask(server) == (10, 1)
        elif client == "verifier":
            verify_all([QUESTION], base_url=server.url, model="judge-7b", retries=0)
        else:
            assert served_model(JudgeSettings.of({"base_url": server.url})) == "judge-7b"
        (head,) = server.headers
    sent = dict(line.split(": ", 1) for line in head.lower().strip().split("\r\n")[1:])
    length = sent.pop("content-length", None)
    content_type = sent.pop("content-type", None)
    assert (length is None, content_type) == (
        (True, None) if client == "list of models" else (False, "application/json")
    )
    sent.pop("connection", None)
    assert sent == {
        "host": server.url.removeprefix("http://").removesuffix("/v1"),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "verl-gsd",
        "authorization": f"Bearer {KEY}".lower(),
        "x-stainless-raw-response": "stream",
    }
