"""What ends a run before it starts, and verl's trainer modes with ours."""

from __future__ import annotations

#: verl's trainer modes, each with the mode of ours that extends it.
OUR_MODES = {
    "sync": "gsd_sync",
    "colocate_async": "gsd_colocate_async",
    "separate_async": "gsd_separate_async",
}


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the key, the value and what to write instead."""
