"""An extension that writes down what a run does, so that another trainer can repeat it.

It is somebody else's extension, with an entry point: Ray's workers find it as they find any. Its section is
``algorithm.gsd.recorder={folder: FOLDER}``. In this folder it writes:

- ``events.jsonl``: in their order, what was submitted, which groups ended with which rows, and their fates.
- ``batch_STEP.pt``: keys of the batch, advantages, and log-probabilities before the update.
- ``update_NUMBER.pt``: of each update of the run, the rows (numbers in the batch), the gradient before clipping, and
  the weights after the update. ``weights.pt`` are those before the first update.
"""

import json
from pathlib import Path

import torch

from verl_gsd.extension import Declaration, Extension, WorkerExtension, register
from verl_gsd.trainer.rows import is_own, uid_of

#: Column of the loss: the number of a row in its batch.
ROW = "recorder_row"
_FOLDER = "recorder_folder"

register(
    Declaration(
        name="recorder",
        runtime="agreement_recorder:Recorder",
        worker="agreement_recorder:RecordingWorker",
        order=0,  # it sees rows before another extension replaces any
        weighs=False,
    )
)


class Recorder(Extension):
    def _write(self, event, **values):
        folder = Path(self.settings["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.services.step, "event": event} | values) + "\n")

    def before_rollout(self, visits):
        self._write("submitted", uids=list(visits.uids), prompts=[list(key) for key in visits.keys])

    def add_rows(self, uids):
        wanted = set(uids)
        keys = [key for key, tag in self.services.rows.tags.items() if uid_of(key) in wanted and is_own(tag)]
        read = self.services.rows.read(keys, ["prompts", "responses", "rm_scores"])
        rows = {
            key: {name: row[name].tolist() for name in ("prompts", "responses")}
            | {"reward": float(row["rm_scores"].sum())}
            for key, row in zip(keys, read, strict=True)
        }
        self._write("ended", uids=list(uids), rows=rows)

    def on_group_left(self, group, fate):
        self._write("left", uid=group.uid, fate=fate, order=list(self.services.rows.tags))
        return group

    def loss_columns(self, batch, advantages):
        rows = self.services.rows.read(batch.keys, ["advantages", "old_log_probs"])
        stored = {"keys": list(batch.keys)} | {
            name: [row[name] for row in rows] for name in ("advantages", "old_log_probs")
        }
        torch.save(stored, Path(self.settings["folder"]) / f"batch_{self.services.step}.pt")
        return {ROW: torch.arange(len(batch.keys))}

    def worker_flags(self, update):
        return {_FOLDER: str(Path(self.settings["folder"]).resolve())}


class RecordingWorker(WorkerExtension):
    """verl's engine drops the gradient when an update ends. It is read when the optimizer is about to use it."""

    def __init__(self, worker, config):
        super().__init__(worker, config)
        self._updates = 0

    def before_mini_batch(self, data):
        if not self._updates:
            from verl.utils import tensordict_utils as tu  # not where a process only reads the declaration

            self._folder = Path(tu.get(data, _FOLDER))
            torch.save(self._whole("data"), self._folder / "weights.pt")
            engine = self.worker.engine
            step = engine.optimizer_step

            def optimizer_step():
                self._gradient = self._whole("grad")
                return step()

            engine.optimizer_step = optimizer_step
        self._updates += 1

    def after_mini_batch(self, data):
        stored = {"rows": data[ROW].tolist(), "gradient": self._gradient, "weights": self._whole("data")}
        torch.save(stored, self._folder / f"update_{self._updates}.pt")
        return {}

    def _whole(self, attribute):
        """parameter -> its value or gradient, a copy."""
        found = {}
        for name, parameter in self.worker.engine.module.named_parameters():
            value = getattr(parameter, attribute)
            found[name] = (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()
        return found
