"""A queue in this process, for calls of verl's code that need no queue of several processes."""

import torch
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo import padding_utils
from verl.trainer.ppo.v1 import agent_loop_tq, replay_buffer, trainer_base


class MemoryQueue:
    """The functions of ``transfer_queue`` that verl's trainer, replay buffer and agent loops call.

    ``cleared`` lists the keys of each call of ``kv_clear``.
    """

    def __init__(self):
        self.partitions, self.cleared = {}, []

    @classmethod
    def installed(cls, monkeypatch):
        """A new queue in the place of ``transfer_queue`` in verl's modules."""
        made = cls()
        for module in (agent_loop_tq, padding_utils, replay_buffer, trainer_base):
            monkeypatch.setattr(module, "tq", made)
        return made

    def kv_put(self, key, partition_id, fields=None, tag=None):
        columns, tags = self.partitions.setdefault(partition_id, {}).setdefault(key, ({}, {}))
        columns.update(fields or {})
        tags.update(tag or {})

    def kv_batch_put(self, keys, partition_id, fields=None, tags=None):
        for number, key in enumerate(keys):
            row = {} if fields is None else {name: _value(column, number) for name, column in fields.items()}
            self.kv_put(key, partition_id, row, None if tags is None else tags[number])
        tags = [self.tag(key, partition_id) for key in keys]
        return KVBatchMeta(partition_id=partition_id, keys=list(keys), tags=tags)

    def kv_batch_get(self, keys, partition_id, select_fields=None):
        rows = [self.partitions[partition_id][key][0] for key in keys]
        names = [name for name in rows[0] if select_fields is None or name in select_fields]
        return TensorDict({name: _column([row[name] for row in rows]) for name in names}, batch_size=[len(rows)])

    def kv_list(self, partition_id=None):
        chosen = self.partitions if partition_id is None else {partition_id: self.partitions.get(partition_id, {})}
        return {name: {key: dict(tag) for key, (_, tag) in rows.items()} for name, rows in chosen.items()}

    def kv_clear(self, keys, partition_id):
        self.cleared.append(list(keys))
        for key in keys:
            self.partitions[partition_id].pop(key, None)

    async def async_kv_put(self, *arguments, **options):
        self.kv_put(*arguments, **options)

    async def async_kv_batch_put(self, *arguments, **options):
        self.kv_batch_put(*arguments, **options)

    def tag(self, key, partition_id="train"):
        return self.partitions[partition_id][key][1]

    def columns(self, key, partition_id="train"):
        return self.partitions[partition_id][key][0]

    def put_group(self, uid, accuracies, status="finished", step=1, **columns):
        """A prompt with one row per accuracy, in the form in which verl's agent loop workers write both."""
        for session, accuracy in enumerate(accuracies):
            row = {"rm_scores": torch.tensor([accuracy]), "extra_fields": {"reward_extra_info": {"acc": accuracy}}}
            self.kv_put(f"{uid}_{session}_0", "train", row | columns, {"status": "success"})
        self.kv_put(uid, "train", tag={"is_prompt": True, "status": status, "global_steps": step})


def _value(column, number):
    if isinstance(column, NonTensorData):
        return column.data
    value = column[number]
    return value.data if isinstance(value, NonTensorData) else value


def _column(values):
    if not isinstance(values[0], torch.Tensor):
        return NonTensorStack(*values)
    if values[0].dim() == 0:
        return torch.stack(values)
    return torch.nested.as_nested_tensor(values, layout=torch.jagged)
