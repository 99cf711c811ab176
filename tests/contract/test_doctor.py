"""``verl-gsd doctor``: what it measures with torch, and what it assumes about vLLM and Ray."""

import subprocess
import sys

from ray._private import ray_constants

from verl_gsd.run import all_reduce, doctor


def test_ranks_add_up_and_are_timed():
    assert all_reduce.measure(2, backend="gloo") > 0


def test_installed_vllm_is_imported_in_a_separate_process():
    code, output = doctor._import_vllm()
    assert doctor.check_vllm_import(code, output, gpu_build=doctor.is_installed("vllm")).detail.count("platform"), (
        output
    )
    assert code == 0, output


def test_ray_uses_the_assumed_sizes_of_shared_memory():
    """Contract with Ray: the sizes of its object store that the check assumes."""
    assert ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION == doctor._RAY_SHARE
    assert ray_constants.REQUIRE_SHM_SIZE_THRESHOLD == doctor._RAY_BYTES


def test_doctors_worker_does_not_import_files_of_the_current_folder(tmp_path):
    """Ray puts the current folder before everything that is installed. Other tests here may have a Ray of their own."""
    (tmp_path / "transfer_queue.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    script = (
        "from pathlib import Path\n"
        f"from {doctor.__name__} import _check_plugin_in_worker\n"
        "(result,) = _check_plugin_in_worker()\n"
        "assert result.state == 'ok', result\n"
        f"assert Path.cwd() == Path({str(tmp_path)!r})\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
