"""The checks of ``verl-gsd doctor``: their results on different machines, and the fix for each problem."""

import json
import re
import socket
import sys

import psutil
import pytest
from nvidia_smi import A100, EIGHT, PYTHON, WHEEL, card, report, stub_nvidia_smi, write_program
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.config.attention import FLASH, SDPA
from verl_gsd.run import all_reduce, doctor, gpus
from verl_gsd.run.doctor import CheckResult

GIB = 1 << 30


def by_name(results):
    return {result.name: result for result in results}


def states(results):
    return {result.name: result.state for result in results}


def test_results_have_a_fix_unless_they_are_ok(monkeypatch):
    """Over every result that the functions below make from values."""
    machines = (EIGHT, gpus.parse(report(card(0, free="500 MiB"), cuda="12.2")))
    found = [
        *(f for machine in machines for build in (WHEEL, None) for f in doctor.check_gpus(machine, build, None)),
        *doctor.check_gpus(EIGHT, WHEEL, ""),
        *(doctor.check_attention_choice(*pair) for pair in ((FLASH, ""), (SDPA, "flash-attn is not installed"))),
        *(
            doctor.check_vllm_import(code, "platform cuda", gpu_build=gpu)
            for code in (None, 0, 1)
            for gpu in (True, False)
        ),
        *(doctor.check_shared_memory(free, 64 * GIB, 8) for free in (GIB // 16, 4 * GIB, 32 * GIB)),
    ]
    assert {result.state for result in found} == {"ok", "warn", "fail"}
    for result in found:
        assert bool(result.fix) == (result.state != "ok"), result


# Driver and memory


def test_all_results_of_a_good_machine_are_ok():
    found = list(doctor.check_gpus(EIGHT, WHEEL, None))
    assert set(states(found).values()) == {"ok"} and len(found) == 9
    assert "580.95.05" in found[0].detail and "13.0" in found[0].detail and "2.11.0+cu130" in found[0].detail
    assert "79.1 of 79.6 GiB" in by_name(found)["GPU 7"].detail


def test_old_driver_fails_and_the_fix_names_a_driver_version():
    machine = gpus.parse(report(card(0, A100), driver="535.54.03", cuda="12.2"))
    driver = by_name(doctor.check_gpus(machine, WHEEL, None))["driver"]
    assert driver.state == "fail" and "535.54.03" in driver.detail and "580" in driver.fix


def test_cpu_build_of_torch_fails_and_the_fix_names_the_extra():
    driver = by_name(doctor.check_gpus(EIGHT, gpus.TorchBuild("2.13.0+cpu", None), None))["driver"]
    assert driver.state == "fail" and "EXTRAS=gpu" in driver.fix


def test_processes_that_use_a_gpu_are_listed():
    machine = gpus.parse(report(card(0), card(1, free="40500 MiB", processes=PYTHON)))
    found = by_name(doctor.check_gpus(machine, WHEEL, None))
    assert states(found.values()) == {"driver": "ok", "GPU 0": "ok", "GPU 1": "warn"}
    assert "pid 4242" in found["GPU 1"].detail and "39.6 of 79.6 GiB" in found["GPU 1"].detail


def test_only_visible_gpus_are_listed():
    assert {"GPU 3"} < states(doctor.check_gpus(EIGHT, WHEEL, "3")).keys() == {"driver", "GPU 3"}
    hidden = by_name(doctor.check_gpus(EIGHT, WHEEL, "-1"))["accelerators"]
    assert hidden.state == "fail" and "CUDA_VISIBLE_DEVICES=-1" in hidden.detail


@pytest.mark.parametrize(
    ("output", "code", "state", "detail"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, "fail", "NVIDIA driver"),
        (report(), 0, "warn", "GPU"),
    ],
)
def test_nvidia_smi_that_fails_or_lists_no_gpu_is_reported(tmp_path, monkeypatch, output, code, state, detail):
    stub_nvidia_smi(tmp_path, monkeypatch, output, code)
    (result,) = doctor._check_accelerators()
    assert result.state == state and detail in result.detail and result.fix


# NCCL


def test_all_reduce_runs_only_with_several_gpus(tmp_path, monkeypatch):
    """Here two GPUs that a stub of nvidia-smi invents."""

    def failing_stub(ranks):
        raise all_reduce.AllReduceError(f"rank 1 of {ranks} ended with 1")

    monkeypatch.setattr(all_reduce, "measure", failing_stub)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "torch_build", lambda: WHEEL)
    stub_nvidia_smi(tmp_path, monkeypatch, report(card(0)))
    assert states(doctor._check_accelerators()) == {"driver": "ok", "GPU 0": "ok", "attention": "ok"}
    stub_nvidia_smi(tmp_path, monkeypatch, report(card(0), card(1)))
    nccl = by_name(doctor._check_accelerators())["NCCL"]
    assert (
        nccl.state == "fail" and "2 GPUs" in nccl.detail and "rank 1 of 2" in nccl.detail and "--shm-size" in nccl.fix
    )


def test_rank_checks_the_sums_and_writes_its_seconds(tmp_path, monkeypatch):
    """One rank in this process; test_doctor.py of the contract tests measures two."""
    monkeypatch.setattr(all_reduce, "_DURATION_S", 0.0)
    monkeypatch.setattr(all_reduce, "_BYTES", 1 << 10)
    all_reduce.main(0, 1, tmp_path, "gloo")
    assert json.loads((tmp_path / "seconds.json").read_text()) > 0


@pytest.mark.parametrize("failing", [0, 1])
def test_failed_rank_is_reported_and_the_others_are_killed(tmp_path, monkeypatch, failing):
    program = tmp_path / "python"  # -P -m MODULE RANK RANKS FOLDER BACKEND
    write_program(program, f'[ "$4" != {failing} ] && exec sleep 600\necho first\necho "no backend $7"\nexit 7')
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(all_reduce.AllReduceError, match=rf"rank {failing} of 2 .*7: no backend nowhere"):
        all_reduce.measure(2, backend="nowhere")


def test_ranks_that_hang_are_killed():
    with pytest.raises(all_reduce.AllReduceError, match=r" 0 s.*0 of 2"):
        all_reduce.measure(2, backend="gloo", limit_s=0)


# flash-attn


def test_attention_of_gpu_runs_is_reported():
    assert FLASH in doctor.check_attention_choice(FLASH, "").detail
    without = doctor.check_attention_choice(SDPA, "flash-attn is not installed")
    assert without.state == "ok" and SDPA in without.detail and "flash-attn is not installed" in without.detail


def test_broken_flash_attn_is_a_warning():
    broken = doctor.check_attention_choice(
        SDPA, "flash-attn cannot be imported (ImportError: undefined symbol: _ZN3c10)"
    )
    assert broken.state == "warn" and "undefined symbol" in broken.detail and "pip uninstall flash-attn" in broken.fix


# vLLM


@pytest.mark.parametrize(
    ("code", "output", "gpu_build", "detail"),
    [
        (1, "Traceback\nImportError: libcudart.so.13: cannot open shared object file\n", True, "libcudart.so.13"),
        (-11, "WARNING a kernel\n", True, "SIGSEGV"),
        (None, "INFO Initializing\n", True, "300 s"),
        (0, "platform \n", True, "none .*cuda"),
        (0, "platform cuda\n", False, "cuda .*cpu"),
        (1, "", True, "exit code 1"),
        (0, "a platform cuda of another kind\n", True, "none .*cuda"),
    ],
)
def test_failed_import_of_vllm_is_reported(code, output, gpu_build, detail):
    result = doctor.check_vllm_import(code, output, gpu_build=gpu_build)
    assert result.state == "fail" and re.search(detail, result.detail)


def test_import_of_vllm_reports_its_platform():
    result = doctor.check_vllm_import(0, "WARNING something\nplatform cuda\nleaked 5 types\n", gpu_build=True)
    assert (result.state, result.detail) == ("ok", "platform cuda")


def test_import_of_vllm_that_crashes_or_hangs_does_not_affect_the_caller(monkeypatch):
    monkeypatch.setattr(doctor, "_IMPORT_VLLM", "import os; print('before', flush=True); os.abort()")
    assert "SIGABRT: before" in doctor.check_vllm_import(*doctor._import_vllm(), gpu_build=True).detail
    monkeypatch.setattr(doctor, "_IMPORT_VLLM", "import threading; threading.Event().wait()")
    monkeypatch.setattr(doctor, "_IMPORT_LIMIT_S", 0.1)
    assert doctor._import_vllm()[0] is None


def test_cpu_variable_with_gpu_build_of_vllm_is_a_warning(monkeypatch):
    installed = ["vllm"]
    monkeypatch.setattr(doctor, "is_installed", lambda name: name in installed)  # a stub of what is installed
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.24.0")
    monkeypatch.setattr(doctor, "_import_vllm", lambda: (0, "platform cuda"))
    monkeypatch.setenv("VERL_GSD_CPU", "1")
    found = by_name(doctor._check_vllm())
    assert found["vllm platform"].state == "warn" and "unset VERL_GSD_CPU" in found["vllm platform"].fix
    monkeypatch.delenv("VERL_GSD_CPU")
    assert states(doctor._check_vllm()) == {"vllm": "ok", "vllm import": "ok"}
    installed.clear()
    assert states(doctor._check_vllm()) == {"vllm": "fail"}


# Shared memory


@pytest.mark.parametrize(
    ("free", "memory", "count", "state", "detail"),
    [
        (64 << 20, 512 * GIB, 8, "fail", "8 GPUs"),  # docker's default
        (64 << 20, 512 * GIB, 1, "warn", "9.3 GiB "),
        (4 * GIB, 512 * GIB, 8, "warn", "9.3 GiB "),
        (16 * GIB, 512 * GIB, 8, "ok", "16.0 GiB "),
        (256 * GIB, 512 * GIB, 8, "ok", "256.0 GiB "),
        (4 * GIB, 8 * GIB, 0, "ok", "4.0 GiB "),
        (2 * GIB, 8 * GIB, 0, "warn", "2.4 GiB "),
    ],
)
def test_shared_memory_is_compared_with_what_ray_and_nccl_use(free, memory, count, state, detail):
    result = doctor.check_shared_memory(free, memory, count)
    assert result.state == state and detail in result.detail
    if state != "ok":
        assert "--shm-size=" in result.fix


def test_shared_memory_size_in_the_fix_is_sufficient():
    for memory, count in ((512, 8), (512, 1), (16, 2)):
        remedy = doctor.check_shared_memory(0, memory * GIB, count).fix
        size = int(remedy.rpartition("=")[2].removesuffix("g"))
        assert doctor.check_shared_memory(size * GIB, memory * GIB, count).state == "ok", remedy


# The command


def test_check_that_raises_is_a_failed_result(monkeypatch):
    def _check_torn():
        raise OSError("disk gone")
        yield

    def _check_after():
        yield CheckResult("after", "ok", "reached")

    monkeypatch.setattr(doctor, "CHECKS", (_check_torn, _check_after))
    assert [(f.name, f.state) for f in doctor.run_checks()] == [("torn", "fail"), ("after", "ok")]


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_prints_fixes_and_exits_with_1_if_a_check_fails(monkeypatch, state, code):
    def _check_driver():
        yield CheckResult("driver", state, "[535]", "Install driver 580" if state != "ok" else "")

    monkeypatch.setattr(doctor, "CHECKS", (_check_driver,))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == code and "[535]" in done.output
    assert ("Install driver 580" in done.output) == (state != "ok")


def test_ray_processes_that_run_code_for_everyone_are_a_warning():
    processes = [
        doctor.RayProcess("gcs_server", 7, "me", True, ("0.0.0.0:6379",), has_token=False),
        doctor.RayProcess("raylet", 8, "me", True, ("10.0.0.1:1234",), has_token=True),
        doctor.RayProcess("raylet", 9, "me", True),
        doctor.RayProcess("gcs_server", 10, "alice", False),
        doctor.RayProcess("raylet", 11, "alice", False),
    ]
    other, gcs, raylet = doctor.check_ray_processes(processes)
    assert (other.state, other.detail) == ("ok", "alice has a Ray cluster on this machine")
    assert gcs.state == "warn" and "process 7 listens on 0.0.0.0:6379, without a token" in gcs.detail
    assert "RAY_AUTH_MODE=token" in gcs.fix
    assert raylet.state == "ok" and raylet.detail == "process 8 listens on 10.0.0.1:1234, and requires a token"


def test_addresses_that_only_this_machine_reaches_are_left_out():
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("", 0)) as everywhere:
        own = doctor._open_addresses(psutil.Process())
        assert f"0.0.0.0:{everywhere.getsockname()[1]}" in own
        assert not [address for address in own if address.startswith("127.")]


def test_readable_token_and_open_session_folder_fail(tmp_path):
    tmp_path.chmod(0o755)
    token, sessions = tmp_path / "token", tmp_path / "ray_0"
    assert not list(doctor.check_private_files(token, sessions))
    token.touch(mode=0o600)
    sessions.mkdir(mode=0o700)
    assert states(doctor.check_private_files(token, sessions)) == {"Ray's token": "ok", "Ray's sessions": "ok"}
    sessions.chmod(0o777)
    results = by_name(doctor.check_private_files(token, sessions))
    assert results["Ray's sessions"].state == "fail" and "its mode is 0777" in results["Ray's sessions"].detail
    assert f"chmod 700 {sessions}" in results["Ray's sessions"].fix
