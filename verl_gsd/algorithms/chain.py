"""``verl_gsd.chain`` under the name that users' files import."""

from verl_gsd.chain import Rows, advantages, register_stage

__all__ = ["Rows", "advantages", "register_stage"]
