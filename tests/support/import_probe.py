"""A program: import the named modules, then parts of verl, and print what became of Ray and what we patched."""

import importlib
import importlib.metadata
import json
import sys

if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
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
        "ray is imported with the modules": is_ray_imported,
        "cpu platform": None if platform is None else platform.__name__,
        "device": get_platform().device_name,
        "versions are patched": hasattr(importlib.metadata.version, "__wrapped__"),
    }
    print(json.dumps(found))
