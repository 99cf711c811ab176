"""Repeats a recorded run of the stack in the laboratory's trainer, and measures how far the two are apart.

``agreement_recorder.py`` writes down both runs. The laboratory gets the responses, and the order in which groups ended
and left. It computes everything else by itself: prompts, rewards, log-probabilities, advantages, memories,
mini-batches, gradients and weights. Nothing is reset between steps.
"""

import json
import math
import os
import re
import shutil
import time
from collections import defaultdict
from pathlib import Path
from unittest import mock

import agreement_recorder
import torch
from gvpo_cases import distance
from places import ROOT

from verl_gsd.extension import overrides
from verl_gsd.lab.training.policy import Sampled, read_prompts, score_responses
from verl_gsd.lab.training.trainer import LabTrainer
from verl_gsd.records import read_records
from verl_gsd.run.compose import compose_config, parse_line, resolve
from verl_gsd.rundir import RunDirectory, read_metrics
from verl_gsd.state import check_state, save_state
from verl_gsd.trainer.rows import is_padding, session_number, uid_of

_TIMES_AND_MEMORY = re.compile(r"timing|.*perf/|.*share_of_step|.*latency")


def words_of(folder):
    """The words with which a run is recorded in ``folder``."""
    return (f"+algorithm.gsd.recorder={{folder: {folder}}}", f"trainer.default_local_dir={folder}/run")


class Recording:
    """What a run wrote down.

    Attributes:
        folder: where it did.
        events: step -> its events, in their order.
        visit: uid -> number of the visit, in the order in which visits were submitted.
        rows: uid -> session -> tokens of the prompt and of the response, and the reward.
        steps, updates: how many there are.
    """

    def __init__(self, folder):
        self.folder, self.events, self.visit, self.rows = Path(folder), defaultdict(list), {}, {}
        for event in map(json.loads, (self.folder / "events.jsonl").read_text().splitlines()):
            self.events[event["step"]].append(event)
            for uid in event["uids"] if event["event"] == "submitted" else ():
                self.visit[uid] = len(self.visit)
            for key, row in event.get("rows", {}).items():
                self.rows.setdefault(uid_of(key), {})[session_number(key)] = row
        self.steps, self.updates = max(self.events), len(list(self.folder.glob("update_*.pt")))

    def names(self, step):
        """Keys of a batch with the number of the visit, which both runs share, instead of its uid."""
        return [
            "padding" if is_padding(key) else f"{self.visit[uid_of(key)]}{key.removeprefix(uid_of(key))}"
            for key in self.batch(step)["keys"]
        ]

    def batch(self, step):
        return torch.load(self.folder / f"batch_{step}.pt", weights_only=True)

    def update(self, number):
        return torch.load(self.folder / f"update_{number}.pt", weights_only=True)

    def weights(self):
        """Those before the first update."""
        return torch.load(self.folder / "weights.pt", weights_only=True)

    def prompts(self):
        return [prompt for step in self.events.values() for event in step for prompt in event.get("prompts", ())]

    def fates(self):
        """(step, visit, fate) of all groups."""
        return sorted(
            (step, self.visit[event["uid"]], event["fate"])
            for step, events in self.events.items()
            for event in events
            if event["event"] == "left"
        )

    def memories(self, step):
        """(values by memory, arrays as lists by memory and name) after a step."""
        values, arrays = check_state(self.folder / "run" / f"global_step_{step}", {})
        return values, {name: array.tolist() for name, array in arrays.items()}

    def records(self):
        return read_records(self.folder / "run").to_pylist()

    def metrics(self):
        """(step, metrics) of all steps."""
        return list(read_metrics(RunDirectory(self.folder / "run").metrics(1)))


class RecordedBuffer:
    """Lets groups end and leave as they did in a recording. ``buffer`` is the trainer's own."""

    def __init__(self, buffer, trainer, recording):
        self._buffer, self._trainer, self._recording, self._uids = buffer, trainer, recording, {}

    def sample(self, step):
        buffer, seam = self._buffer, self._trainer.seam
        chosen, order = [], {}
        for event in self._recording.events[step]:
            if event["event"] == "submitted":
                self._uids |= zip(event["uids"], self._trainer.submit(event["uids"]), strict=True)
            elif event["event"] == "ended":
                buffer._look([self._uids[uid] for uid in event["uids"]], step)
            else:
                uid = self._uids[event["uid"]]
                group = buffer._groups[uid]
                while not seam.is_ready(group):
                    time.sleep(0.001)  # a judge answers in another thread
                    seam.poll(time.monotonic())
                assert (event["fate"] == "filtered") == buffer._is_filtered(group)
                if event["fate"] != "trained":
                    buffer._leave([uid], event["fate"])
                    continue
                chosen.append(uid)
                order = {self._ours(key): place for place, key in enumerate(event["order"])}
                seam.on_group_left(buffer._groups.pop(uid), "trained")
        assert seam.rows.tags.keys() == order.keys()
        seam.rows.tags = {key: seam.rows.tags[key] for key in order}
        return chosen

    def _ours(self, key):
        uid = uid_of(key)
        return self._uids[uid] + key.removeprefix(uid)


class RepeatingTrainer(LabTrainer):
    """Gets responses from a recording. Their log-probabilities are those of its own policy."""

    def __init__(self, config, recording):
        super().__init__(config, self._save_memories)
        self._recording, self._buffer = recording, RecordedBuffer(self._buffer, self, recording)

    def submit(self, uids):
        """The laboratory's names of the visits that are called ``uids`` in the recording."""
        self._recorded_uids = uids
        return self._submit(len(uids))

    def _sample(self, prompts, copies, sampling):
        sessions = [self._recording.rows[uid] for uid in self._recorded_uids]
        assert [len(of) for of in sessions] == list(copies)
        rows = [of[number] for of in sessions for number in sorted(of)]
        assert [of[0]["prompts"] for of in sessions] == prompts.ids
        responses = [torch.tensor(row["responses"]) for row in rows]
        with torch.no_grad():
            scores = score_responses(
                self.module,
                read_prompts(self.module, prompts.ids),
                torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(copies)),
                torch.nn.utils.rnn.pad_sequence(responses, batch_first=True),
                temperature=sampling.temperature,
                with_entropy=True,
            )
        return [
            Sampled(response.tolist(), log_probs[: len(response)].tolist(), entropy[: len(response)].tolist())
            for response, log_probs, entropy in zip(responses, scores.log_probs, scores.entropy, strict=True)
        ]

    def _save_memories(self, step, metrics):
        memories = {name: part for name, part in self.seam.extensions.items() if overrides(part, "state_dict")}
        save_state(self._run.checkpoint(step), {"prompts": self.seam.prompts, **memories}, {})


def repeat(recorded, folder, words):
    """Repeat the run that was recorded in the folder ``recorded`` with ``words``, and record that in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    recording = Recording(recorded)
    with mock.patch.dict(os.environ):
        config = resolve(compose_config(parse_line([*words, *words_of(folder)])))
        RepeatingTrainer(config, recording).train()
    return recording, Recording(folder)


def environment(folder):
    """The environment in which Python finds the recorder, in all processes of a run, and this checkout's package."""
    from third_party import distribute

    folder.mkdir(parents=True)
    shutil.copy(agreement_recorder.__file__, folder)
    return distribute(folder, "agreement_recorder") | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def differences(stack, lab):
    """How far two recordings are apart, name -> figures.

    Per step, the largest absolute difference of ``advantages`` and ``old_log_probs``. The relative difference (L2) of
    ``weights`` before and after each update, and of the ``gradient`` of each update. Gradients are relative to at least
    a hundredth of the run's largest: an update in which almost no group is mixed has almost no gradient, but errors of
    rounding like the others. ``all gradients`` is the relative difference of the vector of all of them.
    """
    found = {"advantages": [], "old_log_probs": [], "weights": [distance(lab.weights(), stack.weights())]}
    for step in range(1, stack.steps + 1):
        theirs, ours = stack.batch(step), lab.batch(step)
        rows = [number for number, key in enumerate(theirs["keys"]) if not is_padding(key)]
        for name in ("advantages", "old_log_probs"):
            found[name].append(max(float((ours[name][row] - theirs[name][row]).abs().max()) for row in rows))
    norms, errors = [], []
    for number in range(1, stack.updates + 1):
        theirs, ours = stack.update(number), lab.update(number)
        found["weights"].append(distance(ours["weights"], theirs["weights"]))
        norms.append(_norm(theirs["gradient"].values()))
        errors.append(_norm(ours["gradient"][name] - of for name, of in theirs["gradient"].items()))
    least = max(norms) / 100
    found["gradient"] = [error / max(norm, least) for error, norm in zip(errors, norms, strict=True)]
    found["all gradients"] = [math.hypot(*errors) / math.hypot(*norms)]
    return found


def _norm(tensors):
    return sum(float(tensor.double().square().sum()) for tensor in tensors) ** 0.5


def metrics_that_differ(stack, lab):
    """(step, name) -> both values of a metric that both runs have and that differs by more than rounding.

    In the first step the learning rate is 0. Log-ratios, and figures of them, are nothing but rounding there.
    """
    found = {}
    lines = zip(stack.metrics()[1:], lab.metrics()[1:], strict=True)
    for (step, theirs), (_, ours) in lines:
        for name in theirs.keys() & ours.keys():
            if _TIMES_AND_MEMORY.match(name) or math.isclose(theirs[name], ours[name], rel_tol=1e-3, abs_tol=1e-6):
                continue
            found[step, name] = theirs[name], ours[name]
    return found
