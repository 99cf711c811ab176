"""A memory with every kind of value, and its way back from a checkpoint."""

import numpy as np

from verl_gsd.state import restore_state

SETTINGS = {"data.train_files": ["/data/train.parquet"]}


class EveryKind:
    """A memory with every kind of value."""

    def __init__(self):
        self.state = {
            "path": [0.1, 1 / 3],
            "name": "naïve",
            "seen": np.arange(5),
            "empty": np.zeros((0, 2), np.float32),
        }

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def restored(checkpoint, names=("anchor", "other"), settings=SETTINGS):
    memories = {name: EveryKind() for name in names}
    for memory in memories.values():
        memory.state = {}
    restore_state(checkpoint, memories, settings)
    return memories
