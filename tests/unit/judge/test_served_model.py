"""The list of a server's models: limited in time and size, and not trusted."""

import asyncio
import json
import time

import pytest
from hostile_server import JSON, HostileServer, endless, http, trickle

from verl_gsd.judge import build
from verl_gsd.judge.build import build_scorer, describe_model, served_model
from verl_gsd.judge.openai_scorer import OpenAIScorer
from verl_gsd.judge.settings import JudgeSettings


def models(*ids):
    return http(200, json.dumps({"object": "list", "data": [{"id": one} for one in ids]}).encode(), JSON)


def asked(answer, **settings):
    with HostileServer(answer) as server:
        return served_model(JudgeSettings.of({"base_url": server.url, **settings}))


def test_the_only_model_is_the_default():
    assert asked(models("judge-7b")) == "judge-7b"
    assert asked(models("a", "b"), model="b") == "b"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (models("a", "b"), "model=null: .*a, b"),
        (models(), "model=null: .*none"),
        (models(5, None, ["a"], ""), "model=null: .*none"),
        (models("\x1b]0;owned\x07\nerror fine"), "model=null: .*none"),
        (models("\ud800"), "model=null: .*none"),
        (http(200, b"[" * 100_000, JSON), "base_url=http"),
        (http(200, b"<html>", "Content-Type: text/html"), "base_url=http"),
        (http(302, b"", "Location: http://127.0.0.1:9/v1/models"), "base_url=http"),
        (http(401, b'{"error": {"message": "sk-test-hunter2 is wrong"}}', JSON), "VERL_GSD_JUDGE_API_KEY"),
        (http(500, b"", JSON), "base_url=http"),
        (endless, "base_url=http"),
        (f"HTTP/1.1 200 OK\r\n{JSON}\r\nContent-Length: 100\r\n\r\n[".encode(), "base_url=http"),  # cut short
    ],
)
def test_anything_but_a_list_of_one_model_is_rejected(answer, message, monkeypatch):
    monkeypatch.setenv("VERL_GSD_JUDGE_API_KEY", "sk-test-hunter2")
    with pytest.raises(ValueError, match=message) as refused:
        asked(answer)
    assert "hunter2" not in str(refused.value)


async def stall(writer):
    """Begin a body, and never go on."""
    writer.write(f"HTTP/1.1 200 OK\r\n{JSON}\r\nContent-Length: 100\r\n\r\n[".encode())
    await writer.drain()
    await asyncio.Event().wait()


@pytest.mark.parametrize("answer", [trickle, stall])
def test_a_list_that_arrives_too_slowly_is_aborted(monkeypatch, answer):
    monkeypatch.setattr(build, "LISTING_S", 0.2)
    with pytest.raises(ValueError, match="base_url=http"):
        asked(answer)


def test_a_configured_model_is_accepted_if_the_server_lists_nothing():
    assert asked(http(404, b"", JSON), model="judge-7b") == "judge-7b"
    with pytest.raises(ValueError, match=r"model=judge-7b: .*http.*other"):
        asked(models("other"), model="judge-7b")


def test_a_trailing_newline_is_stripped_from_the_key(monkeypatch):
    monkeypatch.setenv("VERL_GSD_JUDGE_API_KEY", "sk-test\n")
    with HostileServer(models("a")) as server:
        served_model(JudgeSettings(base_url=server.url))
    assert "authorization: bearer sk-test\r\n" in server.headers[0].lower()


def listing(**entry):
    return http(200, json.dumps({"object": "list", "data": [{"id": "judge", **entry}]}).encode(), JSON)


def described(**entry):
    with HostileServer(listing(**entry)) as server:
        return describe_model(JudgeSettings.of({"base_url": server.url})).facts


def test_two_servers_with_one_model_name_have_different_identities():
    big, small = (OpenAIScorer(f"http://{name}:8000/v1", "judge").identity for name in ("big", "small"))
    assert big != small
    assert OpenAIScorer("http://big:8000/v1/", "judge").identity == big
    with HostileServer(listing(root="/models/a")) as one, HostileServer(listing(root="/models/a")) as other:
        identities = {build_scorer(JudgeSettings.of({"base_url": server.url})).identity for server in (one, other)}
    assert len(identities) == 2


def test_another_model_on_the_same_server_has_another_identity():
    entries = [{}, {"root": "/models/a"}, {"root": "/models/b"}, {"root": "/models/a", "max_model_len": 4096}]
    entries += [{"fingerprint": "f1"}, {"parent": "base"}]
    script = [listing(**entry) for entry in entries]
    with HostileServer(*script) as server:
        identities = [build_scorer(JudgeSettings.of({"base_url": server.url})).identity for _ in script]
    assert len(set(identities)) == len(entries)


def test_the_same_weights_have_the_same_identity_after_a_restart():
    """vLLM sets ``created`` to the time of the request, and makes new permissions for every request.

    Other servers set it to the time of their start or of the model's file, which gets older than any limit.
    """
    script = [
        listing(root="/models/a", max_model_len=4096, created=int(time.time()) + start, permission=[{"id": start}])
        for start in (-30 * 24 * 3600, -3600, 0)
    ]
    with HostileServer(*script) as server:
        identities = {build_scorer(JudgeSettings.of({"base_url": server.url})).identity for _ in script}
    assert len(identities) == 1


def test_facts_of_a_server_are_one_short_line_whatever_it_sends():
    assert described() == "" and described(root=None, max_model_len=[1], created="x") == ""
    hostile = described(root="\x1b]0;owned\x07\nfoo\u2028\ud800 prompt=v1", max_model_len=10**300, created=10**300)
    assert hostile.isascii() and hostile.isprintable()
    assert len(described(root="x" * 10**5)) < 100 and described(root="x" * 10**5) != described(root="x" * 10**5 + "y")
