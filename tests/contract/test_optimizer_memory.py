"""The temporary memory of the optimizer that verl builds, which the estimate of an update counts."""

import torch
from torch.distributed.tensor import DTensor
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer


class NewStorages(TorchDispatchMode):
    """Notes per operator the bytes of those results that it does not write into its arguments."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **kwargs or {})
        old = {leaf.data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        new = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor) and leaf.data_ptr() not in old]
        self.sizes.append(sum(tensor.nbytes for tensor in new))
        return results


def test_a_step_of_all_parameters_at_once_takes_one_more_number_per_parameter():
    parameters = [torch.nn.Parameter(torch.ones(64, 50)) for _ in range(3)]
    at_once = FSDPOptimizerConfig(lr=1e-3, override_optimizer_config={"foreach": True})
    adamw = build_optimizer(parameters, at_once)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    adamw.step()  # allocates the moments
    with NewStorages() as storages:
        adamw.step()
    assert [size for size in storages.sizes if size > 100] == [3 * 4 * 64 * 50]


def test_verls_optimizer_processes_all_parameters_at_once_on_a_gpu():
    adamw = build_optimizer([torch.nn.Parameter(torch.ones(1))], FSDPOptimizerConfig(lr=1e-3))
    assert type(adamw) is torch.optim.AdamW
    assert adamw.defaults["foreach"] is adamw.defaults["fused"] is None, "torch decides"
    assert "cuda" in optimizer._get_foreach_kernels_supported_devices()
    assert DTensor in optimizer._foreach_supported_types, "the parameters of FSDP2"
