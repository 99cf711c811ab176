"""A local HTTP server in place of a judge. It speaks OpenAI's protocol, and its scores mean nothing.

The run's own client calls it, so that requests, parsing, timeouts and the cache are those of the real run.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from verl_gsd.judge.scorer import HIGHEST, LOWEST

MODEL = "rehearsal-stand-in"


@dataclass
class JudgeStandIn:
    """A running server: its base URL, and the number of completions that it sent."""

    base_url: str
    answered: int = 0


@contextmanager
def judge_stand_in() -> Iterator[JudgeStandIn]:
    """Run the server on a free port of this machine until the block ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200 if self.path == "/v1/models" else 404, {"object": "list", "data": [{"id": MODEL}]})

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                return self._send(404, {})
            with lock:
                stand_in.answered += 1
            message = {"role": "assistant", "content": answer(request)}
            self._send(200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are counted instead of printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stand_in = JudgeStandIn(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()


def answer(request: dict[str, Any]) -> str:
    """A score by a hash of the messages, in the form that the request asks for."""
    digest = hashlib.sha256(json.dumps(request["messages"], sort_keys=True).encode()).digest()
    score = LOWEST + int.from_bytes(digest[:8], "big") % (HIGHEST - LOWEST + 1)
    return json.dumps({"score": score}) if "response_format" in request else str(score)
