"""What authenticating the messages of TransferQueue costs, as a share of a step and of the queue's own time.

    .venv/bin/python benchmarks/queue_auth.py RUN

RUN is a run of the demo (algo=gvpo task=arithmetic hardware=cpu) on this machine. Each message is tagged by its sender
and checked by its receiver, which computes the same HMAC. The share of a step counts the CPU time of all processes of
the run as if they computed their tags one after the other. At most 0.02.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import publishing
import typer

from verl_gsd.run import own_cluster
from verl_gsd.rundir import RunDirectory, read_metrics

#: (rows, tokens per row) of a batch.
BATCHES = ((64, 256), (2048, 1024))
_REPEATS = 20
#: HMACs per step of the demo, in all of its processes: counted over 12 steps with GVPO.
_TAGS_PER_STEP = 3_800


class _Timed:
    """A function that adds up the CPU seconds of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.seconds, self.calls = function, 0.0, 0

    def __call__(self, *arguments: Any) -> Any:
        start = time.thread_time()
        result = self._function(*arguments)
        self.seconds += time.thread_time() - start
        self.calls += 1
        return result


def main(
    run: Annotated[Path, typer.Argument(help="a run of the demo")],
    output: Annotated[Path, typer.Option(help="where the figures go")] = Path("benchmarks/results/queue_auth.json"),
) -> None:
    """Put, list, read and clear batches of two sizes, and write the shares."""
    own_cluster.set_token()
    import ray
    import transfer_queue
    import verl  # noqa: F401  loads the plugin
    from omegaconf import OmegaConf

    ray.init(address="local", num_cpus=4, include_dashboard=False, _temp_dir=own_cluster.session_folder())
    transfer_queue.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    try:
        batches = [measure(transfer_queue, rows, tokens) for rows, tokens in BATCHES]
    finally:
        transfer_queue.close()
        ray.shutdown()
    steps = (data for _, data in read_metrics(RunDirectory(run).metrics(1)))
    step = statistics.median(data["timing_s/step"] for data in steps if "timing_s/step" in data)
    share = round(1e-6 * _TAGS_PER_STEP * batches[0]["tag_us"] / step, 4)
    result = {"machine": publishing.machine(), "step_s": round(step, 2), "share_of_step": share, "batches": batches}
    publishing.write(result, output)
    print(result)


def measure(queue: Any, rows: int, tokens: int) -> dict[str, float]:
    """One batch size: the CPU time of a tag, and that of all tags per second of the queue's operations."""
    import torch
    from tensordict import TensorDict

    from verl_gsd.trainer import queue_auth

    keys = [f"{i}" for i in range(rows)]
    columns = {name: torch.ones(rows, tokens) for name in ("log_probs", "advantages", "mask")}
    fields = TensorDict(columns | {"responses": torch.ones(rows, tokens, dtype=torch.int64)}, batch_size=rows)
    original = queue_auth._tag
    queue_auth._tag = tags = _Timed(original)
    try:
        start = time.perf_counter()
        for _ in range(_REPEATS):
            queue.kv_batch_put(keys=keys, partition_id="p", fields=fields, tags=[{"place": i} for i in range(rows)])
            queue.kv_list(partition_id="p")
            queue.kv_batch_get(keys=keys, partition_id="p")
            queue.kv_clear(keys=keys, partition_id="p")
        seconds = time.perf_counter() - start
    finally:
        queue_auth._tag = original
    return {
        "rows": rows,
        "tokens": tokens,
        "queue_ms_per_batch": round(1e3 * seconds / _REPEATS, 2),
        "tags_per_batch": tags.calls / _REPEATS,
        "tag_us": round(1e6 * tags.seconds / tags.calls, 1),
        "share_of_queue": round(2 * tags.seconds / seconds, 5),
    }


if __name__ == "__main__":
    typer.run(main)
