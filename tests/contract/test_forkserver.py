"""Workers as forks of a server: what a fork must have of its own, and what happens where no server answers."""

import subprocess
import sys

from verl_gsd.trainer import forkserver


def test_what_is_imported_before_forking_does_not_import_ray():
    """Two forks of a process that has used Ray's random generator give two tasks one identifier, and Ray aborts."""
    code = "import importlib, sys\nfor m in sys.argv[1:]: importlib.import_module(m)\nprint('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *forkserver.MODULES], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
