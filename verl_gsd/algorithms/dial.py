"""``verl_gsd.dial`` under the name that users' files import."""

from verl_gsd.dial import dial_advantage

__all__ = ["dial_advantage"]
