"""Commands that start Python without the current folder in ``sys.path``.

``python -m`` and ``python -c`` search the current folder first. It may hold files of somebody else, for example a
``json.py``, which would then run. Folders in PYTHONPATH are searched as always.
"""

from __future__ import annotations

import sys

#: Whether Python has the option -P, which leaves the current folder out. Processes of multiprocessing inherit it.
_HAS_SAFE_PATH = sys.version_info >= (3, 11)
#: Does the same in a program for -c. The module ``sys`` is part of the interpreter, so no file can replace it.
_LEAVE_OUT_FOLDER = "import sys; sys.path.remove('')"
_RUN_MODULE = "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs ``module`` as ``python -m`` does."""
    if _HAS_SAFE_PATH:
        return [sys.executable, "-P", "-m", module, *arguments]
    return [sys.executable, "-c", f"{_LEAVE_OUT_FOLDER}; {_RUN_MODULE}", module, *arguments]


def code_command(code: str) -> list[str]:
    """The command that runs ``code`` as ``python -c`` does."""
    if _HAS_SAFE_PATH:
        return [sys.executable, "-P", "-c", code]
    return [sys.executable, "-c", f"{_LEAVE_OUT_FOLDER}\n{code}"]
