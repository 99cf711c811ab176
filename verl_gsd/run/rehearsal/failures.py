"""Explains why the run of a rehearsal failed: the key that caused it and the remedy, where the error shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from omegaconf import DictConfig

_LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"
#: A TensorDict's message about a column that it does not have.
_NO_COLUMN = re.compile(r"""key ["'](?P<column>\w+)["'] not found in TensorDict""")
#: verl or an extension read an entry that a row or a config does not have.
_NO_ENTRY = re.compile(r"""KeyError: ["'](?P<name>[\w.]+)["']""")


#: Ray's message if it did not start within 30 seconds.
_SLOW_START = "The current node timed out during startup"


def explain(text: str, config: DictConfig) -> str:
    """``text`` of the failure, after a sentence that names the key and the remedy if the error is a known one.

    Args:
        text: the launcher's message, with the first exception and the last lines of the log.
    """
    known = next(_explanations(text, config), None)
    return f"{known}\n{text}" if known else text


def _explanations(text: str, config: DictConfig) -> Iterator[str]:
    if column := _NO_COLUMN.search(text):
        loss = config.actor_rollout_ref.actor.policy_loss.loss_mode
        yield (
            f"{_LOSS}={loss}: the update reads the column {column['column']}, which its rows do not have. Return the "
            "column from an extension's loss_columns (docs/extending.md), or set another loss."
        )
    if name := _NO_ENTRY.search(text):
        yield (
            f"the run reads the entry {name['name']}, which the data or the config does not have. Look for it in the "
            "reward function, in the extensions and in the loss, and add the column or the key."
        )
    if _SLOW_START in text:
        yield "Ray did not start in time, because this machine is busy. Rehearse again when it has less to do."
