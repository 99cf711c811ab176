"""verl's TransferQueue as the row store of extensions, and its batches of prompts as columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import transfer_queue as tq
from tensordict import NonTensorData, TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_gsd.trainer.rows import PARTITION


class QueueRows:
    """The rows of training groups in verl's queue; see ``extension.RowStore``.

    Attributes:
        tags: key -> tag. This is the replay buffer's own table, so that the buffer sees what is put and dropped here.
    """

    def __init__(self) -> None:
        self.tags: dict[str, dict[str, Any]] = {}

    def read(self, keys: Sequence[str], columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        if not keys:
            return []
        if columns is None:
            data = tq.kv_batch_get(keys=list(keys), partition_id=PARTITION)
            names, rows = list(data.keys()), [data[number] for number in range(len(keys))]
            return [{name: _plain(row[name]) for name in names} for row in rows]
        data = tq.kv_batch_get(keys=list(keys), partition_id=PARTITION, select_fields=list(columns))
        values = [list(data[name]) for name in columns]
        return [dict(zip(columns, map(_plain, row), strict=True)) for row in zip(*values, strict=True)]

    def put(self, rows: Mapping[str, Mapping[str, Any]], tags: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        if not rows:
            return
        keys, new_tags = list(rows), None if tags is None else [dict(tags[key]) for key in rows]
        fields = list_of_dict_to_tensordict([dict(row) for row in rows.values()])
        tq.kv_batch_put(keys=keys, partition_id=PARTITION, fields=fields, tags=new_tags)
        if new_tags is not None:
            self.tags.update(zip(keys, new_tags, strict=True))

    def drop(self, keys: Sequence[str]) -> None:
        if keys:
            tq.kv_clear(keys=list(keys), partition_id=PARTITION)
            for key in keys:
                self.tags.pop(key, None)


def _plain(value: Any) -> Any:
    return value.data if isinstance(value, NonTensorData) else value


class BatchColumns(Mapping[str, Sequence[Any]]):
    """The columns of a TensorDict that have one entry per row. Each becomes a list when it is read."""

    def __init__(self, batch: TensorDict) -> None:
        self._batch = batch
        self._names = [name for name in batch.keys() if not isinstance(batch.get(name), NonTensorData)]  # noqa: SIM118

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in self._names:
            raise KeyError(name)
        return list(self._batch[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
