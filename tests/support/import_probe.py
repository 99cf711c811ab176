"""A program: import the named modules, then parts of verl, and print what became of Ray and what we patched, and which
variables of vLLM's were read."""

import importlib
import importlib.metadata
import json
import os
import sys
from unittest.mock import patch

from verl_gsd.cpu import before_verl as cpu_before_verl


class Environment(dict):
    """A copy of the environment that keeps the names somebody asks for, not those of somebody who goes through all."""

    def __init__(self, variables):
        super().__init__(variables)
        self.asked = set()

    def __getitem__(self, name):
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.asked.add(name)
        return super().__contains__(name)


if __name__ == "__main__":
    environment = Environment(os.environ)
    with patch.object(os, "environ", environment):
        version = importlib.metadata.version
        cpu_before_verl.patch_vllm()  # as the fork server does
        for module in sys.argv[1:]:
            importlib.import_module(module)
        importlib.metadata.version = version
        cpu_before_verl.patch_vllm.cache_clear()
    is_ray_imported = "ray" in sys.modules
    from verl.plugin.platform import get_platform
    from verl.plugin.platform.platform_manager import PlatformRegistry

    platform = PlatformRegistry.get("cpu")
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = [ALL_ATTENTION_FUNCTIONS["sdpa"].__module__]
    importlib.import_module("verl.workers.engine.fsdp.transformer_impl")
    attention.append(ALL_ATTENTION_FUNCTIONS["sdpa"].__module__)
    found = {
        "attention before and after the engine": attention,
        "variables of vLLM": sorted(name for name in environment.asked if str(name).startswith("VLLM_")),
        "ray is imported with the modules": is_ray_imported,
        "cpu platform": None if platform is None else platform.__name__,
        "device": get_platform().device_name,
        "versions are patched": hasattr(importlib.metadata.version, "__wrapped__"),
    }
    print(json.dumps(found))
