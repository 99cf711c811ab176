"""The steps of verl's trainers under GVPO."""

from __future__ import annotations

from typing import Any

import transfer_queue as tq
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import SYNTHETIC_PADDING_SEQ_LEN
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils.seqlen_balancing import calculate_workload, log_seqlen_unbalance

from verl_gsd.audit import is_gvpo
from verl_gsd.trainer.batching import PADDING
from verl_gsd.trainer.gvpo_update import GVPOUpdate


class GVPOSteps(PPOTrainer):
    """Groups kept inside mini-batches, and workers that weigh them; verl's own steps under any other policy loss."""

    def __init__(self, config: DictConfig):
        self._gvpo = GVPOUpdate(config) if is_gvpo(config) else None
        # Of the batch that is being balanced: verl asks for its size halfway, with neither at hand.
        self._unplaced: tuple[Any, dict[str, Any]] | None = None
        self._places: list[int] = []
        super().__init__(config)

    def _balance_batch(self, batch, metrics, logging_prefix="global_seqlen", keep_minibatch=False):
        if not self._gvpo:
            return super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)
        self._unplaced, real = (batch, metrics), list(batch.keys)
        batch = super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)  # pads it
        at = {key: place for place, key in enumerate(batch.keys)}
        padding = iter(at.keys() - set(real))
        batch.reorder([at[next(padding) if row == PADDING else real[row]] for row in self._places])
        lengths = [tag["seq_len"] for tag in batch.tags]
        share = len(lengths) // self._gvpo.workers
        shares = [list(range(start, start + share)) for start in range(0, len(lengths), share)]
        metrics.update(log_seqlen_unbalance(lengths, shares, logging_prefix))
        return batch

    def _get_required_batch_multiple(self, dp_size):
        """Under GVPO the rows of the batch as it is placed: verl pads to a multiple of what is returned here."""
        if not self._gvpo:
            return super()._get_required_batch_multiple(dp_size)
        assert self._unplaced is not None
        batch, metrics = self._unplaced
        lengths = [tag["seq_len"] for tag in batch.tags]
        self._places, found = self._gvpo.place(
            batch.keys,
            lengths,
            [calculate_workload(length) for length in lengths],
            prompts=self.config.data.train_batch_size // self.parameter_sync_step,
            padding_tokens=SYNTHETIC_PADDING_SEQ_LEN,
            workers=dp_size,
        )
        metrics.update(found)
        return len(self._places)

    def _put_columns(self, batch: Any, advantages: Any) -> Any:
        """``batch`` with the loss's columns, where it is GVPO's."""
        if not self._gvpo:
            return batch
        columns = TensorDict(self._gvpo.columns(batch.keys, advantages), batch_size=len(batch.keys))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=columns)

    def _update_actor(self, batch, metrics):
        if self._gvpo:
            batch.extra_info.update(self._gvpo.instructions(theta_is_old=self.local_trigger_step == 0))
        return super()._update_actor(batch, metrics)
