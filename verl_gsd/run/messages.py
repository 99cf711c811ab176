"""Messages of the trainer to the user, in a file that remains if the trainer's process dies.

    RUN/messages/attempt_A.jsonl   {"kind": "note", "text": ..., "pid": ...}, one object per line

``kind`` is "note", "warning", "stop" or "steps". The text of "steps" is the number of the run's last step. The launcher
uses it for its progress bar.
``pid`` is set if the message is about a process. The launcher then adds the last lines that this process logged.

The trainer writes the messages and the launcher prints them. They are in a file, because the output of a Ray worker can
be lost if the worker, its node or Ray's log monitor dies. The last "stop" message says why the run ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from verl_gsd.plain_data import parse_json

#: The start of every line of a message on standard error, which distinguishes it from other lines of the log.
OWN = "verl-gsd: "

Kind = Literal["note", "warning", "stop", "steps"]

#: Longer texts, for example tracebacks, are cut to this number of characters, because users read them on a console.
_LONGEST = 8_000


class RunStoppedError(RuntimeError):
    """The run must not continue. The message says what happened, the likely cause, and what the user can do."""


class Message(NamedTuple):
    kind: Kind
    text: str
    pid: int | None = None


class MessageWriter:
    """Appends messages to ``path``, each with a single write, and prints them to standard error.

    Under verl's ``main_ppo`` no launcher reads the file, and the user sees the messages on standard error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, kind: Kind, text: str, pid: int | None = None) -> None:
        """Write one message. This never raises, so that it cannot hide how the run ended.

        Args:
            pid: process id, if the message is about a process whose log lines explain more.
        """
        text = text if len(text) <= _LONGEST else text[:_LONGEST] + "\n[cut]"
        entry = {"kind": kind, "text": text} | ({} if pid is None else {"pid": pid})
        line = (json.dumps(entry) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                os.write(descriptor, line)
            finally:
                os.close(descriptor)
        except OSError as error:
            _print(f"{self._path} cannot be written: {error}")
        _print(f"{kind}: {text}")


def _print(text: str) -> None:
    with suppress(OSError, ValueError):  # the disk with Ray's logs is full, or the stream is closed
        print("\n".join(f"{OWN}{line}" for line in text.splitlines()), file=sys.stderr, flush=True)


class MessageReader:
    """Reads a file of messages while it is being written. It returns each message once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> Iterator[Message]:
        """The messages that were completed since the last call. Invalid lines are skipped."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    entry = parse_json(line)
                    pid = entry.get("pid")
                    message = Message(entry["kind"], str(entry["text"]), pid if type(pid) is int else None)
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                if message.kind in get_args(Kind):
                    yield message


def read_messages(path: Path) -> list[Message]:
    """All messages of one attempt, oldest first."""
    return list(MessageReader(path).new())
