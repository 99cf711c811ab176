"""verl-gsd: algorithms of group-relative reinforcement learning as a plugin for verl.

``pyproject.toml`` defines the layers of the package. A module imports only from its own layer or from lower ones.
``pyproject.toml`` also lists the files that may import verl, Ray and vLLM.
"""

from importlib.metadata import version

__version__ = version("verl-gsd")
