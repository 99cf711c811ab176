"""Log-probabilities without flash-attn equal those of a plain softmax, need few calls, and are installed in verl."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from verl.utils import torch_functional

from verl_gsd.trainer import log_probs


class Calls(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def drawn(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(*shape, 50, generator=generator)).to(dtype)
    return logits, torch.randint(0, 50, shape, generator=generator)


def calls(function, tokens):
    with Calls() as seen:
        function(*drawn((tokens,), torch.float32))
    return seen.count


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (7,), (log_probs.CHUNK,), (log_probs.CHUNK + 3,), (2, 5), (0,)])
def test_values_and_gradients_equal_those_of_a_softmax_in_float64(shape, dtype):
    logits, labels = drawn(shape, dtype)
    upstream = torch.linspace(-1, 1, labels.numel()).reshape(shape)
    found = []
    for function, of in (
        (log_probs.log_probs, logits),
        (lambda x, y: x.log_softmax(-1).gather(-1, y.unsqueeze(-1)).squeeze(-1), logits.double()),
    ):
        leaf = of.clone().requires_grad_()
        value = function(leaf, labels)
        (value * upstream).sum().backward()
        found.append((value.detach().double(), leaf.grad.double()))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=min(tolerance, 1e-5))
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=tolerance)
    assert log_probs.log_probs(logits, labels).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_the_number_of_calls_does_not_grow_with_the_tokens():
    assert calls(log_probs.log_probs, 900) == calls(log_probs.log_probs, 9)


def test_verl_calls_our_function_if_flash_attention_is_missing(monkeypatch):
    assert torch_functional.logprobs_from_logits_v2 is log_probs.log_probs
    monkeypatch.setattr(torch_functional, "FLAH_ATTN_CROSS_ENTROPY_LOSS_AVAILABLE", False)
    monkeypatch.setattr(torch_functional, "NPU_CROSS_ENTROPY_LOSS_AVAILABLE", False)
    logits, labels = drawn((6,), torch.bfloat16)
    torch.testing.assert_close(
        torch_functional.logprobs_from_logits(logits, labels), log_probs.log_probs(logits, labels)
    )


def test_verls_own_fallback_still_loops_over_tokens():
    """If this fails, verl's fallback needs few calls. Remove the patch."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("unpatched", torch_functional.__file__)
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)
    assert calls(unpatched.logprobs_from_logits_v2, 90) > 5 * calls(unpatched.logprobs_from_logits_v2, 9)
