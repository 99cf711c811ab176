"""A report that is served: to whom, what, and for how long."""

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psutil
import pytest
from report_runs import records
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.report import watch

MIXED = [0, 1, 1, 1]


def get(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.read().decode()


@pytest.fixture
def served(tmp_path):
    """(url, process, run) of a command that serves a run of one step."""
    run = tmp_path / "run"
    records(run, 1, (MIXED, "trained"))
    (run / "secret.txt").write_text("secret")
    # As a terminal has it, whoever started the tests: what a shell runs in the background ignores Ctrl-C.
    ctrl_c = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    script = ctrl_c + "import sys; from verl_gsd.cli.main import app; app(sys.argv[1:])"
    command = [sys.executable, "-u", "-c", script, "report", str(run), "--watch", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    url = process.stdout.readline().split()[0]
    yield url, process, run
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stdout.close()


def test_it_serves_the_page_and_nothing_else_to_this_machine_alone(served):
    url, process, run = served
    status, first = get(url)
    assert status == 200 and 'http-equiv="refresh"' in first
    for path in ("secret.txt", "../run/secret.txt", "report.html", "records/", "?x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get(url + path)
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(url, Host="evil.example")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(url, data=b"x", timeout=60)
    listening = [c for c in psutil.Process(process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]
    records(run, 2, (MIXED, "trained"), (MIXED, "trained"))
    _, later = get(url)
    assert "<td>1</td><td>1</td><td>1</td>" in first and "<td>2</td><td>1</td><td>3</td>" in later
    assert not (run / "report.html").exists()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


def test_a_page_is_made_again_only_when_a_file_has_changed(tmp_path, monkeypatch):
    records(tmp_path, 1, (MIXED, "trained"))
    reads = []
    monkeypatch.setattr(watch, "read_runs", lambda runs, real=watch.read_runs: reads.append(runs) or real(runs))
    pages = watch.Pages([tmp_path])
    assert pages.current() == pages.current()
    assert len(reads) == 1
    records(tmp_path, 2, (MIXED, "trained"))
    pages.current()
    assert len(reads) == 2


def test_a_run_that_has_made_no_step_is_waited_for(tmp_path):
    pages = watch.Pages([tmp_path])
    assert b'id="waiting"' in pages.current()
    records(tmp_path, 1, (MIXED, "trained"))
    assert b'id="waiting"' not in pages.current()


def test_a_port_that_is_taken_is_said(tmp_path):
    records(tmp_path, 1, (MIXED, "trained"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = CliRunner().invoke(app, ["report", str(tmp_path), "--watch", "--port", port], env={"COLUMNS": "300"})
    assert result.exit_code == 2 and re.search(rf"port {port}: .*--port", result.output)
