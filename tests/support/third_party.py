"""A package of somebody else with a stage of its own, which every process of a run finds by its entry point."""

import os
from pathlib import Path

#: Weighs nothing, and remembers how many groups and how many correct responses it has seen.
STAGE = """
from verl_gsd.chain import register_stage


class Tally:
    def __init__(self, section):
        self.label, self.groups, self.correct = section["label"], 0, 0.0

    def adopt(self, group):
        return group

    def columns(self, rows, left):
        return {}

    def record(self, group):
        return {}

    def commit(self, left):
        self.groups += len(left)
        self.correct += sum(float(group.accuracies.sum()) for group in left)

    def metrics(self):
        return {"tally/groups": float(self.groups)}

    def depends_on(self):
        return {"label": self.label}

    def state_dict(self):
        return {"groups": self.groups, "correct": self.correct}

    def load_state_dict(self, state):
        self.groups, self.correct = state["groups"], state["correct"]


@register_stage("tally", "weight", memory=Tally)
def tally(rows, advantages, section):
    return advantages.new_ones(len(advantages))
"""


def install(folder: Path) -> dict[str, str]:
    """Write the package below ``folder``: the environment in which Python finds it."""
    metadata = folder / "third_party_tally-1.0.dist-info"
    metadata.mkdir()
    (folder / "third_party_tally.py").write_text(STAGE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party-tally\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl.plugins]\nthird_party_tally = third_party_tally\n")
    return os.environ | {"PYTHONPATH": str(folder)}
