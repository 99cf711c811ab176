"""A local server that answers as the Hugging Face Hub does, for the hub's real client."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from huggingface_hub import constants

#: Name of a model -> the status and the headers of the hub's answer for each of its files.
ANSWERS = {
    "lab/public": (200, {"ETag": '"1"', "X-Repo-Commit": "0" * 40}),
    "lab/gated": (401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model lab/gated is restricted."}),
    "lab/no-model": (404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}),
    "lab/broken": (503, {}),
    "lab/often": (429, {}),
    "lab/token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "lab/forbidden": (403, {"X-Error-Message": "Your token cannot read this model"}),
}
_MISSING = (404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
#: The model about which the server says nothing.
SILENT = "lab/silent"


@contextmanager
def serving():
    """The server's address, and the paths that it was asked for."""
    asked, is_over = [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            if "/resolve/" in self.path:  # the client also asks for a list of names of user agents
                asked.append(self.path)
            name = "/".join(self.path.split("/")[1:3])
            if name == SILENT:
                is_over.wait()
                return
            status, headers = ANSWERS.get(name, _MISSING)
            self.send_response(status)
            for header, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(header, value)
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        is_over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def use(monkeypatch, address, cache):
    """Make the client of this process ask another server, as HF_ENDPOINT does at its start, with another cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
