"""Checkpoints of random weights as verl writes them under FSDP, by any number of ranks, without process groups.

tests/engine/test_export.py has checkpoints of verl's own engine.
"""

import json

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore


def save(run, weights, huggingface, *, step=4, mesh=((0,),), lora=None, metrics=()):
    """Write RUN/global_step_N.

    Args:
        weights: name -> tensor.
        huggingface: a folder with the model's config and tokenizer.
        mesh: the ranks by copy and shard: ((0, 1), (2, 3)) has two copies of two shards.
        lora: the content of lora_train_meta.json.
        metrics: (step, scalars) of the run's only attempt.
    """
    checkpoint = run / f"global_step_{step}"
    actor = checkpoint / "actor"
    actor.mkdir(parents=True)
    ranks = [rank for copy in mesh for rank in copy]
    for rank in ranks:
        shards = _shards(weights, mesh, rank, len(ranks))
        torch.save(shards, actor / f"model_world_size_{len(ranks)}_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": len(ranks)}))
    (actor / "huggingface").mkdir()
    for file in huggingface.iterdir():
        if file.suffix != ".safetensors":
            (actor / "huggingface" / file.name).write_bytes(file.read_bytes())
    if lora:
        (actor / "lora_train_meta.json").write_text(json.dumps(lora))
    (run / "latest_checkpointed_iteration.txt").write_text(str(step))
    (run / "metrics").mkdir(exist_ok=True)
    lines = [json.dumps({"step": at, "data": data}) for at, data in metrics]
    (run / "metrics" / "attempt_1.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return checkpoint


def _shards(weights, mesh, rank, world):
    """The state dict of one rank: DTensors that are split along their first dimension."""
    shards = {}
    copy = next(copy for copy in mesh if rank in copy)
    torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    try:
        if len(mesh) == 1:
            device_mesh, placements = DeviceMesh("cpu", list(copy), mesh_dim_names=("fsdp",)), [Shard(0)]
        else:
            names = ("ddp", "fsdp")
            device_mesh, placements = DeviceMesh("cpu", mesh, mesh_dim_names=names), [Replicate(), Shard(0)]
        for name, weight in weights.items():
            parts = weight.chunk(len(copy))
            place = copy.index(rank)
            part = parts[place] if place < len(parts) else weight[:0]
            shards[name] = DTensor.from_local(
                part.clone(), device_mesh, placements, run_check=False, shape=weight.shape, stride=weight.stride()
            )
    finally:
        torch.distributed.destroy_process_group()
    return shards
