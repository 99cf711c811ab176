"""vLLM with workers in processes of their own, as verl starts it on GPUs: they load our plugin."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import SUPPORT
from running import TASK, verl_gsd

from verl_gsd import private_folders
from verl_gsd.trainer import weight_sockets

MARK, JOB = "cd" * 8, "01000000"


@pytest.mark.minutes(2)
def test_vllm_loads_the_plugin_in_the_process_that_receives():
    """With the executor "uni" the engine's process receives. Every run on a CPU has that one."""
    assert verl_gsd("prepare", "arithmetic").returncode == 0
    # verl first, as in its actor: vLLM asks for its own version, which verl_gsd.cpu.platform answers.
    script = str(SUPPORT / "vllm_engine.py")
    code = f"import verl, runpy, sys; sys.argv[0] = {script!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    environment = {"VERL_GSD_CPU": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {weight_sockets.MARK: MARK, "VERL_RAY_JOB_ID": JOB}
    words = sys.executable, "-c", code, TASK / "model"
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    (handles,) = re.findall(r"^HANDLES (.*)$", done.stdout, re.MULTILINE)
    folder = Path(f"{private_folders._PREFIX}weights_{MARK}")
    assert handles == f"['ipc://{folder}/rl-colocate-zmq-{JOB}-replica-0-rank-0.sock']"
    private_folders.remove_unused()
    assert not folder.exists()
