"""Re-exports ``verl_gsd.dial`` under the name that users' files import."""

from verl_gsd.lazy_names import lazy_names

__getattr__ = lazy_names(__name__, {"dial_advantage": "verl_gsd.dial"})
