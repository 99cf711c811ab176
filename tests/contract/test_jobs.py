"""verl's checks of submitted jobs, and our commands against Ray's job server."""

import asyncio
import importlib.metadata
import io
import json
import os
import re
import socket
import threading
import zipfile
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import aiohttp
import pytest
import ray
import typer
import yaml
from aiohttp import web
from canaries import CANARIES, canaries_in, files_with_a_canary
from hostile_server import HostileServer, http
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient
from running import verl_gsd
from typer.testing import CliRunner

from verl_gsd import listeners
from verl_gsd.cli import jobs
from verl_gsd.cli.main import app
from verl_gsd.jobs import checked_connections, cluster, following
from verl_gsd.jobs.following import ConnectionLostError, NoAnswerError, follow
from verl_gsd.jobs.submission import RUN_KEY

LINE = ["algo=gsd", "task=arithmetic", "hardware=cpu"]
#: Ray would prefer them to its argument, or send them.
UNWANTED = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


def submit(*words, **environment):
    return CliRunner().invoke(app, ["submit", *words], env=environment)


def test_dry_run_prints_the_jobs_and_no_secret(monkeypatch):
    token = "0123456789abcdef" * 4
    done = submit(
        *(*LINE, "--seeds", "1,2", "--dry-run", "--runs", "~/runs"),
        **{"RAY_AUTH_TOKEN": token, "WANDB_API_KEY": token, "HF_TOKEN": token},
    )
    assert done.exit_code == 0, done.output
    jobs = list(yaml.safe_load_all(done.stdout))
    assert [set(job) for job in jobs] == [{"submission_id", "run", "entrypoint", "runtime_env", "metadata"}] * 2
    version = importlib.metadata.version("verl-gsd")
    assert jobs[0]["runtime_env"] == {"working_dir": f"verl_gsd-{version}, unpacked"}
    assert 'trainer.default_local_dir="~/runs/' in jobs[0]["entrypoint"]
    assert token not in done.output
    assert "sigma" in done.stderr, "the audit, as in train"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algorithm.adv_estimator=gae2"], "adv_estimator=gae2: no such name"),
        (
            ["data.train_files=relative.parquet"],
            "data.train_files=relative.parquet: the path of a file on the cluster is relative",
        ),
        ([], "no cluster address is given. Use --address http://HEAD:8265"),
        (["--address", "head:8265"], "Use that of the job server"),
    ],
)
def test_mistakes_are_rejected_before_anything_is_sent(words, said, monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    done = submit(*LINE, *words)
    assert done.exit_code == 2 and said in re.sub(r"\s+", " ", done.output), done.output


def test_cluster_files_and_checkpoints_are_not_looked_up_locally():
    checkpoint = ("trainer.resume_mode=resume_path", "trainer.resume_from_path=/only/there/run/global_step_40")
    done = submit(*LINE, "data.train_files=/only/on/the/cluster.parquet", *checkpoint, "--dry-run")
    assert done.exit_code == 0, done.output


def test_unreachable_address_is_reported(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would prefer them to its argument
        monkeypatch.setenv(name, "http://another.invalid:1")
    done = CliRunner().invoke(app, ["status", "--address", "http://127.0.0.1:9"])
    assert done.exit_code == 2 and "http://127.0.0.1:9: no job server answers" in re.sub(r"\s+", " ", done.output)


class ServerStub(BaseHTTPRequestHandler):
    """A job server that answers the version request correctly and fails at every other request."""

    def do_GET(self):
        version = json.dumps({"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""})
        self.send_response(200 if self.path == "/api/version" else 500)
        self.end_headers()
        self.wfile.write(version.encode() if self.path == "/api/version" else b"the disk is full")

    do_POST = do_PUT = do_GET  # noqa: N815  # names that http.server looks for

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("words", [["status"], ["status", "a"], ["logs", "a"], ["stop", "a"], ["submit", *LINE]])
def test_server_errors_are_reported_with_the_address(words, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), ServerStub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = CliRunner().invoke(app, [*words, "--address", address])
        server.shutdown()
    said = re.sub(r"\s+", " ", done.output)
    assert done.exit_code == 2 and f"{address}: Request failed with status code 500" in said, done.output
    assert "no such job" not in said


class TokenServer(BaseHTTPRequestHandler):
    """A job server without jobs that keeps the tokens it is sent."""

    def do_GET(self):
        self.server.tokens.append(self.headers.get("authorization"))
        version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        content = json.dumps(version if self.path == "/api/version" else []).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def token_server(user):
    """(URL, the tokens that were sent there) of a server that listens as ``user``."""
    os.seteuid(user)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", 0), TokenServer)
    finally:
        os.seteuid(0)
    server.tokens = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}", server.tokens
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@as_root
def test_the_token_is_not_sent_to_another_user_who_listens_at_the_address(tmp_path):
    """Everyone on a machine can listen at 8265 before a user's own job server does."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token := "a" * 64)
    (tmp_path / ".ray" / "auth_token").chmod(0o600)
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    environment |= {"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}

    def status(**more):
        done = verl_gsd("status", "--address", address, env=environment | more)
        return done.returncode, re.sub(r"\s+", " ", done.stderr)

    with token_server(NOBODY) as (address, tokens):
        code, said = status()
        assert code == 2 and f"{address}: another user of this machine (id {NOBODY}) listens there" in said
        assert f"set VERL_GSD_CLUSTER_USER={NOBODY}" in said
        code, said = status(VERL_GSD_CLUSTER_USER="no such user")
        assert code == 2 and "VERL_GSD_CLUSTER_USER=no such user: this machine has no such user" in said
        assert not tokens
        assert status(VERL_GSD_CLUSTER_USER=str(NOBODY)) == (0, "")
        assert set(tokens) == {f"Bearer {token}"}
    with token_server(0) as (address, tokens):
        assert status() == (0, "") and tokens


@as_root
def test_nothing_is_sent_to_another_user_who_takes_the_port_later(monkeypatch):
    """A log is followed for hours, and its reader reconnects when the server has ended."""
    for name in UNWANTED:
        monkeypatch.setenv(name, "")
    with token_server(0) as (address, _):
        client = cluster.connect(address)
    port = int(address.rpartition(":")[2])
    os.seteuid(NOBODY)
    try:
        server = socket.create_server(("127.0.0.1", port))
    finally:
        os.seteuid(0)
    with server:
        with pytest.raises(cluster.ForeignServerError, match=rf"another user of this machine \(id {NOBODY}\)"):
            client.list_jobs()
        with pytest.raises(ConnectionLostError, match="another user"):
            follow(client, "a", lambda text: None)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()  # nobody has connected


@as_root
def test_nothing_is_sent_to_another_user_who_takes_the_port_between_the_check_and_the_connection(monkeypatch):
    for name in UNWANTED:
        monkeypatch.setenv(name, "")
    with token_server(0) as (address, tokens):
        client = cluster.connect(address)
        client._headers["authorization"] = "Bearer secret"
        client.list_jobs()
        assert "Bearer secret" in tokens
    monkeypatch.setattr(cluster, "_check_listener", lambda _: None)  # the server ended after the check
    os.seteuid(NOBODY)
    try:
        server = socket.create_server(("127.0.0.1", int(address.rpartition(":")[2])))
    finally:
        os.seteuid(0)
    with server:
        for request in (client.list_jobs, lambda: follow(client, "a", lambda text: None)):
            with pytest.raises(cluster.ClusterError, match=rf"another user of this machine \(id {NOBODY}\)"):
                request()
            with server.accept()[0] as connection:
                assert connection.recv(1) == b"", "it was closed, and nothing was sent"


@as_root
def test_nothing_is_sent_over_a_connection_at_whose_address_nobody_listens(monkeypatch):
    """The kernel shows root for some connections that it accepts for a user, who can close the listener afterwards."""
    for name in UNWANTED:
        monkeypatch.setenv(name, "")
    with token_server(0) as (address, tokens):
        client = cluster.connect(address)
        tokens.clear()
        monkeypatch.setattr(cluster, "_check_listener", lambda _: None)  # the server ended after the check
        monkeypatch.setattr(listeners, "users_of_connection", lambda *_: {0})
        monkeypatch.setattr(listeners, "listening_users", lambda *_: set())
        with pytest.raises(OSError, match="no process listens"):
            client.list_jobs()
        monkeypatch.setattr(following, "GIVE_UP_S", 0.0)
        with pytest.raises(NoAnswerError, match="no process listens"):
            follow(client, "a", lambda text: None)
        assert not tokens


def test_a_log_is_given_up_if_nobody_listens_at_the_address_any_more(monkeypatch, capsys):
    """None of the other jobs is followed either: each would wait as long."""
    for name in UNWANTED:
        monkeypatch.setenv(name, "")
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenServer) as server:
        server.tokens = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        client = cluster.connect(address)
        server.shutdown()
    monkeypatch.setattr(following, "GIVE_UP_S", 0.0)
    with pytest.raises(typer.Exit) as ended:
        jobs.watch(client, ["a", "b"], address)
    assert ended.value.exit_code == 1
    said = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert f"the job server does not answer: no process listens at {address}. It did not answer for 0 minutes" in said
    assert "these jobs may be running or waiting: a, b" in said
    assert f"run: verl-gsd logs ID --follow --address {address}" in said


@pytest.mark.parametrize("kind", ["a request", "a log"])
def test_a_check_learns_both_ends_of_a_connection_before_anything_is_sent(kind):
    """The two ends decide whose users are looked up."""
    checked = []

    def reject(own, peer):
        checked.append((own, peer))
        raise cluster.ForeignServerError("not this one")

    async def follow_log():
        connector = checked_connections.CheckedConnector(reject)
        async with aiohttp.ClientSession(connector=connector) as session:
            await session.ws_connect(address)

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(cluster.ForeignServerError):
            if kind == "a log":
                asyncio.run(follow_log())
            else:
                checked_connections.session(reject).get(address)
        connection, client = server.accept()
        with connection:
            assert connection.recv(1) == b"", "it was closed, and nothing was sent"
        assert checked == [(client, server.getsockname())]


class ProxyStub(BaseHTTPRequestHandler):
    """A proxy that passes on nothing: every request to it ends with an error."""

    received: ClassVar[list[tuple[str, str]]]  # (request line, headers)

    def _refuse(self):
        self.received.append((self.requestline, str(self.headers)))
        self.send_error(502)

    do_GET = do_CONNECT = _refuse  # noqa: N815  # names that http.server looks for

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy(monkeypatch):
    """What a proxy receives that the environment names in each way that requests knows."""

    class Proxy(ProxyStub):
        received: ClassVar = []

    for name in UNWANTED:
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "c" * 64)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield Proxy.received
        server.shutdown()
        thread.join()


def status_with_token(address):
    """``verl-gsd status`` in a process of its own: Ray reads the token once per process."""
    return verl_gsd("status", "--address", address, env=os.environ)


@as_root
def test_a_proxy_receives_nothing_of_a_request_over_http(proxy):
    with token_server(0) as (address, tokens):
        done = status_with_token(address)
    assert done.returncode == 0, done.stderr
    assert set(tokens) == {f"Bearer {'c' * 64}"} and proxy == []


@as_root
def test_a_proxy_receives_nothing_of_a_log_over_http(proxy):
    async def read():
        async for _ in client.tail_job_logs("a"):
            pass

    with token_server(0) as (address, tokens):
        client = cluster.connect(address)
        client._headers["authorization"] = "Bearer secret"
        tokens.clear()
        with pytest.raises(aiohttp.WSServerHandshakeError):  # the server sends no logs
            asyncio.run(read())
    assert tokens == ["Bearer secret"] and proxy == []


def test_a_proxy_learns_only_the_host_of_a_request_over_https(proxy):
    done = status_with_token("https://head.invalid:8265")
    assert done.returncode == 2 and "no job server answers there" in re.sub(r"\s+", " ", done.stderr)
    assert proxy and all(request == "CONNECT head.invalid:8265 HTTP/1.0" for request, _ in proxy)
    assert not any("c" * 64 in headers for _, headers in proxy)


def test_a_password_of_netrc_does_not_replace_the_token(tmp_path, monkeypatch):
    """Also not after a redirect. Another server then receives neither of them."""
    (tmp_path / "netrc").write_text("default login me password SECRET\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with (
        HostileServer(http(200, b"{}")) as other,
        HostileServer(http(302, b"", "Location: /b"), http(302, b"", f"Location: {other.url}/c")) as server,
        checked_connections.session(lambda *_: None) as session,
    ):
        assert session.get(f"{server.url}/a", headers={"Authorization": "Bearer TOKEN"}, timeout=60).ok
    sent = [re.findall(r"(?im)^authorization: (.*?)\r?$", head) for head in server.headers + other.headers]
    assert sent == [["Bearer TOKEN"], ["Bearer TOKEN"], []]


def test_our_requests_are_those_of_rays_client(monkeypatch):
    """Ray's methods make their connections themselves, so that ours replace them."""
    for name in UNWANTED:
        monkeypatch.setenv(name, "")
    received = []

    @web.middleware
    async def record(request, handler):
        headers = {name.lower(): value for name, value in request.headers.items()}
        headers.pop("sec-websocket-key", "")  # random
        received.append((request.method, request.raw_path, headers, await request.read()))
        return await handler(request)

    async def answer(request):
        version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        return web.json_response(version, status=401 if request.path == "/refused" else 200)

    async def log(request):
        stream = web.WebSocketResponse()
        await stream.prepare(request)
        await stream.send_str("one\n")
        await stream.send_str("two\n")
        if request.match_info["job"] == "broken":
            request.transport.abort()
        return stream

    async def texts(stream):
        seen = []
        try:
            async for text in stream:
                seen.append(text)
        except (RuntimeError, ConnectionError):  # both are lost connections for the reader of a log
            seen.append("broken")
        return seen

    async def compare():
        app = web.Application(middlewares=[record])
        app.add_routes([web.get("/api/jobs/{job}/logs/tail", log), web.route("*", "/{path:.*}", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        client = await asyncio.to_thread(cluster.connect, f"http://127.0.0.1:{runner.addresses[0][1]}")
        client._headers["authorization"] = "Bearer secret"
        for options in ({}, {"json_data": {"a": 1}}, {"data": b"package"}, {"params": {"b": 2}}):
            for send in (client._do_request, partial(JobSubmissionClient._do_request, client)):
                assert (await asyncio.to_thread(send, "PUT", "/some/path", **options)).status_code == 200
            assert received[-1] == received[-2] and received[-1][2]["authorization"] == "Bearer secret"
        for send in (client._do_request, partial(JobSubmissionClient._do_request, client)):
            with pytest.raises(AuthenticationError):
                await asyncio.to_thread(send, "GET", "/refused")
        for job, end in (("a", []), ("broken", ["broken"])):
            ours = await texts(client.tail_job_logs(job))
            assert ours == await texts(JobSubmissionClient.tail_job_logs(client, job)) == ["one\n", "two\n", *end]
            assert received[-1] == received[-2] and received[-1][2]["authorization"] == "Bearer secret"
        await runner.cleanup()

    asyncio.run(compare())


@pytest.mark.parametrize("address", ["http://[::1", "http://127.0.0.1:99999", "http://127.0.0.1:x"])
def test_an_address_that_is_no_url_is_rejected(monkeypatch, address):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    with pytest.raises(cluster.ClusterError, match=rf"--address {re.escape(address)}: "):
        cluster.connect(address)


class RecordingServer(BaseHTTPRequestHandler):
    """A job server that accepts one package and one job, and keeps all that it is sent in ``requests``."""

    requests: ClassVar[list[tuple[str, str, bytes]]]  # (method and path, headers, body)

    def _record(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.requests.append((f"{self.command} {self.path}", str(self.headers), body))

    def _answer(self, status, content):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self):
        self._record()
        is_version = self.path == "/api/version"
        answer = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        self._answer(200 if is_version else 404, answer)

    def do_PUT(self):  # a name that http.server looks for
        self._record()
        self._answer(200, {})

    def do_POST(self):
        self._record()
        self._answer(200, {"job_id": "a", "submission_id": "a"})

    def log_message(self, *_):
        pass


def test_no_secret_of_the_environment_is_sent_with_a_job(monkeypatch, tmp_path):
    for name in UNWANTED:
        monkeypatch.delenv(name, raising=False)
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)

    class Server(RecordingServer):
        requests: ClassVar = []

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        done = submit(*LINE, "--runs", "/shared", "--no-wait", "--address", address)
        server.shutdown()
    assert done.exit_code == 0, done.output
    for request, headers, body in Server.requests:
        assert canaries_in(f"{request}\n{headers}".encode() + body) == [], request
    (package,) = [body for request, _, body in Server.requests if request.startswith("PUT ")]
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert any(name.endswith("verl_gsd/__init__.py") for name in archive.namelist())
        archive.extractall(tmp_path)
    assert files_with_a_canary(tmp_path) == []
    (job,) = [json.loads(body) for request, _, body in Server.requests if request.startswith("POST ")]
    assert list(job["metadata"]) == [RUN_KEY] and job["metadata"][RUN_KEY].startswith("/shared/")
    assert list(job["runtime_env"]) == ["working_dir"], "the nodes provide variables and secrets"
    assert canaries_in(done.output.encode()) == []


def test_silent_server_times_out(monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = CliRunner().invoke(app, ["status", "--address", f"http://127.0.0.1:{server.getsockname()[1]}"])
    assert done.exit_code == 2 and "no job server answers there" in re.sub(r"\s+", " ", done.output)


def test_constants_equal_rays():
    from ray._common.constants import HEAD_NODE_RESOURCE_NAME
    from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

    from verl_gsd.run import cluster_lock

    assert cluster_lock._JOB == RAY_JOB_CONFIG_JSON_ENV_VAR
    assert set(cluster_lock._LOCK) == {HEAD_NODE_RESOURCE_NAME}
