"""Keeps verl's reward functions from running texts of the data as code, where they are called.

verl chooses a row's reward function by its ``data_source``, and some of them run texts of the data or of responses as
Python. ``checks/data_sources.py`` rejects such files before a run starts. verl reads the files again later, by name,
and whoever owns a file can replace it in between. The function that is returned here therefore checks each row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from verl_gsd.errors import ConfigError
from verl_gsd.run.checks.data_sources import RUN_AS_CODE, run_as_code


def without_code(compute_score: Callable[..., Any]) -> Callable[..., Any]:
    """verl's ``default_compute_score``, except for the sources that it runs as code: those raise a ``ConfigError``.

    A run whose config names ``default_compute_score`` itself does not come here. Its user chose to run such texts.

    Args:
        compute_score: verl's function. The result can be pickled if this function can be.
    """
    return functools.partial(_score, compute_score)


def _score(compute_score: Callable[..., Any], data_source: Any, *args: Any, **kwargs: Any) -> Any:
    # A value that cannot be hashed raises here: verl compares sources with ==, which a value could answer as it likes.
    if data_source in RUN_AS_CODE:
        raise ConfigError(run_as_code([data_source]))
    return compute_score(data_source, *args, **kwargs)
