"""Hides what verl and transformers print about parts that the laboratory does not use."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

#: verl's logger -> the beginning of a message that does not concern the laboratory.
_QUIET = {
    "verl.plugin.platform.platform_manager": "Platform override from",
    "verl.utils.tokenizer.continuous_token_wiring": "No model-specific Continuous Token builder",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Hide standard output, loading bars, and warnings about engines that are not installed."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for name in _QUIET:
        logging.getLogger(name).addFilter(lambda record: not str(record.msg).startswith(tuple(_QUIET.values())))
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", r"\w+ engine is not available", UserWarning)
        yield
