"""What several contract tests share."""

import os
import subprocess
import sys

import pytest
from places import SUPPORT


class Program:
    """A program of ``tests/support`` that runs beside the tests until one of them waits for its end."""

    def __init__(self, folder, *words, environment):
        self._log = folder / "output"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder)

    def output(self):
        """What it has printed. It must have ended well."""
        status = self._process.wait(timeout=900)
        assert status == 0, self._log.read_text()[-6000:]
        return self._log.read_text()

    def end(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session", autouse=True)
def _programs_begin_with_the_first_test(request):
    """They take long, and the tests that need them come late."""
    wanted = {name for item in request.session.items for name in item.fixturenames}
    for name in ("import_probe", "vllm_engine"):
        if name in wanted:
            request.getfixturevalue(name)


@pytest.fixture(scope="session")
def import_probe(tmp_path_factory):
    """A process that imports the fork server's modules and then verl, and does not ask for the CPU."""
    import verl  # noqa: F401, first: it loads our plugin

    from verl_gsd.trainer import cpu, forkserver

    ours = {cpu.SWITCH, *cpu.ENVIRONMENT}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    words = sys.executable, SUPPORT / "import_probe.py", *forkserver.MODULES
    program = Program(tmp_path_factory.mktemp("import_probe"), *words, environment=environment)
    yield program
    program.end()


@pytest.fixture(scope="session")
def vllm_engine(tiny_task, tmp_path_factory):
    """vLLM as verl starts it in a run: the engine and the worker are processes that vLLM spawns."""
    from verl_gsd.trainer import weight_sockets

    # verl first, as in its actor: vLLM asks for its own version, which verl_gsd.trainer.cpu answers.
    script = str(SUPPORT / "vllm_engine.py")
    code = f"import verl, runpy, sys; sys.argv[0] = {script!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {"VERL_GSD_CPU": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {weight_sockets.NODE: "cd" * 28, "VERL_RAY_JOB_ID": "01000000"}
    words = sys.executable, "-c", code, tiny_task / "model"
    program = Program(tmp_path_factory.mktemp("vllm_engine"), *words, environment=os.environ | environment)
    yield program
    program.end()


@pytest.fixture(scope="session")
def running_queue():
    """The one Ray of the session with verl's queue on it. A second start would cost seconds per file."""
    import ray
    import transfer_queue as tq
    from omegaconf import OmegaConf

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    yield tq
    tq.close()
    ray.shutdown()


@pytest.fixture
def queue(running_queue):
    """verl's queue, running, and empty at a test's start."""
    yield
    for partition, items in (running_queue.kv_list() or {}).items():
        if items:
            running_queue.kv_clear(keys=list(items), partition_id=partition)
