"""Re-exports configs of policy losses: the config of every run refers to them by this path as ``_target_``."""

from verl_gsd.lazy_names import lazy_names

__getattr__ = lazy_names(
    __name__,
    {"GVPOLossConfig": "verl_gsd.algorithms.gvpo.loss", "DagrpoLossConfig": "verl_gsd.algorithms.dagrpo.loss"},
)
