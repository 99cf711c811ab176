"""Ships this package to a cluster: its unpacked wheel is the job's working directory.

Ray puts a job's working directory first on the Python path of the driver and of every worker, on every node. The
shipped package, with the entry point through which verl finds it, therefore takes precedence over any version in the
image: none, another one, or an editable install. Ray's alternatives do not work:

- ``py_modules`` with a wheel also installs its dependencies, including a second torch and verl.
- ``pip`` builds a virtual environment on every node, from a registry that a cluster may not reach.
- ``py_modules`` next to a working directory are reported to be lost for actors that have their own runtime environment,
  as verl's have (ray-project/ray#61080).
"""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath

import verl_gsd
from verl_gsd import private_folders
from verl_gsd.python_commands import module_command

_DISTRIBUTION = "verl-gsd"


class PackagingError(RuntimeError):
    """The package could not be built or copied; the message says what is missing."""


@contextmanager
def unpacked_wheel() -> Iterator[Path]:
    """Yield a temporary folder with the files that installing this package adds: ``verl_gsd`` and its ``dist-info``.

    Raises:
        PackagingError: hatchling is missing, the checkout's wheel does not build, or the installation is incomplete.
    """
    with private_folders.run_folder() as folder:
        target = Path(folder) / "package"
        checkout = Path(verl_gsd.__file__).resolve().parents[1]
        if (checkout / "pyproject.toml").is_file():
            with zipfile.ZipFile(_build_wheel(checkout, Path(folder) / "wheel")) as wheel:
                wheel.extractall(target)
        else:
            _copy_installed(target)
        yield target


def _build_wheel(checkout: Path, folder: Path) -> Path:
    """Build the wheel of a checkout in this environment, with pyproject.toml's build backend and without a network."""
    command = module_command("hatchling", "build", "--target", "wheel", "--directory", str(folder))
    build = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if build.returncode != 0:
        output = (build.stderr or build.stdout).strip()
        raise PackagingError(
            "building the wheel of this checkout needs hatchling. Install it with: pip install hatchling"
            if "No module named hatchling" in output
            else f"the wheel of {checkout} could not be built:\n{output}"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _copy_installed(target: Path) -> None:
    """Copy the files that an ordinary installation lists, without scripts and byte code."""
    for file in metadata.files(_DISTRIBUTION) or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        source, copy = Path(str(file.locate())), target / PurePosixPath(file)
        if not source.is_file():
            raise PackagingError(f"the installation of {_DISTRIBUTION} lacks {file}. Install it again")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    if not (target / "verl_gsd").is_dir():
        raise PackagingError(f"{_DISTRIBUTION} is neither a checkout nor an ordinary installation. Install its wheel")
