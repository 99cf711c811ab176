"""Policy losses under the names that stand as ``_target_`` in the config of every run; they are elsewhere."""

from verl_gsd.lazy_names import lazy_names

__getattr__ = lazy_names(
    __name__,
    {"GVPOLossConfig": "verl_gsd.algorithms.gvpo.loss", "DagrpoLossConfig": "verl_gsd.algorithms.dagrpo.loss"},
)
