"""Switches off the routes of vLLM's HTTP server that load LoRA adapters.

verl sets VLLM_ALLOW_RUNTIME_LORA_UPDATING=true, and the server has no key. Everyone who reaches its port could
therefore load another adapter. verl itself does not need these routes: its workers pass adapters to vLLM directly.
"""

from __future__ import annotations

import functools
import os
from typing import Any

VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"


def install(vllm_async_server: Any) -> None:
    """Patch the actor that starts vLLM's server. vLLM reads the variable when it adds the routes."""
    server = vllm_async_server.vLLMHttpServer
    original = server.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        os.environ[VARIABLE] = "false"
        original(self, *args, **kwargs)

    server.__init__ = init
