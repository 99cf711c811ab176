"""Workers as forks of a server: what a fork must not share, and what happens if no server replies."""

import fcntl
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from controlled_judge import wait_until

from verl_gsd.cpu.forkserver import workers_forked

REPORT = """
import json, os, random, signal, sys
print(json.dumps({
    "word": os.environ["WORD"], "folder": os.getcwd(), "argv": sys.argv, "path": sys.path[0], "name": __name__,
    "imported": [name for name in ("imaplib", "poplib", "numpy") if name in sys.modules], "parent": os.getppid(),
    "default_sigchld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "drawn": [random.random(), sys.modules["numpy"].random.random() if "numpy" in sys.modules else None],
}))
"""


@pytest.fixture(autouse=True)
def threads_as_ray_sets_them(monkeypatch):
    """Only workers with the server's number of threads are forked. Here it is one, as in Ray's workers."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "worker.py"
    path.write_text(REPORT)
    return path


def start(command, script, *arguments, word="", folder=None, **environment):
    return subprocess.run(
        [*shlex.split(command), script, *arguments],
        env=os.environ | {"WORD": word} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_fork_becomes_the_requested_process(script, tmp_path):
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


def test_the_client_waits_for_its_worker_and_shows_its_output(tmp_path):
    """The worker continues only when the test lets it. A client that does not wait would have ended by then."""
    script, gate = tmp_path / "worker.py", tmp_path / "gate"
    os.mkfifo(gate)
    script.write_text(
        f"print('here', flush=True)\nopen({str(gate)!r}).read()\n"
        "print('done', flush=True)\nraise RuntimeError('in it')\n"
    )
    with workers_forked([]) as command:
        client = subprocess.Popen(
            [*shlex.split(command), script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert client.stdout.readline() == "here\n"
        with gate.open("w"):  # opens once the worker reads, and lets it go when closed
            assert client.poll() is None
        printed, said = client.communicate(timeout=60)
    assert printed == "done\n"
    assert "RuntimeError: in it" in said


def test_workers_start_as_plain_python_if_the_server_cannot_import(script, capfd):
    with workers_forked(["imaplib", "no_such_module"]) as command:
        done = start(command, script, word="here")
        again = start(command, script, word="again")
    assert json.loads(done.stdout)["word"] == "here" and json.loads(done.stdout)["imported"] == []
    assert json.loads(again.stdout)["word"] == "again"
    assert "no_such_module" in capfd.readouterr().err, "the server says why"


def test_neither_the_server_nor_a_fork_imports_from_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "current").mkdir()
    (tmp_path / "current" / "json.py").write_text("raise SystemExit('code of somebody else')")
    (script := tmp_path / "worker.py").write_text("import json, os, sys; print(os.getppid(), '' in sys.path)")
    monkeypatch.chdir(tmp_path / "current")
    with workers_forked([]) as command:
        done = start(command, script)
        program = subprocess.run(
            [*shlex.split(command), "-c", script.read_text()], capture_output=True, text=True, timeout=60
        )
    for seen in (done, program):
        parent, searches_folder = seen.stdout.split()
        assert searches_folder == "False" and parent != str(os.getpid()) and seen.stderr == ""


def test_a_stopped_server_leaves_no_process_and_no_files(script):
    with workers_forked([]) as command:
        parent = json.loads(start(command, script).stdout)["parent"]
        path = Path(shlex.split(command)[-1])
        assert path.is_socket()
    with pytest.raises(ProcessLookupError):
        os.kill(parent, 0)
    assert not path.parent.exists()
    assert "cannot fork a worker through" in start(command, script).stderr


def test_a_worker_with_other_import_variables_starts_as_plain_python(script, tmp_path):
    """PYTHONPATH and similar variables are read before a fork could apply them."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "helper.py").write_text("NAME = 'helped'")
    script.write_text("import os, helper; print(helper.NAME, os.getppid())")
    with workers_forked([]) as command:
        done = start(command, script, PYTHONPATH=str(tmp_path / "elsewhere"))
        again = start(command, script, PYTHONPATH=str(tmp_path / "elsewhere"))
    with workers_forked([], {"PYTHONPATH": str(tmp_path / "elsewhere")}) as command:
        forked = [start(command, script, PYTHONPATH=str(tmp_path / "elsewhere")).stdout.split() for _ in range(2)]
    assert done.stdout.split()[0] == again.stdout.split()[0] == "helped"
    assert done.stdout.split()[1] == str(os.getpid()), "the client itself became Python"
    assert forked[0] == forked[1] and forked[0][1] != str(os.getpid()), "the same variable from the start: forks"


def test_a_fork_has_the_variables_that_imports_set(script, tmp_path, monkeypatch):
    """A client that has another value than the server had at its start keeps its own value."""
    lines = (
        "os.environ['KMP_SET'] = 'import'",
        "os.environ.setdefault('LEFT', 'import')",
        "os.environ['TAKEN'] = 'import'",
    )
    (tmp_path / "sets_variables.py").write_text("\n".join(("import os", *lines)))
    script.write_text("import json, os; print(json.dumps(dict(os.environ)))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("LEFT", "start")
    monkeypatch.setenv("TAKEN", "start")
    with workers_forked(["sets_variables"]) as command:
        seen = [json.loads(start(command, script, **own).stdout) for own in ({}, {"TAKEN": "mine", "LEFT": "mine"})]
    assert [[found.get(name) for name in ("KMP_SET", "LEFT", "TAKEN")] for found in seen] == [
        ["import", "start", "import"],
        ["import", "mine", "mine"],
    ]


def test_an_incomplete_request_affects_only_its_own_worker(script):
    with workers_forked([]) as command:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(shlex.split(command)[-1])
            read, write = os.pipe()
            socket.send_fds(connection, [(100).to_bytes(8, "big")], [1, 2, write])
            connection.sendall(b"{half")
        assert json.loads(start(command, script).stdout)["parent"] != os.getpid()
        os.close(write)
        os.set_blocking(read, False)
        assert os.read(read, 1) == b"", "the server has not kept it"
        os.close(read)


SPAWNING = """
import multiprocessing, os, signal, sys

def child(connection, code):
    connection.send(("imaplib" in sys.modules, os.getpid(), os.getppid()))
    connection.send(multiprocessing.current_process().name)
    if code is None:
        signal.pause()
    sys.exit(code)

def spawned(code):
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, code), name="engine")
    process.start()
    there.close()
    return process, here

if __name__ == "__main__":
    for act, code in (("join", 3), ("terminate", None), ("kill", None)):
        process, pipe = spawned(code)
        imported, pid, parent = pipe.recv()
        print(imported, parent == os.getppid(), pipe.recv(), flush=True)
        getattr(process, act)()
        process.join()
        print(act, process.exitcode, flush=True)
        try:
            pipe.recv()  # nobody else holds the other end: the fork has ended
        except EOFError:
            print("ended", flush=True)
"""


def test_processes_that_a_worker_spawns_are_forks_that_it_can_end(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(SPAWNING)
    with workers_forked(["imaplib"]) as command:
        done = start(command, script)
    assert done.returncode == 0, done.stderr
    started = "True True engine"
    ends = ["join 3", "ended"], ["terminate -15", "ended"], ["kill -9", "ended"]
    assert done.stdout.splitlines() == [line for end in ends for line in (started, *end)]


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("pass", 0)])
def test_the_client_ends_as_its_worker_does(tmp_path, ending, code):
    script = tmp_path / "worker.py"
    script.write_text(f"import os, sys\n{ending}")
    with workers_forked([]) as command:
        assert start(command, script).returncode == code


def test_a_worker_has_its_clients_open_files_under_the_same_numbers(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import os, sys\nfor word in sys.argv[1:]: os.write(int(word), word.encode())")
    pipes = [os.pipe() for _ in range(6)]
    high = fcntl.fcntl(pipes[-1][1], fcntl.F_DUPFD, 700)
    os.close(pipes[-1][1])
    pipes[-1] = (pipes[-1][0], high)
    numbers = [write for _, write in pipes]
    with workers_forked([]) as command:
        words = [*shlex.split(command), script, *map(str, numbers)]
        assert subprocess.run(words, pass_fds=numbers, timeout=60).returncode == 0
    for read, write in pipes:
        os.close(write)
        assert os.read(read, 99) == str(write).encode()
        os.close(read)


def test_no_worker_outlives_its_server_or_its_client(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text("import os, signal\nprint(os.getpid(), flush=True)\nsignal.pause()")
    with workers_forked([]) as command:
        clients = [
            subprocess.Popen([*shlex.split(command), script], stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        workers = [psutil.Process(int(client.stdout.readline())) for client in clients]
        clients[0].kill()
        assert not clients[0].stdout.read(), "nobody holds the other end: the worker has ended"
        assert workers[1].is_running()
    for client, worker in zip(clients, workers, strict=True):
        client.wait()
        wait_until(lambda worker=worker: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)


PAUSING = """
if __name__ == "__main__":
    process, pipe = spawned(None)
    imported, pid, parent = pipe.recv()
    assert pipe.recv() == "engine" and parent == os.getppid()
    print(parent, flush=True)
    process.join()
    print("ended", flush=True)
"""


def test_spawned_processes_end_with_the_server_but_workers_do_not(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(SPAWNING.partition("if __name__")[0] + PAUSING)
    with workers_forked(["imaplib"]) as command:
        client = subprocess.Popen([*shlex.split(command), script], stdout=subprocess.PIPE, text=True)
        server = psutil.Process(int(client.stdout.readline()))
        server.kill()
        assert client.stdout.readline() == "ended\n"
        assert client.wait(60) == 1, "nobody can tell any more how the worker ended"


def test_the_server_ends_with_the_process_that_started_it(tmp_path):
    starter = (
        "import signal, psutil; from verl_gsd.cpu.forkserver import workers_forked\n"
        "with workers_forked([]): print(psutil.Process().children()[0].pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as process:
        server = psutil.Process(int(process.stdout.readline()))
        process.kill()
    psutil.wait_procs([server], timeout=60)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
