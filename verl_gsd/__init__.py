"""verl-gsd: group-relative reinforcement learning in verl, visible and right.

Imports point downwards only; ``pyproject.toml`` has the layers, and which files import verl, Ray and vLLM.
"""

from importlib.metadata import version

__version__ = version("verl-gsd")
