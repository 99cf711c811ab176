"""Configs of Hugging Face models that an earlier download left on this machine."""

from __future__ import annotations

from pathlib import Path


def cached_config(name: str) -> Path | None:
    """The ``config.json`` of the hub model ``name`` in the cache of this machine; None without one. Downloads nothing.

    The revision is that of the branch ``main``, which verl and vLLM load.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # it is a path
        return None
    return Path(found) if isinstance(found, str) else None
