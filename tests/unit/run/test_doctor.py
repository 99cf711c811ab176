"""``verl-gsd doctor``: what it finds on machines of every kind, each fault with its remedy."""

import json
import re

import pytest
from nvidia_smi import A100, EIGHT, PYTHON, WHEEL, card, report, stub_nvidia_smi, write_program
from typer.testing import CliRunner

from verl_gsd.cli.main import app
from verl_gsd.config.attention import FLASH, SDPA
from verl_gsd.run import all_reduce, doctor, gpus
from verl_gsd.run.doctor import Finding

GIB = 1 << 30


def by_name(found):
    return {finding.name: finding for finding in found}


def states(found):
    return {finding.name: finding.state for finding in found}


def test_a_finding_has_a_remedy_if_and_only_if_it_is_not_good(monkeypatch):
    """Over every finding that the functions below make from values."""
    machines = (EIGHT, gpus.parse(report(card(0, free="500 MiB"), cuda="12.2")))
    found = [
        *(f for machine in machines for build in (WHEEL, None) for f in doctor.gpu_findings(machine, build, None)),
        *doctor.gpu_findings(EIGHT, WHEEL, ""),
        *(doctor.attention_finding(*pair) for pair in ((FLASH, ""), (SDPA, "flash-attn is not installed"))),
        *(doctor.vllm_finding(code, "platform cuda", gpu_build=gpu) for code in (None, 0, 1) for gpu in (True, False)),
        *(doctor.shared_memory_finding(free, 64 * GIB, 8) for free in (GIB // 16, 4 * GIB, 32 * GIB)),
    ]
    assert {finding.state for finding in found} == {"ok", "warn", "fail"}
    for finding in found:
        assert bool(finding.remedy) == (finding.state != "ok"), finding


# Driver and memory


def test_a_good_machine_has_nothing_to_mend():
    found = list(doctor.gpu_findings(EIGHT, WHEEL, None))
    assert set(states(found).values()) == {"ok"} and len(found) == 9
    assert "580.95.05" in found[0].seen and "13.0" in found[0].seen and "2.11.0+cu130" in found[0].seen
    assert "79.1 of 79.6 GiB" in by_name(found)["GPU 7"].seen


def test_a_driver_too_old_fails_with_the_driver_to_install():
    machine = gpus.parse(report(card(0, A100), driver="535.54.03", cuda="12.2"))
    driver = by_name(doctor.gpu_findings(machine, WHEEL, None))["driver"]
    assert driver.state == "fail" and "535.54.03" in driver.seen and "580" in driver.remedy


def test_a_cpu_build_of_torch_fails_with_what_to_install():
    driver = by_name(doctor.gpu_findings(EIGHT, gpus.TorchBuild("2.13.0+cpu", None), None))["driver"]
    assert driver.state == "fail" and "EXTRAS=gpu" in driver.remedy


def test_the_process_that_holds_a_gpu_is_named():
    machine = gpus.parse(report(card(0), card(1, free="40500 MiB", processes=PYTHON)))
    found = by_name(doctor.gpu_findings(machine, WHEEL, None))
    assert states(found.values()) == {"driver": "ok", "GPU 0": "ok", "GPU 1": "warn"}
    assert "pid 4242" in found["GPU 1"].seen and "39.6 of 79.6 GiB" in found["GPU 1"].seen


def test_only_visible_gpus_are_listed():
    assert {"GPU 3"} < states(doctor.gpu_findings(EIGHT, WHEEL, "3")).keys() == {"driver", "GPU 3"}
    hidden = by_name(doctor.gpu_findings(EIGHT, WHEEL, "-1"))["accelerators"]
    assert hidden.state == "fail" and "CUDA_VISIBLE_DEVICES=-1" in hidden.seen


@pytest.mark.parametrize(
    ("output", "code", "state", "seen"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, "fail", "NVIDIA driver"),
        (report(), 0, "warn", "GPU"),
    ],
)
def test_a_machine_whose_gpus_cannot_be_used(tmp_path, monkeypatch, output, code, state, seen):
    stub_nvidia_smi(tmp_path, monkeypatch, output, code)
    (finding,) = doctor._accelerators()
    assert finding.state == state and seen in finding.seen and finding.remedy


# NCCL


def test_one_gpu_needs_no_all_reduce_and_two_do(tmp_path, monkeypatch):
    """Here two GPUs that a stub of nvidia-smi invents."""

    def failing_stub(ranks):
        raise all_reduce.AllReduceError(f"rank 1 of {ranks} ended with 1")

    monkeypatch.setattr(all_reduce, "measure", failing_stub)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "torch_build", lambda: WHEEL)
    stub_nvidia_smi(tmp_path, monkeypatch, report(card(0)))
    assert states(doctor._accelerators()) == {"driver": "ok", "GPU 0": "ok", "attention": "ok"}
    stub_nvidia_smi(tmp_path, monkeypatch, report(card(0), card(1)))
    nccl = by_name(doctor._accelerators())["NCCL"]
    assert nccl.state == "fail" and "2 GPUs" in nccl.seen and "rank 1 of 2" in nccl.seen and "--shm-size" in nccl.remedy


def test_a_rank_checks_the_sums_and_writes_its_seconds(tmp_path, monkeypatch):
    """One rank in this process; test_doctor.py of the contract tests measures two."""
    monkeypatch.setattr(all_reduce, "_DURATION_S", 0.0)
    monkeypatch.setattr(all_reduce, "_BYTES", 1 << 10)
    all_reduce.main(0, 1, tmp_path, "gloo")
    assert json.loads((tmp_path / "seconds.json").read_text()) > 0


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_ends_the_others_and_is_named(tmp_path, monkeypatch, failing):
    program = tmp_path / "python"  # -m MODULE RANK RANKS FOLDER BACKEND
    write_program(program, f'[ "$3" != {failing} ] && exec sleep 600\necho first\necho "no backend $6"\nexit 7')
    monkeypatch.setattr(all_reduce.sys, "executable", str(program))
    with pytest.raises(all_reduce.AllReduceError, match=rf"rank {failing} of 2 .*7: no backend nowhere"):
        all_reduce.measure(2, backend="nowhere")


def test_ranks_that_hang_are_ended():
    with pytest.raises(all_reduce.AllReduceError, match=r" 0 s.*0 of 2"):
        all_reduce.measure(2, backend="gloo", limit_s=0)


# flash-attn


def test_the_attention_of_gpu_groups_is_stated():
    assert FLASH in doctor.attention_finding(FLASH, "").seen
    without = doctor.attention_finding(SDPA, "flash-attn is not installed")
    assert without.state == "ok" and SDPA in without.seen and "flash-attn is not installed" in without.seen


def test_a_flash_attn_that_is_broken_is_a_warning():
    broken = doctor.attention_finding(SDPA, "flash-attn cannot be imported (ImportError: undefined symbol: _ZN3c10)")
    assert broken.state == "warn" and "undefined symbol" in broken.seen and "pip uninstall flash-attn" in broken.remedy


# vLLM


@pytest.mark.parametrize(
    ("code", "output", "gpu_build", "seen"),
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
def test_a_vllm_that_does_not_import_fails(code, output, gpu_build, seen):
    finding = doctor.vllm_finding(code, output, gpu_build=gpu_build)
    assert finding.state == "fail" and re.search(seen, finding.seen)


def test_a_vllm_that_imports_names_its_platform():
    finding = doctor.vllm_finding(0, "WARNING something\nplatform cuda\nleaked 5 types\n", gpu_build=True)
    assert (finding.state, finding.seen) == ("ok", "platform cuda")


def test_an_import_that_crashes_or_hangs_ends_there(monkeypatch):
    monkeypatch.setattr(doctor, "_IMPORT_VLLM", "import os; print('before', flush=True); os.abort()")
    assert "SIGABRT: before" in doctor.vllm_finding(*doctor._vllm_platform(), gpu_build=True).seen
    monkeypatch.setattr(doctor, "_IMPORT_VLLM", "import threading; threading.Event().wait()")
    monkeypatch.setattr(doctor, "_IMPORT_LIMIT_S", 0.1)
    assert doctor._vllm_platform()[0] is None


def test_the_cpu_variable_beside_vllm_for_gpus_is_a_warning(monkeypatch):
    installed = ["vllm"]
    monkeypatch.setattr(doctor, "is_installed", lambda name: name in installed)  # a stub of what is installed
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: "0.24.0")
    monkeypatch.setattr(doctor, "_vllm_platform", lambda: (0, "platform cuda"))
    monkeypatch.setenv("VERL_GSD_CPU", "1")
    found = by_name(doctor._vllm())
    assert found["vllm platform"].state == "warn" and "unset VERL_GSD_CPU" in found["vllm platform"].remedy
    monkeypatch.delenv("VERL_GSD_CPU")
    assert states(doctor._vllm()) == {"vllm": "ok", "vllm import": "ok"}
    installed.clear()
    assert states(doctor._vllm()) == {"vllm": "fail"}


# Shared memory


@pytest.mark.parametrize(
    ("free", "memory", "count", "state", "seen"),
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
def test_shared_memory_is_held_against_what_ray_and_nccl_take(free, memory, count, state, seen):
    finding = doctor.shared_memory_finding(free, memory, count)
    assert finding.state == state and seen in finding.seen
    if state != "ok":
        assert "--shm-size=" in finding.remedy


def test_the_size_that_the_remedy_names_is_enough():
    for memory, count in ((512, 8), (512, 1), (16, 2)):
        remedy = doctor.shared_memory_finding(0, memory * GIB, count).remedy
        size = int(remedy.rpartition("=")[2].removesuffix("g"))
        assert doctor.shared_memory_finding(size * GIB, memory * GIB, count).state == "ok", remedy


# The command


def test_a_check_that_raises_is_a_finding(monkeypatch):
    def _torn():
        raise OSError("disk gone")
        yield

    def _after():
        yield Finding("after", "ok", "reached")

    monkeypatch.setattr(doctor, "CHECKS", (_torn, _after))
    assert [(f.name, f.state) for f in doctor.findings()] == [("torn", "fail"), ("after", "ok")]


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_doctor_prints_the_remedy_and_fails_if_something_fails(monkeypatch, state, code):
    def _one():
        yield Finding("driver", state, "[535]", "Install driver 580" if state != "ok" else "")

    monkeypatch.setattr(doctor, "CHECKS", (_one,))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == code and "[535]" in done.output
    assert ("Install driver 580" in done.output) == (state != "ok")
