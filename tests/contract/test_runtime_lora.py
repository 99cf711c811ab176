"""vLLM's server loads no LoRA adapter for whoever asks, and verl does not need that."""

import inspect
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV
from vllm.entrypoints.serve.lora.api_router import attach_router

from verl_gsd.trainer import runtime_lora


def adapter_routes():
    app = FastAPI()
    attach_router(app)
    return {path for path in app.openapi()["paths"] if "adapter" in path}


@pytest.fixture
def _as_verl_sets_it(monkeypatch):
    monkeypatch.setenv(runtime_lora.VARIABLE, PPO_RAY_RUNTIME_ENV["env_vars"][runtime_lora.VARIABLE])


@pytest.mark.usefixtures("_as_verl_sets_it")
def test_patch_still_needed_because_verl_lets_everyone_load_adapters():
    assert adapter_routes() == {"/v1/load_lora_adapter", "/v1/unload_lora_adapter"}


@pytest.mark.usefixtures("_as_verl_sets_it")
def test_a_server_of_a_run_has_no_route_that_loads_an_adapter():
    class ServerStub:
        def __init__(self, *, name):
            self.routes = name, adapter_routes()

    runtime_lora.install(SimpleNamespace(vLLMHttpServer=ServerStub))
    assert ServerStub(name="a").routes == ("a", set())


def test_the_plugin_patches_verls_server():
    from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer

    layers, layer = [], vLLMHttpServer.__init__
    while layer is not None:
        layers.append(inspect.getmodule(layer.__code__))
        layer = getattr(layer, "__wrapped__", None)
    assert runtime_lora in layers


def files_with(package, *texts):
    root = Path(find_spec(package).origin).parent
    contents = ((path, path.read_text(encoding="utf-8")) for path in root.rglob("*.py"))
    return {str(path.relative_to(root)) for path, content in contents if any(text in content for text in texts)}


def test_only_vllms_http_server_reads_the_variable_and_verl_uses_none_of_its_routes():
    readers = files_with("vllm", runtime_lora.VARIABLE)
    assert {path for path in readers if not path.startswith("entrypoints/")} == {"envs.py"}
    users = files_with("verl", runtime_lora.VARIABLE, "load_lora_adapter")
    assert {path for path in users if "/sglang_rollout/" not in path} == {"trainer/constants_ppo.py"}
