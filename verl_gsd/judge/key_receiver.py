"""Checks who receives the judge's key, before it is sent over a connection within this machine.

Every user of a machine can take the port of a judge that is not up. Over https, the server's certificate says who
receives the key. Over http, only the connection itself does: the address may be a name, and the server may end between
a look at who listens and the request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verl_gsd import listeners
from verl_gsd.errors import ConfigError
from verl_gsd.judge.settings import NO_KEY


class ForeignJudgeError(Exception):
    """Another user of this machine would receive the key, so that nothing was sent."""


class NoListenerError(Exception):
    """Nobody listens any more at the address of a new connection, so that nothing was sent.

    Who accepted the connection is then not certain: Linux shows root for some connections that the kernel itself
    accepts for a user (AF_SMC).
    """


def check_async(request: Any, key: str) -> None:
    """Make an httpx client check a new connection for ``request`` before it sends anything over it.

    Clients raise ``ForeignJudgeError`` if the connection leads to another user, and ``NoListenerError`` if the server
    does not listen any more. Requests without a key, requests of
    other schemes than http, and connections to other machines are not checked.

    Args:
        request: the request of an asynchronous client of httpx or httpx2.
    """

    async def check(event: str, info: Mapping[str, Any]) -> None:
        if (stream := _new_connection(event, info)) and (problem := _problem(stream)):
            await stream.aclose()
            raise problem

    if _needs_check(request, key):
        request.extensions["trace"] = check


def check_sync(request: Any, key: str) -> None:
    """As ``check_async``, for a synchronous client."""

    def check(event: str, info: Mapping[str, Any]) -> None:
        if (stream := _new_connection(event, info)) and (problem := _problem(stream)):
            stream.close()
            raise problem

    if _needs_check(request, key):
        request.extensions["trace"] = check


def foreign_judge(error: BaseException) -> ForeignJudgeError | None:
    """The ``ForeignJudgeError`` that ``error`` is, or that caused it: openai before version 3 wraps it."""
    return next((one for one in (error, error.__cause__) if isinstance(one, ForeignJudgeError)), None)


def _needs_check(request: Any, key: str) -> bool:
    return key != NO_KEY and request.url.scheme == "http"


def _new_connection(event: str, info: Mapping[str, Any]) -> Any:
    """The stream of a connection that was just made; None for the other events of httpcore's extension "trace"."""
    return info["return_value"] if event.endswith(".connect_tcp.complete") else None


def _problem(stream: Any) -> ForeignJudgeError | NoListenerError | None:
    """Why the key must not be sent; None if only this user, root or a trusted user would receive it."""
    own, peer = (stream.get_extra_info(name)[:2] for name in ("client_addr", "server_addr"))
    users = listeners.users_of_connection(own, peer)
    if users is None:  # another machine
        return None
    listening = listeners.listening_users(*peer) or set()
    try:
        foreign = listeners.foreign_user(users | listening, listeners.TRUSTED_JUDGE)
    except ConfigError as error:
        return ForeignJudgeError(str(error))
    if foreign is None:
        return None if listening else NoListenerError("the judge's server does not listen any more")
    return ForeignJudgeError(
        f"another user of this machine (id {foreign}) listens there and would receive the judge's key. Nothing was "
        f"sent. Set the URL to your own server. If the server needs no key, unset its variable. If you trust that "
        f"user, set {listeners.TRUSTED_JUDGE}={foreign}."
    )
