"""Measures two seconds of all-reduce between the GPUs of this machine.

This finds failures of NCCL that version numbers do not show: too little shared memory, a broken link, or peer access
that an IOMMU blocks. Each rank is a separate process, so that a hang or a crash does not affect the caller.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from verl_gsd import private_folders
from verl_gsd.python_commands import module_command

#: Time limit in seconds. Most of the time is spent importing torch in eight processes and starting NCCL.
LIMIT_S = 180.0
#: Seconds of all-reduce that are measured.
_DURATION_S = 2.0
_BYTES = 64 << 20
_POLL_INTERVAL = 0.1


class AllReduceError(RuntimeError):
    """A rank failed or did not finish in time. The message has the last line that it printed."""


def measure(ranks: int, backend: str = "nccl", limit_s: float = LIMIT_S) -> float:
    """Measure the bus bandwidth between ``ranks`` devices, in GB/s.

    The bus bandwidth is the traffic per link, which does not depend on the number of ranks.

    Args:
        backend: ``nccl`` for GPUs; ``gloo`` for the CPU.

    Raises:
        AllReduceError: a rank failed, computed a wrong sum, or did not finish within ``limit_s`` seconds.
    """
    with private_folders.run_folder() as name:
        folder = Path(name)
        processes: list[subprocess.Popen] = []
        try:
            for rank in range(ranks):
                words = [str(rank), str(ranks), str(folder), backend]
                with _log(folder, rank).open("wb") as log:
                    processes.append(
                        subprocess.Popen(
                            module_command("verl_gsd.run.all_reduce", *words),
                            stdin=subprocess.DEVNULL,
                            stdout=log,
                            stderr=subprocess.STDOUT,
                        )
                    )
            _wait(processes, folder, limit_s)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        seconds = json.loads((folder / "seconds.json").read_text())
    return 2 * (ranks - 1) / ranks * _BYTES / seconds / 1e9


def _wait(processes: Sequence[subprocess.Popen], folder: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while None in (codes := [process.poll() for process in processes]):
        # Stop at the first failure: the other ranks would wait for the failed one until their time limit.
        if any(codes) or time.monotonic() > deadline:
            break
        time.sleep(_POLL_INTERVAL)
    for rank, process in enumerate(processes):
        if process.returncode:
            raise AllReduceError(
                f"rank {rank} of {len(processes)} ended with {process.returncode}: {_last_line(folder, rank)}"
            )
    for rank, process in enumerate(processes):
        if process.returncode is None:
            raise AllReduceError(
                f"did not finish within {limit_s:g} s. Rank {rank} of {len(processes)}: {_last_line(folder, rank)}"
            )


def _log(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank}.log"


def _last_line(folder: Path, rank: int) -> str:
    lines = [line for line in _log(folder, rank).read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else "no output"


def main(rank: int, ranks: int, folder: Path, backend: str) -> None:
    """Run one rank. Rank 0 writes the seconds per all-reduce to FOLDER/seconds.json."""
    import torch
    import torch.distributed as dist

    on_gpu = backend == "nccl"
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    options: dict[str, Any] = {"device_id": device} if on_gpu else {}
    dist.init_process_group(
        backend,
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=LIMIT_S),
        **options,
    )
    tensor = torch.empty(_BYTES // 4, dtype=torch.float32, device=device)

    def seconds_per_call(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            dist.all_reduce(tensor.fill_(1.0))
        wrong = int((tensor != ranks).sum())  # this also waits for the device
        if wrong:
            raise RuntimeError(f"{wrong} of {tensor.numel()} sums over {ranks} ranks are wrong")
        return (time.perf_counter() - start) / calls

    seconds_per_call(1)  # warmup, which creates the connections
    slowest = torch.tensor([seconds_per_call(3)], device=device)
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)  # all ranks must make the same number of calls
    seconds = seconds_per_call(max(1, int(_DURATION_S / float(slowest))))
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
