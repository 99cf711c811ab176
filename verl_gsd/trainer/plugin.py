"""The entry point ``verl.plugins``: what verl gains when this package is installed.

Loaded by every process that imports verl, those vLLM spawns included, so it must be cheap: the trainer modes, which pull
in vLLM, are registered when and only if verl's own are imported. verl swallows an exception raised here, so
``verl-gsd train`` and ``verl-gsd doctor`` look at the registries afterwards and say what failed.
"""

from __future__ import annotations

import importlib

import wrapt

from verl_gsd import config
from verl_gsd.trainer import cpu

if cpu.requested():
    cpu.activate()

config.store_groups()

wrapt.when_imported("verl.trainer.ppo.v1.trainer_sync")(lambda _: importlib.import_module("verl_gsd.trainer.trainer"))
