"""torch's compiler keeps code in the folder that ``compile_cache`` takes, also in a run that ``main_ppo`` starts."""

import importlib.util
import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from verl_gsd.run import compile_cache

NOBODY = 65534
IMPORT_VERL = """
import json
import verl
from torch._inductor import codecache, config
from torch._inductor.runtime.cache_dir_utils import cache_dir
found = {"folder": cache_dir(), "precompiles": config.cpp_cache_precompile_headers, "headers": codecache._HEADER_DIR}
print(json.dumps(found))
"""


@pytest.fixture
def base():
    """TMPDIR: a folder with /tmp's mode."""
    with tempfile.TemporaryDirectory(prefix="gsd_", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


def folders_of_verl(base):
    variables = {name: value for name, value in os.environ.items() if name != compile_cache.VARIABLE}
    environment = variables | {"TMPDIR": str(base), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", IMPORT_VERL], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_torchs_folder():
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert str(compile_cache.torchs_folder()) == default_cache_dir()


def test_a_user_without_a_name_has_torchs_folder_too(monkeypatch):
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda user: {}[user])
    assert default_cache_dir().endswith(f"torchinductor_uid_{os.getuid()}")
    assert str(compile_cache.torchs_folder()) == default_cache_dir()
    monkeypatch.setenv("LOGNAME", "a/b c")
    assert str(compile_cache.torchs_folder()) == default_cache_dir()


def test_a_process_that_imports_verl_closes_the_folder(base):
    found = folders_of_verl(base)
    folder = Path(found["folder"])
    assert folder.parent == base and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert Path(found["headers"]).is_relative_to(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_process_that_imports_verl_does_not_use_the_folder_of_another_user(base):
    """torch asks for the folder while verl is imported, before verl loads plugins."""
    (taken := base / compile_cache.torchs_folder().name).mkdir()
    os.chown(taken, NOBODY, NOBODY)
    found = folders_of_verl(base)
    folder = Path(found["folder"])
    assert folder != taken and not folder.is_relative_to(base) and not found["precompiles"]


def test_vllm_still_builds_its_allocator_in_the_folder_for_temporary_files():
    """If this fails, the check of it may be needed no more."""
    origin = importlib.util.find_spec("vllm").submodule_search_locations[0]
    source = (Path(origin) / "distributed/device_communicators/pynccl_allocator.py").read_text()
    assert "out_dir = tempfile.gettempdir()" in source and "build_directory=out_dir" in source
    assert f"envs.{compile_cache.ALLOCATOR}" in source
