"""Serves a report on this machine, and rebuilds it when files of a run have changed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from verl_gsd.charts import Notice, Section, render_page
from verl_gsd.report.build import build_sections, page_title, read_runs
from verl_gsd.report.reading import RunReader
from verl_gsd.report.responses import Distrust, unknown_origin
from verl_gsd.rundir import RunDirectory

#: Seconds after which the browser reloads the page.
REFRESH = 10
_HOST = "127.0.0.1"


def serve(
    runs: Sequence[Path], port: int, *, on_start: Callable[[str], None], distrust: Distrust = unknown_origin
) -> None:
    """Serve the page at http://127.0.0.1:``port``/ until Ctrl-C. The server answers only requests from this machine.

    Args:
        port: 0 for any free port.
        on_start: called with the address when the server accepts requests.
        distrust: as for ``reading.RunReader``.

    Raises:
        OSError: the port is in use.
        FileNotFoundError, ValueError: as for ``build.read_runs``.
    """
    cache = PageCache(runs, distrust)
    cache.page()
    try:
        server = ThreadingHTTPServer((_HOST, port), request_handler(cache))
    except OSError as error:
        raise OSError(f"port {port}: {error.strerror}. Use another --port, or --port 0 for any free port") from error
    with server:
        on_start(f"http://{_HOST}:{server.server_port}/")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


class PageCache:
    """The page of some runs. It is rebuilt on request if a file has changed since the last request.

    Rebuilding it reads only the files of new steps and the lines that were added to the metrics. It counts all groups
    again, because that costs little (``benchmarks/report.py``) and figures over several visits need all of them.
    """

    def __init__(self, runs: Sequence[Path], distrust: Distrust = unknown_origin) -> None:
        self._runs, self._distrust = runs, distrust
        self._readers: dict[Path, RunReader] = {}
        self._lock = threading.Lock()
        self._file_states: object = None
        self._page = b""

    def page(self) -> bytes:
        """The page, as UTF-8.

        Raises:
            OSError, ValueError: a run cannot be read at all.
        """
        with self._lock:
            file_states = [_file_states(path) for path in self._runs]
            if file_states != self._file_states:
                runs = read_runs(self._runs, self._readers, self._distrust)
                empty = [run.name for run in runs if run.is_empty()]
                notices = [
                    Notice(f"{name} has not finished a step yet", "This page reloads by itself.") for name in empty
                ]
                waiting = [Section("waiting", "Waiting", notices=notices)] if empty else []
                sections = waiting + build_sections([run for run in runs if not run.is_empty()])
                self._page = render_page(page_title(runs), sections, refresh=REFRESH).encode()
                self._file_states = file_states
            return self._page


def _file_states(run: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and modification times of the files that a report reads."""
    folder = RunDirectory(run)
    files = [folder.config]
    for attempt in folder.attempts():
        files += [folder.metrics(attempt), *folder.records(attempt).glob("*.parquet")]
    stats = [(file, file.stat()) for file in files if file.is_file()]
    return sorted((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in stats)


def request_handler(cache: PageCache) -> type[BaseHTTPRequestHandler]:
    """Make the handler of requests. It serves the page at / and nothing else."""

    class PageHandler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name is given by http.server
            # Checking the host prevents DNS rebinding: another site's name that resolves to this machine could
            # otherwise read the page through the user's browser.
            host = self.headers.get("Host", "").rsplit(":", 1)[0]
            if self.path != "/" or host not in (_HOST, "localhost"):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            try:
                content, status = cache.page(), HTTPStatus.OK
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
            """Log nothing: the terminal shows the address."""

    return PageHandler
