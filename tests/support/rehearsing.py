"""Rehearsals on the real stack, for the tests that run one."""

import os
import re

from running import verl_gsd

MACHINE = "hardware=8xa100_80g"


def rehearse(data, run, *words, **environment):
    """Rehearse a line with made-up data: (exit code, what was printed).

    No hub is asked for a model, so that those of recipes are stand-ins.
    """
    environment = os.environ | {"VERL_GSD_DATA": str(data), "HF_HUB_OFFLINE": "1", "COLUMNS": "400"} | environment
    line = (*words, f"trainer.default_local_dir={run}", "--rehearse")
    done = verl_gsd("train", *line, env=environment)
    return done.returncode, done.stdout + done.stderr


def part(printed, title):
    """The lines below ``title`` in the list at the end."""
    return re.search(rf"^{title}:\n(.*?)^\S", printed, re.DOTALL | re.MULTILINE)[1]
