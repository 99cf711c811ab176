"""Serves a report to this machine, made anew when a run's files have changed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from verl_gsd.charts import Notice, Section, render_page
from verl_gsd.report.build import read_runs, sections_of, title_of
from verl_gsd.rundir import RunDirectory

#: Seconds after which a browser asks again.
REFRESH = 10
_HOST = "127.0.0.1"


def serve(runs: Sequence[Path], port: int, *, on_start: Callable[[str], None]) -> None:
    """Serve the page at http://127.0.0.1:``port``/ until Ctrl-C, and nothing else to nobody else.

    Args:
        port: 0 for any that is free.
        on_start: told the address, once it answers.

    Raises:
        OSError: the port is taken.
        FileNotFoundError, ValueError: as ``build.read_runs``.
    """
    pages = Pages(runs)
    pages.current()
    try:
        server = ThreadingHTTPServer((_HOST, port), handler(pages))
    except OSError as error:
        raise OSError(f"port {port}: {error.strerror}. Write another --port, or 0 for any that is free") from error
    with server:
        on_start(f"http://{_HOST}:{server.server_port}/")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


class Pages:
    """The page of some runs, made when it is asked for and a file has changed since."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._runs = runs
        self._lock = threading.Lock()
        self._seen: object = None
        self._page = b""

    def current(self) -> bytes:
        """The page, as UTF-8.

        Raises:
            OSError, ValueError: a run cannot be read at all.
        """
        with self._lock:
            seen = [_state(path) for path in self._runs]
            if seen != self._seen:
                runs = read_runs(self._runs)
                empty = [run.name for run in runs if run.is_empty()]
                notices = [Notice(f"{name} has made no step yet", "This page asks again by itself.") for name in empty]
                waiting = [Section("waiting", "Waiting", notices=notices)] if empty else []
                sections = waiting + sections_of([run for run in runs if not run.is_empty()])
                self._page = render_page(title_of(runs), sections, refresh=REFRESH).encode()
                self._seen = seen
            return self._page


def _state(run: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of what a report reads."""
    folder = RunDirectory(run)
    files = [folder.config]
    for attempt in folder.attempts():
        files += [folder.metrics(attempt), *folder.records(attempt).glob("*.parquet")]
    known = [(file, file.stat()) for file in files if file.is_file()]
    return sorted((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in known)


def handler(pages: Pages) -> type[BaseHTTPRequestHandler]:
    """What answers a request: the page at /, and nothing anywhere else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # http.server's name
            # A page elsewhere can have its own name resolve to this machine, and read what its browser then gets.
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if self.path != "/" or host not in (_HOST, "localhost"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content, status = pages.current(), HTTPStatus.OK
            except (OSError, ValueError) as error:
                sections = [Section("error", "The runs cannot be read now", [str(error)])]
                content = render_page("Report", sections, refresh=REFRESH).encode()
                status = HTTPStatus.SERVICE_UNAVAILABLE
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the terminal shows the address."""

    return Handler
