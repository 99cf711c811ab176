"""The server of `verl-gsd report --watch`: what it serves, to whom, and when it rebuilds the page."""

import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer

import psutil
import pytest
from report_runs import metrics, records
from typer.testing import CliRunner

from verl_gsd import rundir
from verl_gsd.cli.main import app
from verl_gsd.regular_files import open_regular
from verl_gsd.report import watch

MIXED = [0, 1, 1, 1]


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.read().decode()


def test_it_serves_the_page_and_nothing_else(tmp_path):
    run = tmp_path / "run"
    records(run, 1, (MIXED, "trained"))
    (run / "secret.txt").write_text("secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), watch.request_handler(watch.PageCache([run]))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        status, first = get(url)
        assert status == 200 and 'http-equiv="refresh"' in first
        for path in ("secret.txt", "../run/secret.txt", "report.html", "records/", "?x"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(url + path)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url, Host="evil.example")
        with pytest.raises(urllib.error.HTTPError, match="501"):
            urllib.request.urlopen(url, data=b"x", timeout=60)
        records(run, 2, (MIXED, "trained"), (MIXED, "trained"))
        _, later = get(url)
        server.shutdown()
    assert "<td>1</td><td>1</td><td>1</td>" in first and "<td>2</td><td>1</td><td>3</td>" in later


def test_the_command_serves_only_this_machine_until_ctrl_c(tmp_path, monkeypatch):
    # A shell makes background processes ignore Ctrl-C. Restore the handler that a process in a terminal has.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    seen = {}

    def visit_and_press_ctrl_c(runs, port, *, on_start, distrust, real=watch.serve):
        def visit(url):
            try:
                seen["page"] = get(url)
                seen["listening"] = {
                    connection.laddr.ip
                    for connection in psutil.Process().net_connections()
                    if connection.status == psutil.CONN_LISTEN and f":{connection.laddr.port}/" in url
                }
            finally:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        def started(url):
            on_start(url)
            threading.Thread(target=visit, args=(url,)).start()

        real(runs, port, on_start=started, distrust=distrust)

    monkeypatch.setattr(watch, "serve", visit_and_press_ctrl_c)
    try:
        result = CliRunner().invoke(app, ["report", str(tmp_path), "--watch", "--port", "0"])
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 0 and "http://127.0.0.1:" in result.output
    assert seen["page"][0] == 200 and 'id="waiting"' in seen["page"][1]
    assert seen["listening"] == {"127.0.0.1"}
    assert not (tmp_path / "report.html").exists()


def test_a_page_is_rebuilt_only_if_a_file_has_changed(tmp_path, monkeypatch):
    records(tmp_path, 1, (MIXED, "trained"))
    reads = []
    monkeypatch.setattr(watch, "read_runs", lambda *runs, real=watch.read_runs: reads.append(runs) or real(*runs))
    pages = watch.PageCache([tmp_path])
    assert pages.page() == pages.page()
    assert len(reads) == 1
    records(tmp_path, 2, (MIXED, "trained"))
    pages.page()
    assert len(reads) == 2


def test_a_rebuild_reads_only_new_records_and_new_lines_of_metrics(tmp_path, monkeypatch):
    opened, parsed = [], []
    monkeypatch.setattr(
        "verl_gsd.records.open_regular",
        lambda path, real=open_regular, **options: opened.append(path.name) or real(path, **options),
    )
    monkeypatch.setattr(
        rundir, "_step_and_scalars", lambda line, real=rundir._step_and_scalars: parsed.append(line) or real(line)
    )
    records(tmp_path, 1, (MIXED, "trained"))
    lines = [(1, {"actor/entropy": 0.5})]
    metrics(tmp_path, lines)
    pages = watch.PageCache([tmp_path])
    pages.page()
    for step in (2, 3):
        records(tmp_path, step, (MIXED, "trained"))
        lines.append((step, {"actor/entropy": 0.5}))
        metrics(tmp_path, lines)
        page = pages.page()
        assert opened == [f"step_{number:06d}.parquet" for number in range(1, step + 1)]
        assert len(parsed) == step
    assert page == watch.PageCache([tmp_path]).page(), "which is the page of a reader that has read everything"


def test_a_rebuild_notices_what_a_resume_replaces(tmp_path):
    pages = watch.PageCache([tmp_path])
    for step in (1, 2, 3):
        records(tmp_path, step, (MIXED, "trained"))
    metrics(tmp_path, [(step, {"actor/entropy": 0.5}) for step in (1, 2, 3)])
    before = pages.page()
    records(tmp_path, 2, ([0, 0, 0, 0], "filtered"), attempt=2)
    metrics(tmp_path, [(2, {"actor/entropy": 0.25})], attempt=2)
    records(tmp_path, 1, (MIXED, "trained"), (MIXED, "trained"))  # the same name, with other content
    metrics(tmp_path, [(1, {"actor/entropy": 0.125})])  # shorter than before
    after = pages.page()
    assert before != after == watch.PageCache([tmp_path]).page()


def test_the_page_waits_for_a_run_without_a_step(tmp_path):
    pages = watch.PageCache([tmp_path])
    assert b'id="waiting"' in pages.page()
    records(tmp_path, 1, (MIXED, "trained"))
    assert b'id="waiting"' not in pages.page()


def test_the_error_for_a_port_in_use_names_it(tmp_path):
    records(tmp_path, 1, (MIXED, "trained"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = CliRunner().invoke(app, ["report", str(tmp_path), "--watch", "--port", port], env={"COLUMNS": "300"})
    assert result.exit_code == 2 and re.search(rf"port {port}: .*--port", result.output)
