"""Workers as forks of a server: what a fork must have of its own, and what happens where no server answers."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from verl_gsd.trainer import forkserver
from verl_gsd.trainer.forkserver import workers_forked

REPORT = """
import json, os, random, signal, sys
print(json.dumps({
    "word": os.environ["WORD"], "folder": os.getcwd(), "argv": sys.argv, "path": sys.path[0], "name": __name__,
    "imported": [name for name in ("imaplib", "poplib", "numpy") if name in sys.modules], "parent": os.getppid(),
    "default_sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "drawn": [random.random(), sys.modules["numpy"].random.random() if "numpy" in sys.modules else None],
}))
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(REPORT)
    return path


def start(command, script, *arguments, word="", folder=None):
    return subprocess.run(
        [*shlex.split(command), script, *arguments],
        env=os.environ | {"WORD": word},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_fork_is_the_process_that_was_asked_for(script, tmp_path):
    with workers_forked(["imaplib", "numpy"]) as command:
        seen = [json.loads(start(command, script, "-x", word=word, folder=tmp_path).stdout) for word in ("one", "two")]
    assert [report["word"] for report in seen] == ["one", "two"], "the environment is the client's, not the server's"
    for report in seen:
        assert report["folder"] == str(tmp_path) and report["path"] == str(tmp_path)
        assert report["argv"] == [str(script), "-x"] and report["name"] == "__main__"
        assert report["imported"] == ["imaplib", "numpy"]
        assert report["default_sigchld"], "a worker that waits for children of its own must see them end"
    assert seen[0]["parent"] == seen[1]["parent"] != os.getpid(), "both were forked by the server"
    for first, second in zip(seen[0]["drawn"], seen[1]["drawn"], strict=True):
        assert first != second, "forks draw different random numbers"


def test_the_client_waits_for_its_worker_and_passes_on_what_it_prints(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import time\ntime.sleep(0.2)\nprint('done', flush=True)\nraise RuntimeError('in a worker')\n")
    with workers_forked([]) as command:
        done = start(command, script)
    assert done.stdout == "done\n"
    assert "RuntimeError: in a worker" in done.stderr


def test_a_server_that_cannot_import_costs_time_and_nothing_else(script, capfd):
    with workers_forked(["imaplib", "no_such_module"]) as command:
        done = start(command, script, word="here")
        again = start(command, script, word="again")
    assert json.loads(done.stdout)["word"] == "here" and json.loads(done.stdout)["imported"] == []
    assert json.loads(again.stdout)["word"] == "again"
    assert "no_such_module" in capfd.readouterr().err, "the server says why"


def test_nothing_is_left_of_a_server(script):
    with workers_forked([]) as command:
        parent = json.loads(start(command, script).stdout)["parent"]
        socket = shlex.split(command)[-1]
        assert Path(socket).is_socket()
    with pytest.raises(ProcessLookupError):
        os.kill(parent, 0)
    assert not Path(socket).parent.exists()
    assert "no fork from" in start(command, script).stderr


def test_what_is_imported_before_forking_does_not_import_ray():
    """Two forks of a process that has used Ray's random generator give two tasks one identifier, and Ray aborts."""
    code = "import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *forkserver.MODULES], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
