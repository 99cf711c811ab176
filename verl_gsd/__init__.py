"""verl-gsd: group-relative reinforcement learning in verl, visible and right.

The pure parts import neither verl nor Ray; ``verl_gsd.trainer`` is the only package that does.
"""

from importlib.metadata import version

__version__ = version("verl-gsd")
