"""Messages of a running trainer to its user, in a file that outlives the trainer's process.

    RUN/messages/attempt_A.jsonl   {"kind": "note" | "warning" | "stop", "text": ..., "pid": ...}, one object per line

``pid`` is there if the message is about one process: the launcher adds the last lines that this process logged.

The trainer writes and the launcher prints. A file is used because everything else that a Ray worker prints can be lost
when the worker, its node or Ray's log monitor dies. The last "stop" message says why the run ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

#: How every line of a message begins on standard error, so that a log's own lines can be told from it.
OWN = "verl-gsd: "

Kind = Literal["note", "warning", "stop"]

#: A message is read on a console. Longer text, for example a traceback of somebody else's code, is cut.
_LONGEST = 8_000


class RunStoppedError(RuntimeError):
    """The run must not go on. The message says what happened, the likely cause, and what the user can do."""


class Message(NamedTuple):
    kind: Kind
    text: str
    pid: int | None = None


class MessageWriter:
    """Appends messages to ``path``, each with one write, and prints them to standard error.

    Standard error reaches the user where verl's own ``main_ppo`` started the run and no launcher reads the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: Kind, text: str, pid: int | None = None) -> None:
        """Write one message. Never raises: the run's own end, good or bad, is what the user must see.

        Args:
            pid: of the process that the message is about, if it is one process whose own log explains more.
        """
        text = text if len(text) <= _LONGEST else text[:_LONGEST] + "\n[cut]"
        entry = {"kind": kind, "text": text} | ({} if pid is None else {"pid": pid})
        line = (json.dumps(entry) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            _print(f"{self._path} cannot be written: {error}")
        _print(f"{kind}: {text}")


def _print(text: str) -> None:
    with suppress(OSError, ValueError):  # the disk of Ray's logs is full, or the stream is closed
        print("\n".join(f"{OWN}{line}" for line in text.splitlines()), file=sys.stderr, flush=True)


class MessageReader:
    """Reads a file of messages while it is being written, each message once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[Message]:
        """The messages completed since the last call. Lines that are no message are skipped."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    entry = json.loads(line)
                    pid = entry.get("pid")
                    message = Message(entry["kind"], str(entry["text"]), pid if type(pid) is int else None)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                if message.kind in get_args(Kind):
                    yield message


def read_messages(path: Path) -> list[Message]:
    """All messages of one attempt, oldest first."""
    return list(MessageReader(path).new())
