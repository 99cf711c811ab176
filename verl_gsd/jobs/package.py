"""What a cluster needs of this package: its wheel, unpacked, as the working directory of the job.

Ray puts a job's working directory in front of the path of its driver and of every worker, on every node, so that the
package and the entry point by which verl finds it are the shipped ones, whether the image has none of ours, another
version, or an editable copy. Ray's other ways do not serve: a wheel in ``py_modules`` is installed with its
dependencies, torch and verl again beside the image's; ``pip`` makes a virtual environment on every node, from a
registry that a cluster may not reach; and actors that have a runtime environment of their own, as verl's do, are
reported to lose ``py_modules`` beside a working directory (ray-project/ray#61080).
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path, PurePosixPath

import verl_gsd
from verl_gsd import private_folders

_DISTRIBUTION = "verl-gsd"


class PackagingError(RuntimeError):
    """The package could not be put together; the message says what is missing."""


@contextmanager
def unpacked_wheel() -> Iterator[Path]:
    """A temporary folder with what installing this package would add: ``verl_gsd`` and its ``dist-info``.

    Raises:
        PackagingError: a checkout without hatchling or whose wheel fails to build; an installation that is incomplete.
    """
    with private_folders.run_folder() as folder:
        target = Path(folder) / "package"
        checkout = Path(verl_gsd.__file__).resolve().parents[1]
        if (checkout / "pyproject.toml").is_file():
            with zipfile.ZipFile(_built(checkout, Path(folder) / "wheel")) as wheel:
                wheel.extractall(target)
        else:
            _copy_installed(target)
        yield target


def _built(checkout: Path, folder: Path) -> Path:
    """The wheel of a checkout, by the build backend that pyproject.toml names, in this environment: no network."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        missing = "No module named hatchling" in said
        raise PackagingError(
            "building the wheel of this checkout needs hatchling: pip install hatchling"
            if missing
            else f"the wheel of {checkout} could not be built:\n{said}"
        )
    (wheel,) = folder.glob("*.whl")
    return wheel


def _copy_installed(target: Path) -> None:
    """The files of an ordinary installation, as it lists them, without scripts and byte code."""
    for file in metadata.files(_DISTRIBUTION) or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        source, copy = Path(str(file.locate())), target / PurePosixPath(file)
        if not source.is_file():
            raise PackagingError(f"the installation of {_DISTRIBUTION} has no {file}: install it again")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    if not (target / "verl_gsd").is_dir():
        raise PackagingError(f"{_DISTRIBUTION} is neither a checkout nor an ordinary installation: install its wheel")
