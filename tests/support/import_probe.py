"""A program: import the named modules, then verl, and print what became of Ray and of the CPU platform."""

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
    found = {
        "ray is imported with the modules": is_ray_imported,
        "cpu platform": None if platform is None else platform.__name__,
        "device": get_platform().device_name,
        "versions are patched": hasattr(importlib.metadata.version, "__wrapped__"),
    }
    print(json.dumps(found))
