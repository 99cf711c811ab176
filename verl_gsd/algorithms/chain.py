"""Re-exports ``verl_gsd.chain`` under the name that users' files import."""

from verl_gsd.lazy_names import lazy_names

__getattr__ = lazy_names(__name__, dict.fromkeys(("Rows", "advantages", "register_stage"), "verl_gsd.chain"))
