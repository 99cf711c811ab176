"""GPUs of this machine: the report of nvidia-smi, and the checks of a run against them."""

import json
import re
import subprocess
import sys

import pytest
import torch
from nvidia_smi import A100, EIGHT, H100, PYTHON, WHEEL, card, report, stub_nvidia_smi, write_program
from omegaconf import OmegaConf, open_dict

from verl_gsd.run import gpus
from verl_gsd.run.checks.validate import check_accelerators
from verl_gsd.run.compose import Line
from verl_gsd.run.gpus import Gpu, GpuQueryError, GpuRequest, TorchBuild


def problems(request, machine=EIGHT, build=WHEEL, variable=None):
    return "\n".join(gpus.check_request(request, machine, build, variable))


# What nvidia-smi reports


def test_driver_memory_and_processes_are_read():
    machine = gpus.parse(report(card(0), card(1, free="40500 MiB", processes=PYTHON)))
    assert (machine.driver, machine.cuda) == ("580.95.05", "13.0")
    first, second = machine.gpus
    assert (first.index, first.name, first.total_mib, first.free_mib) == ("0", H100, 81559, 81038)
    assert [(p.pid, p.name, p.memory) for p in second.processes] == [(4242, "/opt/venv/bin/python", "40960 MiB")]
    assert first.processes == ()


def test_memory_of_partitions_and_unified_memory_is_unknown():
    """MIG: nvidia-smi has elements of its own below the GPU's. Unified memory: it prints no number."""
    partitions = "<mig_device><fb_memory_usage><total>19968 MiB</total></fb_memory_usage></mig_device>"
    text = report(card(0).replace("\n\t\t\tNone\n", partitions), card(1, total="N/A", free="[Not Supported]"))
    assert [gpu.total_mib for gpu in gpus.parse(text).gpus] == [81559, None]


@pytest.mark.parametrize("text", ["", "Failed to initialize NVML", "<nvidia_smi_log>"])
def test_invalid_report_is_an_error(text):
    with pytest.raises(GpuQueryError, match="XML"):
        gpus.parse(text)


def test_query_returns_none_without_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.query() is None


def test_query_runs_nvidia_smi_and_parses_its_report(tmp_path, monkeypatch):
    words = stub_nvidia_smi(tmp_path, monkeypatch, report(card(0)))
    assert gpus.query() == gpus.parse(report(card(0)))
    assert words.read_text().split() == ["-q", "-x"]


@pytest.mark.parametrize(
    ("output", "code", "message"),
    [
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9, "couldn't communicate"),
        ("Failed to initialize NVML: Driver/library version mismatch\n", 18, "version mismatch"),
        ("", 3, "exit code 3"),
        ("Segmentation fault", 0, "XML"),
    ],
)
def test_failure_of_nvidia_smi_is_reported(tmp_path, monkeypatch, output, code, message):
    stub_nvidia_smi(tmp_path, monkeypatch, output, code)
    with pytest.raises(GpuQueryError, match=message):
        gpus.query()


# Which of them a process sees


@pytest.mark.parametrize(
    ("variable", "indices"),
    [
        (None, "01234567"),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("3", "3"),
        ("7, 0", "70"),
        ("1,9,2", "1"),
        ("GPU-2f3e8a11-2d5c-4b0e-9a77-c1d4e5f60718,GPU-5f3", "25"),
        ("GPU-", ""),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(variable, indices):
    assert "".join(gpu.index for gpu in gpus.visible(EIGHT.gpus, variable)) == indices


def test_a_partition_counts_as_one_gpu_of_unknown_memory():
    (shown,) = gpus.visible(EIGHT.gpus, "MIG-4f1d0c9e-0000-5bd2-8c2f-aaaaaaaaaaaa")
    assert shown.total_mib is None
    assert problems(GpuRequest("trainer.n_gpus_per_node=1", 1, 79), variable="MIG-4f1d0c9e") == ""


# The driver against torch


@pytest.mark.parametrize("built", ["13.0", "12.6", "11.8"])
def test_driver_supports_wheels_of_its_own_and_older_major_versions(built):
    assert gpus.torch_problem(EIGHT, TorchBuild("2.11.0", built)) == ""


def test_driver_supports_wheels_of_newer_minor_versions():
    """CUDA is compatible between minor versions."""
    machine = gpus.parse(report(card(0), driver="525.147.05", cuda="12.0"))
    assert gpus.torch_problem(machine, TorchBuild("2.9.0+cu128", "12.8")) == ""


@pytest.mark.parametrize(
    ("driver", "cuda", "built", "needed"),
    [("535.54.03", "12.2", "13.0", "driver 580"), ("470.82.01", "11.4", "12.6", "driver 525"),
     ("580.95.05", "13.0", "14.1", "a newer driver")],
)  # fmt: skip
def test_driver_too_old_for_the_wheel_is_reported(driver, cuda, built, needed):
    machine = gpus.parse(report(card(0), driver=driver, cuda=cuda))
    problem = problems(GpuRequest("trainer.n_gpus_per_node=1", 1), machine, TorchBuild("2.11.0", built))
    assert all(part in problem for part in ("trainer.device=cuda", driver, cuda, built, f"Install {needed}")), problem


def test_driver_without_cuda_version_passes():
    machine = gpus.parse(report(card(0), cuda="N/A"))
    assert problems(GpuRequest("trainer.n_gpus_per_node=1", 1), machine) == ""


def test_torch_without_cuda_is_reported():
    problem = problems(GpuRequest("trainer.n_gpus_per_node=1", 1), build=TorchBuild("2.13.0+cpu", None))
    assert all(part in problem for part in ("trainer.device=cuda", "2.13.0+cpu", "EXTRAS=gpu")), problem
    assert "EXTRAS=gpu" in problems(GpuRequest("trainer.n_gpus_per_node=1", 1), build=None)


def test_the_build_of_torch_is_read_without_importing_it():
    """In a process of its own, against the torch that is imported here."""
    script = (
        "import sys, json; from verl_gsd.run.gpus import torch_build; build = torch_build()\n"
        "print(json.dumps(['torch' in sys.modules, build.version, build.cuda]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [False, str(torch.__version__), torch.version.cuda]


# Fewer or smaller GPUs than asked for


def test_enough_gpus_pass():
    assert problems(GpuRequest("hardware.gpus_per_node=8", 8, 79)) == ""


@pytest.mark.parametrize(("variable", "there"), [(None, " 8\\."), ("0,1", " 2 .*CUDA_VISIBLE_DEVICES=0,1 ")])
def test_too_few_gpus_are_reported(variable, there):
    problem = problems(GpuRequest("trainer.n_gpus_per_node=16", 16), variable=variable)
    assert re.match(rf"trainer\.n_gpus_per_node=16: .* 16 GPUs.*{there}", problem)


def test_hidden_gpus_are_reported():
    problem = problems(GpuRequest("trainer.n_gpus_per_node=1", 1), variable="")
    assert re.search("CUDA_VISIBLE_DEVICES= .*8 GPUs.*Unset CUDA_VISIBLE_DEVICES", problem)


def test_gpus_with_less_memory_than_the_hardware_group_are_reported():
    machine = gpus.parse(report(card(0), card(1, A100, total="40960 MiB")))
    problem = problems(GpuRequest("hardware.gpus_per_node=2", 2, 79), machine)
    assert all(part in problem for part in ("hardware.gpu_memory_gib=79", "GPU 1", A100, "gpu_memory_gib=40")), problem


@pytest.mark.parametrize(
    ("name", "total", "gib"),
    [(H100, "81559 MiB", 79), ("NVIDIA A100-SXM4-80GB", "81920 MiB", 79), ("NVIDIA H200", "143771 MiB", 139)],
)
def test_gpus_of_our_hardware_groups_pass(name, total, gib):
    machine = gpus.parse(report(card(0, name, total=total)))
    assert problems(GpuRequest("hardware.gpus_per_node=1", 1, gib), machine) == ""


# Who uses a GPU


def test_gpu_with_too_little_free_memory_for_vllm_is_reported():
    """vLLM fails at its start where less is free than it is to take."""
    machine = gpus.parse(report(card(0), card(1, free="9000 MiB")))
    assert problems(GpuRequest("trainer.n_gpus_per_node=1", 1, share=0.7), machine) == ""
    problem = problems(GpuRequest("trainer.n_gpus_per_node=2", 2, share=0.7), machine)
    assert "gpu_memory_utilization=0.7" in problem and "GPU 1" in problem and "CUDA_VISIBLE_DEVICES" in problem
    assert problems(GpuRequest("trainer.n_gpus_per_node=2", 2, share=0.1), machine) == ""


def test_processes_that_use_memory_are_described():
    busy, hidden = gpus.parse(report(card(0, free="40500 MiB", processes=PYTHON), card(1, free="500 MiB"))).gpus
    assert "/opt/venv/bin/python (pid 4242, 40960 MiB)" in gpus.occupied(busy)
    assert gpus.occupied(hidden) and "pid" not in gpus.occupied(hidden)
    assert gpus.occupied(Gpu("0", "", "", None, None)) == ""
    assert gpus.occupied(EIGHT.gpus[0]) == ""


# From a command line


@pytest.fixture
def asked(tmp_path, monkeypatch, compose_fast):
    """(keys) -> problems, on a machine whose nvidia-smi is a stub that reports two GPUs."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    stub_nvidia_smi(tmp_path, monkeypatch, report(card(0), card(1)))
    monkeypatch.setattr(gpus, "torch_build", lambda: WHEEL)
    config, line = compose_fast("algo=grpo", "task=arithmetic")

    def ask(keys=(), hardware=None):
        changed = config.copy()
        with open_dict(changed):
            changed.ray_kwargs.ray_init.address = "local"  # whatever cluster runs on this machine
            changed.hardware = hardware or {}
            for key, value in keys:
                OmegaConf.update(changed, key, value)
        own = Line(line.choices, tuple(f"{key}={value}" for key, value in keys))
        return "\n".join(check_accelerators(changed, own))

    return ask


NODES, GPUS = "trainer.nnodes", "trainer.n_gpus_per_node"


def test_a_run_that_fits_the_machine_passes(asked):
    assert asked([(GPUS, 2)]) == ""


@pytest.mark.parametrize(
    ("keys", "hardware", "key"),
    [
        ([(GPUS, 4)], None, r"trainer\.n_gpus_per_node=4: .* 4 GPUs.* 2\."),
        ([(GPUS, 4)], {"gpus_per_node": 8}, r"trainer\.n_gpus_per_node=4: .* 4 GPUs"),
        ([], {"gpus_per_node": 8}, r"hardware\.gpus_per_node=8: .* 8 GPUs"),
        ([(GPUS, 2), (NODES, 2)], None, r"trainer\.n_gpus_per_node=2, trainer\.nnodes=2: .* 4 GPUs"),
        ([(GPUS, 2), ("reward.reward_model.enable", True), ("reward.reward_model.enable_resource_pool", True),
          ("reward.reward_model.n_gpus_per_node", 1), ("reward.reward_model.nnodes", 1)], None,
         r"trainer\.n_gpus_per_node=2, reward\.reward_model\.n_gpus_per_node=1: .* 3 GPUs"),
        ([(GPUS, 2)], {"gpu_memory_gib": 139}, r"hardware\.gpu_memory_gib=139: GPU 0"),
    ],
)  # fmt: skip
def test_missing_gpus_are_reported_with_the_key(asked, keys, hardware, key):
    assert re.search(key, asked(keys, hardware))


def test_values_that_are_not_numbers_are_ignored(asked):
    assert asked([(GPUS, "many")], {"gpu_memory_gib": "much"}) == ""


def test_hidden_gpus_do_not_count(asked, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert re.search(" 1 .*CUDA_VISIBLE_DEVICES=1 ", asked([(GPUS, 2)]))


def test_cpu_build_of_torch_on_a_machine_with_gpus_is_reported(asked, monkeypatch):
    monkeypatch.setattr(gpus, "torch_build", lambda: TorchBuild("2.13.0+cpu", None))
    assert "torch 2.13.0+cpu" in asked([(GPUS, 2)])


def test_failed_query_is_a_problem_of_the_config(asked, tmp_path):
    (tmp_path / "output").write_text("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    write_program(tmp_path / "nvidia-smi", f"cat {tmp_path}/output; exit 9")
    assert re.match(r"trainer\.device=cuda: .*NVIDIA-SMI has failed", asked())
