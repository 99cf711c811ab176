"""Estimates how long a distilled judge's encoder takes per response on one CPU core, before it is loaded.

In training, the encoder runs in the trainer's process, which has no GPU and to which Ray gives one core. A token costs
two floating-point operations per weight of the layers. Attention over earlier tokens is left out, so that the estimate
is too low rather than too high.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from verl_gsd.judge.encoder import MAX_TOKENS

#: Weights whose names contain one of these do not multiply every token: they are looked up, unused, or used by some.
_NOT_MULTIPLIED = ("embed", "lm_head", "experts")
#: Sizes of the measured product of matrices, rows x inner x columns, and the number of measurements.
_ROWS, _WIDTH, _MEASUREMENTS = 256, 1024, 5


def layer_weights(encoder: Path) -> int:
    """The number of weights by which each token is multiplied, from the headers of the folder's safetensors files.

    Raises:
        ValueError: a file cannot be read. The message names it.
    """
    from safetensors import SafetensorError, safe_open

    count = 0
    for path in sorted(encoder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 (not a dict)
                    if not any(part in name for part in _NOT_MULTIPLIED):
                        count += math.prod(file.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path}: cannot be read as weights: {error}") from error
    return count


def operations_per_second() -> float:
    """The measured rate of this machine's float32 matrix products on one core, in processor time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right = torch.ones(_ROWS, _WIDTH), torch.ones(_WIDTH, _WIDTH)
        left @ right
        seconds = []
        for _ in range(_MEASUREMENTS):
            start = time.thread_time()
            left @ right
            seconds.append(time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * _ROWS * _WIDTH**2 / max(min(seconds), 1e-9)


def seconds_per_response(weights: int, tokens: float, rate: float) -> float:
    """The time for a problem and response of ``tokens`` tokens, at ``rate`` operations per second."""
    return 2 * weights * min(tokens, MAX_TOKENS) / rate
