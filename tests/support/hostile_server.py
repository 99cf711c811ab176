"""A local HTTP server that answers each request with a given response, for tests of misbehaving servers."""

import asyncio
import json
import threading

JSON = "Content-Type: application/json"


def http(status, body=b"", *headers, length=None):
    """A complete response as bytes. ``length`` overrides the Content-Length header."""
    length = len(body) if length is None else length
    head = [f"HTTP/1.1 {status} Reason", f"Content-Length: {length}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def completion(content, ending="stop"):
    """A chat completion whose message has this content, which may be of any type."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": ending}
    return http(200, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]}).encode(), JSON)


async def hang(writer):
    """Send nothing. The connection stays open until the client closes it or the server ends."""
    await asyncio.Event().wait()


async def endless(writer):
    """Send an endless body as fast as the client reads it."""
    writer.write(f"HTTP/1.1 200 OK\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


async def endless_failure(writer):
    """Send an endless body with status 500."""
    writer.write(b"HTTP/1.1 500 Reason\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()


async def trickle(writer):
    """Send an endless body byte by byte, which a timeout between two bytes does not detect."""
    writer.write(f"HTTP/1.1 200 OK\r\n{JSON}\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    while True:
        writer.write(b"1\r\n \r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


class HostileServer:
    """Answers the n-th request with the n-th entry of ``script``, and all further requests with the last entry.

    A context manager. An entry is bytes, after which the connection is closed, or a coroutine function of the writer.

    Attributes:
        requests: the JSON bodies received; None for a request without a body.
        headers: the headers of each request, as text.
    """

    def __init__(self, *script):
        self.script = list(script)
        self.requests, self.headers = [], []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._thread.start()
        start = asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self):
        self._server.close()
        open_ones = asyncio.all_tasks() - {asyncio.current_task()}
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)

    async def _serve(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            lengths = [int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")]
            self.headers.append(head)
            self.requests.append(json.loads(await reader.readexactly(lengths[0])) if lengths else None)
            answer = self.script[min(len(self.requests), len(self.script)) - 1]
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
