"""Where the repository, the files that the tests share, and this environment's programs lie."""

import sys
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
ROOT = SUPPORT.parents[1]
BINARIES = Path(sys.executable).parent
