"""A package of somebody else with an extension of its own, which every process of a run finds by its entry point."""

import os
from pathlib import Path

#: Weighs nothing, and remembers how many groups and how many correct responses it has seen.
EXTENSION = """
from verl_gsd.extension import Declaration, Extension, register


class Tally(Extension):
    def __init__(self, section, services=None):
        super().__init__(section, services)
        self.label, self.groups, self.correct = section["label"], 0, 0.0

    def weight(self, rows, advantages):
        return advantages.new_ones(len(advantages))

    def record(self, group):
        return {"tally_before": float(self.groups)}

    def end_step(self, left):
        self.groups += len(left)
        self.correct += sum(float(group.accuracies.sum()) for group in left)
        return {"tally/groups": float(self.groups)}

    def fingerprint(self):
        return {"label": self.label}

    def state_dict(self):
        return {"groups": self.groups, "correct": self.correct}

    def load_state_dict(self, state):
        self.groups, self.correct = state["groups"], state["correct"]


register(Declaration("tally", Tally, saves=True))
"""


def install(folder: Path) -> dict[str, str]:
    """Write the package below ``folder``: the environment in which Python finds it."""
    metadata = folder / "third_party_tally-1.0.dist-info"
    metadata.mkdir()
    (folder / "third_party_tally.py").write_text(EXTENSION)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-tally\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl.plugins]\nthird_party_tally = third_party_tally\n")
    return os.environ | {"PYTHONPATH": str(folder)}
