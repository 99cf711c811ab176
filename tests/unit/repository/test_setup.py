"""What scripts/setup.sh and demo.sh choose. ``uv`` and ``verl-gsd`` are stubs that write down how they are called, and
``nvidia-smi`` is one that answers as on several machines."""

import os
import subprocess

import pytest
from places import ROOT

LISTED = "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'"
#: nvidia-smi on machines with one GPU, with a driver that does not run, and without any.
MACHINES = {"gpu": LISTED, "broken driver": "echo 'NVIDIA-SMI has failed'; exit 9", "no driver": None}


def script(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path):
    """(name of a machine) -> (script, *words, **environment) -> the finished process, with the stubs' ``calls``."""

    def on(name):
        venv, calls, stubs = tmp_path / "venv", tmp_path / "calls", tmp_path / "stubs"
        for command in ("uv", "verl-gsd"):
            script(venv / "bin" / command, f'echo "{command} $@" >>{calls}')
        # Asked for pip's configuration, and to install uv, where the test has removed it.
        uv_stub = f"printf '#!/bin/sh\\necho \"uv $@\" >>{calls}\\n' >{venv}/bin/uv; chmod +x {venv}/bin/uv"
        read_lists = "for word; do case $word in /dev/fd/*) cat $word ;; esac; done"
        lines = f'echo "pip $@" >>{calls}', f"{read_lists} >>{calls}", uv_stub
        script(venv / "bin" / "python", '[ "$3" = install ] || exit 1', *lines)
        (stubs / "nvidia-smi").unlink(missing_ok=True)
        if MACHINES[name]:
            script(stubs / "nvidia-smi", MACHINES[name])
        else:  # this machine's own must not answer
            script(stubs / "nvidia-smi", "exit 127")

        def run(which, *words, **environment):
            calls.unlink(missing_ok=True)
            kept = {
                key: value for key, value in os.environ.items() if key not in ("EXTRAS", "PIP_FIND_LINKS", "PYTHON")
            }
            paths = {"PATH": f"{stubs}:{os.environ['PATH']}", "VENV": str(venv), "PIP_CONFIG_FILE": os.devnull}
            done = subprocess.run(
                ["bash", ROOT / "scripts" / which, *words],
                env=kept | paths | environment,
                capture_output=True,
                text=True,
            )
            done.calls = calls.read_text().splitlines() if calls.exists() else []
            return done

        return run

    return on


@pytest.mark.parametrize(
    ("name", "extras"), [("gpu", "gpu,dev"), ("broken driver", "cpu,dev"), ("no driver", "cpu,dev")]
)
def test_a_machine_with_gpus_gets_the_gpu_stack(machine, name, extras):
    done = machine(name)("setup.sh")
    assert done.returncode == 0, done.stderr
    (call,) = done.calls
    assert call.endswith(f"-e .[{extras}]")
    for option in ("--overrides", "--torch-backend cpu"):
        assert (option in call) is (extras == "cpu,dev"), "torchvision and CUDA's torch belong to the GPU stack"
    assert machine(name)("setup.sh").calls == [], "nothing to do the second time"


def test_extras_override_what_the_machine_has(machine):
    assert machine("gpu")("setup.sh", EXTRAS="cpu,dev").calls[0].endswith("-e .[cpu,dev]")
    assert "--overrides" in machine("gpu")("setup.sh", EXTRAS="cpu").calls[0]


@pytest.mark.parametrize(("name", "engine"), [("gpu", "gpu"), ("no driver", "cpu")])
def test_locked_packages_are_installed_by_their_hashes_and_nothing_else_is(machine, name, engine):
    packages, ours = machine(name)("setup.sh", LOCKED="1", EXTRAS=engine).calls
    assert "--require-hashes" in packages and f"scripts/locks/{engine}.txt" in packages and "-e ." not in packages
    assert "--no-deps" in ours and "--no-build-isolation" in ours and ours.endswith("-e .")


def test_dev_comes_after_the_locked_packages(machine):
    calls = machine("no driver")("setup.sh", LOCKED="1").calls
    assert len(calls) == 3 and calls[2].endswith("-e .[cpu,dev]") and "--overrides" in calls[2]


def test_a_lock_needs_an_engine(machine):
    done = machine("no driver")("setup.sh", LOCKED="1", EXTRAS="dev")
    assert done.returncode == 1 and "EXTRAS=dev" in done.stderr and done.calls == []


def test_an_environment_without_the_lock_is_not_turned_into_a_locked_one(machine, tmp_path):
    run = machine("no driver")
    assert run("setup.sh", EXTRAS="cpu").calls
    done = run("setup.sh", EXTRAS="cpu", LOCKED="1")
    assert done.returncode == 1 and done.calls == [] and f"VENV={tmp_path}/venv-locked" in done.stderr
    (tmp_path / "venv" / ".stamp").write_text("cpu (incomplete)\n")
    assert run("setup.sh", EXTRAS="cpu", LOCKED="1").returncode == 1
    (tmp_path / "venv" / ".stamp").unlink()
    assert run("setup.sh", EXTRAS="cpu", LOCKED="1").calls
    assert run("setup.sh", EXTRAS="cpu", LOCKED="1").calls == []
    assert run("setup.sh", EXTRAS="cpu").calls, "the other way round, versions are only freed"


def test_a_locked_installation_that_broke_off_can_go_on(machine, tmp_path):
    run = machine("no driver")
    script(tmp_path / "venv" / "bin" / "uv", "exit 1")
    assert run("setup.sh", LOCKED="1").returncode != 0
    assert machine("no driver")("setup.sh", LOCKED="1").returncode == 0


def test_uv_itself_is_installed_by_its_hashes(machine, tmp_path):
    run = machine("no driver")
    (tmp_path / "venv" / "bin" / "uv").unlink()
    calls = run("setup.sh", EXTRAS="cpu", LOCKED="1").calls
    last = next(number for number, line in enumerate(calls) if line.startswith("uv pip "))
    command, package, *hashes = calls[:last]
    assert command.startswith("pip -m pip install") and "--require-hashes" in command and "--no-deps" in command
    assert package.startswith("uv==") and hashes and all("--hash=sha256:" in line for line in hashes)
    locked = (ROOT / "scripts" / "locks" / "build.txt").read_text()
    assert "\n".join([package, *hashes]) in locked and locked.count("--hash=") > len(hashes)
    (tmp_path / "venv" / ".stamp").unlink()
    (tmp_path / "venv" / "bin" / "uv").unlink()
    assert machine("no driver")("setup.sh", EXTRAS="cpu").returncode == 0


def test_a_folder_of_wheels_is_handed_on(machine):
    (call,) = machine("no driver")("setup.sh", PIP_FIND_LINKS="/wheels").calls
    assert "--torch-backend" not in call, "the wheels have torch"


def test_two_builds_of_vllm_never_meet_in_one_environment(machine):
    done = machine("gpu")("setup.sh", EXTRAS="cpu,gpu")
    assert done.returncode == 1 and "EXTRAS=cpu,gpu" in done.stderr and done.calls == []
    assert machine("no driver")("setup.sh").returncode == 0
    done = machine("gpu")("setup.sh")
    assert done.returncode == 1 and done.calls == []
    assert "EXTRAS=cpu,dev" in done.stderr and "VENV=" in done.stderr


def test_a_misspelt_extra_and_a_folder_of_other_files_are_rejected(machine, tmp_path):
    done = machine("no driver")("setup.sh", EXTRAS="gpus,dev")
    assert done.returncode == 1 and "gpus" in done.stderr and done.calls == []
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    done = machine("no driver")("setup.sh", VENV=str(tmp_path / "mine"))
    assert done.returncode == 1 and "VENV=" in done.stderr and done.calls == []


def test_an_installation_that_broke_off_is_remembered(machine, tmp_path):
    run = machine("no driver")
    script(tmp_path / "venv" / "bin" / "uv", "exit 1")
    assert run("setup.sh").returncode != 0
    done = machine("gpu")("setup.sh")
    assert done.returncode == 1 and "EXTRAS=cpu,dev" in done.stderr, "half of the other build may be there"
    assert machine("no driver")("setup.sh").returncode == 0


def test_an_interpreter_that_is_not_there_is_named(machine, tmp_path):
    done = machine("no driver")("setup.sh", VENV=str(tmp_path / "new"), PYTHON="python9.9")
    assert done.returncode == 1 and "python9.9" in done.stderr and "PYTHON=" in done.stderr


@pytest.mark.parametrize(
    ("name", "hardware"), [("gpu", "hardware=gpu trainer.n_gpus_per_node=1"), ("no driver", "hardware=cpu")]
)
def test_the_demo_runs_on_what_was_installed(machine, name, hardware):
    done = machine(name)("demo.sh", "algo=dapo")
    assert done.returncode == 0, done.stderr
    assert done.calls[-1] == f"verl-gsd train algo=grpo task=arithmetic {hardware} algo=dapo"


def test_the_tools_of_the_documentation_are_an_extra_of_their_own_and_a_part_of_dev(machine):
    assert machine("no driver")("setup.sh", EXTRAS="cpu,docs").calls[0].endswith("-e .[cpu,docs]")
    _, _, dev = (ROOT / "pyproject.toml").read_text().partition("\ndev = [")
    assert '"verl-gsd[docs]"' in dev.partition("\n]")[0]


def test_locked_packages_and_the_tools_of_the_documentation_are_installed_together(machine):
    calls = machine("no driver")("setup.sh", LOCKED="1", EXTRAS="cpu,docs").calls
    assert any("--require-hashes" in call for call in calls) and calls[-1].endswith("-e .[cpu,docs]")
