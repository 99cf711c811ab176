"""Connections to a job server that are checked after they are made and before a token is sent over them.

A check before a request leaves a moment in which the server can end and another user can listen at its address. A name
such as localhost also stands for several addresses. Only the connection itself tells who receives what is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import aiohttp
import requests
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

#: Called with (IP address, port) of this end of a connection and of the other one. It raises if nothing may be sent.
Check = Callable[[tuple[str, int], tuple[str, int]], None]


def session(check: Check) -> requests.Session:
    """A session that applies ``check`` to connections of http:// URLs, and uses no proxy for them.

    A proxy, which an environment variable such as http_proxy names, would receive the token. With https:// it only
    passes on what it cannot read, and the server's certificate says who receives the token. A password of ~/.netrc
    does not replace the token.
    """
    new = _Session()
    new.mount("http://", _CheckedAdapter(check))
    return new


class _Session(requests.Session):
    """A session that sends the caller's Authorization header, and nothing of ~/.netrc."""

    def __init__(self) -> None:
        super().__init__()
        self.auth = lambda request: request  # requests reads ~/.netrc only if there is no auth

    def rebuild_auth(self, prepared_request: requests.PreparedRequest, response: requests.Response) -> None:
        """As requests does after a redirect, without ~/.netrc: another server does not get the header."""
        assert response.request.url is not None and prepared_request.url is not None
        if self.should_strip_auth(response.request.url, prepared_request.url):
            prepared_request.headers.pop("Authorization", None)


class _CheckedAdapter(requests.adapters.HTTPAdapter):
    def __init__(self, check: Check) -> None:
        super().__init__()

        class Connection(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                assert self.sock is not None
                check(self.sock.getsockname()[:2], self.sock.getpeername()[:2])

        class Pool(HTTPConnectionPool):
            ConnectionCls = Connection

        self.poolmanager.pool_classes_by_scheme = {"http": Pool}

    def send(self, *args: Any, **options: Any) -> requests.Response:
        return super().send(*args, **options | {"proxies": {}})  # requests prefers the environment's to a session's


class CheckedConnector(aiohttp.TCPConnector):
    """Applies ``check`` to each connection. aiohttp uses no proxy unless it is asked to."""

    def __init__(self, check: Check) -> None:
        super().__init__()
        self._check = check

    async def connect(self, *args: Any, **options: Any) -> aiohttp.connector.Connection:
        connection = await super().connect(*args, **options)
        try:
            assert connection.transport is not None
            ends = (connection.transport.get_extra_info(name) for name in ("sockname", "peername"))
            self._check(*(end[:2] for end in ends))
        except BaseException:
            connection.close()
            raise
        return connection
